"""What the examples of a request wrote into each weight while they were trained on.

AdamW moves a weight by the rate times a mean gradient over a root mean square. Given the latter, a step is
the sum of what its examples add, so the change by a training is the sum of what each example wrote along the
way, and what D_f wrote is its gradients, at the weights that training passed, over what AdamW divided by
there. Some waypoints say it nearly as well as all steps do: what two tell has a cosine of .8 to .9 with the
exact sum (docs/experiments.md, "What D_f wrote").

It is not what a retrain lacks: without D_f the gradients of D_r would have been others, too. But it is known
from elsewhere than the forget gradient at theta_o, and its errors are others.
"""

from __future__ import annotations

import numpy as np
import torch

from curerec.methods.forget_objective import mean_gradient
from curerec.methods.loop import free, store, tuned_names
from curerec.methods.rules import Gradients
from curerec.methods.task import Task
from curerec.recommender.score import answer_logits, device_of, to_batch

EPS = 1e-8  # AdamW's


def written(task: Task, *, size: int) -> Gradients | None:
    """What D_f wrote into each weight, by parameter name; None where no waypoints were kept.

    ``dW_f = - sum over waypoints k of mass_k |D_f| / n gradient_k / scale_k``, the gradient that of D_f's
    mean cross-entropy at the weights of the waypoint, n the training examples, mass and scale those of
    :class:`curerec.recommender.waypoints.Waypoint`. Made once a request.

    Args:
        task: the request.
        size: at most so many of D_f are passed.

    Source: this project's own. Taking off what batches wrote is amnesiac unlearning (Graves, Nagisetty and
    Ganesh 2021, arXiv 2010.10981), which keeps every step of the batches concerned; gradients at some
    checkpoints in place of all steps are TracIn (Pruthi et al. 2020, arXiv 2002.08484).
    """
    if "written" not in task.shared:
        task.shared["written"] = _written(task, size)
    found: Gradients | None = task.shared["written"]
    return found


def _written(task: Task, size: int) -> Gradients | None:
    passed = task.waypoints and task.waypoints.read()
    if not passed:
        return None
    prompts = task.forget_prompts.take(task.sample_index(len(task.forget), size, 77))
    model = task.copy_of_model()
    device, names = device_of(model), tuned_names(model)
    params = free(model, names)
    if any(set(names) - set(one.weights) for one in passed):
        return None  # of another training
    label = torch.from_numpy(prompts.label.astype(np.int64)).to(device)
    share = len(task.forget) / (len(task.forget) + len(task.retain))

    def loss(index: np.ndarray) -> torch.Tensor:
        ids, last = to_batch(prompts, index, device)
        logits = answer_logits(model, ids, last, task.answers, lean=True, runtime=task.runtime)
        return torch.nn.functional.cross_entropy(logits, label[index])

    out = {name: torch.zeros_like(p, requires_grad=False) for name, p in zip(names, params, strict=True)}
    for one in passed:
        store(params, [one.weights[name].to(device) for name in names])
        gradient, _ = mean_gradient(loss, prompts, model, params, runtime=task.runtime)
        for name, g in zip(names, gradient, strict=True):
            scale = one.scale[name].to(g)
            # Where no gradient had come by then nothing was written that it could stand for.
            out[name] -= torch.where(scale > 0, one.mass * share * g / (scale + EPS), 0.0)
    return out
