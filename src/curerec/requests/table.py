"""The stored training table: what the served recommender was trained on, and the part that each row plays.

The split is stored, not drawn again: once rows are deleted, a new draw would put rows that the model was
trained on into the control set.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curerec.data import durable
from curerec.data.columns import codes_in
from curerec.data.splits import HISTORY, examples
from curerec.data.table import interactions
from curerec.errors import DataError, ModelError, RequestError, StorageError
from curerec.interactions import Interactions
from curerec.recommender import manifest
from curerec.records import Split

#: Part of a row, as a number in the column ``part``.
PARTS = ("unused", "train", "control", "valid", "test", "public", "new")
#: Columns as they are stored: files of earlier versions have no dictionaries.
PLAIN = pa.schema({"user": pa.string(), "item": pa.string(), "rating": pa.float64(), "time": pa.int64()})
RATINGS, TITLES = "ratings.parquet", "titles.parquet"
Entry = tuple[str, ...]  # (user,), (item,) or (user, item)
NOUNS = {"users": "user", "items": "item", "interactions": "interaction"}


@dataclass(frozen=True)
class Table:
    """Interactions and the part of each row, int8 [n_rows] into :data:`PARTS`; how many a history shows."""

    data: Interactions
    part: np.ndarray
    history: int = HISTORY

    @cached_property
    def split(self) -> Split:
        """The split by the stored parts; histories are built from what is in the table now.

        Rows that came in since the last training are in no history: the model never saw them there.
        """
        made = {
            name: examples(
                self.data,
                np.flatnonzero(self.part == PARTS.index(name)),
                deleted=self.new,
                history=self.history,
            )
            for name in ("train", "control", "valid", "test")
        }
        return Split(**made, kind="stored", seed=0)

    @cached_property
    def trained(self) -> np.ndarray:
        """bool [n_rows]: the row is the target or in a history of a training example."""
        mask = self.part == PARTS.index("train")
        history = self.split.train.history
        mask[history[history >= 0]] = True
        return mask

    @cached_property
    def new(self) -> np.ndarray:
        """bool [n_rows]: it came in after the model was trained; the next retrain takes it up."""
        return self.part == PARTS.index("new")

    @cached_property
    def public(self) -> np.ndarray:
        """bool [n_rows]: the base model was pre-trained on it."""
        return self.part == PARTS.index("public")

    @cached_property
    def _known(self) -> dict[str, frozenset[str]]:
        return {
            "users": frozenset(self.data.users.tolist()),
            "items": frozenset(self.data.ratings["item"].unique().to_pylist()),
        }

    @cached_property
    def _pairs(self) -> frozenset[tuple[str, str]]:
        ratings = self.data.ratings
        return frozenset(zip(ratings["user"].to_pylist(), ratings["item"].to_pylist(), strict=True))

    def has(self, kind: str, entry: Entry) -> bool:
        """Whether the table holds a row of this user, of this item, or this pair."""
        if kind == "interactions":
            return entry in self._pairs
        return entry[0] in self._known[kind]

    def check(self, kind: str, entries: list[Entry], places: tuple[str, ...], source: str) -> None:
        """Refuse a request that names what is not there.

        Raises:
            RequestError: with the rows, never the ids.
        """
        bad = [k for k, entry in enumerate(entries) if not self.has(kind, entry)]
        if bad:
            named = ", ".join(places[k] if k < len(places) else f"entry {k + 1}" for k in bad[:10])
            more = ", ..." if len(bad) > 10 else ""
            raise RequestError(
                f"{len(bad)} {NOUNS[kind]}(s) of the request are not in the data ({named}{more})",
                where=source,
                mend="Check the ids; what an earlier request deleted cannot be deleted again",
            )

    def rows(self, kind: str, entries: Iterable[Entry]) -> np.ndarray:
        """bool [n_rows]: rows of these entries; unknown entries have none."""
        data, wanted = self.data, list(entries)
        mask = np.zeros(len(data), bool)
        if kind == "interactions":
            users = codes_in(data.user_ids, [entry[0] for entry in wanted])
            found = data.rows_of_pairs(users, codes_in(data.item_ids, [entry[1] for entry in wanted]))
        else:
            known = data.user_ids if kind == "users" else data.item_ids
            codes = codes_in(known, [entry[0] for entry in wanted])
            codes = codes[codes >= 0]
            found = data.rows_of_users(codes) if kind == "users" else data.rows_of_items(codes)
        mask[found[found >= 0]] = True
        return mask

    def without(self, deleted: np.ndarray, items: Iterable[str] = ()) -> Table:
        """The table less the deleted rows, and less the titles of deleted items.

        Raises:
            RequestError: nothing would be left.
        """
        if deleted.all():
            raise RequestError(
                "the request deletes all data", where="request", mend="Remove the store instead"
            )
        titles = self.data.titles
        gone = pa.array(list(items), pa.string())
        if len(gone):
            titles = titles.filter(pc.invert(pc.is_in(titles["item"], value_set=gone)))
        return replace(self, data=self.data.keeping(~deleted, titles), part=self.part[~deleted])

    def with_rows(self, new: Interactions) -> Table:
        """The table and new rows, whose part is ``new`` until a retrain; titles come along.

        Raises:
            DataError: a pair is there already.
        """
        old, more = self.data, new
        known = set(old.titles["item"].to_pylist())
        fresh = [t not in known for t in more.titles["item"].to_pylist()]
        titles = pa.concat_tables([old.titles, more.titles.filter(pa.array(fresh))])
        one, two = old.ratings.cast(PLAIN), more.ratings.cast(PLAIN)
        columns = {name: pa.chunked_array([*one[name].chunks, *two[name].chunks]) for name in PLAIN.names}
        data = interactions(
            columns["user"], columns["item"], columns["rating"], columns["time"].to_numpy(), titles,
            name=old.name, source=old.source,
        )  # fmt: skip
        pairs = zip(old.ratings["user"].to_pylist(), old.ratings["item"].to_pylist(), strict=True)
        part = dict(zip(pairs, self.part.tolist(), strict=True))
        rows = zip(data.ratings["user"].to_pylist(), data.ratings["item"].to_pylist(), strict=True)
        codes = np.asarray([part.get(pair, PARTS.index("new")) for pair in rows], np.int8)
        return replace(self, data=data, part=codes)

    def taken_up(self, *, control_share: float, seed: int) -> Table:
        """The table as a retrain takes it: new rows become training or control rows."""
        new = np.flatnonzero(self.new)
        part = self.part.copy()
        control = np.random.default_rng([seed, 41]).random(len(new)) < control_share
        part[new] = np.where(control, PARTS.index("control"), PARTS.index("train"))
        return replace(self, part=part)


def of_split(data: Interactions, split: Split, public: np.ndarray) -> Table:
    """The table of a recommender as it was trained.

    Args:
        data: its interactions.
        split: of its training.
        public: codes of the users that only its base saw.
    """
    part = np.zeros(len(data), np.int8)
    part[np.isin(data.user_code, public)] = PARTS.index("public")
    for name in ("train", "control", "valid", "test"):
        part[getattr(split, name).target] = PARTS.index(name)
    return Table(data, part, split.train.places)


def save(table: Table, folder: Path) -> str:
    """Write a table as ``folder/<content hash>``, whole or not at all; returns the hash.

    Raises:
        StorageError: the disk is full, ...
    """
    stage = folder / f"{durable.TEMPORARY}table"
    with durable.storing("stored table"):
        if stage.exists():
            shutil.rmtree(stage)
        stage.mkdir(mode=0o700)
        try:
            rows = table.data.ratings.cast(PLAIN).append_column("part", pa.array(table.part, pa.int8()))
            kept = {"name": table.data.name, "source": table.data.source}
            if table.history != HISTORY:  # tables of earlier versions, which have none, keep their names
                kept["history"] = str(table.history)
            # New buffers: a filtered table would drag the dictionary of the old one along.
            rows = pa.Table.from_pydict(rows.to_pydict(), rows.schema).replace_schema_metadata(kept)
            pq.write_table(rows, stage / RATINGS)
            pq.write_table(pa.Table.from_pydict(table.data.titles.to_pydict()), stage / TITLES)
        except pa.ArrowException:
            raise StorageError("cannot be written", where="stored table") from None
    name = manifest.seal(stage, where="stored table")
    durable.publish(stage, folder / name)
    if stage.exists():  # the same table was there
        shutil.rmtree(stage)
    return name


def load(folder: Path, name: str) -> Table:
    """A stored table, after a check of every byte.

    Raises:
        DataError: it is not there or not what its name says.
    """
    try:
        manifest.check(folder / name, name=name, where="stored table")
        rows = pq.read_table(folder / name / RATINGS)
        titles = pq.read_table(folder / name / TITLES)
    except (ModelError, OSError, pa.ArrowException):
        raise DataError(
            "is damaged or not there", where="stored table", mend="Restore it from a backup"
        ) from None
    kept = {k.decode(): v.decode() for k, v in (rows.schema.metadata or {}).items()}
    data = Interactions(
        rows.select(["user", "item", "rating", "time"]).replace_schema_metadata(None),
        titles,
        kept.get("name", "stored"),
        kept.get("source", "stored"),
    )
    history = int(kept.get("history", HISTORY))
    return Table(data, rows["part"].to_numpy().astype(np.int8), history)
