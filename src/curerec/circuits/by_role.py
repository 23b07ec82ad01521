"""The groups of a record, head by head and MLP by MLP: what colours a drawn circuit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curerec.recommender.families.base import KEY, QUERY, VALUE
from curerec.records import ROLES

#: Matrices of an MLP in the cells of a record, of any family.
MLP = ("gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc1", "fc2", "down_proj", "mlp.c_proj", "mlp")
SHARED = (KEY, VALUE)  # by the query heads of a group


def groups_of_record(
    cells: Sequence[Mapping[str, Any]], *, n_heads: int | None = None
) -> dict[str, dict[str, int]]:
    """Update units of each head and MLP by role, from the cells of a record.

    Keys and values that several query heads share count with each of these.

    Args:
        cells: ``groups.cells`` of a record: counts of units by layer, matrix and head.
        n_heads: query heads a layer; None: as many as the cells of queries name, which an adapter on keys and
            values alone has none of.

    Example:
        >>> counts = {"forget": 2, "retain": 0, "shared": 1, "frozen": 0}
        >>> cell = {"layer": 0, "module": "q_proj", "head": 1, **counts}
        >>> groups_of_record([cell, {**cell, "module": "up_proj", "head": None}])["layers.0.mlp"]["forget"]
        2
    """
    out: dict[str, dict[str, int]] = {}
    named: dict[tuple[int, str], int] = {}
    for cell in cells:
        if cell["layer"] is not None and cell["head"] is not None:
            at = cell["layer"], cell["module"]
            named[at] = max(named.get(at, 0), cell["head"] + 1)
    for cell in cells:
        layer, module, head = cell["layer"], cell["module"], cell["head"]
        if layer is None:
            continue
        if head is not None:
            queries = n_heads or named.get((layer, QUERY), 0)
            share = max(1, queries // named[layer, module]) if module in SHARED else 1
            names = [f"layers.{layer}.head.{h}" for h in range(head * share, (head + 1) * share)]
        elif module in MLP:
            names = [f"layers.{layer}.mlp"]
        else:
            continue
        for name in names:
            counts = out.setdefault(name, dict.fromkeys(ROLES, 0))
            for role in ROLES:
                counts[role] += cell[role]
    return out
