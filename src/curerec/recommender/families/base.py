"""What a family file has to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Block = Literal["attn", "mlp", "both"]
QUERY, KEY, VALUE = "q_proj", "k_proj", "v_proj"


@dataclass(frozen=True)
class Projection:
    """A linear map of a decoder layer.

    Attributes:
        path: of the module, relative to the layer.
        parts: names of what its outputs hold, first to last; several where a family fuses maps into one. The
            names are the same in every family: ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj``, ``gate_proj``,
            ``up_proj``, ``down_proj``.
    """

    path: str
    parts: tuple[str, ...]

    @property
    def block(self) -> Block:
        """Whether the attention or the MLP uses it."""
        return "attn" if set(self.parts) & {QUERY, KEY, VALUE, "o_proj"} else "mlp"


def separate(*paths: str) -> dict[str, Projection]:
    """Projections that are modules of their own, named as their modules are."""
    names = [path.rsplit(".", 1)[-1] for path in paths]
    return {name: Projection(path, (name,)) for name, path in zip(names, paths, strict=True)}


@dataclass(frozen=True)
class Family:
    """Module paths of a model family, relative to a decoder layer unless said otherwise.

    :func:`curerec.recommender.families.structure.check_structure` holds a model against every one of these.

    Attributes:
        name: of the family.
        model_types: values of ``config.model_type`` it covers.
        layers: path of the layer list, relative to the decoder.
        attention_in: norm through which the heads read the residual stream.
        attention_out: linear map whose input is the concatenation of the heads' outputs.
        attention_write: module whose output is what the attention adds to the residual stream.
        mlp_in: norm through which the MLP reads the residual stream; the same as ``attention_in`` where both
            run side by side, so that the MLP does not see what its layer's heads write.
        mlp_out: module whose output is what the MLP adds to the residual stream.
        projections: name that LoRA's targets are chosen by -> linear map, in drawing order.
        final_norm: relative to the decoder.
        positions: table of absolute positions, relative to the decoder; None with rotary ones.
        transposed: weights are [in, out] (``Conv1D``), not [out, in].
        attention: implementation that alone computes what the model defines; None: any.
    """

    name: str
    model_types: tuple[str, ...]
    layers: str
    attention_in: str
    attention_out: str
    attention_write: str
    mlp_in: str
    mlp_out: str
    projections: dict[str, Projection]
    final_norm: str = "norm"
    positions: str | None = None
    transposed: bool = False
    attention: str | None = None

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP of a layer read the same input."""
        return self.attention_in == self.mlp_in

    def decoder(self, model: Any) -> Any:
        """The stack of layers, under any PEFT wrapper."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return base.get_decoder()

    def layer_list(self, model: Any) -> list[Any]:
        """The decoder layers, first to last."""
        return list(self.decoder(model).get_submodule(self.layers))

    def heads(self, model: Any) -> tuple[int, int, int]:
        """(query heads, key/value heads, head width)."""
        c = model.config
        width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return c.num_attention_heads, getattr(c, "num_key_value_heads", None) or c.num_attention_heads, width

    def part_sizes(self, model: Any, projection: Projection, rows: int) -> list[int]:
        """Outputs of each part of a projection that has ``rows`` outputs."""
        n_heads, n_kv, width = self.heads(model)
        known = {QUERY: n_heads * width, KEY: n_kv * width, VALUE: n_kv * width}
        return [known.get(part, rows // len(projection.parts)) for part in projection.parts]

    def norm_block(self, path: str) -> Block:
        """Which of the two a norm of a layer belongs to."""
        if self.parallel and path == self.mlp_in:
            return "both"
        return "mlp" if path in (self.mlp_in, self.mlp_out) or path.startswith("mlp.") else "attn"

    def module_names(self, model: Any) -> list[str]:
        """Names of all heads and MLPs, layer by layer."""
        n_heads = self.heads(model)[0]
        return [
            name
            for layer in range(len(self.layer_list(model)))
            for name in [*(f"layers.{layer}.head.{h}" for h in range(n_heads)), f"layers.{layer}.mlp"]
        ]


def linear_of(module: Any) -> Any:
    """The linear map itself, under any LoRA wrapper."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module
