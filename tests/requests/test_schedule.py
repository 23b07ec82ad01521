"""Runs that the service starts by itself: when, how often, and never two at once."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import os
import signal
import time

import pytest
from made_service import ask, served
from made_store import made_store, stand, users

from curerec.errors import RequestError
from curerec.requests import desk as desks
from curerec.requests import recovery, schedule
from curerec.requests import runner as runs
from curerec.requests.audit import audit
from curerec.requests.ledger import Asked
from curerec.requests.lock import runner
from curerec.requests.maintain import status
from curerec.requests.runner import run
from curerec.requests.schedule import Clerk, Rule
from curerec.requests.store import Store
from made_commands import curerec


class Desk:
    """A desk whose workers run at once, in this process, and end as they are told."""

    def __init__(self, root, engine, ends=()):
        self.store, self.engine, self.ends = Store(root), engine, list(ends)
        self.starts, self.last_exit, self.busy, self.options = 0, None, False, []

    def start(self, options):
        self.starts += 1
        self.options.append(options)
        code = self.ends.pop(0) if self.ends else 0
        if code in (0, 1):
            done = run(self.store, self.engine, **options)
            code = 0 if all(one.committed for one in done) else 1
        self.last_exit = code


@pytest.fixture
def made(tmp_path):
    """A clerk of a store with 40 users, its desk, and a clock to set."""
    made = made_store(tmp_path / "store")
    opened = []

    def make(rule, engine=None, ends=()):
        desk = Desk(made, engine or stand(), ends)
        opened.append(desk)
        clock, day = [0.0], [datetime.date(2030, 1, 1)]
        return Clerk(desk, rule, clock=lambda: clock[0], today=lambda: day[0]), desk, clock, day

    yield make
    for desk in opened:
        desk.store.__exit__()


def test_nothing_starts_by_itself_unless_asked(made):
    clerk, desk, *_ = made(Rule())
    assert not clerk.rule.active
    desk.store.ledger.add(users(1))
    assert clerk.look() is None and not desk.starts


def test_what_is_open_runs_at_an_interval(made):
    clerk, desk, clock, _ = made(Rule(every_s=60, each=True))
    assert clerk.look() is None  # nothing is open
    desk.store.ledger.add(users(1))
    assert clerk.look() == {"each": True} and desk.store.ledger.counts()["committed"] == 1
    desk.store.ledger.add(users(2))
    clock[0] = 59
    assert clerk.look() is None
    clock[0] = 61
    assert clerk.look() == {"each": True} and desk.store.ledger.counts()["committed"] == 2


def test_what_is_due_runs_at_once_and_what_is_not_waits(made):
    clerk, desk, _, day = made(Rule(before_days=3))
    desk.store.ledger.add(users(1))  # no date
    desk.store.ledger.add(Asked("users", (("usr002",),), due="2030-01-05"))
    assert clerk.look() is None
    day[0] = datetime.date(2030, 1, 2)
    assert clerk.look() == {"each": False} and desk.store.ledger.counts()["committed"] == 2
    desk.store.ledger.add(Asked("users", (("usr003",),), due="2029-01-01"))  # late already: at once
    assert clerk.look() == {"each": False}


def test_days_past_the_calendar_and_minutes_without_end(made, tmp_path):
    clerk, desk, _, _ = made(Rule(before_days=10**9))
    desk.store.ledger.add(Asked("users", (("usr001",),), due="9999-12-31"))
    assert clerk.look() == {"each": False}
    result = curerec("serve", "--store", tmp_path / "store", "--run-every", "inf")
    assert result.code == 2 and "minutes" in result.err


def test_the_status_tells_the_budgets_that_the_next_run_will_have(made):
    _, desk, _, _ = made(Rule())
    assert status(desk.store)["drift"]["distance_budget"] == 0.5
    policy = desk.store.root / "policy.yaml"
    policy.write_text(policy.read_text().replace("drift_budget: 0.5", "drift_budget: 0.7"))
    assert status(desk.store)["drift"]["distance_budget"] == 0.7


def test_what_is_held_is_retrained_in_time_and_not_tried_again_and_again(made):
    clerk, desk, clock, day = made(Rule(every_s=0, retrain_before_days=1), stand(verified=None, auc_drop=0.5))
    desk.store.ledger.add(Asked("users", (("usr002",),), due="2030-01-05"))
    assert clerk.look() == {"each": False} and desk.store.ledger.counts()["held"] == 1
    for _ in range(5):
        clock[0] += 1000
        assert clerk.look() is None
    day[0] = datetime.date(2030, 1, 4)
    assert clerk.look() == {"retrain": True} and desk.store.ledger.counts()["held"] == 1
    day[0] = datetime.date(2030, 1, 5)
    assert clerk.look() is None  # the same again would be judged the same
    desk.store.ledger.add(Asked("users", (("usr003",),), due="2030-01-05"))
    desk.engine.auc_drop = 0.0
    assert clerk.look() == {"each": False} and desk.store.ledger.counts()["held"] == 2
    assert clerk.look() == {"retrain": True} and desk.store.ledger.counts()["committed"] == 2


def test_a_worker_that_dies_is_tried_again_ever_later(made):
    clerk, desk, clock, _ = made(Rule(every_s=0), ends=[-9] * 12)
    desk.store.ledger.add(users(1))
    starts = []
    for second in range(20_000):
        clock[0] = float(second)
        if clerk.look() is not None:
            starts.append(second)
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert gaps[:4] == [10, 20, 40, 80] and max(gaps) == schedule.LONGEST_WAIT_S
    assert desk.store.ledger.counts()["committed"] == 1 and clerk.failures == 0


def test_a_worker_that_breaks_off_after_the_decision_is_not_tried_at_every_look(made, monkeypatch):
    """An error that nobody expected ends Python with 1, as what is held does."""
    clerk, desk, clock, _ = made(Rule(every_s=0))
    desk.store.ledger.add(users(1))

    def start(options):
        desk.starts, desk.last_exit = desk.starts + 1, 1
        with pytest.raises(RuntimeError):
            run(desk.store, desk.engine, **options)

    def finish(store, batch):
        raise RuntimeError

    monkeypatch.setattr(desk, "start", start)
    for place in (runs, recovery):
        monkeypatch.setattr(place, "finish", finish)
    for second in range(10):
        clock[0] = float(second)
        clerk.look()
    assert (desk.starts, clerk.failures) == (1, 1)


def test_a_worker_that_breaks_off_before_it_began_is_not_tried_at_every_look(made, monkeypatch):
    clerk, desk, clock, _ = made(Rule(before_days=0))
    desk.store.ledger.add(Asked("users", (("usr001",),), due="2030-01-01"))

    def start(options):
        desk.starts, desk.last_exit = desk.starts + 1, 1

    monkeypatch.setattr(desk, "start", start)
    starts = []
    for second in range(75):
        clock[0] = float(second)
        if clerk.look() is not None:
            starts.append(second)
    assert starts == [0, 10, 30, 70] and clerk.failures == 4


@pytest.mark.parametrize("code", [1, -9])
def test_a_retrain_that_did_not_begin_is_tried_again(code, made, monkeypatch):
    """Another run was quicker, or it was killed while it loaded; the day would pass and nobody be told."""
    clerk, desk, clock, _ = made(Rule(before_days=0, retrain_before_days=0), stand(verified=None))
    desk.store.ledger.add(Asked("users", (("usr001",),), due="2030-01-01"))
    assert clerk.look() == {"each": False} and desk.store.ledger.counts()["held"] == 1

    def start(options):
        run(desk.store, desk.engine)  # by hand, without a retrain
        desk.starts, desk.last_exit = desk.starts + 1, code

    with monkeypatch.context() as other:
        other.setattr(desk, "start", start)
        assert clerk.look() == {"retrain": True} and desk.store.ledger.counts()["held"] == 1
    clock[0] = 60
    assert clerk.look() == {"retrain": True} and desk.store.ledger.counts()["committed"] == 1


@pytest.mark.parametrize("retrain", [False, True])
@pytest.mark.parametrize("each", [False, True])
def test_what_a_kill_left_goes_on(each, retrain, made):
    clerk, desk, *_ = made(Rule(before_days=0, each=each))
    desk.store.ledger.add(users(1))
    with pytest.raises(KeyboardInterrupt):
        run(desk.store, stand(fail="verdict", error=KeyboardInterrupt()), retrain=retrain, each=each)
    assert clerk.look() == ({"retrain": True} if retrain else {"each": each})
    assert desk.engine.calls == ["verdict"] and desk.store.ledger.counts()["committed"] == 1


def test_one_at_a_time(made):
    clerk, desk, *_ = made(Rule(every_s=0))
    desk.store.ledger.add(users(1))
    with runner(desk.store.lock):  # somebody runs it by hand
        assert clerk.look() is None
    desk.busy = True
    assert clerk.look() is None and not desk.starts


@pytest.mark.slow
def test_the_service_runs_what_comes_in(tmp_path):
    root = made_store(tmp_path / "store")
    with served(root, wait_s=0.05, rule=Rule(every_s=0.2)) as port:
        for k in range(4):
            assert ask(port, "POST", "/requests", {"kind": "users", "ids": [f"usr{k:03d}"]})[0] == 201
            time.sleep(0.1)
        for _ in range(600):
            seen = ask(port, "GET", "/status")[1]
            if seen["requests"]["committed"] == 4 and not seen["running"]:
                break
            time.sleep(0.05)
        assert seen["requests"]["committed"] == 4, seen
        assert seen["schedule"]["starts"] >= 1 and seen["schedule"]["failures"] == 0
        assert b"curerec_worker_starts" in ask(port, "GET", "/metrics")[1]
    assert not audit(root).faults


@pytest.mark.slow
def test_a_killed_worker_and_a_restarted_service_lose_nothing(tmp_path):
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        store.ledger.add(users(1))
    pid = os.fork()
    if not pid:
        with Store(root) as store:
            run(store, stand(wait_s=30))
        os._exit(0)
    with Store(root) as store:
        while not store.ledger.counts()["running"]:
            time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with served(root, wait_s=0.02, rule=Rule(before_days=0)) as port:
        for _ in range(600):
            if ask(port, "GET", "/status")[1]["requests"]["committed"]:
                break
            time.sleep(0.05)
    with Store(root) as store:
        assert store.ledger.counts()["committed"] == 1
    assert not audit(root).faults


def test_the_service_lets_go_of_rows_that_a_run_deleted(tmp_path, monkeypatch):
    """Its table is mapped: as long as it is held, the deleted file stays on the disk."""
    monkeypatch.setattr(desks, "LOOK_S", 0.02)
    root = made_store(tmp_path / "store")
    desk = desks.Desk(root)
    try:
        asyncio.run(desk.add(users(1), ("row 2",)))
        assert desk._table is not None
        with Store(root) as store:
            assert run(store, stand())[0].committed
        until = time.monotonic() + 20
        while desk._table is not None:
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(RequestError):
            asyncio.run(desk.add(users(1), ("row 2",)))
    finally:
        desk.close()
