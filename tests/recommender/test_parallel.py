"""Two processes end where one ends: data parallel and, where the machine can, with shared-out parameters."""

from __future__ import annotations

import contextlib
import functools
import json
import sys

import accelerate
import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.models.llama.modeling_llama import LlamaMLP

from curerec import models
from curerec.errors import ConfigError
from curerec.recipe import ModelConfig
from curerec.recommender import parallel, runtime
from curerec.recommender import tune as loop
from curerec.recommender.parallel import Team
from curerec.recommender.runtime import RuntimeConfig
from curerec.recommender.score import score
from curerec.recommender.spread import spread_base
from curerec.recommender.storage import write_model
from curerec.recommender.tune import TuneConfig, tune
from made_held import held, is_half
from made_models import ALL, made_encoder, made_model, made_prompts, with_lora
from made_processes import FSDP, launch

LAYERS, STEPS = 2, 10  # 21 prompts, 5 a step, twice
# What a launch trains one after the other: starting it takes longer than training.
QUICK = {"ddp": ("full", "dropout"), "fsdp2": ("full", "checkpoint", "dropout")}
SOAK = {"ddp": ("lora-adamw", "compile"), "fsdp2": ("lora", "compile", "compile-lora")}


def trained(case):
    """Weights after a training, by name, and what was seen of it, as strings."""
    prompts, encoder = made_prompts(21)
    model = made_model(len(encoder.tokenizer), layers=LAYERS)
    if case == "dropout":
        adapter = LoraConfig(r=3, lora_alpha=6, lora_dropout=0.5, target_modules=ALL, init_lora_weights=False)
        torch.manual_seed(3)
        model = get_peft_model(model, adapter).eval()
    else:
        whole = case in ("full", "compile")
        model = model.requires_grad_(True) if whole else with_lora(model)
    cut = parallel.with_fsdp() and hasattr(model, "peft_config")
    if cut:
        spread_base(model, torch.device("cpu"))
    adamw = case.endswith("adamw")
    config = TuneConfig(
        epochs=2, batch_size=5, lr=1e-3 if adamw else 1e-2, optimizer="adamw" if adamw else "sgd", ema=0.5
    )
    use = RuntimeConfig(checkpoint=case == "checkpoint", compile=case.startswith("compile"))
    graphs, passes, about = [], [], {}

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def passed(module, *args):
        passes.append(module)
        return mlp(module, *args)

    def finished(team, params):
        about["wrapped"] = type(team.wrapped).__name__
        about["params"] = ",".join({type(p).__name__ for p in params})
        about["training"] = str(all(m.training for m in team.inner.modules()))
        finish(team, params)

    mlp, finish = LlamaMLP.forward, Team.finish
    with pytest.MonkeyPatch.context() as patch:
        if not use.compile:  # which would compile the counting, too
            patch.setattr(LlamaMLP, "forward", passed)
        patch.setattr(Team, "finish", finished)
        patch.setattr(loop, "compiled_layers", functools.partial(runtime.compiled_layers, backend=backend))
        with held() if cut and not use.compile else contextlib.nullcontext() as seen:
            if seen:
                seen.watch(model)
            tune(model, prompts, encoder.answers, config, seed=0, runtime=use)
            about |= {"graphs": str(len(graphs)), "passes": str(len(passes))}
            scores = torch.from_numpy(score(model, prompts, encoder.answers))
            about["held"] = json.dumps(seen.about() if seen else None)
    state = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    return {**state, "scores": scores}, about


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Given a way and a case: what each of two processes has trained, and what was seen of it."""
    folder = tmp_path_factory.mktemp("trained")

    @functools.cache
    def launched(way, cases):
        launch(2, __file__, folder / way, *cases, more=FSDP if way == "fsdp2" else ())

    def of(way, case):
        launched(way, next(group[way] for group in (QUICK, SOAK) if case in group[way]))
        found = []
        for rank in (0, 1):
            with safe_open(f"{folder / way}-{case}-{rank}", "pt") as file:
                found.append(({n: file.get_tensor(n) for n in file.keys()}, file.metadata()))  # noqa: SIM118
        return found

    return of


def main(out, *cases):
    torch.set_num_threads(1)
    for case in cases:
        state, about = trained(case)
        save_file(state, f"{out}-{case}-{torch.distributed.get_rank()}", about)


def cases(group):
    return [(way, case) for way in group for case in group[way] if case != "dropout"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "case"), [*cases(QUICK), *(pytest.param(*one, marks=pytest.mark.soak) for one in cases(SOAK))]
)
def test_two_processes_train_what_one_trains(two, way, case):
    want, _ = trained(case.replace("compile-", "").replace("compile", "full"))
    for found, about in two(way, case):
        whole = way == "fsdp2" and case in ("full", "compile")
        kinds = ("FSDP_Answering", "DTensor") if whole else ("DistributedDataParallel", "Parameter")
        assert (about["wrapped"], about["params"]) == kinds
        assert found.keys() == want.keys()
        for name, value in want.items():
            # AdamW turns a rounding error of a gradient into a step where there is no gradient to speak of.
            atol = 1e-4 if case.endswith("adamw") else 1e-5
            torch.testing.assert_close(found[name], value, atol=atol, rtol=0)


@pytest.mark.slow
def test_a_checkpointed_training_on_a_base_in_parts_passes_layers_twice(two):
    for case, passes in (("full", LAYERS), ("checkpoint", 2 * LAYERS - 1)):  # of the last little is kept
        for _, about in two("fsdp2", case):
            assert int(about["passes"]) == passes * STEPS


@pytest.mark.slow
@pytest.mark.parametrize("case", ["checkpoint", "dropout", pytest.param("lora", marks=pytest.mark.soak)])
def test_no_process_holds_more_than_its_share_of_a_base_and_what_it_is_using(two, case):
    used = "layer" if case == "checkpoint" else "product"  # a layer is passed anew as one
    for _, about in two("fsdp2", case):
        assert is_half(json.loads(about["held"]), used), about["held"]


def test_a_base_under_an_adapter_is_loaded_into_main_memory_and_cut_there(monkeypatch, tmp_path):
    encoder = made_encoder()
    write_model(made_model(len(encoder.tokenizer)), encoder.tokenizer, tmp_path)
    cut, gpu = [], torch.device("meta")  # not what a model could be loaded to
    monkeypatch.setattr(models, "spread_base", lambda model, device: cut.append((model, device)))
    monkeypatch.setattr(models, "device", lambda: gpu)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    config = ModelConfig(base="made", kind="lora")
    model = models.fresh_model(tmp_path, config, seed=0)
    assert cut == [(model, gpu)] and {p.device.type for p in model.parameters()} == {"cpu"}
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16  # as the device computes
    assert not models.spreads(ModelConfig(base="made", kind="full"))
    for bits in (4, 8):
        with pytest.raises(ConfigError, match="few bits") as refusal:
            models.fresh_model(tmp_path, config.model_copy(update={"base_bits": bits}), seed=0)
        assert "--use_fsdp" in str(refusal.value)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert not models.spreads(config.model_copy(update={"base_bits": 4}))


@pytest.mark.slow
def test_dropout_is_at_work_with_shared_out_parameters(two):
    plain, _ = trained("lora")
    for (whole, _), (cut, about) in zip(two("ddp", "dropout"), two("fsdp2", "dropout"), strict=True):
        assert about["training"] == "True"
        for name, value in whole.items():  # the same numbers are drawn either way
            torch.testing.assert_close(cut[name], value, atol=1e-5, rtol=0)
        assert max(float((cut[name] - value).abs().max()) for name, value in plain.items()) > 1e-3


@pytest.mark.soak
@pytest.mark.parametrize(("way", "case"), [one for one in cases(SOAK) if one[1].startswith("compile")])
def test_layers_are_compiled_with_several_processes(two, way, case):
    for _, about in two(way, case):
        assert int(about["graphs"]) > 0


def test_parameters_are_shared_out_by_torch_wherever_the_accelerator_computes(monkeypatch):
    class Accelerator:
        distributed_type = DistributedType.FSDP  # what it is on GPUs
        device = torch.device("cuda", 1)

        def __init__(self, **settings):
            assert settings == {"mixed_precision": "no", "dynamo_backend": "no"}

        def prepare_model(self, model):
            raise ValueError("FSDP2 preparation should be done via `accelerate.prepare()`")

    meshes, cut = [], []
    monkeypatch.setattr(accelerate, "Accelerator", Accelerator)
    monkeypatch.setattr(parallel, "joined", lambda: None)
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda *a: meshes.append(a) or a)
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda part, mesh: cut.append(part) or part)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    model = made_model(50)
    team = Team(model, (1, 2))
    assert team.inner is not model and meshes == [("cpu", (2,))]
    assert cut == [*team.inner.model.layers, team.wrapped]
    parallel._sharded(team.wrapped, Accelerator.device)
    assert meshes[1] == ("cuda", (2,))


def test_a_base_in_few_bits_is_not_shared_out(monkeypatch):
    class Params4bit(torch.nn.Parameter):
        pass

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    model = made_model(50)
    model.model.layers[0].mlp.up_proj.weight = Params4bit(torch.zeros(4, 1), requires_grad=False)
    with pytest.raises(ConfigError, match="few bits"):
        Team(model, (1, 2))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_cover_a_batch_and_weigh_as_its_mean(processes):
    class Accelerator:
        num_processes = processes

    values = np.random.default_rng(0).normal(size=50)
    for size in (1, 2, 5, 8):
        index = np.random.default_rng(size).permutation(50)[:size]
        total, seen = 0.0, []
        for rank in range(processes):
            team = object.__new__(Team)
            team.accelerator = Accelerator()
            team.accelerator.process_index = rank
            mine, factor = team.share(index)
            assert len(mine)
            seen += list(mine) if factor else []
            total += factor * values[mine].mean() / processes  # the libraries take the mean over processes
        assert sorted(seen) == sorted(index)
        assert total == pytest.approx(values[index].mean())


LEAVES = """
import atexit, os, sys, torch
def told():
    with open(f"{sys.argv[1]}-{os.environ['RANK']}", "w") as file:
        file.write(str(torch.distributed.is_initialized()))
atexit.register(told)  # handlers run in reverse order
from curerec.recommender import parallel
parallel.wait()
assert torch.distributed.is_initialized()
"""


@pytest.mark.soak
def test_processes_part_before_the_interpreter_ends(tmp_path):
    """Requests had ended by a signal after all their work: threads of gloo outlived the interpreter."""
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    launch(2, script, tmp_path / "joined")
    assert [(tmp_path / f"joined-{rank}").read_text() for rank in (0, 1)] == ["False", "False"]


if __name__ == "__main__":
    main(*sys.argv[1:])
