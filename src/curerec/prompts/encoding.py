"""Encoding of examples as token rows, with a map from tokens back to titles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curerec.errors import PromptError
from curerec.interactions import Interactions
from curerec.prompts.templates import ANSWERS, PARTS, TEMPLATES, Piece, Slot
from curerec.records import Examples

MAX_TITLE_TOKENS = 32  # a title longer than this is cut, so that one title cannot push out the rest
BLOCK = 8192  # prompts whose pieces are put together at a time


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

    Titles are encoded once each, as data, and the ids of frame and titles are joined. So no title gives a
    control token, none changes the ids of the frame, and by :attr:`Prompts.spans` the package never takes one
    for the other. The model has no such map: a title that spells the frame's words may have the same ids,
    those of nano's tokenizer have, and be read as the end of the list it stands in.

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
        self._titles: dict[int, np.ndarray] = {}
        self.answers = answer_tokens(tokenizer)
        self._own_space = _puts_a_space(tokenizer)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        bos = tokenizer.bos_token_id
        self._start = [bos] if bos is not None and _adds_bos(tokenizer) else []
        # Tokens of the frame's pieces, the start of a prompt first, and each piece's place among them; a slot
        # has its place among the slots, counted down from -1.
        self._frame = [np.asarray(self._start, dtype=np.int64)]
        self._slots: list[Slot] = []
        self._code: dict[Piece, int] = {}

    def title(self, item: int) -> list[int]:
        """Token ids of an item's title, at most ``max_title_tokens``."""
        return self.title_tokens([item])[0].tolist()

    def title_tokens(self, items: Iterable[int]) -> list[np.ndarray]:
        """The same of several items, int64 [tokens] each.

        Args:
            items: item codes; titles that were not asked for before go to the tokenizer all at once.
        """
        items = list(items)
        new = [item for item in dict.fromkeys(items) if item not in self._titles]
        texts = [self._begun(" " + " ".join(self.titles[item].split())) for item in new]
        for item, ids in zip(new, encode_all_as_data(self.tokenizer, texts), strict=True):
            self._titles[item] = np.asarray(ids[: self.max_title_tokens], dtype=np.int64)
        return [self._titles[item] for item in items]

    def encode(self, q: Queries) -> Prompts:
        """Token rows and span map of queries.

        Returns:
            :class:`Prompts` of the same length and order.
        """
        blocks = [self._block(q.take(np.arange(k, min(k + BLOCK, len(q))))) for k in range(0, len(q), BLOCK)]
        ids, lengths, spans = (list(part) for part in zip(*blocks, strict=True)) if blocks else ([], [], [])
        for k, part in enumerate(spans):
            part[:, 0] += k * BLOCK
        return Prompts(
            ids=np.concatenate([np.zeros(0, np.int64), *ids]),
            offsets=np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths])),
            spans=np.concatenate([np.zeros((0, 5), np.int32), *spans]),
            label=q.label,
        )

    def _block(self, q: Queries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens of some queries one after another, how many each has, and their span map.

        A prompt is a row of pieces, each of a frame's text or a title; all tokens are fetched at once from
        those of the pieces.
        """
        template = TEMPLATES[self.template]
        rows = [template(rating) for rating in q.rating.tolist()]
        pieces = [piece for row in rows for piece in row]
        counts = np.asarray([len(row) for row in rows], dtype=np.int64)
        codes = self._coded(pieces)
        of = np.repeat(np.arange(len(q)), counts)
        slots = np.flatnonzero(codes < 0)
        known = np.asarray([(s.position, PARTS.index(s.part)) for s in self._slots], dtype=np.int64)
        position, part = known.reshape(-1, 2)[-1 - codes[slots]].T
        item = np.where(position < 0, q.candidate[of[slots]], q.history[of[slots], position])
        items, title = np.unique(item, return_inverse=True)
        tokens = [*self._frame, *self.title_tokens(items.tolist())]
        codes[slots] = len(self._frame) + title
        starts = np.cumsum(counts) - counts  # where a prompt's own pieces begin, without its start
        codes = np.insert(codes, starts, 0)
        of, slots = np.repeat(np.arange(len(q)), counts + 1), slots + of[slots] + 1
        size = np.asarray([len(t) for t in tokens])
        width = size[codes]
        end = np.cumsum(width)
        lengths = np.bincount(of, width, len(q)).astype(np.int64)
        first = (np.cumsum(size) - size)[codes]  # of each piece among all tokens
        ids = np.concatenate(tokens)[np.arange(end[-1]) + np.repeat(first - (end - width), width)]
        before = (np.cumsum(lengths) - lengths)[of[slots]]
        span = [of[slots], (end - width)[slots] - before, end[slots] - before, position, part]
        return ids, lengths, np.stack(span, 1).astype(np.int32)

    def _coded(self, pieces: Sequence[Piece]) -> np.ndarray:
        """Code of each piece, int64 [pieces]; what is new is encoded first."""
        for piece in dict.fromkeys(pieces):
            if piece in self._code:
                continue
            if isinstance(piece, Slot):
                self._slots.append(piece)
                self._code[piece] = -len(self._slots)
            else:
                ids = self.tokenizer(self._begun(piece), add_special_tokens=False)["input_ids"]
                self._code[piece] = len(self._frame)
                self._frame.append(np.asarray(ids, dtype=np.int64))
        return np.fromiter(map(self._code.__getitem__, pieces), np.int64, len(pieces))

    def frame(self, places: int, ratings: Iterable[float]) -> set[int]:
        """Token ids that prompts show beside titles, whatever was rated how.

        Args:
            places: interactions that a history shows at most.
            ratings: all that there are; a template may write them out.
        """
        template = TEMPLATES[self.template]
        histories = [[rating] * places for rating in (np.nan, *ratings)]
        pieces = {piece for ratings in histories for piece in template(ratings) if isinstance(piece, str)}
        return {token for piece in pieces for token in self._fixed(piece)} | set(self._start)

    def _begun(self, text: str) -> str:
        """A piece as the tokenizer is to be given it."""
        return text.removeprefix(" ") if self._own_space else text

    def _fixed(self, text: str) -> list[int]:
        return self._frame[int(self._coded([text])[0])].tolist()


def encode_as_data(tokenizer: Any, text: str) -> list[int]:
    """Token ids of text in which control tokens are ordinary characters, [n] of int.

    A tokenizer splits its special tokens on request, but not tokens that were added as ordinary ones (Qwen's
    ``<think>``), and some vocabularies hold control tokens as plain words. Text that still gives one is
    encoded a character at a time, which no multi-character token survives.
    """
    return encode_all_as_data(tokenizer, [text])[0]


def encode_all_as_data(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The same of several texts, which the tokenizer is given at once, [texts]."""
    if not texts:
        return []
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
    found = _as_data(tokenizer, list(texts))
    for k, text in enumerate(texts):
        if not control.isdisjoint(found[k]):
            each = _as_data(tokenizer, list(text))
            found[k] = [i for ids in each for i in ids if i not in control]
    return found


def _as_data(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def answer_tokens(tokenizer: Any) -> tuple[int, int]:
    """Ids of the single tokens " No" and " Yes".

    Raises:
        PromptError: the tokenizer splits one of them, or maps both to one token.
    """
    answers = [a.removeprefix(" ") if _puts_a_space(tokenizer) else a for a in ANSWERS]
    ids = [tokenizer(a, add_special_tokens=False)["input_ids"] for a in answers]
    if any(len(i) != 1 for i in ids) or ids[0] == ids[1]:
        raise PromptError(
            "the answers ' No' and ' Yes' are not one token each",
            where="tokenizer",
            mend="Use a base model whose vocabulary holds both words",
        )
    return ids[0][0], ids[1][0]


def _puts_a_space(tokenizer: Any) -> bool:
    """Whether it begins every text with a space of its own, also one that begins with a space.

    So do those of SentencePiece that are given as rules (Mistral, Phi-3). Of two spaces the first would be a
    token by itself, and an answer two tokens.
    """
    bare, spaced = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("a", " a"))
    return bare != spaced and "".join(tokenizer.convert_ids_to_tokens(bare)).startswith("\u2581")


def _adds_bos(tokenizer: Any) -> bool:
    probe = tokenizer("a")["input_ids"]
    return bool(probe) and probe[0] == tokenizer.bos_token_id
