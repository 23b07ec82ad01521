"""Questions 3 and the plan's: a request's seconds by stage at shares of the users, Retrain's, and the plan's.

All in one run on one machine. ``--methods`` takes any that unlearn. ``--kept``: also a request that finds
the retain side that `curerec train` left, as the command does. ``--recipe``: the settings of another recipe
than the one that is stored with the recommender.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import done, options, rows_of, write

from curerec.data.fetch import load
from curerec.data.forget import draw_request
from curerec.evaluation.cost import Meter
from curerec.opened import Opened, open_recommender
from curerec.pipeline import prepare, unlearn
from curerec.plan import PLANNED, plan
from curerec.recipes import load_recipe
from curerec.records import ForgetRequest


def main() -> None:
    """One row a share, method and repeat."""
    parser = options(__doc__ or "")
    parser.add_argument("--recommender", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.001, 0.01, 0.1])
    parser.add_argument("--methods", nargs="*", default=["cure", "e2urec", "retrain"])
    parser.add_argument("--kept", action="store_true", help="also cure as the command runs it")
    parser.add_argument("--recipe", help="settings of the methods; default: those stored")
    args = parser.parse_args()
    opened = open_recommender(args.recommender, load(args.data))
    settings = load_recipe(args.recipe) if args.recipe else opened.recipe
    fewer = settings.cure.update.all_steps_from
    users = len(set(opened.data.user_code[opened.split.train.target].tolist()))
    shares = args.shares[-1:] if args.tiny else args.shares
    ways = [(method, False) for method in args.methods] + ([("cure", True)] if args.kept else [])
    with tempfile.TemporaryDirectory() as folder:
        side = Path(folder)
        if args.kept:
            prepare(opened, side, settings.config_of("cure"))
        for share in shares:
            real = max(share, 1.01 / users)  # at least one user
            request = draw_request(opened.data, opened.split, share=real, seed=1)
            for repeat in range(1 if args.tiny else args.repeats):
                for method, kept in ways:
                    key = {"question": "request", "share": share, "method": method, "repeat": repeat}
                    key |= {"model": opened.recommender.base["name"], "n_train": len(opened.split.train)}
                    key |= {"kept": True} if kept else {}
                    key |= {"recipe": args.recipe} if args.recipe else {}
                    key |= {"all_steps_from": fewer} if fewer else {}
                    if not done(args.results, key):
                        config = None if method == "retrain" else settings.config_of(method)
                        values = timed(opened, request, method, config, repeat, side if kept else None)
                        write(args.results, key, values, args.note)
            show(rows_of(args.results), opened, share, args.recipe)


def timed(
    opened: Opened, request: ForgetRequest, method: str, config: Any, seed: int, side: Path | None
) -> dict[str, object]:
    """Seconds of one request, by stage, and those that the plan gave it.

    Args:
        opened: the recommender.
        request: what to delete.
        method: that unlearns.
        config: its settings.
        seed: of the method.
        side: folder of the retain side that training left; None: nothing was left.
    """
    values: dict[str, object] = {"n_users": len(request.ids)}
    planned = None
    # What was kept is of the seed that it was kept under.
    seed = 0 if side else seed
    if method in PLANNED:
        made = plan(opened, request, method, config, seed=seed, retain_side=side)
        planned = made.time_s
        values["planned"] = {s.name: s.time_s for s in made.stages}
        values |= {"planned_s": planned, "calibration_s": made.calibration_s}
        passes = sum(s.forward_equivalents for s in made.stages)
        values |= {"planned_mem_bytes": made.request_bytes, "planned_passes": passes}
    start = time.perf_counter()
    with Meter() as meter:
        outcome, split = unlearn(opened, request, method, config, seed=seed, retain_side=side)
    values |= {"wall_s": time.perf_counter() - start, "t_total_s": outcome.t_total_s}
    values |= {"stages": outcome.details.get("stages", {}), "n_forget": len(split.forget)}
    values |= {"peak_mem_bytes": meter.peak_mem_bytes, "passes": meter.forward_equivalents}
    values["kept"] = list(outcome.details.get("kept", []))
    values["planned_over_real"] = planned / outcome.t_total_s if planned else None
    return values


def show(rows: list[dict[str, Any]], opened: Opened, share: float, recipe: str | None) -> None:
    """Print the medians of a share, and what of them ``cure`` takes.

    Args:
        rows: of the results.
        opened: the recommender.
        share: of the users.
        recipe: whose settings were taken, if others than those stored.
    """
    n_train, fewer = len(opened.split.train), opened.recipe.cure.update.all_steps_from
    wanted = {"question": "request", "model": opened.recommender.base["name"], "n_train": n_train}
    wanted |= {"share": share, **({"all_steps_from": fewer} if fewer else {})}
    mine = [
        r for r in rows if wanted.items() <= r["key"].items() and r["key"].get("recipe") in (None, recipe)
    ]
    times: dict[str, list[float]] = {}
    for row in mine:
        name = row["key"]["method"] + (", retain side kept" if row["key"].get("kept") else "")
        name += f", {recipe}" if recipe and row["key"].get("recipe") else ""
        times.setdefault(name, []).append(row["values"]["t_total_s"])
    if "cure" not in times:
        return
    ours = median(times["cure"])
    for method, seconds in times.items():
        head = f"{share:g} of the users, {n_train} prompts: {method} {median(seconds):.1f} s"
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}, {len(seconds)} runs"
        print(f"{head} ({spread}); {median(seconds) / ours:.1f} times cure's")


if __name__ == "__main__":
    main()
