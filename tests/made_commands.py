"""A tiny catalogue on disk, and the command run on it, in this process or in a fork."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from curerec.cli import main
from made_ratings import LAYOUTS, Row

N_USERS, N_ITEMS = 60, 40
WORDS = [
    "Amberlin",
    "Basaltik",
    "Cedarone",
    "Dunewick",
    "Emberoth",
    "Fjordane",
    "Garnetto",
    "Harbourn",
    "Indigold",
    "Junipero",
]
TITLES = {
    f"itm{k}": f"{WORDS[k % 10]} {WORDS[(3 * (k // 10) + k) % 10]} ({1950 + k})" for k in range(N_ITEMS)
}
RECIPE = """\
split: {public_share: 0.4, train: 240, other: 90}
model:
  base: nano
  kind: full
  pretrain: {epochs: 1, batch_size: 64, lr: 2.0e-3}
  tuning: {epochs: 1, batch_size: 32, lr: 1.0e-3}
cure:
  pairs: 16
  forget_size: 40
  control_size: 40
  draws: 10
  update: {max_steps: 4, check_every: 2, check_size: 60, batch_size: 32, max_auc_drop: 1}
npo: {max_steps: 4, check_every: 2, check_size: 60, batch_size: 32, max_auc_drop: 1}
"""
LORA = RECIPE.replace("kind: full", "kind: lora\n  lora: {r: 4, alpha: 8}").replace(
    "cure:", "cure:\n  granularity: projection"
)
#: Nothing of a user or a title may be in a message.
PRIVATE = re.compile(r"usr\d|itm\d|" + "|".join(WORDS))
LAYOUT = LAYOUTS["movielens-100k"]


def rows(seed: int = 0) -> list[Row]:
    """Ratings by users who like the items of one parity."""
    rng = np.random.default_rng(seed)
    out: list[Row] = []
    for user in range(N_USERS):
        for time_s, item in enumerate(rng.permutation(N_ITEMS)[: rng.integers(22, 34)]):
            liked = item % 2 == user % 2
            rating = float(rng.integers(3, 6) if liked else rng.integers(1, 5))
            out.append((f"usr{user}", f"itm{item}", rating, 1000 + time_s))
    return out


def write_data(folder: Path, titles: dict[str, str] = TITLES, ratings: list[Row] | None = None) -> Path:
    """``u.data`` and ``u.item``."""
    return LAYOUT.write(folder, rows() if ratings is None else ratings, titles)


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


def curerec(*arguments: object) -> Result:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["curerec", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    return Result(code, out.getvalue(), err.getvalue())


def refused(result: Result, *parts: str, code: int = 2, stages: bool = False) -> str:
    """The one line that a command ended with, which names what is expected and nobody.

    Args:
        stages: lines about stages that were done may come before it.
    """
    lines = result.err.splitlines()
    assert result.code == code, result
    assert lines and lines[-1].startswith("curerec: "), result
    assert all(re.fullmatch(r"[\w :-]+: [0-9.]+ s", line) for line in lines[:-1]), result
    assert stages or len(lines) == 1, result
    assert not PRIVATE.search(result.err + result.out), "user data in a message"
    for part in parts:
        assert part in lines[-1], (part, lines[-1])
    assert lines[-1].count(". ") >= 1, f"no mend: {lines[-1]}"
    return lines[-1]


def tree(folder: Path) -> dict[str, str]:
    """Path to digest of everything under a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@contextlib.contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Nothing under a folder changes, appears or goes."""
    before = tree(folder)
    yield
    after = tree(folder)
    assert after == before, sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def fork(log: Path, arguments: list[object], *, before: Callable[[], None] | None = None) -> int:
    """The command in a fork of this process, both outputs into ``log``; returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
        sys.argv = ["curerec", *map(str, arguments)]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before is not None:
            before()
        print("start: 0 s")  # a signal before the fork has settled would be lost
        main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def killed(
    log: Path,
    arguments: list[object],
    when: Callable[[str], bool],
    how: signal.Signals,
    *,
    before: Callable[[], None] | None = None,
) -> Result:
    """The command in a fork, sent a signal once ``when`` is true of its output so far."""
    pid = fork(log, arguments, before=before)
    deadline = time.monotonic() + 60
    sent = done = 0
    status = 0
    while not done:
        done, status = os.waitpid(pid, os.WNOHANG)
        if not sent and not done and when(log.read_text() if log.exists() else ""):
            time.sleep(0.01)
            os.kill(pid, how)
            sent = 1
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline += 5
        time.sleep(0.002)
    assert sent, "the command ended before its signal: " + log.read_text()
    return Result(os.waitstatus_to_exitcode(status), "", log.read_text())


def make_path(folder: Path) -> types.SimpleNamespace:
    """The whole path once: what each command left, and the results of the commands."""
    made = types.SimpleNamespace(folder=folder, data=write_data(folder / "data"), results={})
    for name, text in (("full", RECIPE), ("lora", LORA)):
        (folder / f"{name}.yaml").write_text(text)
    made.recipe, made.recipe_lora = folder / "full.yaml", folder / "lora.yaml"
    made.request = folder / "request.csv"

    def step(name: str, *arguments: object) -> Path:
        made.results[name] = curerec(*arguments, "--out", folder / name)
        return folder / name

    read = ("--data", made.data)
    made.demo = step("demo", "demo", *read, "--recipe", made.recipe)
    made.request.write_bytes((made.demo / "request.csv").read_bytes())
    made.full = step("full", "train", *read, "--recipe", made.recipe)
    made.lora = step("lora", "train", *read, "--recipe", made.recipe_lora, "--no-prepare")
    made.before = tree(made.full) | tree(made.lora)
    ask = ("--request", made.request)
    for name in ("new", "again"):
        setattr(made, name, step(name, "unlearn", "--recommender", made.full, *read, *ask))
    made.new_lora = step("new_lora", "unlearn", "--recommender", made.lora, *read, *ask)
    made.after = tree(made.full) | tree(made.lora)
    retrains = []
    for seed in (1001, 2002):
        options = ("--recipe", made.recipe, "--without", made.request, "--seed", seed)
        retrains.append(step(f"retrain{seed}", "train", *read, *options))
    made.retrains = retrains
    judge = ("--recommender", made.full, "--unlearned", made.new / "recommender", *read, *ask)
    made.judge = ("evaluate", *judge)
    made.judged = step(
        "judged", "evaluate", *judge, *(word for path in retrains for word in ("--retrain", path))
    )
    return made
