"""The fewest modules that carry the answer by themselves: parts are taken out one after another.

The smallest faithful prefix of a ranking holds what matters most *alone*. Modules stand in for one another,
need one another and undo one another: the set that does most *together* is another one, and much smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curerec.circuits.activations import sites_of
from curerec.circuits.attribution import attribute
from curerec.circuits.faithfulness import Faithfulness, judge_modules
from curerec.circuits.passes import Cost, check_halves
from curerec.circuits.selection import halves, sizes_to_judge, smallest_prefix
from curerec.prompts.encoding import Prompts

SHARE = 0.15  # of what is left that one round takes out
TOGETHER = 0.02  # of the margin: more than this is lost by several together only if one stands in for another
TRIED_ONE_BY_ONE = (
    64  # modules up to which each is taken out in turn; of more, a gradient says what it would do
)

#: Change of the mean margin, [elements], if each were patched beside those that are patched already.
Effects = Callable[[Collection[int]], np.ndarray]


@dataclass(frozen=True)
class Compact:
    """A circuit found by elimination.

    Attributes:
        members: indices, the last to be taken out first.
        faithfulness: of the members on the judging pairs.
        curve: (size, faithfulness) of every size judged.
        order: all indices, the last to be taken out first.
    """

    members: tuple[int, ...]
    faithfulness: float
    curve: tuple[tuple[int, float], ...]
    order: tuple[int, ...]


def elimination_order(
    f: Faithfulness, *, effects: Effects | None = None, share: float = SHARE
) -> tuple[int, ...]:
    """All elements, in the opposite of the order in which they can be spared best.

    In each round every element that is left is tried out (patched beside all that went before), and those
    whose loss harms least, or helps most, go: at least one, at most ``share`` of what is left. What works
    against the answer so goes first, and f may exceed 1 on the way. Where several
    lose more together than one by one (each stood in for another), half as many go; where an estimate is
    wrong of a single one, that round is run one by one.

    Args:
        f: over the pairs that choose.
        effects: what patching each would do by a first-order estimate, in place of a run for each.
        share: of the elements left that go at a time.

    Source: backward elimination, as in ACDC (Conmy et al. 2023, arXiv 2304.14997), of modules and not edges,
        by the effect on the margin given everything that is out already.
    """
    left = np.arange(f.total)
    out: list[int] = []
    now, gap = 1.0, float(f.full.mean() - f.empty.mean())

    def one_by_one() -> np.ndarray:
        return f.of([set(left.tolist()) - {int(v)} for v in left]) - now

    while len(left) > 1:
        guessed = effects is not None
        changed = effects(out)[left] / gap if effects is not None else one_by_one()
        many = max(1, int(share * len(left)))
        while True:
            order = np.argsort(-changed, kind="stable")[:many]
            rest = np.delete(left, order)
            after = float(f.of([rest.tolist()])[0])
            if after >= now + changed[order].sum() - TOGETHER or (many == 1 and not guessed):
                break
            if many == 1:
                changed, guessed = one_by_one(), False
            many = max(1, many // 2)
        out += left[order].tolist()
        left, now = rest, after
    return (*left.tolist(), *out[::-1])


def compact(
    choosing: Faithfulness, judging: Faithfulness, *, effects: Effects | None = None, threshold: float = 0.9
) -> Compact:
    """The smallest faithful prefix of the order of elimination.

    Args:
        choosing: over the pairs that the order is found on.
        judging: over other pairs.
        effects: as for :func:`elimination_order`, of the choosing pairs.
        threshold: smallest faithfulness accepted.
    """
    order = elimination_order(choosing, effects=effects)

    def judged(sizes: Sequence[int]) -> Sequence[tuple[int, float]]:
        return judging.curve([order[:size] for size in sizes])

    sizes, curve, at = smallest_prefix(judged, sizes_to_judge(judging.total), threshold)
    return Compact(order[: sizes[at]], curve[at][1], curve, order)


def fewest_parts(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    threshold: float = 0.9,
    batch_size: int = 64,
    seed: int = 0,
    cost: Cost | None = None,
) -> Compact:
    """The fewest heads and MLPs that carry the answer: ordered on half of the pairs, judged on the others.

    Args:
        model: decoder of a known family.
        clean, corrupt: aligned prompts, [n]; halved as :func:`curerec.circuits.core.find_core` halves them.
        answers: token ids of (no, yes).
        threshold: smallest faithfulness accepted.
        batch_size: pairs a pass.
        seed: of the halves.
        cost: is told of the passes, and of a batch that was halved.

    Raises:
        PromptError: fewer than two pairs, pairs that do not align, or none that moves the answer.
    """
    check_halves(clean)
    names = sites_of(model).names

    def over(half: np.ndarray) -> Faithfulness:
        pair = clean.take(half), corrupt.take(half)
        judge = judge_modules(model, *pair, answers, names, batch_size=batch_size, cost=cost)
        return Faithfulness(judge, len(names))

    ranking, judging = halves(len(clean), seed)

    def effects(patched: Collection[int]) -> np.ndarray:
        given = {names[k] for k in patched}
        pair = clean.take(ranking), corrupt.take(ranking)
        found = attribute(model, *pair, answers, scorer="atp", patched=given, batch_size=batch_size)
        return found.values.mean(0)

    by_gradient = effects if len(names) > TRIED_ONE_BY_ONE else None
    return compact(over(ranking), over(judging), effects=by_gradient, threshold=threshold)
