"""A plan names the stages of the run, grows with its sizes, and leaves everything as it was."""

from __future__ import annotations

import shutil
import types
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from curerec.calibration import Calibration, Line
from curerec.circuits.core import TOP_EXACT
from curerec.circuits.selection import sizes_to_judge, smallest_prefix
from curerec.data.cache import retain_side_at
from curerec.data.fetch import load
from curerec.data.request_file import read_request
from curerec.errors import RequestError
from curerec.evaluation.cost import Meter
from curerec.measuring import _batch_bytes, _line, calibrate, sizes_of
from curerec.methods import METHODS, CureConfig, UnlearnConfig
from curerec.opened import base_model, open_recommender
from curerec.pipeline import save_unlearned, unlearn
from curerec.plan import plan
from curerec.progress import Clock
from curerec.recommender import lower
from curerec.recommender.storage import read_card
from curerec.result import result_of
from curerec.result_work import rehearsed
from curerec.workload import Sizes, Work, bisections, of_cure, scored_exactly
from made_cases import every_pair
from made_commands import curerec, refused, untouched
from made_tasks import made_task


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


@pytest.mark.slow
def test_the_command_says_what_it_would_cost_and_writes_nothing(made_path):
    weights = read_card(made_path.full)["weights_sha256"]
    shutil.rmtree(retain_side_at(weights), ignore_errors=True)  # nobody's request came before
    with untouched(made_path.folder):
        done = curerec(*arguments(made_path), "--plan")
        retrain = curerec(*arguments(made_path), "--plan", "--method", "retrain")
        refused(
            curerec(*arguments(made_path), "--plan", "--method", "scrub"),
            "cure, random_modules, random_groups, retrain",
        )
        refused(curerec(*arguments(made_path)), "--out")
    assert done.code == retrain.code == 0, done.err + retrain.err
    told = ("counterfactuals", "circuit", "contributions", "prepare", "update", "total", "measure")
    for stage in (*told, "total, measured", "memory"):
        assert f"\n{stage} " in done.out
    assert "\nretrain " in retrain.out and "\nupdate " not in retrain.out


@pytest.mark.slow
def test_stages_are_those_of_the_run_and_the_model_stays(asked, tmp_path):
    model = asked.opened.recommender.model
    before = {n: p.clone() for n, p in model.named_parameters()}
    made = plan(asked.opened, asked.request, "cure")
    assert all((p == before[n]).all() for n, p in model.named_parameters())
    outcome, split = unlearn(asked.opened, asked.request, "cure")
    assert [s.name for s in made.stages] == list(outcome.details["stages"])
    assert (made.n_forget, made.n_retain) == (len(split.forget), len(split.retain))
    assert all(s.time_s >= 0 and s.forward_equivalents >= 0 for s in made.stages)
    assert made.mem_bytes > 0
    save_unlearned(asked.opened, outcome, asked.request, tmp_path / "new")
    written = sum(file.stat().st_size for file in (tmp_path / "new").iterdir())
    assert made.disk_bytes == pytest.approx(written, abs=1000)  # without answers of the training
    assert made.time_s == sum(s.time_s for s in made.stages)


@pytest.mark.slow
def test_stages_of_a_retrain_are_those_of_its_run(asked):
    """The plan called its steps an update, and the run noted nothing."""
    made = plan(asked.opened, asked.request, "retrain")
    outcome, _ = unlearn(asked.opened, asked.request, "retrain")
    assert [s.name for s in made.stages] == ["encode", "retrain"] == list(outcome.details["stages"])
    assert outcome.t_total_s == pytest.approx(sum(outcome.details["stages"].values()))
    assert outcome.t_core_s == outcome.details["stages"]["retrain"]


def test_the_plan_has_every_stage_that_the_command_tells_of(made_path):
    """Names as printed while the command ran, measuring the result among them."""
    told = [line.split(":")[0] for line in made_path.results["new_lora"].err.splitlines()]
    opened = open_recommender(made_path.lora, load(str(made_path.data)))
    made = plan(opened, read_request(made_path.request), "cure")
    assert [s.name for s in (*made.stages, made.result)] == told
    assert made.result.time_s > 0 and made.whole_s == made.time_s + made.result.time_s
    assert made.mem_bytes >= made.request_bytes


@pytest.mark.slow_but("5-True-full")
@every_pair(clusters=[5, 1000], stored=[True, False], kind=["full", "lora"])
def test_measuring_passes_as_many_prompts_as_are_planned(made_path, kind, stored, clusters, monkeypatch):
    """Also where the verdict asks about some of D_r, and where there are too few people for that."""
    monkeypatch.setattr("curerec.recommender.score.can_share", lambda model: False)
    monkeypatch.setattr("curerec.methods.expected.LEAST_CLUSTERS", clusters)
    opened = open_recommender(getattr(made_path, kind), load(str(made_path.data)))
    assert opened.answered is not None
    opened = opened if stored else replace(opened, answered=None)
    outcome, split = unlearn(opened, read_request(made_path.request), "cure")
    with Meter() as meter:
        after = rehearsed(opened, split, "cure")
    assert meter.forward_equivalents == 0
    with Meter() as meter:
        base_model(opened, seed=0)  # loading it checks it on a few
    loading = meter.forward_equivalents
    with Meter() as meter:
        result_of(opened, split, outcome, "cure")
    taken = meter.forward_equivalents - loading
    assert sum(w.forwards for w in after.work) == taken > 0
    parts = sum(len(getattr(split, part)) for part in ("forget", "control", "valid", "test"))
    assert (taken < 2 * parts) == stored
    assert (taken > 3 * parts) == (not stored and clusters == 5)


@pytest.mark.slow
@pytest.mark.soak
def test_what_an_earlier_request_left_is_not_counted(asked, tmp_path):
    assert plan(asked.opened, asked.request, "cure", retain_side=tmp_path).kept == ()
    assert not list(tmp_path.iterdir())
    unlearn(asked.opened, asked.request, "cure", retain_side=tmp_path)
    left = {f: f.read_bytes() for f in tmp_path.iterdir()}
    made = plan(asked.opened, asked.request, "cure", retain_side=tmp_path)
    outcome, _ = unlearn(asked.opened, asked.request, "cure", retain_side=tmp_path)
    assert made.kept == ("circuit", "contributions") == tuple(outcome.details["kept"])
    assert [s.name for s in made.stages] == list(outcome.details["stages"])
    assert made.stages[0].time_s == 0 and "circuit" not in [s.name for s in made.stages]
    assert {f: f.read_bytes() for f in tmp_path.iterdir()} == left
    config = asked.opened.recipe.cure
    sizes = sizes_of(made_task())
    first, later = of_cure(config, sizes), of_cure(config, sizes, made.kept)
    assert first["update"] == later["update"] and first["prepare"] == later["prepare"]
    assert not [w for w in later["contributions"] if w.part == "control"]
    assert set(later["contributions"]) < set(first["contributions"])


@pytest.mark.slow_but("anew181*", "anew96*", "anew129*")
@every_pair(
    anew=[(None, None), (3, None), (3, 0.9)],
    forget_loss=["rewind", "npo", "calibrated"],
    forget_score=["gradient", "path"],
    looks=[(None, "base"), (0.1, "base"), (0.1, "expected")],
    arms=[1, 2],
    pace=[(None, None), ("start", "way")],
)
def test_passes_are_counted_as_they_are_taken(
    anew, forget_loss, forget_score, looks, arms, pace, monkeypatch
):
    """Forward passes of a prompt by stage: of the configuration, and of the run."""
    (every, all_steps_from), (open_gap, target), (pace_from, way) = anew, looks, pace
    # Half of these short prompts is the template's: what they share would be computed in passes of its own.
    monkeypatch.setattr("curerec.recommender.score.can_share", lambda model: False)
    monkeypatch.setattr("curerec.methods.unlearn.LEAST_STEPS", 2)
    monkeypatch.setattr("curerec.methods.unlearn.LOOK_RATIO", 0)
    monkeypatch.setattr("curerec.methods.unlearn.LEAST_LOOK", 15)
    monkeypatch.setattr("curerec.methods.expected.LEAST_CLUSTERS", 5)
    task = made_task()
    config = CureConfig().model_validate(
        {
            "pairs": 12,
            "pair_pool": 20,
            "control_size": 30,
            "forget_size": 24,  # D_f is larger: the gradient is taken in parts
            "draws": 4,
            "path_steps": 2,
            "forget_score": forget_score,
            "kept": {"forget": 0.5},
            "second_arm": {"push": 2.0} if arms == 2 else None,
            "update": {
                "open_gap": open_gap,
                "target": target,
                "paced": pace_from is not None,
                "pace_from": pace_from,
                "looks": way,
                "forget_loss": forget_loss,
                "schedule": "linear",  # all steps are taken
                "max_steps": 7,
                "all_steps_from": all_steps_from,
                "check_every": 3,
                "check_size": 25,
                "batch_size": 500,  # all of D_f
                "retain_batch_size": 10,
                "forget_every": every,
                "forget_size": 20,
            },
        }
    )
    assert len(task.forget) > config.forget_size
    work = of_cure(config, sizes_of(task))
    stage, seen = None, {}

    class Noting(Clock):
        @contextmanager
        def stage(self, name, *, told=True):
            nonlocal stage
            before, stage = stage, name
            with super().stage(name, told=told) as advance:
                yield advance
            stage = before

    decoder = type(task.original.model.get_decoder())

    def passed(module, args, output):
        if type(module) is decoder:
            seen[stage] = seen.get(stage, 0) + len(output.last_hidden_state)

    task.clock = Noting()
    handle = torch.nn.modules.module.register_module_forward_hook(passed)
    try:
        outcome = METHODS["cure"][0](task, config)
    finally:
        handle.remove()
    assert list(outcome.details["stages"]) == list(work)
    assert (outcome.trace[-1]["step"] < 7 * arms) == (all_steps_from is not None)
    counted = {name: sum(w.forwards for w in part) for name, part in work.items()}
    # A teacher is tuned in whole batches, of which the last of an epoch is smaller.
    about = 0.03 if forget_loss == "calibrated" else 0
    for name in ("contributions", "groups", "update"):
        assert counted[name] == pytest.approx(seen.get(name, 0), rel=about), name
    look = 2 * (25 if all_steps_from is None else 15)  # how far to go back is found by three of them, or two
    looks = (counted["prepare"], counted["prepare"] - (look if open_gap else 0))
    assert any(n == pytest.approx(seen["prepare"], rel=about) for n in looks)
    # Which prompts give a pair that moves is known when they have been run.
    kept = outcome.circuit.pairs
    circuit = of_cure(config.model_copy(update={"pairs": kept["kept"]}), sizes_of(task))["circuit"]
    assert sum(w.forwards for w in circuit) == seen["circuit"]
    assert 3 * kept["made"] == seen["counterfactuals"] <= counted["counterfactuals"]


@pytest.mark.parametrize("of", ["users", "items"])
def test_of_whole_items_no_passes_are_planned_to_learn_what_to_expect(of):
    """The base's word is taken there, and nobody else is asked about."""
    sizes = sizes_of(made_task(of=of))
    by = {
        target: of_cure(CureConfig(update=UnlearnConfig(target=target)), sizes)["prepare"]
        for target in ("base", "expected")
    }
    assert (by["base"] == by["expected"]) == (of == "items")


def test_a_line_through_two_measurements_gives_the_seconds_of_any_size():
    found = Calibration(
        lines={"score": Line.through((10, 1.5), (40, 3.0)), "assign": Line(1.0, 0.5), "step": Line(0.25)},
        lengths={"retain": np.array([5, 5]), "valid": np.array([2, 8])},
        unit=1.0,
    )
    assert found.seconds(Work("score", 6, batch=2)) == pytest.approx(3 * 1.0 + 0.05 * 30)
    assert found.seconds(Work("score", 4, "valid", times=2, batch=4)) == pytest.approx(2 * (1.0 + 0.05 * 32))
    assert found.seconds(Work("assign", 8)) == 5.0
    assert found.seconds(Work("step", times=4)) == 1.0
    assert Line.through((10, 2.0), (40, 1.0)) == Line(1.0, 0.0)  # noise


def test_what_lies_below_an_adapter_is_counted_once_a_prompt():
    whole, above = Line(0.0, 1.0), Line(0.0, 0.25)
    found = Calibration(
        lines={"score": whole, "gradient": whole, "patched": whole, "step": Line(1.0)},
        lengths={"retain": np.array([1]), "valid": np.array([1])},
        unit=1.0,
        above={"score": above, "gradient": above},
        sizes={"retain": 10, "valid": 8},
    )
    stages = {
        "prepare": [Work("score", 4), Work("patched", 8, "valid"), Work("score", 8, "valid")],
        "update": [Work("gradient", 30, batch=10), Work("step", times=3), Work("score", 8, "valid", 2)],
    }
    seconds = found.of_stages(stages)
    assert found.kept_tokens(stages) == 10 + 8
    # 4 of D_r's ten prompts are passed before the update, which passes all of them three times.
    assert seconds == {"prepare": 4 + 8 + 8, "update": (30 * 0.25 + 6 * 0.75) + 3 + 2 * 8 * 0.25}
    assert found.of_stages({"one": [Work("gradient", 8, times=5)]}) == {"one": 8 + 4 * 8 * 0.25}


@pytest.mark.parametrize("states_kept", [False, True])
@pytest.mark.parametrize(("a_prompt", "most"), [(0.001, 256), (0.02, 200), (0.5, 24)])
def test_a_slow_model_is_measured_on_few_prompts(a_prompt, most, states_kept, monkeypatch):
    now, ran = [0.0], []

    def run(index):
        ran.append(len(index))
        now[0] += 0.01 + a_prompt * len(index)

    monkeypatch.setattr("curerec.measuring.time.perf_counter", lambda: now[0])
    prompts = made_task().encode(made_task().retain)
    prompts = prompts.take(np.zeros(300, int))  # all of one length
    tokens = int(prompts.lengths[0])
    found = _line(run, prompts, 256, states_kept=states_kept)
    assert (found.fixed, found.rate) == (pytest.approx(0.01), pytest.approx(a_prompt / tokens))
    assert max(ran) <= most
    assert now[0] < 15 and (max(ran) == 256) == (a_prompt == 0.001)


def test_what_a_pass_holds_is_that_of_a_batch_in_use():
    """What grows with the prompts grows; what does not is held once."""
    prompts = made_task().encode(made_task().retain)

    def run(index):
        once = torch.ones(500)
        x = torch.ones(len(index), 1000)
        return x.sum() + once.sum()

    held = _batch_bytes(run, prompts, 50, torch.device("cpu"))
    assert held == pytest.approx(50 * 4000 + 2000, abs=20)  # and some numbers by themselves


def test_passes_that_begin_higher_up_are_counted_as_what_is_left_of_them():
    whole, above = Line(0.0, 1.0), Line(0.0, 0.25)
    passes = Work("patched", 8, "valid", times=2, begins=6)
    about = {"lines": {"patched": whole}, "lengths": {"valid": np.array([1])}, "unit": 1.0, "layers": 8}
    assert Calibration(**about).of_stages({"one": [passes]}) == {"one": 2 * 8 * 0.25}
    kept = Calibration(**about, above={"patched": above}, sizes={"valid": 8}, first=4)
    # Half of the upper layers is left; what lies below is computed at the first of them.
    assert kept.of_stages({"one": [passes]}) == {"one": 2 * 8 * 0.25 * 0.5 + 8 * 0.75}


def test_a_circuit_among_upper_layers_is_planned_as_less():
    sizes = {"forget": 10, "retain": 100, "control": 50, "valid": 50, "heads": 9, "mlps": 3}
    lines = {kind: Line(0.0, 1.0) for kind in ("titles", "pairs", "encode", "patched", "atp")}
    found = Calibration(lines, {"valid": np.array([1]), "corrupt": np.array([1])}, 1.0, layers=12)

    def seconds(first):
        work = of_cure(CureConfig(), Sizes(**sizes, layers=12, first=first))
        return found.of_stages({"circuit": work["circuit"]})["circuit"]

    assert seconds(9) < 0.6 * seconds(0)


@pytest.mark.slow
@pytest.mark.soak
def test_a_plan_where_states_are_kept_measures_both_passes(monkeypatch):
    monkeypatch.setattr(lower, "STATES", lower.States())
    task = made_task("lora", layers=(1,))
    assert lower.lowest_updated(task.original.model) == 1
    found = calibrate(task, CureConfig())
    assert set(found.above) == {"score", "path", "gradient", "patched", "atp"}
    assert (found.layers, found.first) == (2, 1)
    sizes = sizes_of(task)
    assert (sizes.layers, sizes.first) == (2, 1)
    assert found.sizes["retain"] == len(task.retain)
    assert not calibrate(made_task("lora"), CureConfig()).above


def test_an_unknown_method_is_refused(asked):
    with pytest.raises(RequestError, match="unknown method"):
        plan(asked.opened, asked.request, "magic")


@pytest.mark.parametrize(("heads", "mlps"), [(8, 2), (30, 12), (96, 12), (270, 30)])
def test_modules_scored_exactly_are_as_many_as_a_draw_gives(heads, mlps):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        top, drawn = rng.permutation(heads + mlps)[:TOP_EXACT], rng.permutation(heads + mlps)
        drawn = np.r_[drawn[drawn < heads][:TOP_EXACT], drawn[drawn >= heads][:TOP_EXACT]]
        found.append(len(np.union1d(top, drawn)))
    assert scored_exactly(heads, mlps) == pytest.approx(np.mean(found), abs=1)


def test_sizes_judged_are_as_many_as_the_search_takes():
    grid = sizes_to_judge(300)
    taken = []
    for smallest in range(1, 301):
        judged = smallest_prefix(lambda sizes, of=smallest: [(k, float(k >= of)) for k in sizes], grid, 0.9)[
            0
        ]
        taken.append(len(judged) - len(grid))
    gaps = np.diff(grid)
    # Each gap is as likely here as it is wide; the plan, which knows nothing, takes all alike.
    assert np.mean(taken) == pytest.approx(np.average(np.ceil(np.log2(gaps)), weights=gaps), rel=0.1)
    assert bisections(grid) <= np.mean(taken) <= max(taken) == np.ceil(np.log2(gaps.max()))
