"""The stages as functions without state: train, unlearn, compare. Command and demo only call these."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curerec.data.output import check_out
from curerec.errors import ModelError, RequestError
from curerec.interactions import Interactions
from curerec.machine import timed_on, versions
from curerec.methods import METHODS, UNSAVED, Task
from curerec.methods.cure.method import prepare as prepare_cure
from curerec.methods.expected import POOL, SPARE, pool
from curerec.models import base_folder, check_finite, check_fits, check_template, fresh_model, spreads
from curerec.opened import Opened, answers_at_hand, check_lengthened
from curerec.progress import Clock, Reporter, Silent
from curerec.prompts.encoding import Encoder, Prompts, answer_tokens, queries
from curerec.recipe import Recipe
from curerec.recommender import bases, parallel, storage, stored_answers
from curerec.recommender.copies import base_of
from curerec.recommender.score import score
from curerec.recommender.tune import tune
from curerec.recommender.waypoints import Recorder
from curerec.records import ForgetRequest, ForgetSplit, Outcome, Recommender, Split
from curerec.splitting import granted, split_of


def train(
    data: Interactions,
    recipe: Recipe,
    out: Path,
    *,
    without: ForgetRequest | None = None,
    base: Path | None = None,
    cache: Path | None = None,
    clock: Clock | None = None,
    shared: bool | None = None,
) -> Recommender:
    """Fine-tune a recommender and save it.

    Its answers to its own training examples and to D_c are stored beside it, and the base's to those that
    requests ask it about (:mod:`curerec.recommender.stored_answers`), so that they need not: two thirds of an
    epoch in the demo, less the larger the training set. A retrain, which is there to be compared with, does
    without.

    Args:
        data: interactions.
        recipe: split, model, seed.
        out: folder to write.
        without: leave out what this request deletes (a retrain).
        base: folder of the base model, if it is not to be found by name.
        cache: of the user.
        clock: stages and their seconds.
        shared: whether other work is done on the same machine meanwhile, for the card; None: not known.

    Returns:
        The recommender as saved.

    Raises:
        CurerecError: data, request, base or output folder cannot be used, or training diverged.
    """
    clock = clock or Clock()
    # What can be refused is refused before the minutes of training.
    check_out(out, marker=storage.CARD, inputs=[base])
    split = split_of(data, recipe.split)
    examples = split.train if without is None else granted(data, recipe, split, without).retain
    check_template(recipe.model.template)
    cut = spreads(recipe.model)
    folder = base or base_folder(data, recipe, cache=cache, clock=clock)
    if (folder / storage.CARD).is_file():
        raise ModelError(
            "is a recommender: what it learnt of its users would stay where no request reaches it",
            where=f"base model {folder.name}",
            mend="Give the model that it was fine-tuned from",
        )
    model = fresh_model(folder, recipe.model, seed=recipe.seed)
    about = bases.describe(recipe.model.base, folder)
    tokenizer = storage.load_tokenizer(folder, where=f"base model {folder.name}")
    encoder = Encoder(tokenizer, recipe.model.template, data.titles["title"].to_pylist())
    prompts = encoder.encode(queries(data, examples))
    # Those that are asked after the training, too: they may be the longest. A retrain's original saw to them.
    others = (split.control, split.valid, split.test) if without is None else ()
    check_fits(model, (prompts, *(encoder.encode(queries(data, part)) for part in others)))
    recorder = Recorder(recipe.model.waypoints) if recipe.model.waypoints and without is None else None
    with clock.stage("fine-tune") as advance:
        tune(
            model,
            prompts,
            encoder.answers,
            recipe.model.tuning,
            seed=recipe.seed,
            progress=advance,
            runtime=recipe.runtime,
            recorder=recorder,
        )
    check_finite(model)
    answered = None
    if without is None and (cut or parallel.is_main()):  # of a base in parts all make the passes
        with clock.stage("score the training examples"):
            answered = _answers(
                model,
                data,
                split,
                encoder,
                prompts,
                lambda: fresh_model(folder, recipe.model, seed=recipe.seed),
            )
    recommender = Recommender(
        model=model,
        tokenizer=tokenizer,
        template=recipe.model.template,
        answers=answer_tokens(tokenizer),
        base=about,
        card={
            "kind": recipe.model.kind,
            "data": {
                "name": data.name,
                "source": data.source,
                "fingerprint": data.fingerprint,
                "titles": data.titles_digest,
            },
            "recipe": recipe.model_dump(mode="json"),
            "n_train": len(examples),
            "train_time_s": clock.seconds["fine-tune"],
            "timed_on": timed_on(shared),
            "without": without.digest if without else None,
            "versions": versions(),
        },
        path=out,
    )
    if parallel.is_main():
        storage.save(recommender, out, answered=answered, passed=recorder.waypoints() if recorder else ())
    parallel.wait()
    return recommender


def _answers(
    model: Any, data: Interactions, split: Split, encoder: Encoder, trained: Prompts, fresh: Callable[[], Any]
) -> stored_answers.StoredAnswers:
    """What a recommender that was just trained answers, and its base where requests will ask it."""
    control = encoder.encode(queries(data, split.control))
    logits = [score(model, prompts, encoder.answers) for prompts in (trained, control)]
    some = pool(data.user_code[split.train.target], round(SPARE * POOL))
    base, plain = np.full((len(trained), 2), np.nan, np.float32), base_of(model, fresh)
    base[some] = score(plain, trained.take(some), encoder.answers)
    of_base = base, score(plain, control, encoder.answers)
    asked = stored_answers.asked_in_training(split)
    return stored_answers.StoredAnswers.of(
        model, data, asked, np.concatenate(logits), np.concatenate(of_base)
    )


def task_for(
    opened: Opened,
    split: ForgetSplit,
    *,
    seed: int,
    clock: Clock | None = None,
    retain_side: Path | None = None,
) -> Task:
    """The request as a method sees it.

    Args:
        opened: the recommender.
        split: the request applied.
        seed: of the method.
        clock: stages and their seconds.
        retain_side: from :func:`curerec.data.cache.retain_side_at`, if the request may take what training
            and earlier ones left, and leave its own; the model must be the one that the recommender's card
            names.

    Raises:
        ModelError: the fine-tuning changed nothing, so there is nothing to forget.
        RequestError: as :func:`curerec.opened.check_lengthened`.
    """
    check_lengthened(opened, split)
    kind = opened.recipe.model.kind
    state = None
    if kind == "full":
        # In main memory: an update asks for its weights a few times, and a GPU would hold them all along.
        plain, _ = storage.load_base(opened.base, device=torch.device("cpu"), dtype=storage.TUNED)
        state = plain.state_dict()
    storage.check_changes_something(opened.recommender.model, state)
    base, model = opened.base, opened.recipe.model  # not `opened`, whose split holds the test examples
    answered = answers_at_hand(opened)
    if answered is None and retain_side is not None:
        answered = stored_answers.left(
            retain_side, opened.recommender, opened.data, stored_answers.asked_in_training(opened.split)
        )
    as_trained = opened.as_trained if opened.as_trained and opened.as_trained.data is opened.data else None
    passed = opened.waypoints
    if passed is not None and passed.model is not opened.recommender.model:
        passed = None  # another version was put in its place
    return Task.of(
        split,
        original=opened.recommender,
        base_state=state,
        data=opened.data,
        tuning=opened.recipe.model.tuning,
        runtime=opened.recipe.runtime,
        fresh=lambda: fresh_model(base, model, seed=seed),
        seed=seed,
        clock=clock or Clock(),
        answered=answered,
        as_trained=as_trained,
        waypoints=passed,
        retain_side=retain_side,
    )


def check_method(name: str, *, saved: bool = False) -> None:
    """Refuse a method that is none, before any work is done.

    Args:
        name: key of :data:`curerec.methods.METHODS`.
        saved: what it makes is to be written to a folder, which those in
            :data:`curerec.methods.UNSAVED` have nothing for.

    Raises:
        RequestError: naming those there are.
    """
    known = [method for method in METHODS if not (saved and method in UNSAVED)]
    if name not in known:
        what = "unknown method"
        if name in METHODS:
            what = f"{name} answers by more than the weights of one model, so its result cannot be saved"
        raise RequestError(what, where="--method", mend=f"Choose from {', '.join(known)}")


def unlearn(
    opened: Opened,
    request: ForgetRequest,
    method: str,
    config: Any = None,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
    retain_side: Path | None = None,
) -> tuple[Outcome, ForgetSplit]:
    """Run one method on one request.

    Args:
        opened: from :func:`open_recommender`.
        request: what to delete.
        method: key of :data:`curerec.methods.METHODS`.
        config: the method's configuration; None takes the recipe's or its default.
        seed: of the method.
        reporter: told of stages.
        retain_side: from :func:`curerec.data.cache.retain_side_at`: take what training and earlier
            requests left, and leave this one's. None, as in experiments: nothing was left.

    Raises:
        RequestError: unknown method, or a request that cannot be granted.
    """
    check_method(method)
    split = granted(opened.data, opened.recipe, opened.split, request)
    task = task_for(opened, split, seed=seed, clock=Clock(reporter or Silent()), retain_side=retain_side)
    return carry_out(task, method, config or opened.recipe.config_of(method)), split


def carry_out(task: Task, method: str, config: Any = None) -> Outcome:
    """Run one method on a task that is made already, the same way every time.

    Where ``accelerate launch`` started several processes, all must come here: they take the same steps, and
    share out the passes over many prompts (:func:`curerec.recommender.parallel.together`). A method that
    trains by itself does all of it in each of them.

    Args:
        task: from :func:`task_for`.
        method: key of :data:`curerec.methods.METHODS`.
        config: the method's configuration; None takes its default.
    """
    with deterministic(task.seed), parallel.together():
        return METHODS[method][0](task, config)


@contextlib.contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """The same random numbers inside, whatever ran before in this process."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def prepare(
    opened: Opened, retain_side: Path, config: Any = None, *, seed: int = 0, clock: Clock | None = None
) -> None:
    """Take the part of a `cure` request that no request changes, once, for all that come.

    The core circuit and what units hold for unseen data depend on the recommender alone, and so do its
    answers, which training keeps and an unlearned version has yet to give. Requests that are given the same
    folder take from it what does not touch the people they delete.

    Args:
        opened: from :func:`open_recommender`.
        retain_side: from :func:`curerec.data.cache.retain_side_at`.
        config: of `cure`; None takes the recipe's.
        seed: of the requests to come.
        clock: stages and their seconds.

    Raises:
        CurerecError: the recommender cannot be explained; a request would say the same.
    """
    train, split = opened.split.train, opened.split
    nothing = ForgetSplit(
        forget=train.take(np.zeros(0, np.int64)),
        retain=train,
        control=split.control,
        valid=split.valid,
        test=split.test,
        deleted=np.zeros(len(opened.data.user_code), bool),
    )
    task = task_for(opened, nothing, seed=seed, clock=clock, retain_side=retain_side)
    with deterministic(seed):
        prepare_cure(task, config or opened.recipe.config_of("cure"))
    if task.answered is None:
        with task.clock.stage("score the training examples"):
            answered = _answers(
                opened.recommender.model,
                opened.data,
                split,
                task.encoder,
                task.encode(train),
                lambda: fresh_model(opened.base, opened.recipe.model, seed=seed),
            )
            stored_answers.leave(retain_side, opened.recommender, answered)


def save_unlearned(
    opened: Opened, outcome: Outcome, request: ForgetRequest, out: Path, *, config: Any = None
) -> Recommender:
    """Write an unlearned recommender; its card names method and request digest, never the ids.

    Args:
        opened: the recommender before.
        outcome: of the method.
        request: that it carried out.
        out: folder to write.
        config: of the method, whose digest the card then has, too; None: it has none, or it is not known.
    """
    card = {
        k: copy.deepcopy(v)
        for k, v in opened.recommender.card.items()
        if k not in ("format", "weights_sha256")
    }
    step = {"method": outcome.method, "request": request.digest}
    step |= {"config": config.digest} if config is not None else {}
    card["unlearned"] = [*card.get("unlearned", []), step]
    new = replace(opened.recommender, model=outcome.model, card=card, path=out)
    storage.save(new, out)
    return new
