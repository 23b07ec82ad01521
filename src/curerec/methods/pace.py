"""When an update looks how far it has come, and how hard it pushes for the rest."""

from __future__ import annotations

import math

from curerec.methods.descent import Log
from curerec.methods.stopping import Watch

MOST = 3.0  # times the first push


class Pace:
    """Sets the weight of the forget loss at looks on the way, so that the last step closes the gap.

    With a rate that falls to 0 over T steps, t of them cover ``1 - (1 - t/T)^2`` of the way. If the
    membership AUC has fallen from ``m_0`` to ``m_t``, the steps left at the same push would take it down by
    ``(m_0 - m_t) (1 - t/T)^2 / (1 - (1 - t/T)^2)``; the push is multiplied by what is left to the target over
    that, up to three times the first. The pace is that since the look before. Since a rest, in which nothing
    pushed, there is none: the push then goes on as it was.

    Args:
        watch: knows the target and the first look.
        steps: of the update.
        push: weight of the forget loss at the start.
        start: membership AUC of what the steps begin with. None: theta_o's, so that what went back before the
            first step counts as pace, and the push is cut at the first look.

    Source: this project's own. Only D_f, D_c and the base model enter.
    """

    def __init__(self, watch: Watch, steps: int, push: float, start: float | None = None) -> None:
        self.watch, self.total = watch, steps
        self.weight, self.most = push, MOST * push
        first = watch.first["membership_auc"] if start is None else start
        self.before: Log = {"step": 0.0, "membership_auc": first}
        self.rested = False

    def push(self, point: Log) -> float:
        """Weight of the forget loss from here on.

        Args:
            point: what the look found, with ``step`` and ``membership_auc``.
        """
        left_now, left_then = (1 - at["step"] / self.total for at in (point, self.before))
        fell = self.before["membership_auc"] - point["membership_auc"]
        wanted = point["membership_auc"] - self.watch.target
        ahead = fell * left_now**2 / (left_then**2 - left_now**2)
        self.before, rested, self.rested = point, self.rested, wanted <= 0
        if self.rested:
            return 0.0
        if rested:
            return self.weight
        # Without a pace (sampling error hid it) the push goes up by as much as may be.
        factor = wanted / ahead if ahead > 0 else MOST
        self.weight = min(self.most, self.weight * factor)
        return self.weight


def looked_at(steps: int, every: int) -> set[int]:
    """Steps after which to look so that equal parts of the way lie between looks; the rate falls to 0.

    Args:
        steps: of the update.
        every: as many looks as one every so many steps makes.

    >>> sorted(looked_at(60, 10)), sorted(looked_at(60, 20))
    ([5, 11, 18, 25, 36, 60], [11, 25, 60])
    """
    n = -(-steps // every)
    return {max(1, round(steps * (1 - math.sqrt(1 - k / n)))) for k in range(1, n + 1)}
