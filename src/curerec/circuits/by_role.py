"""The groups of a record, head by head and MLP by MLP: what colours a drawn circuit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curerec.records import ROLES

#: Matrices of an MLP in the cells of a record, of any family.
MLP = ("gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc1", "fc2", "down_proj", "mlp.c_proj", "mlp")


def groups_of_record(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Update units of each head and MLP by role, from the cells of a record.

    Args:
        cells: ``groups.cells`` of a record: counts of units by layer, matrix and head.

    Example:
        >>> counts = {"forget": 2, "retain": 0, "shared": 1, "frozen": 0}
        >>> cell = {"layer": 0, "module": "q_proj", "head": 1, **counts}
        >>> groups_of_record([cell, {**cell, "module": "up_proj", "head": None}])["layers.0.mlp"]["forget"]
        2
    """
    out: dict[str, dict[str, int]] = {}
    for cell in cells:
        if cell["layer"] is None:
            continue
        if cell["head"] is not None:
            name = f"layers.{cell['layer']}.head.{cell['head']}"
        elif cell["module"] in MLP:
            name = f"layers.{cell['layer']}.mlp"
        else:
            continue
        counts = out.setdefault(name, dict.fromkeys(ROLES, 0))
        for role in ROLES:
            counts[role] += cell[role]
    return out
