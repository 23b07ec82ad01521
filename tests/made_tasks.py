"""A tiny unlearning request: catalogue, split, base, fine-tuned model."""

from __future__ import annotations

import copy
from typing import Any, Literal

from curerec.data.forget import apply_request, draw_request
from curerec.data.splits import per_user_split
from curerec.methods.cure import CureConfig
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig
from curerec.prompts.encoding import Encoder, queries
from curerec.recommender.tune import TuneConfig, tune
from curerec.records import ForgetRequest, Recommender
from made_catalogue import made_catalogue
from made_families import lora_on, made_family_model
from made_models import made_encoder, made_model

TUNING = TuneConfig(epochs=1, batch_size=32, lr=3e-3)
_made: dict[tuple[str, str, tuple[int, ...] | None], tuple[Any, Any, Any]] = {}


def made_task(
    kind: str = "full",
    *,
    family: str = "llama",
    seed: int = 0,
    share: float = 0.2,
    layers: tuple[int, ...] | None = None,
    of: Literal["users", "items", "interactions"] = "users",
) -> Task:
    """A request to forget of a recommender really fine-tuned, for a moment, on made-up ratings.

    Args:
        kind: ``full`` or ``lora``.
        family: ``llama`` or a key of :data:`made_families.OPTIONS`.
        seed: of the task.
        share: of the users, or of what ``of`` says.
        layers: those that have an adapter, with ``lora``; None: all.
    """
    data = made_catalogue()
    encoder: Encoder = made_encoder()
    split = per_user_split(data, seed=0)
    made = (kind, family, layers)
    if made not in _made:
        n = len(encoder.tokenizer)
        base = made_model(n) if family == "llama" else made_family_model(family, n)
        start = lora_on(copy.deepcopy(base), layers=layers) if kind == "lora" else copy.deepcopy(base)
        if kind == "lora":  # as pipeline.fresh_model: B is 0, the base answers until it is trained
            for name, p in start.named_parameters():
                p.requires_grad_(".lora_" in name)
                if ".lora_B." in name:
                    p.data.zero_()
        else:
            start.requires_grad_(True)
        tuned = copy.deepcopy(start)
        tune(tuned, encoder.encode(queries(data, split.train)), encoder.answers, TUNING, seed=0)
        _made[made] = base, start, tuned
    base, start, tuned = _made[made]
    if of == "users":
        request = ForgetRequest("users", tuple(data.users[: max(1, round(share * len(data.users)))].tolist()))
    else:
        request = draw_request(data, split, kind=of, share=share, seed=seed)
    return Task.of(
        apply_request(data, split, request),
        original=Recommender(
            copy.deepcopy(tuned), encoder.tokenizer, "likes", encoder.answers, {"name": "made"}
        ),
        base_state={k: v.clone() for k, v in base.state_dict().items()} if kind == "full" else None,
        data=data,
        tuning=TUNING,
        fresh=lambda: copy.deepcopy(start),
        seed=seed,
    )


def short_cure(**update: Any) -> CureConfig:
    """`cure` in two steps of few prompts; ``update``: what else its loop has."""
    loop = UnlearnConfig(
        max_steps=2, check_every=2, check_size=40, retain_batch_size=32, schedule="linear", **update
    )
    return CureConfig(pairs=8, pair_pool=16, control_size=30, draws=5, update=loop)
