"""The whole path through the commands: what each leaves behind, and that plain libraries can read it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from curerec.data.cache import retain_side_at
from curerec.methods import UNSAVED
from curerec.recommender import bases, storage
from curerec.reports import figures
from made_commands import PRIVATE, curerec, refused, tree, untouched

MODELS = ("original", "retrain", "retrain_2", "npo", "cure")


def test_every_command_ends_well_and_says_no_more_than_its_stages(made_path):
    for name, result in made_path.results.items():
        verdict = name in ("new", "again", "new_lora", "judged")
        assert result.code in ((0, 1) if verdict else (0,)), (name, result)
        words = {"not verified"} if name == "judged" else {"not verified", "not judged"}  # no --verdict
        assert (result.code == 1) == bool(words & set(result.out.splitlines())), (name, result)
        for line in result.err.splitlines():
            assert line.endswith(" s"), (name, line)
        assert "Traceback" not in result.err and not PRIVATE.search(result.out + result.err)


def test_the_demo_leaves_record_and_report(made_path):
    record = json.loads((made_path.demo / "record.json").read_text())
    for name in MODELS:
        row = record["metrics"][name]
        assert row.keys() >= {"test_auc", "test_acc", "jsd", "membership_auc", "t_total_s"}
        assert all(isinstance(row[key], float) for key in ("test_auc", "test_acc", "jsd", "membership_auc"))
        assert row["t_total_s"] > 0
    assert record["metrics"]["npo"]["stop_reason"] and not record["metrics"]["retrain"]["stop_reason"]
    assert record["floor_jsd"] > 0 and record["ceiling_jsd"] > 0
    assert record["residual"].keys() >= {"npo", "cure"}
    circuit = record["circuit"]
    assert circuit["size"] == len(circuit["modules"]) and isinstance(circuit["faithfulness"], float)
    assert all(isinstance(record["groups"][role], list) for role in ("forget", "retain", "shared", "frozen"))
    assert record["request"]["kind"] == "users" and record["request"]["n_ids"] > 0
    assert record["versions"].keys() >= {"curerec", "torch", "transformers", "peft"}
    assert record["seed"] == 0
    page = (made_path.demo / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") or page.startswith("<!doctype html>")
    assert "<script" not in page and not PRIVATE.search(page + json.dumps(record))


def test_production_unlearning_needs_no_retrain(made_path):
    assert sorted(path.name for path in made_path.new.iterdir()) == [
        "recommender",
        "record.json",
        "report.html",
    ]
    record = json.loads((made_path.new / "record.json").read_text())
    assert record["floor_jsd"] is None and "metrics.retrain" in record["missing"]
    assert record["model"]["output"] == storage.read_card(made_path.new / "recommender")["weights_sha256"]
    assert record["metrics"].keys() == {"original", "cure"}


def test_evaluation_with_two_retrains_gives_floor_and_residual(made_path):
    record = json.loads((made_path.judged / "record.json").read_text())
    assert record["metrics"].keys() == {"original", "cure", "retrain", "retrain_2"}
    assert record["floor_jsd"] > 0 and "cure" in record["residual"]
    assert (made_path.judged / "report.html").exists()
    card = storage.read_card(made_path.new / "recommender")
    assert record["model"]["output"] == card["weights_sha256"] and "config" not in record["missing"]


def test_evaluation_with_one_retrain_says_that_a_second_lacks(made_path, tmp_path):
    one = ("--retrain", made_path.retrains[0])
    result = curerec(*made_path.judge, *one, "--metric", "jsd_full", "--out", tmp_path / "judged")
    assert result.code in (0, 1), result
    page = " ".join((tmp_path / "judged" / "report.html").read_text().split())
    assert "A single retrained model was given: the floor is the distance between two. Therefore" in page
    assert "Not recorded. Therefore missing" not in page
    assert "retrain      none: it is a retrained model itself" in result.out
    assert "no retrained model was given" not in result.out


def test_training_prepares_the_first_request_where_it_may(made_path):
    full, lora = (json.loads((f / "record.json").read_text()) for f in (made_path.new, made_path.new_lora))
    assert "contributions" in full["cost"]["kept"]
    assert lora["cost"]["kept"] == []  # --no-prepare
    retrain = storage.read_card(made_path.retrains[0])["weights_sha256"]
    assert not retain_side_at(retrain).exists()


def test_the_original_is_not_touched(made_path):
    assert made_path.before == made_path.after


def test_the_same_request_gives_the_same_bytes(made_path):
    weights = [
        (f / "recommender" / "model.safetensors").read_bytes() for f in (made_path.new, made_path.again)
    ]
    assert weights[0] == weights[1]
    original = (made_path.full / "model.safetensors").read_bytes()
    assert weights[0] != original


@pytest.mark.slow
def test_settings_of_another_recipe_need_no_training(made_path, tmp_path):
    trained = storage.read_card(made_path.full)["recipe"]
    steps = {"update": {**trained["cure"]["update"], "max_steps": 2, "check_every": 1}}
    other = {**trained, "split": {"train": 7}, "cure": {**trained["cure"], **steps}}
    recipe = tmp_path / "two.yaml"
    recipe.write_text(json.dumps(other))
    args = ["--recommender", made_path.full, "--data", made_path.data, "--request", made_path.request]
    out = tmp_path / "new"
    result = curerec("unlearn", *args, "--recipe", recipe, "--out", out)
    assert result.code in (0, 1), result
    record = json.loads((out / "record.json").read_text())
    assert record["config"]["cure"]["update"]["max_steps"] == 2
    for part in ("split", "model", "data"):  # what it was trained by stays
        assert record["config"][part] == trained[part]
    new = out / "recommender"
    before = (made_path.new / "recommender" / "model.safetensors").read_bytes()
    assert (new / "model.safetensors").read_bytes() != before
    other_run = (*made_path.judge, "--also", new, "--out", tmp_path / "none")
    refused(curerec(*other_run), "or of other settings")
    judge = [new if word == made_path.new / "recommender" else word for word in made_path.judge]
    assert curerec(*judge, "--out", tmp_path / "judged").code in (0, 1)
    judged = json.loads((tmp_path / "judged" / "record.json").read_text())
    assert "unlearned by other settings" in judged["missing"]["config"]
    with untouched(tmp_path):
        wrong = curerec("unlearn", *args, "--recipe", "lora", "--out", tmp_path / "none")
        refused(wrong, "settings are of an adapter", "full fine-tuning")
        refused(curerec("unlearn", *args, "--recipe", "nosuch", "--out", tmp_path / "none"), "quick")


@pytest.mark.slow
@pytest.mark.soak
def test_shadows_are_of_the_settings_that_the_model_was_unlearned_by(made_path, tmp_path):
    """Else U-LiRA would attack another method than the one that is judged, and not say so."""
    trained = storage.read_card(made_path.full)["recipe"]
    steps = {"update": {**trained["cure"]["update"], "max_steps": 2, "check_every": 1}}
    recipe, out = tmp_path / "two.yaml", tmp_path / "new"
    recipe.write_text(json.dumps({**trained, "cure": {**trained["cure"], **steps}}))
    ask = ("--recommender", made_path.full, "--data", made_path.data, "--request", made_path.request)
    curerec("unlearn", *ask, "--recipe", recipe, "--out", out)
    attack = ("--shadows", tmp_path / "shadows", "--budget", 0)

    def said(*words):
        curerec("evaluate", *ask, *attack, *words, "--out", tmp_path / "judged")
        missing = json.loads((tmp_path / "judged" / "record.json").read_text())["missing"]
        return missing["metrics.cure.ulira_auc"], missing["metrics.cure.ulira_tpr_at_fpr_01"]

    assert all("other settings" in one for one in said("--unlearned", out / "recommender"))
    assert not (tmp_path / "shadows").exists()  # none is trained in vain
    assert all("of at least 16 shadow" in one for one in said("--unlearned", made_path.new / "recommender"))
    card = storage.read_card(out / "recommender")
    del card["unlearned"][0]["config"]  # as written before cards had it
    card["unlearned"][0]["request"] = "another"
    for of_another in (False, True):  # before and after the card says so
        judged = json.loads((tmp_path / "judged" / "record.json").read_text())
        assert judged["request"]["other"] is of_another
        assert ("other requests" in (tmp_path / "judged" / "report.html").read_text()) is of_another
        (out / "recommender" / storage.CARD).write_text(json.dumps(card))
        assert all("of at least 16 shadow" in one for one in said("--unlearned", out / "recommender"))


def test_lora_unlearning_changes_the_adapter_alone(made_path):
    old = load_file(made_path.lora / "adapter_model.safetensors")
    new = load_file(made_path.new_lora / "recommender" / "adapter_model.safetensors")
    assert old.keys() == new.keys()
    assert any(not torch.equal(old[name], new[name]) for name in old)
    assert not list((made_path.new_lora / "recommender").glob("model*.safetensors"))


PLAIN = """
import sys, numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel
full, lora, base, out = sys.argv[1:]
ids = torch.arange(3, 15)[None]
models = {
    "full": AutoModelForCausalLM.from_pretrained(full),
    "lora": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora).eval(),
}
with torch.inference_mode():
    np.savez(out, **{name: model(input_ids=ids).logits.numpy() for name, model in models.items()})
assert AutoTokenizer.from_pretrained(lora)(" Yes")["input_ids"]
assert not any(name.split(".")[0] == "curerec" for name in sys.modules)
"""


@pytest.mark.slow
def test_plain_libraries_load_what_was_saved(made_path, tmp_path):
    base = bases.resolve(storage.read_card(made_path.lora)["base"]["name"])
    folders = [made_path.new / "recommender", made_path.new_lora / "recommender", base]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *folders, tmp_path / "logits.npz"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "logits.npz")
    ids = torch.arange(3, 15)[None]
    for name, folder in zip(("full", "lora"), folders, strict=False):
        model = storage.load(folder, base).model
        with torch.inference_mode():
            ours = model(input_ids=ids).logits.numpy()
        np.testing.assert_allclose(ours, theirs[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["npo", "ga_kl", "random_modules", "retrain"])
def test_every_method_runs_from_the_command(made_path, method, tmp_path):
    result = curerec(
        "unlearn", "--recommender", made_path.full, "--data", made_path.data, "--request", made_path.request,
        "--method", method, "--out", tmp_path / "new",
    )  # fmt: skip
    assert result.code in (0, 1), result
    assert storage.read_card(tmp_path / "new" / "recommender")["unlearned"][0]["method"] == method
    record = json.loads((tmp_path / "new" / "record.json").read_text())
    assert record["method"] == method and record["metrics"].keys() == {"original", method}
    losses = {"npo": "npo", "ga_kl": "grad_ascent", "random_modules": "rewind", "retrain": None}
    assert record["update"]["forget_loss"] == losses[method]
    page = (tmp_path / "new" / "report.html").read_text()
    assert f'class="ours">{figures.method(method)}</th>' in page  # its column of the table of all figures
    assert "CURE" not in page and "metrics.cure" not in page


@pytest.mark.parametrize("method", UNSAVED)
@pytest.mark.parametrize("command", ["unlearn", "plan", "init"])
def test_what_no_folder_can_hold_is_refused_before_any_work(made_path, tmp_path, method, command):
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"method: {method}\n")
    what = ("--recommender", made_path.full, "--data", made_path.data)
    asked = ("--request", made_path.request, "--method", method)
    line = {
        "unlearn": ("unlearn", *what, *asked, "--out", tmp_path / "new"),
        "plan": ("unlearn", *what, *asked, "--plan"),
        "init": ("request", "init", *what, "--policy", policy, "--store", tmp_path / "store"),
    }[command]
    result = curerec(*line)
    assert result.code == 2 and f"{method} answers by more than the weights" in result.err, result
    assert not set(UNSAVED) & set(result.err.split("Choose from")[1].strip().split(", "))
    assert list(tree(tmp_path)) == ["policy.yaml"]


@pytest.mark.slow
def test_other_runs_of_a_method_are_averaged_with_the_one_that_is_judged(made_path, tmp_path):
    """Beside three retrains; and what is no other run of it is refused."""
    ask = ("--data", made_path.data, "--request", made_path.request)
    runs = [tmp_path / f"npo{seed}" for seed in (0, 1, 2)]
    for seed, out in enumerate(runs):
        options = ("--method", "npo", "--seed", seed, "--out", out)
        assert curerec("unlearn", "--recommender", made_path.full, *ask, *options).code in (0, 1)
    without = ("--recipe", made_path.recipe, "--without", made_path.request)
    third = tmp_path / "third"
    curerec("train", "--data", made_path.data, *without, "--seed", 3003, "--out", third)
    folders = [out / "recommender" for out in runs]
    judge = [folders[0] if word == made_path.new / "recommender" else word for word in made_path.judge]
    retrains = [word for path in (*made_path.retrains, third) for word in ("--retrain", path)]
    also = [word for path in folders[1:] for word in ("--also", path)]
    curerec(*judge, *retrains, *also, "--out", tmp_path / "judged")
    row = json.loads((tmp_path / "judged" / "record.json").read_text())["metrics"]["npo"]
    assert 0 < row["jsd_mean"] < row["jsd"]
    for folder, part in (
        (folders[0], "same weights"),
        (made_path.new / "recommender", "another request or method"),
        (made_path.full, "another request or method"),
    ):
        refused(curerec(*judge, "--also", folder, "--out", tmp_path / "x"), "--also", part)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow_but("given", "retrain")
@pytest.mark.parametrize("method", ["npo", "retrain", "given"])
def test_a_model_is_judged_under_its_own_name(made_path, method, tmp_path):
    """A retrain beside two others, and a folder whose card names no method."""
    first, second = made_path.retrains
    judged = made_path.full
    references = ("--retrain", first, "--retrain", second)
    if method == "retrain":
        judged, references = first, ("--retrain", second)
    elif method == "npo":
        judged = tmp_path / "npo" / "recommender"
        asked = ("--data", made_path.data, "--request", made_path.request)
        curerec("unlearn", "--recommender", made_path.full, *asked, "--method", "npo", "--out", judged.parent)
    arguments = [judged if word == made_path.new / "recommender" else word for word in made_path.judge]
    result = curerec(*arguments, *references, "--out", tmp_path / "judged")
    assert result.code in (0, 1), result
    record = json.loads((tmp_path / "judged" / "record.json").read_text())
    others = {"retrain_2"} if method == "retrain" else {"retrain", "retrain_2"}
    assert record["method"] == method and record["metrics"].keys() == {"original", method} | others
    assert record["metrics"][method]["jsd"] > 0
    assert record["residual"].keys() == ({method} if len(others) == 2 else set())
    page = (tmp_path / "judged" / "report.html").read_text()
    assert "Compared with a retrained model" in page and "No comparison with a retrained model" not in page


def test_an_earlier_output_is_replaced(made_path, tmp_path):
    shutil.copytree(made_path.judged, tmp_path / "judged")
    before = (tmp_path / "judged" / "record.json").stat().st_ino
    result = curerec(*made_path.judge, "--out", tmp_path / "judged")
    assert result.code in (0, 1), result
    assert (tmp_path / "judged" / "record.json").stat().st_ino != before
    assert sorted(tree(tmp_path)) == ["judged", "judged/record.json", "judged/report.html"]


def test_a_verdict_that_is_asked_for_decides_the_exit_code(made_path):
    result = curerec(*made_path.judge, "--verdict")
    assert (result.code == 0) == ("verified" in result.out.splitlines())


@pytest.mark.slow
@pytest.mark.soak
def test_the_split_of_e2urec_from_the_command(made_path, tmp_path):
    recipe = tmp_path / "r.yaml"
    split = made_path.recipe_lora.read_text().replace("split: {", "split: {kind: e2urec, ")
    recipe.write_text(split + "request: {share: 0.2, choice: e2urec}\n")
    result = curerec("demo", "--data", made_path.data, "--recipe", recipe, "--out", tmp_path / "demo")
    assert result.code == 0, result
    record = json.loads((tmp_path / "demo" / "record.json").read_text())
    assert record["split"]["kind"] == "e2urec" and record["split"]["control"] > 0
    assert record["request"]["choice"] == "e2urec" and record["metrics"]["cure"]["jsd"] > 0
    result = curerec(
        "unlearn", "--recommender", tmp_path / "demo" / "original", "--data", made_path.data,
        "--request", tmp_path / "demo" / "request.csv", "--method", "npo", "--out", tmp_path / "new",
    )  # fmt: skip
    assert result.code in (0, 1), result
    again = json.loads((tmp_path / "new" / "record.json").read_text())
    assert again["split"] == record["split"] and again["request"]["digest"] == record["request"]["digest"]


def test_report_renders_again(made_path, tmp_path):
    record = tmp_path / "record.json"
    shutil.copy(made_path.demo / "record.json", record)
    result = curerec("report", record)
    assert result.code == 0 and result.out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == (made_path.demo / "report.html").read_bytes()
    (tmp_path / "link.json").hardlink_to(record)
    with untouched(tmp_path):
        for same in (record, tmp_path / "link.json", tmp_path / "." / "record.json"):
            refused(curerec("report", record, "--out", same), "is the record itself", "--out")


def test_the_recipe_decides_where_no_option_does(made_path, tmp_path, monkeypatch):
    monkeypatch.chdir(made_path.folder)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"data: data\nformat: movielens-100k\n{made_path.recipe.read_text()}")
    result = curerec("train", "--recipe", recipe, "--out", tmp_path / "made")
    assert result.code == 0, result
    assert tree(tmp_path / "made")["model.safetensors"] == tree(made_path.full)["model.safetensors"]


def test_a_recommender_that_cannot_be_prepared_is_trained_all_the_same(made_path, tmp_path, monkeypatch):
    def full(*args, **more):
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr("curerec.pipeline.prepare_cure", full)
    out = tmp_path / "recommender"
    result = curerec("train", "--data", made_path.data, "--recipe", made_path.recipe, "--out", out)
    assert result.code == 0
    assert (out / "model.safetensors").read_bytes() == (made_path.full / "model.safetensors").read_bytes()
