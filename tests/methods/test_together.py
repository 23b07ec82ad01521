"""Several processes carry out a request as one does, each its share of the passes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file

from curerec.circuits import SCORERS
from curerec.circuits.activations import sites_of
from curerec.circuits.core import find_core
from curerec.circuits.passes import Scores
from curerec.circuits.patching import patched_margins
from curerec.circuits.path import path_scores
from curerec.data.fetch import load as load_data
from curerec.errors import ConfigError, PromptError
from curerec.methods.cure.gradient_share import gradient_shares
from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.stopping import Watch
from curerec.methods.unlearn import UnlearnConfig
from curerec.opened import open_recommender
from curerec.recipes import load_recipe
from curerec.recommender import parallel, storage, stored_answers
from curerec.recommender.card import FORMAT
from curerec.recommender.units import units_of
from made_commands import LORA, RECIPE, curerec, refused, write_data
from made_held import is_half
from made_processes import FSDP, launch
from made_tasks import made_task

SCRIPT = """
import sys, torch
from safetensors.torch import save_file
from curerec.config import parse
from curerec.evaluation.cost import Meter
from curerec.methods import METHODS
from curerec.pipeline import carry_out
from curerec.recommender import parallel
from curerec.recommender.spread import spread_base
from made_tasks import made_task
torch.set_num_threads(1)
out, method, kind = sys.argv[1:4]
look = {"max_steps": 6, "check_every": 3, "check_size": 40, "batch_size": 21, "max_auc_drop": 1}
look |= {"damping": 0.1}
settings = {
    "cure": {"pairs": 13, "pair_pool": 21, "control_size": 31, "draws": 8, "update": {
        **look, "forget_loss": "rewind", "schedule": "linear", "forget_every": 6, "retain_labels": 0.1}},
    "npo": look,
    "bad_teacher": look,
    "e2urec": {"damping": 0.1, "max_steps": 12},
}
config = parse(METHODS[method][1], settings[method], where="test")
task = made_task(kind)
before = {n: p.detach().clone() for n, p in task.original.model.named_parameters()}
cut = 0
if parallel.with_fsdp():
    with parallel.together():
        cut = spread_base(task.original.model, torch.device("cpu"))
    held = [p.to_local() if hasattr(p, "to_local") else p for p in task.original.model.parameters()]
    products = sum(p.numel() for n, p in before.items() if "base_layer" in n)
    assert sum(p.numel() for p in held) == sum(p.numel() for p in before.values()) - products / 2
with Meter() as meter:
    done = carry_out(task, method, config)
state = {
    n: p.detach().clone().contiguous() for n, p in done.model.named_parameters() if "base_layer" not in n
}
rank = torch.distributed.get_rank() if parallel.count() > 1 else 0
about = {"passes": str(meter.forward_equivalents), "cut": str(cut)}
about["moved"] = str(max(float((p - before[n]).abs().max()) for n, p in state.items()))
about["looks"] = str([round(x["valid_auc"], 4) for x in done.trace])
if done.groups is not None:
    about["roles"] = ",".join(map(str, done.groups.role))
save_file(state, f"{out}-{parallel.count()}-{rank}", about)
"""


NOISE = """
from curerec.methods.descent import Descent
plain = Descent.grad
def grad(self, loss):
    found = plain(self, loss)
    if parallel.is_main():
        return found
    made = torch.Generator().manual_seed(7)
    return [g + .1 * g.abs().mean() * torch.randn(g.shape, generator=made) for g in found]
Descent.grad = grad
"""


#: Scores of modules that each process takes by itself, so far from the first one's that others are ahead.
OTHER_SCORES = """
from dataclasses import replace
import numpy as np
from curerec.circuits import SCORERS
plain = SCORERS["atp"]
def scored(*args, **named):
    found = plain(*args, **named)
    if parallel.is_main():
        return found
    made = np.random.default_rng(7).normal(size=found.values.shape) * np.abs(found.values).max()
    return replace(found, values=(found.values + made).astype(found.values.dtype))
SCORERS["atp"] = scored
"""


def about(path):
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("method", "kind", "way"),
    [
        ("cure", "full", "whole"),
        ("cure", "lora", "whole"),
        ("npo", "full", "whole"),
        ("bad_teacher", "full", "whole"),
        ("cure", "lora", "fsdp2"),
        ("npo", "lora", "fsdp2"),
        ("e2urec", "lora", "fsdp2"),  # trains a teacher by itself
    ],
)
def test_two_processes_forget_what_one_forgets(tmp_path, method, kind, way):
    script = tmp_path / "unlearn.py"
    script.write_text(SCRIPT)
    for processes in (1, 2):
        launch(processes, script, tmp_path / "w", method, kind, more=FSDP if way == "fsdp2" else ())
    one, *two = (tmp_path / name for name in ("w-1-0", "w-2-0", "w-2-1"))
    want = load_file(one)
    for path in two:
        found = load_file(path)
        assert found.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
            assert torch.equal(found[name], load_file(two[0])[name])  # all processes end with the same bits
        assert about(path).get("roles") == about(one).get("roles")
        assert about(path)["looks"] == about(one)["looks"]
        assert float(about(path)["moved"]) > 1e-4
        assert (int(about(path)["cut"]) > 0) == (way == "fsdp2")
    alone, shared = (float(about(path)["passes"]) for path in (one, two[0]))
    if way == "fsdp2":  # all pass what one passes, but for the batches of a step
        assert shared <= alone
    elif method != "bad_teacher":  # which takes its steps by itself and shares only what it scores
        assert shared < 0.7 * alone
    else:
        assert shared < alone


@pytest.mark.soak
def test_processes_whose_scores_differ_have_one_circuit_and_one_set_of_groups(tmp_path):
    """As on GPUs, where a sum rounds otherwise in each: each had groups, and so steps, of its own."""
    script = tmp_path / "unlearn.py"
    text = SCRIPT.replace("torch.set_num_threads(1)\n", f"torch.set_num_threads(1)\n{OTHER_SCORES}")
    script.write_text(text.replace('"pairs": 13', '"faithfulness": 0.3, "pairs": 13'))
    launch(2, script, tmp_path / "w", "cure", "full")
    one, two = (tmp_path / name for name in ("w-2-0", "w-2-1"))
    want, found = load_file(one), load_file(two)
    assert "frozen" in about(one)["roles"] and about(one)["roles"] == about(two)["roles"]
    assert all(torch.equal(found[name], value) for name, value in want.items())


def test_what_circuit_and_groups_are_chosen_by_is_the_first_ones(monkeypatch):
    task, given = made_task("full"), []
    prompts, model, answers = task.forget_prompts.take(np.arange(6)), task.original.model, task.answers
    units, objective = units_of(model, "projection"), ForgetObjective.of(task, UnlearnConfig())
    scores = np.zeros((6, len(sites_of(model).names)), np.float32)
    monkeypatch.setitem(SCORERS, "atp", lambda *a, **k: Scores(sites_of(model).names, scores, None, "atp"))

    def same(tensors):
        given.append(tuple(tensors[0].shape))
        tensors[0].fill_(3.0)

    monkeypatch.setattr(parallel, "same", same)
    monkeypatch.setattr(parallel, "summed", lambda tensors: None)
    monkeypatch.setattr(parallel, "sharing", lambda: False)  # as on a base in parts: each makes all passes
    monkeypatch.setattr(parallel, "_together", True)
    pairs = model, prompts, prompts, answers
    stored = path_scores(model, prompts, answers, units, task.deltas(units), steps=1)
    shares, _ = gradient_shares(objective, units, size=len(task.forget), draws=2, seed=0)
    for values in (patched_margins(*pairs, [set()]), stored, shares):
        assert len(np.unique(values)) == 1
    with pytest.raises(PromptError, match="moved the answer"):  # all margins are the same
        find_core(*pairs, scorer="atp")
    n = len(units.names)
    assert given[:4] == [(6, n), (1, 1, n), (1, 6), scores.shape] and not scores.any()


@pytest.mark.soak
def test_processes_whose_gradients_differ_end_with_the_first_ones_weights(tmp_path):
    """As on GPUs, where a sum rounds otherwise in each process that takes its steps by itself."""
    script = tmp_path / "unlearn.py"
    script.write_text(SCRIPT.replace("torch.set_num_threads(1)\n", f"torch.set_num_threads(1)\n{NOISE}"))
    launch(2, script, tmp_path / "w", "bad_teacher", "full")
    one, two = (tmp_path / name for name in ("w-2-0", "w-2-1"))
    want, found = load_file(one), load_file(two)
    assert all(torch.equal(found[name], value) for name, value in want.items())
    assert about(one) | {"passes": ""} == about(two) | {"passes": ""} and float(about(one)["moved"]) > 1e-4


class First:
    """Stands in for the broadcast of another process, whose values are all 3; notes how many bytes."""

    def __init__(self, monkeypatch):
        self.sizes = []
        monkeypatch.setattr(parallel, "_together", True)
        monkeypatch.setattr(torch.distributed, "broadcast", self.give)

    def give(self, tensor, source):
        assert source == 0
        self.sizes.append(tensor.numel())
        tensor.copy_(torch.full((len(tensor) // 4,), 3.0).view(torch.uint8))


def test_the_first_ones_values_in_place(monkeypatch):
    tensors = [torch.nn.Parameter(torch.zeros(2, 3)), torch.zeros(4, 2).T, torch.zeros(())]
    parallel.same(tensors)
    assert not any(t.any() for t in tensors)  # one process has its own
    first = First(monkeypatch)
    parallel.same(tensors)
    assert all((t == 3).all() for t in tensors) and first.sizes == [24, 32, 4]


def test_what_is_decided_by_is_the_first_ones(monkeypatch):
    """Else one process could find the gap closed, and leave the others waiting in the next step."""
    watch = Watch(made_task("full"), UnlearnConfig())
    seen = watch.look(watch.task.original.model)
    assert parallel.agreed(seen) == seen  # one process has its own

    def other(tensor, source):
        tensor.copy_(torch.full((len(tensor) // 8,), 0.25, dtype=torch.float64).view(torch.uint8))

    monkeypatch.setattr(torch.distributed, "broadcast", other)
    monkeypatch.setattr(parallel, "sharing", lambda: False)  # as on a base in parts, each scores all
    monkeypatch.setattr(parallel, "_together", True)
    assert set(watch.look(watch.task.original.model).values()) == {0.25}
    assert watch.closed({"membership_auc": watch.membership(watch.task.original.model)})


@pytest.mark.soak
def test_the_commands_run_together(tmp_path):
    data, command = write_data(tmp_path / "data"), tmp_path / "command.py"
    command.write_text("from curerec.cli import main\nmain()\n")
    # Without damping AdamW turns rounding errors of a gradient into steps of the rate's size.
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("update: {", "update: {damping: 0.1, "))
    (tmp_path / "request.csv").write_text("user\nusr1\nusr7\nusr12\nusr23\nusr40\n")
    trained = ["train", "--data", data, "--recipe", tmp_path / "recipe.yaml"]
    asked = ["unlearn", "--data", data, "--request", tmp_path / "request.csv"]
    for processes in (1, 2):
        launch(processes, command, *trained, "--out", tmp_path / f"r{processes}")
        new = tmp_path / f"u{processes}"
        launch(processes, command, *asked, "--recommender", tmp_path / "r1", "--out", new, codes=(0, 1))
    one, two = (load_file(tmp_path / f"u{k}" / "recommender" / "model.safetensors") for k in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0)
    records = [json.loads((tmp_path / f"u{k}" / "record.json").read_text()) for k in (1, 2)]
    assert records[0]["groups"]["forget"] == records[1]["groups"]["forget"]
    assert (tmp_path / "u2" / "report.html").exists()
    refused_one = [*asked, "--recommender", tmp_path / "r1", "--out", tmp_path / "no"]
    for method, why in {"cure": "frozen under an adapter", "rome": "changes or trains the base"}.items():
        sharded = launch(2, command, *refused_one, "--method", method, more=FSDP, codes=(1,))
        assert why in sharded.stderr and not (tmp_path / "no").exists()


@pytest.mark.soak
def test_the_commands_run_together_on_a_base_in_parts(tmp_path):
    data, command = write_data(tmp_path / "data"), tmp_path / "command.py"
    command.write_text(
        "from curerec.cli import main\nfrom made_held import held_by_a_command\n"
        "with held_by_a_command():\n    main()\n"
    )
    lora = LORA.replace("update: {", "update: {damping: 0.1, ")
    # Without damping AdamW turns rounding errors of a gradient into steps of the rate's size.
    adamw, sgd = "lr: 1.0e-3}", "lr: 0.1, optimizer: sgd}"
    (tmp_path / "recipe.yaml").write_text(lora.replace(adamw, sgd))
    (tmp_path / "request.csv").write_text("user\nusr1\nusr7\nusr12\nusr23\nusr40\n")
    trained = ["train", "--data", data, "--recipe", tmp_path / "recipe.yaml", "--no-prepare"]
    asked = ["unlearn", "--data", data, "--request", tmp_path / "request.csv"]
    asked += ["--recommender", tmp_path / "r1"]
    for processes in (1, 2):
        launch(processes, command, *trained, "--out", tmp_path / f"r{processes}", more=FSDP)
        for method, name in {"cure": "u", "retrain": "t"}.items():
            new = ["--method", method, "--out", tmp_path / f"{name}{processes}"]
            launch(processes, command, *asked, *new, more=FSDP, codes=(0, 1))
    for folder in ("r{}", "u{}/recommender", "t{}/recommender"):
        one, two = (load_file(tmp_path / folder.format(k) / "adapter_model.safetensors") for k in (1, 2))
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0)
        assert max(float(v.abs().max()) for n, v in one.items() if "lora_B" in n) > 1e-3
    logits = [load((tmp_path / f"r{k}" / stored_answers.FILE).read_bytes()) for k in (1, 2)]
    assert logits[0].keys() == logits[1].keys() == {"logits", "base"}
    for name, value in logits[0].items():
        torch.testing.assert_close(logits[1][name], value, atol=1e-5, rtol=0, equal_nan=True)
    for name in ("u", "t"):
        records = [json.loads((tmp_path / f"{name}{k}" / "record.json").read_text()) for k in (1, 2)]
        for part in ("groups", "circuit", "model") if name == "u" else ("model",):
            shown = [{k: v for k, v in r[part].items() if isinstance(v, int | str | bool)} for r in records]
            for one_shown in shown:
                one_shown.pop("output", None)  # a digest: the last bits differ
            assert shown[0] == shown[1] and shown[0]
        assert (tmp_path / f"{name}2" / "report.html").exists()
    for name in ("r", "t"):  # a training, a retrain
        assert not is_half(json.loads((tmp_path / f"{name}1-held-0.json").read_text()))
        for rank in (0, 1):
            seen = json.loads((tmp_path / f"{name}2-held-{rank}.json").read_text())
            assert is_half(seen), seen


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_in_few_bits_is_refused_before_anything_is_trained_or_loaded(monkeypatch, tmp_path, bits):
    for name, value in {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    data, recipe = write_data(tmp_path / "data"), tmp_path / "recipe.yaml"
    recipe.write_text(LORA.replace("kind: lora", f"kind: lora\n  base_bits: {bits}"))
    trained = curerec("train", "--data", data, "--recipe", recipe, "--out", tmp_path / "r")
    refused(trained, "few bits", "--use_fsdp", "base_bits: 16")
    assert not (tmp_path / "cache").exists() and not (tmp_path / "r").exists()
    table, made = load_data(str(data)), load_recipe(str(recipe)).model_dump(mode="json")
    card = {"format": FORMAT, "kind": "lora", "base": {"name": "none", "sha256": ""}, "recipe": made}
    card |= {"data": {"fingerprint": table.fingerprint}, "template": "likes", "answers": [1, 2]}
    (tmp_path / storage.CARD).write_text(json.dumps(card | {"weights_sha256": ""}))
    with pytest.raises(ConfigError, match="few bits"):
        open_recommender(tmp_path, table, base=tmp_path, cut=True)


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_a_pass_make_the_whole(monkeypatch, processes):
    rng = np.random.default_rng(0)
    values, weight = rng.normal(size=(7, 3)), torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    batch = torch.from_numpy(values)

    def of_rank(rank, compute):
        """What a process puts into the sum over all."""
        seen = []
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setattr(parallel, "_together", True)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: seen.append(x.clone()))
        compute()
        assert len(seen) == 1
        return seen[0]

    for n in (1, 2, 7):
        parts = [of_rank(r, lambda n=n: parallel.by_rows(n, lambda k: values[k])) for r in range(processes)]
        np.testing.assert_array_equal(sum(parts), values[:n])

        def mean(k):
            return (batch[k] @ weight).square().mean()

        parts = [of_rank(r, lambda n=n: parallel.gradient(mean, n, [weight])) for r in range(processes)]
        whole = mean(np.arange(n))
        (want,) = torch.autograd.grad(whole, [weight])
        torch.testing.assert_close(sum(parts), torch.cat([want, whole.detach()[None]]))


def test_nothing_is_shared_inside_a_share(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "_together", True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: None)
    seen = []
    parallel.by_rows(4, lambda k: (seen.append(parallel.sharing()), np.zeros((len(k), 2)))[1])
    assert seen == [False] and parallel.sharing()


@pytest.mark.parametrize("command", ["request", "evaluate", "circuit", "demo", "report"])
def test_commands_for_one_process_refuse_several(monkeypatch, command, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(
        curerec(command, *(["list"] if command == "request" else []), "--out", tmp_path),
        "one process",
        "accelerate",
    )


def test_bench_goes_on_in_one_of_the_processes(monkeypatch, tmp_path):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert curerec("bench", "--recipe", "nano", "--out", tmp_path / "b").code == 0
    assert not (tmp_path / "b").exists()  # the other one does it
