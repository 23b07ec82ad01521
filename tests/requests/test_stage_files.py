"""Circuits and groups come back from a stage's file as they were."""

import json

import numpy as np
import pytest

from curerec.records import Circuit, Groups
from curerec.reports.schema import plain
from curerec.requests.stage_files import read_circuit, read_groups, stored_circuit, stored_groups


def filed(stored):
    return json.loads(json.dumps(plain(stored), allow_nan=False))


@pytest.mark.parametrize("chance", [0.25, float("nan")])
def test_a_circuit_comes_back(chance):
    was = Circuit(
        modules=("layers.0.mlp", "layers.0.head.1"),
        scores=np.float32([0.1, -1 / 3]),
        exact=np.float32([np.nan, 2e-8]),
        core=("layers.0.head.1",),
        curve=((0, 0.0), (1, 0.93)),
        faithfulness=0.93,
        completeness=0.1,
        jaccard=0.8,
        jaccard_chance=chance,
        scorer="atp",
        pairs=7,
    )
    now = read_circuit(filed(stored_circuit(was)))
    np.testing.assert_array_equal(now.scores, was.scores)
    np.testing.assert_array_equal(now.exact, was.exact)
    for name in ("modules", "core", "curve", "faithfulness", "completeness", "jaccard", "scorer", "pairs"):
        assert getattr(now, name) == getattr(was, name), name
    np.testing.assert_equal(now.jaccard_chance, chance)


def test_groups_come_back():
    role = np.asarray(["forget", "frozen", "shared"], dtype=object)
    scores = np.float64([[1 / 3, 0, 1e-300], [-1, 0.5, 2], [1, 0.7, 0.1]])
    now = read_groups(filed(stored_groups(Groups(("a", "b", "c"), role, *scores))))
    assert now.modules == ("a", "b", "c") and list(now.role) == list(role)
    np.testing.assert_array_equal([now.forget_score, now.retain_score, now.agreement], scores)
