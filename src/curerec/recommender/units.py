"""Units of update: which slice of which parameter belongs to which named unit.

A unit is what gets a role and a rule of its own. Granularities (METHOD section 1): ``head_mlp``,
``projection``, ``row`` and, of LoRA alone, ``rank`` (:mod:`.units_rank`). The map is the same for full
fine-tuning (weights) and LoRA (rows of B for q, k and v, columns of A for o). A fused map (GPT-2's
``c_attn``) has the units of its parts: names are ``q_proj``, ``k_proj``, ... in every family, and LoRA's A,
which the parts share, is a factor that several units use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from curerec.errors import ModelError
from curerec.recommender.families import Family, family_of
from curerec.recommender.families.base import KEY, QUERY, VALUE, Block, Projection
from curerec.recommender.families.norms import is_norm

Granularity = Literal["head_mlp", "projection", "row", "rank"]
Kind = Literal["linear", "bias", "embedding", "positions", "norm", "head", "head_bias"]
SHARED_FACTOR = -1  # a LoRA factor that several units use


@dataclass(frozen=True)
class Place:
    """Where a unit is drawn: layer (None: outside the layers), module, head (None: none).

    ``block`` says whether it serves the layer's attention, its MLP or both. Of a row of keys or values
    ``head`` is that of keys and values, which ``share`` query heads use.
    """

    layer: int | None
    module: str
    head: int | None
    block: Block | None = None
    share: int = 1


@dataclass(frozen=True)
class Branch:
    """One map that fine-tuning changed, and how its outputs or inputs belong to units.

    Attributes:
        module: dotted name of the linear (or embedding, or norm) module in the model.
        kind: ``linear``, ``bias`` (of a linear map or a norm), ``embedding``, ``positions``, ``norm``,
            ``head`` (the output embedding) or ``head_bias``.
        dim: of the parameter ``weight``, the one that ``unit`` runs along.
        unit: int64 [rows or columns], the owning unit's index.
        weight: name of the parameter that units slice: the weight, or LoRA's B (outputs) or A (inputs).
        factor: LoRA's other factor, shared by all units of the branch; None with full fine-tuning.
        transposed: ``weight`` is [in, out] instead of [out, in].
        paired: nothing is shared: column k of ``factor`` is of the unit that row k of ``weight`` is of.
    """

    module: str
    kind: Kind
    dim: int
    unit: np.ndarray
    weight: str
    factor: str | None
    transposed: bool = False
    paired: bool = False

    @property
    def slices(self) -> list[tuple[str, int]]:
        """Parameters that :attr:`unit` runs along, each with the dimension that it does so on."""
        own = [(self.factor, 1)] if self.paired and self.factor else []
        return [(self.weight, self.dim), *own]

    @property
    def shared(self) -> str | None:
        """The factor that belongs to no unit alone, if there is one."""
        return None if self.paired else self.factor

    @property
    def inputs(self) -> bool:
        """Whether units own inputs of the map (heads at the output projection) instead of outputs."""
        return (self.dim == 1) != self.transposed


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
    the token embedding, absolute positions and, where it is not tied to it, the output embedding (one unit a
    token or position with ``row``, else one) and the norms (one unit each).

    Args:
        model: plain (full fine-tuning) or PEFT-wrapped decoder of a known family.
        granularity: size of a unit.

    Raises:
        ModelError: the model has no parameter that fine-tuning could have changed, or an adapter on a module
            that no unit knows; or ``rank`` of a model without an adapter, which has no rank-one terms.
    """
    if granularity == "rank":
        from curerec.recommender.units_rank import rank_units  # which builds on the projections' units

        return rank_units(model)
    family = family_of(model)
    modules = dict(model.named_modules())
    name_of = {id(m): n for n, m in modules.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    register = _Register(family, family.heads(model), granularity)
    branches: list[Branch] = []
    lora = hasattr(model, "peft_config")

    for index, layer in enumerate(family.layer_list(model)):
        prefix = name_of[id(layer)]
        for projection in family.projections.values():
            path = f"{prefix}.{projection.path}"
            lora_b, lora_a = _lora_names(parameters, path)
            if lora_b is None and lora:
                continue  # an adapter changes nothing but its own branches
            weight = parameters[lora_b or f"{path}.weight"]
            flipped = family.transposed and lora_b is None
            rows = weight.shape[1 if flipped else 0]
            sizes = family.part_sizes(model, projection, rows)
            inputs = granularity == "head_mlp" and projection.parts == ("o_proj",)
            owner = register.inputs(index) if inputs else register.outputs(index, projection, sizes)
            first, second = (lora_a, lora_b) if inputs else (lora_b, lora_a)
            dim = int(inputs != flipped)
            branches.append(
                Branch(path, "linear", dim, owner, first or f"{path}.weight", second, transposed=flipped)
            )
            if not lora and f"{path}.bias" in parameters:
                if inputs:  # columns belong to heads, but a bias is added once for all of them
                    place = Place(index, "o_proj.bias", None, projection.block)
                    owner = np.full(rows, register.unit(f"layers.{index}.o_proj.bias", place))
                branches.append(Branch(path, "bias", 0, owner, f"{path}.bias", None))
        for path, module in layer.named_modules() if not lora else ():
            if is_norm(module):
                short = path.rsplit(".", 1)[-1]
                place = Place(index, short, None, family.norm_block(path))
                at = register.unit(f"layers.{index}.{short}", place, norm=True)
                branches += _norm(parameters, f"{prefix}.{path}", at)
    if not lora:
        decoder = family.decoder(model)
        root = name_of[id(decoder)]
        at = register.unit("norm", Place(None, "norm", None), norm=True)
        branches += _norm(parameters, f"{root}.{family.final_norm}", at)
        if family.positions:
            path = f"{root}.{family.positions}"
            owner = register.table("embed_positions", len(parameters[f"{path}.weight"]))
            branches.append(Branch(path, "positions", 0, owner, f"{path}.weight", None))
        branches += _embeddings(model, decoder, name_of, register)
    if not branches:
        raise ModelError(
            "the adapter has no branch on a projection this package knows",
            where="adapter",
            mend="Fine-tune at least one of " + ", ".join(family.projections),
        )
    covered = {name for b in branches for name in (b.weight, b.factor)}
    strange = [name for name in parameters if ".lora_" in name and name not in covered]
    if strange:
        raise ModelError(
            f"the adapter changes {strange[0].split('.lora_')[0]}, which belongs to no unit",
            where="adapter",
            mend="Fine-tune none but " + ", ".join(family.projections),
        )
    return Units(
        tuple(register.names), tuple(register.places), tuple(branches), granularity, register.types()
    )


def inner_products(
    units: Units,
    a: dict[str, torch.Tensor],
    b: dict[str, torch.Tensor],
    owners: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Inner product of two sets of tensors over each unit's slice, float32 [n_units].

    LoRA factors that several units share belong to none and are left out.

    Args:
        units: of a model.
        a, b: by parameter name, shaped like the parameters; those that are missing count as 0.
        owners: unit of each slice by parameter name, on the device of the tensors, for who asks in every
            step: a GPU would have to wait for each upload. None: they are brought there.
    """
    out: torch.Tensor | None = None
    done: set[str] = set()
    for branch, name, dim in ((b, *one) for b in units.branches for one in b.slices):
        if name in done or name not in a:  # tied embeddings appear twice
            continue
        done.add(name)
        product = a[name].float() * b[name].float()
        other = [d for d in range(product.ndim) if d != dim]
        if out is None:
            out = torch.zeros(len(units.names), device=product.device)
        owner = torch.from_numpy(branch.unit).to(product.device) if owners is None else owners[name]
        out.index_add_(0, owner, product.sum(other) if other else product)
    return torch.zeros(len(units.names)) if out is None else out


class _Register:
    """Units by name, in the order in which they are first asked for."""

    def __init__(self, family: Family, heads: tuple[int, int, int], granularity: Granularity) -> None:
        self.family, self.granularity = family, granularity
        self.n_heads, n_kv, self.width = heads
        # Key/value rows serve a whole group of query heads; they go with the group's first head.
        self.share = {QUERY: 1, KEY: self.n_heads // n_kv, VALUE: self.n_heads // n_kv}
        self.names: dict[str, int] = {}
        self.places: list[Place] = []
        self.norms: set[int] = set()

    def unit(self, name: str, place: Place, *, norm: bool = False) -> int:
        """Index of a unit."""
        if name not in self.names:
            self.names[name] = len(self.places)
            self.places.append(place)
            if norm:
                self.norms.add(self.names[name])
        return self.names[name]

    def outputs(self, layer: int, projection: Projection, sizes: list[int]) -> np.ndarray:
        """Owner of each output of a projection, part after part."""
        owner = [
            self._output(layer, part, row, projection.block)
            for part, size in zip(projection.parts, sizes, strict=True)
            for row in range(size)
        ]
        return np.asarray(owner)

    def _output(self, layer: int, part: str, row: int, block: Block) -> int:
        share = self.share.get(part)
        if self.granularity == "row":
            place = Place(layer, part, row // self.width if share else None, block, share or 1)
            return self.unit(f"layers.{layer}.{part}.row.{row}", place)
        if self.granularity == "projection":
            return self.unit(f"layers.{layer}.{part}", Place(layer, part, None, block))
        if share:
            return self._head(layer, row // self.width * share)
        return self.unit(f"layers.{layer}.mlp", Place(layer, "mlp", None, "mlp"))

    def inputs(self, layer: int) -> np.ndarray:
        """Owner of each input of the output projection: its head."""
        return np.asarray([self._head(layer, k // self.width) for k in range(self.n_heads * self.width)])

    def _head(self, layer: int, head: int) -> int:
        return self.unit(f"layers.{layer}.head.{head}", Place(layer, "head", head, "attn"))

    def table(self, name: str, rows: int) -> np.ndarray:
        """Owner of each row of an embedding."""
        place = Place(None, name, None)
        if self.granularity != "row":
            return np.full(rows, self.unit(name, place))
        return np.asarray([self.unit(f"{name}.row.{r}", place) for r in range(rows)])

    def types(self) -> np.ndarray:
        """What each unit may be compared with."""
        kinds = ["head" if p.module == "head" else p.module for p in self.places]
        return np.asarray(["norm" if k in self.norms else t for k, t in enumerate(kinds)], dtype=object)


def _norm(parameters: dict[str, Any], path: str, unit: int) -> list[Branch]:
    """Weight and bias of a norm, as far as it has them: one unit."""
    kinds: dict[str, Kind] = {"weight": "norm", "bias": "bias"}
    return [
        Branch(path, kind, 0, np.full(len(parameters[f"{path}.{name}"]), unit), f"{path}.{name}", None)
        for name, kind in kinds.items()
        if f"{path}.{name}" in parameters
    ]


def _embeddings(model: Any, decoder: Any, name_of: dict[int, str], register: _Register) -> list[Branch]:
    """Token embedding and output embedding; tied ones are read at both ends: the same rows and units."""
    tokens, head = decoder.get_input_embeddings(), model.get_output_embeddings()
    first, last = name_of[id(tokens)], name_of[id(head)]
    owner = register.table("embed_tokens", len(tokens.weight))
    out = [Branch(first, "embedding", 0, owner, f"{first}.weight", None)]
    if head.weight is tokens.weight:
        out.append(replace(out[0], module=last, kind="head"))
    else:
        owner = register.table("lm_head", len(head.weight))
        out.append(Branch(last, "head", 0, owner, f"{last}.weight", None))
    if head.bias is not None:
        out.append(Branch(last, "head_bias", 0, owner, f"{last}.bias", None))
    return out


def _lora_names(parameters: dict[str, torch.nn.Parameter], path: str) -> tuple[str | None, str | None]:
    found = [n for n in parameters if n.startswith(f"{path}.lora_B.") and n.endswith(".weight")]
    if not found:
        return None, None
    return found[0], found[0].replace(".lora_B.", ".lora_A.")
