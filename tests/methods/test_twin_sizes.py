"""A twin's groups are as large as the groups that it is held against: in units, and in weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from curerec.groups.assign import SHARED, comparable, random_groups
from curerec.methods.cure.method import Kept
from curerec.methods.cure.weights import weights_of
from curerec.methods.random_modules.method import by_row, by_size, by_training, permuted
from curerec.methods.saliency import n_salient
from curerec.recommender.units import units_of
from curerec.records import ROLES, Groups
from made_families import lora_on, made_family_model
from made_tasks import made_task, short_cure

CASES = [
    *((kind, gran, False) for kind in ("llama", "gpt2") for gran in ("head_mlp", "projection")),
    *(("llama", gran, True) for gran in ("head_mlp", "projection", "rank")),
]


def weights_by_role(units, role, model):
    """How many weights each role has; what several units share belongs to none."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = Counter()
    for branch in {b.weight: b for b in units.branches}.values():
        for name, dim in branch.slices:
            shape = parameters[name].shape
            for unit in branch.unit:
                found[role[unit]] += shape.numel() // shape[dim]
        if branch.shared and len(set(branch.unit)) == 1:
            found[role[branch.unit[0]]] += parameters[branch.shared].numel()
    return found


@pytest.mark.parametrize(("kind", "granularity", "lora"), CASES)
def test_the_twin_has_as_many_weights_in_each_role(kind, granularity, lora):
    model = made_family_model(kind, 400)
    model = lora_on(model) if lora else model
    units = units_of(model, granularity)
    rng = np.random.default_rng(0)
    n = len(units.names)
    groups = Groups(units.names, rng.choice(np.asarray(ROLES, dtype=object), n), *np.zeros((3, n)))
    if granularity == "projection" and not lora:
        units, groups = by_row(units_of(model, "row"), groups)
    else:
        units = replace(units, types=comparable(units.types))
    own = weights_by_role(units, groups.role, model)
    twins = [random_groups(groups, by_size(units, model), seed=seed).role for seed in range(6)]
    assert all(weights_by_role(units, role, model) == own for role in twins)
    assert len({tuple(role) for role in twins}) > 1
    by_type_alone = [random_groups(groups, units.types, seed=seed).role for seed in range(6)]
    if granularity != "rank":
        assert any(weights_by_role(units, role, model) != own for role in by_type_alone)


@pytest.mark.parametrize("granularity", ["head_mlp", "projection", "row"])
def test_so_has_the_twin_of_a_request(granularity):
    task = made_task()
    units, groups, twin = permuted(task, short_cure().model_copy(update={"granularity": granularity}))
    own, random = (weights_by_role(units, g.role, task.original.model) for g in (groups, twin))
    assert own == random


def test_rows_that_training_never_moved_stay_as_free_as_they_were():
    """Else the twin would draw weights for forgetting in which nothing is remembered and nothing moves."""
    task = made_task()
    config = short_cure().model_copy(update={"granularity": "row"})
    units = units_of(task.original.model, "row")
    deltas = task.deltas(units)
    still = np.asarray([not changed_in(deltas, units, k) for k in range(len(units.names))])
    assert 0 < still.sum() < len(still)
    _, groups, twin = permuted(task, config)
    for role in ROLES:
        assert (groups.role[still] == role).sum() == (twin.role[still] == role).sum()
    types = by_training(units, deltas)
    assert all(kind.endswith(" unmoved") == one for kind, one in zip(types, still, strict=True))
    plain = random_groups(groups, comparable(units.types), seed=task.seed)
    assert any((groups.role[still] == role).sum() != (plain.role[still] == role).sum() for role in ROLES)


@pytest.mark.parametrize("granularity", ["head_mlp", "row"])
def test_of_a_table_that_is_one_unit_rows_that_training_moved_are_drawn_alone(granularity):
    """`cure` chooses by the gradient, which others have none of. Where rows are units their roles say it."""
    task = made_task()
    few = {"saliency": 0.3, "rolled_back": 0.2, "kept": Kept(forget=0.5, shared=0.5)}
    config = short_cure().model_copy(update={"granularity": granularity, **few})
    units = units_of(task.original.model, granularity)
    role = np.full(len(units.names), SHARED)
    ours, twins = weights_of(task, config, units, role)[:2], weights_of(task, config, units, role, role)[:2]
    table = next(b.weight for b in units.branches if b.kind == "embedding")
    still = (task.deltas(units)[table] == 0).all(dim=1)
    assert 0 < still.sum() < len(still)
    for own, twin in zip(ours, twins, strict=True):
        assert n_salient(own, units, role) == n_salient(twin, units, role) > 0
        assert not own[table][still].any() and twin[table][~still].any()
        assert twin[table][still].any() == (granularity == "row")


def changed_in(deltas, units, unit):
    """Whether training changed anything in a unit."""
    return any((deltas[b.weight].movedim(b.dim, 0)[b.unit == unit] != 0).any() for b in units.branches)
