"""Artefacts made to run code, to read elsewhere or to mislead: refused before anything opens them."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

from curerec.config import parse
from curerec.errors import ConfigError, CurerecError, ModelError
from curerec.recipe import Recipe
from curerec.recommender import bases, storage
from curerec.recommender.safety import check_safetensors, weights_digest


class Canary:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def put(name, content):
    return lambda folder, canary: (folder / name).write_bytes(
        content(canary) if callable(content) else content
    )


def pickled(canary):
    return pickle.dumps(Canary(canary))


def configured(name, **values):
    def apply(folder, canary):
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | values))

    return apply


def template(text):
    return configured("tokenizer_config.json", chat_template=text)


def npy(canary):
    path = canary.parent / "object.npy"
    np.save(path, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    return path.read_bytes()


def archive(form, member):
    def apply(folder, canary):
        path = folder / f"weights.{form}"
        payload = canary.parent / "payload"
        payload.write_text("x")
        if form == "zip":
            with zipfile.ZipFile(path, "w") as out:
                out.write(payload, member)
        else:
            with tarfile.open(path, "w") as out:
                out.add(payload, member)

    return apply


def linked(name, target):
    def apply(folder, canary):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target(folder, canary) if callable(target) else target)

    return apply


def header(change, *, card=True):
    """Change the header of the weights, and the card with it, so that only the header can tell."""

    def apply(folder, canary):
        path = next(folder.glob("*.safetensors"))
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        content, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        first = next(k for k in content if k != "__metadata__")
        out = change(content, content[first], body)
        if not isinstance(out, bytes):
            text = json.dumps(content).encode()
            out = struct.pack("<Q", len(text)) + text + body
        path.write_bytes(out)
        if card:
            found = json.loads((folder / storage.CARD).read_text())
            found["weights_sha256"] = weights_digest(folder)
            (folder / storage.CARD).write_text(json.dumps(found))

    return apply


def shift(by):
    return header(lambda c, t, b: t["data_offsets"].__setitem__(0, t["data_offsets"][0] + by))


WEIGHTS = "adapter_model.safetensors"
HUGE = 1 << 60
ESCAPES = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
HOSTILE = {
    **{f"pickle as {n}": put(n, pickled) for n in (
        "pytorch_model.bin", "adapter_model.bin", "weights.pt", "model.pth", "x.pkl", "x.PICKLE", "x.ckpt",
        "x.joblib", "x.dill", "training_args.bin", "x.pt.gz", "x.bin.json", "model.mar",
    )},
    "npy of objects": put("scores.npy", npy),
    "npz of objects": put("scores.npz", npy),
    "python file": put("modeling_evil.py", b"import os; os.mkdir('x')"),
    "shared library": put("plugin.so", b"\x7fELF"),
    "keras archive": put("model.keras", b"PK"),
    "zip slip": archive("zip", "../../canary"),
    "zip with an absolute name": archive("zip", "/tmp/canary"),
    "tar slip": archive("tar", "../canary"),
    "link to a secret": linked("extra.txt", "/etc/passwd"),
    "link to weights elsewhere": linked(WEIGHTS, lambda f, c: f.parent / "base" / "model.safetensors"),
    "link to a folder": linked("more", "/"),
    "link to itself": linked("loop.json", "loop.json"),
    "folder of pickles": lambda f, c: ((f / "sub").mkdir(), (f / "sub" / "x.bin").write_bytes(pickled(c))),
    "pipe": lambda f, c: os.mkfifo(f / "pipe.json"),
    "auto_map of the model": configured("config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}),
    "auto_map of the tokenizer": configured("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T"]}),
    "auto_map of the adapter": configured("adapter_config.json", auto_map={"AutoModel": "evil.Model"}),
    "auto_map deep inside": configured("config.json", text_config={"sub": [{"auto_map": {}}]}),
    "trust_remote_code": configured("config.json", trust_remote_code=True),
    "trust_remote_code of the tokenizer": configured("tokenizer_config.json", trust_remote_code=True),
    "custom pipelines": configured("config.json", custom_pipelines={"x": {"impl": "evil.P"}}),
    "auto_mapping of PEFT": configured("adapter_config.json", auto_mapping={"parent_library": "evil"}),
    "module that PEFT imports": configured(
        "adapter_config.json", megatron_config={"tensor_model_parallel_size": 1}, megatron_core="antigravity"
    ),
    "pattern that never ends": configured("adapter_config.json", target_modules="(.*)*.*(x+x+)+y"),
    "pattern that never ends, of ranks": configured("adapter_config.json", rank_pattern={"(x+x+)+y": 4}),
    "layers that are repeated": configured("adapter_config.json", layer_replication=[[0, 1 << 40]]),
    "modules beside the adapter": configured("adapter_config.json", modules_to_save=["lm_head"]),
    "start by data": configured("adapter_config.json", init_lora_weights="eva", eva_config={"rho": 2.0}),
    "switch of a later PEFT": configured("adapter_config.json", run_at_load={"module": "evil"}),
    "loader of its own": configured("config.json", quantization_config={"quant_method": "bitsandbytes"}),
    "attention of the hub's": configured("config.json", _attn_implementation="kernels-community/flash-attn"),
    "attention that is compiled": configured("config.json", attn_implementation="flex_attention"),
    "attention by part": configured("config.json", text_config={"_attn_implementation": {"": "x/y"}}),
    "experts of the hub's": configured("config.json", _experts_implementation="x/y"),
    "branches with biases": configured("adapter_config.json", lora_bias=True),
    "branches that are scaled by their norms": configured("adapter_config.json", use_dora=True),
    "biases of the base beside the branches": configured("adapter_config.json", bias="all"),
    "another kind of adapter": configured("adapter_config.json", peft_type="PROMPT_TUNING"),
    "template that escapes": template(ESCAPES),
    "template that escapes by attr": template("{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}"),
    "template in a list": template([{"name": "default", "template": ESCAPES}]),
    "template in a file": put("chat_template.jinja", ESCAPES.encode()),
    "template in JSON": put("chat_template.json", json.dumps({"chat_template": ESCAPES}).encode()),
    "config that is too large": put("generation_config.json", b" " * ((16 << 20) + 1)),
    "config that is too deep": put("generation_config.json", b"[" * 100_000),
    "config that is no mapping": put("generation_config.json", b"[]"),
    "index that leaves the folder": put(
        "model.safetensors.index.json", json.dumps({"weight_map": {"a": "../x.safetensors"}}).encode()
    ),
    "header longer than the file": header(lambda c, t, b: struct.pack("<Q", HUGE) + b"{}"),
    "header of no length": header(lambda c, t, b: struct.pack("<Q", 0)),
    "file of three bytes": header(lambda c, t, b: b"abc"),
    "empty file": header(lambda c, t, b: b""),
    "header that is no JSON": header(lambda c, t, b: struct.pack("<Q", 9) + b"{'a': 1}x" + b),
    "header that is a list": header(lambda c, t, b: struct.pack("<Q", 2) + b"[]" + b),
    "offsets before the start": shift(-8),
    "offsets that overlap": shift(4),
    "offsets past the end": header(lambda c, t, b: t.update(data_offsets=[0, HUGE])),
    "offsets the wrong way round": header(lambda c, t, b: t.update(data_offsets=t["data_offsets"][::-1])),
    "offsets that are no numbers": header(lambda c, t, b: t.update(data_offsets=["0", True])),
    "shape of too many": header(lambda c, t, b: t.update(shape=[HUGE, HUGE])),
    "shape below zero": header(lambda c, t, b: t.update(shape=[-1, -1])),
    "type that is none": header(lambda c, t, b: t.update(dtype="PICKLE")),
    "bytes not described": header(lambda c, t, b: struct.pack("<Q", 2) + b"{}" + pickled(Path("/x"))),
    "metadata that are no texts": header(lambda c, t, b: c.update(__metadata__={"x": {"y": 1}})),
    "a tensor twice": header(
        lambda c, t, b: struct.pack("<Q", 23) + b'{"a": {}, "a":      {} }' [:23] + b
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(made_path):
    return bases.resolve(storage.read_card(made_path.lora)["base"]["name"])


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_artefacts_are_refused(name, base, made_path, tmp_path):
    folder = Path(shutil.copytree(made_path.lora, tmp_path / "lora"))
    shutil.copytree(base, tmp_path / "base")
    canary = tmp_path / "canary"
    HOSTILE[name](folder, canary)
    with pytest.raises(ModelError) as caught:
        storage.load(folder, base)
    assert str(tmp_path) not in str(caught.value)
    assert (
        not canary.exists() and not (tmp_path.parent / "canary").exists() and not Path("/tmp/canary").exists()
    )


def test_there_are_enough_of_them(capsys):
    with capsys.disabled():
        print(f"\n  hostile artefacts: {len(HOSTILE)} refused, no canary")
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize(
    "name",
    [
        "pickle as x.pkl",
        "auto_map of the model",
        "trust_remote_code",
        "template in a file",
        "attention of the hub's",
        "attention that is compiled",
    ],
)
def test_hostile_bases_are_refused(name, base, tmp_path):
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    HOSTILE[name](folder, tmp_path / "canary")
    with pytest.raises(ModelError):
        storage.load_base(folder)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("said", [None, "eager", "sdpa"])
def test_no_base_chooses_its_attention(key, said, base, tmp_path):
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    configured("config.json", **{key: said})(folder, None)
    assert storage.load_base(folder)[0].config._attn_implementation == "sdpa"


def test_an_adapter_in_the_folder_of_whole_weights_is_refused(base, made_path, tmp_path):
    """It would be put on where the folder is opened, and dropped where the answers are compared."""
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    full = Path(shutil.copytree(made_path.full, tmp_path / "full"))
    for name in ("adapter_config.json", WEIGHTS):
        shutil.copy(made_path.lora / name, folder)
        shutil.copy(made_path.lora / name, full)
    with pytest.raises(ModelError, match=r"base model base: holds an adapter.*Merge it"):
        storage.load_base(folder)
    with pytest.raises(ModelError, match=r"base model base: holds an adapter"):
        storage.load(made_path.lora, folder)
    with pytest.raises(ModelError, match=r"recommender full: holds an adapter"):
        storage.load(full, base)


def test_a_base_whose_weights_are_packed_is_refused_in_words(tmp_path):
    save_file({"weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    said = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"package that is not installed.*model\.base_bits"):
        storage.load_base(tmp_path)


@pytest.mark.parametrize("where", [(), ("model",), ("split",), ("cure",), ("model", "lora")])
def test_no_configuration_file_switches_remote_code_on(where):
    values = inner = {}
    for key in where:
        inner = inner.setdefault(key, {})
    inner["trust_remote_code"] = True
    with pytest.raises(ConfigError, match="trust_remote_code"):
        parse(Recipe, values, where="recipe")


@pytest.mark.parametrize("number", [500, pytest.param(10_000, marks=pytest.mark.soak)])
def test_malformed_headers(number, tmp_path, capsys):
    """Refused with an error of ours, or the file is one that safetensors reads, too."""
    rng = random.Random(number)
    good = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.int8)})
    path = tmp_path / "x.safetensors"
    refused = 0
    words = [
        b'"F32"',
        b'"F4"',
        b"-1",
        b"1e9",
        b"null",
        b"[]",
        b"{}",
        b"9" * 40,
        b'"\\ud800"',
        b"NaN",
        b"\xff",
        b'"a"',
    ]
    for _ in range(number):
        out = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(min(len(out), 150) or 1)
            kind = rng.randrange(5)
            if kind == 0:
                out[at] = rng.randrange(256)
            elif kind == 1:
                out[at : at + rng.randint(0, 4)] = rng.choice(words)
            elif kind == 2:
                del out[at : at + rng.randint(1, 20)]
            elif kind == 3:
                out[:8] = struct.pack(
                    "<Q", rng.choice((0, 1, len(out), 1 << 40, (1 << 64) - 1, rng.randrange(300)))
                )
            else:
                out += rng.randbytes(rng.randint(1, 9))
            if not out:
                out = bytearray(b"\0")
        path.write_bytes(out)
        try:
            check_safetensors(path, where="test")
        except ModelError:
            refused += 1
            continue
        with safe_open(path, "np") as file:  # an error here is a header that we let through
            for key in file.keys():  # noqa: SIM118
                file.get_tensor(key)
    with capsys.disabled():
        print(f"\n  malformed headers: {refused} of {number} refused, the rest read by safetensors, too")
    assert refused > number // 2


def test_ours_is_not_stricter_on_what_the_library_writes(tmp_path):
    for k, tensors in enumerate(
        ({"a": np.zeros((0, 3), np.float16)}, {"b": np.ones(1, bool), "a": np.arange(3.0)}, {})
    ):
        (tmp_path / f"{k}.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        check_safetensors(tmp_path / f"{k}.safetensors", where="test")
    assert issubclass(ModelError, CurerecError) and SafetensorError
