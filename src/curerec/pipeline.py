"""The stages as functions without state: train, unlearn, compare. Command and demo only call these."""

from __future__ import annotations

import contextlib
import copy
import platform
import resource
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig as PeftLora
from peft import get_peft_model

from curerec.config import parse
from curerec.data.forget import apply_request
from curerec.data.output import check_out
from curerec.data.splits import LIKED, per_user_split, subsample
from curerec.errors import ConfigError, DataError, ModelError, RequestError
from curerec.methods import METHODS, Task
from curerec.progress import Clock, Reporter, Silent
from curerec.prompts.encoding import Encoder, Prompts, answer_tokens, queries
from curerec.prompts.templates import TEMPLATES
from curerec.recipe import ModelConfig, Recipe, SplitConfig
from curerec.recommender import bases, storage
from curerec.recommender.families import family_of
from curerec.recommender.score import score
from curerec.recommender.tune import tune
from curerec.records import Examples, ForgetRequest, ForgetSplit, Interactions, Outcome, Recommender, Split


def device() -> torch.device:
    """A CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def users_by_part(data: Interactions, config: SplitConfig) -> tuple[np.ndarray, np.ndarray]:
    """User codes of the public part (the base's pre-training) and of the recommender's own part."""
    order = np.random.default_rng([config.seed, 91]).permutation(len(data.users))
    n = round(config.public_share * len(order))
    return np.sort(order[:n]), np.sort(order[n:])


def split_of(data: Interactions, config: SplitConfig) -> Split:
    """The recommender's split, the same whenever it is asked for with the same data and configuration.

    Raises:
        DataError: histories are too short for one, or everything in a part was liked, or nothing.
    """
    _, own = users_by_part(data, config)
    whole = per_user_split(
        data,
        seed=config.seed,
        control_share=config.control_share,
        holdout_share=config.holdout_share,
        users=own,
    )
    split = subsample(whole, train=config.train, other=config.other, seed=config.seed)
    for role in ("train", "valid", "test"):
        if len(np.unique(getattr(split, role).label)) < 2:
            raise DataError(
                f"all ratings of the {role} part are on one side of {LIKED:g}: nothing to tell apart",
                where=data.name,
                mend="Use more data, or ratings on a scale of five with liked and disliked items",
            )
    return split


def base_folder(
    data: Interactions,
    recipe: Recipe,
    *,
    cache: Path | None = None,
    clock: Clock | None = None,
) -> Path:
    """The folder of the recipe's base model; nano is pre-trained on the public part of the users first.

    Raises:
        ModelError: nano without a public part.
    """
    name = recipe.model.base
    if name != bases.NANO:
        return bases.resolve(name, cache=cache)
    if not recipe.split.public_share:
        raise ModelError(
            "needs users to be pre-trained on",
            where="base model nano",
            mend="Set split.public_share, e.g. 0.4",
        )
    public, _ = users_by_part(data, recipe.split)
    part = per_user_split(data, seed=recipe.split.seed, users=public)
    about = {
        "data": data.fingerprint,
        "titles": data.titles["title"].to_pylist() == [] or _titles_digest(data),
        "split": {"seed": recipe.split.seed, "public_share": recipe.split.public_share},
        "pretrain": recipe.model.pretrain.model_dump(mode="json"),
        "template": recipe.model.template,
    }

    def pretrain(model: Any, tokenizer: Any, progress: Any) -> None:
        encoder = Encoder(tokenizer, recipe.model.template, data.titles["title"].to_pylist())
        prompts = encoder.encode(queries(data, part.train))
        model.to(device())
        tune(
            model, prompts, encoder.answers, recipe.model.pretrain, seed=recipe.split.seed, progress=progress
        )
        model.to("cpu")

    with (clock or Clock()).stage("pre-train the base model") as advance:
        return bases.make_nano(
            data.titles["title"].to_pylist(),
            about,
            pretrain,
            seed=recipe.split.seed,
            cache=cache,
            progress=advance,
        )


def _titles_digest(data: Interactions) -> str:
    import hashlib

    return hashlib.sha256("\n".join(data.titles["title"].to_pylist()).encode()).hexdigest()


def fresh_model(folder: Path, config: ModelConfig, *, seed: int) -> Any:
    """The base as fine-tuning starts from it: all parameters trainable, or a new adapter.

    Args:
        folder: of the base.
        config: kind and adapter shape.
        seed: of the adapter's initial weights.
    """
    model, _ = storage.load_base(folder, device=device())
    if config.kind == "full":
        model.requires_grad_(True)
        return model
    family = family_of(model)
    known = family.projections
    unknown = set(config.lora.targets or []) - set(known)
    if unknown:
        raise ModelError(
            f"has no projection {', '.join(sorted(unknown))}",
            where="model.lora.targets",
            mend=f"Choose from {', '.join(known)}",
        )
    shape = PeftLora(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        # Paths and not last names: GPT-2 calls two maps c_proj.
        target_modules=[known[t].path for t in (config.lora.targets or known)],
        fan_in_fan_out=family.transposed,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, shape).eval()


def train(
    data: Interactions,
    recipe: Recipe,
    out: Path,
    *,
    without: ForgetRequest | None = None,
    base: Path | None = None,
    cache: Path | None = None,
    clock: Clock | None = None,
) -> Recommender:
    """Fine-tune a recommender and save it.

    Args:
        data: interactions.
        recipe: split, model, seed.
        out: folder to write.
        without: leave out what this request deletes (a retrain).
        base: folder of the base model, if it is not to be found by name.
        cache: of the user.
        clock: stages and their seconds.

    Returns:
        The recommender as saved.

    Raises:
        CurerecError: data, request, base or output folder cannot be used, or training diverged.
    """
    clock = clock or Clock()
    # What can be refused is refused before the minutes of training.
    check_out(out, marker=storage.CARD, inputs=[base])
    split = split_of(data, recipe.split)
    examples = split.train if without is None else apply_request(data, split, without).retain
    check_template(recipe.model.template)
    folder = base or base_folder(data, recipe, cache=cache, clock=clock)
    model = fresh_model(folder, recipe.model, seed=recipe.seed)
    about = bases.describe(recipe.model.base, folder)
    _, tokenizer = storage.load_base(folder)
    encoder = Encoder(tokenizer, recipe.model.template, data.titles["title"].to_pylist())
    prompts = encoder.encode(queries(data, examples))
    check_fits(model, prompts)
    with clock.stage("fine-tune") as advance:
        tune(model, prompts, encoder.answers, recipe.model.tuning, seed=recipe.seed, progress=advance)
    check_finite(model)
    recommender = Recommender(
        model=model,
        tokenizer=tokenizer,
        template=recipe.model.template,
        answers=answer_tokens(tokenizer),
        base=about,
        card={
            "kind": recipe.model.kind,
            "data": {"name": data.name, "source": data.source, "fingerprint": data.fingerprint},
            "recipe": recipe.model_dump(mode="json"),
            "n_train": len(examples),
            "train_time_s": clock.seconds["fine-tune"],
            "without": without.digest if without else None,
            "versions": versions(),
        },
        path=out,
    )
    storage.save(recommender, out)
    return recommender


def check_template(name: str) -> None:
    """Refuse a template that is none.

    Raises:
        ConfigError: naming those there are.
    """
    if name not in TEMPLATES:
        mend = f"Choose from {', '.join(TEMPLATES)}"
        raise ConfigError("is no template", where="model.template", mend=mend)


def check_finite(model: Any) -> None:
    """Refuse weights that training drove out of the numbers.

    Raises:
        ModelError: a weight is infinite or not a number.
    """
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise ModelError(
            "training diverged: its weights are no finite numbers any more",
            where="fine-tuning",
            mend="Lower the learning rate (lr) in the recipe",
        )


def check_fits(model: Any, prompts: Prompts) -> None:
    """Refuse prompts longer than the model's positions.

    Raises:
        ModelError: naming both lengths.
    """
    room = getattr(model.config, "max_position_embeddings", None)
    longest = int(prompts.lengths.max())
    if room and longest > room:
        raise ModelError(
            f"has {room} positions, the longest prompt {longest} tokens",
            where="base model",
            mend="Use a model with more positions or shorter titles",
        )


@dataclass(frozen=True)
class Opened:
    """A saved recommender with its data, split and base at hand."""

    recommender: Recommender
    recipe: Recipe
    data: Interactions
    split: Split
    base: Path


def open_recommender(
    folder: Path, data: Interactions, *, base: Path | None = None, cache: Path | None = None
) -> Opened:
    """Load a recommender and rebuild the split that it was trained on.

    Raises:
        ModelError: the data are not those that it was trained on, or its files are not what its card says.
    """
    card = storage.read_card(folder)
    if card["data"]["fingerprint"] != data.fingerprint:
        raise ModelError(
            "was trained on other ratings than these (the fingerprints differ)",
            where=f"recommender {Path(folder).name}",
            mend="Give --data the ratings that `curerec train` read",
        )
    recipe = parse(Recipe, card["recipe"], where=f"recommender {Path(folder).name}, recipe in {storage.CARD}")
    where = base or bases.resolve(card["base"]["name"], cache=cache)
    recommender = storage.load(folder, where, device=device())
    return Opened(recommender, recipe, data, split_of(data, recipe.split), where)


def check_references(folders: list[Path], request: ForgetRequest) -> None:
    """Refuse reference models that would measure something else.

    Args:
        folders: of ``curerec train --without``.
        request: what they must have been trained without.

    Raises:
        ModelError: one saw what is to be deleted, or two are the same model: no noise floor.
    """
    seen: set[str] = set()
    for folder in folders:
        card = storage.read_card(folder)
        where = f"--retrain {folder.name}"
        if card.get("without") != request.digest:
            mend = "Give a folder of `curerec train --without` with the same request"
            raise ModelError("was not trained without this request", where=where, mend=mend)
        if card["weights_sha256"] in seen:
            mend = "Train it with another --seed"
            raise ModelError("holds the same weights as another one", where=where, mend=mend)
        seen.add(card["weights_sha256"])


def task_for(opened: Opened, split: ForgetSplit, *, seed: int, clock: Clock | None = None) -> Task:
    """The request as a method sees it.

    Raises:
        ModelError: the fine-tuning changed nothing, so there is nothing to forget.
    """
    kind = opened.recipe.model.kind
    state = None
    if kind == "full":
        plain, _ = storage.load_base(opened.base, device=device())
        state = plain.state_dict()
    storage.check_changes_something(opened.recommender.model, state)
    return Task.of(
        split,
        original=opened.recommender,
        base_state=state,
        data=opened.data,
        tuning=opened.recipe.model.tuning,
        fresh=lambda: fresh_model(opened.base, opened.recipe.model, seed=seed),
        seed=seed,
        clock=clock or Clock(),
    )


def check_method(name: str) -> None:
    """Refuse a method that is none.

    Raises:
        RequestError: naming those there are.
    """
    if name not in METHODS:
        raise RequestError("unknown method", where="--method", mend=f"Choose from {', '.join(METHODS)}")


def unlearn(
    opened: Opened,
    request: ForgetRequest,
    method: str,
    config: Any = None,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> tuple[Outcome, ForgetSplit]:
    """Run one method on one request.

    Args:
        opened: from :func:`open_recommender`.
        request: what to delete.
        method: key of :data:`curerec.methods.METHODS`.
        config: the method's configuration; None takes the recipe's or its default.
        seed: of the method.
        reporter: told of stages.

    Raises:
        RequestError: unknown method, or a request that cannot be granted.
    """
    check_method(method)
    split = apply_request(opened.data, opened.split, request)
    with _deterministic(seed):
        task = task_for(opened, split, seed=seed, clock=Clock(reporter or Silent()))
        return METHODS[method][0](task, config), split


@contextlib.contextmanager
def _deterministic(seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def save_unlearned(opened: Opened, outcome: Outcome, request: ForgetRequest, out: Path) -> Recommender:
    """Write an unlearned recommender; its card names method and request digest, never the ids."""
    card = {
        k: copy.deepcopy(v)
        for k, v in opened.recommender.card.items()
        if k not in ("format", "weights_sha256")
    }
    card["unlearned"] = [*card.get("unlearned", []), {"method": outcome.method, "request": request.digest}]
    new = replace(opened.recommender, model=outcome.model, card=card, path=out)
    storage.save(new, out)
    return new


def logits_of(
    recommender: Recommender, data: Interactions, examples: Examples, model: Any = None
) -> np.ndarray:
    """Answer logits of examples, float32 [n, 2]."""
    encoder = Encoder(recommender.tokenizer, recommender.template, data.titles["title"].to_pylist())
    return score(model or recommender.model, encoder.encode(queries(data, examples)), recommender.answers)


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {p: version(p) for p in ("curerec", "torch", "transformers", "peft", "numpy", "scikit-learn")} | {
        "python": platform.python_version()
    }


def machine() -> dict[str, Any]:
    """Device and threads."""
    where = device()
    name = (
        torch.cuda.get_device_name() if where.type == "cuda" else (platform.processor() or platform.machine())
    )
    return {"device": where.type, "processor": name, "threads": torch.get_num_threads()}


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
