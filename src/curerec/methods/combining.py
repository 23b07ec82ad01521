"""What a step of an update with two losses does with their two gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from curerec.methods.conflicts import Watcher
from curerec.methods.preconditioner import Preconditioner
from curerec.methods.rules import Rules
from curerec.methods.unseen import Unseen

if TYPE_CHECKING:
    from curerec.methods.unlearn import UnlearnConfig


class Combining:
    """What a step does with its two gradients before the optimiser is given their mix, and notes after it.

    Args:
        rules: roles of the units.
        config: projection and damping.
        parameters: that may change, by name.
        unseen: rows that are held where they are; none: no rows.
    """

    def __init__(
        self,
        rules: Rules,
        config: UnlearnConfig,
        parameters: Mapping[str, torch.nn.Parameter],
        unseen: Unseen | None = None,
    ) -> None:
        self.rules, self.parameters, self.unseen = rules, parameters, unseen
        scaling = config.projection == "preconditioned" and config.optimizer == "adamw"
        self.preconditioner = Preconditioner(config.damping) if scaling else None
        self.conflicts = Watcher(rules.units, rules.owners)

    def combine(
        self, forget: Sequence[torch.Tensor], retain: Sequence[torch.Tensor], push: float
    ) -> dict[str, torch.Tensor]:
        """Put the direction into ``.grad``; returns what :meth:`Rules.combine` saw on the way.

        Args:
            forget, retain: gradients, in the order of the parameters.
            push: weight of the first.
        """
        rules = self.rules
        g_f = {name: push * g for name, g in zip(self.parameters, forget, strict=True)}
        if self.unseen:
            self.unseen.hold(g_f)
        # Masked once: what follows, their sum included, is then of weights that may move.
        g_f, g_r = rules.inside(g_f), rules.inside(dict(zip(self.parameters, retain, strict=True)))
        scale = None
        if self.preconditioner:
            total = {n: g + rules.weight * g_r[n] for n, g in g_f.items()}
            scale = self.preconditioner.factors(rules.moving(total))
        direction, seen = rules.combine(g_f, g_r, scale, masked=True)
        self.conflicts.combined(seen, self.parameters)
        for name, p in self.parameters.items():
            p.grad = direction[name].to(p.dtype)
        return seen

    def moved(self) -> None:
        """After the optimiser's step."""
        self.conflicts.moved(self.parameters)
