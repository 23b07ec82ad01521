"""The search sees D_f, D_r, D_c and D_v and nothing else, and chooses as it says."""

from __future__ import annotations

import gc
import itertools
import json
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_bench import made_place, made_recipe

from curerec.bench import materials, search, work
from curerec.bench.blind import blind_task, blinded
from curerec.bench.plan import plan
from curerec.bench.work import Workshop
from curerec.data.splits import per_user_split
from curerec.errors import ConfigError
from curerec.methods import METHODS, UnlearnConfig, search_of
from curerec.records import Examples, ForgetSplit, Split
from curerec.reports.schema import plain
from curerec.splitting import drawn_request
from made_catalogue import made_catalogue


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A workshop whose development seed has its original, and the job of a first trial."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUREREC_CACHE", str(folder / "cache"))
        recipe = made_recipe(search={"seed": 0, "trials": 1}, requests=[{"share": 0.2, "methods": ["npo"]}])
        made = Workshop(recipe, folder / "out", made_place(folder))
        jobs = {job.kind: job for job in reversed(plan(recipe))}
        trial = next(j for j in plan(recipe) if j.kind == "trial")
        made._opened(trial)
        yield types.SimpleNamespace(shop=made, trial=trial, jobs=jobs, opened=made._opened(trial))


def task_of(shop):
    opened = shop.opened
    return blind_task(opened, drawn_request(opened.data, opened.recipe, opened.split), seed=0)


def reachable(start):
    """Everything that can be reached from an object, through closures and attributes, short of modules."""
    seen, stack = {id(start): start}, [start]
    while stack:
        for other in gc.get_referents(stack.pop()):
            if id(other) in seen or isinstance(other, types.ModuleType | type):
                continue
            if isinstance(other, dict) and "__builtins__" in other:  # a module's globals
                continue
            seen[id(other)] = other
            stack.append(other)
    return list(seen.values())


def test_no_test_example_can_be_reached_from_a_trial(shop):
    opened = shop.opened
    hidden = np.unique(opened.split.test.target)
    things = reachable(task_of(shop))
    assert any(isinstance(x, Examples) for x in things)  # the walk gets into the task at all
    assert not [x for x in things if isinstance(x, Split | ForgetSplit)]
    for x in things:
        if isinstance(x, Examples):
            assert not np.isin(x.target, hidden).any() and not np.isin(x.history, hidden).any()
        if isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.integer) and x.shape == hidden.shape:
            assert not np.array_equal(np.sort(x), hidden)


def test_the_walk_would_find_them(shop):
    """The same walk from what a cell opens does find the test part: it is not blind itself."""
    things = reachable(shop.opened)
    assert any(isinstance(x, Split) for x in things)


def test_no_second_model_can_be_reached_from_a_trial(shop):
    """theta_o is there; no retrain is, in memory or on the disk."""
    task = task_of(shop)
    models = [x for x in reachable(task) if isinstance(x, torch.nn.Module) and hasattr(x, "get_decoder")]
    outer = [m for m in models if m is task.original.model or m in list(task.original.model.modules())]
    assert len(models) == len(outer)
    assert [p.name.split("-")[0] for p in shop.shop.out.glob("models/*")] == ["original"]


def test_a_spy_reads_no_test_rating(shop, monkeypatch):
    """A method that looks test ratings up by their row gets nothing, and the search goes on without them."""
    rows = np.unique(shop.opened.split.test.target)
    seen = {}

    def spy(task, config):
        seen["rating"] = task.data.rating[rows]
        seen["attributes"] = {n for n in dir(task) if "test" in n}
        return real(task, config)

    real = METHODS["grad_diff"][0]
    monkeypatch.setitem(METHODS, "grad_diff", (spy, METHODS["grad_diff"][1]))
    job = replace(shop.trial, method="grad_diff")
    for module, name in ((work, "evaluate"), (work, "scenes"), (materials, "ground_of")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("a trial was measured like a cell"))
    ((_, row),) = shop.shop.do(job, {})
    assert np.isnan(seen["rating"]).all() and not seen["attributes"]
    assert row["failure"] is None and np.isfinite(row["kl_valid"])


@pytest.mark.slow
def test_a_trial_is_the_same_whatever_the_test_ratings_are(shop, monkeypatch):
    """Changing D_t alone changes nothing that a setting is chosen by."""
    opened = shop.opened
    ((_, row),) = shop.shop.do(shop.trial, {})
    flipped = opened.data.rating.copy()
    flipped[opened.split.test.target] = 6 - flipped[opened.split.test.target]
    import pyarrow as pa

    at = opened.data.ratings.schema.get_field_index("rating")
    data = replace(opened.data, ratings=opened.data.ratings.set_column(at, "rating", pa.array(flipped)))
    task = blind_task(
        replace(opened, data=data), drawn_request(data, opened.recipe, opened.split), seed=shop.trial.seed
    )
    from curerec.pipeline import carry_out

    before = search.Before.of(task)
    found = search.judged(task, before, carry_out(task, "npo", opened.recipe.config_of("npo")))
    assert {k: row[k] for k in found} == found
    # What is aimed for may be what a retrain is expected to answer; no test example is in that either.
    monkeypatch.setattr("curerec.methods.expected.LEAST_CLUSTERS", 5)
    plain = blind_task(opened, drawn_request(opened.data, opened.recipe, opened.split), seed=shop.trial.seed)
    aims = [search.Before.of(t, "expected").target for t in (task, plain)]
    assert aims[0] == aims[1] != before.target


def test_only_ratings_that_nothing_else_shows_are_hidden():
    data = made_catalogue()
    split = per_user_split(data, seed=0)
    hidden = np.isnan(blinded(data, split).rating)
    assert hidden[split.test.target].all() and hidden.sum() == len(np.unique(split.test.target))
    assert not np.isnan(data.rating).any()


# Choosing.


def trial(number, **values):
    base = {"gap": 0.0, "kl_valid": 0.1, "auc_drop": 0.0, "auc_drop_se": 0.001, "nothing_happened": False}
    base |= {"ece_rise": 0.0, "ece_rise_se": 0.001}
    return {"number": number, "failure": None, **base, **values}


@pytest.mark.parametrize(
    ("trials", "best"),
    [
        ([trial(0, kl_valid=0.2), trial(1, kl_valid=0.1)], 1),  # both closed: nearest to the original
        ([trial(0, gap=0.05, kl_valid=0.0), trial(1, kl_valid=0.5)], 1),  # a closed gap comes first
        ([trial(0, gap=-0.05, kl_valid=0.0), trial(1, kl_valid=0.5)], 1),  # too much forgotten is a gap, too
        ([trial(0, gap=0.05), trial(1, gap=-0.03)], 1),  # none closed: the smallest
        ([trial(0, auc_drop=0.05), trial(1, gap=0.2)], 1),  # what is lost weighs as it misses its limit
        ([trial(0, gap=0.1, auc_drop=0.006), trial(1, gap=0.05, auc_drop=0.012)], 1),
        ([trial(0, gap=0.1, auc_drop=0.006), trial(1, gap=0.05, auc_drop=0.03)], 0),
        ([trial(0, gap=0.1), trial(1, ece_rise=0.3)], 0),  # a closed gap that destroys the probabilities
        ([trial(0, gap=0.03), trial(1, ece_rise=0.021, kl_valid=0.9)], 1),
        ([trial(0, auc_drop=0.003, auc_drop_se=0.01), trial(1, gap=0.2)], 0),  # a drop that is not shown
        ([trial(0, ece_rise=0.1, ece_rise_se=0.1), trial(1, gap=0.2)], 0),
        ([trial(0, ece_rise=0.01, ece_rise_se=float("nan")), trial(1, gap=0.2)], 0),
        ([trial(0, nothing_happened=True), trial(1, gap=0.4)], 1),
        ([{"number": 0, "failure": "out of memory"}, trial(1, gap=0.4, auc_drop=0.3)], 1),
        ([trial(0), trial(1)], 0),  # equals: the recipe's own
    ],
)
def test_choice(trials, best):
    assert search.choice(trials, 0.01)["number"] == best
    assert search.choice(trials[::-1], 0.01)["number"] == best


@pytest.mark.parametrize("name", ["auc_drop_se", "ece_rise_se", "ece_rise"])
def test_a_stored_trial_is_judged_as_it_was_before(name):
    """What is not finite is stored as null."""
    made = trial(0, auc_drop=0.003, gap=0.03, **{name: float("nan")})
    stored = json.loads(json.dumps(plain(made)))
    assert stored[name] is None and search.merit(stored, 0.01) == search.merit(made, 0.01)


def test_candidates_are_distinct_begin_with_the_recipes_own_and_do_not_change():
    for name in METHODS:
        grid, kind = search_of(name), METHODS[name][1]
        if not grid or kind is None:
            continue
        found = search.candidates(kind(), grid, 4)
        assert found[0] == {} and found == search.candidates(kind(), grid, 4)
        digests = {search.with_settings(kind(), s).digest for s in found}
        assert len(digests) == len(found) == 4 or len(found) < 4
        assert search.candidates(kind(), grid, 2) == found[:2]


def test_every_value_is_tried_before_any_is_tried_again():
    """Few points of a large grid drawn alike leave whole rates out."""
    grid = {"lr": [1e-4, 3e-4, 1e-3, 3e-3], "beta": [0.1, 0.5], "schedule": ["constant", "linear"]}
    grid |= {"damping": [0.0, 0.1], "retain_weight": [None]}
    kind = METHODS["npo"][1]
    drawn = search.candidates(kind(lr=0.7), grid, 10)[1:]
    assert {s["retain_weight"] for s in drawn} == {None}
    for key, values in grid.items():
        assert {s[key] for s in drawn[: len(values)]} == set(values), key
    for one, two in itertools.combinations(grid, 2):
        shown = {(s[one], s[two]) for s in drawn[:8]}
        assert len(shown) >= 0.75 * len(grid[one]) * len(grid[two]), (one, two)


def test_no_more_settings_are_made_than_are_tried(monkeypatch):
    """All points of a grid had been, at every plan: most of the seconds in which a benchmark was planned."""
    made, real = [], search.with_settings

    def counted(config, settings):
        made.append(settings)
        return real(config, settings)

    monkeypatch.setattr(search, "with_settings", counted)
    grid = {"lr": [k / 1000 for k in range(1, 21)], "max_steps": list(range(1, 21))}
    found = search.candidates(UnlearnConfig(lr=1.0), grid, 7)
    assert found == [{}, *made] and len(found) == 7


def test_a_key_of_one_value_does_not_move_the_draw():
    grid = {"lr": [1e-4, 3e-4, 1e-3], "push": [0.5, 1.0, 2.0]}
    kind = METHODS["gru"][1]
    plain = search.candidates(kind(lr=0.7), grid, 5)
    more = search.candidates(kind(lr=0.7), {"descend_retain": [True], **grid}, 5)
    assert more[1:] == [{"descend_retain": True, **point} for point in plain[1:]]


def test_methods_with_one_grid_are_tried_with_the_same_points():
    """Whatever they are called and wherever the keys lie: else one draws better points than another."""
    values = {"lr": [6e-4, 8e-4, 1.2e-3], "push": [1.0, 1.5, 2.0]}
    of_cure = {f"update.{key}": v for key, v in values.items()}
    drawn = [
        search.candidates(METHODS["pcgrad"][1](lr=5e-3), values, 4),
        search.candidates(METHODS["cagrad"][1](lr=5e-3), values, 4),
        search.candidates(METHODS["cure"][1](), of_cure, 4),
    ]
    assert drawn[0] == drawn[1]
    assert [list(s.values()) for s in drawn[0]] == [list(s.values()) for s in drawn[2]]


def test_a_trial_is_held_against_the_people_that_its_aim_is_of(shop, monkeypatch):
    """The original's gap by each half of D_c is that of the same half, not of another set of people."""
    monkeypatch.setattr("curerec.methods.expected.LEAST_CLUSTERS", 5)
    task = task_of(shop)
    before = search.Before.of(task, "expected")
    first, second = before.references
    people = task.data.user_code[task.control.target]
    assert sorted(np.r_[first, second]) == list(range(len(task.control)))
    assert not set(people[first]) & set(people[second])
    on_control = task.original_logits(task.control)
    halves = []
    for reference in (first, second):
        part = replace(task, control=task.control.take(reference))
        halves.append(
            search.membership(part, task.forget_original, on_control[reference], np.arange(len(reference)))
        )
    assert before.membership(task, task.forget_original, on_control) == pytest.approx(np.mean(halves))
    assert halves[0] != halves[1] and before.target == pytest.approx(np.mean(before.targets))
    whole = search.Before.of(task)
    (everyone,) = whole.references
    assert len(everyone) == len(task.control)
    assert whole.target == pytest.approx(
        search.membership(task, task.forget_base, task.base_logits(task.control), everyone)
    )


def test_settings_reach_nested_keys_and_unknown_ones_are_refused():
    kind = METHODS["task_vector"][1]
    assert search.with_settings(kind(), {"tuning.lr": 0.5}).tuning.lr == 0.5
    assert search.with_settings(METHODS["cure"][1](), {"kept.forget": 0.3}).kept.forget == 0.3
    with pytest.raises(ConfigError):
        search.with_settings(UnlearnConfig(), {"nosuch": 1})
