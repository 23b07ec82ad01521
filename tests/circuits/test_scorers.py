"""What every scorer must keep to, and what only one of them promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from curerec.circuits import SCORERS
from curerec.circuits.activations import patching, recording, sites_of
from curerec.circuits.attribution import between
from curerec.circuits.edges import edge_scores
from curerec.circuits.passes import Cost, PairBatch, each_batch, margin, ran_out
from curerec.circuits.patching import patched_margins
from curerec.circuits.scorers import adapter, atp, atp_ig, exact, ig_node, relp
from curerec.errors import ConfigError, ModelError, PromptError
from curerec.recommender.score import answer_logits, to_batch
from made_cases import few
from made_double import doubled
from made_families import TYPES, in_double, lora_on, made_family_model, padded_on_the_left
from made_models import made_model, made_prompts, other_titles, shaken, with_lora

CLEAN, ENCODER = made_prompts(5)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CORRUPT = other_titles(CLEAN, WORDS)
PAIRED = [name for name in SCORERS if name != "adapter"]
LORA = with_lora(made_model(WORDS))


def whole_change(model):
    """m(x') - m(x), [n]."""
    clean, bad = patched_margins(model, CLEAN, CORRUPT, ANSWERS, [set(), set(sites_of(model).names)])
    return bad - clean


@pytest.mark.parametrize("name", SCORERS)
def test_the_contract_of_a_scorer(name):
    training = {m: m.training for m in LORA.modules()}
    flags = [p.requires_grad for p in LORA.parameters()]
    got = SCORERS[name](LORA, CLEAN, CORRUPT, ANSWERS, batch_size=3)
    assert got.scorer == name and got.names == sites_of(LORA).names
    assert got.values.shape == (len(CLEAN), len(got.names)) and got.values.dtype == np.float32
    assert np.isfinite(got.values).all() and np.abs(got.values).max(0).min() > 0
    assert got.cost.examples == len(CLEAN) and got.cost.forward_equivalents >= 2
    order = np.array([3, 0, 4, 2, 1])
    again = SCORERS[name](LORA, CLEAN.take(order), CORRUPT.take(order), ANSWERS, batch_size=5)
    np.testing.assert_allclose(again.values, got.values[order], atol=1e-5)
    assert training == {m: m.training for m in LORA.modules()}
    assert flags == [p.requires_grad for p in LORA.parameters()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in LORA.modules())
    assert all(p.grad is None for p in LORA.parameters())


@pytest.mark.parametrize("layers", [(0, 1), (1,)])
@pytest.mark.parametrize("name", SCORERS)
def test_some_modules_have_the_scores_that_they_have_among_all(name, layers):
    """Also where passes begin above states that are kept: with an adapter on the last layer alone."""
    model = lora_on(made_model(WORDS), layers=layers)
    asked = ("layers.1.mlp", "layers.1.head.0")
    every = SCORERS[name](model, CLEAN, CORRUPT, ANSWERS)
    some = SCORERS[name](model, CLEAN, CORRUPT, ANSWERS, among=asked)
    assert some.names == tuple(n for n in every.names if n in asked) and some.embedding is None
    np.testing.assert_allclose(some.values, every.among(asked).values, atol=1e-6)
    assert some.cost.forward_equivalents <= every.cost.forward_equivalents


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "phi"])
@pytest.mark.parametrize("name", ["atp", "atp_ig", "relp", "exact"])
def test_the_last_layer_at_the_answer_alone_scores_as_the_whole_one(name, model_type, monkeypatch):
    model, widths = made_family_model(model_type, WORDS), []
    site = sites_of(model).mlp["layers.1.mlp"]

    def scored():
        return SCORERS[name](model, CLEAN, CORRUPT, ANSWERS)

    monkeypatch.setattr(
        "curerec.circuits.activations.Sites.per_head",
        lambda self, x: widths.append(x.shape[1]) or x.unflatten(-1, (self.n_heads, -1)),
    )
    cut = scored()
    assert 1 in widths
    widths.clear()
    handle = site.register_forward_hook(lambda m, args, out: None)  # somebody listens: nothing is cut
    whole = scored()
    handle.remove()
    assert 1 not in widths
    np.testing.assert_allclose(cut.values, whole.values, atol=1e-6, rtol=1e-5)
    if cut.embedding is not None:
        np.testing.assert_allclose(cut.embedding, whole.embedding, atol=1e-6, rtol=1e-5)
    assert cut.cost == whole.cost


@pytest.mark.parametrize("name", PAIRED)
def test_a_prompt_patched_with_itself_scores_nothing(name):
    got = SCORERS[name](LORA, CLEAN, CLEAN, ANSWERS)
    np.testing.assert_allclose(got.values, 0, atol=1e-5)


@pytest.mark.slow_but("atp*", "exact", "relp", "adapter")
@pytest.mark.parametrize("name", SCORERS)
def test_training_mode_checkpointing_and_merged_adapters_change_nothing(name):
    model = with_lora(made_model(WORDS))
    plain = SCORERS[name](model, CLEAN, CORRUPT, ANSWERS).values
    model.gradient_checkpointing_enable()
    model.train()
    np.testing.assert_allclose(SCORERS[name](model, CLEAN, CORRUPT, ANSWERS).values, plain, atol=1e-5)
    assert model.training
    model.eval()
    model.merge_adapter()
    np.testing.assert_allclose(SCORERS[name](model, CLEAN, CORRUPT, ANSWERS).values, plain, atol=1e-4)


@pytest.mark.slow_but("gpt2")
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_side_of_the_padding_does_not_matter(model_type):
    model = lora_on(made_family_model(model_type, WORDS))
    plain = {name: scorer(model, CLEAN, CORRUPT, ANSWERS).values for name, scorer in SCORERS.items()}
    edges = edge_scores(model, CLEAN, CORRUPT, ANSWERS).values
    with padded_on_the_left():
        for name, scorer in SCORERS.items():
            got = scorer(model, CLEAN, CORRUPT, ANSWERS, batch_size=3).values
            np.testing.assert_allclose(got, plain[name], atol=1e-5, err_msg=name)
        got = edge_scores(model, CLEAN, CORRUPT, ANSWERS, batch_size=3).values
    np.testing.assert_allclose(got, edges, atol=1e-5)


@pytest.mark.parametrize("name", PAIRED)
def test_eager_attention_and_foreign_hooks_change_nothing(name):
    model = made_model(WORDS)
    plain = SCORERS[name](model, CLEAN, CORRUPT, ANSWERS).values
    model.set_attn_implementation("eager")
    seen = []
    handles = [m.register_forward_hook(lambda *a: seen.append(1)) for m in model.modules()]
    np.testing.assert_allclose(SCORERS[name](model, CLEAN, CORRUPT, ANSWERS).values, plain, atol=1e-5)
    assert seen and all(h.id in m._forward_hooks for h, m in zip(handles, model.modules(), strict=True))


@pytest.mark.parametrize("name", ["atp", "atp_ig", "relp", "exact"])
def test_half_precision_ranks_as_single_does(name):
    clean, _ = made_prompts(32)
    corrupt = other_titles(clean, WORDS)
    model = made_model(WORDS, layers=4)
    single = SCORERS[name](model, clean, corrupt, ANSWERS).values.mean(0)
    half = SCORERS[name](model.to(torch.bfloat16), clean, corrupt, ANSWERS)
    assert half.values.dtype == np.float32
    assert spearmanr(single, half.values.mean(0)).statistic >= 0.98


@pytest.mark.slow_but("llama")
@pytest.mark.parametrize("model_type", few(TYPES, ("llama", "phi")))
def test_the_midpoint_rule_accounts_for_the_whole_change_and_its_error_falls_by_the_square(model_type):
    few = {"gemma3_text": 100, "phi": 100}.get(model_type, 25)  # these two are steep: before, it falls faster
    with in_double(made_family_model(model_type, WORDS)) as model:
        want = whole_change(model)
        error = {
            (steps, rule): np.abs(
                atp_ig.score(model, CLEAN, CORRUPT, ANSWERS, steps=steps, rule=rule).embedding - want
            )
            for steps, rule in ((few, "midpoint"), (2 * few, "midpoint"), (50, "left"), (50, "right"))
        }
    best = error[2 * few, "midpoint"]
    assert (best < 0.01 * np.abs(want).max()).all()
    assert 3 < error[few, "midpoint"].sum() / best.sum() < 5
    assert min(error[50, "left"].sum(), error[50, "right"].sum()) > 10 * best.sum()


@pytest.mark.parametrize("model_type", TYPES)
def test_one_step_at_either_end_is_attribution_patching_there(model_type):
    """``left`` holds the corrupt end: what patching the clean prompt into the corrupt one would take away."""
    with in_double(made_family_model(model_type, WORDS)) as model:
        for rule, at, sign in (("right", (CLEAN, CORRUPT), 1), ("left", (CORRUPT, CLEAN), -1)):
            got = atp_ig.score(model, CLEAN, CORRUPT, ANSWERS, steps=1, rule=rule)
            want = atp.score(model, *at, ANSWERS)
            scale = np.abs(want.values).max()
            np.testing.assert_allclose(got.values, sign * want.values, rtol=1e-9, atol=1e-12 * scale)
            np.testing.assert_allclose(got.embedding, sign * want.embedding, rtol=1e-9, atol=1e-12 * scale)


def test_one_step_at_the_clean_end_is_plain_attribution_patching():
    one = atp_ig.score(LORA, CLEAN, CORRUPT, ANSWERS, steps=1, rule="right")
    np.testing.assert_allclose(one.values, atp.score(LORA, CLEAN, CORRUPT, ANSWERS).values, atol=1e-6)


def test_costs_keep_to_their_budget():
    assert atp.score(LORA, CLEAN, CORRUPT, ANSWERS).cost.forward_equivalents <= 5
    assert relp.score(LORA, CLEAN, CORRUPT, ANSWERS).cost.forward_equivalents <= 5
    assert atp_ig.score(LORA, CLEAN, CORRUPT, ANSWERS, steps=5).cost.forward_equivalents <= 13


@pytest.mark.slow
def test_integrating_a_modules_own_activation_gives_its_exact_effect():
    model = doubled(made_model(WORDS))
    want = exact.score(model, CLEAN, CORRUPT, ANSWERS).values
    error = {
        steps: np.abs(ig_node.score(model, CLEAN, CORRUPT, ANSWERS, steps=steps).values - want)
        for steps in (8, 16)
    }
    assert error[16].max() < 0.02 * np.abs(want).max()
    assert 3 < error[8].sum() / error[16].sum() < 5


@pytest.mark.parametrize("model_type", TYPES)
def test_relevance_is_conserved(model_type):
    """Without biases the linearised model is homogeneous: coefficient times input is the margin itself.

    Where they are capped (Gemma-2) it is that of ``u (1 - (z / cap)^2)``: the cap keeps its slope.
    """
    model = made_family_model(model_type, WORDS)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".bias"):
                p.zero_()
    ids, last = to_batch(CLEAN, np.arange(len(CLEAN)), torch.device("cpu"))
    label = torch.from_numpy(CLEAN.label.astype(np.int64))
    batch = PairBatch(np.arange(len(CLEAN)), ids, ids, last, label)
    cap = getattr(model.config, "final_logit_softcapping", None)
    assert (cap is not None) == (model_type == "gemma2")
    with in_double(model):
        x = between(model, batch, 1.0)
        z = answer_logits(model, ids, last, ANSWERS, inputs_embeds=x)
        plain = margin(z, label)
        with relp.linearised(model):
            m = margin(answer_logits(model, ids, last, ANSWERS, inputs_embeds=x), label)
        torch.testing.assert_close(m, plain, rtol=1e-12, atol=1e-12)
        (coefficient,) = torch.autograd.grad(m.sum(), x)
        (gradient,) = torch.autograd.grad(plain.sum(), x)
    share = z.detach() / cap if cap else None
    want = margin(cap * torch.atanh(share) * (1 - share**2), label) if cap else m
    entered = x  # GPT-2 adds its table of positions, which carries relevance as well
    if model_type == "gpt2":
        entered = x + model.transformer.wpe.weight[: x.shape[1]]
    got = (entered * coefficient).sum((1, 2))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert ((entered * gradient).sum((1, 2)) - want).abs().min() > 1e-4


def test_relp_of_the_last_mlp_by_hand():
    """It writes to the final norm alone, whose scale is a constant."""
    model = doubled(made_model(WORDS, layers=1))
    got = relp.score(model, CLEAN, CORRUPT, ANSWERS)
    block = model.model.layers[0]
    want = np.zeros(len(CLEAN))
    for n in range(len(CLEAN)):
        (ids, last), (other, _) = (to_batch(p, np.array([n]), torch.device("cpu")) for p in (CLEAN, CORRUPT))
        with torch.no_grad():
            sites = sites_of(model)
            with recording(sites) as a:
                answer_logits(model, ids, last, ANSWERS)
            with recording(sites) as b:
                answer_logits(model, other, last, ANSWERS)
            final = a["input"] + block.self_attn.o_proj(a["layers.0.attn"]) + a["layers.0.mlp"]
            scale = (final.square().mean(-1, keepdim=True) + model.model.norm.eps).rsqrt()
            delta = (b["layers.0.mlp"] - a["layers.0.mlp"])[0, last[0]]
            rows = model.lm_head.weight[list(ANSWERS)]
            slope = (rows[1] - rows[0]) * model.model.norm.weight * scale[0, last[0]]
            want[n] = (2 * int(CLEAN.label[n]) - 1) * float(delta @ slope)
    np.testing.assert_allclose(got.values[:, -1], want, rtol=1e-9, atol=1e-12)


def test_the_adapter_scorer_by_module_is_the_slope_of_scaling_its_branches():
    model = with_lora(made_model(WORDS), ["q_proj", "down_proj"])
    got = adapter.score(model, CLEAN, CORRUPT, ANSWERS)
    (ids, last), eps = to_batch(CLEAN, np.arange(len(CLEAN)), torch.device("cpu")), 1e-2
    label = torch.from_numpy(CLEAN.label.astype(np.int64))
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    value = []
    for factor in (1 - eps, 1 + eps):
        old = dict(layer.scaling)
        layer.scaling.update({k: v * factor for k, v in old.items()})
        with torch.no_grad():
            value.append(margin(answer_logits(model, ids, last, ANSWERS), label).numpy())
        layer.scaling.update(old)
    want = (value[0] - value[1]) / (2 * eps)
    np.testing.assert_allclose(got.values[:, got.names.index("layers.1.mlp")], want, rtol=1e-2, atol=1e-3)


def test_the_adapter_scorer_needs_to_know_what_was_before():
    model = made_model(WORDS)
    base = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ConfigError, match="base_state"):
        adapter.score(model, CLEAN, CORRUPT, ANSWERS)
    assert np.abs(adapter.score(shaken(model), CLEAN, CORRUPT, ANSWERS, base_state=base).values).max() > 1e-3


def test_the_gradient_of_a_patched_head_reads_that_head_alone():
    model, sites = made_model(WORDS), None
    sites = sites_of(model)
    ids, last = to_batch(CLEAN, np.arange(2), torch.device("cpu"))
    with torch.no_grad(), recording(sites) as acts:
        answer_logits(model, ids, last, ANSWERS)
    a = acts["layers.0.attn"].clone().requires_grad_()
    with patching(sites, {"layers.0.attn": a}, {"layers.0.head.2"}):
        logits = answer_logits(model, ids, last, ANSWERS)
    (grad,) = torch.autograd.grad(logits.sum(), a)
    moved = sites.per_head(grad).abs().amax((0, 1, 3)) > 0
    assert moved.tolist() == [False, False, True, False]


class TestMemory:
    """Out of memory: the batch is halved, the result is whole, and the record says so."""

    def run(self, room, error=torch.OutOfMemoryError):
        sizes, done, cost = [], np.zeros(len(CLEAN), int), Cost()

        def work(batch):
            sizes.append(len(batch.index))
            cost.forwards += len(batch.index)
            if len(batch.index) > room:
                raise error
            done[batch.index] += 1

        each_batch(made_model(WORDS), CLEAN, CORRUPT, 5, work, cost)
        return sizes, done, cost

    def test_enough(self):
        sizes, done, cost = self.run(5)
        assert sizes == [5] and (done == 1).all() and cost.notes() == ()

    def test_halved_until_it_fits(self):
        sizes, done, cost = self.run(1)
        assert sizes == [5, 2, 1, 1, 1, 1, 1] and (done == 1).all()
        assert cost.halved == 2 and cost.forwards == 5 and cost.smallest_batch == 1
        assert "went on with 1 pairs" in cost.notes()[0]

    @pytest.mark.parametrize(
        "said",
        [
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you "
            "tried to allocate 8000000000000 bytes. Error code 12 (Cannot allocate memory)",
            "[enforce fail at alloc_cpu.cpp:115] data. DefaultCPUAllocator: not enough memory: you tried to "
            "allocate 8000000000000 bytes.",
        ],
    )
    def test_a_cpu_says_it_in_its_own_way(self, said):
        sizes, done, cost = self.run(2, RuntimeError(said))
        assert sizes == [5, 2, 2, 1] and (done == 1).all() and cost.halved == 1

    def test_what_this_machine_says_is_understood(self):
        with pytest.raises(RuntimeError) as failed:
            torch.empty(2**60, dtype=torch.uint8, device="cpu")
        assert ran_out(failed.value)

    def test_other_errors_are_let_through(self):
        with pytest.raises(RuntimeError, match="shapes"):
            self.run(2, RuntimeError("shapes cannot be multiplied"))

    def test_nothing_fits(self):
        with pytest.raises(ModelError, match="one pair"):
            self.run(0)


@pytest.mark.parametrize("name", SCORERS)
def test_no_pairs_are_refused(name):
    none = CLEAN.take(np.zeros(0, int))
    with pytest.raises(PromptError, match="empty"):
        SCORERS[name](LORA, none, none, ANSWERS)
