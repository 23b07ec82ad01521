"""What each step of an update did to each module: cosine of the gradients, projected or not, length."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from curerec.methods.rules import Gradients
from curerec.recommender.units import Place, Units, inner_products
from curerec.records import Conflicts


class Watcher:
    """Notes it as an update goes on; nothing is read from the device before the end.

    A LoRA factor that several units share belongs to none and is left out.

    Args:
        units: of the model.
        owners: unit of each slice by parameter name, on the device (:class:`curerec.methods.rules.Rules`).

    Source: METHOD section 7.
    """

    def __init__(self, units: Units, owners: Mapping[str, torch.Tensor]) -> None:
        self.units, self.owners = units, owners
        names = [module_of(place) for place in units.places]
        self.modules = tuple(dict.fromkeys(names))
        at = {name: k for k, name in enumerate(self.modules)}
        device = next(iter(owners.values())).device if owners else None
        self.module = torch.tensor([at[name] for name in names], device=device)
        self.before: Gradients = {}
        self.rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.moves: list[torch.Tensor] = []

    def combined(self, seen: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> None:
        """Before a step.

        Args:
            seen: of :meth:`curerec.methods.rules.Rules.combine`; without inner products by unit, as gradient
                surgery on the whole vector has none, nothing is noted.
            parameters: that may change, as they are now, by name.
        """
        if "dot" not in seen:
            return
        dot, ff, rr = (self._by_module(seen[key]) for key in ("dot", "ff", "rr"))
        projected, able = (self._by_module(seen[key].float()) for key in ("projected", "able"))
        self.rows.append((dot / (ff.sqrt() * rr.sqrt()), projected / able.clamp_min(1)))
        names, values = list(parameters), [p.detach() for p in parameters.values()]
        if not self.before:
            self.before = {n: v.clone() for n, v in zip(names, values, strict=True)}
        else:
            torch._foreach_copy_([self.before[n] for n in names], values)

    def moved(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """After the step.

        Args:
            parameters: as before, changed.
        """
        if not self.rows:
            return
        by = {n: p.detach() - self.before[n] for n, p in parameters.items()}
        squares = inner_products(self.units, by, by, self.owners)
        self.moves.append(self._by_module(squares.to(self.module.device)).sqrt())

    def found(self) -> Conflicts | None:
        """All of it; None where no step was taken."""
        if not self.moves:
            return None
        cos, projected = (torch.stack(side[: len(self.moves)]) for side in zip(*self.rows, strict=True))
        return Conflicts(self.modules, *(x.cpu().numpy() for x in (cos, projected, torch.stack(self.moves))))

    def _by_module(self, of_unit: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(self.modules), device=of_unit.device)
        return out.index_add_(0, self.module, of_unit)


def module_of(place: Place) -> str:
    """The head (or group of heads, of keys and values that several share) or MLP of a unit, else what it is.

    Example:
        >>> [module_of(p) for p in (Place(0, "q_proj", 1, "attn"), Place(0, "o_proj", None, "attn"))]
        ['layers.0.head.1', 'layers.0.attn']
        >>> module_of(Place(0, "k_proj", 1, "attn", share=3))  # of query heads 3 to 5
        'layers.0.kv.1'
        >>> module_of(Place(None, "embed_tokens", None))
        'embed_tokens'
    """
    if place.layer is None:
        return place.module
    head = f"{'kv' if place.share > 1 else 'head'}.{place.head}"
    part = head if place.head is not None else (place.block or place.module)
    return f"layers.{place.layer}.{place.module if part == 'both' else part}"
