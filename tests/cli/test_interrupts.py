"""Full disks, Ctrl-C and kills: what was there stays, what was to be is whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from curerec.data import output
from made_commands import curerec, killed, refused, tree, untouched


def commands(made, out):
    """The commands that write, by name."""
    read = ("--data", made.data)
    asked = ("--recommender", made.full, "--request", made.request)
    return {
        "pack": ["pack", *read, "--out", out],
        "train": ["train", *read, "--recipe", made.recipe, "--out", out],
        "unlearn": ["unlearn", *read, *asked, "--out", out],
        "evaluate": [*made.judge, "--out", out],
        "demo": ["demo", *read, "--recipe", made.recipe, "--out", out],
    }


@pytest.fixture
def disk(tmp_path):
    """A way to a small disk of its own."""
    mounted = []

    def make(size_kb):
        folder = tmp_path / f"disk{size_kb}"
        folder.mkdir()
        if not shutil.which("mount") or os.geteuid():
            pytest.skip("a disk can be mounted by root only")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", folder], capture_output=True
        )
        if done.returncode:
            pytest.skip("no disk can be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


# The weights are 418 KB; 428 holds them and not what comes after, 460 the recommender and not its record.
@pytest.mark.slow_but("unlearn-428", "train-*", "evaluate-*", "pack-*")
@pytest.mark.parametrize(
    ("command", "size_kb"),
    [
        ("pack", 32),
        ("train", 64),
        ("train", 428),
        ("unlearn", 64),
        ("unlearn", 428),
        ("unlearn", 460),
        ("evaluate", 16),
    ],
)
def test_a_full_disk(command, size_kb, made_path, disk):
    folder = disk(size_kb)
    out = folder / "deep" / "new"
    refused(curerec(*commands(made_path, out)[command]), "disk is full", str(out), "Make room", stages=True)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("size_kb", [64, 428])
def test_a_full_disk_under_the_cache(size_kb, made_path, disk, tmp_path, monkeypatch):
    folder = disk(size_kb)
    monkeypatch.setenv("CUREREC_CACHE", str(folder))
    result = curerec(*commands(made_path, tmp_path / "new")["train"])
    refused(result, "disk is full", "CUREREC_CACHE", stages=True)
    assert not list(folder.iterdir()) and not (tmp_path / "new").exists()


@pytest.mark.slow_but("1-*")
@pytest.mark.parametrize("command", ["train", "unlearn", "evaluate"])
@pytest.mark.parametrize("nth", [1, 3])
def test_a_disk_that_fills_while_files_are_made_safe(command, nth, made_path, tmp_path, monkeypatch):
    calls = []

    def sync(path):
        calls.append(path)
        if len(calls) >= nth:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(output, "sync", sync)
    with untouched(tmp_path):
        result = curerec(*commands(made_path, tmp_path / "new")[command])
        refused(result, "disk is full", str(tmp_path / "new"), stages=True)


@pytest.mark.slow_but("1", "2")
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_earlier_output_survives_a_failed_exchange(nth, made_path, tmp_path, monkeypatch):
    shutil.copytree(made_path.full, tmp_path / "new")
    done, rename = [], os.rename

    def failing(old, new):
        done.append(old)
        if len(done) == nth:
            raise OSError(errno.EIO, "Input/output error", str(old))
        rename(old, new)

    monkeypatch.setattr(output.os, "rename", failing)
    result = curerec(*commands(made_path, tmp_path / "new")["train"], "--seed", "5")
    monkeypatch.undo()
    if nth == 3:  # there is no third
        assert result.code == 0 and tree(tmp_path / "new") != tree(made_path.full)
    else:
        refused(result, "input/output error", stages=True)
        assert tree(tmp_path / "new") == tree(made_path.full)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def slowly():
    """Make every sync of a file take long enough for a signal to hit it."""
    fast = output.sync

    def sync(path):
        time.sleep(0.1)
        fast(path)

    output.sync = sync


MOMENTS = [
    ("train", "start"),
    ("train", "pre-train the base model"),
    ("train", "saving"),
    ("unlearn", "start"),
    ("unlearn", "counterfactuals"),
    ("unlearn", "prepare"),
    ("unlearn", "saving"),
    ("demo", "cure: groups"),
]


@pytest.mark.slow_but("new-unlearn-*", "new-train-*", "replaced-train-*")
@pytest.mark.parametrize(("command", "moment"), MOMENTS)
@pytest.mark.parametrize("earlier", [False, True], ids=["new", "replaced"])
def test_ctrl_c(command, moment, earlier, made_path, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    if earlier:
        kept = {"train": made_path.full, "unlearn": made_path.new, "demo": made_path.demo}[command]
        shutil.copytree(kept, place / "out")

    def when(log):
        if moment == "saving":
            return any(path.name.startswith(".out-") and any(path.iterdir()) for path in place.iterdir())
        return f"{moment}: " in log

    arguments = commands(made_path, place / "out")[command]
    with untouched(place):
        # Slowly at every moment: a command of two seconds may be over before a busy machine sends the signal.
        result = killed(tmp_path / "log", arguments, when, signal.SIGINT, before=slowly)
        refused(result, "interrupted", "half-written", stages=True)


def swallowing():
    """A library that clears whatever error comes back, Ctrl-C too, in the middle of a command."""
    real = output.sync

    def sync(path):
        with contextlib.suppress(BaseException):
            time.sleep(30)
        output.sync = real
        real(path)

    output.sync = sync


def test_ctrl_c_that_a_library_swallowed(made_path, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    arguments = commands(made_path, place / "out")["demo"]

    def when(log):
        return any(place.rglob("curerec.json")) or any(place.rglob("*.safetensors"))

    result = killed(tmp_path / "log", arguments, when, signal.SIGINT, before=swallowing)
    refused(result, "interrupted", "half-written", stages=True)


@pytest.mark.slow_but("train*")
@pytest.mark.parametrize("command", ["train", "unlearn"])
def test_a_kill_leaves_nothing_that_can_be_read_as_a_result(command, made_path, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    out = place / "out"

    def when(log):
        return any(path.name == "curerec.json" for path in place.rglob("*"))

    arguments = commands(made_path, out)[command]
    result = killed(tmp_path / "log", arguments, when, signal.SIGKILL, before=slowly)
    assert result.code == -signal.SIGKILL
    assert not out.exists()
    assert all(path.name.startswith(".out-") for path in place.iterdir())
    again = curerec(
        "unlearn", "--recommender", out, "--data", made_path.data, "--request", made_path.request,
        "--out", place / "x",
    )  # fmt: skip
    refused(again, "recommender out", "curerec train")
    assert curerec(*arguments).code in (0, 1)
    wanted = made_path.full if command == "train" else made_path.new
    assert tree(out).keys() == tree(wanted).keys()
    assert [path.name for path in place.iterdir()] == ["out"]  # what the kill left went with the second run


@pytest.mark.parametrize(
    "delay_s",
    [0.3, 1.5, pytest.param(3.0, marks=pytest.mark.soak), pytest.param(6.0, marks=pytest.mark.soak)],
)
def test_ctrl_c_of_the_real_program(delay_s, made_path, tmp_path):
    """Also while modules are imported."""
    (tmp_path / "place").mkdir()
    # What a shell starts in the background ignores Ctrl-C, and so would this child of such a test run.
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", start + "from curerec.cli import main; print('on', flush=True); main()"]
    arguments = [str(word) for word in commands(made_path, tmp_path / "place" / "out")["demo"]]
    with untouched(tmp_path / "place"):
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "on\n"
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert err.splitlines()[-1].startswith("curerec: interrupted"), err
    assert "Traceback" not in err


def test_ctrl_c_where_nobody_can_be_told_is_kept_without_a_traceback(monkeypatch):
    """It came while importlib let a module's lock go; what else ends there is told as it always was."""
    from curerec.cli import interrupts

    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupts.watch()

        class Gone:
            def __init__(self, last):
                self.last = last

            def __del__(self):
                self.last()

        Gone(lambda: signal.raise_signal(signal.SIGINT))
        assert not told
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        Gone(lambda: {}["lost"])
        assert [one.exc_type for one in told] == [KeyError]
    finally:
        signal.signal(signal.SIGINT, before)


def test_output_that_nobody_reads_is_no_error(made_path):
    command = [sys.executable, "-c", "from curerec.cli import main; main()", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(timeout=60) in (0, 1)
    assert not process.stderr.read()
    process.stderr.close()


def test_ctrl_c_while_a_library_makes_its_classes_is_ctrl_c(monkeypatch, capsys):
    """Python before 3.12 wraps what comes from there in an error of its own."""
    from curerec import cli

    def interrupted(arguments):
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr(cli, "_run", interrupted)
    monkeypatch.setattr(cli.interrupts, "watch", lambda: None)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2 and "interrupted" in capsys.readouterr().err
    monkeypatch.setattr(cli, "_run", lambda arguments: (_ for _ in ()).throw(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        cli.main()


def test_ctrl_c_that_a_library_made_an_error_of_is_ctrl_c(made_path, tmp_path, monkeypatch):
    """As where Python before 3.12 wraps it while a base model is loaded, which reads as a damaged file."""
    from transformers import AutoConfig

    def interrupted(*_, **__):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as gone:
            raise RuntimeError("Error calling __set_name__") from gone

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(AutoConfig, "from_pretrained", interrupted)
    try:
        with untouched(tmp_path):
            result = curerec(*commands(made_path, tmp_path / "out")["unlearn"])
            refused(result, "interrupted", "half-written", stages=True)
    finally:
        signal.signal(signal.SIGINT, before)
