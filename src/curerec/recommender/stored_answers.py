"""What a recommender answered when it was trained, kept beside it: two floats an example.

Its answers on its own training examples and on D_c, and the base model's on D_c and on some training examples
(:func:`curerec.methods.expected.pool`). With them a request asks neither model again. The file lies in the
recommender's folder, so it is copied, sealed, quarantined and destroyed with the weights; it holds influence
of every training example, of deleted ones, too, and nothing that says which. What is not as it was when the
file was written is scored anew.

A second file of the same form may go from version to version: what the recommender *as trained* answered the
examples that are still there. Updates hold their retain side to it, so that a sequence of requests does not
drift from version to version (docs/experiments.md, "Requests in a row"). It, too, is of a model that knew the
deleted examples, which is why it is kept only where that is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from curerec.data import durable
from curerec.errors import ModelError, StorageError
from curerec.interactions import Interactions
from curerec.prompts.encoding import Encoder, queries
from curerec.recommender.safety import check_safetensors, metadata_of, weights_digest
from curerec.records import Examples, Recommender, Split

FILE = "original_logits.curerec"  # not *.safetensors: servers load every one of those as weights
DIGEST = "original_logits_sha256"  # its sha256, in the card
AS_TRAINED, AS_TRAINED_DIGEST = "as_trained_logits.curerec", "as_trained_logits_sha256"
LEFT = "answers.curerec"  # of a version that requests made, in the folder of what they leave
DIGESTS = {FILE: DIGEST, AS_TRAINED: AS_TRAINED_DIGEST}
ROOM = 4096  # bytes of the file beside the logits
SAMPLED = 8  # prompts whose tokens are in the key: another tokenizer or template text would show there


@dataclass(frozen=True)
class StoredAnswers:
    """Answer logits of theta_o on the examples that it was trained on, and on others it was asked about.

    Attributes:
        model: that gave them, or beside which they are kept; for another one, or other data, they say
            nothing.
        data: that the examples' rows are of.
        examples: with the histories of the training, targets ascending, [n].
        logits: float32 [n, 2]; NaN where nothing is known.
        base: the same of the model before fine-tuning; None: nothing is known of it.
    """

    model: Any
    data: Interactions
    examples: Examples
    logits: np.ndarray
    base: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        data: Interactions,
        examples: Examples,
        logits: np.ndarray,
        base: np.ndarray | None = None,
    ) -> StoredAnswers:
        """From examples in any order."""
        order = np.argsort(examples.target, kind="stable")
        kept = np.ascontiguousarray(logits[order], np.float32)
        of_base = None if base is None else np.ascontiguousarray(base[order], np.float32)
        return cls(model, data, examples.take(order), kept, of_base)

    def of_base(self, model: Any) -> StoredAnswers | None:
        """What is left of it beside another version of the same recommender: the base is the same."""
        if self.base is None:
            return None
        return replace(self, model=model, logits=np.full_like(self.logits, np.nan))

    def find(self, examples: Examples, *, base: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Logits of those examples that are just as they were then.

        Args:
            examples: asked for, [m]; a deletion may have changed their histories.
            base: the answers of the model before fine-tuning.

        Returns:
            float32 [m, 2], and which of them were found, bool [m]; rows not found are 0.
        """
        logits = self.base if base else self.logits
        at, found = _places(examples, self.examples)
        if logits is None or not len(logits):
            return np.zeros((len(examples), 2), np.float32), np.zeros(len(examples), bool)
        found = found & np.isfinite(logits[at]).all(1)
        return np.where(found[:, None], logits[at], np.float32(0)), found


def asked_in_training(split: Split) -> Examples:
    """Examples whose answers training keeps: its own, then D_c."""
    parts = split.train, split.control
    return Examples(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("target", "history", "label"))
    )


def found_in(examples: Examples, known: Examples) -> np.ndarray:
    """Which examples are among the known ones with the same target and history, bool [n]."""
    return _places(examples, known.take(np.argsort(known.target, kind="stable")))[1]


def _places(examples: Examples, known: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Where each example would stand in ``known``, whose targets ascend, and whether it does."""
    if not len(known):
        return np.zeros(len(examples), np.int64), np.zeros(len(examples), bool)
    at = np.minimum(np.searchsorted(known.target, examples.target), len(known) - 1)
    found = known.target[at] == examples.target
    return at, found & (known.history[at] == examples.history).all(1)


def leave(folder: Path, recommender: Recommender, original: StoredAnswers) -> None:
    """Put the answers where requests of this recommender look for them, apart from its sealed folder.

    Where that cannot be written, requests do without.

    Args:
        folder: from :func:`curerec.data.cache.retain_side_at`.
        recommender: saved; its card names its weights.
        original: what it and its base answered.
    """
    with contextlib.suppress(OSError, StorageError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write(folder / LEFT, _content(recommender.card["weights_sha256"], recommender, original))


def left(
    folder: Path, recommender: Recommender, data: Interactions, examples: Examples
) -> StoredAnswers | None:
    """What :func:`leave` left; None where it is of other weights, prompts or numbers than those at hand.

    Args:
        folder: as there.
        recommender, data, examples: as for :func:`read`.
    """
    try:
        content = _bytes(folder / LEFT, len(examples))
    except (OSError, ModelError):
        return None
    return _of(content, recommender, data, examples)


def write(folder: Path, recommender: Recommender, original: StoredAnswers, file: str = FILE) -> str:
    """Put the logits beside weights that are there already; returns the file's sha256, for the card."""
    content = _content(weights_digest(folder), recommender, original)
    (folder / file).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read(
    recommender: Recommender, data: Interactions, examples: Examples, file: str = FILE
) -> StoredAnswers | None:
    """The stored logits of a loaded recommender, if it has them.

    Args:
        recommender: from :func:`curerec.recommender.storage.load`, its card and weights checked.
        data: the interactions at hand.
        examples: whose answers were kept (:func:`asked_in_training`; of :data:`AS_TRAINED` those that it was
            trained on), in any order.
        file: its own answers, or with :data:`AS_TRAINED` those of the recommender as trained.

    Returns:
        None where nothing is stored (older recommenders, unlearned ones), where the file is not the one that
        the card names, or where it is of other weights, prompts or numbers than those at hand: score then.
    """
    card, folder = recommender.card, recommender.path
    if folder is None or not isinstance(card.get(DIGESTS[file]), str) or not len(examples):
        return None
    try:
        content = _bytes(Path(folder) / file, len(examples))
    except (OSError, ModelError):
        return None
    if hashlib.sha256(content).hexdigest() != card[DIGESTS[file]]:
        return None
    return _of(content, recommender, data, examples)


def _content(weights: str, recommender: Recommender, original: StoredAnswers) -> bytes:
    key = _key(weights, recommender, original.data, original.examples)
    arrays = {"logits": original.logits} | ({} if original.base is None else {"base": original.base})
    return bytes(save(arrays, {"key": key}))


def _bytes(path: Path, n: int) -> bytes:
    """A file of the answers to ``n`` examples.

    Raises:
        OSError: it is not there.
        ModelError: it is larger than such a file, or none.
    """
    if path.stat().st_size > 16 * n + ROOM:
        raise ModelError("is larger than what it should hold", where=path.name, mend="Remove it")
    check_safetensors(path, where=path.name)
    return path.read_bytes()


def _of(
    content: bytes, recommender: Recommender, data: Interactions, examples: Examples
) -> StoredAnswers | None:
    """The answers in a file, if they are of these weights and prompts."""
    try:
        said = metadata_of(content)
        arrays = load(content)
        logits, base = arrays.get("logits"), arrays.get("base")
    except (ValueError, SafetensorError):
        return None
    made = StoredAnswers.of(recommender.model, data, examples, np.zeros((len(examples), 2)))
    if logits is None or any(
        z.dtype != np.float32 or z.shape != made.logits.shape for z in (logits, base) if z is not None
    ):
        return None
    if said.get("key") != _key(recommender.card["weights_sha256"], recommender, data, made.examples):
        return None
    return StoredAnswers(recommender.model, data, made.examples, logits, base)


def _key(weights: str, recommender: Recommender, data: Interactions, examples: Examples) -> str:
    """sha256 over all that the answers depend on: weights, their numbers' type, and the prompts."""
    titles = data.titles["title"].to_pylist()
    encoder = Encoder(recommender.tokenizer, recommender.template, titles)
    sampled = encoder.encode(queries(data, examples.take(np.arange(min(SAMPLED, len(examples))))))
    digest = hashlib.sha256(json.dumps(about(weights, recommender, data), sort_keys=True).encode())
    for part in (examples.target, examples.history, sampled.ids):
        digest.update(np.ascontiguousarray(part, "<i8").tobytes())
    return digest.hexdigest()


def about(weights: str, recommender: Recommender, data: Interactions) -> dict[str, Any]:
    """What a recommender's answers depend on, the choice of the examples apart: plain values.

    Args:
        weights: digest of its weights.
        recommender: the model, its base and its template.
        data: interactions that its prompts are made of.
    """
    config = recommender.base.get("config_sha256")  # cards of before do not name it
    return {
        "weights": weights,
        "base": recommender.base.get("sha256"),
        **({} if config is None else {"config": config}),
        "type": str(recommender.model.get_input_embeddings().weight.dtype),
        "template": recommender.template,
        "answers": list(recommender.answers),
        "data": data.fingerprint,
        "titles": data.titles["title"].to_pylist(),
    }
