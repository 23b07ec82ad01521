"""A run goes on from what is there, and does again what is of other data, examples or models by now."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import time

import pytest
from made_bench import CHANGE, SHORT, count_trainings, made_place, made_recipe

from curerec.bench import artefacts, rows
from curerec.bench.lines import read_lines
from curerec.bench.plan import plan
from curerec.bench.run import run
from curerec.bench.summary import summarise
from curerec.bench.work import ROWS, TRIALS, Workshop
from curerec.methods import METHODS
from curerec.records import Outcome


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(tmp_path, monkeypatch):
    """kill -9 at five moments; in the end the rows are those of a run that nobody disturbed."""
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    recipe = made_recipe(
        requests=[{"share": 0.2, "methods": ["npo", "grad_diff", "cragru"]}],
        search={"seed": 0, "trials": 1},
    )
    places, out = made_place(tmp_path), tmp_path / "out"
    moments = ["models/original-*", "models/retrain-*", "yardsticks/*", "trials.jsonl", "predictions/*"]
    for pattern in moments:
        killed_once_there(recipe, out, places, pattern)
        seen = [rows.row_key(r) for r in read_lines(out / "rows.jsonl")]
        assert len(set(seen)) == len(seen)
    if (out / "rows.jsonl").exists():
        with (out / "rows.jsonl").open("a") as file:
            file.write('{"dataset": "ma')  # a line that a kill tore
    trained = count_trainings(monkeypatch)
    done = run(recipe, out, places=places)
    assert done.done == done.total == 4
    assert not trained  # everything was trained before one of the kills
    found = read_lines(out / "rows.jsonl")
    assert sorted(r["method"] for r in found) == [
        "base",
        "cragru",
        "grad_diff",
        "npo",
        "original",
        "retrain",
        "retrain_2",
    ]
    calm = tmp_path / "calm"
    run(recipe, calm, places=places)
    for row in read_lines(calm / "rows.jsonl"):
        same = next(r for r in found if r["method"] == row["method"])
        for name in ("test_auc", "jsd", "residual", "membership_auc", "config_hash", "yardstick"):
            assert same[name] == row[name]


def killed_once_there(recipe, out, places, pattern):
    """Run in a fork; kill it a moment after something appears."""
    pid = os.fork()
    if not pid:
        try:
            run(recipe, out, places=places)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 120
    before = {p.name for p in out.glob(pattern)} if out.exists() else set()
    while time.monotonic() < deadline:
        if out.exists() and ({p.name for p in out.glob(pattern)} - before):
            os.kill(pid, signal.SIGKILL)
            break
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.002)
    os.waitpid(pid, 0)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [pytest.param("u.data", marks=pytest.mark.soak), "u.item"])
def test_rows_of_other_ratings_or_titles_are_run_again(changed, tmp_path, monkeypatch):
    """A name or a file that stands for other data now."""
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    recipe = made_recipe(requests=[{"share": 0.2, "methods": ["grad_diff"]}])
    place = made_place(tmp_path)
    assert run(recipe, out, places=place).done == 2
    assert run(recipe, out, places=place).done == 2 and len(read_lines(out / ROWS)) == 5
    file = next((tmp_path / "data").rglob(changed))
    *others, last = file.read_text(encoding="latin-1").splitlines()
    mended = [last.replace(" (", ": mended (")] if changed == "u.item" else []
    file.write_text("\n".join([*others, *mended]) + "\n", encoding="latin-1")
    assert run(recipe, out, places=place).done == 2
    prints = [(row["fingerprint"], row["titles"]) for row in read_lines(out / ROWS)]
    assert len(prints) == 10 and len(set(prints[:5])) == len(set(prints[5:])) == 1 and prints[0] != prints[5]
    assert (prints[0][0] == prints[5][0]) == (changed == "u.item")
    assert len(list(out.glob("models/original-*"))) == 2  # each of its own data
    assert summarise(out)["left_out"] == 0


@pytest.mark.slow
@pytest.mark.soak
def test_a_yardstick_is_of_the_examples_that_are_asked_about(tmp_path, monkeypatch):
    """Which a setting of the split changes without changing what any model was trained on."""
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    out, place = tmp_path / "out", made_place(tmp_path)
    for other in (90, 60):
        change = {**CHANGE, "split": {**CHANGE["split"], "other": other}}
        models = {"nano": {"recipe": "demo", "change": change, "every_method": SHORT}}
        recipe = made_recipe(models=models, requests=[{"share": 0.2, "methods": ["grad_diff"]}])
        assert run(recipe, out, places=place).done == 2
    assert len({row["yardstick"] for row in read_lines(out / ROWS)}) == 2


@pytest.mark.slow
def test_cells_of_one_request_are_measured_with_one_set_of_retrains(tmp_path, monkeypatch):
    """Models that are gone are trained anew, with other weights where threads or the processor are others."""
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(METHODS, "rome", (nothing, METHODS["rome"][1]))  # hands the original back
    out, place = tmp_path / "out", made_place(tmp_path)

    def of(*methods):
        return made_recipe(requests=[{"share": 0.2, "methods": ["rome", *methods]}])

    assert run(of("grad_diff"), out, places=place).done == 3
    shutil.rmtree(out / "models")
    assert run(of("grad_diff"), out, places=place).done == 3  # all is there, nothing has to be trained
    assert not (out / "models").exists() and len(read_lines(out / ROWS)) == 6
    real = artefacts.train

    def otherwise(data, recipe, folder, **rest):
        changed = recipe.model.tuning.model_copy(update={"lr": 2 * recipe.model.tuning.lr})
        model = recipe.model.model_copy(update={"tuning": changed})
        real(data, recipe.model_copy(update={"model": model}), folder, **rest)
        card = json.loads((folder / "curerec.json").read_text())
        card["recipe"] = recipe.model_dump(mode="json")
        (folder / "curerec.json").write_text(json.dumps(card))

    monkeypatch.setattr(artefacts, "train", otherwise)
    done = run(of("grad_diff", "finetune"), out, places=place)
    assert done.done == done.total == 4
    last = rows.newest(read_lines(out / ROWS))
    assert len({row["yardstick"] for row in last}) == 1 and last[0]["yardstick"] != first_yardstick(out)
    summary = summarise(out)
    assert summary["left_out"] == 0
    assert {x["name"] for x in summary["blocks"][0]["lines"] if x["seeds"]} >= {"grad_diff", "finetune"}
    n = len(read_lines(out / ROWS))
    assert run(of("grad_diff", "finetune"), out, places=place).done == 4 and len(read_lines(out / ROWS)) == n
    # Models that were exchanged for others beside rows that are all there: these are of the earlier ones.
    shutil.rmtree(out / "models")
    monkeypatch.setattr(artefacts, "train", real)
    shop = Workshop(of("grad_diff", "finetune"), out, place)
    for job in plan(shop.recipe):
        if job.kind in ("original", "retrain"):
            shop.do(job, {})
    assert run(of("grad_diff", "finetune"), out, places=place).done == 4
    assert {row["yardstick"] for row in rows.newest(read_lines(out / ROWS))} == {first_yardstick(out)}


@pytest.mark.slow
@pytest.mark.soak
def test_a_choice_is_of_trials_of_one_original(tmp_path, monkeypatch):
    """Where it is trained anew to other bits in the middle of a search, earlier trials are made again."""
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    out, place = tmp_path / "out", made_place(tmp_path)

    def of(trials):
        grids = {"npo": {"lr": [1e-3, 2e-3, 3e-3]}}
        search = {"seed": 0, "trials": trials, "grids": grids}
        return made_recipe(requests=[{"share": 0.2, "methods": ["npo"]}], search=search)

    def trials():
        return read_lines(out / TRIALS)

    assert run(of(3), out, places=place).done == 2
    first = trials()
    original = {t["original"] for t in first}
    (folder,) = (p for p in out.glob("models/original-*") if seed_of(p) == 0)
    assert original == {card_of(folder)["weights_sha256"]} and [t["number"] for t in first] == [0, 1, 2]
    keep_lines(out / TRIALS, first[:2])  # a sitting that ended in the middle of the search
    shutil.rmtree(folder)
    assert run(of(3), out, places=place).done == 2  # trained anew to the same bits: one is lacking
    assert [t["number"] for t in trials()] == [0, 1, 2]
    shutil.rmtree(folder)
    assert run(of(3), out, places=place).done == 2 and not folder.exists()  # all is there
    keep_lines(out / TRIALS, [{**t, "original": "of other bits"} for t in first[:2]])
    assert run(of(3), out, places=place).done == 2
    assert [(t["number"], t["original"]) for t in trials()[2:]] == [(n, *original) for n in range(3)]
    keep_lines(out / TRIALS, [{k: v for k, v in t.items() if k != "original"} for t in first])
    assert run(of(3), out, places=place).done == 2 and len(trials()) == 3  # of before: they count
    assert len([r for r in read_lines(out / ROWS) if r["method"] == "npo"]) == 1  # the same choice each time


def card_of(folder):
    return json.loads((folder / "curerec.json").read_text())


def seed_of(folder):
    return card_of(folder)["recipe"]["seed"]


def keep_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def nothing(task, config):
    return Outcome("rome", copy.deepcopy(task.original.model), 0.0, 0.0)


def first_yardstick(out):
    return read_lines(out / ROWS)[0]["yardstick"]
