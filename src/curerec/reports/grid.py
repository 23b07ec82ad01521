"""Where every cell of the module map goes: rows, columns and widths, before anything is drawn."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from curerec.reports.parts import Cell, Score

# Forget and retain at the ends, so that a cell reads from "goes" to "stays".
ORDER = ("forget", "shared", "retain", "frozen")
ROLE_NAMES = {
    "forget": "forget-specific",
    "retain": "retain-specific",
    "shared": "task-shared",
    "frozen": "frozen",
}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn", "o_proj", "attn.c_proj")
_MLP = ("gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc1", "fc2", "down_proj", "mlp.c_proj", "mlp")
_UNIT = re.compile(r"layers?\.(\d+)\.(?:head\.(\d+)|(mlp))$")
LEFT, GAP, BLOCK_GAP = 92.0, 5.0, 24.0  # px: row labels, between cells, between blocks

Column = tuple[str, int]  # ("head", 3) or ("q_proj", -1)


@dataclass
class Grid:
    """What is drawn where, before any pixel."""

    tiles: dict[tuple[int, Column], dict[str, int]] = field(default_factory=dict)
    wide: dict[str, dict[str, int]] = field(default_factory=dict)
    layers: list[int] = field(default_factory=list)
    heads: list[Column] = field(default_factory=list)
    attention: list[Column] = field(default_factory=list)
    mlp: list[Column] = field(default_factory=list)
    other: list[Column] = field(default_factory=list)

    @property
    def blocks(self) -> list[tuple[str, list[Column]]]:
        named = [
            ("Attention heads", self.heads),
            ("Attention", self.attention),
            ("MLP", self.mlp),
            ("Other", self.other),
        ]
        return [(name, columns) for name, columns in named if columns]


def build_grid(cells: Sequence[Cell], scores: Sequence[Score], core: Collection[str]) -> Grid:
    grid = Grid()
    heads_of: dict[tuple[int, str], set[int]] = defaultdict(set)
    for cell in cells:
        if cell.layer is not None and cell.head is not None:
            heads_of[cell.layer, cell.module].add(cell.head)
    columns: set[Column] = set()
    for cell in cells:
        if cell.layer is None:
            _add(grid.wide.setdefault(cell.module, {}), cell)
            continue
        if cell.module not in {"head", "attn"} or cell.head is None:
            columns.add((cell.module, -1))
            _add(grid.tiles.setdefault((cell.layer, (cell.module, -1)), {}), cell)
        # With grouped key/value heads, head 1 of k_proj is not head 1 of q_proj: leave it to its projection.
        most = max((len(h) for (layer, _), h in heads_of.items() if layer == cell.layer), default=0)
        if cell.head is not None and len(heads_of[cell.layer, cell.module]) == most:
            columns.add(("head", cell.head))
            _add(grid.tiles.setdefault((cell.layer, ("head", cell.head)), {}), cell)
    layers = {layer for layer, _ in grid.tiles}
    for match in filter(None, (_UNIT.match(n) for n in [*core, *(s.module for s in scores)])):
        layers.add(int(match[1]))
        if match[2] is not None:
            columns.add(("head", int(match[2])))
        elif not any(name in _MLP for name, _ in columns):
            columns.add(("mlp", -1))
    grid.layers = sorted(layers)
    grid.heads = sorted(c for c in columns if c[0] == "head")
    grid.attention = [(n, -1) for n in _ATTENTION if (n, -1) in columns]
    grid.mlp = [(n, -1) for n in _MLP if (n, -1) in columns]
    placed = {*grid.heads, *grid.attention, *grid.mlp}
    grid.other = sorted(c for c in columns if c not in placed)
    return grid


def _add(counts: dict[str, int], cell: Cell) -> None:
    for role in ORDER:
        counts[role] = counts.get(role, 0) + max(0, getattr(cell, role))


def columns_px(grid: Grid, width: float) -> tuple[dict[Column, tuple[float, float]], float]:
    """Left edge and width of every column, and the width of the whole picture, px."""
    blocks = grid.blocks
    n_heads = len(grid.heads)
    n_rest = sum(len(columns) for _, columns in blocks) - n_heads
    free = width - LEFT - BLOCK_GAP * max(0, len(blocks) - 1)
    head = min(
        76.0, max(14.0, (free - 44.0 * n_rest) / n_heads if n_heads else 0.0, free / (n_heads + n_rest or 1))
    )
    if n_heads * head + n_rest * 44.0 > free:
        head = max(14.0, (free - 44.0 * n_rest) / (n_heads or 1))
    rest = min(76.0, max(44.0, (free - n_heads * head) / (n_rest or 1)))
    xs, x = {}, LEFT
    for _, columns in blocks:
        for column in columns:
            pitch = head if column[0] == "head" else rest
            xs[column] = (x, pitch - GAP)
            x += pitch
        x += BLOCK_GAP
    return xs, max(x - BLOCK_GAP, LEFT + 200.0) + 4.0
