"""``curerec verify`` and ``curerec serve``: a store looked at by others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from curerec.cli.options import StoreFolder


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A store, or a file of `curerec request export`.")
    ],
    public: Annotated[
        Path | None, typer.Option("--public-key", help="PEM that every record must be signed with.")
    ] = None,
    head: Annotated[
        str | None, typer.Option("--head", help="sha256 of the last record, as you noted it elsewhere.")
    ] = None,
) -> None:
    """Check chain, digests and signatures. Exit code 0: all hold; 1: not; 2: nothing there to check."""
    from curerec.requests.audit import audit, audit_export

    seen = (audit_export if folder.is_file() else audit)(folder, public=public, head=head)
    typer.echo(
        f"{seen.records} record(s), {seen.versions} version(s), {seen.signed} signature(s); head {seen.head}"
    )
    for note in seen.notes:
        typer.echo(f"note: {note}")
    for fault in seen.faults:
        typer.echo(f"FAULT: {fault}")
    if seen.faults:
        raise typer.Exit(1)
    typer.echo("all holds: the records are those that were written; they are no proof of erasure")


def serve(
    store: StoreFolder,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8765,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Name that a proxy or a container asks under (the Host header)."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="Holds the bearer token. Default: made in the store.")
    ] = None,
    every: Annotated[
        float | None, typer.Option("--run-every", min=0, help="Minutes: run what is open so often.")
    ] = None,
    before: Annotated[
        int | None, typer.Option("--run-before", min=0, help="Days: run at once what is due so soon.")
    ] = None,
    retrain_before: Annotated[
        int | None,
        typer.Option("--retrain-before", min=0, help="Days: retrain for what is held and due so soon."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Such runs make a batch a request.")] = False,
) -> None:
    """Serve the store on this machine: requests, progress, reports, a page. Needs the extra `serve`."""
    from curerec.errors import ConfigError
    from curerec.requests.schedule import Rule
    from curerec.requests.serve import serve as listen

    if every is not None and not math.isfinite(every):  # inf: it would never run, and no JSON says so
        raise ConfigError("is no number of minutes", where="serve --run-every", mend="Give one, such as 60")
    rule = Rule(None if every is None else 60 * every, before, retrain_before, each)
    say = lambda text: typer.echo(text, err=True)  # noqa: E731
    listen(store, host=host, port=port, names=name or (), token_file=token_file, say=say, rule=rule)


def attach(app: typer.Typer) -> None:
    """Put these commands beside the others."""
    app.command(epilog="Example: curerec verify runs/service")(verify)
    app.command(epilog="Example: curerec serve --store runs/service")(serve)
