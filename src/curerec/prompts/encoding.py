"""Encoding of examples as token rows, with a map from tokens back to titles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from curerec.errors import PromptError
from curerec.interactions import Interactions
from curerec.prompts.templates import ANSWERS, PARTS, TEMPLATES, Slot
from curerec.records import Examples

MAX_TITLE_TOKENS = 32  # a title longer than this is cut, so that one title cannot push out the rest


@dataclass(frozen=True)
class Queries:
    """What a prompt asks, before it is text: the level at which counterfactuals are made.

    Attributes:
        history: int32 [n, K], item codes, -1 where empty.
        rating: float32 [n, K], nan where empty.
        candidate: int32 [n], item codes.
        label: int8 [n].
    """

    history: np.ndarray
    rating: np.ndarray
    candidate: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.candidate)

    def take(self, index: np.ndarray) -> Queries:
        """The queries at ``index``."""
        return Queries(self.history[index], self.rating[index], self.candidate[index], self.label[index])


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts of different lengths, one after another.

    Attributes:
        ids: int64 [total], all tokens.
        offsets: int64 [n + 1]; prompt i is ``ids[offsets[i]:offsets[i + 1]]``, its answer position the last.
        spans: int32 [n_spans, 5]: prompt, first token, token after the last (both counted inside the prompt),
            history position (-1: candidate), index into :data:`curerec.prompts.templates.PARTS`.
        label: int8 [n].
    """

    ids: np.ndarray
    offsets: np.ndarray
    spans: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each prompt, int64 [n]."""
        return np.diff(self.offsets)

    def take(self, index: np.ndarray) -> Prompts:
        """The prompts at ``index`` (int positions, also repeated, or bool mask), in that order."""
        index = np.arange(len(self))[index] if len(index) else np.zeros(0, np.int64)
        rows = [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in index]
        first = np.searchsorted(self.spans[:, 0], np.arange(len(self) + 1))
        counts = np.diff(first)[index]
        parts = [self.spans[first[i] : first[i + 1]] for i in index]
        spans = np.concatenate(parts) if parts else self.spans[:0].copy()
        spans[:, 0] = np.repeat(np.arange(len(index)), counts)
        return Prompts(
            ids=np.concatenate(rows) if rows else np.zeros(0, np.int64),
            offsets=np.r_[0, np.cumsum(self.lengths[index])].astype(np.int64),
            spans=spans,
            label=self.label[index],
        )

    def padded(self, index: np.ndarray, pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """A right-padded batch.

        Padding on the right needs no attention mask: a causal model's answer position never sees it.

        Returns:
            ids int64 [batch, pos] and the answer positions int64 [batch].
        """
        lengths = self.lengths[index]
        ids = np.full((len(index), int(lengths.max())), pad, dtype=np.int64)
        for row, i in enumerate(index):
            ids[row, : lengths[row]] = self.ids[self.offsets[i] : self.offsets[i + 1]]
        return ids, lengths - 1


def queries(data: Interactions, examples: Examples) -> Queries:
    """Item codes and ratings of examples."""
    empty = examples.history < 0
    rows = np.where(empty, 0, examples.history)
    return Queries(
        history=np.where(empty, -1, data.item_code[rows]).astype(np.int32),
        rating=np.where(empty, np.nan, data.rating[rows]).astype(np.float32),
        candidate=data.item_code[examples.target].astype(np.int32),
        label=examples.label,
    )


class Encoder:
    """Turns queries into token rows for one tokenizer, template and catalogue.

    Titles are encoded once each, as data: control tokens inside a title are split into ordinary text, and the
    ids of frame and titles are joined, so no title can end the list it stands in.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: key of :data:`curerec.prompts.templates.TEMPLATES`.
        titles: title of each item code, [n_items] of str.
        max_title_tokens: longer titles are cut.

    Raises:
        PromptError: unknown template, or an answer that is not one token.
    """

    def __init__(
        self, tokenizer: Any, template: str, titles: list[str], *, max_title_tokens: int = MAX_TITLE_TOKENS
    ) -> None:
        if template not in TEMPLATES:
            raise PromptError(
                f"unknown template {template!r}", where="template", mend=f"Choose from {', '.join(TEMPLATES)}"
            )
        self.tokenizer, self.template, self.titles = tokenizer, template, titles
        self.max_title_tokens = max_title_tokens
        self._pieces: dict[str, list[int]] = {}
        self._titles: dict[int, list[int]] = {}
        self.answers = answer_tokens(tokenizer)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        bos = tokenizer.bos_token_id
        self._start = [bos] if bos is not None and _adds_bos(tokenizer) else []

    def title(self, item: int) -> list[int]:
        """Token ids of an item's title, at most ``max_title_tokens``."""
        if item not in self._titles:
            ids = encode_as_data(self.tokenizer, " " + " ".join(self.titles[item].split()))
            self._titles[item] = ids[: self.max_title_tokens]
        return self._titles[item]

    def encode(self, q: Queries) -> Prompts:
        """Token rows and span map of queries.

        Returns:
            :class:`Prompts` of the same length and order.
        """
        template = TEMPLATES[self.template]
        rows: list[list[int]] = []
        spans: list[tuple[int, int, int, int, int]] = []
        for n in range(len(q)):
            ids = list(self._start)
            for piece in template(q.rating[n].tolist()):
                if isinstance(piece, Slot):
                    item = q.candidate[n] if piece.position < 0 else q.history[n, piece.position]
                    start = len(ids)
                    ids += self.title(int(item))
                    spans.append((n, start, len(ids), piece.position, PARTS.index(piece.part)))
                else:
                    ids += self._fixed(piece)
            rows.append(ids)
        return Prompts(
            ids=np.concatenate([np.asarray(r, dtype=np.int64) for r in rows])
            if rows
            else np.zeros(0, np.int64),
            offsets=np.r_[0, np.cumsum([len(r) for r in rows])].astype(np.int64),
            spans=np.asarray(spans, dtype=np.int32).reshape(-1, 5),
            label=q.label,
        )

    def frame(self, places: int) -> set[int]:
        """Token ids that prompts show beside titles, whatever was rated.

        Args:
            places: interactions that a history shows at most.
        """
        template = TEMPLATES[self.template]
        histories = [[rating] * places for rating in (np.nan, *np.arange(0, 5.5, 0.5).tolist())]
        pieces = {piece for ratings in histories for piece in template(ratings) if isinstance(piece, str)}
        return {token for piece in pieces for token in self._fixed(piece)} | set(self._start)

    def _fixed(self, text: str) -> list[int]:
        if text not in self._pieces:
            self._pieces[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._pieces[text]


def encode_as_data(tokenizer: Any, text: str) -> list[int]:
    """Token ids of text in which control tokens are ordinary characters, [n] of int.

    A tokenizer splits its special tokens on request, but not tokens that were added as ordinary ones (Qwen's
    ``<think>``), and some vocabularies hold control tokens as plain words. Text that still gives one is
    encoded a character at a time, which no multi-character token survives.
    """
    ids = _as_data(tokenizer, text)
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
    if control.isdisjoint(ids):
        return ids
    return [i for character in text for i in _as_data(tokenizer, character) if i not in control]


def _as_data(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def answer_tokens(tokenizer: Any) -> tuple[int, int]:
    """Ids of the single tokens " No" and " Yes".

    Raises:
        PromptError: the tokenizer splits one of them, or maps both to one token.
    """
    ids = [tokenizer(a, add_special_tokens=False)["input_ids"] for a in ANSWERS]
    if any(len(i) != 1 for i in ids) or ids[0] == ids[1]:
        raise PromptError(
            "the answers ' No' and ' Yes' are not one token each",
            where="tokenizer",
            mend="Use a base model whose vocabulary holds both words",
        )
    return ids[0][0], ids[1][0]


def _adds_bos(tokenizer: Any) -> bool:
    probe = tokenizer("a")["input_ids"]
    return bool(probe) and probe[0] == tokenizer.bos_token_id
