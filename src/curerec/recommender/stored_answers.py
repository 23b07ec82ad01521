"""What a recommender answered its own training examples, kept beside it: two floats an example.

With them a request does not ask theta_o again. The file lies in the recommender's folder, so it is copied,
sealed, quarantined and destroyed with the weights; it holds influence of every training example, of deleted
ones, too, and nothing that says which. What is not as it was when the file was written is scored anew.

A second file of the same form may go from version to version: what the recommender *as trained* answered the
examples that are still there. Updates hold their retain side to it, so that a sequence of requests does not
drift from version to version (docs/method.md, "Requests in a row"). It, too, is of a model that knew the
deleted examples, which is why it is kept only where that is asked for.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from curerec.errors import ModelError
from curerec.prompts.encoding import Encoder, queries
from curerec.recommender.safety import check_safetensors, weights_digest
from curerec.records import Examples, Interactions, Recommender

FILE = "original_logits.curerec"  # not *.safetensors: servers load every one of those as weights
DIGEST = "original_logits_sha256"  # its sha256, in the card
AS_TRAINED, AS_TRAINED_DIGEST = "as_trained_logits.curerec", "as_trained_logits_sha256"
DIGESTS = {FILE: DIGEST, AS_TRAINED: AS_TRAINED_DIGEST}
ROOM = 4096  # bytes of the file beside the logits
SAMPLED = 8  # prompts whose tokens are in the key: another tokenizer or template text would show there


@dataclass(frozen=True)
class StoredAnswers:
    """Answer logits of theta_o on the examples that it was trained on.

    Attributes:
        model: that gave them, or beside which they are kept; for another one, or other data, they say
            nothing.
        data: that the examples' rows are of.
        examples: with the histories of the training, targets ascending, [n].
        logits: float32 [n, 2]; NaN where nothing is known.
    """

    model: Any
    data: Interactions
    examples: Examples
    logits: np.ndarray

    @classmethod
    def of(cls, model: Any, data: Interactions, examples: Examples, logits: np.ndarray) -> StoredAnswers:
        """From examples in any order."""
        order = np.argsort(examples.target, kind="stable")
        return cls(model, data, examples.take(order), np.ascontiguousarray(logits[order], np.float32))

    def find(self, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Logits of those examples that are just as they were trained on.

        Args:
            examples: asked for, [m]; a deletion may have changed their histories.

        Returns:
            float32 [m, 2], and which of them were found, bool [m]; rows not found are 0.
        """
        at, found = _places(examples, self.examples)
        if len(self.logits):
            found = found & np.isfinite(self.logits[at]).all(1)
        return np.where(found[:, None], self.logits[at], np.float32(0)), found


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


def write(folder: Path, recommender: Recommender, original: StoredAnswers, file: str = FILE) -> str:
    """Put the logits beside weights that are there already; returns the file's sha256, for the card."""
    key = _key(weights_digest(folder), recommender, original.data, original.examples)
    content = save({"logits": original.logits}, {"key": key})
    (folder / file).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read(
    recommender: Recommender, data: Interactions, examples: Examples, file: str = FILE
) -> StoredAnswers | None:
    """The stored logits of a loaded recommender, if it has them.

    Args:
        recommender: from :func:`curerec.recommender.storage.load`, its card and weights checked.
        data: the interactions at hand.
        examples: that it was trained on, in any order.
        file: its own answers, or with :data:`AS_TRAINED` those of the recommender as trained.

    Returns:
        None where nothing is stored (older recommenders, unlearned ones), where the file is not the one that
        the card names, or where it is of other weights, prompts or numbers than those at hand: score then.
    """
    card, folder = recommender.card, recommender.path
    if folder is None or not isinstance(card.get(DIGESTS[file]), str) or not len(examples):
        return None
    path = Path(folder) / file
    try:
        if path.stat().st_size > 8 * len(examples) + ROOM:
            return None
        check_safetensors(path, where=f"recommender {Path(folder).name}")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != card[DIGESTS[file]]:
            return None
        said = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        logits = load(content).get("logits")
    except (OSError, ValueError, ModelError, SafetensorError):
        return None
    made = StoredAnswers.of(recommender.model, data, examples, np.zeros((len(examples), 2)))
    if logits is None or logits.dtype != np.float32 or logits.shape != made.logits.shape:
        return None
    if said.get("key") != _key(card["weights_sha256"], recommender, data, made.examples):
        return None
    return StoredAnswers(recommender.model, data, made.examples, logits)


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
    return {
        "weights": weights,
        "base": recommender.base.get("sha256"),
        "type": str(recommender.model.get_input_embeddings().weight.dtype),
        "template": recommender.template,
        "answers": list(recommender.answers),
        "data": data.fingerprint,
        "titles": data.titles["title"].to_pylist(),
    }
