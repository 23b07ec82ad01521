"""What may be loaded: plain weights and plain configuration, nothing that runs code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from curerec.errors import ModelError

PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz"}


def check_folder(folder: Path, *, what: str) -> None:
    """Refuse a folder that holds pickled weights or asks for code of its own.

    Args:
        folder: model or adapter.
        what: how to call it in the message.

    Raises:
        ModelError: not a folder, pickled files, an ``auto_map``, or no safetensors.
    """
    if not folder.is_dir():
        raise ModelError(
            "is not a folder", where=f"{what} {folder.name}", mend="Give the folder of a saved model"
        )
    bad = sorted(f.name for f in folder.iterdir() if f.suffix.lower() in PICKLED)
    if bad:
        raise ModelError(
            f"holds {bad[0]}, a format that can run code when it is opened",
            where=f"{what} {folder.name}",
            mend="Convert it to safetensors elsewhere and remove the file; pickled weights are never loaded",
        )
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json"):
        path = folder / name
        if path.exists() and "auto_map" in read_json(path, what):
            raise ModelError(
                f"{name} asks for code of its own (auto_map)",
                where=f"{what} {folder.name}",
                mend="Use a model that transformers implements; remote code is never run",
            )
    for index in folder.glob("*.index.json"):
        named = read_json(index, what).get("weight_map")
        files = set(named.values()) if isinstance(named, dict) else {None}
        if not all(isinstance(f, str) and f.endswith(".safetensors") and Path(f).name == f for f in files):
            raise ModelError(
                f"{index.name} names weights outside the folder or of another format",
                where=f"{what} {folder.name}",
                mend="Save the model anew",
            )
    if not any(f.suffix == ".safetensors" for f in folder.iterdir()):
        raise ModelError(
            "holds no .safetensors file", where=f"{what} {folder.name}", mend="Save the model as safetensors"
        )


def weights_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        ModelError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ModelError(
            f"{path.name} is not JSON", where=f"{what} {path.parent.name}", mend="Save the model anew"
        )
    return content
