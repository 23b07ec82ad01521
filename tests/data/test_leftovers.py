"""What a real SIGKILL leaves beside an output folder, and that nobody loses anything to its removal."""

from __future__ import annotations

import os
import signal

import pytest

from curerec.data import leftovers, output
from curerec.data.output import replacing


def write(out, text):
    with replacing(out, only={"result"}) as stage:
        (stage / "result").write_text(text)


def child(work):
    """``work`` in a fork that never returns from it by itself; its process id."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(1)
    return pid


def killed(work):
    """``work`` in a fork that kills itself the hard way on its way through it."""
    status = os.waitpid(child(work), 0)[1]
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_inside(out):
    with replacing(out, only={"result"}) as stage:
        (stage / "result").write_text("half")
        die()


def renaming(out, survive):
    """Replace ``out``; die at the rename after ``survive`` renames, or right after the last."""
    rename, done = os.rename, []

    def deadly(old, new):
        if len(done) == survive:
            die()
        rename(old, new)
        done.append(old)
        if len(done) == 2:
            die()

    output.os.rename = deadly
    write(out, "new")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_write_is_cleared_by_the_next(tmp_path):
    for _ in range(2):
        killed(lambda: die_inside(tmp_path / "out"))
    assert len(names(tmp_path)) >= 1 and "out" not in names(tmp_path)
    write(tmp_path / "out", "whole")
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "result").read_text() == "whole"


@pytest.mark.parametrize(("survive", "left"), [(0, "old"), (1, None), (2, "new")])
def test_a_kill_in_the_exchange_loses_neither_output(survive, left, tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    killed(lambda: renaming(out, survive))
    assert len(names(tmp_path)) == 2 and (not out.exists() if left is None else True)
    with pytest.raises(ZeroDivisionError), replacing(out, only={"result"}):
        raise ZeroDivisionError  # the next run fails as well: what was there must be there again
    assert names(tmp_path) == ["out"] and (out / "result").read_text() == (left or "old")


def test_what_a_live_process_writes_stays(tmp_path):
    out, (ready, say), (hear, go) = tmp_path / "out", os.pipe(), os.pipe()

    def slow():
        with replacing(out, only={"result"}) as stage:
            (stage / "result").write_text("slow")
            os.write(say, b".")
            os.read(hear, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = child(slow)
    try:
        os.read(ready, 1)
        write(out, "quick")
        assert len(names(tmp_path)) == 2 and (out / "result").read_text() == "quick"
        os.write(go, b".")
        os.waitpid(pid, 0)
        pid = 0
        assert names(tmp_path) == ["out"] and (out / "result").read_text() == "slow"
    finally:
        if pid:  # a failed test must not leave it waiting
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for end in (ready, say, hear, go):
            os.close(end)


def test_what_only_looks_like_a_leftover_stays(tmp_path, monkeypatch):
    out = tmp_path / "out"
    mine = leftovers.hidden_name(out)
    with monkeypatch.context() as patch:
        patch.setattr(leftovers.platform, "node", lambda: "another machine")
        elsewhere = leftovers.hidden_name(out)
    of_others = [elsewhere, leftovers.hidden_name(tmp_path / "out2"), tmp_path / ".out-12345678"]
    of_others += [mine.with_name(mine.name + "-older"), mine.with_name(mine.name[:-1] + "x")]
    for path in of_others:
        path.mkdir()
        (path / "kept").write_text("mine")
    file, link = leftovers.hidden_name(out), leftovers.hidden_name(out)
    file.write_text("mine")
    link.symlink_to(of_others[0])
    write(out, "whole")
    assert all((path / "kept").exists() for path in of_others) and file.exists() and link.exists()
    mine.mkdir()  # and of that form, locked by nobody, it goes
    write(out, "again")
    assert not mine.exists()


def test_without_locks_nothing_is_swept_and_all_else_works(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "fcntl", None)
    stale = leftovers.hidden_name(tmp_path / "out")
    stale.mkdir()
    for text in ("one", "two"):
        write(tmp_path / "out", text)
    assert names(tmp_path) == [stale.name, "out"] and (tmp_path / "out" / "result").read_text() == "two"


def test_no_descriptor_is_left_open(tmp_path):
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for text in ("one", "two"):
        write(tmp_path / "out", text)
    assert not before or set(os.listdir("/proc/self/fd")) <= before
