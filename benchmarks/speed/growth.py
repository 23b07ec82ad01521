"""Question 5: how time and memory of a ``cure`` request grow, one size at a time, with fitted exponents.

The model is ``nano`` with random weights and what is asked are real examples of MovieLens-100K: neither time
nor memory depends on what the weights know. Finding the rows that a request names is ``data.py``'s question.
"""

from __future__ import annotations

import copy
import hashlib
import html
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, found, options, settle, write

from curerec.data.fetch import load
from curerec.data.splits import per_user_split
from curerec.interactions import Interactions
from curerec.methods import METHODS, CureConfig, Task
from curerec.models import device
from curerec.prompts.encoding import answer_tokens
from curerec.recipes import load_recipe
from curerec.recommender.alive import LivePeak
from curerec.recommender.nano import nano_model, nano_tokenizer
from curerec.recommender.tune import TuneConfig
from curerec.records import Examples, Recommender, Split
from curerec.reports.alone import standalone
from curerec.reports.files import replace_file
from curerec.reports.scatter import Axis, Dot, scatter

TINY = CureConfig.model_validate(
    {
        "pairs": 16,
        "pair_pool": 48,
        "control_size": 64,
        "draws": 20,
        "path_steps": 1,
        "update": {"forget_loss": "rewind", "max_steps": 4, "check_every": 2, "check_size": 60},
    }
)


def config_of(tiny: bool) -> CureConfig:
    """The demo's settings, those for small requests left out: they would be a step in two of the curves."""
    if tiny:
        return TINY
    cure = load_recipe("demo").cure
    return cure.model_copy(update={"update": cure.update.model_copy(update={"small": None})})


@dataclass(frozen=True)
class Size:
    """Of a request: examples, examples, blocks, width of the residual stream, items in a history; and how
    many examples there are of D_c and of D_v."""

    forget: int = 300
    training: int = 8000
    layers: int = 2
    width: int = 64
    history: int = 10
    unseen: int = 400


GROWING: dict[str, tuple[int, ...]] = {
    "forget": (100, 200, 400, 800, 1600),
    "training": (2000, 8000, 32000, 128000),
    "layers": (1, 2, 4, 8),
    "width": (32, 64, 128, 256),
    "history": (5, 10, 20, 40),
}


def request(data: Interactions, split: Split, tokenizer: Any, size: Size) -> Task:
    """A request of a size; examples are repeated where there are fewer, histories are drawn at random."""
    rng = np.random.default_rng(0)

    def some(part: Examples, n: int) -> Examples:
        found = part.take(np.resize(np.arange(len(part)), n))
        return replace(found, history=rng.integers(0, len(data.rating), (n, size.history)))

    base = nano_model(tokenizer, width=size.width, layers=size.layers, mlp=11 * size.width // 4)
    tuned = copy.deepcopy(base).requires_grad_(True)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.02 * torch.randn_like(p))
    tuned.to(device())  # its base's weights stay in main memory, as a request's do
    retain = some(split.train, size.training)
    return Task(
        original=Recommender(tuned, tokenizer, "likes", answer_tokens(tokenizer), {"name": "random"}),
        base_state=base.state_dict(),
        data=data,
        forget=some(split.train, size.forget),
        retain=retain,
        retain_before=retain,
        control=some(split.control, size.unseen),
        valid=some(split.valid, size.unseen),
        train_rows=np.unique(split.train.target),
        deleted=np.zeros(len(data.rating), bool),
        tuning=TuneConfig(),
        fresh=lambda: copy.deepcopy(base).to(device()),
    )


def settings_of(of: str, values: Sequence[int], config: CureConfig) -> str:
    """Twelve hex digits of sha256 over what a row is run with: rows of other settings are other rows.

    Args:
        of: the size that grows.
        values: that it has.
        config: of the requests.
    """
    about = {"of": of, "values": list(values), "config": config.digest, "size": asdict(Size())}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of a straight line through the logarithms: 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def measured(of: str, values: Sequence[int], config: CureConfig, repeats: int) -> dict[str, Any]:
    """Seconds, peak bytes of tensors and exponents over sizes."""
    data = load("ml-100k")
    split = per_user_split(data, seed=0)
    tokenizer = nano_tokenizer(data.titles["title"].to_pylist())
    # On a processor its own time: what else the machine does would bend the curves.
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    sizes, seconds, stages, peaks = [], [], {}, []
    for value in values:
        task = request(data, split, tokenizer, replace(Size(), **{of: value}))
        # Of prompts the length in tokens counts, not the number of items.
        tokens = float(task.encode(task.valid).lengths.mean())
        sizes.append(tokens if of == "history" else float(value))

        def run(task: Task = task) -> Any:
            torch.manual_seed(0)
            return METHODS["cure"][0](replace(task, clock=type(task.clock)(), shared={}), config)

        seen = []
        for _ in range(repeats):
            start = clock()
            outcome = run()
            settle()
            seen.append(clock() - start)
        seconds.append(min(seen))
        stages[f"{sizes[-1]:.0f}"] = outcome.details["stages"]
        with LivePeak() as memory:
            run()
        peaks.append(memory.peak)
    names = [f"{s:.0f}" for s in sizes]
    return {
        "time_s": dict(zip(names, seconds, strict=True)),
        "peak_mib": {n: p / 2**20 for n, p in zip(names, peaks, strict=True)},
        "stages": stages,
        "time_exponent": exponent(sizes, seconds),
        "time_exponent_of_last_two": exponent(sizes[-2:], seconds[-2:]),
        "memory_exponent": exponent(sizes, peaks),
        "memory_exponent_of_last_two": exponent(sizes[-2:], peaks[-2:]),
    }


def drawn(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """All curves in one log-log picture: seconds against size, both over those of the smallest size.

    Each is named with its fitted exponent.
    """
    dots, curves = [], []
    for of, values in rows.items():
        # A stored row has them in the order of their texts.
        points = sorted((float(n), s) for n, s in values["time_s"].items())
        (least, first), last = points[0], len(points) - 1
        curves.append([(n / least, s / first) for n, s in points])
        said = f"{of} {values['time_exponent']:.2f}"
        dots += [
            Dot(said if k == last else "", n, s, kind="ours" if k == last else "other")
            for k, (n, s) in enumerate(curves[-1])
        ]
    text = scatter(
        dots[::-1],
        Axis("size, times the smallest; upwards seconds, likewise", lambda v: f"{v:.3g}", log=True),
        Axis("seconds, times the smallest's", lambda v: f"{v:.3g}", log=True),
        name="Growth of a request",
        about=html.escape("; ".join(f"{of} {v['time_exponent']:.2f}" for of, v in rows.items())),
        joined=curves,
    )
    replace_file(path, standalone(text))


def main() -> None:
    """One row a size that grows."""
    parser = options(__doc__ or "")
    parser.add_argument("--of", nargs="*", default=list(GROWING), choices=list(GROWING))
    parser.add_argument("--picture", type=Path, default=HERE / "growth.svg")
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    config = config_of(args.tiny)
    for of in args.of:
        values = GROWING[of][:2] if args.tiny else GROWING[of]
        name = "tokens of a prompt" if of == "history" else of
        key = {
            "question": "growth",
            "of": name,
            "tiny": args.tiny,
            "settings": settings_of(of, values, config),
        }
        if known := found(args.results, key):
            rows[name] = known["values"]  # of a run that was cut off: the picture has it, too
            continue
        rows[name] = measured(of, values, config, 1 if args.tiny else min(args.repeats, 2))
        write(args.results, key, rows[name], args.note)
    if rows and not args.tiny:
        drawn(rows, args.picture)


if __name__ == "__main__":
    main()
