"""Help texts, the version, and what a mistyped command line is answered with."""

from __future__ import annotations

import subprocess
import sys

import pytest

import curerec as package
from made_commands import curerec, refused

COMMANDS = ["fetch", "pack", "train", "unlearn", "evaluate", "report", "circuit", "demo"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    for option in ("--help", "-h"):
        result = curerec(command, option)
        assert result.code == 0 and not result.err
        assert f"Example: curerec {command}" in " ".join(result.out.split())


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_names_every_command_and_the_exit_codes(arguments):
    result = curerec(*arguments)
    assert result.code == 0 and not result.err
    assert all(f"  {command} " in result.out for command in COMMANDS)
    assert "0 done, 1 refused or not verified, 2 bad input" in " ".join(result.out.split())


def test_version():
    assert curerec("--version").out.strip() == package.__version__


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["request", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        f"import sys; sys.argv = ['curerec', *{arguments}]\n"
        "from curerec.cli import main\n"
        "try: main()\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'accelerate', 'numpy', 'scipy', 'sklearn', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "ours = [name for name in sys.modules if name.startswith('curerec.')]\n"
        "assert all(n.startswith(('curerec.cli', 'curerec.errors')) for n in ours), ours\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nosuch"], "nosuch"),
        (["--nosuch"], "--nosuch"),
        (["unlearn"], "Missing option '--recommender'"),
        (["report"], "Missing argument"),
        (["train", "--out"], "--out"),
        (["train", "--out", "x", "--seed", "one"], "--seed"),
        (["train", "--out", "x", "--seed", "-1"], "--seed"),
        (["report", "a", "b"], "unexpected extra argument"),
    ],
)
def test_usage_errors_are_one_line(arguments, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = refused(curerec(*arguments), part)
    assert text.endswith("--help")
    assert not list(tmp_path.iterdir())
