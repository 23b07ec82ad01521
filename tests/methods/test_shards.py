"""Shards forget exactly: what is restarted equals a training that never saw the deleted data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.linear_model import Ridge

from curerec.bench.sequence import explained
from curerec.data.forget import apply_request
from curerec.data.splits import per_user_split
from curerec.evaluation.cost import Meter
from curerec.measure import candidate
from curerec.methods.apa.merged import Adaptive, attention, states_of
from curerec.methods.receraser.method import Attending
from curerec.methods.receraser.partition import balanced, factors, solve
from curerec.methods.shards.together import Together
from curerec.methods.shards.training import Before, Shards, before_deletion
from curerec.methods.sisa.method import SisaConfig, dealt, sisa
from curerec.methods.task import Task
from curerec.recommender.lora import factors_of, stacked, with_factors
from curerec.recommender.score import p_yes, score
from curerec.records import ForgetRequest
from made_tasks import made_task


def trained(kind="full", *, slices=3, shards=2):
    task = made_task(kind, share=0.05)  # two users
    before = before_deletion(task)
    shard, piece = dealt(before.user, shards, slices, 0)
    out = Shards(task, before, shard, piece)
    out.train()
    return task, out


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_restart_equals_a_training_without_the_deleted_data(kind):
    task, shards = trained(kind)
    states = [list(s) for s in shards.states]
    hit = shards.forget()
    touched = shards.before.touched
    assert hit == len(np.unique(shards.shard[touched]))
    for k in range(shards.n_shards):
        first = shards.restarted[k]
        if first is None:
            assert all(a is b for a, b in zip(shards.states[k], states[k], strict=True))
            continue
        # Slices before the first touched one are kept as they were, not made again.
        assert first == shards.piece[touched & (shards.shard == k)].min()
        assert all(a is b for a, b in zip(shards.states[k][: first + 1], states[k], strict=False))
    # A recommender made of the same shards that never had the deleted data at all.
    clean = shards.before
    keep = clean.after >= 0
    never = Shards(
        task,
        type(clean)(
            task.retain, np.arange(len(task.retain)), np.zeros(len(task.retain), bool), clean.user[keep]
        ),
        shards.shard[keep],
        shards.piece[keep],
    )
    never.train()
    for k in range(shards.n_shards):
        for one, two in zip(shards.states[k][-1], never.states[k][-1], strict=True):
            assert torch.equal(one, two)


def test_a_shard_sees_as_much_as_in_one_training():
    task, shards = trained(slices=4)
    n = [[len(shards.rows(k, r, deleted=False)) for r in range(4)] for k in range(2)]
    for sizes in n:
        passes = shards.tuning.epochs * sum(sizes) / sizes[-1]
        assert passes == pytest.approx(task.tuning.epochs, rel=0.25)


def test_no_shard_keeps_a_deleted_example_and_none_is_lost():
    task, shards = trained()
    left = [shards.rows(k, 2, deleted=True).target for k in range(2)]
    assert sorted(np.concatenate(left)) == sorted(task.retain.target)
    whole = [shards.rows(k, 2, deleted=False).target for k in range(2)]
    assert sorted(np.concatenate(whole)) == sorted(np.r_[task.forget.target, task.retain.target])


def test_histories_of_deleted_items_touch_the_prompts_of_others():
    task = made_task()
    split = per_user_split(task.data, seed=0)
    request = ForgetRequest("items", (task.data.items[0],))
    after = apply_request(task.data, split, request)
    items = Task.of(
        after,
        original=task.original,
        base_state=None,
        data=task.data,
        tuning=task.tuning,
        fresh=task.fresh,
    )
    before = before_deletion(items)
    assert before.touched[: len(after.forget)].all()
    code = np.flatnonzero(task.data.items == task.data.items[0])[0]
    rest = before.examples.take(np.flatnonzero(before.after >= 0))
    inside = ((task.data.item_code[rest.history] == code) & (rest.history >= 0)).any(1)
    np.testing.assert_array_equal(before.touched[before.after >= 0], inside)
    assert inside.any() and not inside.all()


def test_examples_that_leave_for_want_of_history_hit_the_shard_that_learnt_them():
    """Shards were trained on their prompts, which show what is deleted; neither D_f nor D_r has them."""
    task = made_task(of="items", share=0.05)
    split = per_user_split(task.data, seed=0)
    before = before_deletion(task)
    np.testing.assert_array_equal(np.sort(before.examples.target), np.sort(split.train.target))
    lost = ~np.isin(before.examples.target, np.r_[task.forget.target, task.retain.target])
    assert lost.any() and before.touched[lost].all() and (before.after[lost] == -1).all()
    was = np.searchsorted(split.train.target, before.examples.target)  # ascending
    np.testing.assert_array_equal(before.examples.history, split.train.history[was])
    # A shard that nothing else of the request is in.
    rest = np.cumsum(~before.touched) % 2 == 0
    shard = np.where(lost | (~before.touched & rest), 0, 1)
    shards = Shards(task, before, shard, np.zeros(len(shard), int))
    shards.train()
    assert shards.forget() == 2 and shards.restarted == [0, 0]
    keep = before.after >= 0
    n = np.zeros(keep.sum(), bool)
    clean = Before(task.retain, np.arange(len(n)), n, before.user[keep])
    never = Shards(task, clean, shard[keep], n.astype(int))
    never.train()
    for one, two in zip(shards.states, never.states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[-1], two[-1], strict=True))


def test_users_are_dealt_whole_and_evenly():
    user = np.repeat(np.arange(23), 5)
    shard, piece = dealt(user, 4, 3, seed=1)
    for u in range(23):
        assert len(np.unique(shard[user == u])) == len(np.unique(piece[user == u])) == 1
    counts = np.bincount(shard[::5])
    assert len(counts) == 4 and counts.max() - counts.min() <= 1
    assert dealt(np.zeros(6, int), 4, 3, seed=1)[0].max() == 0


def test_the_answer_is_the_mean_of_the_shards():
    task, shards = trained("lora")
    prompts = task.encode(task.valid)
    each = []
    for k in range(2):
        z = score(shards.model_of(k), prompts, task.answers)
        each.append(np.exp(z - logsumexp(z, axis=1, keepdims=True))[:, 1])
    z = score(Together(shards), prompts, task.answers)
    got = np.exp(z)[:, 1]
    np.testing.assert_allclose(got, np.mean(each, 0), atol=1e-5)
    frozen = {
        p.data_ptr() for m in Together(shards).models for n, p in m.named_parameters() if "lora" not in n
    }
    assert len(frozen) == sum("lora" not in n for n, _ in shards.work.named_parameters())  # held once


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_shard_of_which_nothing_is_left_has_no_say(kind):
    task = made_task(kind, share=0.05)
    before = before_deletion(task)
    gone = np.isin(before.user, task.data.user_code[task.forget.target])
    shards = Shards(task, before, (~gone).astype(int), np.zeros(len(gone), int))
    shards.train()
    assert shards.left == [0, 1]
    assert shards.forget() == 1 and shards.left == [1]
    prompts = task.encode(task.control)
    alone = p_yes(score(shards.model_of(1), prompts, task.answers))
    keys = torch.from_numpy(states_of(task.base_model(), prompts))
    error = torch.zeros(1, len(prompts))
    mixed = Adaptive(shards, task.base_model(), keys, error, tau=1.0, neighbours=3)
    for model in (Together(shards), Attending(shards, 4, 0), mixed):
        np.testing.assert_allclose(p_yes(score(model, prompts, task.answers)), alone, atol=1e-5)


def test_setup_is_outside_of_the_request():
    task = made_task()
    with Meter() as meter:
        out = sisa(task, SisaConfig(shards=2, slices=2))
    assert out.details["setup_s"] > 0 and "train the shards" not in out.details["stages"]
    assert out.t_total_s == pytest.approx(sum(out.details["stages"].values()))
    # What is counted as the request's is what restarting takes when the shards are there already.
    before = before_deletion(task)
    shards = Shards(task, before, *dealt(before.user, 2, 2, task.seed))
    with Meter() as making:
        shards.train()
    with Meter() as request:
        shards.forget()
    assert candidate(out, meter).forward_equivalents == request.forward_equivalents > 0
    assert out.details["setup_forward_equivalents"] == making.forward_equivalents > 0
    assert explained(out).items() >= {"setup_forward_equivalents": making.forward_equivalents}.items()


# ---- RecEraser


def test_one_side_of_the_factorisation_is_weighted_ridge_regression():
    rng = np.random.default_rng(0)
    likes, other = rng.random((5, 9)) < 0.3, rng.normal(size=(9, 4))
    got = solve(likes, other)
    for k in range(5):
        weight = 1 + 40.0 * likes[k]
        fit = Ridge(alpha=1.0, fit_intercept=False).fit(other, likes[k], sample_weight=weight)
        np.testing.assert_allclose(got[k], fit.coef_ if likes[k].any() else 0, atol=1e-8)


def test_factors_tell_tastes_apart():
    data = made_task().data
    vectors = factors(data, np.arange(len(data)), 6, rounds=15, seed=0)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    taste = np.asarray([int(u[1:]) % 2 for u in data.users])  # users like the items of one parity
    same = taste[:, None] == taste[None]
    cosine, off = unit @ unit.T, ~np.eye(len(taste), dtype=bool)
    assert cosine[same & off].mean() > cosine[~same].mean() + 0.1


@pytest.mark.parametrize("clusters", [1, 3, 4])
def test_balanced_clusters(clusters):
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(size=(30, 3)), rng.normal(size=(6, 3)) + 9])
    got = balanced(vectors, clusters, cap=1.2)
    size = np.bincount(got)
    assert len(size) == clusters and size.max() <= np.ceil(1.2 * 36 / clusters) and size.min() > 0
    np.testing.assert_array_equal(got, balanced(vectors, clusters, cap=1.2))


def test_without_crowding_balanced_clusters_are_the_groups():
    rng = np.random.default_rng(1)
    vectors = np.concatenate([rng.normal(size=(20, 3)) + 40 * k for k in range(2)])
    assert (
        len({tuple(balanced(vectors, 2, seed=s)[20 * k : 20 * k + 20]) for s in range(4) for k in (0, 1)})
        == 2
    )


def test_attention_is_a_convex_mix_of_the_shards_answers():
    task, shards = trained("full")
    prompts = task.encode(task.valid)
    each = [torch.from_numpy(score(shards.model_of(k), prompts, task.answers)).softmax(-1) for k in range(2)]
    model = Attending(shards, 8, seed=0)
    got = np.exp(score(model, prompts, task.answers))
    low, high = np.minimum(*each) - 1e-5, np.maximum(*each) + 1e-5
    assert ((low.numpy() <= got) & (got <= high.numpy())).all()
    with torch.no_grad():
        model.query.zero_()
    np.testing.assert_allclose(
        np.exp(score(model, prompts, task.answers)), torch.stack(each).mean(0), atol=1e-5
    )


# ---- APA


def test_weights_follow_the_neighbours_errors():
    keys = torch.nn.functional.normalize(torch.eye(4)[[0, 0, 1, 1]] + 0.1, dim=-1)
    error = torch.tensor([[0.1, 0.3, 0.9, 0.9], [0.5, 0.5, 0.2, 0.4]])
    got = attention(torch.eye(4)[[0, 1]], keys, error, tau=2.0, neighbours=2)
    want = torch.softmax(-2 * torch.tensor([[0.2, 0.5], [0.9, 0.3]]), -1)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(attention(torch.eye(4)[[0]], keys, error, 0.0, 9), torch.full((1, 2), 0.5))
    assert attention(torch.eye(4)[[0]], keys, error, 1000.0, 2)[0, 0] > 0.999


def test_a_validation_prompt_is_no_neighbour_of_its_own():
    """Else answers on D_v, by which settings are chosen, would come from the labels they are held to."""
    task, _ = trained("full")
    base = task.base_model()
    valid = task.encode(task.valid)
    keys = torch.from_numpy(states_of(base, valid))
    error = torch.rand(2, len(valid), generator=torch.Generator().manual_seed(0))
    alone = torch.from_numpy(states_of(base, valid, batch_size=1))  # unpadded: other rounding
    for n in (0, 5, 11):
        others = error.clone()
        twins = (keys @ keys[n]) > 1 - 1e-5
        others[:, twins] = 1 - others[:, twins]
        got, changed = (attention(alone[[n]], keys, e, 5.0, 3) for e in (error, others))
        torch.testing.assert_close(got, changed)


@pytest.mark.parametrize("neighbours", [3, 4, 9])
def test_also_where_all_validation_prompts_are_neighbours(neighbours):
    keys = torch.eye(4)
    error = torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.0, 0.5, 0.5, 0.5]])
    got = attention(keys[[0]], keys, error, 2.0, neighbours)
    torch.testing.assert_close(got, torch.softmax(-2 * torch.tensor([[0.2, 0.5]]), -1))
    # One whose opposite is there has it as a neighbour all the same; nobody else: no shard is preferred.
    both = torch.stack([keys[0], -keys[0]])
    torch.testing.assert_close(
        attention(both[[0]], both, error[:, :2], 2.0, 1), torch.softmax(-2 * torch.tensor([[0.1, 0.5]]), -1)
    )
    torch.testing.assert_close(
        attention(keys[[0]], keys[[0]], error[:, :1], 2.0, neighbours), torch.full((1, 2), 0.5)
    )


def test_a_batch_is_merged_prompt_by_prompt():
    task, shards = trained("lora")
    base = task.base_model()
    valid = task.encode(task.valid)
    keys = torch.from_numpy(states_of(base, valid))
    error = torch.rand(2, len(valid), generator=torch.Generator().manual_seed(0))
    model = Adaptive(shards, base, keys, error, tau=3.0, neighbours=5)
    prompts = task.encode(task.forget)
    got = score(model, prompts, task.answers)
    weight = attention(torch.from_numpy(states_of(base, prompts)), keys, error, 3.0, 5)
    assert weight.std(0).min() > 0.01
    parts = [factors_of(shards.model_of(k)) for k in range(2)]
    for n in (0, 3, 7):
        w = weight[n].tolist()
        one = with_factors(shards.work, stacked(*zip(w, parts, strict=True)))
        np.testing.assert_allclose(
            score(one, prompts.take(np.array([n])), task.answers)[0], got[n], atol=1e-4
        )


def test_fully_fine_tuned_shards_mix_their_answers():
    task, shards = trained("full")
    base = task.base_model()
    valid = task.encode(task.valid)
    keys, error = torch.from_numpy(states_of(base, valid)), torch.zeros(2, len(valid))
    got = score(Adaptive(shards, base, keys, error, tau=1.0, neighbours=3), valid, task.answers)
    np.testing.assert_allclose(got, score(Together(shards), valid, task.answers), atol=1e-5)
