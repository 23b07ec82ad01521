"""Unlearning methods by name: one folder and one line here each."""

from collections.abc import Callable
from typing import Any

from curerec.methods.cure import CureConfig, cure
from curerec.methods.grad_ascent import ga_kl
from curerec.methods.npo import npo_uniform
from curerec.methods.random_modules import random_modules
from curerec.methods.retrain import retrain
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig
from curerec.records import Outcome

Run = Callable[[Task, Any], Outcome]

#: Name -> (function, its configuration class or None).
METHODS: dict[str, tuple[Run, type | None]] = {
    "cure": (cure, CureConfig),
    "random_modules": (random_modules, CureConfig),
    "npo": (npo_uniform, UnlearnConfig),
    "ga_kl": (ga_kl, UnlearnConfig),
    "retrain": (retrain, None),
}

__all__ = ["METHODS", "CureConfig", "Task", "UnlearnConfig"]
