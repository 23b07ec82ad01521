"""The stored training table: what the served recommender was trained on, and the part that each row plays.

The split is stored, not drawn again: once rows are deleted, a new draw would put rows that the model was
trained on into the control set.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curerec.data import durable
from curerec.data.columns import codes_in
from curerec.data.edited import NEW, Edited, keeping, whole
from curerec.data.packed import open_packed, write_packed
from curerec.data.splits import HISTORY, examples
from curerec.errors import DataError, ModelError, RequestError, StorageError
from curerec.interactions import Interactions
from curerec.recommender import manifest
from curerec.records import Split

#: Part of a row, as a number in the column ``part``.
PARTS = ("unused", "train", "control", "valid", "test", "public", "new")
FORMAT, ABOUT = "curerec-table/1", "table.json"
RATINGS = "ratings.parquet"  # of the format before
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

        Rows that came in since the last training are in no history: the model never saw them there. Those
        held out are in none of a training or control example: what a retrain took up comes after them.
        """
        held = np.isin(self.part, [PARTS.index("valid"), PARTS.index("test")])
        made = {
            name: examples(
                self.data,
                np.flatnonzero(self.part == PARTS.index(name)),
                deleted=self.new | held if name in ("train", "control") else self.new,
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
        items = self.data.item_ids.filter(pa.array(self.data.rated))
        return {"users": frozenset(self.data.user_ids.to_pylist()), "items": frozenset(items.to_pylist())}

    def has(self, kind: str, entries: Sequence[Entry]) -> np.ndarray:
        """bool [n]: the table holds a row of this user, of this item, or this pair."""
        if kind == "interactions":
            return self.rows_of_pairs(entries) >= 0
        known, names = self._known[kind], [entry[0] for entry in entries]
        found = np.asarray([name in known for name in names], bool)
        if not found.all():  # in another Unicode form, perhaps
            found |= codes_in(pa.array(sorted(known), pa.string()), names) >= 0
        return found

    def rows_of_pairs(self, entries: Sequence[Entry]) -> np.ndarray:
        """Row of each (user, item), int64 [n]; -1 where there is none."""
        users = codes_in(self.data.user_ids, [entry[0] for entry in entries])
        return self.data.rows_of_pairs(users, codes_in(self.data.item_ids, [entry[1] for entry in entries]))

    def check(self, kind: str, entries: list[Entry], places: tuple[str, ...], source: str) -> None:
        """Refuse a request that names what is not there.

        Raises:
            RequestError: with the rows, never the ids.
        """
        bad = np.flatnonzero(~self.has(kind, entries)).tolist()
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
            found = self.rows_of_pairs(wanted)
        else:
            known = data.user_ids if kind == "users" else data.item_ids
            codes = codes_in(known, [entry[0] for entry in wanted])
            codes = codes[codes >= 0]
            found = data.rows_of_users(codes) if kind == "users" else data.rows_of_items(codes)
        mask[found[found >= 0]] = True
        return mask

    def without(self, deleted: np.ndarray, items: Iterable[str] = ()) -> Edited:
        """What the table is less the deleted rows, and less the titles of deleted items.

        Raises:
            RequestError: nothing would be left.
        """
        if deleted.all():
            raise RequestError(
                "the request deletes all data", where="request", mend="Remove the store instead"
            )
        return keeping(self.data, ~deleted, self.titles_without(items))

    def titles_without(self, items: Iterable[str]) -> pa.Table:
        """The catalogue less the titles of some items."""
        titles, gone = self.data.titles, list(items)
        if not gone:
            return titles
        left = np.ones(titles.num_rows, bool)
        codes = codes_in(self.data.item_ids, gone)  # also in another Unicode form, as rows are found
        left[codes[codes >= 0]] = False
        return titles.filter(pa.array(left))

    def of(self, edited: Edited) -> Table:
        """The table edited, in memory."""
        rows = np.concatenate([chunk["row"] for chunk in edited.chunks()])
        return replace(self, data=edited.in_memory(), part=self.parts_of(rows))

    def parts_of(self, rows: np.ndarray) -> np.ndarray:
        """Parts of rows of this table, int8 [n]; of those that come in (:data:`NEW`) ``new``."""
        return np.where(rows == NEW, np.int8(PARTS.index("new")), self.part[rows])

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
        public: bool [n_rows], rows that its base was pre-trained on.
    """
    part = np.where(public, np.int8(PARTS.index("public")), np.int8(0))
    for name in ("train", "control", "valid", "test"):
        part[getattr(split, name).target] = PARTS.index(name)
    return Table(data, part, split.train.places)


def save(table: Table, folder: Path, edited: Edited | None = None) -> str:
    """Write a table as ``folder/<content hash>``, whole or not at all, a piece at a time; returns the hash.

    Args:
        table: as it is.
        folder: of stored tables.
        edited: what it is to be; None: as it is.

    Raises:
        StorageError: the disk is full, ...
    """
    stage = folder / f"{durable.TEMPORARY}table"
    with durable.storing("stored table"):
        if stage.exists():
            shutil.rmtree(stage)
        stage.mkdir(mode=0o700)
        edited = whole(table.data) if edited is None else edited
        parts = (np.int8, lambda rows: table.parts_of(rows["row"]))
        try:
            write_packed(stage, edited, {"part": parts})
        except pa.ArrowException:
            mend = "Check the room on the disk and the permissions"
            raise StorageError("cannot be written", where="stored table", mend=mend) from None
        about = {"format": FORMAT, "history": table.history}
        (stage / ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")
    name = manifest.seal(stage, where="stored table")
    durable.publish(stage, folder / name)
    if stage.exists():  # the same table was there
        shutil.rmtree(stage)
    return name


def load(folder: Path, name: str) -> Table:
    """A stored table, after a check of every byte; its rows are mapped, and read where they are touched.

    Raises:
        DataError: it is not there or not what its name says.
    """
    place = folder / name
    try:
        manifest.check(place, name=name, where="stored table")
        if (place / RATINGS).exists():
            return _of_parquet(place)
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError
        part = np.load(place / "part.npy", mmap_mode="r", allow_pickle=False)
        return Table(open_packed(place), part, int(about["history"]))
    except (ModelError, DataError, OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        raise DataError(
            "is damaged or not there", where="stored table", mend="Restore it from a backup"
        ) from None


def _of_parquet(folder: Path) -> Table:
    """A table of a store that was made before tables were mapped."""
    rows, titles = pq.read_table(folder / RATINGS), pq.read_table(folder / "titles.parquet")
    kept = {k.decode(): v.decode() for k, v in (rows.schema.metadata or {}).items()}
    data = Interactions(
        rows.select(["user", "item", "rating", "time"]).replace_schema_metadata(None),
        titles,
        kept.get("name", "stored"),
        kept.get("source", "stored"),
    )
    history = int(kept.get("history", HISTORY))
    return Table(data, rows["part"].to_numpy().astype(np.int8), history)
