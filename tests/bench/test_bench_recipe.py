"""Every bench recipe that ships is sound, and an unsound one is refused before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_bench import CHANGE, SHORT, made_recipe

from curerec.bench.plan import config_hash, plan, title_of
from curerec.bench.recipe import RIVALS, bench_names, load_bench
from curerec.errors import ConfigError
from curerec.methods import METHODS


def test_the_three_that_are_asked_for_ship():
    assert set(bench_names()) == {"nano", "paper", "scale"}


@pytest.mark.parametrize("name", bench_names())
def test_a_recipe_that_ships(name):
    recipe = load_bench(name)  # resolves every setting and every method's configuration
    assert recipe.name == name
    assert min(recipe.seeds) >= 20  # those before are for development
    jobs = plan(recipe)
    keys = [job.key for job in jobs]
    assert len(set(keys)) == len(keys)
    for job in jobs:
        assert set(job.needs) <= set(keys[: keys.index(job.key)]), "a job stands before what it needs"
        if job.ask is not None:
            recipe.setting(job.dataset, job.model, ask=job.ask, seed=job.seed)
    assert {job.method for job in jobs if job.kind == "cell"} == set(RIVALS) == set(METHODS) - {"retrain"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seeds": [20, 20]}, "named twice"),
        ({"seeds": [0, 20], "search": {"seed": 0}}, "must not be reported"),
        ({"retrains": 1}, "no floor"),
        ({"requests": [{"methods": ["cure", "npo"]}]}, "twin of equal size"),
        ({"requests": [{"methods": ["cure", "all", "-random_modules"]}]}, "twin of equal size"),
        ({"requests": [{"methods": ["nosuch"]}]}, "no method nosuch"),
        ({"requests": [{"datasets": ["nosuch"]}]}, "nosuch"),
        ({"requests": [{"kind": "items", "choice": "e2urec"}]}, "e2urec"),
        ({"models": {"x": {"shape": "tiny"}}}, "costs_only"),
        ({"models": {"x": {"shape": "nosuch"}}}, "no shape"),
        ({"search": {"grids": {"nosuch": {}}}}, "nosuch"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_an_unsound_recipe_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        made_recipe(**change)


def test_a_key_that_the_recipe_does_not_have_is_refused():
    recipe = made_recipe(datasets={"made": {"split": {"trian": 3}}})
    with pytest.raises(ConfigError, match="trian"):
        recipe.setting("made", "nano")


def test_settings_of_every_method_reach_all_that_have_them():
    setting = made_recipe().setting("made", "nano")
    for name in ("npo", "ga_kl", "grad_diff", "scrub", "rome", "task_vector"):
        assert setting.config_of(name).check_size == SHORT["check_size"]
    assert setting.config_of("cure").pairs == CHANGE["cure"]["pairs"]
    assert setting.config_of("sisa").shards == METHODS["sisa"][1]().shards


def cells(recipe, method="npo"):
    return [j for j in plan(recipe) if j.kind == "cell" and j.method == method]


def test_the_hash_is_of_what_a_row_depends_on():
    two = made_recipe(seeds=[20, 21])
    first, second = (config_hash(two, job) for job in cells(two))
    assert first == second  # seeds of one configuration share it
    again = made_recipe()
    assert config_hash(again, cells(again)[0]) == first

    def changed(**parts):
        recipe = made_recipe(models={"nano": {"recipe": "demo", "every_method": SHORT, "change": parts}})
        return [config_hash(recipe, cells(recipe, name)[0]) for name in ("npo", "grad_diff")]

    plain = changed(**CHANGE)
    other = changed(**{**CHANGE, "npo": {**SHORT, "lr": 0.5}})
    assert other[0] != plain[0] and other[1] == plain[1]  # another method's settings change nothing
    more = made_recipe(retrains=3)
    assert config_hash(more, cells(more)[0]) != first  # its floor is another
    trial = replace(cells(more)[0], kind="trial")
    assert config_hash(more, trial) == config_hash(two, trial)  # judged without references
    tuned = changed(**{**CHANGE, "model": {**CHANGE["model"], "tuning": {"epochs": 2}}})
    assert tuned[0] != plain[0] and tuned[1] != plain[1]


def test_references_are_trained_once_for_a_request_however_it_is_carried_out():
    asks = [
        {"share": 0.2, "methods": ["npo"]},
        {"share": 0.2, "methods": ["grad_diff"]},
        {"share": 0.2, "parts": 2, "methods": ["npo"]},
        {"kind": "items", "share": 0.2, "methods": ["npo"]},
    ]
    jobs = plan(made_recipe(requests=asks, seeds=[20, 21]))
    count = {kind: sum(j.kind == kind for j in jobs) for kind in ("base", "original", "retrain", "yardstick")}
    assert count == {"base": 2, "original": 2, "retrain": 2 * 2 * 2, "yardstick": 2 * 2}
    assert title_of(next(j.ask for j in jobs if j.ask and j.ask.parts == 2)) == "users 2 x 10 %"


def test_every_method_is_searched_with_the_same_number_of_trials_and_the_twin_with_none():
    recipe = made_recipe(
        requests=[{"share": 0.2}],
        search={"seed": 0, "trials": 2, "grids": {"cure": {"kept.forget": [0.4, 0.6]}}},
    )
    jobs = plan(recipe)
    trials = {m: sum(j.kind == "trial" and j.method == m for j in jobs) for m in RIVALS}
    assert trials.pop("random_modules") == 0
    assert set(trials.values()) == {2}
    twin = next(j for j in jobs if j.kind == "cell" and j.method == "random_modules")
    assert any("|cure|" in need for need in twin.needs)  # it takes what was chosen for cure


def test_a_data_set_takes_the_choice_of_the_one_that_was_searched():
    recipe = made_recipe(datasets={"made": {}, "other": {}}, search={"seed": 0, "datasets": ["made"]})
    jobs = plan(recipe)
    assert {j.dataset for j in jobs if j.kind == "trial"} == {"made"}
    cell = next(j for j in jobs if j.kind == "cell" and j.dataset == "other")
    assert any(n.startswith("trial|made|") for n in cell.needs)
