"""A script or a command run by one process or by several that ``accelerate launch`` starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
FSDP = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
FSDP += ["--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(processes, *arguments, more=(), codes=(0,)):
    source = str(Path(sys.modules["curerec"].__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([source, str(TESTS)]), "OMP_NUM_THREADS": "1"}
    start = [sys.executable]
    if processes > 1:  # several processes on CPUs by torchrun: `--cpu` would ask for MPI
        env["ACCELERATE_USE_CPU"] = "true"
        start += [
            "-m",
            "accelerate.commands.launch",
            "--num_processes",
            str(processes),
            *(more or ["--multi_gpu"]),
        ]
        # What a user's own configuration of accelerate may say of precision must change nothing.
        start += ["--num_machines", "1", "--mixed_precision", "bf16", "--main_process_port", str(free_port())]
        start += ["--dynamo_backend", "no"]
    done = subprocess.run(
        [*start, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in codes, done.stderr[-3000:]
    return done
