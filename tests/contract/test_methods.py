"""Every method keeps to the contract, fully fine-tuned and with LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from curerec.methods import CONTROLS, METHODS, UNSAVED, card_of, search_of
from curerec.recommender.lean import answer_only
from curerec.recommender.score import score
from curerec.testing import methods as contract
from made_cases import in_turn, soaked
from made_families import TYPES
from made_tasks import made_task

SHORT = {"max_steps": 4, "check_every": 2, "check_size": 60, "batch_size": 32, "max_auc_drop": 1}
CURE = {
    "pairs": 16,
    "forget_size": 40,
    "control_size": 40,
    "draws": 10,
    "update": SHORT,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "cure": CURE,
    "random_modules": CURE,
    "random_groups": CURE,
    "task_vector": {"check_size": 60, "max_auc_drop": 1, "alphas": (1.0, 2.0)},
    "scrub": {**SHORT, "max_steps": 40, "epochs": 1, "retain_share": 0.2},
    "rome": {"steps": 3, "covariance_size": 40, "check_size": 60, "max_auc_drop": 1},
    "wise": {**SHORT, "margin_scale": 0.01, "lr": 5.0},
    "sisa": {"shards": 2, "slices": 2},
    "receraser": {"shards": 2, "attention_steps": 3, "width": 8},
    "apa": {"shards": 2, "valid_size": 60},
    "cragru": {},
    "e2urec": {**SHORT, "max_steps": 10, "r": 2},
}
KINDS = ("full", "lora")
OTHERS = [t for t in TYPES if t != "llama"]
#: Each family once among the fast tests, either way of training with two of them.
FAST = {"gpt2": "lora", "phi3": "lora", "gemma2": "full", "phi": "full"}


def short(name: str) -> Any:
    kind = METHODS[name][1]
    return kind and kind(**SPECIAL.get(name, SHORT))


@pytest.mark.slow_but("*-full", "cure-lora", "wise-lora", "cragru-lora", "pcgrad-lora")
@in_turn(name=METHODS, kind=KINDS)
def test_a_method_keeps_to_the_contract(name, kind):
    run, config = METHODS[name][0], short(name)
    task = made_task(kind)
    out = contract.check_original_unchanged(run, config, task)
    contract.check_outcome(out, name, task)
    contract.check_something_changed(out, task)
    contract.check_only_trainable_changed(out, task)
    assert out.details.get("storable", True) == (name not in UNSAVED)
    contract.check_saves_and_loads(out, task)
    contract.check_deterministic(out, run(made_task(kind), config))


@pytest.mark.slow_but("*-phi3-lora", "wise-*", "cagrad-*")
@pytest.mark.parametrize(
    ("family", "kind"),
    [(t, kind) if FAST.get(t) == kind else soaked(t, kind) for t in OTHERS for kind in KINDS],
)
@pytest.mark.parametrize("name", ["simnpo", "cagrad", "task_vector", "e2urec", "rome", "wise"])
def test_other_families(name, family, kind):
    task = made_task(kind, family=family)
    out = contract.check_original_unchanged(METHODS[name][0], short(name), task)
    contract.check_something_changed(out, task)
    contract.check_only_trainable_changed(out, task)
    contract.check_saves_and_loads(out, task)


def steady(config: Any) -> Any:
    """The same by plain descent, and with labels of D_r.

    AdamW makes a step of the rate's size of a gradient that is nothing but rounding, and a rule projects on
    the first retain gradient, which is rounding where there are no labels. How much comes of that is the
    processor's.
    """
    if hasattr(config, "update"):
        return config.model_copy(update={"update": steady(config.update)})
    plain = {"optimizer": "sgd", "lr": 0.1, "retain_labels": 0.1}
    return config.model_copy(update={k: v for k, v in plain.items() if hasattr(config, k)})


#: Fast: one loss, two losses, gradients put together, a training; the others pass through the same code.
IN_PARTS = ("cure", "npo", "pcgrad", "task_vector")


# ROME and WISE listen inside the model, so their few passes are whole; CRAGRU takes no gradient.
@pytest.mark.slow_but("npo", "pcgrad")
@pytest.mark.parametrize(
    "name",
    [
        n if n in IN_PARTS else soaked(n)
        for n in METHODS
        if METHODS[n][1] and n not in ("rome", "wise", "cragru")
    ],
)
def test_where_three_prompts_fit_in_memory_the_same_is_learned(name, monkeypatch):
    def answers(out):
        task = made_task("lora")
        return score(out.model, task.forget_prompts, task.answers)

    run, config = METHODS[name][0], steady(short(name))
    want = answers(run(made_task("lora"), config))
    moved = abs(want - made_task("lora").forget_original).max()
    most = []
    inner = answer_only

    def seen(model, last):
        most.append(len(last) * torch.is_grad_enabled())
        return inner(model, last)

    monkeypatch.setattr("curerec.recommender.score.answer_only", seen)
    for user in ("recommender.score", "recommender.tune", "methods.unlearn", "circuits.passes"):
        monkeypatch.setattr(f"curerec.{user}.prompts_that_fit", lambda model, pos, runtime=None: 3)
    found = answers(run(made_task("lora"), config))
    assert max(most) == 3
    assert moved > 0.02 and abs(found - want).max() < 1e-4, (moved, abs(found - want).max())


@pytest.mark.parametrize("name", METHODS)
def test_configuration_and_card(name):
    contract.check_config(METHODS[name][1], search_of(name))
    contract.check_card(card_of(name), name)


@pytest.mark.parametrize("heading", contract.HEADINGS)
def test_a_card_that_leaves_something_out_is_refused(heading):
    card = card_of("npo")
    contract.check_card(card, "npo")
    start = card.index(f"**{heading}.**")
    end = card.find("\n\n", start)
    for left in ("", f"**{heading}.**\n\n", f"As above. **{heading}.** In the middle of another one.\n\n"):
        with pytest.raises(AssertionError, match=heading):
            contract.check_card(card[:start] + left + (card[end + 2 :] if end >= 0 else ""))


def test_a_rule_without_an_equation_and_another_method_s_card_are_refused():
    card = card_of("grad_ascent")
    with pytest.raises(AssertionError, match="does not name npo"):
        contract.check_card(card, "npo")
    with pytest.raises(AssertionError, match="Cost is ga_kl's"):
        contract.check_card(card.replace("`ga_kl`: two,", "Two,"), "ga_kl")
    start, end = card.index("**Rule.**"), card.index("**Deviations.**")
    with pytest.raises(AssertionError, match="no equation"):
        contract.check_card(
            card[:start] + "**Rule.** It descends `rewind` (as `cure` does: + `w`).\n\n" + card[end:], "ga_kl"
        )


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("cure", *CONTROLS, "retrain")])
def test_a_grid_is_declared(name):
    assert search_of(name)
