"""What a metric may look at: the data and split, the model measured, and the models beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from curerec.evaluation.candidate import Candidate
from curerec.evaluation.inputs import p_yes
from curerec.evaluation.metric import CannotError
from curerec.evaluation.utility import nll
from curerec.interactions import Interactions
from curerec.prompts.encoding import Encoder, Prompts, Queries, queries
from curerec.recommender.score import score
from curerec.recommender.tune import TuneConfig
from curerec.recommender.vocabulary import vocabulary_probabilities
from curerec.records import Examples, ForgetSplit, Recommender

PARTS = ("forget", "control", "valid", "test")
TOGETHER = "several models answer together: they have no one distribution over the vocabulary"
FULL_SIZE = 512  # examples of which the whole vocabulary is compared: 100 MB a model at 49,152 tokens


@dataclass
class Ground:
    """What all models of one request have in common; encodes and scores each part once.

    Attributes:
        data: interactions.
        split: the request applied.
        recommender: whose tokenizer, template and answers are used.
        tuning: recipe of the fine-tuning, for attacks that fine-tune.
        seed: of everything random in a metric.
        draws: of every bootstrap.
        rank_users: how many users rankings are computed for.
    """

    data: Interactions
    split: ForgetSplit
    recommender: Recommender
    tuning: TuneConfig | None = None
    seed: int = 0
    draws: int = 1000
    rank_users: int = 200
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def encoder(self) -> Encoder:
        """Encoder of the recommender's template and catalogue."""
        titles = self.data.titles["title"].to_pylist()
        return Encoder(self.recommender.tokenizer, self.recommender.template, titles)

    def part(self, name: str) -> Examples:
        """Examples of a part of the split."""
        return getattr(self.split, name)

    def encode(self, examples: Examples | Queries) -> Prompts:
        """Prompts of examples."""
        q = examples if isinstance(examples, Queries) else queries(self.data, examples)
        return self.encoder.encode(q)

    def prompts(self, name: str) -> Prompts:
        """Prompts of a part, with histories as they are; encoded once."""
        key = ("prompts", name)
        if key not in self.memo:
            self.memo[key] = self.encode(self.part(name))
        return self.memo[key]

    def user(self, name: str) -> np.ndarray:
        """User code of each example of a part, [n]: the clusters of every bootstrap."""
        return self.data.user_code[self.part(name).target]

    def score(self, model: Any, prompts: Prompts) -> np.ndarray:
        """Answer logits, [n, 2]."""
        return score(model, prompts, self.recommender.answers)

    def logits(self, one: Candidate, name: str) -> np.ndarray:
        """Answer logits of a part as the model is served, [n, 2]; scored once."""
        if name not in one.logits:
            if one.rebuild is None and name in one.memory:
                one.logits[name] = one.memory[name]
            elif one.rebuild is None:
                one.logits[name] = self._asked(one, name)
            else:
                shown = self.encode(one.rebuild(self.part(name)))
                one.logits[name] = self.score(_model(one), shown)
        return one.logits[name]

    def memory(self, one: Candidate, name: str) -> np.ndarray:
        """Answer logits of a part with the histories as they are, [n, 2]: what the weights remember."""
        if name not in one.memory:
            if one.rebuild is None:
                one.memory[name] = self.logits(one, name)
            else:
                one.memory[name] = self._asked(one, name)
        return one.memory[name]

    def _asked(self, one: Candidate, name: str) -> np.ndarray:
        """Answer logits of a part with the histories as they are, [n, 2]; scored are those not known."""
        known = one.known.get(name)
        if known is None:
            return self.score(_model(one), self.prompts(name))
        unknown = np.flatnonzero(np.isnan(known).any(1))
        if len(unknown):
            known = known.copy()
            known[unknown] = self.score(_model(one), self.prompts(name).take(unknown))
        return known

    def p_yes(self, one: Candidate, name: str) -> np.ndarray:
        """P(yes) of a part as the model is served, [n]."""
        return p_yes(self.logits(one, name))

    def losses(self, one: Candidate, name: str) -> np.ndarray:
        """Loss of each example with the histories as they are, [n], nats."""
        return nll(self.memory(one, name), self.part(name).label)

    def vocabulary(self, one: Candidate, name: str) -> Float[np.ndarray, "n vocab"]:
        """Probabilities of the whole vocabulary at the answer position as served, of at most 512 examples.

        Raises:
            CannotError: several models answer together; they have no one distribution over the vocabulary.
        """
        key = ("vocabulary", name)
        if key not in one.memo:
            model = _model(one)
            if hasattr(model, "answer_logits"):
                raise CannotError(TOGETHER)
            few = self.spread(name)
            if one.rebuild is None:
                shown = self.prompts(name).take(few)
            else:
                shown = self.encode(one.rebuild(self.part(name).take(few)))
            one.memo[key] = vocabulary_probabilities(model, shown)
        return one.memo[key]

    def spread(self, name: str, size: int = FULL_SIZE) -> np.ndarray:
        """At most ``size`` examples of a part, evenly spread, int [m]."""
        n = len(self.part(name))
        return np.unique(np.linspace(0, n - 1, min(size, n)).astype(int))


@dataclass
class Scene:
    """One model to be measured, and what is at hand beside it.

    Attributes:
        ground: data, split, encoder.
        subject: the model that is measured.
        original: the recommender before unlearning; None where it is not at hand.
        references: all models retrained without the data; may hold ``subject``.
        seeds: the same method's other runs, for averages over seeds; without ``subject``.
        shadows: of :mod:`curerec.shadows`, for U-LiRA; or why there can be none.
        name: of the model.
    """

    ground: Ground
    subject: Candidate
    original: Candidate | None = None
    references: tuple[Candidate, ...] = ()
    seeds: tuple[Candidate, ...] = ()
    shadows: Any = None
    name: str = ""

    @property
    def retrains(self) -> tuple[Candidate, ...]:
        """The retrained models that ``subject`` is measured against: all but itself."""
        return tuple(r for r in self.references if r is not self.subject)

    @property
    def split(self) -> ForgetSplit:
        """The request applied."""
        return self.ground.split

    @property
    def tuning(self) -> TuneConfig | None:
        """Recipe of the fine-tuning, if it is at hand."""
        ground = getattr(self, "ground", None)
        return ground.tuning if ground else None

    @property
    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """User of each deleted and of each control example: the clusters of membership's bootstrap."""
        return self.ground.user("forget"), self.ground.user("control")

    def of(self, subject: Candidate) -> Scene:
        """The same scene about another model."""
        return replace(self, subject=subject)


def scenes(
    ground: Ground,
    models: dict[str, Candidate],
    retrains: dict[str, Candidate],
    *,
    shadows: dict[str, Any] | None = None,
    seeds: dict[str, Sequence[Candidate]] | None = None,
) -> dict[str, Scene]:
    """A scene for every model: each is measured against the original and the retrains other than itself.

    Args:
        ground: what they have in common.
        models: by name; ``original`` is the one before unlearning.
        retrains: by name.
        shadows: by name, where there are any.
        seeds: by name, other runs of the same method.
    """
    return {
        name: Scene(
            ground,
            one,
            models.get("original"),
            tuple(retrains.values()),
            tuple((seeds or {}).get(name, ())),
            (shadows or {}).get(name),
            name,
        )
        for name, one in {**models, **retrains}.items()
    }


def _model(one: Candidate) -> Any:
    if one.model is None:
        raise CannotError("the model itself is not at hand, and these answers of it were not stored")
    return one.model
