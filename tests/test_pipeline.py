"""Training as a whole: what it loads."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch

from curerec import pipeline
from curerec.config import parse
from curerec.data.forget import draw_request
from curerec.errors import ModelError, RequestError
from curerec.machine import timed_on
from curerec.methods import METHODS, Task
from curerec.opened import open_recommender, titles_note
from curerec.pipeline import task_for
from curerec.plan import plan
from curerec.recipe import Recipe
from curerec.recommender import bases, storage, stored_answers
from curerec.recommender.nano import nano_tokenizer
from curerec.recommender.safety import config_digest
from curerec.recommender.score import score
from curerec.recommender.storage import write_model
from curerec.requests.engine import CureEngine
from curerec.requests.stages import RETRAIN, Job
from curerec.requests.table import of_split
from curerec.splitting import granted
from made_families import made_family_model
from made_recommender import DATA, USERS, trained
from made_recommender import opened as opened_again


@pytest.mark.parametrize(("kind", "loads"), [("lora", 1), ("full", 2)])
def test_training_loads_the_base_once_and_never_for_its_tokenizer(kind, loads, tmp_path, monkeypatch):
    """Once more where fine-tuning changes its weights and the base is asked afterwards."""
    seen = []
    inner = storage.load_base
    monkeypatch.setattr(storage, "load_base", lambda *args, **more: seen.append(args) or inner(*args, **more))
    trained(tmp_path, kind)
    assert len(seen) == loads


def test_titles_of_the_training_are_known_and_others_are_noted(tmp_path):
    folder = trained(tmp_path, "lora")
    assert storage.read_card(folder)["data"]["titles"] == DATA.titles_digest
    assert opened_again(folder).note is None
    at = DATA.titles.schema.get_field_index("title")
    changed = [title + "!" for title in DATA.titles["title"].to_pylist()]
    others = replace(DATA, titles=DATA.titles.set_column(at, "title", pa.array(changed)))
    card = storage.read_card(folder)
    assert "titles" in open_recommender(folder, others, base=opened_again(folder).base).note
    del card["data"]["titles"]  # a card of before
    assert titles_note(card, others) is None


def altered(file, *keys, value):
    """A JSON file with another value at a place."""
    content = inner = json.loads(file.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_base_of_the_same_weights_and_another_configuration_is_another_base(kind, tmp_path):
    folder, config = trained(tmp_path, kind), tmp_path / "base" / "config.json"
    for key, value in (("transformers_version", "4.0"), ("_name_or_path", "x"), ("dtype", "bfloat16")):
        altered(config, key, value=value)
    assert opened_again(folder).answered is not None
    altered(config, "rope_parameters", "rope_theta", value=50.0)
    with pytest.raises(ModelError, match=r"base model base: .*another config\.json.*as it was in training"):
        opened_again(folder)
    altered(folder / storage.CARD, "base", "revision", value="0" * 40)
    with pytest.raises(ModelError, match=r"revision 0{40} of the hub"):
        opened_again(folder)


def test_a_card_of_before_names_no_configuration_and_its_answers_are_read_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "config_digest", lambda folder: None)
    folder = trained(tmp_path, "lora")
    altered(folder / storage.CARD, "base", "config_sha256", value=None)
    monkeypatch.undo()
    opened = opened_again(folder)
    assert opened.answered is not None
    said = stored_answers.about("w", opened.recommender, DATA)
    assert said.keys() == {"weights", "base", "type", "template", "answers", "data", "titles"}
    # With the configuration in its card those answers are of a model that is not known to be this one.
    digest = config_digest(opened.base)
    altered(folder / storage.CARD, "base", "config_sha256", value=digest)
    opened = opened_again(folder)
    assert opened.answered is None
    assert stored_answers.about("w", opened.recommender, DATA) == said | {"config": digest}


def fitted(folder, model_type="gpt2", **more):
    """A recommender of a base whose positions are given, and of a split whose longest prompts are in D_v."""
    base = folder / "base"
    tokenizer = nano_tokenizer(DATA.titles["title"].to_pylist())
    write_model(made_family_model(model_type, len(tokenizer), scale=0.1, **more), tokenizer, base)
    recipe = {
        "split": {"train": 150, "other": 60, "seed": 3},
        "model": {"base": str(base), "kind": "lora", "lora": {"r": 2, "alpha": 4}, "tuning": {"epochs": 0.2}},
    }
    pipeline.train(DATA, parse(Recipe, recipe, where="test"), folder / "out", base=base)
    return folder / "out"


def test_prompts_longer_than_the_positions_are_refused_whoever_asks_them(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "tune", lambda *args, **named: pytest.fail("trained before"))
    with pytest.raises(ModelError, match="65 positions, the longest prompt 66"):
        fitted(tmp_path / "few", max_position_embeddings=65)
    turned = {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
    turned |= {"rope_theta": 10000.0, "factor": 4.0}
    with pytest.raises(ModelError, match="65 positions, the longest prompt 66"):
        fitted(tmp_path / "turned", "phi3", rope_parameters=turned, original_max_position_embeddings=65)


def longer(data):
    """Its titles, each twice."""
    at, titles = data.titles.schema.get_field_index("title"), data.titles["title"].to_pylist()
    return data.titles.set_column(at, "title", pa.array([f"{title} {title}" for title in titles]))


def test_titles_that_became_too_long_for_the_positions_are_refused(tmp_path):
    folder = fitted(tmp_path, max_position_embeddings=66)
    others = replace(DATA, titles=longer(DATA))
    with pytest.raises(ModelError, match="has 66 positions"):
        open_recommender(folder, others, base=tmp_path / "base")


def test_titles_that_move_up_into_a_full_prompt_are_refused_before_any_work(tmp_path):
    """Of what a request deletes the place in a history goes to an older title, which may be a longer one."""
    opened = open_recommender(fitted(tmp_path, max_position_embeddings=66), DATA, base=tmp_path / "base")
    draw = partial(draw_request, DATA, opened.split, kind="items", share=0.1)
    task_for(opened, granted(DATA, opened.recipe, opened.split, draw(seed=0)), seed=0)
    request = draw(seed=1)
    split = granted(DATA, opened.recipe, opened.split, request)
    task = Task.of(
        split,
        original=opened.recommender,
        base_state=None,
        data=DATA,
        tuning=opened.recipe.model.tuning,
        fresh=lambda: None,
    )
    with pytest.raises(IndexError):  # what it would come to
        score(opened.recommender.model, task.encode(split.valid), task.answers)
    for refused in (
        lambda: task_for(opened, split, seed=0),
        lambda: pipeline.unlearn(opened, request, "npo"),
        lambda: plan(opened, request, "cure"),
    ):
        with pytest.raises(RequestError, match=r"move up.*66 positions, the longest prompt 67") as caught:
            refused()
        private = (*request.ids, *DATA.titles["title"].to_pylist())
        assert not any(name in str(caught.value) for name in private)
    table = of_split(DATA, opened.split, np.zeros(len(DATA), bool))
    job = Job(tmp_path / "out", table, split.deleted, "npo", 0, str(tmp_path / "base"))
    for method in ("npo", RETRAIN):  # as a store's stages are given it
        with pytest.raises(RequestError, match="move up"):
            CureEngine(replace(job, method=method)).update({}, {}, tmp_path)
    late = replace(table, data=replace(DATA, titles=longer(DATA)))
    with pytest.raises(ModelError, match="has 66 positions"):  # rows that came in since the training
        CureEngine(replace(job, table=late, method=RETRAIN)).update({}, {}, tmp_path)
    few = replace(opened, split=replace(opened.split, valid=opened.split.test))
    with pytest.raises(RequestError, match="move up"):  # one that was in no split before
        task_for(few, split, seed=0)


def test_the_card_says_what_its_seconds_depend_on(tmp_path):
    assert storage.read_card(trained(tmp_path, "lora"))["timed_on"] == timed_on(None)
    assert set(timed_on(True).items()) >= {("threads", torch.get_num_threads()), ("shared_machine", True)}


@pytest.mark.slow
def test_what_is_trained_is_float32_where_frozen_weights_are_not(tmp_path, monkeypatch):
    """As on a GPU: in bfloat16 AdamW's steps and running averages would be rounded away."""
    monkeypatch.setattr(storage, "type_on", lambda device: torch.bfloat16)
    types = {}
    for kind in ("full", "lora"):
        opened = opened_again(trained(tmp_path / kind, kind))
        task = task_for(opened, granted(DATA, opened.recipe, opened.split, USERS), seed=0)
        models = opened.recommender.model, task.fresh(), METHODS["cure"][0](task, opened.recipe.cure).model
        types[kind] = [
            {p.dtype for n, p in m.named_parameters() if "lora" in n or kind == "full"} for m in models
        ]
        frozen = {p.dtype for n, p in models[0].named_parameters() if "lora" not in n}
        assert frozen == {torch.float32 if kind == "full" else torch.bfloat16}
    assert types == {"full": [{torch.float32}] * 3, "lora": [{torch.float32}] * 3}
