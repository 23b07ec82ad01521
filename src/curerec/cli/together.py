"""Which commands several processes started by ``accelerate launch`` may run together."""

from __future__ import annotations

import os

from curerec.errors import ConfigError

ABLE = ("train", "unlearn", "bench")
WHOLE = ("apa", "receraser", "rome", "sisa", "wise")  # methods that need the base's weights, not its answers


def processes() -> int:
    """How many were started together."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def refuse(command: str) -> None:
    """Refuse a command that several processes would carry out several times.

    Raises:
        ConfigError: more than one process was started.
    """
    if processes() > 1:
        raise ConfigError(
            f"is for one process; {processes()} were started together",
            where=command,
            mend=f"Start it without accelerate; together may run: {', '.join(ABLE)}",
        )


def refuse_whole(command: str, method: str) -> None:
    """Refuse a method that changes or trains the base where no process holds all of it (FSDP).

    Raises:
        ConfigError: the method is one of :data:`WHOLE`.
    """
    if method in WHOLE:
        raise ConfigError(
            f"{method} changes or trains the base, of which each process would hold a part",
            where=command,
            mend="Start it without --use_fsdp, or choose a method that updates the adapter",
        )


def one_writer() -> int | None:
    """Of the processes that were started together one goes on; it carries out cells in as many at a time.

    Returns:
        How many processes were started together, for the one that goes on, which is then alone; None for the
        others, which have nothing to do.
    """
    n, rank = processes(), os.environ.get("RANK", "0")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return n if rank == "0" else None
