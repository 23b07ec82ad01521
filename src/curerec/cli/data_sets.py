"""``curerec fetch`` and ``curerec pack``: public data sets, and ratings larger than memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curerec.cli.inputs import quiet
from curerec.cli.options import Out


def fetch(
    name: Annotated[str, typer.Argument(help="ml-100k, ml-1m, goodbooks-10k or smollm2-135m.")],
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Default: $CUREREC_CACHE or the user's cache.")
    ] = None,
    path: Annotated[Path | None, typer.Option("--path", help="A local copy to use instead.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is in the cache.")] = False,
) -> None:
    """Get a public data set or model into the cache, verified by its digest."""
    from curerec.data.fetch import PUBLIC
    from curerec.data.fetch import fetch as get

    def tell(text: str, done: int, total: int | None) -> None:
        if done == 0:
            typer.echo(text, err=True)

    if name == "smollm2-135m":
        quiet()
        from curerec.recommender.pretrained import fetch_smollm2

        typer.echo(fetch_smollm2(cache=cache, path=path, offline=offline, progress=tell))
        return
    if name not in PUBLIC:
        from curerec.errors import FetchError

        raise FetchError(f"unknown name {name!r}", where="fetch", mend=f"Choose from {', '.join(PUBLIC)}")
    typer.echo(get(name, cache=cache, path=path, offline=offline, progress=tell))


def pack(
    data: Annotated[str, typer.Option("--data", help="Folder or file of ratings, or a public data set.")],
    out: Out,
    titles: Annotated[
        Path | None, typer.Option("--titles", help="The titles file, where it is not beside the ratings.")
    ] = None,
) -> None:
    """Put ratings into columns on disk, read only where needed.

    Parquet (a file, or a folder of parts) may be larger than memory; other formats are read into memory
    first. OUT is what --data takes from then on. It holds the ratings themselves.
    """
    from curerec.cli.bars import bars
    from curerec.data.fetch import DATASETS, load
    from curerec.data.output import check_out
    from curerec.data.packed import CARD, pack_table
    from curerec.data.readers import pack as run

    named = data in DATASETS
    check_out(out, marker=CARD, inputs=[None if named else Path(data), titles], inside=True)
    with bars() as reporter:
        advance = reporter.stage("pack")
        made = (
            pack_table(load(data, titles=titles), out)
            if named
            else run(data, out, titles=titles, progress=advance)
        )
        advance(1, 1)
    counts = f"{len(made):,} ratings of {len(made.item_ids):,} items by {len(made.user_ids):,} users"
    typer.echo(f"{out}: {counts}")


def attach(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: curerec fetch ml-100k")(fetch)
    app.command(epilog="Example: curerec pack --data ratings --out runs/ratings")(pack)
