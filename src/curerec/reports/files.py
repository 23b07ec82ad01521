"""Write a text file whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from curerec.errors import StorageError


def replace_file(path: str | Path, text: str) -> Path:
    """Put ``text`` at ``path`` in one step: a reader sees the old file or the new one, never a part.

    Args:
        path: target; its folder must exist.
        text: contents, written as UTF-8.

    Returns:
        The path written.

    Raises:
        StorageError: full disk, missing folder or no permission; nothing is left behind.

    Example:
        >>> import tempfile
        >>> replace_file(Path(tempfile.mkdtemp()) / "a.txt", "x").read_text()
        'x'
    """
    path = Path(path)
    # Beside the target, because a rename is atomic only within one file system; not mkstemp, whose
    # mode 0600 would hide the report from the colleague it was written for.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"cannot be written ({error.strerror or error})",
            where=str(path),
            mend="Check free space and permissions of the folder, or name another one",
        ) from error
    finally:
        # Also on Ctrl-C: after a successful rename there is nothing here to remove.
        with contextlib.suppress(OSError):
            part.unlink()
    return path


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the platform can open a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
