"""Shadow models for U-LiRA: trained, unlearned by the method under attack, and kept, one after the other.

Cost: ``count`` times one fine-tuning and one run of the method. A fine-tuned shadow serves every method, what
it said after unlearning is stored by method; a run that was stopped goes on with the next shadow.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as arrays_as_bytes
from safetensors.torch import load as load_state
from safetensors.torch import save as state_as_bytes

from curerec.data.durable import TEMPORARY, storing, write
from curerec.evaluation.scene import Ground
from curerec.evaluation.ulira import LEAST, Shadows, towards
from curerec.methods import METHODS
from curerec.models import check_finite, fresh_model
from curerec.opened import Opened
from curerec.pipeline import check_method, deterministic, task_for
from curerec.recommender.tune import tune
from curerec.records import Examples, ForgetSplit

POOL = 1000  # deleted and control examples under attack, half each
#: Name of a shadow's file; behind it what tells the parts of one apart that is being written.
SHADOW = re.compile(r"[a-z0-9_]+-[0-9a-f]{12}-[0-9]+[.]safetensors(-[0-9a-f]{8})?")


def make_shadows(
    opened: Opened,
    split: ForgetSplit,
    method: str,
    folder: Path,
    *,
    config: Any = None,
    count: int = LEAST,
    pool: int = POOL,
    budget_s: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Shadows:
    """Train and unlearn shadow models, or take up those that are there.

    The examples under attack are up to ``pool / 2`` of D_f and as many of D_c. Shadow k is fine-tuned on D_r
    and one half of them, drawn at random (every second shadow takes the other half, so each example is in and
    out equally often), then the method unlearns that half, with the other half and the rest of D_c as its
    control set. What is kept is the log odds of the true answer of each example.

    Args:
        opened: the recommender under attack; its recipe trains the shadows.
        split: the request applied.
        method: key of :data:`curerec.methods.METHODS`.
        folder: of the shadows of this recommender and request; made where it is not there.
        config: of the method; None: the recipe's.
        count: shadows wanted, U-LiRA needs 16.
        pool: examples under attack.
        budget_s: seconds after which no further shadow is begun; None: none.
        seed: of halves, training and method.
        progress: told (done, total).

    Returns:
        The shadows there are; fewer than ``count`` where the budget ended.

    Raises:
        RequestError: unknown method.
        StorageError: they cannot be stored.

    Source: Hayes et al. 2024, arXiv 2403.01218, section 4; halves: Carlini et al. 2022, arXiv 2112.03570.
    """
    check_method(method)
    config = config or opened.recipe.config_of(method)
    ground = Ground(opened.data, split, opened.recommender)
    forget, control = drawn_pool(len(split.forget), len(split.control), pool, seed=seed)
    under = _joined(split.forget.take(forget), split.control.take(control))
    rest = split.control.take(np.setdiff1d(np.arange(len(split.control)), control))
    prompts = ground.encode(under)
    halves = halved(len(under), count, seed=seed)
    about = {
        "recommender": opened.recommender.card.get("weights_sha256"),
        "titles": opened.data.titles_digest,
        "deleted": hashlib.sha256(np.packbits(split.deleted).tobytes()).hexdigest(),
        "recipe": opened.recipe.model.model_dump(mode="json"),
        "pool": pool,
        "seed": seed,
    }
    settings = config.model_dump(mode="json") if config is not None else None
    trained, unlearned = _digest(about), _digest({**about, "method": method, "config": settings})
    said: list[np.ndarray] = []
    start = time.monotonic()
    with storing("shadow models"):
        folder.mkdir(parents=True, exist_ok=True)
    for k, inside in enumerate(halves):
        path = folder / f"{method}-{unlearned}-{k}.safetensors"
        found = _stored(path, load_arrays)
        if found is None:
            if budget_s is not None and time.monotonic() - start > budget_s:
                break
            shadow = _original(
                opened, split, under.take(inside), folder / f"original-{trained}-{k}.safetensors", k
            )
            mine = ForgetSplit(
                forget=under.take(inside),
                retain=split.retain,
                control=_joined(under.take(~inside), rest),
                valid=split.valid,
                test=split.valid,  # no method is given a test part; nothing is to be had from it here
                deleted=split.deleted,
                retain_before=None,  # a shadow was fine-tuned on the histories without what is deleted
            )
            task = task_for(
                replace(opened, recommender=replace(opened.recommender, model=shadow)), mine, seed=k
            )
            with deterministic(k):
                outcome = METHODS[method][0](task, config)
            found = {"margins": towards(ground.score(outcome.model, prompts), under.label)}
            with storing("shadow models"):
                write(path, arrays_as_bytes(found))
        said.append(found["margins"])
        if progress:
            progress(k + 1, count)
    n = len(under)
    return Shadows(np.reshape(said, (len(said), n)), halves[: len(said)], forget, control)


def stored_in(folder: Path) -> set[str]:
    """Names of the files of a folder that are shadow models, or what a kill left of one."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if SHADOW.fullmatch(name.removeprefix(TEMPORARY))}


def why_none(card: Mapping[str, Any], config: Any) -> str | None:
    """Why no shadows of these settings tell anything of a model, if they do not.

    Args:
        card: of the model under attack.
        config: of the method, as the shadows would unlearn by it; None: it takes none.

    Returns:
        The reason; None where the settings are those that it was unlearned by, or its card names none.

    Example:
        >>> why_none({"unlearned": [{"method": "retrain"}]}, None) is None
        True
    """
    done = (card.get("unlearned") or [{}])[-1]
    if config is None or done.get("config") in (None, config.digest):
        return None
    return (
        "the model was unlearned by other settings than the recommender's recipe has, and shadows of those "
        "tell nothing of it"
    )


def drawn_pool(n_forget: int, n_control: int, pool: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which examples of D_f and of D_c are under attack, int [m] each, sorted.

    Example:
        >>> [len(side) for side in drawn_pool(30, 20, 1000, seed=0)]
        [20, 20]
    """
    m = min(n_forget, n_control, pool // 2)
    rng = np.random.default_rng([seed, 41])
    return np.sort(rng.choice(n_forget, m, replace=False)), np.sort(rng.choice(n_control, m, replace=False))


def halved(n: int, count: int, *, seed: int) -> np.ndarray:
    """Which examples each shadow is trained on, bool [count, n]; every second takes the other half.

    Example:
        >>> halved(4, 2, seed=0).sum(0).tolist()
        [1, 1, 1, 1]
    """
    out = np.zeros((count, n), bool)
    for k in range(count):
        order = np.random.default_rng([seed, 43, k // 2]).permutation(n)
        out[k, order[: n // 2] if k % 2 == 0 else order[n // 2 :]] = True
    return out


def _original(opened: Opened, split: ForgetSplit, inside: Examples, path: Path, k: int) -> Any:
    """A recommender fine-tuned on D_r and what is to be unlearned, from disk where it is there."""
    model = fresh_model(opened.base, opened.recipe.model, seed=k)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    stored = _stored(path, load_state)
    if stored is not None:
        model.load_state_dict(stored, strict=False)
        return model.eval()
    ground = Ground(opened.data, split, opened.recommender)
    prompts = ground.encode(_joined(split.retain, inside))
    tune(
        model,
        prompts,
        opened.recommender.answers,
        opened.recipe.model.tuning,
        seed=k,
        runtime=opened.recipe.runtime,
    )
    check_finite(model)
    state = {n: p.detach().cpu().clone() for n, p in model.named_parameters() if n in names}
    with storing("shadow models"):
        write(path, state_as_bytes(state))
    return model


def _stored(path: Path, load: Callable[[bytes], dict[str, Any]]) -> dict[str, Any] | None:
    """What a file holds; None where there is none, or one that cannot be read and is to be made anew."""
    try:
        return load(path.read_bytes())
    except (FileNotFoundError, SafetensorError):
        return None


def _joined(a: Examples, b: Examples) -> Examples:
    return Examples(np.r_[a.target, b.target], np.r_[a.history, b.history], np.r_[a.label, b.label])


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
