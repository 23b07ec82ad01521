"""A recommender that answers whatever the history is has no circuit: `cure` says so, and what to do."""

from __future__ import annotations

import pytest
import torch

from curerec.errors import PromptError
from curerec.methods.cure.method import CureConfig, cure
from made_tasks import made_task

SMALL = CureConfig(pairs=8, pair_pool=16, forget_size=20, control_size=20, draws=8, path_steps=1)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize(
    ("share", "what"),
    [
        # Nothing of the prompt but its last token, the same in every prompt, reaches the answer.
        (0.0, r"counterfactuals: none of \d+ corrupted prompts lowers the margin, and two must"),
        # What reaches it is rounding: pairs can be kept for it, but no circuit judged on them.
        (1e-6, r"circuit: none of the \d+ judging pairs moved the answer by more than 0\.001 logits"),
    ],
)
def test_a_margin_that_does_not_depend_on_the_history_is_refused(kind, share, what):
    task = made_task(kind)
    model = task.original.model
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "o_proj" in name and ".lora_A." not in name:  # what heads read is added nowhere
                p.mul_(share)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(PromptError, match=what) as caught:
        cure(task, SMALL)
    assert "hardly reads" in caught.value.mend and "pair_pool" in caught.value.mend
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.slow
def test_rank_one_terms_are_units_of_update_of_an_adapter_alone():
    """The finest granularity goes the whole way; a recommender without an adapter is told to take another."""
    from curerec.errors import ModelError

    config = SMALL.model_copy(
        update={
            "granularity": "rank",
            "update": SMALL.update.model_copy(
                update={"max_steps": 2, "check_every": 2, "check_size": 30, "batch_size": 16}
            ),
        }
    )
    task = made_task("lora")
    out = cure(task, config)
    units = out.details["units"]
    assert units.granularity == "rank" and set(out.groups.role) - {"frozen"}
    before, after = (dict(m.named_parameters()) for m in (task.original.model, out.model))
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert any(".lora_A." in n for n in changed) and all(".lora_" in n for n in changed)
    frozen = out.groups.role == "frozen"
    for branch in units.branches:
        rows = torch.from_numpy(frozen[branch.unit])
        assert torch.equal(after[branch.factor][:, rows], before[branch.factor][:, rows])
        assert torch.equal(before[branch.weight][rows], after[branch.weight][rows])
    with pytest.raises(ModelError, match=r"no rank-one terms.*Use the granularity row"):
        cure(made_task("full"), config)
