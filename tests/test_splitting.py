"""The split and the request of a recipe: per user, or as E2URec's experiments have them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from curerec.config import parse
from curerec.data.edited import keeping
from curerec.data.readers import read
from curerec.data.split_e2urec import e2urec_request, e2urec_split
from curerec.errors import ConfigError
from curerec.recipe import Recipe
from curerec.recipes import load_recipe
from curerec.splitting import base_rows, base_share, drawn_request, granted, split_of, users_by_part
from made_catalogue import made_catalogue

SHARED = Path(os.environ.get("CUREREC_DATA") or Path(__file__).parents[2] / "shared" / "data")
DATA = made_catalogue(80, seed=2)


def recipe(**split):
    values = {"split": {"kind": "e2urec", **split}, "request": {"share": 0.2, "choice": "e2urec"}}
    return parse(Recipe, values, where="test")


def test_control_comes_out_of_the_training_part_and_out_of_nothing_else():
    plain, made = e2urec_split(DATA), split_of(DATA, recipe(control_share=0.2).split)
    assert made.kind == "e2urec"
    assert set(made.train.target) | set(made.control.target) == set(plain.train.target)
    assert not set(made.train.target) & set(made.control.target) and len(made.control)
    for role in ("valid", "test"):
        np.testing.assert_array_equal(getattr(made, role).target, getattr(plain, role).target)


@pytest.mark.parametrize("split", [{}, {"control_share": 0.5, "seed": 3}, {"train": 40, "other": 20}])
def test_the_request_is_the_published_one_whatever_control_and_sample_are(split):
    chosen = recipe(**split)
    made = split_of(DATA, chosen.split)
    request = drawn_request(DATA, chosen, made)
    assert request == e2urec_request(DATA, e2urec_split(DATA))
    done = granted(DATA, chosen, made, request)
    assert len(done.forget) + len(done.retain) == len(made.train)
    named = np.isin(DATA.users[DATA.user_code[made.train.target]], request.ids)
    assert len(done.forget) == named.sum()


def test_public_users_are_in_no_part_of_it():
    chosen = recipe(public_share=0.4)
    public, _ = users_by_part(DATA, chosen.split)
    made = split_of(DATA, chosen.split)
    for role in ("train", "control", "valid", "test"):
        assert not np.isin(DATA.user_code[getattr(made, role).target], public).any()
    assert not set(drawn_request(DATA, chosen, made).ids) & set(DATA.users[public])


def test_what_the_base_saw_is_what_was_stored_once_people_have_gone():
    """Drawn again from the ratings of now it would be other people."""
    chosen = load_recipe("demo").model_copy(update={"split": recipe(kind="per-user", public_share=0.4).split})
    seen = base_rows(DATA, chosen)
    public, _ = users_by_part(DATA, chosen.split)
    assert seen.sum() > 0 and np.isin(DATA.user_code[seen], public).all()
    deleted = DATA.user_code == public[0]
    whole = base_share(DATA, chosen, deleted)
    assert (whole.n_users, whole.n_interactions) == (1, (seen & deleted).sum())
    kept = keeping(DATA, ~deleted).in_memory()
    others = kept.user_code == np.flatnonzero(kept.users == DATA.users[public[1]])[0]
    stored = base_share(kept, chosen, others, seen[~deleted])
    assert stored.n_interactions == (seen & (DATA.user_code == public[1])).sum()
    drawn = [base_share(kept, chosen, kept.user_code == k).n_interactions for k in range(len(kept.users))]
    truly = [int(seen[~deleted][kept.user_code == k].sum()) for k in range(len(kept.users))]
    assert drawn != truly  # which is why it has to be stored


def test_kinds_that_are_none_are_refused():
    with pytest.raises(ConfigError, match=r"split\.kind"):
        recipe(kind="global")
    with pytest.raises(ConfigError, match="names users"):
        parse(Recipe, {"request": {"kind": "items", "choice": "e2urec"}}, where="test")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data: set CUREREC_DATA")
def test_counts_of_the_recipe_on_ml_1m():
    """Published: 60,000/20,000/20,000; 205 of 1,025 users, 12,982 of D_f and 47,018 of D_r.

    The copy at hand has 64.8 % exact times, so its window holds some other users; a tenth of the training
    part is control.
    """
    data, chosen = read(SHARED / "ml-1m"), load_recipe("e2urec")
    whole = chosen.split.model_copy(update={"other": None})
    made = split_of(data, whole)
    assert len(made.train) + len(made.control) == 60_000 and abs(len(made.control) - 6_000) < 300
    assert len(made.valid) == len(made.test) == 20_000
    done = granted(data, chosen, made, drawn_request(data, chosen, made))
    print(len(made.train), len(made.control), len(done.forget), len(done.retain))
    assert len(done.forget) + len(done.retain) == len(made.train)
    assert 0.9 * 9_000 < len(done.forget) < 0.9 * 15_000


def test_a_length_of_histories_holds_through_a_request():
    values = {"split": {"history": 3}, "request": {"share": 0.2}}
    chosen = parse(Recipe, values, where="test")
    made = split_of(DATA, chosen.split)
    done = granted(DATA, chosen, made, drawn_request(DATA, chosen, made))
    parts = [made.train, made.control, made.valid, made.test]
    parts += [done.forget, done.retain, done.control, done.valid, done.test]
    assert {part.places for part in parts} == {3}
    # The last three of those that the default shows, and a default that no digest knows of.
    default = chosen.split.model_copy(update={"history": None})
    usual = split_of(DATA, default)
    np.testing.assert_array_equal(made.train.target, usual.train.target)
    np.testing.assert_array_equal(made.train.history, usual.train.history[:, -3:])
    assert "history" not in default.model_dump(mode="json")
    late = split_of(DATA, recipe(history=3).split)
    assert {late.train.places, late.test.places} == {3}
