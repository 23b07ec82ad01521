"""Output folders: written beside their place and put there whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from curerec.data import leftovers
from curerec.data.cache import sync
from curerec.errors import StorageError

MEND = "Make room or name another --out; nothing was left half-written"
#: What a disk or a path may have against being written to; any other OSError is a fault of ours.
WRITING = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than allowed",
    errno.EACCES: "cannot be written (no permission)",
    errno.EPERM: "cannot be written (no permission)",
    errno.EROFS: "cannot be written (read-only file system)",
    errno.ENOENT: "cannot be written: its folder is not there",
    errno.EISDIR: "cannot be written: it is a folder",
    errno.ENOTDIR: "cannot be made: a part of its path is a file",
    errno.EEXIST: "cannot be made: something else is there",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "cannot be written (input/output error)",
}


def check_out(
    folder: Path,
    *,
    marker: str | None = None,
    only: Collection[str] = (),
    inputs: Iterable[Path | None] = (),
    inside: bool = False,
    option: str = "--out",
) -> None:
    """Refuse an output folder before any work is done, rather than after it.

    Args:
        folder: to be written; fine if it is not there or empty.
        marker: file that shows it to be an earlier output, which may be replaced.
        only: names of an earlier output; a folder that holds nothing else may be replaced, too.
        inputs: folders that are read; they must not be inside ``folder``.
        inside: ``folder`` may be inside of one of them. A folder of ratings is read as before then; a
            recommender or a base that holds a folder is not opened any more.
        option: that named the folder.

    Raises:
        StorageError: it is a file, holds something else, holds an input or lies in one.
    """
    mend = f"Name another {option} folder"
    try:
        if folder.exists() and not folder.is_dir():
            raise StorageError("is a file, not a folder", where=str(folder), mend=mend)
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        parent = next(path for path in Path(os.path.abspath(folder)).parents if path.exists())
        if not parent.is_dir():
            raise StorageError("cannot be made: a part of its path is a file", where=str(folder), mend=mend)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise StorageError("cannot be written (no permission)", where=str(folder), mend=mend)
    except OSError as error:
        raise _refusal(error, folder) from None
    if names and marker not in names and not names <= set(only):
        raise StorageError("holds something that is not an earlier output", where=str(folder), mend=mend)
    out, inputs = folder.resolve(), list(inputs)
    if any(path is not None and path.resolve().is_relative_to(out) for path in inputs):
        raise StorageError("holds what the command is to read", where=str(folder), mend=mend)
    if not inside and any(path is not None and out.is_relative_to(path.resolve()) for path in inputs):
        raise StorageError("is inside of what the command is to read", where=str(folder), mend=mend)


@contextmanager
def replacing(folder: Path, *, marker: str | None = None, only: Collection[str] = ()) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` once everything in it is on disk.

    What killed processes left of earlier attempts at the same ``folder`` goes first.

    Args:
        folder, marker, only: as in :func:`check_out`.

    Raises:
        StorageError: no room, no permission, or ``folder`` holds something else.
    """
    check_out(folder, marker=marker, only=only)
    leftovers.sweep(Path(os.path.abspath(folder)))
    check_out(folder, marker=marker, only=only)  # an earlier output may have been put back
    folder = Path(os.path.abspath(folder))
    new = [path for path in folder.parents if not path.exists()]  # deepest first
    # Named before it is made, so that an interrupt at any point finds it.
    stage = leftovers.hidden_name(folder)
    aside = stage.with_name(stage.name + leftovers.OLD)
    locks: list[int | None] = []
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage, lock = leftovers.make_held(folder, stage)
        locks.append(lock)
        aside = stage.with_name(stage.name + leftovers.OLD)
        yield stage
        for path in [*stage.rglob("*"), stage]:
            sync(path)
        if folder.exists():
            with suppress(OSError):  # no locks here; sweeping is off then, too
                locks.append(leftovers.hold(folder))
            os.rename(folder, aside)
        os.rename(stage, folder)
        sync(folder.parent)
    except OSError as error:
        raise _refusal(error, folder) from None
    except StorageError as error:  # of a file inside: say where it was to be, not where it was prepared
        where = str(error.where).replace(str(stage), str(folder))
        cause = error.__cause__
        what = WRITING.get(cause.errno or 0, error.what) if isinstance(cause, OSError) else error.what
        raise StorageError(what, where=where, mend=MEND) from None
    finally:
        try:
            _tidy(folder, stage, aside, new)
        except KeyboardInterrupt:
            _tidy(folder, stage, aside, new)
            raise
        finally:
            for lock in locks:
                if lock is not None:
                    os.close(lock)


def _tidy(folder: Path, stage: Path, aside: Path, new: list[Path]) -> None:
    if aside.exists() and not folder.exists():
        os.rename(aside, folder)
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(stage, ignore_errors=True)
    for path in new:
        try:
            path.rmdir()
        except OSError:  # not empty: the output is there
            break


def _refusal(error: OSError, folder: Path) -> OSError | StorageError:
    what = WRITING.get(error.errno or 0)
    return error if what is None else StorageError(what, where=str(folder), mend=MEND)
