"""A plan names the stages of the run, grows with its sizes, and leaves everything as it was."""

from __future__ import annotations

import types

import pytest

from curerec.data.fetch import load
from curerec.data.request_file import read_request
from curerec.errors import RequestError
from curerec.methods import METHODS, CureConfig
from curerec.pipeline import open_recommender, unlearn
from curerec.plan import _cure, plan
from curerec.progress import Clock
from made_commands import curerec, refused, untouched


@pytest.fixture
def asked(made_path):
    opened = open_recommender(made_path.full, load(str(made_path.data)))
    return types.SimpleNamespace(opened=opened, request=read_request(made_path.request))


def arguments(made_path):
    return (
        "unlearn",
        "--recommender",
        made_path.full,
        "--data",
        made_path.data,
        "--request",
        made_path.request,
    )


def test_the_command_says_what_it_would_cost_and_writes_nothing(made_path):
    with untouched(made_path.folder):
        done = curerec(*arguments(made_path), "--plan")
        retrain = curerec(*arguments(made_path), "--plan", "--method", "retrain")
        refused(
            curerec(*arguments(made_path), "--plan", "--method", "scrub"), "cure, random_modules, retrain"
        )
        refused(curerec(*arguments(made_path)), "--out")
    assert done.code == retrain.code == 0, done.err + retrain.err
    for stage in ("counterfactuals", "circuit", "contributions", "prepare", "update", "total", "memory"):
        assert f"\n{stage} " in done.out
    assert "\nupdate " in retrain.out


def test_stages_are_those_of_the_run_and_the_model_stays(asked):
    model = asked.opened.recommender.model
    before = {n: p.clone() for n, p in model.named_parameters()}
    made = plan(asked.opened, asked.request, "cure")
    assert all((p == before[n]).all() for n, p in model.named_parameters())
    outcome, split = unlearn(asked.opened, asked.request, "cure")
    assert [s.name for s in made.stages] == list(outcome.details["stages"])
    assert (made.n_forget, made.n_retain) == (len(split.forget), len(split.retain))
    assert all(s.time_s >= 0 and s.forward_equivalents >= 0 for s in made.stages)
    assert made.mem_bytes > 0 and made.disk_bytes > 0
    assert made.time_s == sum(s.time_s for s in made.stages)


def test_known_costs_are_found_again(monkeypatch):
    """A method whose stages cost what a formula says: the plan must say it of the real sizes."""
    config = CureConfig()
    update = config.update.model_copy(update={"max_steps": 40, "check_every": 10})
    config = config.model_copy(update={"pairs": 64, "pair_pool": 128, "update": update})

    def costs(config):
        looks = -(-config.update.max_steps // config.update.check_every)
        return {
            "counterfactuals": 0.5 + 0.01 * config.pair_pool,
            "circuit": 2 + 0.1 * config.pairs,
            "prepare": 3.0,
            "update": 0.2 * config.update.max_steps + 1.5 * looks,
        }

    def fake(task, config):
        task.clock.seconds.update(costs(config))

    monkeypatch.setitem(METHODS, "cure", (fake, METHODS["cure"][1]))
    monkeypatch.setattr("curerec.plan._ahead", lambda task, config: 0.0)

    def task():
        return types.SimpleNamespace(clock=Clock(), valid=range(1000), forget=range(90), control=range(90))

    found = _cure(task, "cure", config)
    for name, seconds in costs(config).items():
        assert found[name] == pytest.approx(seconds, rel=1e-6), name


def test_an_unknown_method_is_refused(asked):
    with pytest.raises(RequestError, match="unknown method"):
        plan(asked.opened, asked.request, "magic")
