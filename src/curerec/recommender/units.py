"""Units of update: which slice of which parameter belongs to which named unit.

A unit is what gets a role and a rule of its own. Granularities (METHOD section 1): ``head_mlp``,
``projection``, ``row``. The map is the same for full fine-tuning (weights) and LoRA (rows of B, columns of A
for o_proj).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from curerec.errors import ModelError
from curerec.recommender.families import family_of

Granularity = Literal["head_mlp", "projection", "row"]
SHARED_FACTOR = -1  # a LoRA factor that several units use


@dataclass(frozen=True)
class Place:
    """Where a unit is drawn: layer (None: outside the layers), module, head (None: none)."""

    layer: int | None
    module: str
    head: int | None


@dataclass(frozen=True)
class Branch:
    """One linear map that fine-tuning changed, and how its outputs or inputs belong to units.

    Attributes:
        module: dotted name of the linear (or embedding, or norm) module in the model.
        kind: ``linear``, ``bias`` (of a linear map), ``embedding``, ``norm``, or ``head`` (the output
            embedding).
        dim: 0 if units own output rows, 1 if they own input columns.
        unit: int64 [rows or columns], the owning unit's index.
        weight: name of the parameter that units slice: the weight, or LoRA's B (dim 0) or A (dim 1).
        factor: LoRA's other factor, shared by all units of the branch; None with full fine-tuning.
    """

    module: str
    kind: Literal["linear", "bias", "embedding", "norm", "head"]
    dim: int
    unit: np.ndarray
    weight: str
    factor: str | None


@dataclass(frozen=True)
class Units:
    """All units of a model at one granularity.

    Attributes:
        names: [n_units].
        places: [n_units].
        branches: every changed map; each of its rows (or columns) names its unit.
        granularity: see :data:`Granularity`.
        types: [n_units], what a unit may be compared with (percentiles are taken within a type).
    """

    names: tuple[str, ...]
    places: tuple[Place, ...]
    branches: tuple[Branch, ...]
    granularity: Granularity
    types: np.ndarray


def units_of(model: Any, granularity: Granularity) -> Units:
    """The update units of a fine-tuned model.

    With LoRA only the adapter's branches have units; with full fine-tuning every projection with its bias,
    the token embedding and, where it is not tied to it, the output embedding (one unit a token row with
    ``row``, else one) and the norms (one unit each).

    Args:
        model: plain (full fine-tuning) or PEFT-wrapped decoder of a known family.
        granularity: size of a unit.

    Raises:
        ModelError: the model has no parameter that fine-tuning could have changed.
    """
    family = family_of(model)
    n_heads, n_kv, width = family.heads(model)
    modules = dict(model.named_modules())
    name_of = {id(m): n for n, m in modules.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names: dict[str, int] = {}
    places: list[Place] = []
    branches: list[Branch] = []

    def unit(name: str, place: Place) -> int:
        if name not in names:
            names[name] = len(places)
            places.append(place)
        return names[name]

    def add(path: str, kind: Any, layer: int | None, short: str) -> None:
        lora_b, lora_a = _lora_names(parameters, path)
        is_lora = lora_b is not None
        if not is_lora and hasattr(model, "peft_config"):
            return  # an adapter changes nothing but its own branches
        weight = modules[path].weight if not is_lora else parameters[lora_b]  # type: ignore[index]
        rows = weight.shape[0]
        prefix = short if layer is None else f"layers.{layer}.{short}"
        dim = 0
        if kind == "norm" or (kind in ("embedding", "head") and granularity != "row"):
            owner = np.full(rows, unit(prefix, Place(layer, short, None)))
        elif granularity == "row":
            head = {"q_proj": width, "k_proj": width, "v_proj": width}.get(short)
            owner = np.asarray(
                [
                    unit(f"{prefix}.row.{r}", Place(layer, short, r // head if head else None))
                    for r in range(rows)
                ]
            )
        elif granularity == "projection" or layer is None:
            owner = np.full(rows, unit(prefix, Place(layer, short, None)))
        elif short in ("q_proj", "k_proj", "v_proj", "o_proj"):
            # Key/value rows serve a whole group of query heads; they go with the group's first head.
            share = n_heads // n_kv if short in ("k_proj", "v_proj") else 1
            dim = 1 if short == "o_proj" else 0
            size = n_heads * width if short in ("q_proj", "o_proj") else n_kv * width
            owner = np.asarray(
                [
                    unit(
                        f"layers.{layer}.head.{(r // width) * share}",
                        Place(layer, "head", (r // width) * share),
                    )
                    for r in range(size)
                ]
            )
        else:
            owner = np.full(rows, unit(f"layers.{layer}.mlp", Place(layer, "mlp", None)))
        first, second = (lora_b, lora_a) if dim == 0 else (lora_a, lora_b)
        branches.append(Branch(path, kind, dim, owner, first or f"{path}.weight", second))
        if kind == "linear" and not is_lora and f"{path}.bias" in parameters:
            if dim == 1:  # columns belong to heads, but a bias is added once for all of them
                owner = np.full(rows, unit(f"{prefix}.bias", Place(layer, f"{short}.bias", None)))
            branches.append(Branch(path, "bias", 0, owner, f"{path}.bias", None))

    for index, layer in enumerate(family.layer_list(model)):
        prefix = name_of[id(layer)]
        for short, path in family.projections.items():
            add(f"{prefix}.{path}", "linear", index, short)
        if not hasattr(model, "peft_config"):
            for short, module in layer.named_modules():
                if type(module).__name__.endswith("Norm"):
                    add(f"{prefix}.{short}", "norm", index, short.rsplit(".", 1)[-1])
    if not hasattr(model, "peft_config"):
        decoder = family.decoder(model)
        root = name_of[id(decoder)]
        add(f"{root}.norm", "norm", None, "norm")
        tokens, head = decoder.get_input_embeddings(), model.get_output_embeddings()
        add(name_of[id(tokens)], "embedding", None, "embed_tokens")
        if head.weight is tokens.weight:  # read at both ends of the model: the same rows, the same units
            branches.append(replace(branches[-1], module=name_of[id(head)], kind="head"))
        else:
            add(name_of[id(head)], "head", None, "lm_head")
    if not branches:
        raise ModelError(
            "the adapter has no branch on a projection this package knows",
            where="adapter",
            mend="Fine-tune at least one of " + ", ".join(family.projections),
        )
    kinds = [
        p.module if granularity != "head_mlp" else ("head" if p.head is not None else p.module)
        for p in places
    ]
    return Units(tuple(names), tuple(places), tuple(branches), granularity, np.asarray(kinds, dtype=object))


def _lora_names(parameters: dict[str, torch.nn.Parameter], path: str) -> tuple[str | None, str | None]:
    found = [n for n in parameters if n.startswith(f"{path}.lora_B.") and n.endswith(".weight")]
    if not found:
        return None, None
    return found[0], found[0].replace(".lora_B.", ".lora_A.")
