"""Frozen records that cross stages. No torch here: a report must be renderable without it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

Role = Literal["forget", "retain", "shared", "frozen"]
ROLES: tuple[Role, ...] = ("forget", "retain", "shared", "frozen")


@dataclass(frozen=True)
class Examples:
    """Prompts to be: which interaction is asked about, and which earlier ones form its history.

    Attributes:
        target: int64 [n], rows of :class:`curerec.interactions.Interactions`.
        history: int64 [n, K], rows, oldest first, right-aligned; -1 where the history is shorter than K.
        label: int8 [n], 1 iff the target's rating is at least 4.
    """

    target: np.ndarray
    history: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    @property
    def places(self) -> int:
        """Interactions that a history holds at most (K)."""
        return self.history.shape[1]

    def take(self, index: np.ndarray) -> Examples:
        """The examples at ``index`` (int positions or bool mask), in that order."""
        return Examples(self.target[index], self.history[index], self.label[index])


@dataclass(frozen=True)
class Split:
    """Examples by role; the same rows whatever is deleted later.

    Attributes:
        train: what the recommender is fine-tuned on.
        control: drawn like ``train`` but never trained on (D_c), the yardstick of membership.
        valid: for choices (D_v).
        test: for the final evaluation alone (D_t).
        kind: ``per-user`` or ``e2urec``.
        seed: of the random parts.
    """

    train: Examples
    control: Examples
    valid: Examples
    test: Examples
    kind: str
    seed: int


@dataclass(frozen=True)
class ForgetRequest:
    """What is asked to be deleted.

    Attributes:
        kind: ``users``, ``items`` or ``interactions``.
        ids: user ids, item ids, or ``(user, item)`` pairs.
        source: file it was read from, for messages.
        places: where in it each id stands (``row 3``), for messages, which never quote an id.
    """

    kind: Literal["users", "items", "interactions"]
    ids: tuple[Any, ...] = field(repr=False)
    source: str = field(default="request", compare=False)
    places: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @cached_property
    def digest(self) -> str:
        """sha256 of kind and sorted distinct ids: names the request in records, and nobody in it."""
        ids = {"\t".join(map(str, i)) if isinstance(i, tuple | list) else str(i) for i in self.ids}
        text = self.kind + "\n" + "\n".join(sorted(ids))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Conflicts:
    """Steps by modules, of their units that may move; nan where a gradient is 0 or none of them may.

    Attributes:
        modules: heads (``layers.0.head.1``), MLPs, what the heads of a layer share (``layers.0.attn``) and
            keys and values that some of them do (``layers.0.kv.1``), and what lies outside the layers by its
            own name.
        cos: of forget and retain gradient as the rules compare them (of steps with ``projection:
            preconditioned``), over those units, float32 [steps, modules].
        projected: share of them whose gradients were projected, float32 [steps, modules].
        update: length of what the step changed, averaging apart, float32 [steps, modules].
    """

    modules: tuple[str, ...]
    cos: np.ndarray
    projected: np.ndarray
    update: np.ndarray


@dataclass(frozen=True)
class ForgetSplit:
    """A request applied to a split.

    Attributes:
        forget: training examples whose target is deleted, with the histories the model was trained on (D_f).
        retain: all other training examples, histories cleaned of deleted interactions (D_r); what a retrain
            sees.
        control, valid, test: as in the split, histories cleaned, deleted targets kept in ``control`` only.
        deleted: bool [n_rows], the deleted interactions.
        retain_before: the examples of ``retain`` in its order, histories as they were before the request;
            None: as they are.
        dropped: training examples that are in neither, because the request leaves too little history before
            their target; histories as they were. None: there is none.
    """

    forget: Examples
    retain: Examples
    control: Examples
    valid: Examples
    test: Examples
    deleted: np.ndarray
    retain_before: Examples | None = None
    dropped: Examples | None = None


@dataclass(frozen=True)
class EdgeCircuit:
    """Scores of edges and the connected circuit chosen from them.

    Attributes:
        sources, readers: names; a source writes to the residual stream, a reader takes its input from it.
        source, reader: int [edges], indices into those.
        scores: float32 [examples, edges], first-order change of the margin when the edge is patched.
        core: indices into the edges, in the order the greedy search took them.
        curve: (number of edges, faithfulness) pairs, from none to all.
        granularity: ``head_mlp``, or ``block`` where the edges between two layers' heads were chosen or left
            together.
        low, high: float32 [edges], bootstrap interval of the mean scores; None where it was not computed.
        minimality: for each edge of ``core``, the faithfulness lost when it alone is dropped; nan of those it
            was not measured of.
        faithfulness, completeness, jaccard, jaccard_chance, scorer, cpr, cmd, knockouts, cost, notes: as of
            :class:`Circuit`.
    """

    sources: tuple[str, ...]
    readers: tuple[str, ...]
    source: np.ndarray
    reader: np.ndarray
    scores: np.ndarray
    core: tuple[int, ...]
    curve: tuple[tuple[int, float], ...]
    faithfulness: float
    completeness: float
    jaccard: float
    scorer: str
    cpr: float = float("nan")
    cmd: float = float("nan")
    minimality: tuple[float, ...] = ()
    granularity: str = "head_mlp"
    notes: tuple[str, ...] = ()
    jaccard_chance: float = float("nan")
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    knockouts: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """``source->reader`` of every edge."""
        return tuple(
            f"{self.sources[s]}->{self.readers[r]}" for s, r in zip(self.source, self.reader, strict=True)
        )


@dataclass(frozen=True)
class Circuit:
    """Scores of modules and the core circuit chosen from them.

    Attributes:
        modules: names, e.g. ``layers.0.head.3``, ``layers.1.mlp``.
        scores: float32 [examples, modules], the change of the margin when the module is patched.
        exact: float32 [modules], mean score by exact patching; nan where it was not computed.
        core: indices into ``modules``, by falling |mean score|.
        curve: (size, faithfulness) pairs, from the empty circuit to the full model.
        faithfulness: of ``core``, on the half of the pairs that did not rank it.
        scorer: name of the scorer of ``scores``.
        pairs: counts: ``moved``, ``flipped``, ``unaligned``, ``kept``.
        jaccard: mean pairwise overlap of the core circuit over bootstrap resamples.
        jaccard_chance: the overlap that random circuits of its size have; nan where it was not computed.
        completeness: 1 - f(everything but the core circuit).
        low, high: float32 [modules], bootstrap interval of the mean scores; None where it was not computed.
        agreement: ``pearson``, ``spearman``, ``top_recall`` of the mean scores against exact patching, over
            ``modules`` many.
        cpr, cmd: integral of faithfulness, respectively of its distance from 1, over the circuit's size.
        minimality: for each module of ``core``, the faithfulness lost when it alone is dropped.
        knockouts: largest |f(core without K) - f(all without K)| over ``random`` and ``greedy`` sets K.
        granularity: ``head_mlp``, or ``block`` where all heads of a layer were chosen or left together.
        cost: ``forward_equivalents`` of the scoring per example, ``peak_bytes`` where known.
        notes: what was done otherwise than asked, in words.
        edges: the circuit at edge level, where it was asked for.
        order: indices of all modules in the order in which the circuit grows; ``core`` is its beginning.
        fixed: heads and MLPs that it was not sought among; they belong to it whatever they do.
    """

    modules: tuple[str, ...]
    scores: np.ndarray
    exact: np.ndarray
    core: tuple[int, ...]
    curve: tuple[tuple[int, float], ...]
    faithfulness: float
    completeness: float
    jaccard: float
    scorer: str
    pairs: dict[str, int]
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    agreement: dict[str, float] = field(default_factory=dict)
    cpr: float = float("nan")
    cmd: float = float("nan")
    minimality: tuple[float, ...] = ()
    knockouts: dict[str, float] = field(default_factory=dict)
    granularity: str = "head_mlp"
    cost: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    edges: EdgeCircuit | None = None
    order: tuple[int, ...] = ()
    jaccard_chance: float = float("nan")
    fixed: int = 0


@dataclass(frozen=True)
class Groups:
    """The role of every updatable module.

    Attributes:
        modules: names at the granularity of the update.
        role: one of :data:`ROLES` for each module.
        forget_score: float64 [modules], F_i: share of the forget gradient, or mean over D_f of the nats of
            loss that removing the module would add; the method's configuration says which.
        retain_score: float64 [modules], R_i: mean over unseen data of the nats of loss that removing the
            module would add.
        agreement: float64 [modules], share of bootstrap draws in which the module keeps its leading group;
            nan where groups were drawn at random.
    """

    modules: tuple[str, ...]
    role: np.ndarray
    forget_score: np.ndarray
    retain_score: np.ndarray
    agreement: np.ndarray

    def members(self, role: Role) -> tuple[str, ...]:
        """Names of the modules in a group."""
        return tuple(m for m, r in zip(self.modules, self.role, strict=True) if r == role)


@dataclass(frozen=True)
class Outcome:
    """What a method hands back: a new model state, never a change of its input.

    Attributes:
        method: its name.
        model: the unlearned model (a torch module).
        t_core_s: seconds in the update loop.
        t_total_s: seconds for everything the request needed, loading and evaluation apart.
        trace: one dict a check point (step, membership_auc, valid_auc, ...).
        stop_reason: why the loop ended.
        n_trainable: parameters that could change.
        circuit, groups: where the method has them.
        details: anything else that the record should hold.
    """

    method: str
    model: Any
    t_core_s: float
    t_total_s: float
    trace: tuple[dict[str, float], ...] = ()
    stop_reason: str = ""
    n_trainable: int = 0
    circuit: Circuit | None = None
    groups: Groups | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recommender:
    """A language model that answers whether a user will like an item.

    Attributes:
        model: Hugging Face decoder, plain or wrapped by PEFT.
        tokenizer: its tokenizer.
        template: name of the prompt template.
        answers: token ids of (no, yes).
        base: base model name or path, its revision or content hash.
        card: contents of ``curerec.json``.
        path: folder it was loaded from, if any.
    """

    model: Any
    tokenizer: Any
    template: str
    answers: tuple[int, int]
    base: dict[str, Any]
    card: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
