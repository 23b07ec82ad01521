"""Many processes on one ledger: one runner at a time, nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from made_crash import copy, forked, made_store

from curerec.errors import RefusedError
from curerec.requests.audit import audit
from curerec.requests.runner import run
from curerec.requests.store import Store

PROCESSES = 8


class Alone(made_store.Stand):
    """Stages that see whether somebody else is in them."""

    calls: list[str] = []  # noqa: RUF012
    busy: Path

    def circuit(self):
        os.close(os.open(self.busy, os.O_CREAT | os.O_EXCL))  # raises if somebody is in
        time.sleep(0.002)
        return super().circuit()

    def verdict(self, before, adapter):
        out = super().verdict(before, adapter)
        os.unlink(self.busy)
        return out


def client(root: Path, number: int, log: Path) -> None:
    """Add one request of one's own and one that all add, then run; note what came of it."""
    rng = random.Random(number * 1000 + os.getpid())
    engine = type("Engine", (Alone,), {"calls": [], "busy": root / "busy"})
    with Store(root) as store:
        time.sleep(rng.uniform(0, 0.01))
        store.ledger.add(made_store.users(30))
        store.ledger.add(made_store.users(number))
        time.sleep(rng.uniform(0, 0.01))
        try:
            done = len(run(store, engine))
        except RefusedError:
            done = -1
    (log / str(number)).write_text(str(done))


@pytest.mark.slow
@pytest.mark.parametrize("races", [5, pytest.param(200, marks=pytest.mark.soak)])
def test_races_of_eight_processes(races, capsys):
    memory = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    ran = refused = 0
    try:
        root = made_store.made_store(memory / "template")
        for race in range(races):
            there, log = copy(root, memory / "store"), memory / f"log{race}"
            log.mkdir()
            processes = [
                forked(lambda k=k, there=there, log=log: client(there, k, log)) for k in range(PROCESSES)
            ]
            assert [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in processes] == [0] * PROCESSES
            ends = [int(path.read_text()) for path in log.iterdir()]
            ran, refused = ran + sum(e >= 0 for e in ends), refused + sum(e < 0 for e in ends)
            assert not (there / "busy").exists() and max(ends) >= 0
            with Store(there) as store:
                run(store, made_store.stand())
                assert store.ledger.counts()["committed"] == PROCESSES + 1
                records = [one.request for one in store.links() if one.action == "deletion"]
                assert len(records) == len(set(records)) == PROCESSES + 1
            assert not audit(there).faults
    finally:
        shutil.rmtree(memory)
    with capsys.disabled():
        print(f"\n  {races} races of {PROCESSES} processes: {ran} runs, {refused} refused, 0 lost, 0 twice")
