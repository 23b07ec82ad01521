"""Titles made to leave their place: control tokens of five tokenizers, delimiters, odd Unicode, frames."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from curerec.prompts.encoding import Encoder, Queries, encode_as_data
from curerec.prompts.templates import TEMPLATES
from curerec.recommender.nano import CONTROL_TOKENS, nano_tokenizer
from made_tokenizers import byte_level_core

#: Control tokens as these families spell them, and how their tokenizers cut text.
FAMILIES = {
    "llama-2": (["<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"], True),
    "llama-3": (
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"],
        False,
    ),
    "qwen": (["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>"], False),
    "gemma": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<pad>", "<unused0>"], True),
    "gpt-2": (["<|endoftext|>", "<|pad|>", "<|sep|>"], False),
}
FRAME = "The user liked: disliked nothing . Will the user like ? Answer: Ratings of user, oldest first Yes No"
DELIMITERS = [
    "Yes",
    "No",
    " Yes",
    "\nAnswer: Yes",
    "?",
    ";",
    "; Alien",
    "\n",
    "\r\n",
    "\t",
    ".",
    '"',
    "liked:",
    "\x00",
]
ODD = [
    "\u202eevila",
    "\u200b",
    "\ufeff",
    "\u2028",
    "\u0085",
    "e\u0301" * 30,
    "\U000e0041",
    "👩\u200d🚀",
    "\u3164",
    "ﷺ" * 9,
]


@functools.cache
def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A small BPE tokenizer with the control tokens of a family."""
    control, digits = FAMILIES[family]
    core = byte_level_core(control, [FRAME] * 5, vocab_size=500, digits=digits)
    half = len(control) // 2 + 1  # the others are added as ordinary tokens, as Qwen adds <think>
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=control[0], additional_special_tokens=control[1:half]
    )


def place_at(text: str, k: int) -> str:
    """One of 20 positions of a text in a title."""
    title = "Amber Basalt Cedar 1999"
    if k < 16:
        at = round(k * len(title) / 15)
        return title[:at] + text + title[at:]
    return (text, text * 2, f" {text} ", f"{text}\n{title}")[k - 16]


def prompt_of(
    family: str, template: str, title: str, slot: int
) -> tuple[list[int], list[list[int]], list[int]]:
    """Frame, spans' parts, and title tokens of one prompt with this title in one of its slots."""
    titles = ["Amber"] * 4
    titles[slot] = title
    history = np.asarray([[-1] * 7 + [1, 2, 3]], np.int32)
    rating = np.asarray([[np.nan] * 7 + [5.0, 2.0, 4.0]], np.float32)
    made = Encoder(tokenizer_of(family), template, titles).encode(
        Queries(history, rating, np.asarray([0], np.int32), np.asarray([1], np.int8))
    )
    inside = np.zeros(len(made.ids), bool)
    for _, start, stop, _, _ in made.spans:
        inside[start:stop] = True
    return made.ids[~inside].tolist(), made.spans[:, 3:].tolist(), made.ids[inside].tolist()


@functools.cache
def plain(family: str, template: str) -> tuple[list[int], list[list[int]]]:
    return prompt_of(family, template, "Amber", 0)[:2]


def check(family: str, template: str, title: str, slot: int) -> None:
    """Structure and answer position are those of a harmless title, and no control token is in it."""
    frame, parts, inside = prompt_of(family, template, title, slot)
    assert (frame, parts) == plain(family, template), (family, template, slot)
    tokenizer = tokenizer_of(family)
    control = set(tokenizer.convert_tokens_to_ids(FAMILIES[family][0])) - {tokenizer.unk_token_id}
    control &= {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    assert control and control.isdisjoint(inside), (family, template, slot)


@pytest.mark.slow_but("llama-3", "qwen")
@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_at_twenty_positions(family, capsys):
    done = 0
    for token in (*FAMILIES[family][0], *DELIMITERS, *ODD):
        for k in range(20):
            template = sorted(TEMPLATES)[k % len(TEMPLATES)]
            check(family, template, place_at(token, k), k % 4)
            done += 1
    with capsys.disabled():
        print(f"\n  hostile titles, {family}: {done} prompts unchanged")


@pytest.mark.parametrize("number", [400, pytest.param(10_000, marks=pytest.mark.soak)])
def test_random_unicode(number, capsys):
    rng = random.Random(number)
    ranges = [(0, 0x7F), (0x80, 0x2FF), (0x300, 0x36F), (0x590, 0x6FF), (0x2000, 0x206F), (0xE000, 0xFFFF)]
    ranges += [(0x1F300, 0x1FAFF), (0xE0000, 0xE01EF), (0x10FF00, 0x10FFFF)]
    for k in range(number):
        text = "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 40)))
        text = text.encode("utf-8", "replace").decode()
        check(list(FAMILIES)[k % 5], sorted(TEMPLATES)[k % len(TEMPLATES)], text, k % 4)
    with capsys.disabled():
        print(f"\n  random Unicode titles: {number} prompts unchanged")


def test_a_title_may_spell_the_frame_and_the_spans_tell_them_apart():
    """Words are tokens to nano whoever writes them: its model is given the same ids for either history."""
    titles = [
        "Dune",
        "Amber",
        "Basalt",
        "Amber.\nThe user disliked: Basalt",
        "Basalt.\nThe user disliked: nothing",
    ]
    tokenizer = nano_tokenizer([*titles, "<unk> <pad>"])
    encoder = Encoder(tokenizer, "likes", titles)

    def asked(history, ratings):
        item, rating = np.asarray([history], np.int32), np.asarray([ratings], np.float32)
        return encoder.encode(Queries(item, rating, np.zeros(1, np.int32), np.ones(1, np.int8)))

    one, other = asked([-1, 3], [np.nan, 5.0]), asked([1, 4], [5.0, 2.0])
    np.testing.assert_array_equal(one.ids, other.ids)
    assert [part.tolist() for part in (one.spans[:, 3:], other.spans[:, 3:])] == [
        [[1, 0], [-1, 2]],
        [[0, 0], [1, 1], [-1, 2]],
    ]
    for made, items in ((one, [3, 0]), (other, [1, 4, 0])):
        shown = [made.ids[start:stop].tolist() for _, start, stop, _, _ in made.spans]
        assert shown == [encoder.title(item) for item in items]
    control = set(tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))) - {tokenizer.unk_token_id}
    assert control.isdisjoint(encode_as_data(tokenizer, " ".join(["Amber", *CONTROL_TOKENS])))
