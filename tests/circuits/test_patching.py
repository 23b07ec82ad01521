"""Attribution patching against finite differences, activation patching against a patch by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.circuits import SCORERS
from curerec.circuits.activations import patching, recording, sites_of
from curerec.circuits.passes import margin
from curerec.circuits.patching import atp, exact, most_falling, patched_margins
from curerec.errors import PromptError
from curerec.prompts.encoding import Prompts
from curerec.recommender.score import answer_logits, to_batch
from made_double import doubled
from made_models import made_model, made_prompts, other_titles, with_lora

CPU = torch.device("cpu")
CLEAN, ENCODER = made_prompts(7)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers


CORRUPT = other_titles(CLEAN, WORDS)
MODELS = {
    "llama": lambda: made_model(WORDS),
    "qwen2": lambda: made_model(WORDS, "qwen2", tied=False),
    "qwen3": lambda: made_model(WORDS, "qwen3"),
    "lora": lambda: with_lora(made_model(WORDS)),
}
MODEL, LORA = MODELS["llama"](), MODELS["lora"]()
NAMES = sites_of(MODEL).names


def clean_margins(model, prompts):
    ids, last = to_batch(prompts, np.arange(len(prompts)), CPU)
    label = torch.from_numpy(prompts.label.astype(np.int64))
    with torch.no_grad():
        return margin(answer_logits(model, ids, last, ANSWERS), label).numpy()


def flipped_label(prompts, like):
    return Prompts(prompts.ids, prompts.offsets, prompts.spans, like.label)


@pytest.mark.parametrize("kind", MODELS)
def test_atp_against_central_differences(kind):
    """d/de of the margin with the module at a + e (a' - a), at e = 0, for every module and pair."""
    model = doubled(MODELS[kind]())
    sites = sites_of(model)
    got, names = atp(model, CLEAN, CORRUPT, ANSWERS, batch_size=3)
    assert names == sites.names and got.shape == (len(CLEAN), len(names)) and got.dtype == np.float64
    eps = 1e-5
    scale = np.abs(got).max()
    for n in range(len(CLEAN)):
        (ids, last), (other, _) = (to_batch(p, np.array([n]), CPU) for p in (CLEAN, CORRUPT))
        label = torch.tensor([int(CLEAN.label[n])])
        with torch.no_grad():
            with recording(sites) as a:
                answer_logits(model, ids, last, ANSWERS)
            with recording(sites) as b:
                answer_logits(model, other, last, ANSWERS)
            for k, name in enumerate(names):
                value = []
                for e in (eps, -eps):
                    moved = {s: a[s] + e * (b[s] - a[s]) for s in a}
                    with patching(sites, moved, {name}):
                        value.append(float(margin(answer_logits(model, ids, last, ANSWERS), label)))
                want = (value[0] - value[1]) / (2 * eps)
                assert got[n, k] == pytest.approx(want, rel=1e-6, abs=1e-8 * scale), name
    assert np.abs(got).max(0).min() > 1e-4  # every module was put to the test


@pytest.mark.parametrize("kind", MODELS)
def test_atp_is_nearly_exact_for_small_changes(kind):
    """Corrupt activations a hair from the clean ones: the first order is all there is."""
    model = MODELS[kind]()
    sites = sites_of(model)
    scores, names = atp(model, CLEAN, CORRUPT, ANSWERS)
    ids, last = to_batch(CLEAN, np.arange(7), CPU)
    other, _ = to_batch(CORRUPT, np.arange(7), CPU)
    label = torch.from_numpy(CLEAN.label.astype(np.int64))
    with torch.no_grad():
        with recording(sites) as a:
            plain = margin(answer_logits(model, ids, last, ANSWERS), label)
        with recording(sites) as b:
            answer_logits(model, other, last, ANSWERS)
        for k, name in enumerate(names):
            moved = {s: a[s] + 0.02 * (b[s] - a[s]) for s in a}
            with patching(sites, moved, {name}):
                change = margin(answer_logits(model, ids, last, ANSWERS), label) - plain
            torch.testing.assert_close(change / 0.02, torch.from_numpy(scores[:, k]), atol=0.03, rtol=0.1)


def test_the_model_is_left_as_it_was():
    model = MODELS["lora"]()
    flags = [p.requires_grad for p in model.parameters()]
    atp(model, CLEAN, CORRUPT, ANSWERS)
    exact(model, CLEAN, CORRUPT, ANSWERS, NAMES[:2])
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", MODELS)
def test_patching_everything_is_the_corrupt_run_and_nothing_the_clean_one(kind):
    model = MODELS[kind]()
    everything, nothing = patched_margins(model, CLEAN, CORRUPT, ANSWERS, [set(NAMES), set()], batch_size=3)
    np.testing.assert_allclose(nothing, clean_margins(model, CLEAN), atol=1e-5)
    np.testing.assert_allclose(everything, clean_margins(model, flipped_label(CORRUPT, CLEAN)), atol=1e-5)
    assert np.abs(everything - nothing).max() > 1e-2


def test_patching_a_prompt_with_itself_changes_nothing():
    np.testing.assert_allclose(exact(MODEL, CLEAN, CLEAN, ANSWERS, NAMES), 0, atol=1e-5)
    scores, _ = atp(MODEL, CLEAN, CLEAN, ANSWERS)
    np.testing.assert_array_equal(scores, 0)


@pytest.mark.parametrize("name", ["layers.0.head.1", "layers.1.head.3", "layers.0.mlp", "layers.1.mlp"])
def test_exact_against_a_patch_by_hand(name, monkeypatch):
    """The module's own forward replaced by one that keeps, then puts in, what the corrupt run had there."""
    got = exact(MODEL, CLEAN, CORRUPT, ANSWERS, [name], batch_size=2)[:, 0]
    before = clean_margins(MODEL, CLEAN)
    _, layer, *rest = name.split(".")
    block = MODEL.model.layers[int(layer)]
    module = block.mlp if rest == ["mlp"] else block.self_attn.o_proj
    forward, kept = module.forward, {}
    head = slice(4 * int(rest[1]), 4 * int(rest[1]) + 4) if len(rest) == 2 else None

    def by_hand(x):
        if "x" not in kept:
            kept["x"] = x if head else forward(x)
        if head is None:
            return kept["x"]
        x = x.clone()
        x[..., head] = kept["x"][..., head]
        return forward(x)

    monkeypatch.setattr(module, "forward", by_hand)
    for n in range(len(CLEAN)):
        kept.clear()
        ids, _ = to_batch(CLEAN, np.array([n]), CPU)
        other, _ = to_batch(CORRUPT, np.array([n]), CPU)
        with torch.no_grad():
            MODEL(other)
            z = MODEL(ids).logits[0, -1]
        m = (2 * int(CLEAN.label[n]) - 1) * float(z[ANSWERS[1]] - z[ANSWERS[0]])
        assert got[n] == pytest.approx(m - before[n], abs=2e-5)


def test_scores_do_not_depend_on_batches_or_order():
    order = np.array([4, 0, 6, 2, 5, 1, 3])
    one, _ = atp(MODEL, CLEAN, CORRUPT, ANSWERS, batch_size=1)
    all_, _ = atp(MODEL, CLEAN.take(order), CORRUPT.take(order), ANSWERS)
    np.testing.assert_allclose(all_, one[order], atol=1e-5)
    runs = exact(MODEL, CLEAN.take(order), CORRUPT.take(order), ANSWERS, NAMES)
    np.testing.assert_allclose(
        runs, exact(MODEL, CLEAN, CORRUPT, ANSWERS, NAMES, batch_size=2)[order], atol=1e-5
    )


def test_modules_that_write_nothing_score_nothing():
    model = made_model(WORDS)
    live = {"layers.0.head.2", "layers.1.mlp"}
    with torch.no_grad():
        for k, layer in enumerate(model.model.layers):
            for h in range(4):
                if f"layers.{k}.head.{h}" not in live:
                    layer.self_attn.o_proj.weight[:, 4 * h : 4 * h + 4] = 0
            if f"layers.{k}.mlp" not in live:
                layer.mlp.down_proj.weight.zero_()
    scores, names = atp(model, CLEAN, CORRUPT, ANSWERS)
    runs = exact(model, CLEAN, CORRUPT, ANSWERS, names)
    for found in (scores, runs):
        assert {names[k] for k in np.flatnonzero(np.abs(found).max(0) > 1e-6)} == live


@pytest.mark.parametrize(
    ("falls", "match"),
    [([-1.0, 0.0, 2.0], "^counterfactuals: 1 of 3 corrupted"), ([-1.0, 0.0], "none of 2 corrupted")],
)
def test_too_few_falling_pairs_are_counted_before_any_are_left_out(falls, match):
    for keep in (1, 8):
        with pytest.raises(PromptError, match=match):
            most_falling(np.array(falls), keep)


def test_the_pairs_that_fall_most_stay_in_their_order():
    fall = np.array([3.0, -1.0, 1.0, 2.0, 0.0])
    assert most_falling(fall, 2).tolist() == [0, 3] and most_falling(fall, 9).tolist() == [0, 2, 3]
    assert most_falling(fall, 1).tolist() == [0]  # of the three that fall: no word of too few


def test_pairs_that_do_not_align_are_refused_by_position():
    none = CLEAN.take(np.zeros(0, int))
    order = np.argsort(CLEAN.lengths)
    for clean, corrupt, match in (
        (none, none, "empty or uneven"),
        (CLEAN, CORRUPT.take(np.arange(3)), "empty or uneven"),
        (CLEAN.take(order), CLEAN.take(order[::-1]), r"pair 1 has \d+ clean and \d+ corrupt tokens"),
    ):
        for call in (atp, lambda *a: exact(*a, NAMES[:1]), *SCORERS.values()):
            with pytest.raises(PromptError, match=match):
                call(LORA, clean, corrupt, ANSWERS)
