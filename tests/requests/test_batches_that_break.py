"""A stage that breaks, on a request or by chance: nobody else waits for it, nothing is tried without end."""

from __future__ import annotations

import pytest
from made_store import made_store, stand, users

from curerec.requests import runner
from curerec.requests.audit import audit
from curerec.requests.ledger import Asked
from curerec.requests.runner import run
from curerec.requests.store import Store
from made_commands import curerec


@pytest.fixture
def root(tmp_path):
    return made_store(tmp_path / "store")


def breaks(stage, *who):
    """An engine that breaks off at a stage where one of these users is to be deleted."""

    class Breaks(stand()):  # type: ignore[misc]
        def _stage(self, name):
            gone = self.job.table.data.ratings["user"].filter(self.job.deleted).to_pylist()
            if name == stage and not set(who).isdisjoint(gone):
                raise ValueError("about usr001")
            super()._stage(name)

    return Breaks


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("stage", ["circuit", "update", "verdict"])
def test_a_request_that_breaks_a_stage_holds_nobody_else_up(stage, each, root):
    with Store(root) as store:
        bad = store.ledger.add(Asked("users", (("usr001",),), due="2030-01-01"))[0]
        good = [store.ledger.add(users(k))[0] for k in range(2, 3 if each else 9)]
        done = run(store, breaks(stage, "usr001"), each=each)
        broke = [one for one in done if bad in one.requests]
        assert not any(one.committed for one in broke) and broke[-1].requests == (bad,)
        assert [len(one.requests) for one in broke] == ([1] if each else [8, 4, 2, 1])
        assert (
            "ValueError at test_batches_that_break.py" in done[0].reasons[0]
            and "usr001" not in done[0].reasons[0]
        )
        assert store.ledger.get(bad)["state"] == "held"
        assert {store.ledger.get(name)["state"] for name in good} == {"committed"}
        assert not audit(root).faults
        assert run(store, stand())[0].committed


def test_two_that_break_and_one_that_deletes_all(root):
    with Store(root) as store:
        bad = [store.ledger.add(users(k))[0] for k in (1, 2)]
        whole = store.ledger.add(Asked("users", tuple((f"usr{k:03d}",) for k in range(40))))[0]
        good = [store.ledger.add(users(k))[0] for k in range(3, 9)]
        done = run(store, breaks("update", "usr001", "usr002"))
        assert {store.ledger.get(name)["state"] for name in good} == {"committed"}
        assert {store.ledger.get(name)["state"] for name in (*bad, whole)} == {"held"}
        assert {one.requests[0] for one in done if one.broke and len(one.requests) == 1} == {*bad, whole}
        assert not audit(root).faults


def test_what_breaks_every_batch_is_tried_fifteen_times_and_no_more(root):
    with Store(root) as store:
        for k in range(20):
            store.ledger.add(users(k))
        done = run(store, breaks("circuit", *(f"usr{k:03d}" for k in range(20))))
        assert [len(one.requests) for one in done] == [20, *[10] * 2, *[5] * 4, *[2, 3] * 4]
        assert store.ledger.counts()["held"] == 20
        assert len(run(store, stand())) == 1 and store.ledger.counts()["committed"] == 20


def test_a_batch_that_breaks_by_chance_is_committed_in_halves(root, tmp_path, monkeypatch):
    """And the command's exit code is that of what is left."""
    with Store(root) as store:
        for k in range(4):
            store.ledger.add(users(k))
    once = iter([True])

    class Once(stand()):  # type: ignore[misc]
        def _stage(self, name):
            if next(once, False):
                raise ValueError
            super()._stage(name)

    monkeypatch.setattr("curerec.requests.engine.CureEngine", Once)
    result = curerec("request", "run", "--store", root, "--no-prepare")
    assert result.code == 0, result
    assert result.out.count("committed, 2 request(s)") == 2 and result.out.count("in halves") == 1


def test_a_fault_after_the_decision_is_not_a_refusal(root, monkeypatch):
    with Store(root) as store:
        store.ledger.add(users(1))
        monkeypatch.setattr(runner, "finish", lambda store, batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(store, stand())
        monkeypatch.undo()
        assert any("interrupted" in fault for fault in audit(root).faults)
        assert run(store, stand()) == [] and store.ledger.counts()["committed"] == 1
    assert not audit(root).faults
