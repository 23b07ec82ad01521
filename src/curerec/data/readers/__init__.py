"""Readers, one file a format. To add one: a file with a ``READER`` and a line in :data:`READERS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from curerec.data import packed, packing
from curerec.data.readers import goodbooks, movielens_100k, movielens_csv, movielens_dat, plain, recbole
from curerec.data.readers.base import Reader
from curerec.data.table import Duplicates, interactions
from curerec.errors import DataError
from curerec.interactions import Interactions

#: Format name to reader, in the order in which they are tried; ``plain`` last, since it takes any csv.
READERS: dict[str, Reader] = {
    "movielens-100k": movielens_100k.READER,
    "movielens-dat": movielens_dat.READER,
    "movielens-csv": movielens_csv.READER,
    "goodbooks": goodbooks.READER,
    "recbole": recbole.READER,
    "plain": plain.READER,
}


def read(
    path: str | Path,
    *,
    format: str | None = None,
    titles: str | Path | None = None,
    name: str | None = None,
    source: str = "local file",
    duplicates: Duplicates = "error",
) -> Interactions:
    """Read a folder or a ratings file of any known format.

    Args:
        path: folder, or the ratings file in it; or a folder that :func:`pack` wrote, which takes no titles,
            and for which the other arguments are without effect.
        format: a key of :data:`READERS`; None finds out by file names and headers.
        titles: the titles file, if it is not beside the ratings under its usual name.
        name: of the data set, for the record; None takes the name of the folder or file.
        source: where the files came from, for the record.
        duplicates: ``error``, or ``last`` to keep the latest of several ratings of one item by one user.

    Returns:
        The canonical table.

    Raises:
        DataError: not there, no known format, several ratings files, or anything wrong in a row; the message
            holds file and row.

    Related:
        :func:`curerec.data.fetch.load`, which also takes the name of a public data set.

    Example:
        >>> read("no/such/folder")
        Traceback (most recent call last):
        curerec.errors.DataError: no/such/folder: there is no such file or folder. Check the path.
    """
    path = Path(path)
    if packed.is_packed(path):
        if titles is not None:
            mend = "Leave titles (--titles) out, or pack the ratings anew with others."
            raise DataError("is packed, and the titles with it", where=path.name, mend=mend)
        return packed.open_packed(path)
    reader, file, titles = _found(path, format, titles)
    rows, catalogue = reader.ratings(file), reader.titles(titles)
    return interactions(
        rows.users,
        rows.items,
        rows.ratings,
        rows.times,
        catalogue.table,
        name=name or _name(path),
        source=source,
        origin=rows.origin,
        titles_origin=catalogue.origin,
        duplicates=duplicates,
    )


def pack(
    path: str | Path,
    folder: str | Path,
    *,
    format: str | None = None,
    titles: str | Path | None = None,
    name: str | None = None,
    duplicates: Duplicates = "error",
    progress: Callable[[int, int], None] | None = None,
) -> Interactions:
    """Put ratings into columns on disk, which are then opened at once and read where they are touched.

    Parquet of the ``plain`` format may be larger than memory; other formats are read into memory first.

    Args:
        path, format, titles, name, duplicates: as for :func:`read`.
        folder: to write; replaced if it is a packed one.
        progress: of parquet, told (rows passed over, rows to pass over in all).

    Raises:
        DataError: as :func:`read`; or ``duplicates`` is ``last`` for parquet, which is not read at once.
        StorageError: the disk is full, or the folder holds something else.

    Related:
        :mod:`curerec.data.packed`, which has the format, and :mod:`curerec.data.packing`.
    """
    path = Path(path)
    if not packed.is_packed(path):
        reader, file, beside = _found(path, format, titles)
        if reader is plain.READER and file.suffix == ".parquet":
            if duplicates != "error":
                mend = "Keep one rating of an item by a user in the file"
                raise DataError("packing does not choose between duplicates", where=file.name, mend=mend)
            catalogue = reader.titles(beside)
            return packing.pack(
                file,
                catalogue.table,
                folder,
                name=name or _name(path),
                titles_origin=catalogue.origin,
                progress=progress,
            )
    data = read(path, format=format, titles=titles, name=name, duplicates=duplicates)
    return packed.pack_table(data, folder)


def _name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


def _found(path: Path, format: str | None, titles: str | Path | None) -> tuple[Reader, Path, Path]:
    """Reader, ratings file and titles file."""
    if not path.exists():
        raise DataError("there is no such file or folder", where=str(path), mend="Check the path.")
    reader, file = _recognise(path, format)
    beside = Path(titles) if titles is not None else reader.beside(file)
    if beside is None:
        mend = f"Put it there ({reader.about}); `curerec pack --titles FILE` takes one from elsewhere."
        raise DataError("no titles file beside it", where=file.name, mend=mend)
    return reader, file, beside


def _recognise(path: Path, format: str | None) -> tuple[Reader, Path]:
    """Reader and ratings file; of several readers that take one file the first."""
    if format is not None and format not in READERS:
        raise DataError("no such format", where=format[:40], mend=f"Known: {', '.join(READERS)}.")
    asked = list(READERS.values()) if format is None else [READERS[format]]
    found: dict[Path, Reader] = {}
    for reader in asked:
        for file in reader.find(path):
            found.setdefault(file, reader)
    if len(found) > 1:  # the first of them may be one that lies there from before
        several = ", ".join(file.name for file in list(found)[:4]) + (", ..." if len(found) > 4 else "")
        what = f"holds several ratings files ({several})"
        raise DataError(what, where=path.name, mend="Give the path of one of them.")
    for file, reader in found.items():
        return reader, file
    if format is not None and path.is_file():  # the caller knows better than the file's name
        return READERS[format], path
    known = "; ".join(reader.about for reader in READERS.values())
    if path.suffix == ".zip":
        raise DataError("is a zip archive", where=path.name, mend="Unzip it and give the folder.")
    if path.suffix in (".gz", ".bz2", ".xz", ".zst"):
        raise DataError("is compressed", where=path.name, mend="Unpack it and give the file.")
    raise DataError("holds no known format", where=path.name, mend=f"Known: {known}.")
