"""Two processes end where one ends: data parallel and, where the machine can, with shared-out parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from curerec.recommender.parallel import Team
from made_processes import FSDP, launch

SCRIPT = """
import sys, torch
from safetensors.torch import save_file
from curerec.recommender import parallel
from curerec.recommender.tune import TuneConfig, tune
from made_models import made_model, made_prompts, with_lora
torch.set_num_threads(1)
out, lora, optimizer = sys.argv[1], sys.argv[2] == "lora", sys.argv[3]
lr = 1e-2 if optimizer == "sgd" else 1e-3
prompts, encoder = made_prompts(21)
model = made_model(len(encoder.tokenizer))
model = with_lora(model) if lora else model.requires_grad_(True)
finish = parallel.Team.finish

def watched(team, params):
    kinds = {type(p).__name__ for p in params}
    sys.stdout.write(f"TYPE {type(team.wrapped).__name__} {sorted(kinds)}\\n")
    finish(team, params)

parallel.Team.finish = watched
config = TuneConfig(epochs=2, batch_size=5, lr=lr, optimizer=optimizer, ema=0.5)
tune(model, prompts, encoder.answers, config, seed=0)
state = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
save_file(state, f"{out}-{parallel.count()}-{torch.distributed.get_rank() if parallel.count() > 1 else 0}")
"""


@pytest.mark.soak
@pytest.mark.parametrize(
    ("way", "kind", "optimizer"),
    [("ddp", "full", "sgd"), ("ddp", "lora", "adamw"), ("fsdp2", "full", "sgd"), ("fsdp2", "lora", "sgd")],
)
def test_two_processes_train_what_one_trains(tmp_path, way, kind, optimizer):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launch(1, script, tmp_path / "w", kind, optimizer)
    seen = launch(2, script, tmp_path / "w", kind, optimizer, more=FSDP if way == "fsdp2" else ())
    kind_of = "FSDP_Answering ['DTensor']" if way == "fsdp2" else "DistributedDataParallel ['Parameter']"
    assert seen.stdout.count(f"TYPE {kind_of}") == 2, seen.stdout
    one, *two = (load_file(tmp_path / name) for name in ("w-1-0", "w-2-0", "w-2-1"))
    for other in two:
        assert other.keys() == one.keys()
        for name, value in one.items():
            # AdamW turns a rounding error of a gradient into a step where there is no gradient to speak of.
            atol = 1e-5 if optimizer == "sgd" else 1e-4
            torch.testing.assert_close(other[name], value, atol=atol, rtol=0)


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
