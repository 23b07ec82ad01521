"""What the recommender as trained answered its training examples, kept beside it: two floats an example.

The file goes with the recommender's folder and holds influence of every training example, of deleted ones,
too: whoever destroys a recommender's earlier versions has it to destroy as well.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from curerec.data.durable import write

FILE = "original_logits.curerec"  # not *.safetensors: no loader takes it for weights


def key_of(weights_sha256: str, ids: np.ndarray, offsets: np.ndarray) -> str:
    """sha256 over the recommender's weights and the prompts: other weights or prompts, other answers."""
    digest = hashlib.sha256(weights_sha256.encode())
    for part in (ids, offsets):
        digest.update(np.ascontiguousarray(part, "<i8").tobytes())
    return digest.hexdigest()


def write_logits(folder: Path, logits: np.ndarray, targets: np.ndarray, key: str) -> Path:
    """Put them beside a recommender, whole or not at all.

    Args:
        folder: of the recommender, or its staging folder before it is sealed.
        logits: float32 [n, 2].
        targets: rows of the interactions that the examples ask about, int64 [n], distinct.
        key: from :func:`key_of`.

    Raises:
        StorageError: the disk is full.
    """
    tensors = {
        "logits": torch.from_numpy(np.ascontiguousarray(logits, np.float32)),
        "targets": torch.from_numpy(np.ascontiguousarray(targets, np.int64)),
    }
    path = Path(folder) / FILE
    write(path, save(tensors, metadata={"key": key}), mode=0o600)
    return path


def original_logits(folder: Path, targets: np.ndarray, key: str) -> np.ndarray | None:
    """Answer logits of theta_o on training examples, without a forward pass.

    A deletion changes histories of other examples, whose prompts then are not the stored ones: ask for
    examples with the histories that the model was trained on.

    Args:
        folder: of the recommender.
        targets: rows asked about, int64 [m].
        key: from :func:`key_of`, of the recommender's weights and all its training prompts.

    Returns:
        float32 [m, 2]; None where nothing is stored, it is damaged, of other weights or prompts, or lacks a
        row: score them then.
    """
    try:
        with safe_open(Path(folder) / FILE, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            rows, logits = file.get_tensor("targets").numpy(), file.get_tensor("logits").numpy()
    except (OSError, SafetensorError):
        return None
    if logits.shape != (len(rows), 2) or not len(rows):
        return None
    order = np.argsort(rows, kind="stable")
    at = order[np.minimum(np.searchsorted(rows, targets, sorter=order), len(rows) - 1)]
    return logits[at] if (rows[at] == targets).all() else None
