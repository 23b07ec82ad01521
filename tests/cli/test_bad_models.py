"""Bases and recommenders that do not fit, are damaged, or would run code: refused before they are opened."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from curerec.recommender import bases, storage
from curerec.recommender.safety import weights_digest
from made_commands import RECIPE, curerec, refused, untouched


class Canary:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def copy(made_path, tmp_path):
    """Copies of the base and of both recommenders that a test may spoil."""
    base = bases.resolve(storage.read_card(made_path.full)["base"]["name"])
    for name, folder in (("base", base), ("full", made_path.full), ("lora", made_path.lora)):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def unlearn(made, folder, *more):
    return curerec(
        "unlearn", "--recommender", folder, "--data", made.data, "--request", made.request,
        "--out", folder.parent / "made", *more,
    )  # fmt: skip


def train(made, folder):
    recipe = ("--recipe", folder.parent / "r.yaml")
    return curerec("train", "--data", made.data, *recipe, "--base", folder, "--out", folder.parent / "made")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_folder_above_the_recommender_is_told_where_it_is(made_path, tmp_path):
    result = unlearn(made_path, made_path.new)
    assert result.code == 2 and f"Give what is in it: {made_path.new / 'recommender'}" in result.err, result
    result = unlearn(made_path, tmp_path)
    assert result.code == 2 and "Give a folder that `curerec train` wrote" in result.err, result


def reweigh(folder, change, *, card=True):
    """Change the weights and, where asked, the card with them."""
    path = next(folder.glob("*.safetensors"))
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})
    if card:
        edit(folder / storage.CARD, lambda c: c.update(weights_sha256=weights_digest(folder)))


@pytest.mark.slow
def test_the_copies_are_sound(copy, made_path):
    assert unlearn(made_path, copy / "lora", "--base", copy / "base").code in (0, 1)
    shutil.rmtree(copy / "made")
    assert train(made_path, copy / "base").code == 0


@pytest.mark.parametrize("option", ["--base", "--model"])
def test_a_recommender_is_no_base(option, copy, made_path):
    """Its users would stay in the base, where unlearning does not reach them."""
    with untouched(copy):
        recipe = ("--recipe", made_path.recipe, "--out", copy / "made")
        result = curerec("train", "--data", made_path.data, *recipe, option, copy / "full")
        refused(result, "base model full: is a recommender", "fine-tuned from")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_another_base(kind, copy, made_path):
    reweigh(copy / "base", lambda s: s["model.norm.weight"].add_(1e-3), card=False)
    with untouched(copy):
        refused(unlearn(made_path, copy / kind, "--base", copy / "base"), "base model base", "--base")


def test_a_base_that_is_gone(copy, made_path):
    edit(copy / "full" / storage.CARD, lambda c: c["base"].update(name="nano-000000000000"))
    with untouched(copy):
        refused(unlearn(made_path, copy / "full"), "nano-000000000000", "--base DIR")
        refused(unlearn(made_path, copy / "full", "--base", copy / "nowhere"), "is not a folder")
        refused(train(made_path, copy / "nowhere"), "is not a folder")


def test_an_adapter_that_changes_nothing(copy, made_path):
    reweigh(copy / "lora", lambda s: [t.zero_() for n, t in s.items() if "lora_B" in n])
    with untouched(copy):
        refused(unlearn(made_path, copy / "lora"), "nothing was learnt", "fine-tuned on the data")


def test_full_weights_that_changed_nothing(copy, made_path):
    shutil.copy(copy / "base" / "model.safetensors", copy / "full" / "model.safetensors")
    reweigh(copy / "full", lambda s: None)
    with untouched(copy):
        refused(unlearn(made_path, copy / "full"), "nothing was learnt", "fine-tuned on the data")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_weights_that_differ_from_the_card(kind, copy, made_path):
    reweigh(copy / kind, lambda s: next(iter(s.values())).add_(1e-3), card=False)
    with untouched(copy):
        refused(unlearn(made_path, copy / kind), f"recommender {kind}", "card", "Train it anew")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "weights.pt", "x.pkl", "x.ckpt"])
@pytest.mark.parametrize("where", ["base", "full", "lora"])
def test_pickled_weights_are_never_opened(where, name, copy, made_path):
    canary = copy.parent / f"canary-{where}-{name}"
    with (copy / where / name).open("wb") as file:
        pickle.dump(Canary(canary), file)
    with untouched(copy):
        if where == "base":
            refused(train(made_path, copy / "base"), name, "safetensors")
            refused(unlearn(made_path, copy / "full", "--base", copy / "base"), name, "safetensors")
        else:
            refused(unlearn(made_path, copy / where), name, "safetensors")
    assert not canary.exists()


@pytest.mark.parametrize("where", ["base", "full", "lora"])
def test_pickled_weights_alone_are_never_opened(where, copy, made_path):
    canary = copy.parent / f"canary-{where}-alone"
    path = next((copy / where).glob("*.safetensors"))
    torch.save({"x": Canary(canary)}, path.with_suffix(".bin"))
    path.unlink()
    with untouched(copy):
        result = train(made_path, copy / "base") if where == "base" else unlearn(made_path, copy / where)
        refused(result)
    assert not canary.exists()


def test_a_pickle_under_the_name_of_safetensors(copy, made_path):
    canary = copy.parent / "canary-named"
    with (copy / "base" / "model.safetensors").open("wb") as file:
        pickle.dump(Canary(canary), file)
    with untouched(copy):
        refused(train(made_path, copy / "base"), "base model base", "header of a length")
    assert not canary.exists()


def test_an_index_that_leads_elsewhere(copy, made_path):
    canary = copy.parent / "canary-index"
    with (copy / "weights.bin").open("wb") as file:
        pickle.dump(Canary(canary), file)
    names = load_file(copy / "base" / "model.safetensors")
    (copy / "base" / "model.safetensors").rename(copy / "base" / "other.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../weights.bin")}
    (copy / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    with untouched(copy):
        refused(train(made_path, copy / "base"), "model.safetensors.index.json", "outside the folder")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_refused(name, copy, made_path):
    canary = copy.parent / f"canary-{name}"
    (copy / "base" / "modeling.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    edit(copy / "base" / name, lambda c: c.update(auto_map={"AutoModelForCausalLM": "modeling.Model"}))
    with untouched(copy):
        refused(train(made_path, copy / "base"), name, "auto_map")
    assert not canary.exists()


DAMAGE = {
    "no config": lambda f: (f / "config.json").unlink(),
    "config is no JSON": lambda f: (f / "config.json").write_text("{"),
    "config of another shape": lambda f: edit(f / "config.json", lambda c: c.update(hidden_size=32)),
    "config of no shape": lambda f: edit(f / "config.json", lambda c: c.update(hidden_size="wide")),
    "unknown family": lambda f: edit(f / "config.json", lambda c: c.update(model_type="gpt2")),
    "unknown model type": lambda f: edit(f / "config.json", lambda c: c.update(model_type="nosuch")),
    "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
    "damaged tokenizer": lambda f: (f / "tokenizer.json").write_text("{"),
    "cut weights": lambda f: os.truncate(f / "model.safetensors", 4000),
    "empty weights": lambda f: os.truncate(f / "model.safetensors", 0),
    "missing weights": lambda f: reweigh(f, lambda s: s.pop("model.norm.weight"), card=False),
    "damaged source card": lambda f: (f / "curerec-source.json").write_text("{"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_base(case, copy, made_path):
    DAMAGE[case](copy / "base")
    with untouched(copy):
        refused(train(made_path, copy / "base"), "base model")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("recipe"),
        lambda c: c.pop("data"),
        lambda c: c.update(base="nano"),
        lambda c: c.update(answers=[1, 2]),
        lambda c: c.update(kind="half"),
        lambda c: c.update(format="curerec-recommender/9"),
        lambda c: c["recipe"].update(colour="red"),
        lambda c: c.update(template=3),
    ],
    ids=["recipe", "data", "base", "answers", "kind", "format", "recipe key", "template"],
)
def test_damaged_card(change, copy, made_path):
    edit(copy / "full" / storage.CARD, change)
    with untouched(copy):
        refused(unlearn(made_path, copy / "full"), "recommender full")


@pytest.mark.slow
def test_settings_of_methods_of_another_version_are_no_damage(copy, made_path):
    """Who trained with an older version can still delete with a newer one."""
    card = json.loads((copy / "full" / storage.CARD).read_text())
    card["recipe"]["cure"]["a_setting_of_old"] = 3
    (copy / "full" / storage.CARD).write_text(json.dumps(card))
    result = unlearn(made_path, copy / "full")
    assert result.code in (0, 1) and "note: " in result.out and "another version" in result.out, result


def test_damaged_adapter(copy, made_path):
    with untouched(copy / "base"):
        edit(copy / "lora" / "adapter_config.json", lambda c: c.update(r=7))
        refused(unlearn(made_path, copy / "lora"), "recommender lora", "adapter")
        (copy / "lora" / "adapter_config.json").write_text("{")
        refused(unlearn(made_path, copy / "lora"), "recommender lora", "adapter_config.json")
    assert not (copy / "made").exists()


def test_a_folder_that_is_no_recommender(copy, made_path):
    with untouched(copy):
        for folder in (copy, copy / "base", copy / "nowhere", copy / "r.yaml"):
            refused(unlearn(made_path, folder), f"recommender {folder.name}", "curerec train")
