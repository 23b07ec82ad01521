"""When the service starts a run by itself: what waits, what is due, and what a kill left behind."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from curerec.errors import RefusedError
from curerec.requests.desk import Desk
from curerec.requests.lock import held
from curerec.requests.stages import RETRAIN
from curerec.requests.store import Store

FIRST_WAIT_S, LONGEST_WAIT_S = 10.0, 3600.0  # after a worker that died, doubled each time
Options = dict[str, bool]


@dataclass(frozen=True)
class Rule:
    """What the operator asked for; without any of the first three nothing starts by itself.

    Attributes:
        every_s: run what is open at most so often.
        before_days: run at once what is due within so many days (0: on the day itself).
        retrain_before_days: retrain for what is held and due within so many days.
        each: a batch a request.
    """

    every_s: float | None = None
    before_days: int | None = None
    retrain_before_days: int | None = None
    each: bool = False

    @property
    def active(self) -> bool:
        """Whether anything starts by itself."""
        return (self.every_s, self.before_days, self.retrain_before_days) != (None, None, None)


def interrupted(store: Store) -> Options | None:
    """How to go on with what a worker left that died, if one did; nobody may be at work."""
    row = store.db.execute(
        "SELECT method FROM batch WHERE state IN ('running', 'committing') ORDER BY created LIMIT 1"
    ).fetchone()
    return None if row is None else ({"retrain": True} if row["method"] == RETRAIN else {})


def due(store: Store, state: str, today: datetime.date, days: int | None) -> list[str]:
    """Requests of a state whose date is at most so many days away."""
    if days is None:
        return []
    last = datetime.date.fromordinal(min(today.toordinal() + days, datetime.date.max.toordinal())).isoformat()
    rows = store.db.execute(
        "SELECT id FROM request WHERE state = ? AND due <= ? ORDER BY id", (state, last)
    ).fetchall()
    return [row["id"] for row in rows]


class Clerk:
    """Looks at the ledger and starts worker processes, one at a time.

    Args:
        desk: that starts them.
        rule: when.
        clock: seconds that only go forward.
        today: the date in UTC.
    """

    def __init__(
        self,
        desk: Desk,
        rule: Rule,
        *,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime.date] = lambda: datetime.datetime.now(datetime.UTC).date(),
    ) -> None:
        self.desk, self.rule, self.clock, self.today = desk, rule, clock, today
        self.last_start: float | None = None
        self.failures = 0
        self._retrained: tuple[str | None, ...] | None = None
        self._retraining: tuple[str | None, ...] | None = None
        self._counted = 0
        self._before = 0  # last event before the last start

    def look(self) -> Options | None:
        """Start a run if one is wanted; returns its options.

        A worker that died is tried again after 10 seconds, then after twice as long each time. What is held
        stays held until something new comes in, and a retrain for it is tried once: the same batch is judged
        the same. One that was refused, or died before it began, was none.
        """
        desk, store = self.desk, self.desk.store
        if desk.busy or held(store.lock):
            return None
        if desk.starts > self._counted:
            self._counted = desk.starts
            # Python ends with 1, too, after an error that nobody expected; a run that ended leaves nothing,
            # and one that holds something began with it.
            died = desk.last_exit not in (0, 1) or interrupted(store) is not None
            died = died or (desk.last_exit == 1 and not self._began())
            self.failures = self.failures + 1 if died else 0
            if self._retraining is not None and self._began(RETRAIN):
                self._retrained = self._retraining
            self._retraining = None
        waited = float("inf") if self.last_start is None else self.clock() - self.last_start
        if self.failures and waited < min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (self.failures - 1)):
            return None
        wanted = self._wanted(store, waited)
        if wanted is None:
            return None
        self.last_start = self.clock()
        self._before = store.db.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0]
        try:
            desk.start(wanted)
        except RefusedError:  # somebody was quicker
            self._retraining = None
            return None
        return wanted

    def _began(self, method: str | None = None) -> bool:
        """Whether a batch (of this method, if one is named) was at work since the last start."""
        row = self.desk.store.db.execute(
            "SELECT 1 FROM event JOIN batch ON batch.id = event.batch "
            "WHERE event.id > ?1 AND method = coalesce(?2, method)",
            (self._before, method),
        ).fetchone()
        return row is not None

    def _wanted(self, store: Store, waited: float) -> Options | None:
        rule, today = self.rule, self.today()
        if (left := interrupted(store)) is not None:
            return left if "retrain" in left else {**left, "each": rule.each}
        if due(store, "open", today, rule.before_days):
            return {"each": rule.each}
        if rule.every_s is not None and waited >= rule.every_s and store.ledger.counts()["open"]:
            return {"each": rule.each}
        late = due(store, "held", today, rule.retrain_before_days)
        tried = (store.version, store.ledger.meta("data"), *late)
        if late and self._retrained != tried:
            self._retraining = tried
            return {"retrain": True}
        return None

    def state(self) -> dict[str, Any]:
        """For ``GET /status``: the rule, and how the workers fared."""
        return {**asdict(self.rule), "starts": self.desk.starts, "failures": self.failures}
