"""A tiny store whose stages are a quick stand-in: fixed bytes from the deleted rows, no torch."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from curerec.data.splits import per_user_split
from curerec.data.table import interactions
from curerec.interactions import Interactions
from curerec.reports.schema import SCHEMA
from curerec.requests import store as stores
from curerec.requests.audit import audit
from curerec.requests.ledger import Asked
from curerec.requests.policy import Policy
from curerec.requests.stages import Job
from curerec.requests.store import Store
from curerec.requests.table import Table, of_split

N_USERS, N_ITEMS = 40, 30
FIRST = "a" * 64  # what the first version says of its weights
CHECKS = (
    "something_changed",
    "membership",
    "distribution",
    "control_unseen",
    "all_reached",
    "utility",
    "calibration",
    "deleted_answers",
)


def made_data(n_users: int = N_USERS, *, prefix: str = "usr", title: str = "Title") -> Interactions:
    """Users with 20 ratings each."""
    rng = np.random.default_rng(0)
    users, items, ratings, times = [], [], [], []
    for u in range(n_users):
        for t, i in enumerate(rng.permutation(N_ITEMS)[:20]):
            users.append(f"{prefix}{u:03d}")
            items.append(f"itm{i}")
            ratings.append(float(rng.integers(1, 6)))
            times.append(1000 + t)
    titles = {f"itm{i}": f"{title} {i}" for i in range(N_ITEMS)}
    return interactions(users, items, ratings, times, titles, name="made", source="test")


def made_table(data: Interactions | None = None) -> Table:
    """Its table; the last four users are public, the one before them is not used."""
    data = data or made_data()
    n = len(data.users)
    split = per_user_split(data, users=np.arange(n - 5))
    return of_split(data, split, data.user_code >= n - 4)


def fill(folder: Path) -> dict[str, Any]:
    """A first version."""
    (folder / "adapter_model.safetensors").write_bytes(b"first version " * 400)
    (folder / "curerec.json").write_text(json.dumps({"weights_sha256": FIRST}) + "\n")
    return {"base": {"name": "made", "sha256": "0" * 64}}


def made_store(root: Path, *, data: Interactions | None = None, **policy: Any) -> Path:
    """A store with 40 users."""
    stores.create(root, made_table(data), fill, policy=Policy(**policy))
    return root


def users(*numbers: int) -> Asked:
    """A request of these users."""
    return Asked("users", tuple((f"usr{n:03d}",) for n in numbers))


class Stand:
    """An engine: what it writes depends on the version before, the deleted rows, method and seed alone.

    Class attributes steer all engines of a test: ``verified``, ``distance``, ``auc_drop``, ``fail`` (stage to
    raise in), ``wait_s`` (in each stage), ``calls`` (stages carried out, in this process).
    """

    verified: bool | None = True
    distance = 0.01
    auc_drop = 0.0
    fail: str | None = None
    error: BaseException | None = None
    wait_s = 0.0
    calls: list[str]

    def __init__(self, job: Job) -> None:
        self.job = job
        rows = np.flatnonzero(job.deleted)
        ids = [job.table.data.ratings[c].take(rows).to_pylist() for c in ("user", "item")]
        before = (job.folder / "adapter_model.safetensors").read_bytes()
        text = json.dumps([ids, job.method, job.seed]).encode()
        self.key = hashlib.sha256(before + text).digest()

    def _stage(self, name: str) -> None:
        type(self).calls.append(name)
        if self.wait_s:
            advance = self.job.reporter.stage(name)
            for k in range(5):
                time.sleep(self.wait_s / 5)
                advance(k + 1, 5)
        if self.fail == name:
            raise self.error or RuntimeError("made to fail")

    def circuit(self) -> dict[str, Any]:
        self._stage("circuit")
        return {"of": hashlib.sha256(self.key + b"circuit").hexdigest()}

    def groups(self, circuit: dict[str, Any]) -> dict[str, Any]:
        self._stage("groups")
        return {"of": hashlib.sha256(self.key + circuit["of"].encode()).hexdigest()}

    def update(self, circuit: dict[str, Any], groups: dict[str, Any], out: Path) -> dict[str, Any]:
        self._stage("update")
        seed = self.key + circuit["of"].encode() + groups["of"].encode()
        for name, blocks in (("adapter_model.safetensors", 128), ("tokenizer.json", 4)):
            with (out / name).open("wb") as file:
                for k in range(blocks):
                    file.write(hashlib.sha256(seed + name.encode() + k.to_bytes(4, "big")).digest() * 8)
                    if k % 16 == 0:
                        file.flush()
        (out / "curerec.json").write_text("{}\n")
        return {"steps": 3}

    def verdict(self, before: dict[str, dict[str, Any]], adapter: Path) -> dict[str, Any]:
        self._stage("verdict")
        assert (adapter / "adapter_model.safetensors").stat().st_size == 128 * 256
        checks = [
            {"name": name, "passed": self.verified, "value": 0.0, "limit": 1.0, "text": "text."}
            for name in CHECKS
        ]
        return {
            "algorithm": {"config_sha256": "1" * 64},
            "base": {"name": "made", "sha256": "0" * 64},
            "versions": {"made": "1"},
            "machine": {"device": "none"},
            "verdict": {"verified": self.verified, "checks": checks},
            "measurements": [
                {"name": "membership_auc", "value": 0.5, "low": 0.4, "high": 0.6, "n_forget": 9}
            ],
            "drift": {"distance": self.distance, "auc_drop": self.auc_drop},
            "report": {"schema": SCHEMA, "method": "cure", "metrics": {"original": {}, "cure": {}}},
        }


def stand(**values: Any) -> type[Stand]:
    """A fresh engine class, steered by these attributes."""
    return type("Steered", (Stand,), {"calls": [], **values})


def bytes_under(root: Path) -> bytes:
    """Everything that lies in a folder, names included."""
    parts = []
    for path in sorted(root.rglob("*")):
        parts.append(str(path.relative_to(root)).encode())
        if path.is_symlink():
            parts.append(os.readlink(path).encode())
        elif path.is_file():
            parts.append(path.read_bytes())
    return b"\0".join(parts)


def adapter_bytes(root: Path) -> bytes:
    """The served adapter."""
    return (root / "current" / "adapter_model.safetensors").read_bytes()


def states(root: Path) -> dict[str, int]:
    """Requests by state."""
    with Store(root) as store:
        return store.ledger.counts()


def predicates(store, action="deletion"):
    """What the chain says of actions of a kind."""
    return [json.loads(one.body)["predicate"] for one in store.links() if one.action == action]


def sound(root, **options):
    """The audit's findings are none."""
    found = audit(root, **options)
    assert not found.faults, found.faults
    return found
