"""The guide's commands are commands, and the reference names every field."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from made_store import made_store, stand, users

from curerec.cli.app import app
from curerec.config import parse
from curerec.requests.chain import statement
from curerec.requests.policy import Policy
from curerec.requests.runner import run
from curerec.requests.store import Store
from made_commands import curerec

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "requests.md").read_text()


def commands(text):
    """Lines of ``curerec`` in the shell blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [
        line.split(" #")[0].strip()
        for block in blocks
        for line in block.splitlines()
        if line.startswith("curerec ")
    ]


@pytest.mark.parametrize(
    "line", commands(GUIDE) + [c for c in commands((ROOT / "README.md").read_text()) if "request" in c]
)
def test_every_command_of_the_guide_parses(line):
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    context = None
    name = "curerec"
    while hasattr(command, "resolve_command"):
        context = command.make_context(name, list(words), parent=context, resilient_parsing=True)
        name, command, words = command.resolve_command(context, words)
    command.make_context(name, list(words), parent=context)


def test_every_field_of_a_record_is_in_the_reference(tmp_path):
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        store.ledger.add(users(1))
        run(store, stand())
        predicate = statement(store.links()[-1].body, where="record")["predicate"]
    reference = GUIDE[GUIDE.index("## Records") : GUIDE.index("## The service")]
    missing = [key for key in predicate if f"`{key}`" not in reference and f".{key}`" not in reference]
    assert not missing


def test_every_key_of_the_policy_is_in_the_guide():
    assert all(f"`{key}`" in GUIDE for key in Policy.model_fields)
    assert parse(Policy, yaml.safe_load("old: quarantine"), where="x").old == "quarantine"


@pytest.mark.parametrize(
    "name",
    [
        "init",
        "add",
        "list",
        "show",
        "cancel",
        "run",
        "status",
        "rollback",
        "ingest",
        "shred",
        "artefact",
        "export",
    ],
)
def test_help_has_an_example(name):
    result = curerec("request", name, "--help")
    assert result.code == 0 and f"Example: curerec request {name}" in " ".join(result.out.split())


def test_serve_and_verify_have_help():
    for name in ("serve", "verify"):
        assert f"Example: curerec {name}" in " ".join(curerec(name, "--help").out.split())
    assert "request" in curerec("--help").out
