"""Deletion requests as files: csv with a header, or JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
import string
from pathlib import Path
from typing import Any

from curerec.errors import RequestError
from curerec.records import ForgetRequest

MAX_BYTES = 64 << 20  # so that a wrong file is refused before it fills the memory
MEND = 'Write a csv with the header `user`, `item` or `user,item`, or JSON {"kind": "users", "ids": [...]}'

EXTRAS = "; a date and a reason are options of `curerec request add`"


def read_request(path: str | Path) -> ForgetRequest:
    """A request from a file.

    A csv has the header ``user`` (delete users), ``item`` (delete items) or ``user,item`` (delete
    interactions), one a row. JSON has ``kind`` and ``ids``. The same id twice counts once.

    Raises:
        RequestError: no such file, another header, a ragged row (by its number), another key, or nothing in
            it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            # In pieces: asked for all at once, Python sets that much memory aside.
            raw = b"".join(itertools.islice(iter(lambda: file.read(1 << 20), b""), (MAX_BYTES >> 20) + 1))
        if len(raw) > MAX_BYTES:
            what = f"is larger than {MAX_BYTES >> 20} MiB"
            raise RequestError(what, where=path.name, mend="Split it into several requests")
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise RequestError(f"cannot be read ({reason})", where=path.name, mend=MEND) from None
    of_kind = from_json if path.suffix.lower() == ".json" else _from_csv
    kind, placed = of_kind(text, path.name)
    if not placed:
        raise RequestError("names nothing to delete", where=path.name, mend=MEND)
    first = {entry: place for place, entry in reversed(placed)}
    ids = tuple(dict.fromkeys(entry for _, entry in placed))
    return ForgetRequest(kind, ids, source=path.name, places=tuple(first[entry] for entry in ids))


def write_request(request: ForgetRequest, path: str | Path) -> Path:
    """Write a request as csv, readable by :func:`read_request`."""
    path = Path(path)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        header = {"users": ["user"], "items": ["item"], "interactions": ["user", "item"]}[request.kind]
        writer.writerow(header)
        writer.writerows(list(i) if isinstance(i, tuple) else [i] for i in request.ids)
    return path


def _from_csv(text: str, name: str) -> tuple[Any, list[tuple[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    kinds = {("user",): "users", ("item",): "items", ("user", "item"): "interactions"}
    header: tuple[str, ...] | None = None
    placed: list[tuple[str, Any]] = []
    try:
        for row in reader:
            # As the ids of the data are: a no-break space is part of an id there, and names another user.
            cells = tuple(cell.strip(string.whitespace) for cell in row)
            if not row:
                continue
            if header is None:
                header = cells
                if header not in kinds:
                    raise RequestError("has no header that says what is to be deleted", where=name, mend=MEND)
                continue
            if len(cells) != len(header) or not all(cells):
                what = f"row {reader.line_num} does not have {len(header)} filled column(s)"
                raise RequestError(what, where=name, mend=MEND)
            placed.append((f"row {reader.line_num}", cells if len(header) == 2 else cells[0]))
    except csv.Error:  # its text may quote the row
        raise RequestError(f"row {reader.line_num} is not csv", where=name, mend=MEND) from None
    return kinds[header or ("user",)], placed


def from_json(text: str, name: str, *, beside: tuple[str, ...] = ()) -> tuple[Any, list[tuple[str, Any]]]:
    """Kind and entries of a request in JSON, each with its place in it.

    Args:
        text: of the request.
        name: for messages.
        beside: keys that it may have beside ``kind`` and ``ids``; the caller reads them.

    Raises:
        RequestError: it is none, or holds a key twice, or one that nobody would read.
    """
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise RequestError("is not JSON, or holds a key twice", where=name, mend=MEND) from None
    if not isinstance(content, dict) or content.get("kind") not in ("users", "items", "interactions"):
        raise RequestError("does not say its kind", where=name, mend=MEND)
    known = ("kind", "ids", *beside)
    if unknown := set(content) - set(known):  # a due date, or more to delete, that would go unnoticed
        mend = f"Known are {', '.join(known)}" + (EXTRAS if not beside else "")
        raise RequestError(f"has {len(unknown)} unknown key(s)", where=name, mend=mend)
    ids, pairs = content.get("ids"), content["kind"] == "interactions"
    if not isinstance(ids, list):
        raise RequestError("its ids are not a list", where=name, mend=MEND)
    for number, entry in enumerate(ids, start=1):
        if not _fits(entry, pairs):
            what = "a list of user and item" if pairs else "a text or a whole number"
            raise RequestError(f"entry {number} of its ids is not {what}", where=name, mend=MEND)
    placed = [(f"entry {k}", tuple(map(bare, i)) if pairs else bare(i)) for k, i in enumerate(ids, start=1)]
    return content["kind"], placed


def bare(entry: Any) -> str:
    """An id as text without blanks around it, as those of the data are."""
    return str(entry).strip(string.whitespace)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of two lists of ids Python would take the last, and nobody be told of the first."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError
    return dict(pairs)


def _fits(entry: Any, pair: bool) -> bool:
    if pair:
        return isinstance(entry, list) and len(entry) == 2 and all(_fits(e, False) for e in entry)
    if isinstance(entry, str):
        # Half of a pair of surrogates, as JSON may escape it, is no text and in no data.
        return bare(entry) != "" and not any("\ud800" <= letter <= "\udfff" for letter in entry)
    return isinstance(entry, int) and not isinstance(entry, bool)
