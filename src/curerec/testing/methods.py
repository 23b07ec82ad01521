"""What every unlearning method must keep to, as checks that a third party's method can be given to."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curerec.config import parse
from curerec.errors import ConfigError
from curerec.evaluation.guard import probes_changed
from curerec.methods.task import Task
from curerec.recommender.score import score
from curerec.recommender.storage import write_model
from curerec.records import Outcome

Method = Callable[[Task, Any], Outcome]
#: Headings that a card must have, as bold words at the start of a paragraph; the first is enough of a group.
HEADINGS = (("Paper", "Rule"), ("Rule",), ("Needs", "Needs, cost"), ("Cost", "Needs, cost", "Needs"))


def check_original_unchanged(method: Method, config: Any, task: Task) -> Outcome:
    """theta_o is the same bit for bit afterwards, also in what may be trained; returns the outcome."""
    model = task.original.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    training = model.training
    out = method(task, config)
    assert out.model is not model
    after = model.state_dict()
    assert before.keys() == after.keys(), "the original has other weights than before"
    for name, value in before.items():
        assert torch.equal(value, after[name]), f"the original changed at {name}"
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    assert model.training == training
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in out.model.parameters()}
    assert not shared, "the result shares memory with the original"
    return out


def check_outcome(out: Outcome, name: str, task: Task) -> None:
    """Name, seconds, trace and reason are there and make sense."""
    assert out.method == name
    assert 0 < out.t_core_s <= out.t_total_s
    assert np.isclose(out.t_total_s, task.clock.total_s), "some of the clock's stages are not in t_total"
    assert out.n_trainable > 0
    assert not out.model.training
    assert all(bool(p.isfinite().all()) for p in out.model.parameters())
    if out.trace:
        assert out.stop_reason
        assert all({"step", "membership_auc", "valid_auc"} <= set(row) for row in out.trace)
        steps = [row["step"] for row in out.trace]
        assert steps == sorted(steps) and len(set(steps)) == len(steps)


def check_something_changed(out: Outcome, task: Task) -> None:
    """Answers on probe prompts of D_f differ from the original's."""
    prompts = task.encode(task.forget)
    before, after = (score(m, prompts, task.answers) for m in (task.original.model, out.model))
    assert probes_changed(before, after) > 0, "nothing happened"


def check_only_trainable_changed(out: Outcome, task: Task) -> None:
    """With LoRA the base's weights are the original's; otherwise no more entries changed than could.

    ``details["changed"]`` may name the parameters that a method is allowed to change.
    """
    old = dict(task.original.model.named_parameters())
    new = dict(out.model.named_parameters())
    allowed = out.details.get("changed")
    for name, p in new.items():
        lora = ".lora_" in name
        if hasattr(task.original.model, "peft_config") and not lora:
            assert torch.equal(p, old[name]), f"{name} of the base changed"
        if allowed is not None and name not in allowed:
            assert torch.equal(p, old[name]), f"{name} changed, which the method did not name"


def check_saves_and_loads(out: Outcome, task: Task) -> None:
    """Plain libraries load what was saved, and it answers as the outcome does."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    prompts = task.encode(task.valid.take(np.arange(min(20, len(task.valid)))))
    with tempfile.TemporaryDirectory() as folder:
        write_model(out.model, task.original.tokenizer, Path(folder))
        if hasattr(out.model, "peft_config"):
            base = copy.deepcopy(task.original.model).unload()
            again = PeftModel.from_pretrained(base, folder)
        else:
            again = AutoModelForCausalLM.from_pretrained(folder)
    want, got = (score(m, prompts, task.answers) for m in (out.model, again.eval()))
    np.testing.assert_allclose(got, want, atol=1e-5)


def check_deterministic(one: Outcome, two: Outcome) -> None:
    """Two runs with the same seed give the same weights."""
    other = dict(two.model.named_parameters())
    for name, p in one.model.named_parameters():
        assert torch.equal(p, other[name]), f"{name} differs between two runs with one seed"


def check_config(kind: type | None, search: dict[str, list[Any]]) -> None:
    """Unknown keys are refused, and every key and value of the search grid is one of the configuration's."""
    if kind is None:
        return
    try:
        parse(kind, {"no_such_key": 1}, where="test")
    except ConfigError:
        pass
    else:
        raise AssertionError("an unknown key was accepted")
    assert kind().model_dump() == kind(**kind().model_dump()).model_dump()
    for key, values in search.items():
        assert len(values) > 1, f"nothing to search in {key}"
        for value in values:
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            found: Any = parse(kind, nested, where=key)
            for part in key.split("."):
                found = getattr(found, part)
            assert found == value


def check_card(text: str) -> None:
    """A card names paper or rule, deviations are optional for controls, needs and cost are not."""
    for group in HEADINGS:
        assert any(f"**{heading}.**" in text or f"**{heading}**" in text for heading in group), group
