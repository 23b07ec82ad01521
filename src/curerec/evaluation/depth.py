"""How deep the forgetting goes: does the memory still sit in the hidden states of some layer?"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from curerec.evaluation.bootstrap import enough_users, interval, weights
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.metric import CannotError, Metric, Value
from curerec.evaluation.scene import Scene
from curerec.evaluation.utility import nll
from curerec.recommender.families import family_of
from curerec.recommender.layers import beginning_at, outputs_of
from curerec.recommender.score import answer_logits, by_length, device_of, to_batch

SIZE = 256  # examples of D_f
LEAST = 0.01  # nats: a layer whose patch costs the retrained states less carries nothing to be measured
Z = 2.0  # standard errors by which it must lie above 0

UNLIKE = "several models answer together, or the layers are not the original's: no state can be patched"
SINGLE = "of a single deleted example no layer can be said to carry more than chance"
SHALLOW = "in no layer does the retrained model's state cost the answer anything: nothing to compare"


def drops(scene: Scene, one: Candidate) -> Float[np.ndarray, "layers n"]:
    """What patching a model's hidden states into the original costs the true answer, nats; computed once.

    ``log p_o(y | x) - log p_o(y | x, h_l := h_l(model))``: in one pass of the original, the output of layer l
    at every position is replaced by the model's own.

    Args:
        scene: with the original and at most 256 examples of D_f, evenly spread.
        one: model whose states are patched in.

    Raises:
        CannotError: the two models have no layers in common.
    """
    key = ("depth", id(scene.original))
    if key in one.memo:
        return one.memo[key]
    assert scene.original is not None
    ground, host, guest = scene.ground, scene.original.model, one.model
    if host is None or guest is None:
        raise CannotError("the models themselves are not at hand")
    if hasattr(host, "answer_logits") or hasattr(guest, "answer_logits"):
        raise CannotError(UNLIKE)
    layers = (family_of(host).layer_list(host), family_of(guest).layer_list(guest))
    if len(layers[0]) != len(layers[1]) or host.config.hidden_size != guest.config.hidden_size:
        raise CannotError(UNLIKE)
    chosen = ground.spread("forget", SIZE)
    prompts = ground.prompts("forget").take(chosen)
    label = prompts.label
    out = np.zeros((len(layers[0]), len(prompts)))
    device, answers = device_of(host), ground.recommender.answers
    training = host.training, guest.training
    host.eval(), guest.eval()
    with torch.inference_mode():
        for index in by_length(prompts, 64):
            batch = to_batch(prompts, index, device)
            plain = nll(answer_logits(host, *batch, answers).cpu().numpy(), label[index])
            with outputs_of(layers[1]) as states:
                answer_logits(guest, *batch, answers)
            for k in range(len(layers[0])):
                with beginning_at(layers[0], k + 1, states):
                    patched = answer_logits(host, *batch, answers)
                out[k, index] = nll(patched.cpu().numpy(), label[index]) - plain
    host.train(training[0]), guest.train(training[1])
    one.memo[key] = out
    return out


def erased(
    mine: np.ndarray, theirs: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the retrained states' drop that a model's states cause, by layer.

    ``clip(mean D_u(l) / mean D_r(l), 0, 1)``, for layers with ``mean D_r(l) > max(0.01, 2 standard errors)``.

    Args:
        mine: drops of the model, [layers, n], nats.
        theirs: drops of the retrained model (mean over several), [layers, n].
        weight: of the examples in some bootstrap draws, [k, n]; None: equal, k = 1.

    Returns:
        shares float64 [k, kept layers], and which layers were kept, bool [layers].

    Example:
        >>> erased(np.array([[0.1, 0.1], [0.5, 0.5]]), np.array([[0.2, 0.2], [0.4, 0.4]]))[0].tolist()
        [[0.5, 1.0]]
    """
    n = theirs.shape[1]
    error = theirs.std(1, ddof=1) / np.sqrt(n)
    kept = theirs.mean(1) > np.maximum(LEAST, Z * error)
    w = np.full((1, n), 1 / n) if weight is None else weight
    above, below = w @ mine[kept].T, w @ theirs[kept].T
    return np.clip(np.divide(above, below, out=np.ones_like(above), where=below > 0), 0, 1), kept


def _compute(scene: Scene) -> Value:
    if len(scene.split.forget) < 2:
        raise CannotError(SINGLE)
    mine = drops(scene, scene.subject)
    theirs = np.mean([drops(scene, r) for r in scene.retrains], axis=0)
    shares, kept = erased(mine, theirs)
    details = {"drop": mine.mean(1).tolist(), "drop_retrain": theirs.mean(1).tolist(), "kept": kept.tolist()}
    if not kept.any():
        raise CannotError(SHALLOW)
    ground = scene.ground
    user = ground.user("forget")[ground.spread("forget", SIZE)]
    low, high = None, None
    if enough_users(user):
        drawn = weights(len(user), draws=ground.draws, seed=ground.seed, groups=user)
        low, high = interval(np.concatenate([erased(mine, theirs, w)[0].mean(1) for w in drawn]))
    return Value(float(shares.mean()), low, high, n=len(user), details=details)


DEPTH = Metric(
    "depth",
    1,
    "share",
    "higher",
    ("model", "original", "retrain"),
    "mean over layers of clip(D_u / D_r, 0, 1), D the mean fall of the answer's log-probability when the "
    "layer's state is patched into the original; 0 = memory intact, 1 = gone as from a retrained model",
    "after the Unlearning Depth Score, arXiv 2605.24614; here all positions, layers equal",
    _compute,
    cost="attack",
)
