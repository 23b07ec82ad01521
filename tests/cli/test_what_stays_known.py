"""What no request can delete, said or refused before any work: of the base, and of who went before."""

from __future__ import annotations

import json

import numpy as np
import pytest

from curerec.data.readers import read
from curerec.recipe import SplitConfig
from curerec.splitting import public_split, users_by_part
from made_commands import curerec, untouched


@pytest.mark.parametrize("kind", ["users", "interactions", "items"])
def test_what_the_base_was_made_of_is_not_forgotten_and_that_is_said(made_path, kind, tmp_path):
    data = read(made_path.data)
    public, own = users_by_part(data, SplitConfig(public_share=0.4))
    part = public_split(data, SplitConfig(public_share=0.4)).train
    seen = {int(row) for row in (*part.target, *part.history.ravel()) if row >= 0}
    column = {"users": data.user_code, "items": data.item_code}.get(kind, np.arange(len(data)))
    # Two public users and some of the recommender's own, named whole, by their items, or rating by rating.
    named = np.unique(column[np.isin(data.user_code, [*public[:2], *own[:8]])])
    named = named[:6] if kind == "items" else named
    rows = np.flatnonzero(np.isin(column, named))
    hit = [row for row in rows if row in seen]
    text = {
        "users": lambda: ["user", *data.users[named]],
        "items": lambda: ["item", *data.items[named]],
        "interactions": lambda: [
            "user,item",
            *(f"{data.users[data.user_code[r]]},{data.items[data.item_code[r]]}" for r in rows),
        ],
    }[kind]()
    (tmp_path / "request.csv").write_text("\n".join(text) + "\n")
    result = curerec(
        "unlearn", "--recommender", made_path.full, "--data", made_path.data, "--method", "npo",
        "--request", tmp_path / "request.csv", "--out", tmp_path / "new",
    )  # fmt: skip
    assert result.code in (0, 1), result
    asked = json.loads((tmp_path / "new" / "record.json").read_text())["request"]
    assert 0 < len(hit) == asked["n_base_interactions"]
    assert asked["n_base_users"] == len({int(data.user_code[row]) for row in hit})
    assert "stay in it" in asked["note"] and f"note: {asked['note']}" in result.out.splitlines()
    page = (tmp_path / "new" / "report.html").read_text()
    assert "already used to make the base" in page and "Not forgotten by the base model" in page


def test_a_request_that_spares_the_base_says_nothing_of_it(made_path):
    asked = json.loads((made_path.new / "record.json").read_text())["request"]
    assert asked["n_base_interactions"] == asked["n_base_users"] == 0 and asked["note"] is None
    assert "base model was pre-trained on" not in made_path.results["new"].out
    assert "Not forgotten by the base model" not in (made_path.new / "report.html").read_text()


@pytest.mark.parametrize("command", ["unlearn", "plan", "init"])
@pytest.mark.parametrize("which", ["unlearned", "retrained"])
def test_who_was_deleted_before_does_not_count_as_staying(made_path, tmp_path, command, which):
    """The data still have them: an update would hold the model to them, a retrain train on them again."""
    before = made_path.new / "recommender" if which == "unlearned" else made_path.retrains[0]
    second = tmp_path / "second.json"
    first = made_path.request.read_text().split()[1:]
    users = [f"usr{k}" for k in range(60) if f"usr{k}" not in first]
    second.write_text(json.dumps({"kind": "users", "ids": users[:25]}))
    what = ("--recommender", before, "--data", made_path.data)
    line = {
        "unlearn": ("unlearn", *what, "--request", second, "--out", tmp_path / "new"),
        "plan": ("unlearn", *what, "--request", second, "--plan"),
        "init": ("request", "init", *what, "--store", tmp_path / "store"),
    }[command]
    with untouched(before):
        result = curerec(*line)
    assert result.code == 2 and "something was deleted from it before" in result.err, result
    assert not (tmp_path / "new").exists() and not (tmp_path / "store").exists()
