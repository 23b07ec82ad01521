"""A hundred requests one after another on a tiny recommender: nothing drifts unnoticed or piles up."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_store import made_data, made_store, stand, users

from curerec.requests.audit import audit
from curerec.requests.engine import CureEngine
from curerec.requests.runner import run
from curerec.requests.store import Store
from made_commands import LORA, curerec, write_data


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def settled(store: Path) -> int:
    """Bytes that stay: without drafts of what is held and SQLite's log between checkpoints."""
    passing = size_of(store / "work") + sum(p.stat().st_size for p in store.glob("ledger.sqlite-*"))
    return size_of(store) - passing


@pytest.mark.slow
def test_stand_in_requests_grow_the_ledger_by_a_line_each(tmp_path):
    root = made_store(tmp_path / "store", data=made_data(60), drift_budget=10)
    sizes = []
    with Store(root) as store:
        for k in range(24):
            store.ledger.add(users(k))
            assert run(store, stand())[0].committed
            sizes.append(size_of(root) - size_of(root / "data"))
        assert store.drift()[0] == pytest.approx(0.24)
    first, second = sizes[11] - sizes[3], sizes[19] - sizes[11]
    assert second < 1.5 * first, sizes
    assert not audit(root).faults


def many_users(folder: Path) -> Path:
    """The tiny catalogue with enough users for a hundred to go."""
    import made_commands

    rng = np.random.default_rng(1)
    rows = []
    for user in range(260):
        for time_s, item in enumerate(rng.permutation(made_commands.N_ITEMS)[:24]):
            liked = item % 2 == user % 2
            rating = float(rng.integers(3, 6) if liked else rng.integers(1, 5))
            rows.append((f"usr{user}", f"itm{item}", rating, 1000 + time_s))
    return write_data(folder, ratings=rows)


@pytest.mark.parametrize("number", [pytest.param(100, marks=pytest.mark.soak)])
def test_a_hundred_users_one_by_one(number, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    data = many_users(tmp_path / "data")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LORA.replace("train: 240", "train: 1500").replace("other: 90", "other: 400"))
    policy = tmp_path / "policy.yaml"
    policy.write_text("accept_unjudged: true\nretrain_auc_drop: 0.1\n")
    assert curerec("train", "--data", data, "--recipe", recipe, "--out", tmp_path / "r").code == 0
    made = curerec(
        "request", "init", "--store", tmp_path / "s", "--recommender", tmp_path / "r", "--data", data,
        "--policy", policy,
    )  # fmt: skip
    assert made.code == 0, made
    committed = held = retrained = 0
    memory, sizes, spent, drafts = [], [], [], []
    with Store(tmp_path / "s") as store:
        table = store.table()
        codes = np.unique(table.data.user_code[table.split.train.target])[:number]
        for name in table.data.users[codes].tolist():
            request, _ = store.ledger.add(users(0).__class__("users", ((name,),)))
            before = store.drift()
            done = run(store, CureEngine, each=True)
            mine = next(one for one in done if request in one.requests)
            if mine.committed:
                committed += 1
                assert store.drift()[0] > before[0] and store.drift()[0] <= store.policy.drift_budget
            else:
                held += 1
                assert mine.reasons and store.ledger.get(request)["detail"]
                # Those that were held before are tried again in the same run, and may be committed.
                others = [one for one in done if one is not mine]
                assert store.drift() == before or any(one.committed for one in others)
                if any("retrain is due" in reason for reason in mine.reasons) or held >= 5:
                    done = run(store, CureEngine, retrain=True)
                    retrained += all(one.committed for one in done)
                    held = 0
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            sizes.append(settled(tmp_path / "s"))
            drafts.append(len(list((tmp_path / "s" / "work").iterdir())) - held)
            spent.append(store.drift()[0])
        counts = store.ledger.counts()
        assert sum(counts.values()) == number and counts["running"] == 0
        for row in store.ledger.all(["held"]):
            assert row["detail"]
    assert not audit(tmp_path / "s").faults
    half = len(sizes) // 2
    early, late = ((sizes[b] - sizes[a]) / (b - a) for a, b in ((4, half), (half, len(sizes) - 1)))
    with capsys.disabled():
        print(
            f"\n  {number} requests of one user: {committed} committed by themselves, {counts} at the end, "
            f"{retrained} retrains, drift at most {max(spent):.3f}; "
            f"memory {memory[9] >> 10} -> {memory[-1] >> 10} MiB; "
            f"store {sizes[9] >> 10} -> {sizes[-1] >> 10} KiB, "
            f"{early / 1024:.1f} KiB a request in the first half, {late / 1024:.1f} in the second"
        )
    assert memory[-1] < 1.5 * memory[9] and late < 1.5 * early
    assert max(drafts) <= 1  # one a held request, and nothing of those that are done
    shutil.rmtree(tmp_path / "s")
