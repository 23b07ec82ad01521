"""Units by head and MLP: keys and values of a group belong to all of its heads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from curerec.circuits.by_role import groups_of_record
from curerec.methods.conflicts import module_of
from curerec.recommender.units import units_of
from curerec.reports.build import groups_part
from made_families import made_family_model


@pytest.mark.parametrize(
    ("model_type", "heads", "groups"), [("smollm2", 9, 3), ("phi3", 4, 2), ("gpt2", 4, 4)]
)
def test_keys_and_values_are_of_the_heads_that_use_them(model_type, heads, groups):
    model = made_family_model(model_type, 30)
    units = units_of(model, "row")
    width = model.config.hidden_size // heads
    of_first_group = [
        n.startswith("layers.0.k_proj.row.") and int(n.split(".")[-1]) < width for n in units.names
    ]
    role = np.where(of_first_group, "forget", "frozen")
    found = SimpleNamespace(modules=units.names, role=role, agreement=np.ones(len(role)))
    counts = groups_of_record(groups_part(found, units.places, "row")["cells"])
    assert {k for k in counts if ".head." in k} == {
        f"layers.{n}.head.{h}" for n in (0, 1) for h in range(heads)
    }
    forget = [counts[f"layers.0.head.{h}"]["forget"] for h in range(heads)]
    assert forget == [width] * (heads // groups) + [0] * (heads - heads // groups)
    assert all(sum(counts[f"layers.0.head.{h}"].values()) == 3 * width for h in range(heads))
    # An adapter on keys and values alone has no queries that say how many heads use them.
    values = [place.module in ("k_proj", "v_proj") for place in units.places]
    names = np.compress(values, units.names)
    some = SimpleNamespace(modules=names, role=role[values], agreement=np.ones(1))
    cells = groups_part(some, [p for p, one in zip(units.places, values, strict=True) if one], "row")["cells"]
    counts = groups_of_record(cells, n_heads=heads)
    assert [counts[f"layers.0.head.{h}"]["forget"] for h in range(heads)] == forget
    of_keys = {module_of(p) for p in units.places if p.layer == 0 and p.module == "k_proj"}
    assert of_keys == {f"layers.0.{'head' if groups == heads else 'kv'}.{g}" for g in range(groups)}
