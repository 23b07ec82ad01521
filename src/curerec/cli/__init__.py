"""The command ``curerec``: parse, configure, call, print."""

from __future__ import annotations

import errno
import functools
import os
import sys
from typing import Any

from curerec.cli import interrupts

#: What a path or a disk may have against being used; any other OSError is a fault of ours and shows as one.
PATHS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EIO,
}

INTERRUPTED = (
    "interrupted; nothing was left half-written. Run the same command again "
    "(`bench`, `request run` and `evaluate --shadows` go on where they were)"
)
NO_MEMORY = "out of memory. Use fewer examples (split.train in a recipe) or a smaller model"
#: In place of click's text, which repeats the arguments: they may be ids of users.
EXTRA = "unexpected extra argument(s). An option takes one value each time it is named (--user A --user B)"


def main() -> None:
    """Entry point: every expected failure is one line on stderr and an exit code, never a traceback.

    Exit codes: 0 done, 1 refused or not verified, 2 bad input or interrupted.
    """
    try:
        # Bars of the libraries underneath would mix with ours.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        interrupts.watch()
        sys.exit(_run(sys.argv[1:] or ["--help"]))
    except KeyboardInterrupt:
        _stop(INTERRUPTED, 2)
    except RuntimeError as error:
        # Python before 3.12 wraps what comes while a class is being made, as when a library is imported.
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        _stop(INTERRUPTED, 2)
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _run(arguments: list[str]) -> int:
    import typer

    from curerec.errors import CurerecError

    usage_error: type[Exception] = typer.BadParameter.__mro__[1]  # typer names only this kind of it
    command = _command()
    try:
        # Not app(), which prints errors over several lines and turns Ctrl-C into an exit code.
        with command.make_context("curerec", arguments) as context:
            _invoke(command, context)
        sys.stdout.flush()
    except typer.Exit as done:
        return int(done.exit_code)
    except usage_error as error:
        name = getattr(getattr(error, "ctx", None), "command_path", "curerec")
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        message = EXTRA if "unexpected extra argument" in message else message
        _stop(f"{message}. Try: {name} --help", 2)
    except CurerecError as error:
        _stop(str(error), error.exit_code)
    except MemoryError:
        _stop(NO_MEMORY, 2)
    except RuntimeError as error:  # which is what torch makes of it
        from curerec.recommender.memory import ran_out

        if not ran_out(error):
            raise
        _stop(NO_MEMORY, 2)
    except OSError as error:
        if error.errno not in PATHS:
            raise
        name = os.path.basename(str(error.filename)) if error.filename else "output"
        _stop(f"{name}: {error.strerror}. Check the path, its permissions and the room on the disk", 2)
    return 0


@functools.cache
def _command() -> Any:
    import typer

    from curerec.cli.app import app

    return typer.main.get_command(app)  # reads every option of every command


def _invoke(command: Any, context: Any) -> None:
    import typer

    try:
        command.invoke(context)
    except typer.Exit:
        raise
    except Exception:
        interrupts.check()  # Ctrl-C it was, and a library made an error of its own of it
        raise


def _stop(message: str, code: int) -> None:
    # One line whatever a file name or a key in a recipe holds.
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    print(f"curerec: {line}", file=sys.stderr)
    sys.exit(code)
