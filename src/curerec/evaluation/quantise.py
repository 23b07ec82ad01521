"""Does rounding the weights bring the memory back: distance and membership after int8 and nf4."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float

from curerec.evaluation.auc import auc, auc_draws
from curerec.evaluation.bootstrap import interval_of_two
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.distance import answers_apart
from curerec.evaluation.divergence import jsd_each
from curerec.evaluation.loss_attack import attacked
from curerec.evaluation.metric import CannotError, Metric, Need, Value
from curerec.evaluation.residual import residual_of
from curerec.evaluation.scene import Scene
from curerec.recommender.families import family_of
from curerec.recommender.families.base import linear_of
from curerec.recommender.storage import NOT_STORABLE

BLOCK = 64
#: The sixteen values of NF4: quantiles of a normal distribution, scaled to [-1, 1], 0 among them.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def int8(weight: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
    """The weight after rounding to int8, one scale an output row: ``s round(w / s)``, ``s = max|w| / 127``.

    Args:
        weight: [out, in].

    Returns:
        The same shape and dtype.

    Source: LLM.int8, arXiv 2208.07339, section 2 (vector-wise, absolute maximum), weights alone.

    Example:
        >>> int8(torch.tensor([[127.0, 0.4, -3.6]])).tolist()
        [[127.0, 0.0, -4.0]]
    """
    scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return ((weight.float() / scale).round() * scale).to(weight.dtype)


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """The weight after rounding to 4-bit NormalFloat in blocks of 64, scales kept in float32.

    Each block of the flattened weight is divided by its absolute maximum, and each value replaced by the
    nearest of the sixteen of :data:`NF4`.

    Args:
        weight: any shape.

    Returns:
        The same shape and dtype.

    Source: QLoRA, arXiv 2305.14314, section 3, without its second quantisation (of the scales).

    Example:
        >>> nf4(torch.tensor([2.0, 0.1, -1.9])).tolist()
        [2.0, 0.15916059911251068, -2.0]
    """
    flat = weight.float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-12)
    code = torch.tensor(NF4, device=flat.device)
    middle = (code[1:] + code[:-1]) / 2
    rounded = code[torch.bucketize(blocks / scale, middle)] * scale
    return rounded.flatten()[: len(flat)].view_as(weight).to(weight.dtype)


FORMATS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"int8": int8, "nf4": nf4}


@torch.no_grad()
def quantised(model: Any, form: str) -> Any:
    """A copy of a model with its adapter merged and the linear maps of its layers rounded.

    Embeddings, norms, biases and the output embedding stay as they are, as they do in common practice.

    Args:
        model: plain or PEFT-wrapped; left as it is.
        form: key of :data:`FORMATS`.

    Raises:
        CannotError: several models answer together, the base is in few bits already, or something that
            answers beside an adapter would be lost in merging it.
    """
    if hasattr(model, "answer_logits"):
        raise CannotError("several models answer together: there are no merged weights to round")
    if any(not p.is_floating_point() for p in model.parameters()):
        raise CannotError("its base is packed in 8 or 4 bits already")
    if hasattr(model, "merge_and_unload") and any(hasattr(m, NOT_STORABLE) for m in model.modules()):
        raise CannotError("it answers some prompts from beside the adapter: merging would drop that")
    new = copy.deepcopy(model)
    if hasattr(new, "merge_and_unload"):
        new = new.merge_and_unload()
    family = family_of(new)
    for layer in family.layer_list(new):
        for projection in family.projections.values():
            linear = linear_of(layer.get_submodule(projection.path))
            weight = linear.weight.data.T if family.transposed else linear.weight.data
            rounded = FORMATS[form](weight.contiguous())
            linear.weight.data.copy_(rounded.T if family.transposed else rounded)
    return new.eval()


def rounded(one: Candidate, form: str) -> Candidate:
    """A candidate's quantised copy; made once."""
    key = ("quantised", form)
    if key not in one.memo:
        if one.model is None:
            raise CannotError("the model itself is not at hand")
        one.memo[key] = Candidate(quantised(one.model, form), rebuild=one.rebuild)
    return one.memo[key]


def _rounded(scene: Scene, form: str) -> Scene:
    """The scene in which every model was rounded: what rounding itself adds is in the yardstick as well."""
    return Scene(
        scene.ground,
        rounded(scene.subject, form),
        None if scene.original is None else rounded(scene.original, form),
        tuple(rounded(r, form) for r in scene.retrains),
    )


def _membership(scene: Scene) -> Value:
    value, drawn = attacked(scene, scene.subject, auc, auc_draws)
    return Value(value, *interval_of_two(drawn, scene.pair), n=sum(map(len, scene.pair)))


def _gap(scene: Scene) -> Value:
    value, drawn = attacked(scene, scene.subject, auc, auc_draws)
    others = [attacked(scene, r, auc, auc_draws) for r in scene.retrains]
    low, high = interval_of_two(drawn - sum(d for _, d in others) / len(others), scene.pair)
    return Value(value - sum(v for v, _ in others) / len(others), low, high, n=sum(map(len, scene.pair)))


_MEASURES: dict[str, tuple[str, str, float | None, tuple[Need, ...], str, Callable[[Scene], Value]]] = {
    "jsd": (
        "nats",
        "lower",
        None,
        ("model", "retrain"),
        "jsd on D_f to the retrained models rounded alike",
        answers_apart(jsd_each, "forget"),
    ),
    "residual": (
        "1",
        "lower",
        None,
        ("model", "original", "retrain_seeds"),
        "residual with all models rounded alike; what rounding brings back is residual_* - residual",
        residual_of,
    ),
    "membership_auc": ("share", "target", 0.5, ("model", "control"), "membership_auc", _membership),
    "membership_gap": (
        "share",
        "target",
        0.0,
        ("model", "control", "retrain"),
        "membership_gap to the retrained models rounded alike",
        _gap,
    ),
}
QUANTISED = {
    f"{key}_{form}": Metric(
        f"{key}_{form}",
        2 if key.startswith("membership") else 1,  # 1: an interval of fewer than five rows, too
        unit,  # type: ignore[arg-type]
        better,  # type: ignore[arg-type]
        needs,
        f"{text}; after {form} of the merged linear maps of all layers",
        "Zhang et al. 2024, arXiv 2410.16454 (unlearning undone by quantisation); formats: QLoRA, LLM.int8",
        lambda scene, form=form, compute=compute: compute(_rounded(scene, form)),  # type: ignore[misc]
        target=target,
        cost="scoring",
    )
    for form in FORMATS
    for key, (unit, better, target, needs, text, compute) in _MEASURES.items()
}
