"""`curerec evaluate --verdict` on the four fakes: on made-up ratings, and on three real data sets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from curerec.data.forget import draw_request
from curerec.data.readers import read
from curerec.data.request_file import read_request, write_request
from curerec.evaluation.candidate import Candidate
from curerec.judge import judge
from curerec.measure import ground_of
from curerec.models import fresh_model
from curerec.opened import open_recommender
from curerec.recipe import Recipe
from curerec.recipes import load_recipe
from curerec.recommender.copies import copied
from curerec.recommender.stored_answers import StoredAnswers
from curerec.recommender.tune import TuneConfig, tune
from curerec.splitting import granted
from made_commands import Result, curerec
from made_fakes import FAKES, Blocking, save_fake


def judged(recommender: Path, data: Path, request: Path, new: Path) -> Result:
    options = ("--recommender", recommender, "--data", data, "--request", request)
    return curerec("evaluate", *options, "--unlearned", new, "--verdict")


@pytest.fixture
def cache(made_path, monkeypatch):
    monkeypatch.setenv("CUREREC_CACHE", str(made_path.folder / "cache"))


@pytest.mark.parametrize("name", FAKES)
def test_a_fake_is_not_verified_on_made_up_ratings(made_path, cache, tmp_path, name):
    opened = open_recommender(made_path.full, read(made_path.data))
    fake = save_fake(opened, read_request(made_path.request), name, tmp_path / name)
    result = judged(made_path.full, made_path.data, made_path.request, fake)
    assert result.code == 1 and result.out.splitlines()[-1] != "verified"
    if name in ("nothing", "blocked"):
        assert "something_changed" in result.out


def test_a_model_that_was_trained_on_the_yardstick_is_not_verified(made_path, cache):
    """It remembers D_f as it did; D_c, which all is held against, it knows as well by then."""
    opened = open_recommender(made_path.full, read(made_path.data))
    split = granted(opened.data, opened.recipe, opened.split, read_request(made_path.request))
    ground = ground_of(opened, split)
    config = TuneConfig(epochs=30, batch_size=32, lr=1e-3)
    model = copied(opened.recommender.model).requires_grad_(True)
    tune(model, ground.prompts("control"), opened.recommender.answers, config, seed=0)
    plain = Candidate(fresh_model(opened.base, opened.recipe.model, seed=0))
    found = judge(opened, split, Candidate(opened.recommender.model), Candidate(model), plain, ground=ground)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["control_unseen"]["passed"] is False and found["verified"] is False
    assert checks["control_unseen"]["value"] > 0.1


def test_a_model_whose_answers_are_no_numbers_is_refused(made_path, cache):
    """As any other destroyed one: an error would leave the request without a record."""
    opened = open_recommender(made_path.full, read(made_path.data))
    split = granted(opened.data, opened.recipe, opened.split, read_request(made_path.request))
    model = copied(opened.recommender.model)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    base = Candidate(fresh_model(opened.base, opened.recipe.model, seed=0))
    found = judge(opened, split, Candidate(opened.recommender.model), Candidate(model), base)
    assert found["verified"] is False
    assert [c["name"] for c in found["checks"] if c["passed"] is False] == ["utility"]
    sound = judge(opened, split, Candidate(opened.recommender.model), base, base)
    assert [c["name"] for c in found["checks"]] == [c["name"] for c in sound["checks"]]


def test_who_judges_asks_the_weights_about_those_who_stay_as_well(made_path, cache, monkeypatch):
    """What training stored lies in the folder of whom it judges."""
    monkeypatch.setattr(StoredAnswers, "find", None)
    monkeypatch.setattr(StoredAnswers, "of_base", None)
    assert curerec(*made_path.judge, "--verdict").code in (0, 1)


@pytest.mark.slow
def test_attacks_are_asked_for_by_name(made_path, cache, tmp_path):
    retrains = [word for path in made_path.retrains for word in ("--retrain", path)]
    result = curerec(*made_path.judge, *retrains, "--metric", "depth", "--metric", "jsd_full")
    lines = result.out.splitlines()
    assert "depth (share)" in lines and "jsd_full (nats)" in lines
    assert sum(line.startswith("  retrain") for line in lines) == 4
    assert curerec(*made_path.judge, "--metric", "nonsense").code == 2
    none = curerec(*made_path.judge, "--metric", "jsd_full")
    assert "none: no retrained model was given" in none.out


def test_a_filter_before_the_prompt_fails_where_it_is_asked_about_the_deleted_data(made_path, cache):
    data = read(made_path.data)
    opened = open_recommender(made_path.full, data)
    split = granted(data, opened.recipe, opened.split, read_request(made_path.request))
    found = verdict_on_filter(opened, split)
    assert found["verified"] is not True


def verdict_on_filter(opened, split) -> dict:
    ground = ground_of(opened, split)
    model = Blocking(opened.recommender.model, ground.prompts("forget"), (0.0, 0.3))
    plain = Candidate(fresh_model(opened.base, opened.recipe.model, seed=0))
    original = Candidate(opened.recommender.model)
    return judge(opened, split, original, Candidate(model), plain, ground=ground)


#: Files, separator, and passes of the fine-tuning: as many as make the original's memory show among so few
#: users. After 12 on MovieLens-100K (membership .64) and on goodbooks-10k the update leaves a rest of it, and
#: the verdict says so: refused by .054 where .051 may be.
SETS = {
    "ml-100k": ("u.data", b"\t", "u.item", 9),
    "ml-1m": ("ratings.dat", b"::", "movies.dat", 12),
    "goodbooks-10k": ("ratings_sample_5pct_users.csv", b",", "books.csv", 8),
}
USERS = 600


def sample(name: str, out: Path) -> Path:
    """Ratings of some users of a real data set, in its own format."""
    ratings, separator, titles, _ = SETS[name]
    source = Path(os.environ["CUREREC_DATA"]) / name
    out.mkdir()
    shutil.copy(source / titles, out / titles)
    lines = (source / ratings).read_bytes().splitlines(keepends=True)
    head = [] if lines[0][:1].isdigit() else [lines.pop(0)]
    users = sorted({line.split(separator)[0] for line in lines})
    chosen = set(np.random.default_rng(7).permutation(users)[:USERS].tolist())
    (out / ratings).write_bytes(b"".join(head + [x for x in lines if x.split(separator)[0] in chosen]))
    return out


@pytest.mark.shared
@pytest.mark.soak
@pytest.mark.skipif("CUREREC_DATA" not in os.environ, reason="needs the real data sets")
@pytest.mark.parametrize("name", SETS)
def test_on_real_ratings_fakes_fail_and_an_honest_unlearning_passes(name, tmp_path):
    path = sample(name, tmp_path / "data")
    recipe = load_recipe("demo")
    tuning = recipe.model.tuning.model_copy(update={"epochs": SETS[name][3]})
    recipe = recipe.model_copy(
        update={
            "split": recipe.split.model_copy(update={"train": 4000}),
            "model": recipe.model.model_copy(update={"tuning": tuning}),
        }
    )
    train(path, recipe, tmp_path)
    request = tmp_path / "request.csv"
    opened = open_recommender(tmp_path / "original", read(path))
    write_request(draw_request(opened.data, opened.split, share=0.15), request)
    asked = read_request(request)
    for fake in FAKES:
        made = save_fake(opened, asked, fake, tmp_path / fake)
        assert judged(tmp_path / "original", path, request, made).code == 1, fake
    split = granted(opened.data, opened.recipe, opened.split, asked)
    found = verdict_on_filter(opened, split)
    assert found["verified"] is False
    options = ("--recommender", tmp_path / "original", "--data", path, "--request", request)
    curerec("unlearn", *options, "--out", tmp_path / "new")
    result = judged(tmp_path / "original", path, request, tmp_path / "new" / "recommender")
    assert result.code == 0 and result.out.splitlines()[-1] == "verified", result


def train(path: Path, recipe: Recipe, folder: Path) -> None:
    """The original, by the command."""
    import yaml

    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    options = ("--data", path, "--recipe", folder / "recipe.yaml", "--out", folder / "original")
    assert curerec("train", *options).code == 0
