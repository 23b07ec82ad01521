"""A frozen base that no process holds whole: each keeps a part of every product's weights.

What is large under an adapter are the frozen weights of the layers' products. FSDP2 cuts each of them into as
many parts as there are processes and puts it together for the moment in which it is used, forward and
backward. Adapter, embedding and norms stay whole in every process, so that scores, groups and rules see
what they see with one. Every process must come to the same passes in the same order.
"""

from __future__ import annotations

from typing import Any

import torch

from curerec.errors import ConfigError
from curerec.recommender import parallel
from curerec.recommender.families import family_of

FSDP_HOOKS = 2  # of a spread module: one before its pass, one after
PRODUCTS = ("Linear", "Conv1D")  # names of the classes that multiply by a weight


def is_spread(module: Any) -> bool:
    """Whether a module's weights are cut into parts."""
    return getattr(module, "_spread", False)


def has_spread(model: Any) -> bool:
    """Whether any product of a model is cut into parts."""
    return any(is_spread(m) for m in model.modules())


def listened_to(module: Any) -> bool:
    """Whether anybody but FSDP listens to a module or changes what it computes."""
    hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return hooks > (FSDP_HOOKS if is_spread(module) else 0)


def spread_base(model: Any, device: torch.device) -> int:
    """Share out the frozen products of a model's layers among the processes, in place.

    They move to the device one by one, cut on arrival: the base needs to fit into main memory, not onto a
    device. From then on all processes make the same passes (:func:`.parallel.keep_in_step`).

    Args:
        model: with an adapter, the same in all processes; on the CPU or the device.
        device: where this process computes.

    Returns:
        How many modules were cut.

    Raises:
        ConfigError: nothing is frozen under an adapter, or it is kept in few bits.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    frozen = []
    for layer in family_of(model).layer_list(model):
        for module in layer.modules():
            own = list(module.parameters(recurse=False))
            if own and type(module).__name__ in PRODUCTS and not any(p.requires_grad for p in own):
                frozen.append(module)
    adapter = {id(m) for name, m in model.named_modules() if "lora_" in name}
    frozen = [m for m in frozen if id(m) not in adapter]
    if not hasattr(model, "peft_config") or not frozen:
        raise ConfigError(
            "only weights that are frozen under an adapter can be shared out: circuit, groups and rules look "
            "at the others whole",
            where="--use_fsdp",
            mend="Start it without --use_fsdp, or train the recommender with model.kind: lora and "
            "model.base_bits: 16",
        )
    parallel.joined()
    cut = {id(p) for m in frozen for p in m.parameters(recurse=False)}
    for p in model.parameters():
        if id(p) not in cut:
            p.data = p.data.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    mesh = init_device_mesh(device.type, (parallel.count(),))
    for module in frozen:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        module._spread = True
        # Put together once outside of inference mode: what was made inside cannot be differentiated through.
        module.unshard()
        module.reshard()
    parallel.keep_in_step()
    return len(frozen)
