"""ROME's arithmetic and WISE's routing against closed forms and brute force."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from curerec.errors import ModelError
from curerec.methods import METHODS
from curerec.methods.edits import edits_of, mlp_output, title_ends, uninformed
from curerec.methods.rome import method as rome_method
from curerec.methods.rome.edit import Site, covariance, rank_one
from curerec.methods.rome.method import RomeConfig, edited, rome, site_of, value_change
from curerec.methods.stopping import Watch
from curerec.methods.wise.memory import attach
from curerec.methods.wise.method import WiseConfig, margin_loss, wise
from curerec.recommender.score import answer_logits, score, to_batch
from curerec.recommender.units import units_of
from made_families import in_double
from made_models import made_model, made_prompts, with_lora
from made_tasks import made_task

RNG = np.random.default_rng


def spread_of(width, seed=0):
    keys = torch.from_numpy(np.random.default_rng(seed).normal(size=(5 * width, width)))
    keys[:, 0] *= 8  # far from isotropic, so that C matters
    return keys.T @ keys / len(keys)


@pytest.mark.parametrize("seed", range(5))
def test_the_edit_writes_the_value_exactly(seed):
    rng = np.random.default_rng(seed)
    weight, key, value = (torch.from_numpy(rng.normal(size=s)) for s in ((4, 6), 6, 4))
    left, right = rank_one(value - weight @ key, key, spread_of(6, seed))
    new = weight + torch.outer(left, right)
    torch.testing.assert_close(new @ key, value)
    assert np.linalg.matrix_rank(new - weight) == 1


def test_the_edit_is_the_least_under_the_covariance():
    rng = np.random.default_rng(1)
    key, change, spread = (
        torch.from_numpy(rng.normal(size=5)),
        torch.from_numpy(rng.normal(size=3)),
        spread_of(5),
    )
    left, right = rank_one(change, key, spread)
    ours = np.outer(left, right)

    def moved(flat):  # E |dW k|^2 over keys of covariance C
        d = flat.reshape(3, 5)
        return float(np.trace(d @ spread.numpy() @ d.T))

    found = minimize(
        moved,
        np.zeros(15),
        constraints={"type": "eq", "fun": lambda x: x.reshape(3, 5) @ key.numpy() - change.numpy()},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assert moved(ours.ravel()) <= found.fun * (1 + 1e-6)
    np.testing.assert_allclose(ours, found.x.reshape(3, 5), atol=1e-4)
    euclid = np.outer(change, key / (key @ key))  # the least without C moves more
    assert moved(euclid.ravel()) > 1.2 * moved(ours.ravel())


def test_covariance_is_the_mean_outer_product_without_padding():
    prompts, encoder = made_prompts(9)
    model = made_model(len(encoder.tokenizer))
    site = Site(mlp_output(model, 0))
    got = covariance(model, site, prompts, 4)
    total, n = 0.0, 0
    for k in range(len(prompts)):
        seen = []
        handle = site.module.register_forward_hook(lambda m, a, y, seen=seen: seen.append(a[0][0].double()))
        ids, last = to_batch(prompts, np.array([k]), torch.device("cpu"))
        with torch.no_grad():
            answer_logits(model, ids, last, encoder.answers)
        handle.remove()
        total, n = total + seen[0].T @ seen[0], n + len(seen[0])
    want = total / n
    want += 1e-4 * want.diagonal().mean() * torch.eye(len(want))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_edited_model_writes_the_value_at_the_key(kind):
    task = made_task(kind)
    model = task.copy_of_model().requires_grad_(False)
    site = Site(mlp_output(model, 0))
    prompts = task.encode(task.forget.take(edits_of(task, "user")[0][:6]))
    retain = task.encode(task.retain.take(np.arange(6)))
    target = uninformed(task, prompts)
    spread = covariance(model, site, retain, 8)
    config = RomeConfig(steps=15, weight_decay=0.0, kl_weight=0.0)
    key, change, loss = value_change(task, model, site, prompts, target, retain, config, RNG(0))
    before = torch.from_numpy(score(model, prompts, task.answers))
    start = torch.nn.functional.kl_div(
        before.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert loss < float(start)  # the search goes towards the uninformed answer
    path = next(n for n, m in model.named_modules() if m is site.module)
    new = edited(task.original.model, path, [rank_one(change, key, spread)])
    old_map, new_map = task.original.model.get_submodule(path), new.get_submodule(path)
    with torch.no_grad():
        x = key[None, None]
        torch.testing.assert_close(new_map(x), old_map(x) + change, atol=1e-4, rtol=1e-4)
        w = torch.randn(1, 1, len(key))  # of other inputs it moves only the share along C^-1 k*
        share = (w[0, 0].double() @ torch.linalg.solve(spread, key.double())) / (
            key.double() @ torch.linalg.solve(spread, key.double())
        )
        torch.testing.assert_close(
            new_map(w) - old_map(w), (share * change).float()[None, None], atol=1e-4, rtol=1e-4
        )


def test_an_edit_outside_of_the_adapter_s_branches_becomes_a_branch():
    prompts, encoder = made_prompts(6)
    plain = made_model(len(encoder.tokenizer))
    model = with_lora(copy.deepcopy(plain), ["q_proj", "v_proj"])
    rng = np.random.default_rng(0)
    factors = [tuple(torch.from_numpy(0.3 * rng.normal(size=n)) for n in (16, 24)) for _ in range(2)]
    path = next(n for n, m in model.named_modules() if m is mlp_output(model, 0))
    new = edited(model, path, factors)
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for left, right in factors:
            mlp_output(by_hand, 0).weight.add_(torch.outer(left, right).float())
    got, want = (score(m, prompts, encoder.answers) for m in (new, by_hand))
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(got - score(model, prompts, encoder.answers)).max() > 1e-3
    names = {b.module for b in units_of(new, "projection").branches}
    assert any("layers.0.mlp.down_proj" in n for n in names) and len(names) == 5


@pytest.mark.parametrize("layer", [0, 1])
def test_values_are_those_of_whole_passes(layer, monkeypatch):
    """With the map in the last layer, of which less would be computed, as well as below it."""
    task = made_task()
    model = task.copy_of_model().requires_grad_(False)
    site = Site(mlp_output(model, layer))
    prompts = task.encode(task.forget.take(edits_of(task, "user")[0][:6]))
    retain = task.encode(task.retain.take(np.arange(6)))
    target = uninformed(task, prompts)
    config = RomeConfig(steps=5, batch_size=4)
    with in_double(model):

        def found():
            return value_change(task, model, site, prompts, target, retain, config, RNG(0))

        got = found()
        monkeypatch.setattr("curerec.recommender.score.can_be_lean", lambda model: False)
        for a, b in zip(got, found(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_an_edit_is_of_all_prompts_of_its_user(monkeypatch):
    """However many there are, and however few fit in a pass."""
    task, edits = made_task(), []

    def spy(task, model, site, prompts, *more):
        edits.append((len(prompts), value_change(task, model, site, prompts, *more)))
        return edits[-1][1]

    monkeypatch.setattr(rome_method, "value_change", spy)
    few = RomeConfig(batch_size=4, steps=1, check_every=100, check_size=40, max_auc_drop=1.0)
    METHODS["rome"][0](task, few)
    wanted = edits_of(task, "user")
    assert [n for n, _ in edits] == [len(rows) for rows in wanted]
    assert max(map(len, wanted)) > few.batch_size
    # The first is of theta_o itself: the mean key of the user's prompts, one by one.
    prompts = task.encode(task.forget.take(wanted[0]))
    site, ends = Site(mlp_output(task.original.model, 0)), torch.from_numpy(title_ends(prompts))
    keys = []
    for k in range(len(prompts)):
        with torch.no_grad(), site.reading(ends[k : k + 1]) as seen:
            one = to_batch(prompts, np.array([k]), torch.device("cpu"))
            answer_logits(task.original.model, *one, task.answers)
        keys.append(seen[0][0][0])
    torch.testing.assert_close(edits[0][1][0], torch.stack(keys).mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [4, 16, 19, 64])
def test_steps_go_through_all_prompts_in_batches(size, monkeypatch):
    """Of 19 prompts; none is alone in a step, where it would weigh as much as a whole batch elsewhere."""
    task, drawn = made_task(), []
    model = task.copy_of_model().requires_grad_(False)
    prompts = task.encode(task.forget.take(np.arange(19)))
    plain = rome_method.to_batch

    def spy(of, index, device):
        if of is prompts:
            drawn.append(index)
        return plain(of, index, device)

    monkeypatch.setattr(rome_method, "to_batch", spy)
    per_epoch = -(-19 // size)
    config = RomeConfig(batch_size=size, steps=2 * per_epoch)
    site, target = Site(mlp_output(model, 0)), uninformed(task, prompts)
    retain = task.encode(task.retain.take(np.arange(4)))
    value_change(task, model, site, prompts, target, retain, config, RNG(0))
    epochs = [drawn[k : k + per_epoch] for k in range(0, len(drawn), per_epoch)]
    assert len(epochs) == 3  # the keys, and two of the steps
    assert all(sorted(np.concatenate(epoch)) == list(range(19)) for epoch in epochs)
    assert max(map(len, drawn)) <= size and min(map(len, [*epochs[1], *epochs[2]])) > 1
    if size < 19:
        assert [sorted(b) for b in epochs[1]] != [sorted(b) for b in epochs[2]]  # drawn anew


def test_what_the_value_descends_worked_out():
    """KL(target || edited) on the user's prompts and KL(edited || before) on retained ones."""
    task = made_task()
    model = task.copy_of_model().requires_grad_(False)
    site = Site(mlp_output(model, 0))
    prompts = task.encode(task.forget.take(np.arange(6)))
    retain = task.encode(task.retain.take(np.arange(5)))
    target = uninformed(task, prompts).double()
    with in_double(model):

        def after(steps):
            # Long steps: where the answers hardly move, both directions are the same.
            config = RomeConfig(steps=steps, lr=5.0, clamp=1e4, kl_weight=3.0, weight_decay=0.0)
            return value_change(task, model, site, prompts, target, retain, config, RNG(0))

        def logp(of, change):
            ends = torch.from_numpy(title_ends(of))
            with torch.no_grad(), site.adding(change, ends):
                found = answer_logits(model, *to_batch(of, np.arange(len(of)), ends.device), task.answers)
            return found.log_softmax(-1)

        change, loss = after(3)[1], after(4)[2]  # the fourth step's loss is taken after the third
        edited_here, edited_there = logp(prompts, change), logp(retain, change)
        before = logp(retain, torch.zeros_like(change))

    def kl(p, q):
        return float((p.exp() * (p - q)).sum(1).mean())

    first = kl(target.log_softmax(-1), edited_here)
    assert loss == pytest.approx(first + 3 * kl(edited_there, before), rel=1e-6)
    assert loss != pytest.approx(first + 3 * kl(before, edited_there), rel=1e-4)


@pytest.mark.parametrize(
    ("layers", "asked", "want"), [(6, None, 2), (2, None, 0), (1, None, 0), (3, 1, 1), (1, 0, 0)]
)
def test_the_site_is_below_the_last_layer(layers, asked, want):
    assert site_of(made_model(30, layers=layers), asked) == want


@pytest.mark.parametrize(("method", "most"), [(rome, 0), (wise, 1)])
def test_a_layer_above_those_that_can_be_edited_is_refused(method, most, monkeypatch):
    """The highest was edited instead, and nothing said so. It is said before anything is computed."""
    monkeypatch.setattr(Watch, "look", lambda *_: pytest.fail("looked at first"))
    config = METHODS[method.__name__][1](layer=most + 1)
    with pytest.raises(ModelError, match=rf"{method.__name__}\.layer: {most + 1} .*0 to {most}"):
        method(made_task(), config)


def test_title_ends_are_the_candidates():
    prompts, encoder = made_prompts(8)
    ends = title_ends(prompts)
    for k in range(8):
        row = prompts.ids[prompts.offsets[k] : prompts.offsets[k + 1]]
        tail = encoder.tokenizer.decode(row[ends[k] + 1 :])
        assert "answer" in tail and "like" not in tail
    assert (ends < prompts.lengths - 1).all()


def test_edits_cover_the_forget_set_once():
    task = made_task()
    for merge, code in (("user", task.data.user_code), ("item", task.data.item_code)):
        edits = edits_of(task, merge)
        assert sorted(np.concatenate(edits)) == list(range(len(task.forget)))
        assert all(len(np.unique(code[task.forget.target[rows]])) == 1 for rows in edits)


def test_uninformed_answers():
    task = made_task("lora")
    prompts = task.encode(task.forget)
    prior = uninformed(task, prompts).softmax(-1)
    torch.testing.assert_close(prior[:, 1], torch.full((len(prompts),), float(task.retain.label.mean())))
    base = uninformed(task, prompts, task.base_model())
    np.testing.assert_array_equal(base, score(task.base_model(), prompts, task.answers))


# ---- WISE


def routed():
    prompts, encoder = made_prompts(10)
    model = made_model(len(encoder.tokenizer))
    plain = copy.deepcopy(model)
    side = attach(mlp_output(model, 1), 0.3, seed=0)
    with torch.no_grad():
        side.delta.copy_(0.5 * torch.randn(side.delta.shape, generator=torch.Generator().manual_seed(5)))
        side.delta.mul_(side.mask)
    return prompts, encoder, model, plain, side


def test_the_router_sends_each_prompt_one_way_or_the_other():
    prompts, encoder, model, plain, side = routed()
    changed = copy.deepcopy(plain)
    with torch.no_grad():
        mlp_output(changed, 1).weight.add_(side.delta)
    main, copied = (score(m, prompts, encoder.answers) for m in (plain, changed))
    # Never, by default; with a listener all positions of the last layer are computed, which rounds otherwise.
    np.testing.assert_allclose(score(model, prompts, encoder.answers), main, rtol=1e-4, atol=1e-5)
    side.editing = True
    ids, last = to_batch(prompts, np.arange(10), torch.device("cpu"))
    with torch.no_grad():
        answer_logits(model, ids, last, encoder.answers)
    activation = side.activation[torch.arange(10), last].numpy()
    side.editing = False
    side.threshold.fill_(float(np.median(activation)))
    got = score(model, prompts, encoder.answers, batch_size=4)
    above = activation > np.median(activation)
    assert 0 < above.sum() < 10
    np.testing.assert_allclose(got[~above], main[~above], atol=1e-6)
    assert (np.abs(got[above] - main[above]).max(1) > 1e-4).all()
    side.threshold.fill_(-1.0)
    np.testing.assert_allclose(score(model, prompts, encoder.answers), copied, atol=1e-5)


def test_activation_is_the_mean_over_tokens_and_padding_has_no_say():
    prompts, encoder, model, plain, side = routed()
    side.editing = True
    for k in range(10):
        keys = []
        handle = mlp_output(plain, 1).register_forward_hook(lambda m, a, y, keys=keys: keys.append(a[0][0]))
        ids, last = to_batch(prompts, np.array([k]), torch.device("cpu"))
        with torch.no_grad():
            answer_logits(plain, ids, last, encoder.answers)
            answer_logits(model, *to_batch(prompts, np.arange(10), torch.device("cpu")), encoder.answers)
        handle.remove()
        want = (keys[0] @ side.delta.T).norm(dim=-1).mean()
        torch.testing.assert_close(side.activation[k, last[0]].detach(), want.detach())


def test_margin_loss_worked_out():
    config = WiseConfig(margin_scale=0.1)  # margins .5, 2, 1
    inside, outside = torch.tensor([3.0, 1.5]), torch.tensor([0.2, 1.0])
    want = 0.5 + 0.5 + 0.5  # one retained prompt, one forgotten, one pair
    assert float(margin_loss(inside, outside, config)) == pytest.approx(want)
    assert float(margin_loss(inside + 9, outside * 0, config)) == 0


def test_a_prompt_that_misses_its_margin_is_not_thinned_out_by_those_that_keep_it():
    config = WiseConfig(margin_scale=0.1)
    inside = torch.full((4,), 9.0)
    one, many = (torch.tensor([2.5] + [0.0] * n, requires_grad=True) for n in (0, 31))
    for outside in (one, many):
        margin_loss(inside, outside, config).backward()
    assert one.grad[0] == many.grad[0] == 1


@pytest.mark.parametrize("bound", [1.0, 1e-3])
def test_wise_leaves_the_weights_and_stays_inside_its_mask(bound):
    task = made_task()
    looks = {"check_every": 2, "check_size": 60, "max_auc_drop": 1}
    config = WiseConfig(max_steps=4, margin_scale=0.05, lr=3.0, bound=bound, **looks)
    out = wise(task, config)
    old = task.original.model.state_dict()
    for name, value in out.model.state_dict().items():
        assert "side_memory" in name or torch.equal(value, old[name])
    side = next(m for m in out.model.modules() if hasattr(m, "delta"))
    assert (side.delta[~side.mask] == 0).all() and (side.delta != 0).any()
    assert float(side.mask.float().mean()) == pytest.approx(0.2, abs=0.05)
    assert side.delta.abs().max() <= config.bound
    assert out.n_trainable == int(side.mask.sum())


def test_rome_looks_at_what_it_hands_back_in_half_precision(monkeypatch):
    """Edits added to a bfloat16 weight one by one are rounded; as ranks beside an adapter they are not."""
    task = made_task("lora")
    for name, p in task.original.model.named_parameters():
        if "lora" not in name:
            p.data = p.data.to(torch.bfloat16)
    looked = []
    inner = Watch.look

    def look(self, model, *more):
        looked.append(model)
        return inner(self, model, *more)

    monkeypatch.setattr(Watch, "look", look)
    done = METHODS["rome"][0](task, RomeConfig(check_every=1, steps=2, max_auc_drop=1.0))
    prompts = task.forget_prompts
    np.testing.assert_array_equal(
        score(done.model, prompts, task.answers), score(looked[-1], prompts, task.answers)
    )
