"""Words that only deleted data showed: which they are; a retrain and an update have them at the base's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from curerec.data.forget import apply_request
from curerec.data.splits import per_user_split
from curerec.data.table import interactions
from curerec.methods import METHODS
from curerec.methods.cure import cure
from curerec.methods.loop import LoopConfig, descend
from curerec.methods.retrain import retrain
from curerec.methods.rules import FROZEN, Rules
from curerec.methods.surgery import WholeVector
from curerec.methods.task import Task
from curerec.methods.unlearn import run
from curerec.methods.unseen import Unseen, _items, unseen_tokens
from curerec.prompts.encoding import Encoder
from curerec.prompts.templates import TEMPLATES
from curerec.recommender.nano import nano_tokenizer
from curerec.recommender.tune import TuneConfig
from curerec.recommender.units import units_of
from curerec.records import ForgetRequest, Recommender
from made_catalogue import WORDS
from made_models import made_encoder
from made_tasks import made_task, short_cure


def shown(task, *parts):
    """Every token of the prompts themselves."""
    return set(np.concatenate([task.encode(part).ids for part in parts]).tolist())


@pytest.mark.parametrize("of", ["users", "items", "interactions"])
def test_they_are_the_tokens_that_no_prompt_of_those_who_stay_has(of):
    task = made_task(of=of)
    want = shown(task, task.forget, task.retain_before) - shown(task, task.retain) - set(task.answers)
    assert set(unseen_tokens(task).tolist()) == want
    assert want or of != "items"


@pytest.mark.parametrize("of", ["users", "items", "interactions"])
def test_items_are_marked_and_no_rows_are_sorted(of, monkeypatch):
    """All histories of D_r are looked at in the timed part of a request: by one pass, not by sorting them."""
    task = made_task(of=of)
    for parts in ((task.retain,), (task.forget, task.retain_before)):
        rows = np.concatenate([np.r_[p.target, p.history[p.history >= 0]] for p in parts])
        assert np.flatnonzero(_items(task, *parts)).tolist() == np.unique(task.data.item_code[rows]).tolist()
    monkeypatch.setattr(np, "unique", None)
    assert unseen_tokens(task).dtype == np.int64


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_frame_is_all_that_is_no_title(template):
    encoder = made_encoder(template)
    rng = np.random.default_rng(0)
    there = [1.0, 2.5, 3.0, 3.7, 4.0, 5.0]
    frame = encoder.frame(6, there)
    for _ in range(20):
        ratings = rng.choice([np.nan, *there], 6)
        fixed = [piece for piece in TEMPLATES[template](ratings.tolist()) if isinstance(piece, str)]
        assert {token for piece in fixed for token in encoder._fixed(piece)} <= frame


def test_a_rating_that_prompts_write_out_is_shown_whatever_the_scale():
    """Ratings are any number up to five: 3.7 stars of those who stay show the 7 of a title that is gone."""
    rng = np.random.default_rng(0)
    rated = [(user, item) for user in range(40) for item in rng.choice(30, 15, replace=False)]
    users, items = zip(*rated, strict=True)
    titles = {f"i{k}": f"{WORDS[k % 10]} {WORDS[k // 10]}" for k in range(30)} | {"i3": "Samurai 7"}
    ratings, times = rng.choice([2.0, 3.7, 4.5], len(rated)), rng.integers(0, 20, len(rated))
    ids = [f"u{user}" for user in users], [f"i{item}" for item in items]
    data = interactions(*ids, ratings, times, titles, name="made", source="test")
    names = data.titles["title"].to_pylist()
    tokenizer = nano_tokenizer(names)
    answers = Encoder(tokenizer, "stars", names).answers
    split = apply_request(data, per_user_split(data, seed=0, history=5), ForgetRequest("items", ("i3",)))
    original = Recommender(None, tokenizer, "stars", answers, {"name": "made"})
    task = Task.of(split, original=original, base_state=None, data=data, tuning=TuneConfig(), fresh=None)
    found = set(unseen_tokens(task).tolist())
    assert found == set(tokenizer.convert_tokens_to_ids(["samurai"]))
    assert not found & shown(task, task.retain)


def embedding(model):
    return model.get_input_embeddings().weight.detach()


def test_a_retrain_leaves_them_where_the_base_has_them():
    """The premise, on a real retraining."""
    task = made_task(of="items")
    rows = torch.from_numpy(unseen_tokens(task))
    base, tuned = (embedding(m) for m in (task.base_model(), task.original.model))
    assert len(rows) and (tuned[rows] != base[rows]).any(1).all()
    assert torch.equal(embedding(retrain(task).model)[rows], base[rows])


@pytest.mark.parametrize("method", ["cure", "plain sum"])
def test_an_update_puts_them_there_and_leaves_them(method):
    found = {}
    for unseen in ("base", None):
        task = made_task(of="items")
        if method == "cure":
            outcome = cure(task, short_cure(unseen_tokens=unseen))
            model, n = outcome.model, outcome.details["unseen_tokens"]
        else:
            done = run(task, WholeVector(task.original.model, 1.0), short_cure(unseen_tokens=unseen).update)
            model, n = done.model, done.n_unseen
        rows = torch.from_numpy(unseen_tokens(task))
        assert n == (len(rows) if unseen else None)
        found[unseen] = bool(torch.equal(embedding(model)[rows], embedding(task.base_model())[rows]))
    assert found == {"base": True, None: False}


BY_STEPS = sorted(name for name, (_, kind) in METHODS.items() if kind and issubclass(kind, LoopConfig))
FEW = {"lr": 1e-2, "max_steps": 2, "check_every": 2, "check_size": 40, "max_auc_drop": 1.0, "batch_size": 32}
OWN = {
    "e2urec": {"trains": "all", "max_steps": 4, "teacher": {"epochs": 1.0, "batch_size": 32, "lr": 1e-3}},
    "scrub": {"max_steps": 100, "epochs": 1},  # looks after whole epochs alone
}


@pytest.mark.slow_but(
    "pcgrad", "npo", "finetune", "grad_ascent", "grad_diff", "ngdiff", "label_flip", "bad_teacher"
)
@pytest.mark.parametrize("method", sorted(set(BY_STEPS) - {"wise"}))
def test_every_method_that_moves_the_embedding_by_steps_can_do_so(method):
    found = {}
    for unseen in ("base", None):
        task = made_task(of="items")
        run_it, kind = METHODS[method]
        outcome = run_it(task, kind.model_validate({**FEW, **OWN.get(method, {}), "unseen_tokens": unseen}))
        rows = torch.from_numpy(unseen_tokens(task))
        assert outcome.details["unseen_tokens"] == (len(rows) if unseen else None)
        new, old, base = (embedding(m) for m in (outcome.model, task.original.model, task.base_model()))
        assert not torch.equal(new, old)
        found[unseen] = bool(torch.equal(new[rows], base[rows]))
    assert found == {"base": True, None: False}


@pytest.mark.parametrize("method", ["wise", "e2urec"])
def test_where_all_that_moves_is_beside_the_weights_nothing_goes_back(method):
    """A side memory, a new adapter on two projections: the embedding is theta_o's."""
    task = made_task(of="items")
    few = {**FEW, "max_steps": 6, "unseen_tokens": "base"}
    outcome = METHODS[method][0](task, METHODS[method][1].model_validate(few))
    assert outcome.details["unseen_tokens"] == 0
    assert torch.equal(embedding(outcome.model), embedding(task.original.model))


def test_rules_see_gradients_without_them():
    """Whoever normalises a side, or weighs sides by their lengths, is to read those of what moves."""
    task, seen = made_task(of="items"), []

    def direction(descent, step):
        seen.append(dict(zip(descent.names, descent.grad(descent.loss(descent.forget.next())), strict=True)))
        return [torch.ones_like(p) for p in descent.params], {}

    done = descend(task, LoopConfig.model_validate({**FEW, "unseen_tokens": "base"}), direction)
    unseen = Unseen.of(task)
    assert all((g[unseen.name][unseen.rows] == 0).all() and g[unseen.name].any() for g in seen)
    # A direction that was made otherwise leaves them, too.
    assert torch.equal(embedding(done.model)[unseen.rows], unseen.base)


@pytest.mark.parametrize("method", BY_STEPS)
def test_a_configuration_that_does_not_ask_for_it_is_written_as_before(method):
    kind = METHODS[method][1]
    assert "unseen_tokens" not in kind().model_dump(mode="json")
    assert kind(unseen_tokens="base").digest != kind().digest


def test_where_an_adapter_leaves_the_embedding_alone_there_is_nothing_to_do():
    task = made_task("lora", of="items")
    assert len(unseen_tokens(task)) and Unseen.of(task) is None
    assert cure(task, short_cure(unseen_tokens="base")).details["unseen_tokens"] == 0


def test_what_goes_back_is_counted_once():
    task = made_task(of="items")
    model, unseen = task.original.model, Unseen.of(task)
    units = units_of(model, "row")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    role = torch.from_numpy(np.random.default_rng(0).integers(0, 4, len(units.names)))
    role[:20] = FROZEN
    plain = Rules(units, role)
    named = {name: parameters[name] for name in plain.trainable()}
    back = unseen.name, unseen.rows, unseen.base.shape[1]
    dim, owner = plain.owner[unseen.name]
    frozen = int((role[owner[unseen.rows]] == FROZEN).sum())
    assert dim == 0
    assert plain.n_movable(named, None, back) == plain.n_movable(named) + frozen * back[2]
    masks = {n: torch.rand(p.shape) < 0.3 for n, p in parameters.items() if n in plain.owner}
    rolled = {n: torch.rand(p.shape) < 0.2 for n, p in parameters.items() if n in plain.owner}
    masked = Rules(units, role, masks=masks)
    inside = masks[unseen.name] | rolled[unseen.name]
    more = int((~inside[unseen.rows]).sum())
    assert (
        more > 0 and masked.n_movable(parameters, rolled, back) == masked.n_movable(parameters, rolled) + more
    )


def test_examples_left_without_history_enough_taught_words_too():
    """They are in neither D_f nor D_r, and a retrain has none of them."""
    task = made_task(of="items")
    few = task.retain.take(np.arange(2))
    lone = replace(task, forget=few, retain_before=task.retain, dropped=task.forget)
    assert set(unseen_tokens(task).tolist()) <= set(unseen_tokens(lone).tolist()) != set()
    want = shown(task, task.forget) - shown(task, task.retain) - set(task.answers)
    assert set(unseen_tokens(lone).tolist()) == want
