"""Saving and loading recommenders: plain Hugging Face or PEFT folders with a card beside the weights."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from curerec.data.output import replacing
from curerec.errors import ModelError
from curerec.prompts.encoding import answer_tokens
from curerec.recommender import manifest, stored_answers, waypoints
from curerec.recommender.card import CARD, read_card, write_card
from curerec.recommender.families import family_named, family_of
from curerec.recommender.families.structure import check_structure
from curerec.recommender.memory import ran_out
from curerec.recommender.quantise import quantise
from curerec.recommender.safety import ADAPTER, check_folder, config_digest, weights_digest
from curerec.recommender.score import answer_logits
from curerec.recommender.stored_answers import StoredAnswers
from curerec.recommender.waypoints import Waypoint
from curerec.records import Recommender

#: Attribute of a module whose answers a folder of weights cannot hold; its value says why.
NOT_STORABLE = "curerec_not_storable"
#: What the loaders raise on files that are damaged or do not belong together.
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)


#: What weights that are trained are held in, on every device: a step at a usual rate is less than half of
#: what bfloat16 can tell from 1, and a running average of .99 takes steps of a hundredth of that.
TUNED = torch.float32


def type_on(device: torch.device | str) -> torch.dtype:
    """What frozen weights are computed in on a device: float32 on a CPU, bfloat16 elsewhere."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def type_named(name: str | None) -> torch.dtype | None:
    """The type that a recipe calls ``float32`` or ``bfloat16``; None: :func:`type_on` is to say."""
    return None if name is None else {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_base(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Any, Any]:
    """A base model and its tokenizer from a local folder, after safety and structure checks.

    Args:
        folder: Hugging Face folder with safetensors.
        device: where to put the model.
        dtype: of the weights; None: :func:`type_on` the device.

    Returns:
        (model in eval mode, tokenizer).

    Raises:
        ModelError: unsafe, unreadable, of an unknown family or not built as its family is, or the answers
            cannot be read off it.
    """
    folder = Path(folder)
    check_folder(folder, what="base model")
    wanted = dtype or type_on(device)
    where = f"base model {folder.name}"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model, seen = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,  # read by itself it would choose its attention before it is told
            dtype=wanted,
            attn_implementation=family_named(config.model_type).attention or "sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except ImportError:  # packed weights, whose loaders are packages of their own
        what = "cannot be loaded: transformers asks for a package that is not installed"
        mend = "Give it with plain weights (`model.base_bits` holds them in few bits)"
        raise ModelError(what, where=where, mend=mend) from None
    except UNREADABLE as error:
        if ran_out(error):
            raise
        raise ModelError(
            f"cannot be loaded ({type(error).__name__})", where=where, mend="Save it anew"
        ) from None
    if seen["missing_keys"]:  # transformers would go on with random numbers in their place
        mend = "Save it anew"
        raise ModelError(f"lacks {len(seen['missing_keys'])} of its weights", where=where, mend=mend)
    tokenizer = load_tokenizer(folder, where=where)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        mend = "Give the tokenizer that it was trained with"
        raise ModelError("the tokenizer has more tokens than the model", where=where, mend=mend)
    model = model.to(device).eval()
    check_readout(model, tokenizer)
    check_structure(model)
    return model, tokenizer


def load_frozen(
    folder: Path, bits: int, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Any:
    """A base for an adapter, in 16 (on a CPU 32), 8 or 4 bits; see :func:`load_base`, :mod:`.quantise`.

    The checks of its structure see the weights before they are packed.
    """
    if bits == 16:
        return load_base(folder, device=device, dtype=dtype)[0]
    dtype = dtype or type_on(device)
    return quantise(load_base(folder, dtype=dtype)[0], bits, device)


def load_tokenizer(folder: Path, *, where: str) -> Any:
    """The tokenizer of a local folder that :func:`check_folder` has passed.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception on a damaged tokenizer.json
        what = f"its tokenizer cannot be loaded ({type(error).__name__})"
        raise ModelError(what, where=where, mend="Save it anew") from None


@torch.inference_mode()
def check_readout(model: Any, tokenizer: Any) -> None:
    """The two answer rows must give what the whole model gives at the answer position.

    Raises:
        ModelError: they do not: the family scales its logits in a way this package does not know.
    """
    family_of(model)
    answers = answer_tokens(tokenizer)
    device = next(model.parameters()).device
    ids = torch.arange(3, 11, device=device)[None] % model.config.vocab_size
    ours = answer_logits(model, ids, torch.tensor([7], device=device), answers)
    theirs = model(input_ids=ids).logits[:, -1, list(answers)].float()
    if not torch.allclose(ours, theirs, atol=2e-2 if theirs.dtype == torch.bfloat16 else 1e-2, rtol=1e-2):
        raise ModelError(
            f"the answer logits of model type {model.config.model_type!r} are not what its two rows give",
            where="base model",
            mend="Use another family, or add its readout to recommender/score.py",
        )


def write_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights, configuration and tokenizer as plain Hugging Face or PEFT files.

    Raises:
        ModelError: the model's answers are not those of its weights alone.
        OSError: as the disk says; safetensors and tokenizers put it into exceptions of their own.
    """
    for module in model.modules():
        if reason := getattr(module, NOT_STORABLE, None):
            mend = "Keep it in memory, or use a method that changes weights"
            raise ModelError(f"cannot be saved: {reason}", where="recommender", mend=mend)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        number = re.search(r"os error ([0-9]+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


def save(
    recommender: Recommender,
    folder: Path,
    *,
    answered: StoredAnswers | None = None,
    passed: Sequence[Waypoint] = (),
) -> Path:
    """Write a recommender whole or not at all.

    With LoRA the folder is a plain PEFT adapter, with full fine-tuning a plain transformers model; both load
    with no code of ours. ``curerec.json`` beside it holds base, template, answers, data and split.

    Args:
        recommender: model, tokenizer and card.
        folder: replaced if it holds an earlier recommender.
        answered: what it answered its training examples, to be kept beside it.
        passed: waypoints of its training, to be kept beside it.

    Returns:
        The folder.

    Raises:
        StorageError: the disk is full or not writable, or something else stands in the way.
    """
    folder = Path(folder)
    with replacing(folder, marker=CARD) as stage:
        write_model(recommender.model, recommender.tokenizer, stage)
        of_others = {*stored_answers.DIGESTS.values(), waypoints.DIGEST}
        card = {k: v for k, v in recommender.card.items() if k not in of_others}
        if answered is not None:
            card[stored_answers.DIGEST] = stored_answers.write(stage, recommender, answered)
        if passed:
            card[waypoints.DIGEST] = waypoints.write(stage, passed)
        write_card(replace(recommender, card=card), stage)
    return folder


def load(
    folder: Path,
    base_folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Recommender:
    """A saved recommender.

    Args:
        folder: written by :func:`save`.
        base_folder: the base model it was fine-tuned from.
        device: where to put the model.
        dtype: of the base's weights; None: what the recipe in the card says, and else as :func:`load_base`
            chooses for the device; :data:`TUNED` where all weights were trained.

    Raises:
        ModelError: unsafe files, weights that differ from the card, or a base that is not the adapter's.
    """
    folder = Path(folder)
    card = read_card(folder)
    check_folder(folder, what="recommender")
    if card.get("committed") or (folder / manifest.MANIFEST).exists():
        manifest.check(folder, where=f"recommender {folder.name}")
    if card["kind"] == "full" and (folder / ADAPTER).exists():  # it would be put on
        raise ModelError(
            f"holds an adapter ({ADAPTER}) over weights of its own",
            where=f"recommender {folder.name}",
            mend="Train it anew",
        )
    if weights_digest(folder) != card.get("weights_sha256"):
        raise ModelError(
            "the weights are not those that its card names",
            where=f"recommender {folder.name}",
            mend="Train it anew",
        )
    check_folder(Path(base_folder), what="base model")
    if weights_digest(Path(base_folder)) != card["base"].get("sha256"):
        raise ModelError(
            "is not the base model that this recommender was fine-tuned from",
            where=f"base model {Path(base_folder).name}",
            mend="Give the folder or name that `curerec train` used with --base",
        )
    base = card["base"]
    if (said := base.get("config_sha256")) is not None and said != config_digest(Path(base_folder)):
        of = f", revision {base['revision']} of the hub" if base.get("revision") else ""
        raise ModelError(
            "has the weights that this recommender was fine-tuned from and another config.json",
            where=f"base model {Path(base_folder).name}",
            mend=f"Give the folder as it was in training{of}",
        )
    if card.get("kind") == "lora":
        from peft import PeftModel

        made = card["recipe"].get("model") or {}
        bits, dtype = made.get("base_bits", 16), dtype or type_named(made.get("dtype"))
        model = load_frozen(base_folder, bits, device=device, dtype=dtype)
        try:
            model = PeftModel.from_pretrained(model, folder, local_files_only=True)
        except UNREADABLE as error:
            if ran_out(error):
                raise
            raise ModelError(
                f"the adapter does not fit its base ({type(error).__name__})",
                where=f"recommender {folder.name}",
                mend="Give the base that it was trained on",
            ) from None
        model = model.to(device).eval()
    else:
        model, _ = load_base(folder, device=device, dtype=dtype or TUNED)
    tokenizer = load_tokenizer(folder, where=f"recommender {folder.name}")
    if answer_tokens(tokenizer) != tuple(card["answers"]):
        raise ModelError(
            "the tokenizer is not the one that its card was written with",
            where=f"recommender {folder.name}",
            mend="Train it anew",
        )
    return Recommender(
        model=model,
        tokenizer=tokenizer,
        template=card["template"],
        answers=tuple(card["answers"]),
        base=card["base"],
        card=card,
        path=folder,
    )


def check_changes_something(model: Any, base_state: dict[str, torch.Tensor] | None) -> None:
    """Refuse a fine-tuning that left no trace: there would be nothing to forget.

    Args:
        model: the fine-tuned model.
        base_state: state dict before fine-tuning; None with LoRA.

    Raises:
        ModelError: every LoRA product, or every weight change, is zero.
    """
    if base_state is None:
        changed = any(bool((p != 0).any()) for n, p in model.named_parameters() if ".lora_B." in n)
    else:
        changed = any(
            not torch.equal(p.detach().cpu(), base_state[n].cpu())
            for n, p in model.named_parameters()
            if n in base_state
        )
    if not changed:
        raise ModelError(
            "the fine-tuned weights equal the base's: nothing was learnt, so there is nothing to forget",
            where="recommender",
            mend="Give the recommender that was fine-tuned on the data",
        )


__all__ = [
    "CARD",
    "check_changes_something",
    "check_readout",
    "load",
    "load_base",
    "load_frozen",
    "load_tokenizer",
    "read_card",
    "save",
    "write_card",
    "write_model",
]
