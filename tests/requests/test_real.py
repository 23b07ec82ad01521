"""The commands on a real, tiny recommender: whole path, kills, retrain, hand-over to plain libraries."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_store import bytes_under
from transformers import AutoModelForCausalLM

from curerec.data.cache import retain_side_at
from curerec.data.table import interactions
from curerec.errors import RefusedError
from curerec.models import logits_of
from curerec.opened import open_recommender
from curerec.progress import Silent
from curerec.recipe import recipe_of_card
from curerec.recipes import load_recipe
from curerec.recommender.stored_answers import AS_TRAINED, FILE
from curerec.requests import gate, lock, maintain, runner
from curerec.requests.audit import audit
from curerec.requests.engine import CureEngine, prepare_next
from curerec.requests.gate import Decision
from curerec.requests.kept_answers import handed_on
from curerec.requests.stages import Job
from curerec.requests.store import Store
from made_commands import PRIVATE, curerec, killed, refused, tree, untouched

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def promote_all(policy, judged, spent, *, retrained):
    """A gate for tests of what comes after it: the tiny model's verdict is of no interest."""
    found = gate.decide(policy, judged, spent, retrained=retrained)
    return Decision(True, (), found.drift, found.auc_drop)


@pytest.fixture(scope="module")
def store(made_path, tmp_path_factory):
    """A store of the LoRA recommender with one request of four users in a file; copy it."""
    folder = tmp_path_factory.mktemp("real")
    policy = folder / "policy.yaml"
    policy.write_text("retrain_auc_drop: 1\n")
    made = curerec(
        "request", "init", "--store", folder / "store", "--recommender", made_path.lora,
        "--data", made_path.data, "--policy", policy,
    )  # fmt: skip
    assert made.code == 0, made
    with Store(folder / "store") as opened:
        table = opened.table()
        codes = np.unique(table.data.user_code[table.split.train.target])[:4]
        names = table.data.users[codes].tolist()
    file = folder / "request.csv"
    file.write_text("user\n" + "".join(f"{name}\n" for name in names))
    added = curerec("request", "add", "--store", folder / "store", "--file", file, "--due", "2030-01-31")
    assert added.code == 0 and added.out.startswith("r-"), added
    return folder / "store", names, added.out.strip(), file


@pytest.fixture
def mine(store, tmp_path):
    return Path(shutil.copytree(store[0], tmp_path / "store", symlinks=True))


def test_the_stored_split_is_the_one_it_was_trained_on(store, made_path):
    from curerec.data.fetch import load

    opened = open_recommender(made_path.lora, load(made_path.data))
    with Store(store[0]) as kept:
        table = kept.table()
    assert table.data.fingerprint == opened.data.fingerprint
    for role in ("train", "control", "valid", "test"):
        ours, theirs = getattr(table.split, role), getattr(opened.split, role)
        for name in ("target", "history", "label"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), (role, name)


@pytest.mark.slow
def test_the_first_version_has_its_stored_answers_and_the_next_has_none(mine, monkeypatch):
    def answered():
        with Store(mine) as kept:
            table = kept.table()
            job = Job(kept.version_folder(), table, np.zeros(len(table.data), bool), "cure", 0)
            return CureEngine(job).opened.answered, table.split.train

    found, train = answered()
    assert found.find(train)[1].all()
    monkeypatch.setattr(runner, "decide", promote_all)
    assert curerec("request", "run", "--store", mine).code == 0
    assert answered()[0] is None and not list(mine.rglob(FILE)) and not list(mine.rglob(AS_TRAINED))


def test_the_policy_may_name_a_recipe_that_ships(store, made_path, tmp_path):
    def init(recipe, recommender):
        policy = tmp_path / "policy.yaml"
        policy.write_text(f"recipe: {recipe}\n")
        return curerec(
            "request", "init", "--store", tmp_path / recipe, "--recommender", recommender,
            "--data", made_path.data, "--policy", policy,
        )  # fmt: skip

    refused(init("nosuch", made_path.full), "policy, recipe", "quick")
    refused(init("quick", made_path.lora), "settings are of full fine-tuning")
    assert not (tmp_path / "nosuch").exists() and not (tmp_path / "quick").exists()
    assert init("quick", made_path.full).code == 0
    with Store(tmp_path / "quick") as kept, Store(store[0]) as plain:
        table, named = kept.table(), kept.policy.recipe
        nothing = np.zeros(len(table.data), bool)
        engine = CureEngine(Job(kept.version_folder(), table, nothing, "cure", 0, recipe=named))
        assert engine.config == load_recipe("quick").cure and kept.policy.recipe == "quick"
        assert engine.opened.recipe.split == recipe_of_card(engine.opened.recommender.card, where="")[0].split
        assert "recipe" not in plain.policy.model_dump()  # hashes of policies without one stay as they were


def test_what_the_commands_say(store, mine):
    _, names, request, file = store
    again = curerec("request", "add", "--store", mine, "--file", file, "--due", "2029-12-31")
    assert again.out.strip() == f"{request} (was there already)"
    bad = mine.parent / "bad.csv"
    bad.write_text(f"user\n{names[0]}\nusr_nobody\n")
    with untouched(mine):
        refused(curerec("request", "add", "--store", mine, "--file", bad), "row 3", "not in the data")
        refused(
            curerec("request", "add", "--store", mine, "--user", "a", "--item", "b"), "two things at once"
        )
        refused(curerec("request", "add", "--store", mine), "does not say")
        refused(curerec("request", "add", "--store", mine, "--user", names[0], "--due", "soon"), "no date")
        refused(curerec("request", "show", "--store", mine, "r-0"), "no such request")
        refused(curerec("request", "rollback", "--store", mine), "no such lawful version", code=1)
        refused(curerec("request", "run", "--store", mine.parent), "is no store of a recommender")
        refused(curerec("verify", mine.parent), "is no store of a recommender")
        refused(curerec("request", "run", "--store", mine, "--method", "nosuch"), "unknown method", code=2)
    listed = curerec("request", "list", "--store", mine)
    assert listed.code == 0 and f"{request}  open" in listed.out and "due 2029-12-31" in listed.out
    assert json.loads(curerec("request", "list", "--store", mine, "--format", "json").out)[0]["id"] == request
    shown = curerec("request", "show", "--store", mine, request)
    assert "n_ids     4" in shown.out and not PRIVATE.search(shown.out + listed.out)
    assert "1 open" in curerec("request", "status", "--store", mine).out
    assert curerec("request", "cancel", "--store", mine, request).code == 0
    assert "1 cancelled" in curerec("request", "status", "--store", mine).out
    assert "nothing is open" in curerec("request", "run", "--store", mine).out


def test_not_verified_keeps_everything_and_verified_replaces_it(store, mine, monkeypatch):
    _, names, request, _ = store
    before = tree(mine / "versions")
    first = curerec("request", "run", "--store", mine)
    # Four users of a model this small cannot be judged, and that is no pass.
    assert first.code == 1 and "held" in first.out, first
    assert tree(mine / "versions") == before and curerec("verify", mine).code == 0
    (card,) = (mine / "versions").glob("*/curerec.json")
    left_for_the_next = retain_side_at(json.loads(card.read_text())["weights_sha256"])
    assert {p.stem for p in left_for_the_next.iterdir()} == {"circuit", "contributions"}
    monkeypatch.setattr(runner, "decide", promote_all)
    again = curerec("request", "run", "--store", mine, "--no-prepare")
    assert again.code == 0 and "committed" in again.out, again
    # The stages were there already: no line of them this time.
    assert not again.err, again.err
    assert tree(mine / "versions").keys().isdisjoint(before.keys() - {"curerec.json"})
    checked = curerec("verify", mine)
    assert checked.code == 0 and "no proof of erasure" in checked.out
    assert not left_for_the_next.exists()
    left = bytes_under(mine)
    assert not any(name.encode() in left for name in names)
    record = json.loads(sorted((mine / "records").glob("000002-*"))[0].read_bytes())["predicate"]
    assert {m["name"] for m in record["measurements"]} >= {
        "membership_auc",
        "valid_auc_before",
        "valid_auc_after",
    }
    assert all({"value", "low", "high"} <= m.keys() for m in record["measurements"])
    assert record["request"]["id"] == request and len(record["request"]["pseudonyms"]) == 4
    assert [stage["name"] for stage in record["stages"]] == ["circuit", "groups", "update", "verdict"]
    page = next((mine / "reports").glob("*/report.html")).read_text()
    assert not PRIVATE.search(page) and "<script" not in page
    # What the stages before left, in other processes as it may be, is all in the report.
    report = json.loads((mine / "reports" / record["batch"]["id"] / "record.json").read_text())
    assert not {"circuit", "groups", "update"} & report["missing"].keys()
    assert report["update"]["trace"] and report["update"]["stop_reason"] and report["update"]["forget_loss"]
    # The version that replaced it is a recommender that the other commands read.
    assert audit(mine).versions == 1


@pytest.mark.slow
def test_a_version_made_after_rows_with_new_titles_came_in_is_of_these(mine, monkeypatch):
    titles = {"itm1": "Of an item that is there", "new": "Of one that came in"}
    rows = interactions(["newcomer"] * 2, list(titles), [4.0, 5.0], None, titles, name="more", source="test")
    with Store(mine) as kept:
        maintain.ingest(kept, rows)
    monkeypatch.setattr(runner, "decide", promote_all)
    assert curerec("request", "run", "--store", mine, "--no-prepare").code == 0
    with Store(mine) as kept:
        folder, data = kept.version_folder(), kept.table().data
        opened = open_recommender(folder, data)
    assert "Of one that came in" in data.titles["title"].to_pylist()
    assert opened.recommender.card["data"]["titles"] == data.titles_digest and opened.note is None


@pytest.mark.slow
def test_a_committed_version_is_ready_for_the_next_request(store, mine, monkeypatch):
    _, names, _, _ = store
    monkeypatch.setattr(runner, "decide", promote_all)
    first = curerec("request", "run", "--store", mine)
    assert first.code == 0, first

    def left():
        folder = retain_side_at(json.loads((mine / "current" / "curerec.json").read_text())["weights_sha256"])
        return folder, {p.stem for p in folder.iterdir()} if folder.exists() else set()

    folder, parts = left()
    assert parts == {"circuit", "contributions", "answers"}
    with Store(mine) as opened:
        table = opened.table()
        theirs = table.data.user_code == table.data.user_code[table.split.train.target[0]]
        job = Job(opened.version_folder(), table, theirs, "cure", 0)
        task = CureEngine(job).task  # what the next request has: nobody is asked what was answered already
        assert task.answered.find(task.forget)[1].all() and task.answered.find(task.retain)[1].all()
        known = task.control.take(~task.deleted[task.control.target])
        assert task.answered.find(known)[1].all() and task.answered.find(known, base=True)[1].all()
        user = table.data.users[table.data.user_code[table.split.train.target[0]]]
    assert user not in names and not any(user.encode() in p.read_bytes() for p in folder.iterdir())
    assert curerec("request", "add", "--store", mine, "--user", user).code == 0
    assert curerec("request", "run", "--store", mine, "--no-prepare").code == 0
    record = json.loads(sorted((mine / "records").glob("*"))[-1].read_bytes())["predicate"]
    report = json.loads((mine / "reports" / record["batch"]["id"] / "record.json").read_text())
    assert set(report["cost"]["kept"]) == {"circuit", "contributions"}
    assert not folder.exists() and left()[1] == set()  # destroyed with the version, and not asked for again


@pytest.mark.slow
@pytest.mark.soak
def test_answers_as_trained_go_from_version_to_version_if_the_policy_says_so(
    store, made_path, tmp_path, monkeypatch
):
    """Two requests of one store: what stays of the file is the first version's answers, bit by bit."""
    monkeypatch.setattr(runner, "decide", promote_all)
    (tmp_path / "policy.yaml").write_text("keep_answers: true\n")
    mine = tmp_path / "kept"
    made = curerec(
        "request", "init", "--store", mine, "--recommender", made_path.lora,
        "--data", made_path.data, "--policy", tmp_path / "policy.yaml",
    )  # fmt: skip
    assert made.code == 0, made

    def at_hand():
        with Store(mine) as opened:
            table = opened.table()
            nothing = np.zeros(len(table.data), bool)
            job = Job(opened.version_folder(), table, nothing, "cure", 0, keep_answers=True)
        return CureEngine(job).opened, table

    def names(answers, table):
        """Who and what an example is of, whatever number its row has."""
        rows = answers.examples.target
        users, items = table.data.user_code[rows], table.data.item_code[rows]
        return list(zip(table.data.users[users], table.data.items[items], strict=True))

    first, table = at_hand()
    assert first.as_trained is None
    known = dict(zip(names(first.answered, table), first.answered.logits.tolist(), strict=True))
    for k in range(2):
        user = sorted(table.data.users[np.unique(table.data.user_code[table.split.train.target])])[k]
        assert curerec("request", "add", "--store", mine, "--user", user).code == 0
        done = curerec("request", "run", "--store", mine)
        assert done.code == 0, done
        now, table = at_hand()
        kept = now.as_trained
        assert kept is not None and now.answered is None and len(kept.logits) == len(table.split.train)
        found = np.isfinite(kept.logits).all(1)
        assert found.all()  # users that go leave the histories of the others as they were
        assert [known[name] for name in names(kept, table)] == kept.logits.tolist()
        assert not any(name[0] == user for name in names(kept, table))
        own = logits_of(now.recommender, table.data, kept.examples)
        assert np.abs(own - kept.logits).max() > 1e-4
        link = json.loads(sorted((mine / "records").glob("*"))[-1].read_bytes())["predicate"]
        assert any("as trained" in a["kind"] and "kept" in a["done"] for a in link["artefacts"])
        gone = [a for a in link["artefacts"] if a["kind"] == "stored answers to the training examples"]
        assert [a["done"] for a in gone] == ["destroyed"]  # of the version before, its own or those it kept
        assert any("keep_answers" in limit and str(len(kept.logits)) in limit for limit in link["limits"])
        assert curerec("verify", mine).code == 0
    # Items take their titles and places in histories along: known is what is just as it was.
    item = table.data.items[table.data.item_code[table.split.train.history[0, -1]]]
    before = dict(zip(names(kept, table), kept.logits.tolist(), strict=True))
    assert curerec("request", "add", "--store", mine, "--item", item).code == 0
    assert curerec("request", "run", "--store", mine).code == 0
    now, table = at_hand()
    found = np.isfinite(now.as_trained.logits).all(1)
    assert 0 < found.sum() < len(found)
    left = zip(names(now.as_trained, table), now.as_trained.logits.tolist(), found, strict=True)
    assert all(before[name] == logits for name, logits, known in left if known)
    # The strict policy does not read those that are there.
    with Store(mine) as opened:
        job = Job(opened.version_folder(), opened.table(), np.zeros(len(table.data), bool), "cure", 0)
    opened = CureEngine(job).opened
    assert opened.as_trained is None
    # An unlearned version cannot say what the recommender as trained answered.
    keeping = replace(job, keep_answers=True)
    assert handed_on(keeping, opened, opened.split.train) is None
    assert handed_on(keeping, now, now.split.train) is not None
    assert handed_on(job, now, now.split.train) is None
    assert len(list(mine.rglob(AS_TRAINED))) == 1
    # A retrain is a recommender as trained: it takes over nothing, and what it answers is kept after it.
    assert handed_on(replace(keeping, method="retrain"), now, now.split.train) is None
    card = {**opened.recommender.card, "unlearned": [{"method": "retrain"}]}
    retrained = replace(opened, recommender=replace(opened.recommender, card=card))
    anew = handed_on(keeping, retrained, opened.split.train)
    own = logits_of(opened.recommender, opened.data, anew.examples)
    np.testing.assert_allclose(anew.logits, own, atol=1e-5)


def test_a_version_is_not_made_ready_while_a_run_could_destroy_it(mine):
    with Store(mine) as opened, lock.runner(opened.lock), pytest.raises(RefusedError, match="at work"):
        prepare_next(opened, 0, Silent())


MOMENTS = ["circuit: ", "groups: ", "update: ", "measure: "]


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["update: ", *(pytest.param(m, marks=pytest.mark.soak) for m in MOMENTS if m != "update: ")]
)
def test_kill_of_the_real_pipeline(moment, mine, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "decide", promote_all)
    undisturbed = Path(shutil.copytree(mine, tmp_path / "undisturbed", symlinks=True))
    # Both begin without a retain side that an earlier request left: it is of other examples of D_c.
    (card,) = (mine / "versions").glob("*/curerec.json")
    shutil.rmtree(retain_side_at(json.loads(card.read_text())["weights_sha256"]), ignore_errors=True)
    assert curerec("request", "run", "--store", undisturbed).code == 0
    log = tmp_path / "log"
    result = killed(log, ["request", "run", "--store", mine], lambda text: moment in text, signal.SIGKILL)
    assert result.code == -signal.SIGKILL
    with Store(mine) as opened:
        assert sum(opened.ledger.counts().values()) == 1
    assert curerec("request", "run", "--store", mine).code == 0
    assert tree(mine / "versions") == tree(undisturbed / "versions")
    assert not audit(mine).faults and curerec("verify", mine).code == 0


def test_a_retrain_never_sees_the_rows_and_equals_a_plain_one(store, mine, made_path, tmp_path):
    _, names, _, file = store
    done = curerec("request", "run", "--store", mine, "--retrain")
    assert done.code == 0, done
    plain = curerec(
        "train", "--data", made_path.data, "--recipe", made_path.recipe_lora, "--without", file,
        "--out", tmp_path / "plain",
    )  # fmt: skip
    assert plain.code == 0
    ours = (mine / "current" / "adapter_model.safetensors").read_bytes()
    assert ours == (tmp_path / "plain" / "adapter_model.safetensors").read_bytes()
    with Store(mine) as opened:
        assert not set(names) & set(opened.table().data.users.tolist()) and opened.drift() == (0, 0)


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_plain_libraries_serve_the_verified_adapter(mine, made_path, tmp_path, monkeypatch):
    from curerec.models import logits_of
    from curerec.recommender import bases, storage

    monkeypatch.setattr(runner, "decide", promote_all)
    assert curerec("request", "run", "--store", mine).code == 0
    current = (mine / "current").resolve()
    base = bases.resolve(storage.read_card(current)["base"]["name"])
    verified = storage.load(current, base)
    with Store(mine) as opened:
        table, version = opened.table(), opened.version
    part = table.split.valid
    wanted = logits_of(verified, table.data, part)
    served, tokenizer, name = example("serve_peft").load(mine, base)
    assert name == version == current.name and len(tokenizer) == len(verified.tokenizer)
    np.testing.assert_allclose(logits_of(verified, table.data, part, served), wanted, atol=1e-6)
    merged = example("serve_merged").merge(mine, base, tmp_path / "merged")
    assert merged.name == version
    model = AutoModelForCausalLM.from_pretrained(merged).eval()
    np.testing.assert_allclose(logits_of(verified, table.data, part, model), wanted, atol=1e-4)
    old = storage.load(made_path.lora, base)
    assert np.abs(logits_of(old, table.data, part) - wanted).max() > 1e-3  # and not those of the old one
    assert torch.is_tensor(next(model.parameters()))


def test_a_spoilt_version_is_not_loaded(mine):
    weights = (mine / "current").resolve() / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert curerec("verify", mine).code == 1
    result = curerec("request", "run", "--store", mine)
    assert result.code == 1 and "manifest" in result.out
    with Store(mine) as opened:  # nothing is lost by it: the request waits
        assert opened.ledger.counts()["held"] == 1
