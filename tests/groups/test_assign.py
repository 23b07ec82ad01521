"""Roles from contributions: the rule, the bootstrap, the random twin."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from curerec.errors import ModelError
from curerec.groups.assign import assign, percentile_within, random_groups, roles_from, rows_of_roles
from curerec.records import ROLES

TYPES = np.asarray(["head"] * 8 + ["mlp"] * 4 + ["norm"], dtype=object)
UNITS = tuple(f"unit{k}" for k in range(len(TYPES)))


def planted(n=200, noise=0.3, seed=0):
    """Scores whose means put each role on known units, in equal numbers within heads and MLPs."""
    rng = np.random.default_rng(seed)
    want = np.asarray(["forget", "retain", "shared", "frozen"] * 3 + ["forget"], dtype=object)
    high_f, high_r = np.isin(want, ("forget", "shared")), np.isin(want, ("retain", "shared"))
    f = np.where(high_f, 1.0, -1.0) + noise * rng.normal(size=(n, len(TYPES)))
    r = np.where(high_r, 1.0, -1.0) + noise * rng.normal(size=(n + 7, len(TYPES)))
    return f.astype(np.float32), r.astype(np.float32), want


def test_strong_signals_are_found_with_full_agreement():
    f, r, want = planted()
    groups = assign(f, r, UNITS, TYPES)
    assert groups.role.tolist() == want.tolist()
    assert (groups.agreement > 0.99).all()
    np.testing.assert_allclose(groups.forget_score, f.mean(0), rtol=1e-5)
    assert groups.members("forget") == tuple(u for u, w in zip(UNITS, want, strict=True) if w == "forget")
    assert [ROLES[k] for k in rows_of_roles(groups)] == groups.role.tolist()


def test_pure_noise_goes_to_the_uncertain_role():
    rng = np.random.default_rng(0)
    f, r = rng.normal(size=(50, len(TYPES))), rng.normal(size=(50, len(TYPES)))
    groups = assign(f, r, UNITS, TYPES)
    assert (groups.agreement >= 0).all() and (groups.agreement <= 1).all()
    doubtful = groups.agreement < 0.9
    assert doubtful.sum() > len(UNITS) / 2 and (groups.role[doubtful] == "shared").all()
    leading = assign(f, r, UNITS, TYPES, uncertain_role=None)
    np.testing.assert_array_equal(leading.agreement, groups.agreement)
    assert set(leading.role[doubtful]) - {"shared"}


@pytest.mark.parametrize("census", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["forget", "retain"])
def test_contributions_that_are_no_numbers_are_refused(side, value, census):
    """Of nan every comparison is false: they had been roles like any others, with full agreement."""
    f, r, _ = planted()
    (f if side == "forget" else r)[3, [5, 9]] = value
    whose = "what is to be forgotten" if side == "forget" else "unseen data"
    with pytest.raises(ModelError, match=rf"groups: .* 2 of 13 units to {whose} are not finite .*learning"):
        assign(f, r, UNITS, TYPES, census=census, draws=4)


def test_the_same_seed_gives_the_same_groups():
    f, r, _ = planted(noise=4)
    one, two, other = (assign(f, r, UNITS, TYPES, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one.agreement, two.agreement)
    assert (one.agreement != other.agreement).any()


def test_the_bootstrap_is_the_one_a_loop_would_draw():
    """Agreement is near the share of resamples, drawn one by one, in which the unit keeps its role."""
    f, r, _ = planted(n=40, noise=4)
    groups = assign(f, r, UNITS, TYPES, draws=2000, uncertain_role=None)
    rng = np.random.default_rng(1)
    kept = np.zeros(len(UNITS))
    for _ in range(1000):
        a, b = f[rng.integers(len(f), size=len(f))].mean(0), r[rng.integers(len(r), size=len(r))].mean(0)
        kept += np.asarray(ROLES, dtype=object)[roles_from(a, b, TYPES, 0.5)] == groups.role
    np.testing.assert_allclose(groups.agreement, kept / 1000, atol=0.08)


@given(arrays(np.float64, (3, len(TYPES)), elements=st.integers(-3, 3)), st.randoms())
def test_percentiles_are_of_the_type_and_know_no_order(values, random):
    """Ties included: units that fine-tuning left alone all score 0, and none of them comes before another."""
    got = percentile_within(values, TYPES)
    for kind in ("head", "mlp"):
        member = kind == TYPES
        part = values[:, member]
        below, equal = (part[:, None] < part[:, :, None]).sum(-1), (part[:, None] == part[:, :, None]).sum(-1)
        np.testing.assert_allclose(got[:, member], (below + equal / 2) / member.sum())
    np.testing.assert_array_equal(got[:, TYPES == "norm"], values[:, TYPES == "norm"] > 0)
    order = list(range(len(TYPES)))
    random.shuffle(order)
    np.testing.assert_array_equal(percentile_within(values[:, order], TYPES[order]), got[:, order])


def test_two_units_of_a_type_split_at_the_median():
    """With rank / n both of two MLPs would count as high, whatever they scored."""
    types = np.asarray(["mlp", "mlp"], dtype=object)
    roles = roles_from(np.asarray([1.0, 2.0]), np.asarray([5.0, 4.0]), types, 0.5)
    assert [ROLES[k] for k in roles] == ["retain", "forget"]


@pytest.mark.parametrize("seed", range(3))
def test_the_random_twin_has_the_same_sizes_in_each_type(seed):
    f, r, _ = planted(noise=2)
    groups = assign(f, r, UNITS, TYPES)
    before = groups.role.copy()
    twin = random_groups(groups, TYPES, seed=seed)
    for kind in set(TYPES):
        assert Counter(twin.role[kind == TYPES]) == Counter(groups.role[kind == TYPES])
    np.testing.assert_array_equal(groups.role, before)
    np.testing.assert_array_equal(twin.role, random_groups(groups, TYPES, seed=seed).role)
    assert np.isnan(twin.agreement).all()  # no resample has a say in what was drawn


def test_random_twins_differ_from_the_groups_and_from_each_other():
    f, r, _ = planted()
    groups = assign(f, r, UNITS, TYPES)
    seen = {tuple(random_groups(groups, TYPES, seed=s).role) for s in range(10)} | {tuple(groups.role)}
    assert len(seen) > 8


def all_at_once(f, r, types, draws, *, census=False, forget_draws=None, seed=0):
    """Votes from whole [draws, units] arrays, each role's share of the draws."""
    rng = np.random.default_rng([seed, 31])

    def means(scores):
        n = len(scores)
        return (rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float32) / n) @ scores

    forget = f.mean(0)[None] if census else means(f) if forget_draws is None else forget_draws
    high_f = np.broadcast_to(percentile_within(forget, types) >= 0.5, (draws, len(types)))
    high_r = percentile_within(means(r), types) >= 0.5
    return {
        "forget": (high_f & ~high_r).mean(0), "retain": (~high_f & high_r).mean(0),
        "shared": (high_f & high_r).mean(0), "frozen": (~high_f & ~high_r).mean(0),
    }  # fmt: skip


@pytest.mark.parametrize("draws", [1, 16, 203])
@pytest.mark.parametrize("case", ["both", "census", "given"])
def test_votes_in_chunks_are_the_votes_of_all_draws(case, draws):
    rng = np.random.default_rng(5)
    types = np.asarray([f"kind{k % 7}" for k in range(400)], dtype=object)
    f, r = (rng.normal(size=(n, 400)).astype(np.float32) for n in (60, 90))
    f[:, ::5] = 0  # ties
    more = {
        "both": {},
        "census": {"census": True},
        "given": {"forget_draws": rng.normal(size=(draws, 400)).astype(np.float32)},
    }[case]
    units = tuple(f"unit{k}" for k in range(400))
    groups = assign(f, r, units, types, draws=draws, uncertain_role=None, **more)
    votes = all_at_once(f, r, types, draws, **more)
    want = [votes[role][k] for k, role in enumerate(groups.role)]
    np.testing.assert_allclose(groups.agreement, want, rtol=1e-12)


@pytest.mark.slow
def test_many_units_are_not_held_for_all_draws():
    """At a 7B model's rows an array [draws, units] would be of gigabytes, and there were many."""
    n_units = 20_000
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(100, n_units)).astype(np.float32)
    types = np.repeat(np.asarray(["a", "b"], dtype=object), n_units // 2)
    units = tuple(map(str, range(n_units)))
    tracemalloc.start()
    try:
        assign(scores[:50], scores[50:], units, types, draws=200)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
