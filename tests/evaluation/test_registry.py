"""Every metric, on one scene: a finite number with its size, or the reason why there is none."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from curerec.errors import ConfigError
from curerec.evaluation import METRICS
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.metric import CannotError, Metric, Value, evaluate
from curerec.evaluation.on_test import quintile, untouched
from curerec.evaluation.ranking import NEGATIVES, lists
from curerec.measure import chosen_metrics, names_for
from made_scene import made_scene, same_state, state


@pytest.fixture(scope="module")
def scene():
    return made_scene()


def values(scene, names=METRICS):
    return {name: evaluate(METRICS[name], scene) for name in names}


def test_each_metric_has_a_number_or_a_reason_and_no_model_is_changed(scene):
    before = [state(c.model) for c in (scene.subject, scene.original, *scene.references)]
    found = values(scene)
    for name, value in found.items():
        assert (value.value is None) == bool(value.missing), name
        if value.value is not None:
            assert math.isfinite(value.value) and (value.n is None or value.n > 0)
            if value.low is not None:
                assert value.low <= value.high
    none = {name for name, value in found.items() if value.missing}
    # Noise is no retraining: whether it lowers the answers on the deleted data is chance.
    assert none - {"depth", "relearn_steps", "relearn_ratio"} == {
        *(
            "jsd_mean",
            "ulira_auc",
            "ulira_tpr_at_fpr_01",
            "ndcg_at_10",
            "hr_at_10",
        ),  # 60 items: no 99 negatives
        *("t_core_s", "t_total_s", "retrain_ratio", "n_trainable"),
        *("peak_mem_bytes", "mem_rise_bytes", "forward_equivalents", "forward_ratio"),
    } | {n for n in none if n.endswith("_others") or "_q" in n}
    models = (scene.subject, scene.original, *scene.references)
    assert all(same_state(c.model, b) for c, b in zip(models, before, strict=True))


def test_what_is_not_at_hand_is_said(scene):
    alone = replace(scene, original=None, references=())
    for name, metric in METRICS.items():
        if "retrain" in metric.needs or "retrain_seeds" in metric.needs:
            assert "retrained" in evaluate(metric, alone).missing or evaluate(metric, alone).missing, name
    assert "original" in evaluate(METRICS["depth"], replace(scene, original=None)).missing
    one = replace(scene, references=scene.references[:1])
    assert "single retrained model" in evaluate(METRICS["residual"], one).missing
    stored = Candidate(None, logits=dict(scene.subject.logits), memory=dict(scene.subject.memory))
    kept = evaluate(METRICS["jsd"], replace(scene, subject=stored))
    assert kept.value == evaluate(METRICS["jsd"], scene).value  # answers that were stored are enough
    assert "not at hand" in evaluate(METRICS["depth"], replace(scene, subject=stored)).missing
    assert "not stored" in evaluate(METRICS["jsd"], replace(scene, subject=Candidate(None))).missing


def test_a_retrained_model_is_not_its_own_yardstick(scene):
    first = scene.of(scene.references[0])
    assert first.retrains == scene.references[1:]
    assert evaluate(METRICS["jsd"], first).value > 0
    assert "retrained model itself" in evaluate(METRICS["residual"], first).missing
    only = replace(first, references=scene.references[:1])
    assert "retrained model itself" in evaluate(METRICS["jsd"], only).missing  # not that none was given


def test_the_original_is_at_one_and_its_interval_too(scene):
    value = evaluate(METRICS["residual"], scene.of(scene.original))
    if value.value is not None:
        assert value.value == pytest.approx(1)
    assert evaluate(METRICS["jsd_mean"], scene).missing.startswith("averaging over seeds")
    three = replace(scene, seeds=scene.references, references=(*scene.references, scene.original))
    assert evaluate(METRICS["jsd_mean"], three).value >= 0


def test_a_reason_comes_out_of_the_computation_too():
    def cannot(scene):
        raise CannotError("no such thing", mend="Make one")

    def faulty(scene):
        raise ConfigError("too few", where="losses")

    def metric(compute):
        return Metric("x", 1, "1", "lower", (), "x", "textbook", compute)

    assert evaluate(metric(cannot), None) == Value.none("no such thing", mend="Make one")
    assert evaluate(metric(faulty), None).missing == "losses: too few"
    assert evaluate(metric(lambda scene: Value(float("nan"))), None).missing == "the number is not finite"


def test_subsets_of_the_test_part(scene):
    ground = scene.ground
    touched = set(ground.data.user_code[scene.split.deleted])
    others = untouched(scene)
    assert others.tolist() == [u not in touched for u in ground.user("test")]
    fifths = np.array([quintile(k)(scene) for k in range(1, 6)])
    assert (fifths.sum(0) == 1).all()
    counts = np.bincount(ground.data.user_code)[ground.user("test")]
    ends = [(counts[f].min(), counts[f].max()) for f in fifths if f.any()]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))
    parts = [evaluate(METRICS[f"test_acc_q{k}"], scene) for k in range(1, 6)]
    assert sum(v.n for v in parts if v.n) == len(scene.split.test)


def test_lists_hold_one_liked_item_and_others_never_rated(scene):
    ground = scene.ground
    asked = lists(ground, negatives=5)
    assert len(asked) == 5 * 6
    data = ground.data
    last = {}
    for row, target in enumerate(scene.split.test.target):
        if scene.split.test.label[row]:
            last[data.user_code[target]] = data.item_code[target]
    rated = {u: set(data.item_code[data.user_code == u]) for u in last}
    for k in range(5):
        first, *rest = asked.candidate[6 * k : 6 * k + 6]
        users = [u for u, item in last.items() if item == first and not rated[u] & set(rest)]
        assert users and len(set(rest)) == 5
    with pytest.raises(CannotError, match="fewer than 99"):
        lists(ground, negatives=NEGATIVES)


def test_names_of_metrics():
    assert set(chosen_metrics(None)) == {n for n, m in METRICS.items() if m.cost == "arrays"}
    assert names_for([], shadows=True)[-1:] and "ulira_auc" in names_for([], shadows=True)
    with pytest.raises(ConfigError, match="no metric nonsense"):
        names_for(["nonsense"])
    for name, metric in METRICS.items():
        assert metric.name == name and metric.version >= 1 and metric.formula and metric.source
        assert (metric.better == "target") == (metric.target is not None)


def test_words_apart_are_of_the_histories_that_are_served():
    """As the answers apart are: a retrain behind a retrieval that blanks histories is none as served."""
    scene = made_scene()
    retrain = scene.references[0].model

    def blank(examples):
        return replace(examples, history=np.full_like(examples.history, -1))

    served = replace(scene, subject=Candidate(retrain, rebuild=blank), references=scene.references[:1])
    plain = replace(scene, subject=Candidate(retrain), references=scene.references[:1])
    for name in ("jsd", "jsd_full"):
        assert evaluate(METRICS[name], plain).value == pytest.approx(0, abs=1e-7)
        assert evaluate(METRICS[name], served).value > 1e-6, name
