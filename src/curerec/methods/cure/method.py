"""CURE (arXiv 2604.04982) as docs/method.md defines it: circuit -> contributions -> groups -> update."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from curerec.circuits.belonging import in_core, modules_with_units
from curerec.circuits.core import find_core, stable_core
from curerec.circuits.counterfactuals import outcomes
from curerec.circuits.patching import both_margins, most_falling
from curerec.circuits.path import path_scores
from curerec.config import Strict
from curerec.groups.assign import assign, comparable, rows_of_roles
from curerec.methods.cure.gradient_share import gradient_shares
from curerec.methods.cure.retain_side import RetainSide
from curerec.methods.cure.second_arm import SecondArm, mean_of
from curerec.methods.cure.weights import weights_of
from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.loop import outcome
from curerec.methods.rules import Rules
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig, retain_weight, run
from curerec.prompts.counterfactual import counterfactual_pairs
from curerec.prompts.encoding import queries
from curerec.recommender.score import device_of
from curerec.recommender.units import Granularity, Units, units_of
from curerec.records import ROLES, Circuit, Examples, Groups, Outcome


class Kept(Strict):
    """Share of fine-tuning's change that units of a group start the update with (with ``update.open_gap`` at
    the least); see ``rollback.py``."""

    forget: float = Field(1.0, ge=0, le=1)
    retain: float = Field(1.0, ge=0, le=1)
    shared: float = Field(1.0, ge=0, le=1)

    def of(self, role: np.ndarray) -> np.ndarray | None:
        """Shares by unit, from role codes; None where everything is kept. Frozen units are never touched."""
        shares = np.array([self.forget, self.retain, self.shared, 1.0])
        return None if (shares == 1).all() else shares[role]


class CureConfig(Strict):
    """Circuit, groups and update. What a request finds by itself, it finds on D_v, D_c and D_f."""

    added = ("saliency", "rolled_back", "written", "project", "second_arm")

    pairs: int = Field(128, gt=1, description="counterfactual pairs that the circuit is scored on")
    pair_pool: int = Field(
        384, gt=1, description="prompts to corrupt; those whose margin falls most become pairs"
    )
    scope: Literal["core", "all"] = Field(
        "core", description="units outside the core circuit are frozen, or get a role like the others"
    )
    faithfulness: float = Field(0.9, gt=0, le=1, description="of the core circuit")
    stable: bool = Field(
        False,
        description="where resamples overturn the core circuit: more pairs, then whole blocks",
    )
    granularity: Granularity = Field("row", description="size of an update unit")
    forget_score: Literal["gradient", "path"] = Field(
        "gradient",
        description="F: share of the forget gradient that falls on a unit, or what fine-tuning stored in it "
        "for D_f; R is always what fine-tuning stored in it for unseen data",
    )
    path_steps: int = Field(
        2, gt=0, description="midpoints between base and fine-tuned weights for contributions"
    )
    forget_size: int = Field(
        2000, gt=1, description="at most so many of D_f are scored; all of them: nothing to resample"
    )
    control_size: int = Field(600, gt=1, description="at most so many of D_c are scored")
    tau: float = Field(0.5, gt=0, lt=1, description="percentile from which a contribution counts as high")
    draws: int = Field(200, gt=0, description="bootstrap resamples of the contributions")
    certain: float = Field(
        0.9, ge=0, le=1, description="share of draws under which a unit goes to task-shared"
    )
    uncertain: Literal["shared", "leading"] = "shared"
    saliency: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of all weights that may move for forgetting: in the units that can, those with "
        "the largest forget gradient; none: whole units",
    )
    rolled_back: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of all weights that are taken back (``kept``) before the update: in the units "
        "that can forget, those in whose change most of D_f is remembered; none: those that may move",
    )
    written: float | None = Field(
        None,
        gt=0,
        le=1,
        description="part of the way back that is along what D_f's own gradients wrote in training, which "
        "`model.waypoints` tell (where none were kept nothing differs); in as many weights as "
        "``rolled_back``, those in which it is most of what D_f is remembered by. Small requests "
        "(``update.small``) do without. None: all of the way is along what fine-tuning changed",
    )
    project: Literal["both"] | None = Field(
        None,
        description="where the gradients of a task-shared unit conflict: both lose what works against the "
        "other; none: that of forgetting alone does",
    )
    kept: Kept = Kept()
    update: UnlearnConfig = UnlearnConfig(forget_loss="rewind")
    second_arm: SecondArm | None = Field(
        None,
        description="a second update, in which nothing goes back; the mean of the weights of both is handed "
        "back (an option: docs/experiments.md, Two arms). Small requests (``update.small``) and adapters do "
        "without. None: one update",
    )

    @model_validator(mode="after")
    def _needs_gradient(self) -> CureConfig:
        shares = {"saliency": self.saliency, "rolled_back": self.rolled_back}
        if self.update.small is not None:
            shares["update.small.rolled_back"] = self.update.small.rolled_back
            shares["update.small.saliency"] = self.update.small.saliency
        if self.written is not None and self.rolled_back is None:
            raise ValueError("written is a part of what goes back: name rolled_back, too")
        for name, share in shares.items():
            if share is not None and self.forget_score != "gradient":
                raise ValueError(f"{name} takes the weights by their gradient: use forget_score gradient")
        return self

    def idle(self) -> str | None:
        # What small requests have in their place may stand: it comes with the settings of others.
        back = {"rolled_back": self.rolled_back, "update.open_gap": self.update.open_gap}
        named = [name for name, value in back.items() if value is not None]
        if named and self.kept.of(np.arange(len(ROLES))) is None:
            return f"{named[0]} is of what goes back, and kept keeps all: leave it null, or lower kept"
        return super().idle()

    def rolled_back_for(self, n_forget: int, n_retain: int) -> float | None:
        """``rolled_back`` as a request of this size has it.

        Example:
            >>> small = {"below": 0.03, "rolled_back": 0.05}
            >>> back = {"rolled_back": 0.2, "kept": {"forget": 0.4}}
            >>> config = CureConfig.model_validate({**back, "update": {"small": small}})
            >>> [config.rolled_back_for(n, 1000 - n) for n in (10, 100)]
            [0.05, 0.2]
        """
        small = self.update.small_for(n_forget, n_retain)
        return self.rolled_back if small is None or small.rolled_back is None else small.rolled_back

    def saliency_for(self, n_forget: int, n_retain: int) -> float | None:
        """``saliency`` as a request of this size has it."""
        small = self.update.small_for(n_forget, n_retain)
        return self.saliency if small is None or small.saliency is None else small.saliency

    def second_arm_for(self, n_forget: int, n_retain: int, *, adapter: bool = False) -> SecondArm | None:
        """``second_arm`` as a request of this size has it, of an adapter or a whole model."""
        none = adapter or self.update.small_for(n_forget, n_retain) is not None
        return None if none else self.second_arm

    def written_for(self, n_forget: int, n_retain: int) -> float | None:
        """``written`` as a request of this size has it."""
        return None if self.update.small_for(n_forget, n_retain) else self.written


def explain(task: Task, config: CureConfig) -> tuple[Circuit, Units, Groups]:
    """The request's circuit and groups: everything before the weights are touched.

    Args:
        task: the request.
        config: sizes and thresholds.

    Returns:
        The core circuit, the update units and their roles.
    """
    circuit = circuit_of(task, config)
    return circuit, *groups_of(task, config, circuit)


def circuit_of(task: Task, config: CureConfig) -> Circuit:
    """The core circuit of the recommendation, from counterfactual pairs of D_v.

    Where only some modules hold units (an adapter on the last layers, or on queries and values), it is
    sought among those: the others cannot change, so which of them matter decides nothing, and a core that
    lay in them alone would leave nothing to update.
    """
    model, answers = task.original.model, task.answers
    side = RetainSide(task, config) if task.retain_side else None
    with task.clock.stage("counterfactuals"):
        if side and (found := side.circuit()):
            return found
        part = task.sample(task.valid, max(config.pairs, config.pair_pool), 71)
        wanted = queries(task.data, part)
        pairs = counterfactual_pairs(task.data, wanted, task.encoder, task.train_rows, seed=task.seed)
        clean, corrupt = task.encoder.encode(pairs.clean), task.encoder.encode(pairs.corrupt)
        among = modules_with_units(model, config.granularity)
        margins = both_margins(model, clean, corrupt, answers, among=among)
        moved = most_falling(margins[0] - margins[1], config.pairs)
        clean, corrupt = clean.take(moved), corrupt.take(moved)
    with task.clock.stage("circuit"):
        circuit = (stable_core if config.stable else find_core)(
            model,
            clean,
            corrupt,
            answers,
            scorer="atp",
            threshold=config.faithfulness,
            among=among,
            counts={
                "unaligned": pairs.unaligned,
                "made": len(pairs),
                **outcomes(*margins),  # of all that were made: those used were chosen for their fall
                "replaced": int(pairs.replaced[moved].sum()),
            },
            seed=task.seed,
        )
        if side:
            side.keep_circuit(circuit, part.take(pairs.index[moved]), pairs.put_in[moved])
        return circuit


def groups_of(task: Task, config: CureConfig, circuit: Circuit) -> tuple[Units, Groups]:
    """The update units and their roles, by what they contribute to forgetting D_f and to predicting D_c."""
    with task.clock.stage("contributions"):
        units = units_of(task.original.model, config.granularity)
        resampled = None
        census = len(task.forget) <= config.forget_size
        if config.forget_score == "gradient":
            objective = ForgetObjective.of(task, config.update)
            share, resampled = gradient_shares(
                objective, units, size=config.forget_size, draws=config.draws, seed=task.seed
            )
            forget = share[None]
        else:
            forget = stored(task, config, units, task.forget, config.forget_size, 72)
        retain = retain_contributions(task, config, units)
    with task.clock.stage("groups"):
        groups = assign(
            forget,
            retain,
            units.names,
            comparable(units.types),
            tau=config.tau,
            draws=config.draws,
            certain=config.certain,
            uncertain_role="shared" if config.uncertain == "shared" else None,
            census=census,
            forget_draws=resampled,
            seed=task.seed,
        )
        if config.scope == "core":
            inside = in_core(circuit, units)
            groups = replace(groups, role=np.where(inside, groups.role, "frozen"))
    return units, groups


def retain_contributions(task: Task, config: CureConfig, units: Units) -> np.ndarray:
    """What fine-tuning stored in each unit for unseen data, from examples of D_c, float [n, n_units].

    Those that training or an earlier request left are taken where they still hold.
    """
    side = RetainSide(task, config) if task.retain_side else None
    if side is None:
        return stored(task, config, units, task.control, config.control_size, 73)
    kept = side.contributions(len(units.names))
    if kept is None:
        kept = stored(task, config, units, side.control, config.control_size, 73)
        side.keep_contributions(kept, task.sample(side.control, config.control_size, 73))
    return kept


def stored(task: Task, config: CureConfig, units: Units, part: Examples, size: int, salt: int) -> np.ndarray:
    """Path scores of the units for a sample of a part, float [n, n_units]."""
    prompts = task.encode(task.sample(part, size, salt))
    return path_scores(
        task.original.model, prompts, task.answers, units, task.deltas(units), steps=config.path_steps
    )


def prepare(task: Task, config: CureConfig) -> None:
    """Leave circuit and contributions on D_c for the requests to come; they are of no request.

    Args:
        task: that deletes nothing, with ``retain_side``.
        config: as the requests will have it; with another they find nothing.
    """
    circuit_of(task, config)
    with task.clock.stage("contributions"):
        retain_contributions(task, config, units_of(task.original.model, config.granularity))


def cure(task: Task, config: CureConfig | None = None) -> Outcome:
    """Unlearn a request by circuit-aware group rules.

    Args:
        task: the request; its recommender is not changed.
        config: see :class:`CureConfig`.

    Returns:
        The unlearned model with circuit, groups and trace.

    Source: CURE, arXiv 2604.04982; METHOD sections 2 to 8 (definitions), docs/method.md (those in force).
    """
    config = config or CureConfig()
    circuit, units, groups = explain(task, config)
    return update_by_groups(task, config, units, groups, circuit, "cure")


def update_by_groups(
    task: Task,
    config: CureConfig,
    units: Units,
    groups: Groups,
    circuit: Circuit | None,
    name: str,
    *,
    as_large_as: Groups | None = None,
) -> Outcome:
    """Roll the groups' units back, run the update loop with their rules and pack what it did.

    Args:
        task: the request.
        config: of the method.
        units, groups: what is updated, and how.
        circuit: for the record.
        name: of the method.
        as_large_as: of a twin: the groups that its own equal in size. With ``saliency`` and ``rolled_back``
            as many weights as would be in those move and are taken back, drawn at random.
    """
    role = rows_of_roles(groups)
    codes = torch.from_numpy(role).to(device_of(task.original.model))
    with task.clock.stage("groups", told=False):
        masks, rolled, taken_back, about = weights_of(
            task, config, units, role, None if as_large_as is None else rows_of_roles(as_large_as)
        )
    weight, both = retain_weight(task, config.update), config.project == "both"
    arm = config.second_arm_for(len(task.forget), len(task.retain), adapter=task.base_state is None)
    rules = Rules(units, codes, weight=weight, masks=masks, both=both)
    done = run(task, rules, config.update, config.kept.of(role), rolled, taken_back)
    if arm:
        assert done.watch is not None
        whole = Rules(units, codes, weight=weight, both=both, whole=True)
        second = run(task, whole, arm.of(config.update), watch=done.watch)
        done, about["second_arm"] = mean_of(done.watch, done, second, arm.share)
    return outcome(task, name, done, groups=groups, circuit=circuit, units=units, **about)
