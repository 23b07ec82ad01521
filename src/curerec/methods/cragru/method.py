"""CRAGRU: the weights stay; what a prompt may show is retrieved without the deleted interactions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field

from curerec.config import Strict
from curerec.methods.cragru.retrieval import Retriever, Strategy
from curerec.methods.task import Task
from curerec.recommender.storage import NOT_STORABLE
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"strategy": ["preference", "diversity", "attention"], "pool": [20, 50]}


class CragruConfig(Strict):
    """Retrieval."""

    strategy: Strategy = "attention"
    pool: int = Field(50, gt=0, description="latest interactions of a user to choose from")
    trade: float = Field(
        0.5, ge=0, le=1, description="of diversity: nearness to the candidate against variety"
    )


def cragru(task: Task, config: CragruConfig | None = None) -> Outcome:
    """Retrieve histories without what is deleted; ``details["rebuild"]`` is the retriever.

    Args:
        task: the request.
        config: see :class:`CragruConfig`.

    Source: Zhang et al. 2025, arXiv 2511.05494.
    """
    config = config or CragruConfig()
    with task.clock.stage("update"):
        model = task.copy_of_model()
        setattr(model, NOT_STORABLE, "its weights are the original's, and forgetting is done at retrieval")
        rebuild = Retriever(
            task.data,
            task.deleted,
            title_vectors(task),
            config.strategy,
            pool=config.pool,
            trade=config.trade,
        )
    return Outcome(
        method="cragru",
        model=model,
        t_core_s=task.clock.seconds["update"],
        t_total_s=task.clock.total_s,
        stop_reason="nothing to train: deleted interactions are no longer retrieved",
        details={
            "stages": dict(task.clock.seconds),
            "changed": (),
            "storable": False,
            "rebuild": rebuild,
        },
    )


@torch.no_grad()
def title_vectors(task: Task) -> np.ndarray:
    """Mean input embedding of each item's title, float32 [n_items, d_model]."""
    table = task.original.model.get_input_embeddings().weight
    rows = []
    for item in range(len(task.data.items)):
        ids = torch.tensor(task.encoder.title(item), dtype=torch.int64, device=table.device)
        rows.append(
            table[ids].float().mean(0) if len(ids) else torch.zeros_like(table[0], dtype=torch.float32)
        )
    return torch.stack(rows).cpu().numpy()
