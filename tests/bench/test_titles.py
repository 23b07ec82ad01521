"""Titles are in every prompt: what was made with others is made again, what does not name them stands."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from made_bench import change_rows, made_place, made_recipe, made_rows
from safetensors.numpy import save_file

from curerec.bench import artefacts, rows
from curerec.bench.known import Known
from curerec.bench.lines import append_line
from curerec.bench.plan import plan
from curerec.bench.work import TRIALS, Workshop
from curerec.recommender import storage
from curerec.recommender.card import FORMAT
from curerec.recommender.safety import weights_digest
from made_catalogue import made_catalogue


def mended(data):
    """The same ratings, one title written otherwise."""
    first, *others = data.titles["title"].to_pylist()
    at = data.titles.schema.get_field_index("title")
    return replace(data, titles=data.titles.set_column(at, "title", pa.array([first + "!", *others])))


@pytest.fixture
def trained(monkeypatch):
    """Models are a few bytes beside a card; returns the folders that something was trained into."""
    seen = []

    def train(data, recipe, folder, *, without=None, **rest):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"w": np.full(3, len(seen), np.float32)}, folder / "model.safetensors")
        card = {
            "format": FORMAT,
            "kind": "full",
            "base": {"name": "nano", "sha256": "0"},
            "data": rows.of_data(data),
            "recipe": recipe.model_dump(mode="json"),
            "template": "likes",
            "answers": [1, 2],
            "without": without.digest if without else None,
            "weights_sha256": weights_digest(folder),
        }
        (folder / storage.CARD).write_text(json.dumps(card))
        seen.append(folder)

    monkeypatch.setattr(artefacts, "train", train)
    return seen


def test_a_model_of_other_titles_is_trained_beside_it(tmp_path, trained):
    recipe, data = made_recipe().setting("made", "nano", seed=20), made_catalogue()
    first = artefacts.trained(data, recipe, tmp_path)
    assert artefacts.trained(data, recipe, tmp_path) == first and trained == [first]
    other = artefacts.trained(mended(data), recipe, tmp_path)
    assert other != first and trained == [first, other]
    assert artefacts.trained(data, recipe, tmp_path) == first and len(trained) == 2


def test_a_model_of_before_that_names_no_titles_is_used(tmp_path, trained):
    recipe, data = made_recipe().setting("made", "nano", seed=20), made_catalogue()
    before = artefacts.place_of(tmp_path, artefacts.trained_as(data.fingerprint, recipe, None))
    artefacts.train(data, recipe, before)
    card = json.loads((before / storage.CARD).read_text())
    del card["data"]["titles"]
    (before / storage.CARD).write_text(json.dumps(card))
    assert artefacts.trained(data, recipe, tmp_path) == artefacts.trained(mended(data), recipe, tmp_path)
    assert trained == [before]
    (before / "model.safetensors").write_bytes(b"")  # one that is damaged is no model
    anew = artefacts.trained(data, recipe, tmp_path)
    assert anew != before and artefacts.trained(data, recipe, tmp_path) == anew
    assert trained == [before, anew]


@pytest.mark.parametrize("titles", ["now", "other", None])
def test_rows_and_trials_of_other_titles_are_made_again(titles, tmp_path):
    recipe = made_recipe(search={"seed": 0, "trials": 1})
    shop = Workshop(recipe, tmp_path, made_place(tmp_path / "at"))
    of = rows.of_data(shop.data("made"))
    of["titles"] = of["titles"] if titles == "now" else titles
    made_rows(tmp_path, recipe)
    change_rows(tmp_path, lambda row: row.update(of))
    jobs = {job.key: job for job in plan(recipe)}
    for job in (job for job in jobs.values() if job.kind == "trial"):
        append_line(tmp_path / TRIALS, {**shop.lost(job, "", {})[1], **of, "failure": None, **JUDGED})
    settled = {jobs[key].kind for key in Known(recipe, jobs, tmp_path, shop, retry=False).settled()}
    assert settled == (set() if titles == "other" else {"yardstick", "trial", "cell"})


JUDGED = {"nothing_happened": False, "gap": 0.0, "kl_valid": 0.1, "auc_drop": 0.0, "auc_drop_se": 0.001}
JUDGED |= {"ece_rise": 0.0, "ece_rise_se": 0.001}


def test_what_is_written_names_its_titles(tmp_path):
    recipe = made_recipe(search={"seed": 0, "trials": 1})
    shop = Workshop(recipe, tmp_path, made_place(tmp_path / "at"))
    data = shop.data("made")
    for kind in ("trial", "cell"):
        _, row = shop.lost(next(job for job in plan(recipe) if job.kind == kind), "killed", {})
        assert (row["fingerprint"], row["titles"]) == (data.fingerprint, data.titles_digest)
    assert mended(data).fingerprint == data.fingerprint
    assert mended(data).titles_digest != data.titles_digest


def test_the_vocabulary_of_a_shape_is_of_its_titles(tmp_path, monkeypatch):
    recipe = made_recipe(models={"tiny": {"recipe": "demo", "shape": "tiny"}}, costs_only=True)
    shop = Workshop(recipe, tmp_path, made_place(tmp_path / "at"))
    asked = []
    monkeypatch.setattr("curerec.bench.materials.made_shape", lambda name, titles, at: asked.append(at))
    job, data = plan(recipe)[0], shop.data("made")
    shop._base(job)
    shop._data["made"] = mended(data)
    shop._base(job)
    assert asked[0] != asked[1]
    before = tmp_path / artefacts.BASES / "tiny-made"
    before.mkdir(parents=True)
    shop._base(job)
    assert asked[2] == before
