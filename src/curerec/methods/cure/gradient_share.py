"""What each unit can do towards forgetting: its share of the forget gradient."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.loop import free, tuned_names
from curerec.methods.rules import Gradients
from curerec.recommender import parallel
from curerec.recommender.units import Units, inner_products

CHUNKS = 8  # of a sample of D_f, at most; resamples are drawn over them


def gradient_shares(
    objective: ForgetObjective, units: Units, *, size: int, draws: int, seed: int
) -> tuple[Float[np.ndarray, " units"], Float[np.ndarray, "draws units"] | None]:
    """Squared length of the forget gradient at theta_o in each unit, as a share of the whole.

    To first order a step of fixed length on unit i lowers the forget loss by ``|g_f,i|``: units that hold
    little of the gradient cannot forget, whatever is stored in them, and updating them moves only what is to
    be kept. The attribution of fine-tuning's change (``circuits/path.py``) asks what a unit stores; of units
    chosen by it an update of equal cost gets less far (docs/method.md has the measurement).

    Args:
        objective: the forget loss; its ``at_original`` is set.
        units: of the model.
        size: at most so many of D_f are taken.
        draws: bootstrap resamples.
        seed: of sample and resamples.

    Returns:
        Shares, sum 1; and resampled shares, or None where all of D_f was taken: what is to be forgotten is
        then known. Resamples are of eight parts of the sample (of its examples, if fewer), each part's
        gradient as one draw.

    Source: this project's own; the paper states that modules are sorted by their contributions to the two
    objectives, not how these are measured.
    """
    grads = at_original(objective, size=size, seed=seed)
    gram = _gram(units, grads)
    products = parallel.as_first(gram.double().cpu().numpy())  # [parts, parts, units]
    score = _share(products.mean((0, 1))[None])[0]
    if len(grads) == 1:
        return score, None
    rng = np.random.default_rng([seed, 74])
    parts = len(grads)
    weights = rng.multinomial(parts, np.full(parts, 1 / parts), size=draws) / parts
    return score, _share(np.einsum("da,db,abu->du", weights, weights, products))


def at_original(objective: ForgetObjective, *, size: int, seed: int) -> list[Gradients]:
    """Gradients of the forget loss at theta_o, by parameter name: of D_f, or of parts of a sample.

    Their mean is left as ``objective.at_original``.

    Args:
        objective: the forget loss.
        size: at most so many of D_f are taken.
        seed: of the sample.
    """
    n = len(objective.prompts)
    rng = np.random.default_rng([seed, 72])
    index = np.arange(n) if n <= size else rng.choice(n, size, replace=False)
    parts = [index] if n <= size else np.array_split(index, min(CHUNKS, size))
    model = objective.task.copy_of_model()
    names = tuned_names(model)
    params = free(model, names)
    grads = [dict(zip(names, objective.gradient(model, params, part)[0], strict=True)) for part in parts]
    objective.at_original = {name: torch.stack([g[name] for g in grads]).mean(0) for name in names}
    return grads


def _gram(units: Units, grads: list[Gradients]) -> torch.Tensor:
    """Inner products of each two gradients by unit, [parts, parts, units]; of a pair taken once."""
    rows: list[list[torch.Tensor]] = []
    for k, a in enumerate(grads):
        rows.append([rows[j][k] if j < k else inner_products(units, a, grads[j]) for j in range(len(grads))])
    return torch.stack([torch.stack(row) for row in rows])


def _share(squares: np.ndarray) -> np.ndarray:
    squares = np.maximum(squares, 0.0)
    return squares / np.maximum(squares.sum(-1, keepdims=True), np.finfo(np.float64).tiny)
