"""A method's own error from several trainings: what a row says, and what the table makes of rows."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"
SIZES = {"forget": 300, "control": 250, "test": 200}


@pytest.fixture
def originals(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("originals")


def world(seed=0, spread=0.4):
    """Answers of three originals, three retrains and what makes more; labels by part."""
    rng = np.random.default_rng(seed)
    mean = {part: rng.standard_normal(n) for part, n in SIZES.items()}
    label = {part: (rng.random(n) < expit(mean[part])).astype(int) for part, n in SIZES.items()}

    def made(forgot):
        remembered = {p: mean[p] + (0 if p != "forget" else (1 - forgot) * (2 * label[p] - 1)) for p in SIZES}
        return [
            {p: expit(z + spread * rng.standard_normal(len(z))) for p, z in remembered.items()}
            for _ in range(3)
        ]

    return made, label


def test_an_original_errs_by_itself_and_keeps_its_residual(originals):
    made, label = world()
    before, without = made(0.0), made(1.0)
    found = originals.errors(before, before, without)
    assert found["systematic_forget"] == 1 and found["jsd_mean_forget"] == found["original_jsd_mean_forget"]
    assert abs(found["systematic_test"]) < 0.05  # nothing differs there but chance
    single = originals.singles(before, before, without, label)
    assert single["residual"] == pytest.approx([1, 1, 1])
    assert min(single["membership_gap"]) > 0.1 and np.abs(single["test_auc_above"]).max() < 0.1


def test_half_forgotten_is_a_quarter_of_the_squared_error_or_so(originals):
    made, _ = world()
    found = originals.errors(made(0.5), made(0.0), made(1.0))
    assert 0.15 < found["systematic_forget"] < 0.4


def test_a_model_that_scatters_less_is_nearer_in_its_residual_alone(originals):
    """The reason for the measure: half the chance lowers a residual and not the error."""
    made, label = world(spread=0.8)
    before, without, new = made(0.0), made(1.0), made(0.7)
    mean = {p: expit(np.mean([np.log(one[p] / (1 - one[p])) for one in new], 0)) for p in SIZES}
    calm = [{p: 0.5 * one[p] + 0.5 * mean[p] for p in SIZES} for one in new]
    rough, smooth = (originals.singles(x, before, without, label)["residual"] for x in (new, calm))
    assert np.mean(smooth) < np.mean(rough) - 0.1
    errors = [originals.errors(x, before, without)["systematic_forget"] for x in (new, calm)]
    assert errors[1] > errors[0] - 0.05


def row(seed, method, error, data="ml-100k"):
    numbers = {"systematic_forget": error, "systematic_test": error / 2}
    several = {"residual": [error, error + 0.1, error - 0.1], "membership_gap": [0.0] * 3}
    place = {"dataset": data, "seed": seed, "method": method, "request": "users-0.1-random"}
    return {**place, **numbers, **several, "test_auc_above": [0.01] * 3}


def test_the_table_compares_in_pairs_and_corrects_for_how_many(originals):
    rng = np.random.default_rng(3)
    rows = []
    for seed in range(8):
        rows += [row(seed, "cure", 0.2 + 0.1 * rng.random()), row(seed, "pcgrad", 0.25 + 0.1 * rng.random())]
        rows += [row(seed, "random_modules", rows[-2]["systematic_forget"] + 0.3 + 0.01 * rng.random())]
    said = originals.table(rows)
    assert "| ml-100k | cure | 8 |" in said and said.count("farther than cure, in pairs") == 3
    (twin,) = [line for line in said.split("\n\n")[1].splitlines() if line.startswith("| random_modules")]
    assert "| 8 | 0.30" in twin and "8 of 8" in twin and twin.rstrip().endswith("0.0000 |")


def test_a_method_without_cure_beside_it_is_in_no_pair(originals):
    rows = [row(1, "cure", 0.2), row(2, "cure", 0.3), row(1, "pcgrad", 0.4)]
    assert "| pcgrad | 1 |" not in originals.table(rows).split("farther than cure")[1]


def test_rows_that_are_there_are_known(originals, tmp_path):
    file = tmp_path / "rows.jsonl"
    assert originals.known(file) == set()
    file.write_text(json.dumps(row(7, "cure", 0.2)) + "\n")
    assert originals.known(file) == {("ml-100k", 7, "cure")}
