"""What a request by groups will do, stage by stage, counted from its configuration alone."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from curerec.circuits.core import TOP_EXACT
from curerec.circuits.selection import sizes_to_judge
from curerec.methods.cure.gradient_share import CHUNKS
from curerec.methods.cure.method import CureConfig
from curerec.methods.expected import POOL
from curerec.methods.pace import looked_at
from curerec.methods.rollback import DEPTHS, FARTHER
from curerec.methods.teachers import CONTROL, TUNING
from curerec.methods.unlearn import UnlearnConfig

#: ``corrupt``: prompts of D_v with their history altered. ``test``: asked when the result is measured.
Part = Literal["forget", "retain", "control", "valid", "corrupt", "test"]
Kind = Literal[
    "titles", "pairs", "encode", "score", "patched", "atp", "path", "gradient", "products", "base", "copy",
    "assign", "step",
]  # fmt: skip

#: Forward passes of a prompt in each kind of work that runs the model; the others run none.
FORWARDS: dict[Kind, int] = {"score": 1, "patched": 1, "atp": 2, "path": 1, "gradient": 1}
#: Prompts a pass, where no configuration says so: the defaults of the functions that do the work.
BATCH: dict[Kind, int] = {"score": 256, "patched": 64, "atp": 64, "path": 128, "gradient": 128}

AHEAD = 20  # batches of D_r that the update prepares at a time


@dataclass(frozen=True)
class Sizes:
    """Numbers of examples, heads, MLPs and layers; and shares of examples whose answers are not stored.

    Attributes:
        heads, mlps: that the circuit is sought among.
        layers: of the model.
        first: the lowest layer that those lie in.
        unknown_forget, unknown_retain, unknown_control: of theta_o.
        base_forget, base_retain, base_control: of the base; of D_r the share of those that it is asked about.
        waypoints: of the training, that were kept.
        adapter: whether that is what an update changes.
        learns: whether what to expect of a retrain is learned of others; of whole items the base says it.
    """

    forget: int
    retain: int
    control: int
    valid: int
    heads: int
    mlps: int
    layers: int = 1
    first: int = 0
    unknown_forget: float = 1.0
    unknown_retain: float = 1.0
    unknown_control: float = 1.0
    base_forget: float = 1.0
    base_retain: float = 1.0
    base_control: float = 1.0
    waypoints: int = 0
    adapter: bool = False
    learns: bool = True


@dataclass(frozen=True)
class Work:
    """One kind of work on some prompts, so many times.

    Attributes:
        kind: what is done; see :mod:`curerec.measuring` for what each is measured on.
        n: prompts (resamples of ``assign``).
        part: whose prompts.
        times: how often.
        batch: prompts a pass; None: as :data:`BATCH` has it.
        begins: the layer that the passes begin at, in the mean.
    """

    kind: Kind
    n: int = 1
    part: Part = "retain"
    times: float = 1
    batch: int | None = None
    begins: float = 0.0

    @property
    def forwards(self) -> float:
        """Forward passes of a prompt."""
        return FORWARDS.get(self.kind, 0) * self.n * self.times


def _part(work: Work, share: float) -> Work:
    """So much of some work as is not known already."""
    return replace(work, n=round(work.n * share))


def _base(share: float) -> list[Work]:
    """The base is loaded each time that it has to be asked: if answers of it are not known."""
    return [Work("base")] if share > 0 else []


def of_cure(config: CureConfig, sizes: Sizes, kept: Collection[str] = ()) -> dict[str, list[Work]]:
    """Work of ``cure`` (and of its twin on random groups) by stage, in their order.

    Every pool prompt is taken to give a pair. An update that stops early does less than is counted here, one
    with ``stable`` may score its circuit more than once.

    Args:
        config: of the method.
        sizes: of the request and the model.
        kept: what training or an earlier request left: ``circuit``, ``contributions`` (those on D_c).
    """
    update = config.update.for_request(sizes.forget, sizes.retain)
    rewind = update.forget_loss == "rewind"
    pool = min(max(config.pairs, config.pair_pool), sizes.valid)
    pairs = min(config.pairs, pool)
    ranks, judges = pairs // 2, pairs - pairs // 2
    grid = sizes_to_judge(sizes.heads + sizes.mlps)
    exactly = scored_exactly(sizes.heads, sizes.mlps)
    middle = (sizes.first + sizes.layers - 1) / 2  # of the layers that are scored exactly, taken to be alike
    # Judged are first nothing and everything patched, then the grid, each prefix between, and all but the
    # circuit: each time the corrupt run and the first set are whole passes, the other sets are not.
    judgements = 2 + bisections(grid) + 1
    others = 1 + (len(grid) - 1)

    objective = [Work("encode", sizes.forget, "forget")]
    objective += [Work("score", round(sizes.forget * sizes.unknown_forget), "forget")]
    if rewind:  # answers of the base and of the weights halfway to it
        halfway = Work("score", sizes.forget, "forget")
        objective += [*_base(sizes.base_forget), Work("copy"), _part(halfway, sizes.base_forget), halfway]
    if update.forget_loss in ("teacher", "calibrated"):  # theta_o is tuned on D_f further, and asked
        tuning = Work("gradient", sizes.forget, "forget", times=TUNING.epochs, batch=TUNING.batch_size)
        objective += [Work("copy"), tuning, Work("score", sizes.forget, "forget")]
    if update.forget_loss == "calibrated":
        unseen = min(CONTROL, sizes.control)
        objective += [Work("encode", unseen, "control"), Work("score", unseen, "control")]
    scored = min(sizes.forget, config.forget_size)
    retained = min(sizes.control, config.control_size)
    gradient = config.forget_score == "gradient"
    contributions = [Work("encode", retained, "control")]
    contributions += [Work("path", retained, "control", times=config.path_steps)]
    if "contributions" in kept:
        contributions = []
    if gradient:
        parts = 1 if sizes.forget <= config.forget_size else min(CHUNKS, config.forget_size)
        contributions += [*objective, Work("copy"), Work("products", times=parts**2)]
        contributions += [Work("gradient", scored // parts, "forget", times=parts)]
    else:
        contributions += [Work("encode", scored, "forget")]
        contributions += [Work("path", scored, "forget", times=config.path_steps)]

    look = [Work("score", min(update.check_size, getattr(sizes, p)), p) for p in ("valid", "control")]
    watch = [Work("encode", w.n, w.part) for w in look]  # theta_o's answers on D_f are known
    watch += [look[0], _part(look[1], sizes.unknown_control)]
    if update.target != "half":
        on_forget = Work("score", sizes.forget, "forget")
        watch += [*_base(sizes.base_control), _part(look[1], sizes.base_control)]
        watch += [] if rewind else [*_base(sizes.base_forget), _part(on_forget, sizes.base_forget)]
    if update.target == "expected" and sizes.learns:
        on_control = Work("score", min(POOL, sizes.control - look[1].n), "control")
        on_retain = Work("score", min(POOL, sizes.retain))
        asked = [
            _part(on_control, sizes.unknown_control),
            _part(on_control, sizes.base_control),
            _part(on_retain, sizes.unknown_retain),
            _part(on_retain, sizes.base_retain),
        ]
        watch += [Work("encode", w.n, w.part) for w in asked] + asked
        watch += _base(sizes.base_control) + _base(sizes.base_retain)
    part = config.written_for(sizes.forget, sizes.retain)
    passed = 0 if part is None else sizes.waypoints
    wrote = [Work("copy"), Work("gradient", scored, "forget", times=passed)] if passed else []
    depths = []  # looks on the way back, of which there may be one less
    if update.open_gap is not None and config.kept.of(np.arange(4)) is not None:
        n_looks = math.ceil(math.log2(len(FARTHER if passed else DEPTHS)))
        on_forget = Work("score", min(update.check_size, sizes.forget), "forget", times=n_looks)
        depths = [Work("copy", times=n_looks), on_forget, replace(look[1], times=n_looks)]
    counterfactuals = [
        Work("titles"),
        Work("pairs", pool, "valid"),
        Work("encode", pool, "valid", times=2),
        Work("patched", pool, "corrupt"),
        Work("patched", pool, "valid"),
        Work("patched", pool, "valid", begins=sizes.first),
    ]
    circuit = [
        Work("atp", pairs, "valid"),
        Work("patched", ranks, "valid", times=2),
        Work("patched", ranks, "valid", times=exactly, begins=middle),
        Work("patched", judges, "valid", times=2 * judgements),
        Work("patched", judges, "valid", times=others, begins=sizes.first),
    ]
    steps, copies = _steps(update, sizes, look), 1
    if arm := config.second_arm_for(sizes.forget, sizes.retain, adapter=sizes.adapter):
        steps += [*_steps(arm.of(update), sizes, look), *_looked(update, sizes, look)]
        copies = 2
    start = []  # the look at D_f and D_c from which each update's pace is reckoned
    if update.pace_from == "start":
        start = [replace(w, times=copies) for w in (_looked(update, sizes, look)[0], look[1])]
    return {
        "counterfactuals": [] if "circuit" in kept else counterfactuals,
        **({} if "circuit" in kept else {"circuit": circuit}),
        "contributions": contributions,
        "groups": [Work("assign", config.draws), *wrote],
        "prepare": [*watch, *depths, Work("copy", times=copies), *start, *([] if gradient else objective)],
        "update": steps,
    }


def scored_exactly(heads: int, mlps: int) -> int:
    """Modules that :func:`curerec.circuits.core.find_core` scores exactly, as many as are to be expected: the
    top, and so many heads and MLPs at random, of which some are the top's.

    >>> scored_exactly(8, 2), scored_exactly(270, 30)
    (10, 57)
    """
    every = heads + mlps
    top = min(TOP_EXACT, every)
    drawn = min(TOP_EXACT, heads) + min(TOP_EXACT, mlps)
    return round(top + drawn * (1 - top / every))


def bisections(grid: list[int]) -> float:
    """Prefixes that :func:`curerec.circuits.selection.smallest_prefix` judges between two sizes of a grid.

    The mean over its gaps: which of them holds the circuit is not known before.

    >>> bisections([0, 1, 2, 4, 8])
    0.75
    """
    return float(np.mean([math.ceil(math.log2(gap)) for gap in np.diff(grid)]))


def _steps(update: UnlearnConfig, sizes: Sizes, look: list[Work]) -> list[Work]:
    """Work of the update loop, if all of its steps are taken."""
    steps, size = update.max_steps, min(update.retain_batch_size or update.batch_size, sizes.retain)
    retained = Work("gradient", steps * size, "retain", batch=size)
    ready = min(AHEAD * size, sizes.retain) * -(-steps // AHEAD)
    work = [
        Work("encode", ready),
        Work("score", round(ready * sizes.unknown_retain)),
        retained,
        Work("step", times=steps),
    ]
    if update.forget_every is None:
        batch = min(update.batch_size, sizes.forget)
        work.append(Work("gradient", steps * batch, "forget", batch=batch))
    else:
        taken = -(-steps // update.forget_every)
        work.append(Work("gradient", min(update.forget_size, sizes.forget), "forget", times=taken))
    looks = -(-steps // update.check_every)
    if update.looks == "way":  # of few steps some would fall together
        looks = len(looked_at(steps, update.check_every))
    return [*work, *(replace(w, times=looks) for w in _looked(update, sizes, look))]


def _looked(update: UnlearnConfig, sizes: Sizes, look: list[Work]) -> list[Work]:
    """One look at D_f, and at the others."""
    seen = Work("score", min(update.check_size, sizes.forget), "forget")
    return [seen, *(Work("score", w.n, w.part) for w in look)]


__all__ = ["BATCH", "FORWARDS", "Kind", "Part", "Sizes", "Work", "of_cure"]
