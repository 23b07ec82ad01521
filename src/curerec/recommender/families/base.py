"""What a family file has to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """Module paths of a model family, relative to a decoder layer unless said otherwise.

    Attributes:
        name: of the family.
        model_types: values of ``config.model_type`` it covers.
        layers: path of the layer list, relative to the decoder.
        attention_out: module whose input is the concatenation of the heads' outputs.
        mlp_out: module whose output is what the MLP writes to the residual stream.
        projections: short name -> path, in drawing order.
    """

    name: str
    model_types: tuple[str, ...]
    layers: str
    attention_out: str
    mlp_out: str
    projections: dict[str, str]

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

    def module_names(self, model: Any) -> list[str]:
        """Names of all heads and MLPs, layer by layer."""
        n_heads = self.heads(model)[0]
        return [
            name
            for layer in range(len(self.layer_list(model)))
            for name in [*(f"layers.{layer}.head.{h}" for h in range(n_heads)), f"layers.{layer}.mlp"]
        ]
