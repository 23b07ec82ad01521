"""Base models by name: made here (nano), fetched (smollm2-135m), on the hub, or a folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from curerec.data import cache as store
from curerec.data.fetch import SOURCE_CARD
from curerec.errors import FetchError, ModelError
from curerec.recommender import parallel
from curerec.recommender.nano import nano_model, nano_tokenizer
from curerec.recommender.pretrained import NAME as SMOLLM2
from curerec.recommender.pretrained import fetch_smollm2
from curerec.recommender.safety import config_digest, read_json, weights_digest
from curerec.recommender.storage import write_model
from curerec.recommender.tune import Progress

PLAIN_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]
#: Of repositories that hold their weights in other formats besides: where those, which are not fetched, lie.
OTHER_INDICES = ["*.bin.index.json", "*.h5.index.json", "*.msgpack.index.json"]
COMMIT = re.compile(r"[0-9a-f]{40}")
NANO = "nano"


def resolve(name: str, *, cache: str | Path | None = None, offline: bool = False) -> Path:
    """The local folder of a base model.

    Args:
        name: a folder, ``smollm2-135m``, ``nano-<digest>`` from an earlier :func:`make_nano`, or a hub name.
        cache: of the user.
        offline: use only what is there.

    Raises:
        FetchError: it cannot be had.
    """
    if Path(name).is_dir():
        return Path(name)
    if name == SMOLLM2:
        return fetch_smollm2(cache=cache, offline=offline)
    made = store.root(cache) / name
    if name.startswith(f"{NANO}-"):
        if store.manifest(made) is None:
            raise FetchError(
                "is not in the cache",
                where=f"base model {name}",
                mend="Train the recommender again, or give --base DIR",
            )
        return made
    if offline or "/" not in name:
        raise FetchError(
            "is neither a folder nor a known base model",
            where=f"base model {name}",
            mend=f"Try nano or {SMOLLM2}",
        )
    return _from_hub(name)


def make_nano(
    titles: list[str],
    about: dict[str, Any],
    pretrain: Callable[[Any, Any, Progress | None], None],
    *,
    seed: int,
    shape: Mapping[str, int] | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The demo's base model, made once for a catalogue and kept in the cache.

    Args:
        titles: of the catalogue; their words are the vocabulary.
        about: what determines the result (data fingerprint, split, recipe); its digest names the folder.
        pretrain: trains the model, given model and tokenizer, in place.
        seed: of the initial weights.
        shape: sizes other than the defaults of :func:`curerec.recommender.nano.nano_model`.
        cache: of the user.
        progress: told (done, total) steps.

    Returns:
        Folder ``nano-<digest>`` in the cache.
    """
    about = {**about, "shape": dict(shape)} if shape else about
    key = json.dumps({**about, "seed": seed, "version": 1}, sort_keys=True)
    name = f"{NANO}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    root = store.root(cache)
    there = store.manifest(root / name) is not None
    parallel.wait()  # all look before one writes
    if there:
        return root / name
    tokenizer = nano_tokenizer(titles)
    model = nano_model(tokenizer, seed=seed, **(shape or {}))
    pretrain(model, tokenizer, progress)
    if not parallel.is_main():  # one process of several writes
        parallel.wait()
        return root / name
    with store.staging(root, name) as stage:
        write_model(model, tokenizer, stage)
        made = store.publish(stage, root / name, {"name": name, **about})
    parallel.wait()
    return made


def describe(name: str, folder: Path) -> dict[str, Any]:
    """What a recommender's card says of its base: name, sha256 of weights and configuration, where from."""
    about: dict[str, Any] = {"name": folder.name if name == NANO else name, "sha256": weights_digest(folder)}
    about["config_sha256"] = config_digest(folder)
    if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name):  # of the hub's own cache
        about["revision"] = folder.name
    card = folder / SOURCE_CARD
    if card.exists():
        known = read_json(card, "base model")
        about |= {k: known[k] for k in ("source", "licence", "note") if k in known}
    return about


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        found = snapshot_download(name, allow_patterns=PLAIN_FILES, ignore_patterns=OTHER_INDICES)
        return Path(found)
    except HFValidationError:
        raise ModelError(
            "is not a hub name", where="base model", mend="Give owner/name or a folder"
        ) from None
    except Exception as error:  # what the client under the hub's raises is no OSError
        raise FetchError(
            f"cannot be had from the hub ({type(error).__name__})",
            where=f"base model {name}",
            mend="Give --base DIR",
        ) from None
