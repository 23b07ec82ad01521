"""The parts of a record, one small model each; :mod:`curerec.reports.schema` puts them together."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Number = float | None
Count = int | None
Text = str | None


class Part(BaseModel):
    """A closed part of the record: what it does not name, it does not take."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())


class Numbers(Part):
    """A part that may hold more numbers than it names."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None] = Field(init=False)

    @property
    def extra(self) -> dict[str, float | None]:
        """The numbers beyond the named fields."""
        return dict(self.__pydantic_extra__ or {})


class Dataset(Part):
    """Where the ratings came from; ``fingerprint`` is the sha256 of the sorted ratings table."""

    name: Text = None
    source: Text = None
    fingerprint: Text = None
    n_users: Count = None
    n_items: Count = None
    n_ratings: Count = None


class Model(Part):
    """The recommender; ``output`` is the sha256 of the unlearned weights, ``n_*`` count parameters."""

    base: Text = None
    base_hash: Text = None
    kind: Literal["full", "lora"] | None = None
    n_parameters: Count = None
    n_trainable: Count = None
    n_changed: Count = None
    template: Text = None
    note: Text = None
    output: Text = None


class Request(Part):
    """What was asked to be deleted, in numbers; ``digest`` stands for the ids, never stored here.

    Attributes:
        n_base_users, n_base_interactions: what of it the base model was pre-trained on, where that is known:
            it stays there, which ``note`` says in words.
        other: the card of the model that is judged names other requests, and not this one.
    """

    kind: Literal["users", "items", "interactions"] | None = None
    n_ids: Count = None
    share: Number = None
    choice: Text = None
    n_interactions: Count = None
    n_examples: Count = None
    n_base_users: Count = None
    n_base_interactions: Count = None
    note: Text = None
    digest: Text = None
    other: bool | None = None


class Split(Part):
    """Examples by role."""

    kind: Text = None
    train: Count = None
    forget: Count = None
    retain: Count = None
    control: Count = None
    valid: Count = None
    test: Count = None


class Metrics(Numbers):
    """One model measured.

    Attributes:
        test_auc, test_acc, test_log_loss, test_ece, valid_auc: utility (log-loss in nats).
        jsd, jeffreys_half, l2, jsd_test: distance to the retrained model, nats (l2: a probability).
        residual: (jsd - floor) / (ceiling - floor).
        excess_jsd: distance on deleted data minus that on unseen data, nats; ``excess_residual`` on the
            residual's scale.
        membership_auc, membership_low, membership_high: loss attack and its 95 % interval.
        membership_tpr_at_fpr_01: share of deleted examples caught at 1 % false alarms.
        membership_gap: difference of membership_auc to the retrained model.
        t_core_s, t_total_s: seconds; ``retrain_ratio``: t_total_s over that of the retrain.
        n_trainable: parameters that could change.
        stop_reason: why its update ended, in words.
    """

    test_auc: Number = None
    test_acc: Number = None
    test_log_loss: Number = None
    test_ece: Number = None
    valid_auc: Number = None
    jsd: Number = None
    jeffreys_half: Number = None
    l2: Number = None
    jsd_test: Number = None
    residual: Number = None
    excess_jsd: Number = None
    excess_residual: Number = None
    membership_auc: Number = None
    membership_low: Number = None
    membership_high: Number = None
    membership_tpr_at_fpr_01: Number = None
    membership_gap: Number = None
    t_core_s: Number = None
    t_total_s: Number = None
    retrain_ratio: Number = None
    n_trainable: Count = None
    stop_reason: Text = None


class Score(Part):
    """Mean score of one module with its interval; ``exact`` where it was patched for real."""

    module: str
    score: Number = None
    low: Number = None
    high: Number = None
    exact: Number = None
    in_core: bool | None = None


class HeadReads(Part):
    """Which part of the prompt a head reads from the answer position, and how common that is.

    ``part`` is None where no part gets more than its share of the tokens (``tokens``); ``prompts`` is the
    share of the prompts in which the part does.
    """

    head: str
    part: Text = None
    mass: Number = None
    low: Number = None
    high: Number = None
    tokens: Number = None
    prompts: Number = None


class CircuitPart(Part):
    """The core circuit: ``modules`` names it, ``curve`` holds (size, faithfulness) pairs."""

    faithfulness: Number = None
    completeness: Number = None
    size: Count = None
    n_modules: Count = None
    n_fixed: Count = None
    modules: list[str] | None = None
    scorer: Text = None
    jaccard: Number = None
    jaccard_chance: Number = None
    pairs: dict[str, int | None] | None = None
    curve: list[tuple[Number, Number]] | None = None
    scores: list[Score] | None = None
    spearman_exact: Number = None
    reads: list[HeadReads] | None = None


class Cell(Part):
    """Units of one matrix (of one head, where ``head`` is given) by role; ``layer`` None: outside of them."""

    layer: Count = None
    module: str
    head: Count = None
    forget: int = 0
    retain: int = 0
    shared: int = 0
    frozen: int = 0


class GroupsPart(Part):
    """Names of the units in each group, and the counts that the module map draws."""

    granularity: Text = None
    forget: list[str] | None = None
    retain: list[str] | None = None
    shared: list[str] | None = None
    frozen: list[str] | None = None
    agreement: Number = None
    cells: list[Cell] | None = None


class TraceStep(Numbers):
    """One check point of the update loop."""

    step: int
    membership_auc: Number = None
    valid_auc: Number = None
    forget_loss: Number = None
    retain_loss: Number = None
    cos_mean: Number = None
    projected: Number = None


class Seen(Part):
    """Mean cosine of both gradients, mean share projected, length of what was changed."""

    cos_mean: Number = None
    projected: Number = None
    update: Number = None


class StepSeen(Seen):
    """One step over all modules."""

    step: int


class ModuleSeen(Seen):
    """One module over all steps."""

    module: str


class ConflictsPart(Part):
    """How forgetting and retaining pulled, by step and by module."""

    steps: list[StepSeen] | None = None
    modules: list[ModuleSeen] | None = None


class SecondUpdate(Part):
    """An update beside the first, from the model as it was; the mean of the weights is handed back."""

    share: Number = None  # of its weights in the mean
    optimizer: Text = None
    steps: Count = None
    stop_reason: Text = None
    trace: list[TraceStep] | None = None
    conflicts: ConflictsPart | None = None


class Update(Part):
    """How the weights were moved, and why the loop stopped."""

    forget_loss: Text = None
    retain_loss: Text = None
    optimizer: Text = None
    depth: Number = None  # part of the way back to what `kept` allowed
    rolled_back: Number = None  # share of all weights that this was said of, at the most
    written: Number = None  # part of that way that was along what D_f's own gradients wrote
    saliency: Number = None  # share of all weights that may move, at the most
    anchor: Number = None  # share of the way back that each step drew them
    target: Number = None  # membership AUC that the update aimed for
    unseen_tokens: Count = None  # words of deleted data alone, put back to where the base has them
    steps: Count = None
    stop_reason: Text = None
    trace: list[TraceStep] | None = None  # with a second update the last is the mean's
    conflicts: ConflictsPart | None = None
    second_arm: SecondUpdate | None = None


class Stage(Part):
    """One stage and its seconds."""

    name: str
    time_s: Number = None


class Cost(Part):
    """What the request cost; ``kept``: parts that training or an earlier request had made."""

    stages: list[Stage] | None = None
    kept: list[str] | None = None
    peak_mem_bytes: Count = None


class Check(Part):
    """One condition of the verdict."""

    name: str
    passed: bool | None = None
    value: Number = None
    limit: Number = None
    text: Text = None


class Verdict(Part):
    """``verified`` is None where nothing could be judged.

    Attributes:
        promoted: a store put the version in force by its policy, whatever single checks say.
        notes: what the store's record says besides.
    """

    verified: bool | None = None
    checks: list[Check] | None = None
    promoted: bool | None = None
    notes: list[str] | None = None
