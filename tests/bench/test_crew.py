"""Worker processes: one that is killed costs one cell, and none outlives its employer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from made_bench import made_place, made_recipe

from curerec.bench.crew import Event, Processes
from curerec.bench.failures import told
from curerec.bench.lines import read_lines
from curerec.bench.run import run
from curerec.bench.work import Workshop
from curerec.errors import DataError


class Murderous(Processes):
    """Kills the process of the first cell that it hears of."""

    victims = 0

    def poll(self, timeout_s: float) -> list[Event]:
        out = super().poll(timeout_s)
        for event in out:
            if event.what == "stage" and event.job.method == "npo" and not self.victims:
                self.victims += 1
                os.kill(next(h for h in self.hands if h.job == event.job).process.pid, signal.SIGKILL)
        return out


@pytest.mark.slow
def test_a_process_that_the_system_kills_costs_one_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    told_lines: list[str] = []
    done = run(
        made_recipe(requests=[{"share": 0.2, "methods": ["npo", "grad_diff"]}]),
        tmp_path / "out",
        jobs=1,
        threads=1,
        places=made_place(tmp_path),
        tell=told_lines.append,
        crew=lambda orders: Murderous(orders, 1),
    )
    assert done.done == done.total == 3
    found = {r["method"]: r["failure"] for r in read_lines(tmp_path / "out" / "rows.jsonl")}
    assert "signal 9" in found.pop("npo") and set(found.values()) == {None} and "grad_diff" in found
    assert any("signal 9" in line for line in told_lines)


@pytest.mark.soak
def test_the_command_is_killed_and_goes_on_and_no_worker_is_left(tmp_path):
    """kill -9 of the command itself, with workers; they end by themselves, and the next call finishes."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        made_recipe(requests=[{"share": 0.2, "methods": ["npo", "grad_diff"]}]).model_dump_json()
    )
    place = made_place(tmp_path)["made"]
    out = tmp_path / "out"
    code = "from curerec.cli import main; main()"
    command = [sys.executable, "-c", code, "bench", "--recipe", recipe, "--out", out, "--jobs", "2"]
    command += ["--threads", "1", "--data", f"made={place}"]
    environment = {**os.environ, "CUREREC_CACHE": str(tmp_path / "cache")}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (out / "rows.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children(first.pid)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stderr.close()
    assert workers
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if alive(pid)]
    last = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert last.returncode == 0, last.stderr
    methods = sorted(r["method"] for r in read_lines(out / "rows.jsonl"))
    assert methods == ["base", "grad_diff", "npo", "original", "retrain", "retrain_2"]
    assert (out / "bench.html").exists()


def children(pid):
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_what_a_failure_tells():
    assert told(MemoryError()) == told(RuntimeError("CUDA out of memory. Tried ...")) == "out of memory"
    assert told(RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")) == "out of memory"
    assert told(DataError("is short", where="file")) == "file: is short"
    try:
        made_recipe().setting("usr42", "nano")
    except KeyError as error:
        assert told(error).startswith("KeyError at bench/recipe.py:")


def test_a_gpu_that_is_lost_costs_no_row(monkeypatch):
    """Its errors come again from whatever is asked of it; the cell that lost it is to be written down."""

    def lost():
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    Workshop._tidy(object())
