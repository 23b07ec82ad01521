"""What every unlearning method must keep to, as checks that a third party's method can be given to."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curerec.config import parse
from curerec.errors import ConfigError, ModelError
from curerec.evaluation.guard import probes_changed
from curerec.methods.task import Task
from curerec.recommender.copies import LORA
from curerec.recommender.score import score
from curerec.recommender.storage import write_model
from curerec.records import Outcome

Method = Callable[[Task, Any], Outcome]
#: What a card must tell (PROTOCOL section 4), a paragraph each that begins with ``**Heading.**``; others may
#: stand beside them.
HEADINGS = ("Paper", "Rule", "Deviations", "Needs", "Cost", "Known failures")
PARAGRAPH = re.compile(r"^\*\*([^*\n]+)\.\*\*[ \n](\S.*?)(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
SYMBOLS = set("=(+/|<")  # a name alone has none of these


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
    own = {
        p.data_ptr()
        for n, p in model.named_parameters()
        if not (hasattr(model, "peft_config") and LORA not in n)
    }
    shared = own & {p.data_ptr() for p in out.model.parameters()}
    assert not shared, (
        "the result shares memory with the original"
    )  # but for what lies frozen under an adapter
    return out


def check_outcome(out: Outcome, name: str, task: Task) -> None:
    """Name, seconds, trace and reason are there and make sense."""
    assert out.method == name
    assert 0 < out.t_core_s <= out.t_total_s
    assert np.isclose(out.t_total_s, task.clock.total_s), "some of the clock's stages are not in t_total"
    assert out.n_trainable > 0 or "rebuild" in out.details
    assert not out.model.training
    assert all(bool(p.isfinite().all()) for p in out.model.parameters())
    if out.trace:
        assert out.stop_reason
        assert all({"step", "membership_auc", "valid_auc"} <= set(row) for row in out.trace)
        steps = [row["step"] for row in out.trace]
        assert steps == sorted(steps) and len(set(steps)) == len(steps)


def check_something_changed(out: Outcome, task: Task) -> None:
    """Answers on probe prompts of D_f differ from the original's.

    A method that forgets at retrieval hands back ``details["rebuild"]``: examples with new histories.
    """
    rebuild = out.details.get("rebuild", lambda examples: examples)
    before = score(task.original.model, task.encode(task.forget), task.answers)
    after = score(out.model, task.encode(rebuild(task.forget)), task.answers)
    assert probes_changed(before, after) > 0, "nothing happened"


def check_only_trainable_changed(out: Outcome, task: Task) -> None:
    """What a method may not change is the original's bit for bit.

    ``details["changed"]`` may name the parameters that a method can change or add; else, with LoRA, it is the
    adapter's, and with full fine-tuning any, but no more entries than ``n_trainable``.
    """
    old = dict(task.original.model.named_parameters())
    new = dict(out.model.named_parameters())
    allowed = out.details.get("changed")
    if allowed is None and hasattr(task.original.model, "peft_config"):
        allowed = [name for name in new if ".lora_" in name]
    if allowed is None:
        assert new.keys() == old.keys()
        assert sum(int((p != old[name]).sum()) for name, p in new.items()) <= out.n_trainable
        return
    for name, p in new.items():
        if name not in allowed:
            assert name in old, f"{name} is new, which the method did not name"
            assert torch.equal(p, old[name]), f"{name} changed, which the method did not name"


def check_saves_and_loads(out: Outcome, task: Task) -> None:
    """Plain libraries load what was saved, and it answers as the outcome does.

    An outcome with ``details["storable"]`` false must be refused instead, before anything is written.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    prompts = task.encode(task.valid.take(np.arange(min(20, len(task.valid)))))
    with tempfile.TemporaryDirectory() as folder:
        if not out.details.get("storable", True):
            try:
                write_model(out.model, task.original.tokenizer, Path(folder))
            except ModelError:
                assert not list(Path(folder).iterdir())
                return
            raise AssertionError("was saved although it cannot be")
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


def check_card(text: str, name: str | None = None) -> None:
    """A card has a paragraph for each of :data:`HEADINGS`, and the rule's has an equation in symbols.

    Args:
        text: Markdown.
        name: of the method; the title must name it, and where it names several, the rule and the cost must
            say of which they speak, in backticks.

    Raises:
        AssertionError: saying what is missing.

    Example:
        >>> parts = ["# mine", *(f"**{heading}.** `g_f + w g_r`" for heading in HEADINGS)]
        >>> check_card("\\n\\n".join(parts), "mine")
    """
    found = dict(PARAGRAPH.findall(text))
    missing = [heading for heading in HEADINGS if heading not in found]
    assert not missing, f"the card says nothing under {', '.join(missing)}"
    formulas = [code for code in CODE.findall(found["Rule"]) if SYMBOLS & set(code)]
    assert formulas, "the rule has no equation in symbols"
    if name is None:
        return
    names = text.partition("\n")[0].removeprefix("# ").split(", ")
    assert name in names, f"the card's title does not name {name}"
    if len(names) > 1:
        for heading in ("Rule", "Cost"):
            assert f"`{name}`" in found[heading], f"the card does not say what of its {heading} is {name}'s"
