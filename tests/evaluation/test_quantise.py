"""Rounded weights: the definitions, parity with bitsandbytes, merged adapters, transposed maps."""

from __future__ import annotations

import pytest
import torch

from curerec.evaluation import METRICS
from curerec.evaluation.metric import CannotError, evaluate
from curerec.evaluation.quantise import BLOCK, NF4, int8, nf4, quantised
from curerec.recommender.families import family_of
from curerec.recommender.families.base import linear_of
from curerec.recommender.storage import NOT_STORABLE
from made_models import made_encoder
from made_scene import made_scene, same_state, state

SHAPES = [(64, 176), (16, 64), (10, 10), (3, 1000)]  # 176 is no multiple of a block


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_within_half_a_step_of_its_row_and_keeps_the_largest(shape):
    w = torch.randn(shape)
    step = w.abs().amax(1, keepdim=True) / 127
    assert ((int8(w) - w).abs() <= step / 2 * (1 + 1e-5)).all()
    assert torch.allclose(int8(w).abs().amax(1), w.abs().amax(1))
    assert torch.allclose(int8(int8(w)), int8(w), atol=1e-6)
    assert int8(torch.zeros(2, 3)).abs().max() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_takes_the_nearest_of_sixteen_in_each_block(shape):
    w = torch.randn(shape)
    flat, found = w.flatten(), nf4(w).flatten()
    code = torch.tensor(NF4)
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        scale = block.abs().max()
        nearest = code[(block[:, None] / scale - code).abs().argmin(1)] * scale
        assert torch.allclose(found[start : start + BLOCK], nearest, atol=1e-6)
    assert nf4(torch.zeros(3)).abs().max() == 0
    assert nf4(w.bfloat16()).dtype == torch.bfloat16


def test_parity_with_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    for shape in SHAPES:
        w = torch.randn(shape)
        # Flattened: on a CPU its dequantisation of rows that are no multiple of a block is wrong (0.50).
        theirs = functional.dequantize_4bit(
            *functional.quantize_4bit(w.flatten(), quant_type="nf4", blocksize=BLOCK)
        )
        assert torch.allclose(nf4(w).flatten(), theirs.flatten(), atol=1e-6)
        half = w.half()
        q, scale, _ = functional.int8_vectorwise_quant(half)
        off = (int8(half.float()) - q.float() * scale.float()[:, None] / 127).abs()
        assert (off > 1e-3).float().mean() < 1e-3  # halves rounded the other way in half precision


@pytest.mark.parametrize(("kind", "family"), [("full", "llama"), ("lora", "llama"), ("lora", "gpt2")])
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_all_linear_maps_are_rounded_with_the_adapter_in_them(kind, family, form):
    model = made_scene(kind, family=family).subject.model
    before = state(model)
    new = quantised(model, form)
    assert same_state(model, before)
    merged = model.merge_and_unload() if kind == "lora" else model
    one, two = family_of(merged), family_of(new)
    rule = {"int8": int8, "nf4": nf4}[form]
    for old_layer, new_layer in zip(one.layer_list(merged), two.layer_list(new), strict=True):
        for projection in one.projections.values():
            old = linear_of(old_layer.get_submodule(projection.path)).weight.detach()
            found = linear_of(new_layer.get_submodule(projection.path)).weight.detach()
            expected = rule(old.T.contiguous()).T if one.transposed else rule(old)
            assert torch.allclose(found, expected, atol=1e-6) and not torch.equal(found, old)
    assert torch.equal(new.get_input_embeddings().weight, merged.get_input_embeddings().weight)


def test_all_models_of_the_scale_are_rounded():
    scene = made_scene()
    original = evaluate(METRICS["residual_nf4"], scene.of(scene.original))
    assert original.missing or original.value == pytest.approx(1)
    assert evaluate(METRICS["jsd_int8"], scene).value == pytest.approx(
        evaluate(METRICS["jsd"], scene).value, rel=0.2
    )
    assert made_encoder()  # the catalogue's words are those of the scene


def test_what_answers_beside_an_adapter_is_not_merged_away():
    """Else the number would be of a model without it: of the original, as far as the deleted data goes."""
    model = made_scene("lora").subject.model
    setattr(next(model.modules()).base_model, NOT_STORABLE, "it routes")
    with pytest.raises(CannotError, match="beside the adapter"):
        quantised(model, "int8")
