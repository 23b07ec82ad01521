"""What may be loaded: plain weights and plain configuration, nothing that runs code."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curerec.errors import ModelError

PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".dill", ".mar"}
#: Nothing of a recommender either: code, archives, formats with code inside.
FOREIGN = {
    ".py",
    ".pyc",
    ".so",
    ".dll",
    ".dylib",
    ".zip",
    ".tar",
    ".gz",
    ".tgz",
    ".7z",
    ".whl",
    ".h5",
    ".keras",
    ".pb",
}
ADAPTER = "adapter_config.json"
CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    ADAPTER,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
)
#: Keys by which a configuration chooses the code of attention or experts, which may be code of the hub's.
CHOOSING = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)
OWN_CODE = (None, "eager", "sdpa")  # what transformers itself computes, and PyTorch
#: What a plain LoRA adapter's configuration may set; anything else must be empty or off.
PATHS = ("target_modules", "rank_pattern", "alpha_pattern")
PATH = re.compile(r"[\w.]{1,200}")
PLAIN = {
    *PATHS,
    "peft_type",
    "peft_version",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "init_lora_weights",
    "megatron_core",  # its default is a name; PEFT imports it only with a megatron_config
    "qalora_group_size",
}
#: Keys of config.json that no answer depends on: names, who wrote it, what whoever loads it chooses.
NO_ANSWER = {
    *CHOOSING,
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
MAX_CONFIG_BYTES = 16 << 20
MAX_HEADER_BYTES = 64 << 20
BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16}
BITS |= {"I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}


def check_folder(folder: Path, *, what: str) -> None:
    """Refuse a folder that holds pickled weights or asks for code of its own.

    Args:
        folder: model or adapter.
        what: how to call it in the message.

    Raises:
        ModelError: not a folder, pickled files, an ``auto_map``, no safetensors, or a base with an adapter.
    """
    if not folder.is_dir():
        raise ModelError(
            "is not a folder", where=f"{what} {folder.name}", mend="Give the folder of a saved model"
        )
    own = what == "recommender"
    # A base may be a snapshot of the hub's cache, which is made of links; a recommender is plain files.
    if own and any(f.is_symlink() or not f.is_file() for f in folder.iterdir()):
        mend = "Give the folder that `curerec train` wrote, unchanged"
        raise ModelError("holds a link or a folder", where=f"{what} {folder.name}", mend=mend)
    refused = PICKLED | FOREIGN if own else PICKLED
    bad = sorted(f.name for f in folder.rglob("*") if refused & {s.lower() for s in f.suffixes[-2:]})
    if bad:
        raise ModelError(
            f"holds {bad[0]}, a format that can run code when it is opened",
            where=f"{what} {folder.name}",
            mend="Convert it to safetensors elsewhere and remove the file; pickled weights are never loaded",
        )
    if what == "base model" and (folder / ADAPTER).exists():  # transformers would put it on, unasked
        raise ModelError(
            f"holds an adapter ({ADAPTER})",
            where=f"{what} {folder.name}",
            mend="Merge it into the weights first (merge_and_unload of PEFT) and give what that saves",
        )
    for name in CONFIGS:
        path = folder / name
        if path.exists():
            _check_config(read_json(path, what), name, where=f"{what} {folder.name}")
    for path in (*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*")):
        _check_template(path.read_text(encoding="utf-8", errors="replace"), where=f"{what} {folder.name}")
    for index in folder.glob("*.safetensors.index.json"):  # no other is read
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
    for path in folder.glob("*.safetensors"):
        check_safetensors(path, where=f"{what} {folder.name}")


def _check_config(content: dict[str, Any], name: str, *, where: str) -> None:
    said = list(_items(content))
    keys = {"auto_map", "trust_remote_code", "custom_pipelines"} & {key for key, _ in said}
    if keys:
        raise ModelError(
            f"{name} asks for code of its own ({min(keys)})",
            where=where,
            mend="Use a model that transformers implements; remote code is never run",
        )
    if chosen := [key for key, value in said if key in CHOOSING and value not in OWN_CODE]:
        raise ModelError(
            f"{name} asks for attention or experts of other code ({min(chosen)})",
            where=where,
            mend="Remove the key; how they are computed is chosen here",
        )
    if name == ADAPTER and (bad := _not_plain(content)) is not None:
        mend = "Use an adapter that `curerec train` wrote"
        raise ModelError(f"{name} is not that of a plain LoRA adapter ({bad})", where=where, mend=mend)
    if name == "config.json" and content.get("quantization_config") and where.startswith("recommender"):
        mend = "Use a recommender that `curerec train` wrote; its weights are not quantised"
        raise ModelError(f"{name} asks for a loader of its own (quantization_config)", where=where, mend=mend)
    _check_template(json.dumps(content.get("chat_template") or ""), where=where)


def _not_plain(config: dict[str, Any]) -> str | None:
    """The key by which an adapter is more than branches B A on named linear maps; None: it is not.

    PEFT imports the module that ``megatron_core`` or ``auto_mapping`` names, and takes names and patterns
    as regular expressions, which can be made never to end. What a later PEFT adds must be switched off.
    """
    if config.get("peft_type") != "LORA":
        return "peft_type"
    for key in PATHS:
        named = config.get(key)
        if named and not (
            isinstance(named, list | dict) and all(isinstance(n, str) and PATH.fullmatch(n) for n in named)
        ):
            return key
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        return "init_lora_weights"
    if config.get("bias", "none") != "none":  # the base's own would be other ones under it
        return "bias"
    return min((key for key, value in config.items() if value and key not in PLAIN), default=None)


def _items(content: Any) -> Iterator[tuple[str, Any]]:
    """Keys of a nest of mappings, at any depth, and their values."""
    left = [content]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield from part.items()
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)


def _check_template(text: str, *, where: str) -> None:
    """Refuse a chat template that reaches for Python's insides: we render none, but it would be served."""
    if "__" in text or "\\u005f" in text.lower() or "\\x5f" in text.lower():
        mend = "Remove the template; curerec needs none"
        raise ModelError("its chat template reaches for Python's insides", where=where, mend=mend)


def check_safetensors(path: Path, *, where: str) -> None:
    """Refuse a safetensors file whose header is not one, before any library maps it.

    Reads the header only, at most :data:`MAX_HEADER_BYTES`: length, JSON, known types, shapes whose size is
    that of their bytes, and offsets that cover the rest of the file without gap or overlap.

    Raises:
        ModelError: it is damaged or made to mislead.
    """

    def refuse(what: str) -> ModelError:
        return ModelError(f"{path.name} {what}", where=where, mend="Save the model anew")

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise refuse("has a header of a length that cannot be")
            raw = file.read(length)
        header = json.loads(raw, object_pairs_hook=_no_twice)
    except (OSError, ValueError, RecursionError):
        raise refuse("has a header that is no JSON") from None
    if not isinstance(header, dict) or not raw.startswith(b"{"):
        raise refuse("has a header that is no mapping")
    meta = header.pop("__metadata__", {})
    if not isinstance(meta, dict) or not all(isinstance(v, str) for v in meta.values()):
        raise refuse("has metadata that are no texts")
    spans = []
    for entry in header.values():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise refuse("describes a tensor in a way that is not known")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not (_counts(shape) and _counts(offsets)) or len(offsets) != 2 or entry["dtype"] not in BITS:
            raise refuse("has a tensor of a type or shape that cannot be")
        if offsets[0] > offsets[1] or math.prod(shape) * BITS[entry["dtype"]] != 8 * (
            offsets[1] - offsets[0]
        ):
            raise refuse("has a tensor whose bytes are not those of its shape")
        spans.append(tuple(offsets))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise refuse("has tensors that overlap or leave a gap")
        end = stop
    if end != size - 8 - length:
        raise refuse("is longer or shorter than its header says")


def metadata_of(content: bytes) -> dict[str, str]:
    """What the bytes of a safetensors file say of themselves; nothing where they say nothing.

    Raises:
        ValueError: they have no header that is a mapping.
    """
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if not isinstance(header, dict):
        raise ValueError("no mapping")
    found: dict[str, str] = header.get("__metadata__", {})
    return found


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping; a key that is there twice would be read differently by different readers."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def weights_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def config_digest(folder: Path) -> str:
    """sha256 over what a base's ``config.json`` says of its answers: the weights do not say it all.

    Raises:
        ModelError: it is no JSON object.
    """
    said = read_json(folder / "config.json", "base model")
    said = {key: value for key, value in said.items() if key not in NO_ANSWER}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        ModelError: it is none.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ModelError(
            f"{path.name} is not JSON", where=f"{what} {path.parent.name}", mend="Save the model anew"
        )
    return content
