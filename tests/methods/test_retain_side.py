"""What training or an earlier request left of the retain side serves a request as far as that leaves it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from curerec import pipeline
from curerec.data.cache import retain_side_at
from curerec.methods.cure import method
from curerec.methods.cure.retain_side import LEAST
from curerec.recommender.stored_answers import LEFT, asked_in_training, left
from curerec.records import ForgetRequest
from curerec.splitting import granted
from made_recommender import DATA, opened, trained


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    return opened(trained(tmp_path_factory.mktemp("kept")))


@pytest.fixture
def at(recommender, tmp_path):
    return retain_side_at(recommender.recommender.card["weights_sha256"], tmp_path)


@pytest.fixture
def ran(monkeypatch):
    """Prompts whose contributions were scored, and pairs that a circuit was sought on."""
    seen = {"contributions": [], "circuit": []}
    paths, core = method.path_scores, method.find_core

    def path_scores(model, prompts, *rest, **more):
        seen["contributions"].append(prompts)
        return paths(model, prompts, *rest, **more)

    def find_core(model, clean, *rest, **more):
        seen["circuit"].append(clean)
        return core(model, clean, *rest, **more)

    monkeypatch.setattr(method, "path_scores", path_scores)
    monkeypatch.setattr(method, "find_core", find_core)
    return seen


def said(path):
    with safe_open(path, framework="np") as file:
        return file.metadata()["part"]


def users(*numbers):
    return ForgetRequest("users", tuple(DATA.users[list(numbers)].tolist()))


def explained(opened, request, kept, seed=0, **change):
    split = granted(DATA, opened.recipe, opened.split, request)
    task = pipeline.task_for(opened, split, seed=seed, retain_side=kept)
    config = opened.recipe.cure.model_copy(update=change)
    circuit, _, groups = method.explain(task, config)
    return task, circuit, groups


def test_the_same_request_again_runs_nothing_of_it_and_is_the_same(recommender, at, ran):
    first = explained(recommender, users(0, 1), at)
    assert "kept" not in first[0].shared and len(ran["circuit"]) == len(ran["contributions"]) == 1
    assert {p.name for p in at.iterdir()} == {"circuit.safetensors", "contributions.safetensors"}
    assert all(p.stat().st_mode & 0o077 == 0 for p in at.iterdir())
    again = explained(recommender, users(0, 1), at)
    assert again[0].shared["kept"] == ["circuit", "contributions"]
    assert len(ran["circuit"]) == len(ran["contributions"]) == 1
    for name in (
        "modules",
        "core",
        "curve",
        "faithfulness",
        "jaccard",
        "pairs",
        "notes",
        "order",
        "agreement",
    ):
        assert getattr(again[1], name) == getattr(first[1], name), name
    for name in ("scores", "exact", "low", "high"):
        np.testing.assert_array_equal(getattr(again[1], name), getattr(first[1], name))
    np.testing.assert_array_equal(again[2].retain_score, first[2].retain_score)
    assert again[2].role.tolist() == first[2].role.tolist()


def test_examples_of_who_is_deleted_now_are_dropped(recommender, at, ran):
    first, *_ = explained(recommender, users(0, 1), at)
    sample = first.sample(first.control, 20, 73)
    (scored,) = ran["contributions"]
    asked, times = np.unique(DATA.user_code[sample.target[~first.deleted[sample.target]]], return_counts=True)
    gone = int(asked[times.argmin()])
    second, _, groups = explained(recommender, users(gone), at)
    assert len(ran["contributions"]) == 1 and "contributions" in second.shared["kept"]
    side = method.RetainSide(second, recommender.recipe.cure)
    mine = side.contributions(len(groups.modules))
    assert 0 < len(mine) < len(scored)
    assert not second.deleted[side.control.target].any()


def test_a_pair_of_who_is_deleted_now_makes_the_circuit_anew(recommender, at, ran):
    explained(recommender, users(0), at)
    (pairs,) = ran["circuit"]
    target = load_file(at / "circuit.safetensors")["target"]
    assert len(target) == len(pairs)
    task, *_ = explained(recommender, users(0, int(DATA.user_code[target[0]])), at)
    assert "circuit" not in task.shared.get("kept", []) and len(ran["circuit"]) == 2
    now = load_file(at / "circuit.safetensors")["target"]
    assert not task.deleted[now].any()


def test_another_request_takes_the_circuit_that_it_does_not_touch(recommender, at, ran):
    _, circuit, _ = explained(recommender, users(0), at)
    its = DATA.user_code[load_file(at / "circuit.safetensors")["target"]]
    trained_on = np.unique(DATA.user_code[recommender.split.train.target])
    task, again, _ = explained(recommender, users(int(np.setdiff1d(trained_on, its)[-1])), at)
    assert "circuit" in task.shared["kept"] and len(ran["circuit"]) == 1
    assert again.core == circuit.core


def test_an_item_that_a_kept_prompt_shows_makes_the_circuit_anew(recommender, at, ran):
    explained(recommender, users(0), at)
    items = load_file(at / "circuit.safetensors")["items"]
    task, *_ = explained(recommender, ForgetRequest("items", (DATA.items[items[items >= 0][0]],)), at)
    assert "circuit" not in task.shared.get("kept", []) and len(ran["circuit"]) == 2


def test_too_few_left_are_scored_anew(recommender, at, ran):
    explained(recommender, users(0), at)
    many = users(*range(1, 2 + round((1 - LEAST) * len(DATA.users)) + 4))
    task, *_ = explained(recommender, many, at)
    assert "contributions" not in task.shared.get("kept", []) and len(ran["contributions"]) == 2


@pytest.mark.parametrize("change", [{"pairs": 6}, {"path_steps": 2}, {"control_size": 15}, {"seed": 1}])
def test_another_configuration_or_seed_takes_nothing_else(recommender, at, ran, change):
    explained(recommender, users(0), at)
    task, *_ = explained(recommender, users(0), at, **change)
    kept = set(task.shared.get("kept", []))
    if "seed" in change:
        assert not kept
    else:
        assert kept == ({"contributions"} if "pairs" in change else {"circuit"})


def test_other_weights_other_folders_and_damaged_files_are_not_taken(recommender, at, ran, tmp_path):
    explained(recommender, users(0), at)
    other = opened(trained(recommender.base.parent, seed=1))
    assert retain_side_at(other.recommender.card["weights_sha256"], tmp_path) != at
    planted, *_ = explained(other, users(0), at)  # the first one's, in the second one's place
    assert not planted.shared.get("kept")
    for path in at.iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    damaged, *_ = explained(recommender, users(0), at)
    assert not damaged.shared.get("kept")
    whole, *_ = explained(recommender, users(0), at)  # written anew
    assert whole.shared["kept"] == ["circuit", "contributions"]


@pytest.mark.slow
def test_without_a_folder_nothing_is_written_or_taken(recommender, at, ran):
    explained(recommender, users(0), None)
    outcome, _ = pipeline.unlearn(recommender, users(0), "cure")
    assert not at.parent.exists() and outcome.details["kept"] == []
    kept, _ = pipeline.unlearn(recommender, users(0), "cure", retain_side=at)
    assert kept.details["kept"] == []
    again, _ = pipeline.unlearn(recommender, users(0), "cure", retain_side=at)
    assert again.details["kept"] == ["circuit", "contributions"]
    stages = again.details["stages"]
    assert "circuit" not in stages and again.t_total_s == sum(stages.values())
    assert again.trace[-1]["valid_auc"] == kept.trace[-1]["valid_auc"]


def test_a_folder_that_cannot_be_written_stops_nothing(recommender, tmp_path, ran):
    (tmp_path / "file").write_text("")
    _, circuit, _ = explained(recommender, users(0), tmp_path / "file" / "kept")
    assert circuit.core


def test_what_training_prepared_serves_the_first_request(recommender, at, ran):
    pipeline.prepare(recommender, at)
    assert len(ran["circuit"]) == len(ran["contributions"]) == 1
    its = DATA.user_code[load_file(at / "circuit.safetensors")["target"]]
    trained_on = np.unique(DATA.user_code[recommender.split.train.target])
    request = users(int(np.setdiff1d(trained_on, its)[0]))
    task, circuit, groups = explained(recommender, request, at)
    assert task.shared["kept"] == ["circuit", "contributions"]
    assert len(ran["circuit"]) == len(ran["contributions"]) == 1
    assert circuit.core == tuple(json.loads(said(at / "circuit.safetensors"))["core"])
    *_, own = explained(recommender, request, None)
    assert groups.forget_score.tolist() == own.forget_score.tolist()


def test_preparing_twice_takes_what_is_there(recommender, at, ran):
    pipeline.prepare(recommender, at)
    pipeline.prepare(recommender, at)
    assert len(ran["circuit"]) == len(ran["contributions"]) == 1


def test_answers_of_a_version_that_requests_made_are_left_for_the_next(recommender, at, monkeypatch):
    version = replace(recommender, answered=None)  # nobody kept what it answers
    first, _, _ = explained(version, users(0), at)
    assert first.answered is None
    pipeline.prepare(version, at)
    task, _, _ = explained(version, users(0), at)
    parts = task.forget, task.control
    asked = [task.original_logits(part) for part in parts], [task.base_logits(part) for part in parts]
    anew = [first.original_logits(part) for part in parts], [first.base_logits(part) for part in parts]
    for a, b in zip(itertools.chain(*asked), itertools.chain(*anew), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    monkeypatch.setattr("curerec.methods.task.score", lambda *_: pytest.fail("was asked again"))
    for part in parts:
        task.original_logits(part)
    task.base_logits(task.control.take(~task.deleted[task.control.target]))
    # Not for other weights, and not from a file that is none.
    card = {**version.recommender.card, "weights_sha256": "0" * 64}
    asked_then = asked_in_training(version.split)
    other = replace(version.recommender, card=card)
    assert left(at, version.recommender, version.data, asked_then) is not None
    assert left(at, other, version.data, asked_then) is None
    assert left(at, version.recommender, version.data, version.split.train) is None
    (at / LEFT).write_bytes((at / LEFT).read_bytes()[:-3])
    assert left(at, version.recommender, version.data, asked_then) is None
