"""The retain side of the circuit, taken in training or by one request of a recommender, for all that come.

Core circuit and contributions on D_c do not depend on what is to be forgotten, but for the examples of it
among them. They are kept with the rows that they are of: a circuit is taken again only if a request leaves
every pair of it as it is, of the contributions those examples that it leaves as they are. The graph that the
items of the corrupt prompts were drawn by is that of then, in which rows that are deleted now still
stood; no prompt shows any of them.

The files hold influence of the people in D_c and D_v and of the weights: whoever destroys a recommender has
its folder here to destroy as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from curerec.circuits.belonging import modules_with_units
from curerec.data import durable
from curerec.errors import ModelError, StorageError
from curerec.methods.task import Task
from curerec.recommender import parallel
from curerec.recommender.safety import check_safetensors
from curerec.recommender.stored_answers import about, found_in
from curerec.recommender.units import units_of
from curerec.records import Circuit, Examples
from curerec.source import source_digest

if TYPE_CHECKING:
    from curerec.methods.cure.method import CureConfig

LEAST = 0.75  # share of the wanted examples of D_c under which they are scored anew
ARRAYS = ("scores", "exact", "low", "high")
Arrays = dict[str, np.ndarray]


class RetainSide:
    """What of a recommender's retain side one request can take from an earlier one.

    Args:
        task: the request; ``task.retain_side`` is the folder.
        config: of CURE.
    """

    def __init__(self, task: Task, config: CureConfig) -> None:
        self.task, self.config = task, config

    def circuit(self) -> Circuit | None:
        """The core circuit, if the request leaves all its pairs as they are."""
        found = self._read("circuit", self._for_circuit)
        if found is None:
            return None
        arrays, said = found
        same = found_in(_examples(arrays), self.task.valid)
        rated = np.isin(arrays["items"], self.task.data.item_code[self.task.train_rows])
        if not same.all() or not (rated | (arrays["items"] < 0)).all():
            return None
        self._note("circuit")
        return _circuit(said, arrays)

    def keep_circuit(self, circuit: Circuit, examples: Examples, items: np.ndarray) -> None:
        """Keep it with the examples of its pairs, [pairs], and the items put into them, [pairs, K]."""
        if circuit.edges is not None:
            return
        plain = {k: v for k, v in asdict(replace(circuit, edges=None)).items() if k not in ARRAYS}
        arrays = {k: v for k in ARRAYS if (v := getattr(circuit, k)) is not None}
        arrays |= {**_rows(examples), "items": items}
        self._write("circuit", self._for_circuit, arrays, json.dumps(plain, default=lambda x: x.item()))

    @property
    def control(self) -> Examples:
        """D_c without the deleted targets: a later request may still use what was scored on the others."""
        return self.task.control.take(~self.task.deleted[self.task.control.target])

    def contributions(self, n_units: int) -> np.ndarray | None:
        """Contributions on the examples of D_c that the request leaves as they are, [n, n_units]."""
        found = self._read("contributions", self._for_contributions)
        if found is None:
            return None
        control, scores = self.control, found[0]["scores"]
        same = found_in(_examples(found[0]), control)
        if scores.shape != (len(same), n_units):
            return None
        if same.sum() < max(2, LEAST * min(self.config.control_size, len(control))):
            return None
        self._note("contributions")
        return scores[same]

    def keep_contributions(self, scores: np.ndarray, examples: Examples) -> None:
        """Keep them, [n, n_units], with their examples, [n]."""
        self._write("contributions", self._for_contributions, {**_rows(examples), "scores": scores}, "")

    @property
    def _for_circuit(self) -> dict[str, Any]:
        among = modules_with_units(self.task.original.model, self.config.granularity)
        said = self.config.model_dump(include={"pairs", "pair_pool", "faithfulness", "stable"})
        return {**said, "among": among}

    @property
    def _for_contributions(self) -> dict[str, Any]:
        return self.config.model_dump(include={"granularity", "path_steps", "control_size"})

    def _note(self, part: str) -> None:
        self.task.shared.setdefault("kept", []).append(part)

    def _key(self, config: dict[str, Any]) -> str:
        task = self.task
        weights = task.original.card["weights_sha256"]
        depends = {
            **about(weights, task.original, task.data),
            "config": config,
            "seed": task.seed,
            "code": source_digest(),  # a version number stays what it is while the code changes
        }
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    def _path(self, part: str) -> Path:
        assert self.task.retain_side is not None
        return self.task.retain_side / f"{part}.safetensors"

    def _read(self, part: str, config: dict[str, Any]) -> tuple[Arrays, str] | None:
        found = self._found(part, config)
        parallel.wait()  # all look before one writes
        return found

    def _found(self, part: str, config: dict[str, Any]) -> tuple[Arrays, str] | None:
        path = self._path(part)
        if not path.exists():
            return None
        try:
            check_safetensors(path, where="cache")
            with safe_open(path, framework="np") as file:
                said = file.metadata() or {}
                if said.get("key") != self._key(config):
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, said["part"]  # noqa: SIM118
        except (OSError, KeyError, ModelError, SafetensorError):
            return None

    def _write(self, part: str, config: dict[str, Any], arrays: Arrays, said: str) -> None:
        if not parallel.is_main():
            return
        path = self._path(part)
        content = save(
            {k: np.ascontiguousarray(v) for k, v in arrays.items()}, {"key": self._key(config), "part": said}
        )
        with contextlib.suppress(OSError, StorageError):  # the request does without
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write(path, content)


def kept_of(task: Task, config: CureConfig) -> tuple[str, ...]:
    """What of the retain side the request can take from an earlier one, without taking it.

    Args:
        task: the request.
        config: of CURE.

    Returns:
        Of ``circuit`` and ``contributions`` those that are there.
    """
    if task.retain_side is None:
        return ()
    side = RetainSide(replace(task, shared={}), config)  # what is noted there is no part of the request
    units = len(units_of(task.original.model, config.granularity).names)
    found = {"circuit": side.circuit(), "contributions": side.contributions(units)}
    return tuple(name for name, one in found.items() if one is not None)


def _rows(examples: Examples) -> Arrays:
    return {"target": examples.target, "history": examples.history}


def _examples(arrays: Arrays) -> Examples:
    return Examples(arrays["target"], arrays["history"], np.zeros(len(arrays["target"]), np.int8))


def _circuit(said: str, arrays: Arrays) -> Circuit:
    values = json.loads(said)
    for name in ("modules", "core", "minimality", "notes", "order"):
        values[name] = tuple(values[name])
    values["curve"] = tuple((size, f) for size, f in values["curve"])
    return Circuit(**values, **{k: arrays.get(k) for k in ARRAYS})  # type: ignore[arg-type]
