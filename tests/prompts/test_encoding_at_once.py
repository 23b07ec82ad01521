"""Many prompts are encoded at once, and to the token as a plain loop over their pieces would do it."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.prompts import encoding
from curerec.prompts.encoding import Encoder, Queries
from curerec.prompts.templates import PARTS, TEMPLATES, Slot
from made_tokenizers import CONTROL, TITLES, TOKENIZERS

ODD = [*TITLES.values(), *CONTROL, *(f"Amber {token} Basalt" for token in CONTROL), "Cedar 0", "Dune 1"]


def random_queries(n, places=6, *, seed=0):
    """Histories of all lengths, the empty one among them, over all odd titles."""
    rng = np.random.default_rng(seed)
    history = rng.integers(0, len(ODD), (n, places)).astype(np.int32)
    rating = rng.choice(np.arange(0.5, 5.5, 0.5), (n, places)).astype(np.float32)
    empty = rng.random((n, places)) < rng.random((n, 1))
    empty[: n // 10] = True
    history[empty], rating[empty] = -1, np.nan
    candidate = rng.integers(0, len(ODD), n).astype(np.int32)
    return Queries(history, rating, candidate, rng.integers(0, 2, n).astype(np.int8))


def by_a_loop(tokenizer, template, q):
    """Ids, lengths and spans, piece by piece, each title by itself."""
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}

    def data(text):
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def title(item):
        text = " " + " ".join(ODD[item].split())
        ids = data(text)
        if not control.isdisjoint(ids):
            ids = [i for character in text for i in data(character) if i not in control]
        return ids[: encoding.MAX_TITLE_TOKENS]

    probe = tokenizer("a")["input_ids"]
    begun = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    begun = begun if probe and probe[:1] == begun else []
    ids, lengths, spans = [], [], []
    for n in range(len(q)):
        row = list(begun)
        for piece in TEMPLATES[template](q.rating[n].tolist()):
            if isinstance(piece, Slot):
                start = len(row)
                row += title(q.candidate[n] if piece.position < 0 else q.history[n, piece.position])
                spans.append((n, start, len(row), piece.position, PARTS.index(piece.part)))
            else:
                row += tokenizer(piece, add_special_tokens=False)["input_ids"]
        ids += row
        lengths.append(len(row))
    return ids, lengths, spans


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_same_as_a_loop(tokenizer, template, monkeypatch):
    made, q = TOKENIZERS[tokenizer](), random_queries(90)
    ids, lengths, spans = by_a_loop(made, template, q)
    for block in (7, 10_000):
        monkeypatch.setattr(encoding, "BLOCK", block, raising=False)
        encoder = Encoder(made, template, ODD)
        for _ in range(2):  # what is kept of the first call serves the second
            found = encoder.encode(q)
            assert found.ids.dtype == found.offsets.dtype == np.int64 and found.spans.dtype == np.int32
            np.testing.assert_array_equal(found.ids, ids)
            np.testing.assert_array_equal(found.offsets, np.r_[0, np.cumsum(lengths)])
            np.testing.assert_array_equal(found.spans, spans)
            np.testing.assert_array_equal(found.label, q.label)


def test_no_prompts_at_all():
    found = Encoder(TOKENIZERS["byte"](), "likes", ODD).encode(random_queries(0))
    assert len(found) == 0 and found.ids.shape == (0,) and found.spans.shape == (0, 5)
    assert found.offsets.tolist() == [0] and found.ids.dtype == np.int64


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_tokenizer_is_asked_for_all_new_titles_at_once(template):
    made, asked = TOKENIZERS["byte"](), []

    class Counted:
        def __call__(self, text, **options):
            if "split_special_tokens" in options:
                asked.append(text)
            return made(text, **options)

        def __getattr__(self, name):
            return getattr(made, name)

    plain = [f"Amber {k}" for k in range(len(ODD))]
    encoder = Encoder(Counted(), template, plain)
    encoder.encode(random_queries(40))
    encoder.encode(random_queries(40))
    assert len(asked) == 1
    encoder.encode(random_queries(40, seed=1))
    assert len(asked) <= 2 and encoder.title(3) == made(" Amber 3")["input_ids"]
