"""A tiny benchmark: the made-up catalogue, a nano model, and methods that take a second."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from curerec.bench import artefacts, crew, rows
from curerec.bench.lines import append_line, read_lines
from curerec.bench.plan import plan
from curerec.bench.recipe import BenchRecipe
from curerec.config import parse
from curerec.evaluation.inputs import p_yes
from curerec.evaluation.residual import Reference
from made_commands import write_data

crew_serve = crew.serve
SHORT = {"max_steps": 4, "check_every": 2, "check_size": 60, "batch_size": 32, "max_auc_drop": 1}
CHANGE: dict[str, Any] = {
    "split": {"public_share": 0.4, "train": 240, "other": 90},
    "model": {
        "pretrain": {"epochs": 1, "batch_size": 64, "lr": 2.0e-3},
        "tuning": {"epochs": 1, "batch_size": 32, "lr": 1.0e-3, "ema": 0.0},
    },
    "cure": {
        "pairs": 16,
        "pair_pool": 32,
        "forget_size": 40,
        "control_size": 40,
        "draws": 10,
        "update": {k: v for k, v in SHORT.items()},
    },
    "npo": SHORT,
}


def made_recipe(**change: Any) -> BenchRecipe:
    """The recipe, with some keys replaced."""
    values: dict[str, Any] = {
        "name": "made",
        "datasets": {"made": {}},
        "models": {"nano": {"recipe": "demo", "change": CHANGE, "every_method": SHORT}},
        "requests": [{"share": 0.2, "methods": ["npo", "grad_diff"]}],
        "seeds": [20],
        "retrains": 2,
        "draws": 50,
    }
    return parse(BenchRecipe, {**values, **change}, where="test")


def made_place(folder: Path) -> dict[str, str]:
    """Where the catalogue is."""
    return {"made": str(write_data(folder / "data"))}


def leaves_later(*args: Any) -> None:
    """A worker whose GPU is lost by its first job, as it finds out after a second, and which then ends."""

    def lost() -> bool:
        time.sleep(1)
        return True

    crew.gpu_is_lost = lost
    crew_serve(*args)


def made_rows(out: Path, recipe: BenchRecipe, *, worth: dict[str, float] | None = None, n: int = 400) -> None:
    """A folder as a run would leave it, with planted answers in place of models.

    Retrains answer alike but for noise, the original is off by a shift; a method keeps the share ``worth`` of
    that shift (default: half), so its residual should come out near the share squared. On D_c original and
    methods keep a fifth of the shift: what the deleted data had changed about everyone.

    Args:
        out: folder.
        recipe: of the run.
        worth: share of the shift that a method keeps; None in it: the cell failed.
        n: examples of D_f.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(recipe.model_dump_json())
    for job in plan(recipe):
        if job.ask is None or job.kind not in ("cell", "yardstick"):
            continue
        rng = np.random.default_rng([job.seed, 1])
        truth, unseen = rng.normal(size=(2, n))
        retrains = [truth + 0.05 * rng.normal(size=n) for _ in range(recipe.retrains)]
        shift = rng.normal(size=n)
        elsewhere = [unseen + 0.05 * rng.normal(size=n) for _ in range(recipe.retrains)]
        yard = f"{job.seed}-{job.request}.safetensors"

        def logits(z: np.ndarray) -> np.ndarray:
            return np.stack([np.zeros_like(z), z], 1).astype(np.float32)

        names = ["original", *(f"retrain_{k + 1}" if k else "retrain" for k in range(recipe.retrains))]
        yes = [p_yes(logits(z)) for z in (truth + shift, *retrains)]
        scale = Reference(np.stack(yes[1:]), yes[0])
        control = Reference(
            np.stack([p_yes(logits(z)) for z in elsewhere]), p_yes(logits(unseen + 0.2 * shift))
        )
        about = {"n_forget": n, "floor": scale.floor, "ceiling": scale.ceiling, "rankable": scale.rankable}
        told: list[tuple[str, dict[str, Any]]] = []
        if job.kind == "yardstick":
            answers = dict(zip(names, (truth + shift, *retrains), strict=True))
            arrays = {f"{k}/forget": logits(z) for k, z in answers.items()}
            for k, z in zip(names, (unseen + 0.2 * shift, *elsewhere), strict=True):
                arrays[f"{k}/control"] = logits(z)
            artefacts.write_arrays(out / artefacts.YARDSTICKS / yard, arrays, {"of": "test"})
            for k in names:
                ours = {"residual": None, "excess_jsd": scale.floor - control.floor}
                if k == "original":
                    excess = scale.ceiling - control.ceiling
                    ours = {"residual": 1.0, "jsd": scale.ceiling, "excess_jsd": excess}
                told.append((k, {"test_auc": 0.7, **ours}))
            told.append(("base", {"test_auc": 0.8, "residual": 1.2}))
        else:
            share = (worth or {}).get(job.method, 0.5)
            row: dict[str, Any] = {"failure": "out of memory"}
            if share is not None:
                noise = np.random.default_rng([job.seed, *job.method.encode()]).normal(size=n)
                p = p_yes(logits(truth + share * shift + 0.05 * noise))
                name = f"{job.seed}-{job.ask.key}-{job.method}.safetensors"
                p_c = p_yes(logits(unseen + 0.2 * shift + 0.05 * noise))
                artefacts.write_arrays(
                    out / artefacts.PREDICTIONS / name, {"forget": p, "control": p_c}, {"of": "test"}
                )
                distance = scale.distance(p)
                row = {
                    "predictions": name,
                    "jsd": distance,
                    "residual": scale.residual(distance),
                    "excess_jsd": distance - control.distance(p_c),
                    "test_auc": 0.7 + 0.01 * share - 0.002,
                    "membership_auc": 0.5 + 0.1 * share,
                    "membership_gap": 0.1 * share,
                    "t_total": 10.0 + 50 * share + job.seed % 5,
                    "t_core": 5.0,
                    "retrain_ratio": 0.1 + share,
                    "peak_memory": 600e6,
                    "trainable_parameters": 100_000,
                }
            told.append((job.method, row))
        for name, values in told:
            made = {**rows.about(recipe, job, name, shared=False), **about, "yardstick": yard, "wall_s": 9.0}
            append_line(out / "rows.jsonl", rows.explained({**made, **values}))


def count_trainings(patch: Any) -> list[str]:
    """Folders that something is trained into from now on."""
    seen: list[str] = []
    real = artefacts.train

    def train(data: Any, recipe: Any, folder: Path, **rest: Any) -> Any:
        seen.append(folder.name)
        return real(data, recipe, folder, **rest)

    patch.setattr(artefacts, "train", train)
    return seen


TABLED = ["cure", "random_modules", "npo", "scrub"]
WORTH = {"cure": 0.2, "random_modules": 0.6, "npo": 0.2}  # residuals that are planted


def table_recipe(**change: Any) -> BenchRecipe:
    """A recipe whose rows are made up, not run."""
    ask = {"share": 0.1, "methods": TABLED}
    return made_recipe(**{"seeds": [20, 21, 22], "requests": [ask], "draws": 200, **change})


def line_of(summary: dict[str, Any], name: str, block: int = 0) -> dict[str, Any]:
    """A method's line of the table."""
    return next(x for x in summary["blocks"][block]["lines"] if x["name"] == name)


def change_rows(folder: Path, change: Any) -> list[dict[str, Any]]:
    """The folder's rows, each changed in place."""
    path = folder / "rows.jsonl"
    found = read_lines(path)
    for row in found:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return found
