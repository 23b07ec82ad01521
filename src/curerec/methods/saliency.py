"""Single weights inside the units that can forget: which may move, and which are taken back first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from curerec.groups.assign import FORGET, RETAIN, SHARED
from curerec.methods.rules import Gradients, Masks, role_of_factor
from curerec.recommender.score import wide
from curerec.recommender.units import Units


def salient(units: Units, role: np.ndarray, gradient: Gradients, share: float) -> Masks:
    """Masks of the weights with the largest |g_f| in forget-specific and task-shared units.

    What is to be forgotten lies in few weights: on the demo a tenth of them holds 97 % of the squared forget
    gradient (docs/method.md). All others stay as they were trained, also within a unit that forgets.
    Retain-specific units learn as a whole; frozen ones have no weight in a mask.

    Args:
        units: of the model.
        role: codes of :data:`curerec.records.ROLES`, int [n_units].
        gradient: of the forget loss at theta_o, by parameter name.
        share: of all weights in ``gradient``, at most so many are taken.

    Returns:
        By parameter name, bool, shaped like the parameters.

    Source: weight saliency, SalUn (Fan et al. 2024, arXiv 2310.12508, eq. 3), where the threshold runs over
    the whole model; inside groups it is this project's own.
    """
    forgets, learns = _places(units, role, gradient)
    most = _largest({n: wide(gradient[n]).abs() for n in forgets}, forgets, share)
    return {name: most[name] | learns[name] for name in most}


def remembering(
    units: Units, role: np.ndarray, gradient: Gradients, changes: Gradients, share: float
) -> Masks:
    """Masks of the weights in whose change by fine-tuning D_f is remembered, in units that can forget.

    ``g_f * dW`` is, to first order, what the forget loss falls by when a weight goes back to where
    fine-tuning started: the scorer ``adapter`` (:mod:`curerec.circuits.adapter`), weight by weight and with
    its sign. Where it is negative, going back would write memory instead: a unit that is taken back whole
    loses by those weights two fifths of what it gains by the others (docs/method.md).

    Args:
        units: of the model.
        role: codes of :data:`curerec.records.ROLES`, int [n_units].
        gradient: of the forget loss at theta_o, by parameter name.
        changes: what going back takes off, by parameter name: :func:`curerec.methods.rollback.changes`.
        share: of all weights in ``gradient``, at most so many are taken: those with the largest product, of
            the positive ones.

    Returns:
        By parameter name, bool, shaped like the parameters.

    Source: this project's own; first-order importance of a weight is Molchanov et al. 2019 (arXiv
    1906.10771), there of the weight itself and squared.
    """
    forgets, _ = _places(units, role, gradient)
    none = {n: torch.zeros_like(gradient[n], dtype=torch.bool) for n in forgets}
    able = {n: inside for n, inside in forgets.items() if n in changes}
    products = {n: wide(gradient[n]) * wide(changes[n]) for n in able}
    return none | _largest(products, able, share, of=sum(v.numel() for v in forgets.values()))


def attributed(masks: Masks, gradient: Gradients, changes: Gradients) -> float:
    """Fall of the forget loss to first order if the weights of a mask went all the way back, in its unit."""
    return sum(
        float((gradient[n].double() * changes[n].double() * mask).sum())
        for n, mask in masks.items()
        if n in changes
    )


def at_random(
    units: Units,
    role: np.ndarray,
    gradient: Gradients,
    count: int,
    *,
    seed: int,
    salt: int = 98,
    among: Masks | None = None,
) -> Masks:
    """Masks of so many weights drawn at random from the units that can forget.

    What the twin of ``cure`` moves: its groups are random, and so are the weights in them.

    Args:
        units, role, gradient: as for :func:`salient`; of the gradient only the shapes count.
        count: weights, :func:`n_salient` of the masks that the twin is to equal in size; all there are where
            the units have fewer.
        seed, salt: of the draw.
        among: of the parameters named, bool as they are shaped, the weights that may be drawn; None: all.

    Returns:
        Masks with all weights of units that only learn, too, as of :func:`salient`.
    """
    forgets, learns = _places(units, role, gradient)
    for name, mask in (among or {}).items():
        if name in forgets:
            forgets[name] = forgets[name] & mask
    at = torch.nonzero(torch.cat([inside.flatten() for inside in forgets.values()]))[:, 0]
    order = torch.from_numpy(np.random.default_rng([seed, salt]).permutation(len(at))).to(at.device)
    sizes = [inside.numel() for inside in forgets.values()]
    taken = torch.zeros(sum(sizes), dtype=torch.bool, device=at.device)
    taken[at[order[:count]]] = True
    parts = zip(forgets, taken.split(sizes), strict=True)
    return {name: part.view_as(forgets[name]) | learns[name] for name, part in parts}


def n_salient(masks: Masks, units: Units, role: np.ndarray) -> int:
    """Weights of a mask in units that can forget."""
    return sum(int(mask.sum()) for mask in only_forgetting(masks, units, role).values())


def share_of_gradient(masks: Masks, units: Units, role: np.ndarray, gradient: Gradients) -> float:
    """Share of the squared forget gradient on the weights of a mask that may move for forgetting."""
    square = {name: gradient[name].double().square() for name in masks}
    held = sum(float((square[n] * mask).sum()) for n, mask in only_forgetting(masks, units, role).items())
    return held / max(sum(float(v.sum()) for v in square.values()), float(np.finfo(np.float64).tiny))


def only_forgetting(masks: Masks, units: Units, role: np.ndarray) -> Masks:
    """Of each mask, the weights in units that can forget."""
    forgets, _ = _places(units, role, masks)
    return {name: masks[name] & inside for name, inside in forgets.items()}


def _largest(values: Gradients, inside: Masks, share: float, *, of: int | None = None) -> Masks:
    """The largest positive values inside, at most a share of ``of`` (all there are)."""
    inner = {name: v * inside[name] for name, v in values.items()}
    every = torch.cat([v.flatten() for v in inner.values()]) if inner else torch.zeros(0)
    most = min(int(share * (of or len(every))), int((every > 0).sum()))
    if most == 0:
        return {name: torch.zeros_like(mask) for name, mask in inside.items()}
    least = every.topk(most).values[-1]
    return {name: (v >= least) & inside[name] for name, v in inner.items()}


def _places(units: Units, role: np.ndarray, gradient: Gradients) -> tuple[Masks, Masks]:
    """Of each parameter, the weights of units that can forget, and those of units that only learn."""
    codes = torch.from_numpy(role)

    def of(wanted: Callable[[torch.Tensor], torch.Tensor]) -> Masks:
        out: Masks = {}
        for branch in units.branches:
            for name, dim in branch.slices:
                if name in gradient and name not in out:  # tied embeddings appear twice
                    like = gradient[name]
                    rows = wanted(codes[branch.unit]).to(like.device)
                    shape = [-1 if d == dim else 1 for d in range(like.ndim)]
                    out[name] = rows.view(shape).expand_as(like)
            if branch.shared is not None and branch.shared in gradient:
                like = gradient[branch.shared]
                role = role_of_factor(codes[branch.unit])
                out[branch.shared] = wanted(role).to(like.device).expand_as(like)
        return out

    return of(lambda r: (r == FORGET) | (r == SHARED)), of(lambda r: r == RETAIN)
