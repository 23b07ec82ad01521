"""Every bench recipe that ships is sound, and an unsound one is refused before anything is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_bench import CHANGE, SHORT, made_recipe

from curerec.bench import work
from curerec.bench.lines import read_lines
from curerec.bench.plan import config_hash, plan, title_of
from curerec.bench.recipe import RIVALS, BenchRecipe, bench_names, load_bench
from curerec.bench.search import grid_of
from curerec.config import merged, parse
from curerec.errors import ConfigError
from curerec.methods import CONTROLS, METHODS, CureConfig, UnlearnConfig
from curerec.recipes import load_recipe
from curerec.records import Outcome
from made_tasks import made_task

QUALITY = Path(__file__).parents[2] / "benchmarks" / "quality"
FOLDERS = sorted(path.parent for path in QUALITY.rglob("bench.json"))


SOME = {"smollm2": {"cure", "random_modules", "npo", "pcgrad", "weighted_sum"}}  # what two cores can bear


def test_the_three_that_are_asked_for_ship_and_two_for_a_cpu():
    assert set(bench_names()) == {"nano", "nano_searched", "paper", "scale", "smollm2"}


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
    assert set(RIVALS) == set(METHODS) - {"retrain"}
    assert {job.method for job in jobs if job.kind == "cell"} == SOME.get(name, set(RIVALS))


def test_a_recipe_that_is_a_file_is_seen_from_the_one_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "own.yaml").write_text("extends: demo\ncure: {tau: 0.6}\n")
    path = tmp_path / "bench" / "b.yaml"
    path.write_text(
        "name: b\ndatasets: {ml-100k: {}}\nmodels: {own: {recipe: own.yaml}}\nseeds: [1]\n"
        "requests: [{kind: users, methods: [npo]}]\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("extends: demo\ncure: {tau: 0.9}\n")  # another, where the command runs
    found = load_bench("bench/b.yaml")
    assert found.setting("ml-100k", "own").cure.tau == 0.6
    assert found.as_it_stands().models["own"].resolved["cure"]["tau"] == 0.6


def test_what_was_run_is_not_what_a_recipe_becomes_later(monkeypatch):
    """A committed table is of its rows, whatever ``demo`` says by then."""
    recipe = load_bench("nano_searched")
    kept = parse(BenchRecipe, json.loads(recipe.as_it_stands().model_dump_json()), where="bench.json")
    first = recipe.seeds[0]  # a configuration is that of all seeds
    cells = [job for job in plan(recipe) if job.kind == "cell" and job.seed == first]
    then = {job.key: config_hash(recipe, job) for job in cells}
    demo = load_recipe("demo")
    changed = demo.model_copy(update={"cure": demo.cure.model_copy(update={"tau": 0.123})})
    monkeypatch.setattr("curerec.bench.recipe.load_recipe", lambda name: changed)
    assert {job.key: config_hash(kept, job) for job in cells} == then
    later = load_bench("nano_searched")
    now = {job.key: config_hash(later, job) for job in cells}
    assert {k for k in now if now[k] != then[k]} == {j.key for j in cells if j.method in ("cure", *CONTROLS)}
    monkeypatch.undo()
    monkeypatch.setattr("curerec.bench.search.search_of", lambda name: {"lr": [1e-5, 1e-6]})  # other grids
    assert {job.key: config_hash(kept, job) for job in cells} == then
    of_npo = next(job for job in cells if job.method == "npo")
    assert config_hash(load_bench("nano_searched"), of_npo) not in then.values()
    monkeypatch.undo()
    run, kind = METHODS["finetune"]

    class Later(kind):  # a default that is another one by then
        lr: float = 0.5

    monkeypatch.setitem(METHODS, "finetune", (run, Later))
    assert {job.key: config_hash(kept, job) for job in cells} == then
    later = load_bench("nano_searched")
    now = {job.key: config_hash(later, job) for job in cells}
    assert {k for k in now if now[k] != then[k]} == {j.key for j in cells if j.method == "finetune"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: str(f.relative_to(QUALITY)))
def test_committed_benchmarks_do_not_hang_on_the_grids_of_methods(folder, monkeypatch):
    """Every grid that was searched is written out, so that a later one leaves the table as it is."""
    recipe = parse(BenchRecipe, json.loads((folder / "bench.json").read_text("utf-8")), where=str(folder))
    cells = [job for job in plan(recipe) if job.kind == "cell" and job.method not in CONTROLS]
    then = [config_hash(recipe, job) for job in cells]
    monkeypatch.setattr("curerec.bench.search.search_of", lambda name: {"lr": [1e-5, 1e-6]})
    assert recipe.search is None or [config_hash(recipe, job) for job in cells] == then


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: str(f.relative_to(QUALITY)))
def test_committed_benchmarks_have_rows_of_what_they_ran(folder):
    """No row of the methods that a table is about is left out for its configuration."""
    recipe = parse(BenchRecipe, json.loads((folder / "bench.json").read_text("utf-8")), where=str(folder))
    rows = read_lines(folder / "rows.jsonl")
    for job in plan(recipe):
        if job.kind == "cell" and job.method in ("cure", "random_modules") and job.ask == recipe.requests[0]:
            assert any(
                (r["dataset"], r["seed"], r["method"]) == (job.dataset, job.seed, job.method)
                and r["config_hash"] == config_hash(recipe, job)
                for r in rows
            ), job.key


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seeds": [20, 20]}, "named twice"),
        ({"seeds": [-1]}, "seeds.0"),
        ({"seeds": [2**64]}, "seeds.0"),
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
        ({"search": {"grids": {"npo": {"lr": []}}}}, "npo.lr"),
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


def test_a_setting_for_every_method_that_none_has_is_refused(tmp_path):
    nano = {"recipe": "demo", "every_method": {"check_size": 60, "check_evry": 2}}
    (tmp_path / "mine.yaml").write_text(made_recipe(models={"nano": nano}).model_dump_json())
    with pytest.raises(ConfigError, match="no method has check_evry"):
        load_bench(str(tmp_path / "mine.yaml"))


def test_settings_of_every_method_reach_all_that_have_them():
    setting = made_recipe().setting("made", "nano")
    for name in ("npo", "ga_kl", "grad_diff", "scrub", "rome", "task_vector"):
        assert setting.config_of(name).check_size == SHORT["check_size"]
    assert setting.config_of("cure").pairs == CHANGE["cure"]["pairs"]
    assert setting.config_of("sisa").shards == METHODS["sisa"][1]().shards


def test_a_key_of_a_part_leaves_the_part_s_others_as_they_were_written_out():
    change = merged(CHANGE, {"methods": {"e2urec": {"teacher": {"lr": 5e-4}}}})
    models = {"nano": {"recipe": "demo", "every_method": SHORT, "change": change}}
    recipe = made_recipe(models=models, requests=[{"share": 0.2, "methods": ["e2urec"]}])
    then = recipe.as_it_stands().model_dump(mode="json")
    then["models"]["nano"]["defaults"]["e2urec"]["teacher"]["epochs"] = 2.5  # of a version before
    kept = parse(BenchRecipe, then, where="bench.json").setting("made", "nano").config_of("e2urec")
    assert (kept.teacher.lr, kept.teacher.epochs, kept.teacher.batch_size) == (5e-4, 2.5, 16)


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


def test_every_method_is_searched_with_the_same_number_of_trials_its_controls_as_well():
    """A twin that took what was chosen for ``cure`` would be pushed as hard as suits another's weights."""
    recipe = made_recipe(
        requests=[{"share": 0.2}],
        search={"seed": 0, "trials": 2, "grids": {"cure": {"kept.forget": [0.4, 0.6]}}},
    )
    jobs = plan(recipe)
    trials = {m: sum(j.kind == "trial" and j.method == m for j in jobs) for m in RIVALS}
    assert set(trials.values()) == {2}
    for control in CONTROLS:  # of the grid of cure where the recipe has none for it
        twin = next(j for j in jobs if j.kind == "cell" and j.method == control)
        assert sum(f"|{control}|" in need for need in twin.needs) == 2
        assert grid_of(recipe, control) == {"kept.forget": [0.4, 0.6]}


def test_a_data_set_takes_the_choice_of_the_one_that_was_searched():
    recipe = made_recipe(datasets={"made": {}, "other": {}}, search={"seed": 0, "datasets": ["made"]})
    jobs = plan(recipe)
    assert {j.dataset for j in jobs if j.kind == "trial"} == {"made"}
    cell = next(j for j in jobs if j.kind == "cell" and j.dataset == "other")
    assert any(n.startswith("trial|made|") for n in cell.needs)


@pytest.mark.parametrize(("method", "ran"), [("npo", "npo"), ("ga_kl", "grad_ascent")])
def test_a_row_says_which_loss_ran(method, ran):
    """GA + KL's said NPO's, whose settings it has."""
    config = UnlearnConfig(max_steps=1, check_every=1, check_size=20, batch_size=8, retain_weight=1.0)
    said = work._as_run(config, METHODS[method][0](made_task(), config))
    assert said == config.model_dump(mode="json") | {"forget_loss": ran}


def test_settings_of_a_row_are_else_those_that_were_given():
    """For a small request a loop has others, which follow from them; those of parts are the method's own."""
    outcome = Outcome("cure", None, 1.0, 1.0, details={"update": UnlearnConfig(max_steps=1)})
    config = CureConfig(pairs=9)
    assert work._as_run(config, outcome) == config.model_dump(mode="json")
    assert work._as_run(None, outcome) is None
