"""Outputs that must not or cannot be written: one line, before any work is done, and nothing left behind."""

from __future__ import annotations

import os

import pytest

from made_commands import curerec, refused, untouched

OUTS = ("train", "unlearn", "evaluate", "demo")


def with_out(command, made, out):
    read = ("--data", made.data)
    recipe = ("--recipe", made.recipe)
    asked = ("--recommender", made.full, "--request", made.request)
    return {
        "train": lambda: curerec("train", *read, *recipe, "--out", out),
        "demo": lambda: curerec("demo", *read, *recipe, "--out", out),
        "unlearn": lambda: curerec("unlearn", *read, *asked, "--out", out),
        "evaluate": lambda: curerec(*made.judge, "--out", out),
    }[command]()


@pytest.mark.parametrize("command", OUTS)
def test_out_that_must_not_be_written(command, made_path, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with untouched(tmp_path):
        refused(with_out(command, made_path, tmp_path / "file"), "is a file", "--out")
        refused(with_out(command, made_path, tmp_path / "file" / "inside"), "--out")
        refused(with_out(command, made_path, tmp_path / "full"), "not an earlier output", "--out")
        refused(with_out(command, made_path, tmp_path / ("n" * 300)), "name is too long", "--out")


@pytest.mark.parametrize("command", ["unlearn", "evaluate", "circuit", "request init"])
def test_out_inside_of_a_recommender(command, made_path):
    """Which would not be opened any more with a folder in it."""
    read = ["--recommender", made_path.full, "--data", made_path.data]
    asked = ["--request", made_path.request]
    rest = {
        "unlearn": asked,
        "evaluate": [*asked, "--unlearned", made_path.new / "recommender"],
    }.get(command, [])
    out = "--store" if command == "request init" else "--out"
    with untouched(made_path.full):
        result = curerec(*command.split(), *read, *rest, out, made_path.full / "deep" / "new")
        refused(result, "is inside of what the command is to read")


def test_a_store_that_is_there_already_is_named_by_its_own_option(made_path, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    read = ["--recommender", made_path.full, "--data", made_path.data]
    with untouched(tmp_path):
        refused(curerec("request", "init", *read, "--store", tmp_path), "Name another --store folder")


def test_shadow_models_do_not_go_among_a_recommenders_files(made_path, tmp_path):
    """Where they would count as its weights, and the recommender would not be opened any more."""
    new = made_path.new / "recommender"
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (made_path.full, new, new / "shadows", made_path.new, tmp_path):
        with untouched(made_path.full), untouched(made_path.new), untouched(tmp_path):
            result = curerec(*made_path.judge, "--shadows", folder, "--budget", 1)
            refused(result, "Name another --shadows folder")


def test_out_that_holds_an_input(made_path):
    with untouched(made_path.new):
        result = curerec(
            "unlearn", "--recommender", made_path.new / "recommender", "--data", made_path.data,
            "--request", made_path.request, "--out", made_path.new,
        )  # fmt: skip
        refused(result, "is to read", "--out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("command", OUTS)
def test_out_without_permission(command, made_path, tmp_path):
    tmp_path.chmod(0o500)
    try:
        refused(with_out(command, made_path, tmp_path / "new"), "no permission", stages=True)
    finally:
        tmp_path.chmod(0o700)


def test_report_that_cannot_be_written(made_path, tmp_path):
    record = made_path.demo / "record.json"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with untouched(tmp_path):
        for out in ("no/such/report.html", "file/report.html", "folder", "n" * 300):
            refused(curerec("report", record, "--out", tmp_path / out), "cannot be written")
        refused(curerec("report", tmp_path / "none.json"), "none.json")
        refused(curerec("report", tmp_path), "cannot be read")
