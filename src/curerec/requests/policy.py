"""What the operator decides once for a store: method, budgets, and what becomes of old artefacts."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from curerec import __version__
from curerec.config import MAX_SEED, Strict
from curerec.source import packages, source_digest


class Policy(Strict):
    """``policy.yaml`` of a store; its hash is in the records of init, of deletions and of retrains."""

    added = ("recipe",)

    method: str = Field("cure", description="of curerec.methods, for requests without --method")
    recipe: str | None = Field(
        None,
        description="one that ships (quick, ...), whose settings of methods requests take; None: the "
        "recommender's own",
    )
    seed: int = Field(0, ge=0, le=MAX_SEED)
    drift_budget: float = Field(
        0.5,
        gt=0,
        description="sum over unlearnings of the mean Jensen-Shannon distance (square root of nats) on D_v",
    )
    auc_budget: float = Field(0.01, gt=0, description="sum over unlearnings of the fall of the AUC on D_v")
    accept_unjudged: bool = Field(
        False, description="promote where a check had no power to fail; the record says so"
    )
    retrain_auc_drop: float = Field(0.02, ge=0, description="utility guard of a retrained version on D_v")
    old: Literal["destroy", "quarantine"] = Field(
        "destroy", description="of artefacts with forgotten influence"
    )
    keep_answers: bool = Field(
        False,
        description="each version keeps what the recommender as trained answered the training examples that "
        "are left, and updates hold the retain side to it (docs/requests.md); those answers "
        "are of a model that knew the deleted rows, and the records say that they are kept",
    )
    retention_days: int = Field(365, ge=0, description="after which --expired shreds a request's key")
    sign_key: str | None = Field(None, description="PEM file of an Ed25519 private key (extra `sign`)")

    @property
    def stage_settings(self) -> str:
        """What the stages of a batch depend on beside method and seed, the code of curerec with it.

        Stages that were carried out under another policy, or by code that has changed since, are none of a
        batch of this one; a version number stays what it is while code changes.
        """
        asked = self.model_dump(mode="json", include={"recipe", "keep_answers"})
        code = {"curerec": f"{__version__} {source_digest()}", **packages()}
        return json.dumps({**asked, **code}, sort_keys=True)
