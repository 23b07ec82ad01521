"""The model card of a saved recommender: ``README.md``, as the Hugging Face hub shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from curerec import __version__

FILE = "README.md"
LOAD = {  # with the names of places in capitals
    "full": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)""",
    "lora": """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)""",
}


def model_card(card: Mapping[str, Any]) -> str:
    """Markdown with a YAML head: what it is, what it was trained on, what was deleted, and how to ask it.

    All of it is in ``curerec.json``; no id, title or rating is in either. What a card does not say, one of
    before or one that a test made, is left out.

    Args:
        card: what :func:`curerec.recommender.storage.write_card` writes as ``curerec.json``.

    Source: Mitchell et al. 2019, arXiv 1810.03993 (model cards); the sections that can be written without
        being asked, and none with a blank to fill in.
    """
    lora = card.get("kind") == "lora"
    head = {
        "library_name": "peft" if lora else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["recommendation", "curerec", *(["machine-unlearning"] if card.get("unlearned") else [])],
    }
    no, yes = card["answers"]
    base = _name(card["base"]["name"])
    how = f"{'A LoRA adapter on' if lora else 'Full fine-tuning of'} {_code(base)}"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# Recommender\n\n{how}, which answers whether a user will like an item. "
        f"Written by curerec {__version__} from `curerec.json`, which has every setting.",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _facts(card))]),
        f"## What was deleted\n\n{_deleted(card)}",
        "## How to ask it\n\nPrompts are those of `curerec.prompts`: the text around titles is a template's, "
        "titles are encoded by themselves and their tokens put in, and the answer is the next token.\n\n"
        f"```python\n{LOAD['lora' if lora else 'full']}\n"
        "logits = model(input_ids=PROMPT).logits[0, -1]\n"
        f"p_yes = logits[[{no}, {yes}]].softmax(0)[1]\n```",
        "## Limits\n\nIt was trained on what people rated and may repeat it: treat it as their data. "
        "Deleting is approximate unless it was trained anew, is no proof of erasure, and does not reach what "
        "the base model was pre-trained on.",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    base, data = card["base"], card.get("data") or {}
    yield "Base", f"{_code(_name(base['name']))}, sha256 {_code(base.get('sha256'))}"
    tuning = (card.get("recipe") or {}).get("model", {}).get("tuning")
    if tuning:
        rate, size = f"{tuning['lr']:g}", tuning["batch_size"]
        yield "Training", f"{tuning['epochs']:g} epochs, batches of {size}, rate {rate}"
    if "n_train" in card:
        yield "Training prompts", f"{card['n_train']:,}"
    if data:
        yield "Ratings", f"{_code(data.get('name'))}, fingerprint {_code(data.get('fingerprint'))}"
    yield "Template of prompts", _code(card["template"])
    yield "Weights", f"sha256 {_code(card['weights_sha256'])}"


def _deleted(card: Mapping[str, Any]) -> str:
    steps = card.get("unlearned") or []
    lines = []
    if card.get("without"):
        lines.append(f"It was trained without what the request {_code(card['without'])} names.")
    if steps:
        named = [
            f"{k}. {'trained anew' if step['method'] == 'retrain' else _code(step['method'])}"
            + (f", request {_code(step['request'])}" if "request" in step else "")
            for k, step in enumerate(steps, start=1)
        ]
        lines.append("From the recommender as it was trained, one after the other:\n\n" + "\n".join(named))
        lines.append(
            "Requests are named by their sha256. What was measured, and whether it was verified, is in the "
            "`record.json` of the run, or in the records of the store that it comes from."
        )
    return "\n\n".join(lines) or "Nothing."


def _name(base: str) -> str:
    """A base as the hub calls it; of a folder its last part, since a path may name the machine."""
    local = Path(base).is_absolute() or base.count("/") > 1 or base.startswith((".", "~"))
    return Path(base).name if local else base


def _code(value: Any) -> str:
    """As code in a cell of a table: what would end either is left out."""
    return f"`{''.join(c for c in str(value) if c.isprintable() and c not in '`|')}`"
