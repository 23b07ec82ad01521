"""A few points of a training, kept beside the recommender: what single examples wrote can be read off them.

A waypoint holds the trained weights as they were after a part of the steps, and the root of AdamW's second
moment there. With them the gradient of any examples becomes the change that these examples made
(:mod:`curerec.methods.written`), whoever they turn out to be. The file lies in the recommender's folder, so
it is copied, sealed, quarantined and destroyed with the weights; like them it holds influence of every
training example. A version that a request made has none: the waypoints of its forebear knew who was deleted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from curerec.errors import ModelError
from curerec.recommender.safety import check_safetensors, metadata_of, weights_digest
from curerec.records import Recommender

FILE = "waypoints.curerec"  # not *.safetensors: servers load every one of those as weights
DIGEST = "waypoints_sha256"  # its sha256, in the card

PARTS = ("weights", "scale")  # of a waypoint, in its order

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Waypoint:
    """A point of a training.

    Attributes:
        mass: sum of the rates of the steps that it stands for, those nearest to it, each times the share in
            which the weights that training ends with hold the step (all of it without a running average).
        weights: trained parameters, by name.
        scale: what AdamW divides a gradient by there, by name; never less than at a later waypoint, and 0
            where no gradient had come by then.
    """

    mass: float
    weights: Tensors
    scale: Tensors


class Recorder:
    """Takes waypoints while :func:`curerec.recommender.tune.optimise` runs.

    Args:
        shares: of the steps after which one is taken, ascending, in (0, 1].

    Attributes:
        names: of the parameters, in the optimiser's order; whoever trains them says so.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self.shares = tuple(shares)
        self.names: list[str] = []
        self.steps: list[int] = []
        self.clips: list[float] = []
        self.taken: list[tuple[Tensors, Tensors]] = []
        self.rates: np.ndarray = np.zeros(0)

    def begin(self, rates: np.ndarray, held: np.ndarray) -> None:
        """Say which steps there will be.

        Args:
            rates: of each step, [steps].
            held: share in which the final weights hold each step, [steps].
        """
        self.rates = rates * held
        self.steps = [max(1, round(share * len(rates))) for share in self.shares]

    @torch.no_grad()
    def __call__(self, done: int, optimizer: torch.optim.Optimizer, clip: torch.Tensor) -> None:
        """Take a waypoint if it is time.

        Args:
            done: steps done.
            optimizer: AdamW over the parameters.
            clip: norm of the gradient as a multiple of what it may be.
        """
        for _ in range(self.steps.count(done)):
            group = optimizer.param_groups[0]
            moments = 1 - group["betas"][1] ** done
            weights, scale = {}, {}
            for name, p in zip(self.names, group["params"], strict=True):
                weights[name] = p.detach().cpu().clone()
                second = optimizer.state[p].get("exp_avg_sq", torch.zeros_like(p))
                scale[name] = (second.float() / moments).sqrt().cpu()
            self.clips.append(1 / max(1.0, float(clip)))
            self.taken.append((weights, scale))

    def waypoints(self) -> list[Waypoint]:
        """What was taken; nothing where several processes trained."""
        if not self.taken:
            return []
        at = np.asarray(self.steps)
        nearest = np.abs(np.arange(1, len(self.rates) + 1)[:, None] - at).argmin(1)
        out: list[Waypoint] = []
        later: Tensors = {}
        for k in reversed(range(len(self.taken))):
            weights, scale = self.taken[k]
            # A moment that has just begun is small by chance, and what is divided by it large.
            later = {n: torch.maximum(s, later[n]) if later else s for n, s in scale.items()}
            out.append(Waypoint(float(self.rates[nearest == k].sum()) * self.clips[k], weights, later))
        return out[::-1]


@dataclass(frozen=True)
class StoredWaypoints:
    """The waypoints of a saved recommender, read when they are asked for.

    Attributes:
        model: beside which they are kept; of another version they say nothing.
        path: of the file.
        digest: its sha256, from the card.
        weights: digest of the recommender's weights, from the card.
        count: of the waypoints.
    """

    model: Any
    path: Path
    digest: str
    weights: str
    count: int

    def read(self) -> list[Waypoint] | None:
        """The waypoints; None where the file is not the one that the card names, or not of these weights."""
        trained = {n: p.shape for n, p in self.model.named_parameters(remove_duplicate=False)}
        try:
            check_safetensors(self.path, where=self.path.name)
            content = self.path.read_bytes()
            about = metadata_of(content)
            if hashlib.sha256(content).hexdigest() != self.digest or about["weights"] != self.weights:
                return None
            masses, tensors = [float(mass) for mass in json.loads(about["masses"])], load(content)
        except (OSError, ModelError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
            return None
        names = sorted({key.split(".", 2)[-1] for key in tensors})
        wanted = {_key(k, part, name) for k in range(len(masses)) for part in PARTS for name in names}
        if set(tensors) != wanted:
            return None
        if any(tensor.shape != trained.get(key.split(".", 2)[2]) for key, tensor in tensors.items()):
            return None
        return [
            Waypoint(mass, *({name: tensors[_key(k, part, name)] for name in names} for part in PARTS))
            for k, mass in enumerate(masses)
        ]


def _key(number: int, part: str, name: str) -> str:
    """Of a tensor in the file."""
    return f"{number}.{part}.{name}"


def write(folder: Path, waypoints: Sequence[Waypoint]) -> str:
    """Put waypoints beside weights that are there already; returns the file's sha256, for the card."""
    tensors = {
        _key(k, part, name): tensor.contiguous()
        for k, one in enumerate(waypoints)
        for part in PARTS
        for name, tensor in getattr(one, part).items()
    }
    about = {"masses": json.dumps([one.mass for one in waypoints]), "weights": weights_digest(folder)}
    content = save(tensors, about)
    (folder / FILE).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def stored(recommender: Recommender) -> StoredWaypoints | None:
    """The waypoints beside a loaded recommender, if its card names any."""
    digest, folder = recommender.card.get(DIGEST), recommender.path
    if folder is None or not isinstance(digest, str):
        return None
    asked = recommender.card["recipe"].get("model", {}).get("waypoints") or ()
    weights = recommender.card["weights_sha256"]
    return StoredWaypoints(recommender.model, Path(folder) / FILE, digest, weights, len(asked))
