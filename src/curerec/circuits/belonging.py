"""Which update units belong to which heads and MLPs, and to a core circuit."""

from __future__ import annotations

from typing import Any

import numpy as np

from curerec.circuits.activations import sites_of
from curerec.recommender.units import Granularity, Place, Units, units_of
from curerec.records import Circuit


def in_core(circuit: Circuit, units: Units) -> np.ndarray:
    """Whether each unit belongs to the core circuit, bool [n_units].

    A unit of one head goes with its head, one of an MLP with the MLP, one that several heads share (a row of
    keys or values, of o_proj, a whole projection, a norm) with any of those. Embedding and final norm are
    inside.
    """
    core = {circuit.modules[k] for k in circuit.core}

    def inside(place: Place) -> bool:
        return place.layer is None or any(serves(place, name) for name in core)

    known: dict[Place, bool] = {}
    for place in units.places:
        if place not in known:
            known[place] = inside(place)
    return np.asarray([known[place] for place in units.places])


def modules_with_units(model: Any, granularity: Granularity = "projection") -> tuple[str, ...]:
    """Heads and MLPs that some unit belongs to; all, where none has one (an adapter on the embedding).

    Whole projections say it of rows and ranks, too: what they have units of has rows and ranks of every head.
    Of heads as units keys and values that several share are the first one's alone.

    Args:
        model: fine-tuned.
        granularity: of the units.
    """
    names = sites_of(model).names
    of: Granularity = "head_mlp" if granularity == "head_mlp" else "projection"
    places = set(units_of(model, of).places)
    holding = tuple(name for name in names if any(serves(place, name) for place in places))
    return holding or names


def serves(place: Place, module: str) -> bool:
    """Whether a unit belongs to a head or an MLP.

    >>> serves(Place(0, "q_proj", 1, "attn"), "layers.0.head.1")
    True
    >>> [serves(Place(0, "k_proj", 1, "attn", share=3), f"layers.0.head.{h}") for h in (1, 3, 5, 6)]
    [False, True, True, False]
    >>> [serves(Place(0, "o_proj", None, "attn"), name) for name in ("layers.0.head.1", "layers.0.mlp")]
    [True, False]
    """
    if place.layer is None or not module.startswith(f"layers.{place.layer}."):
        return False
    if place.head is not None:
        _, is_head, head = module.partition(".head.")
        return bool(is_head) and int(head) // place.share == place.head
    return place.block in ("both", "mlp" if module.endswith(".mlp") else "attn")
