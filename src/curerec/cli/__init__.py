"""The command ``curerec``: parse, configure, call, print."""

from __future__ import annotations

import errno
import os
import sys


def main() -> None:
    """Entry point: every expected failure is one line on stderr and an exit code, never a traceback.

    Exit codes: 0 done, 1 refused or not verified, 2 bad input or interrupted.
    """
    from curerec.cli.app import app
    from curerec.errors import CurerecError

    # Bars of the libraries underneath would mix with ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except CurerecError as error:
        _stop(str(error), error.exit_code)
    except KeyboardInterrupt:
        _stop("interrupted; nothing was left half-written. Run the same command again to start over", 2)
    except MemoryError:
        _stop("out of memory. Use fewer examples (split.train in a recipe) or a smaller model", 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        name = os.path.basename(str(error.filename)) if error.filename else "output"
        _stop(f"{name}: cannot be written ({error.strerror}). Make room or name another --out", 2)


def _stop(message: str, code: int) -> None:
    print(f"curerec: {message}", file=sys.stderr)
    sys.exit(code)
