"""Who reads what: the norms and maps through which heads, MLPs and logits read the residual stream."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from curerec.errors import ModelError
from curerec.recommender.families import family_of
from curerec.recommender.families.norms import norm_parts
from curerec.recommender.score import wide

INPUT, LOGITS = "input", "logits"
QKV = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}


@dataclass(frozen=True)
class Reading:
    """A linear map of a layer, and which of its outputs are queries, keys and values.

    ``parts`` holds (``q``, ``k`` or ``v``, first output, number of heads).
    """

    module: Any
    parts: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Layer:
    """The modules of a decoder layer by their part in the graph; ``post`` is a norm after the attention."""

    attention_norm: Any
    readings: tuple[Reading, ...]
    attention_out: Any
    post: Any
    mlp_norm: Any
    mlp: Any


@dataclass(frozen=True)
class Wiring:
    """The graph of a model: sources write to the residual stream, readers read it.

    Attributes:
        sources: ``input``, then heads and MLPs layer by layer.
        readers: layer by layer ``layers.L.head.H.q``, ``layers.L.kv.G.k``, ``layers.L.kv.G.v`` (G a group of
            heads that share keys and values, the head itself where none are shared), ``layers.L.mlp``, and
            last ``logits``.
        layers: modules.
        final_norm: through which the logits read.
        n_heads, n_kv, width: query heads, key/value heads, head width.
        parallel: whether an MLP reads the same input as the heads of its layer.
    """

    sources: tuple[str, ...]
    readers: tuple[str, ...]
    layers: tuple[Layer, ...]
    final_norm: Any
    n_heads: int
    n_kv: int
    width: int
    parallel: bool

    @cached_property
    def mask(self) -> np.ndarray:
        """Which source comes before which reader, bool [sources, readers]."""
        out = np.zeros((len(self.sources), len(self.readers)), bool)
        for r, reader in enumerate(self.readers):
            out[: self.sources_before(reader), r] = True
        return out

    def sources_before(self, reader: str) -> int:
        """How many of :attr:`sources`, from the first, a reader can see."""
        if reader == LOGITS:
            return len(self.sources)
        layer = int(reader.split(".")[1])
        heads = self.n_heads if reader.endswith(".mlp") and not self.parallel else 0
        return 1 + layer * (self.n_heads + 1) + heads

    def head_columns(self, layer: int) -> slice:
        """Places of a layer's heads among :attr:`sources`."""
        first = 1 + layer * (self.n_heads + 1)
        return slice(first, first + self.n_heads)

    def mlp_column(self, layer: int) -> int:
        """Place of a layer's MLP among :attr:`sources`."""
        return (layer + 1) * (self.n_heads + 1)

    def columns(self, layer: int, kind: str) -> slice:
        """Places of a layer's queries, keys or values among :attr:`readers`."""
        size = self.n_heads + 2 * self.n_kv + 1
        first = layer * size + {"q": 0, "k": self.n_heads, "v": self.n_heads + self.n_kv}[kind]
        return slice(first, first + (self.n_heads if kind == "q" else self.n_kv))

    def mlp_reader(self, layer: int) -> int:
        """Place of a layer's MLP among :attr:`readers`."""
        return (layer + 1) * (self.n_heads + 2 * self.n_kv + 1) - 1

    def readers_of(self, module: str) -> tuple[str, ...]:
        """The readers through which a head or MLP takes its input."""
        if ".head." not in module:
            return (module,)
        prefix, head = module.split(".head.")
        group = int(head) // (self.n_heads // self.n_kv)
        return (f"{module}.q", f"{prefix}.kv.{group}.k", f"{prefix}.kv.{group}.v")

    def modules_of(self, reader: str) -> tuple[str, ...]:
        """The heads or MLP that a reader feeds; several heads of one group, none for the logits."""
        if reader == LOGITS:
            return ()
        if ".kv." in reader:
            prefix, rest = reader.split(".kv.")
            share = self.n_heads // self.n_kv
            group = int(rest.split(".")[0])
            return tuple(f"{prefix}.head.{h}" for h in range(group * share, (group + 1) * share))
        return (reader.removesuffix(".q"),)


def wiring_of(model: Any) -> Wiring:
    """The graph of a model of a known family.

    Raises:
        ModelError: unknown family, or a layer without queries, keys and values.
    """
    family = family_of(model)
    n_heads, n_kv, width = family.heads(model)
    layers = []
    for layer in family.layer_list(model):
        readings = []
        for projection in family.projections.values():
            first, found = 0, []
            for part in projection.parts:
                if part in QKV:
                    heads = n_heads if part == "q_proj" else n_kv
                    found.append((QKV[part], first, heads))
                    first += heads * width
            if found:
                readings.append(Reading(layer.get_submodule(projection.path), tuple(found)))
        if sorted(kind for r in readings for kind, _, _ in r.parts) != ["k", "q", "v"]:
            raise ModelError(
                f"the family {family.name} names no queries, keys and values",
                where="circuit",
                mend="Complete its file under recommender/families",
            )
        written = family.attention_write != family.attention_out
        layers.append(
            Layer(
                attention_norm=layer.get_submodule(family.attention_in),
                readings=tuple(readings),
                attention_out=layer.get_submodule(family.attention_out),
                post=layer.get_submodule(family.attention_write) if written else None,
                mlp_norm=layer.get_submodule(family.mlp_in),
                mlp=layer.get_submodule("mlp"),
            )
        )
    readers = [
        name
        for k in range(len(layers))
        for name in (
            *(f"layers.{k}.head.{h}.q" for h in range(n_heads)),
            *(f"layers.{k}.kv.{g}.k" for g in range(n_kv)),
            *(f"layers.{k}.kv.{g}.v" for g in range(n_kv)),
            f"layers.{k}.mlp",
        )
    ]
    return Wiring(
        sources=(INPUT, *family.module_names(model)),
        readers=(*readers, LOGITS),
        layers=tuple(layers),
        final_norm=family.decoder(model).get_submodule(family.final_norm),
        n_heads=n_heads,
        n_kv=n_kv,
        width=width,
        parallel=family.parallel,
    )


def of_blocks(wiring: Wiring) -> tuple[Wiring, np.ndarray, np.ndarray]:
    """The graph in which the heads of a layer are one node.

    Returns:
        The graph, whose one head of each layer is number 0; and the place among its sources (readers) of
        each source (reader) of ``wiring``.
    """

    def block(name: str) -> str:
        return re.sub(r"\.(head|kv)\.\d+", r".\1.0", name)

    sources, readers = (tuple(dict.fromkeys(map(block, names))) for names in (wiring.sources, wiring.readers))
    blocks = replace(wiring, sources=sources, readers=readers, n_heads=1, n_kv=1)
    return (
        blocks,
        np.asarray([sources.index(block(s)) for s in wiring.sources]),
        np.asarray([readers.index(block(r)) for r in wiring.readers]),
    )


def weight_of(module: Any) -> torch.Tensor:
    """Effective weight of a linear map, [out, in] in at least single precision, with its LoRA branches."""
    if hasattr(module, "get_base_layer"):
        weight = weight_of(module.get_base_layer())
        if module.merged or module.disable_adapters:
            return weight
        transposed = type(module.get_base_layer()).__name__ == "Conv1D"
        for name in module.active_adapters:
            if name in module.lora_A:
                delta = wide(module.get_delta_weight(name).detach())
                weight = weight + (delta.T if transposed else delta)
        return weight
    weight = wide(module.weight.detach())
    return weight.T if type(module).__name__ == "Conv1D" else weight


@dataclass(frozen=True)
class NormAt:
    """A norm linearised at an input: ``y = s(x) * (x - mean) * gain + bias``.

    Attributes:
        x: input, [batch, pos, d_model]; a reference, which the backward pass holds as well.
        mean: of the input for a LayerNorm, [batch, pos, 1]; None for an RMS norm.
        scale: s, the inverse root mean square, [batch, pos, 1].
        gain: [d_model].
        fixed_scale: derivatives treat s as a constant (``relp``).
    """

    x: torch.Tensor
    mean: torch.Tensor | None
    scale: torch.Tensor
    gain: torch.Tensor
    fixed_scale: bool

    @classmethod
    def of(cls, norm: Any, x: torch.Tensor, *, fixed_scale: bool = False) -> NormAt:
        """Of a LayerNorm, or an RMS norm of any family (whose gain may be stored as 1 + weight).

        Raises:
            ModelError: neither of the two.
        """
        x = wide(x.detach())
        mean, scale, gain = norm_parts(norm, x)
        return cls(x, mean, scale, gain, fixed_scale)

    @property
    def centring(self) -> bool:
        """Whether it is a LayerNorm."""
        return self.mean is not None

    @property
    def centred(self) -> torch.Tensor:
        """Input, minus its mean for a LayerNorm; made anew at each use, not held."""
        return self.x if self.mean is None else self.x - self.mean

    def value(self, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The norm's output."""
        y = self.scale * self.centred * self.gain
        return y if bias is None else y + bias

    def pushed(self, delta: torch.Tensor) -> torch.Tensor:
        """Derivative along a change of the input, [..., batch, pos, d_model] (forward mode)."""
        delta = self._projected(delta)
        return self.gain * self.scale * delta if self.fixed_scale else self.gain * self._inner(delta)

    def pulled(self, grad: torch.Tensor) -> torch.Tensor:
        """Gradient at the input from one at the output, [..., batch, pos, d_model] (reverse mode)."""
        grad = grad * self.gain
        return self._projected(self.scale * grad if self.fixed_scale else self._inner(grad))

    def read_by(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps [maps, width, d_model] that read the norm's output, as :meth:`pulled_through` wants them."""
        return self._projected(maps * self.gain)  # the norm's centre then takes no part in what follows

    def pulled_through(self, grad: torch.Tensor, maps: torch.Tensor, *, out: torch.Tensor) -> None:
        """:meth:`pulled` of ``grad @ maps``, with one pass over the large product instead of one a step.

        Args:
            grad: at the outputs of linear maps that read the norm, [batch, pos, maps, width].
            maps: their weights, made ready by :meth:`read_by`.
            out: where the result is put, [maps, batch, pos, d_model], contiguous.
        """
        small = (grad * self.scale[..., None]).flatten(0, 1).transpose(0, 1)
        torch.bmm(small, maps, out=out.flatten(1, 2))
        if not self.fixed_scale:
            x = self.centred
            along = (grad * (x @ maps.flatten(0, 1).T).unflatten(-1, maps.shape[:2])).sum(-1) / x.shape[-1]
            out.addcmul_(x, (self.scale**3 * along).movedim(-1, 0)[..., None], value=-1)

    def at(self, take: Callable[[torch.Tensor], torch.Tensor]) -> NormAt:
        """The same at some of the positions: ``take`` turns [batch, pos, ...] into [batch, fewer, ...]."""
        mean = None if self.mean is None else take(self.mean)
        return replace(self, x=take(self.x), mean=mean, scale=take(self.scale))

    def _inner(self, v: torch.Tensor) -> torch.Tensor:
        along = (self.centred * v).mean(-1, keepdim=True)
        return self.scale * v - self.scale**3 * self.centred * along

    def _projected(self, v: torch.Tensor) -> torch.Tensor:
        return v - v.mean(-1, keepdim=True) if self.centring else v
