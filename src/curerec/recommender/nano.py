"""The demo's language model: a small Llama over a word-level vocabulary of the catalogue."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from curerec.prompts.templates import ANSWERS, TEMPLATES

CONTROL_TOKENS = ("<pad>", "<unk>")


def nano_tokenizer(titles: list[str], *, max_words: int = 8000) -> Any:
    """Word-level tokenizer whose vocabulary is the catalogue's words and the templates' words.

    Args:
        titles: of the whole catalogue (a catalogue is public: it names no user).
        max_words: rarer words become ``<unk>``.

    Returns:
        A fast Hugging Face tokenizer without a beginning-of-text token.
    """
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(False)])

    def words(text: str) -> list[str]:
        normal = core.normalizer.normalize_str(text)
        return [w for w, _ in core.pre_tokenizer.pre_tokenize_str(normal)]

    frame: dict[str, None] = {}
    samples = [
        [5.0, 1.0, float("nan")],
        [4.0, 4.0, 2.0, 2.0],
        [float("nan")],
        [1, 2, 3, 4, 5, 0.5, 1.5, 2.5, 3.5, 4.5],
    ]
    for template in TEMPLATES.values():
        for ratings in samples:
            for piece in template(ratings):
                if isinstance(piece, str):
                    frame.update(dict.fromkeys(words(piece)))
    for answer in ANSWERS:
        frame.update(dict.fromkeys(words(answer)))
    counts: Counter[str] = Counter()
    for title in titles:
        counts.update(words(title))
    ranked = [w for w, _ in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])) if w not in frame]
    vocabulary = [*CONTROL_TOKENS, *frame, *ranked][:max_words]
    core.model = models.WordLevel(vocab={w: k for k, w in enumerate(vocabulary)}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")


def nano_model(
    tokenizer: Any, *, width: int = 64, layers: int = 2, heads: int = 4, mlp: int = 176, seed: int = 0
) -> Any:
    """A randomly initialised small Llama for the tokenizer's vocabulary.

    Args:
        width: of the residual stream.
        layers: number of blocks.
        heads: attention heads a block (no grouping).
        mlp: inner width of the gated MLP.
        seed: of the initial weights.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
