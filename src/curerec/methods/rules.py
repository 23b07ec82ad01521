"""The three update rules: one direction a unit from its two gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from curerec.groups.assign import FORGET, FROZEN, RETAIN, SHARED
from curerec.recommender.units import Units, inner_products

Gradients = dict[str, torch.Tensor]
Masks = dict[str, torch.Tensor]  # bool, by parameter name
Products = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Rules:
    """Combines g_f and g_r unit by unit.

    ================= ==========================
    group             direction
    ================= ==========================
    forget-specific   g_f + w g_r
    task-shared       proj(g_f) + w g_r
    retain-specific   w g_r
    frozen            0
    ================= ==========================

    with ``proj(g_f) = g_f - min(0, <g_f, g_r>) / (|g_r|^2 + eps) g_r``: where the two objectives conflict,
    what of the forget step would undo retaining is taken out (the one-sided projection of PCGrad). With
    ``both`` the other side is projected, too, where they conflict, ``w g_r`` onto what is normal to g_f
    (PCGrad itself, unit by unit): of plain gradients retaining then takes back, to first order, nothing of
    what forgetting gains. With ``whole`` the inner products are sums over all units that forget, so that
    all task-shared units are projected or none is.

    Args:
        units: of the model.
        role: codes of :data:`curerec.records.ROLES`, int [n_units].
        weight: w, weight of the retain gradient.
        masks: weights that may move, by parameter name (:mod:`curerec.methods.saliency`); the others have
            gradient 0 for every rule. None: all weights of a unit that is not frozen.
        both: project both gradients of task-shared units, not that of forgetting alone.
        whole: ask for conflict over all units that forget at once, as PCGrad does, not unit by unit.
        eps: keeps the quotient finite; far below any squared gradient, since a KL to the model itself starts
            at a gradient of 0 and a larger one would switch the projection off while it is small.

    Source: METHOD section 7 (this project's definition of the paper's group-specific rules); Yu et al. 2020,
    arXiv 2001.06782, algorithm 1, for ``both``.
    """

    def __init__(
        self,
        units: Units,
        role: torch.Tensor,
        *,
        weight: float = 1.0,
        masks: Masks | None = None,
        both: bool = False,
        whole: bool = False,
        eps: float = 1e-30,
    ) -> None:
        self.units, self.role, self.weight, self.masks, self.eps = units, role, weight, masks, eps
        self.both, self.whole = both, whole
        self.owner: dict[str, tuple[int, torch.Tensor]] = {}
        self.factors: dict[str, int] = {}
        self.partly: set[str] = set()  # parameters that frozen units have slices of, among others
        for branch in units.branches:
            owner = torch.from_numpy(branch.unit).to(role.device)
            self.owner |= {name: (dim, owner) for name, dim in branch.slices}
            if bool((role[owner] == FROZEN).any()):
                self.partly |= {name for name, _ in branch.slices}
            if branch.shared is not None:
                self.factors[branch.shared] = int(role_of_factor(role[owner]))  # read once, not in each step
        self.forget_weight = ((role == FORGET) | (role == SHARED)).float()
        self.retain_weight = (role != FROZEN).float() * weight
        self.shared = role == SHARED
        self.able = role != FROZEN

    @property
    def owners(self) -> dict[str, torch.Tensor]:
        """Unit of each slice, by parameter name."""
        return {name: owner for name, (_, owner) in self.owner.items()}

    def trainable(self) -> list[str]:
        """Names of the parameters that any unit may change; the others need no gradient."""
        names = [p for p, (_, owner) in self.owner.items() if (self.role[owner] != FROZEN).any()]
        names += [p for p, role in self.factors.items() if role != FROZEN]
        return [p for p in names if self.masks is None or bool(self.masks[p].any())]

    def n_movable(
        self,
        parameters: Mapping[str, torch.Tensor],
        rolled: Masks | None = None,
        back: tuple[str, torch.Tensor, int] | None = None,
    ) -> int:
        """How many weights may change.

        Args:
            parameters: that any unit may change, by name.
            rolled: weights that are taken back before the update, in units that are not frozen; they count,
                too, where they may not move afterwards.
            back: a parameter, rows of it that are taken back whole, whatever their unit's role, and how many
                weights each has.
        """
        more = 0 if back is None else self._n_more(parameters, rolled, *back)
        if self.masks is not None:
            count = 0
            for name, mask in self.masks.items():
                able = mask if name in parameters else torch.zeros_like(mask)
                count += int((able | rolled[name] if rolled and name in rolled else able).sum())
            return count + more
        rows = {name: int((self.role[owner] != FROZEN).sum()) for name, (_, owner) in self.owner.items()}
        count = 0
        for name, p in parameters.items():
            dim = self.owner[name][0] if name in self.owner else None
            count += p.numel() if dim is None else rows[name] * (p.numel() // p.shape[dim])
        return count + more

    def _n_more(
        self,
        parameters: Mapping[str, torch.Tensor],
        rolled: Masks | None,
        name: str,
        rows: torch.Tensor,
        width: int,
    ) -> int:
        """Weights of some rows of a parameter that neither move nor are rolled back otherwise."""
        _, owner = self.owner[name]
        if self.masks is None:
            return int((self.role[owner[rows]] == FROZEN).sum()) * width
        inside = self.masks[name] if name in parameters else torch.zeros_like(self.masks[name])
        if rolled and name in rolled:
            inside = inside | rolled[name]
        return int((~inside[rows]).sum())

    def inside(self, gradients: Gradients) -> Gradients:
        """The gradients with 0 where a weight may not move.

        Args:
            gradients: by parameter name.
        """
        masks = self.masks
        return gradients if masks is None else {n: g * masks[n] for n, g in gradients.items()}

    def moving(self, gradients: Gradients) -> Gradients:
        """The gradients with 0 in units that are frozen, as far as :meth:`inside` has left something there.

        Args:
            gradients: by parameter name, from there.
        """
        if self.masks is not None:
            return gradients
        out = dict(gradients)
        for name in self.partly & out.keys():
            dim, owner = self.owner[name]
            shape = [-1 if d == dim else 1 for d in range(out[name].ndim)]
            out[name] = out[name] * (self.role[owner] != FROZEN).view(shape)
        return out

    def combine(
        self,
        forget: Gradients,
        retain: Gradients,
        scale: Gradients | None = None,
        *,
        masked: bool = False,
    ) -> tuple[Gradients, dict[str, torch.Tensor]]:
        """Directions to descend, and what happened on the way.

        Args:
            forget: g_f by parameter name.
            retain: g_r by parameter name.
            scale: factors that the optimiser will scale entries by, by parameter name: inner products are
                then of the scaled gradients, and it is the steps that no longer conflict. None: of the
                gradients as they are.
            masked: both are 0 already where a weight may not move (:meth:`inside`).

        Returns:
            Directions by parameter name, and by unit, each [n_units]: ``able`` (not frozen, bool), ``dot``,
            ``ff`` and ``rr`` (inner products of both and of each, 0 where frozen; with ``whole`` the same
            sums for every unit), ``cos`` (nan where a gradient is 0), ``projected`` (bool).
        """
        if not masked:
            forget, retain = self.inside(forget), self.inside(retain)
        f, r = (side if scale is None else times(side, scale) for side in (forget, retain))
        pairs = ((f, r), (f, f), (r, r))
        # A frozen unit's gradients do nothing; scaled by an optimiser that never saw them they would drown
        # those of the units beside it in whatever is summed later.
        found = [inner_products(self.units, a, b, self.owners).to(self.role.device) for a, b in pairs]
        dot, ff, rr = (
            torch.where(self.able, x, torch.zeros_like(x)) for x in found
        )  # also of what overflowed
        sums = None
        if self.whole:
            sums = self._sums(f, r, dot, ff, rr)
            dot, ff, rr = (x.expand_as(dot) for x in sums)
        projected = self.shared & (dot < 0)
        none = torch.zeros_like(dot)
        pull = torch.where(projected, -dot / (rr + self.eps), none) + self.retain_weight
        push = self.forget_weight
        if self.both:
            push = torch.where(projected, -self.retain_weight * dot / (ff + self.eps), none) + push
        out: Gradients = {}
        for name, (dim, owner) in self.owner.items():
            if name in forget:
                shape = [-1 if d == dim else 1 for d in range(forget[name].ndim)]
                a, c = push[owner].view(shape), pull[owner].view(shape)
                out[name] = a * forget[name] + c * retain[name]
        for name, role in self.factors.items():
            if name in forget:
                products = sums or products_of(f[name], r[name])
                out[name] = self._of_factor(role, forget[name], retain[name], products)
        seen = {"able": self.able, "projected": projected, "dot": dot, "ff": ff, "rr": rr}
        return out, {**seen, "cos": dot / (ff.sqrt() * rr.sqrt())}

    def _sums(
        self, f: Gradients, r: Gradients, dot: torch.Tensor, ff: torch.Tensor, rr: torch.Tensor
    ) -> Products:
        """Inner products over all units, and LoRA factors, that forget."""
        able = self.forget_weight
        sums = [(able * x).sum() for x in (dot, ff, rr)]
        for name, role in self.factors.items():
            if name in f and role in (FORGET, SHARED):
                sums = [s + x.to(s) for s, x in zip(sums, products_of(f[name], r[name]), strict=True)]
        return sums[0], sums[1], sums[2]

    def _of_factor(self, role: int, f: torch.Tensor, r: torch.Tensor, products: Products) -> torch.Tensor:
        """The rule for a LoRA factor that several units share; inner products are of the steps."""
        if role == FROZEN:
            return torch.zeros_like(f)
        if role == RETAIN:
            return self.weight * r
        if role == SHARED:
            dot, ff, rr = (x.to(f.device) for x in products)
            against = torch.clamp(dot, max=0)
            more = self.weight * against / (ff + self.eps) if self.both else 0.0
            return (1 - more) * f + (self.weight - against / (rr + self.eps)) * r
        return f + self.weight * r


def products_of(f: torch.Tensor, r: torch.Tensor) -> Products:
    """``<f, r>``, ``<f, f>`` and ``<r, r>`` of two tensors, float32."""
    a, c = f.float(), r.float()
    return (a * c).sum(), a.square().sum(), c.square().sum()


def times(gradients: Gradients, factors: Gradients) -> Gradients:
    """Entry by entry."""
    return {name: g * factors[name] for name, g in gradients.items()}


def role_of_factor(roles: torch.Tensor) -> torch.Tensor:
    """Most conservative role among the units that use a LoRA factor, frozen ones apart.

    All frozen: frozen. All the same: that. Otherwise task-shared, whose projection protects the retain side
    while the units that must forget still can.
    """
    active = roles[roles != FROZEN]
    if len(active) == 0:
        return roles.new_tensor(FROZEN)
    return active[0] if bool((active == active[0]).all()) else roles.new_tensor(SHARED)


def uniform(units: Units, device: torch.device | str = "cpu") -> torch.Tensor:
    """Every unit forget-specific: the weighted sum of two losses, everywhere, that CURE argues against."""
    return torch.full((len(units.names),), FORGET, device=device)
