"""Deletion requests as files: csv with a header, or JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from curerec.errors import RequestError
from curerec.records import ForgetRequest

MEND = 'Write a csv with the header `user`, `item` or `user,item`, or JSON {"kind": "users", "ids": [...]}'


def read_request(path: str | Path) -> ForgetRequest:
    """A request from a file.

    A csv has the header ``user`` (delete users), ``item`` (delete items) or ``user,item`` (delete
    interactions), one a row. JSON has ``kind`` and ``ids``. The same id twice counts once.

    Raises:
        RequestError: no such file, another header, a ragged row (by its number), or nothing in it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise RequestError(f"cannot be read ({reason})", where=path.name, mend=MEND) from None
    kind, ids = _from_json(text, path.name) if path.suffix == ".json" else _from_csv(text, path.name)
    if not ids:
        raise RequestError("names nothing to delete", where=path.name, mend=MEND)
    return ForgetRequest(kind, tuple(dict.fromkeys(ids)))


def write_request(request: ForgetRequest, path: str | Path) -> Path:
    """Write a request as csv, readable by :func:`read_request`."""
    path = Path(path)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        header = {"users": ["user"], "items": ["item"], "interactions": ["user", "item"]}[request.kind]
        writer.writerow(header)
        writer.writerows(list(i) if isinstance(i, tuple) else [i] for i in request.ids)
    return path


def _from_csv(text: str, name: str) -> tuple[Any, list[Any]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    header = [cell.strip() for cell in rows[0]] if rows else []
    kinds = {("user",): "users", ("item",): "items", ("user", "item"): "interactions"}
    if tuple(header) not in kinds:
        raise RequestError("has no header that says what is to be deleted", where=name, mend=MEND)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header) or not all(cell.strip() for cell in row):
            raise RequestError(
                f"row {number} does not have {len(header)} filled column(s)", where=name, mend=MEND
            )
    cells = [tuple(cell.strip() for cell in row) for row in rows[1:]]
    return kinds[tuple(header)], [c if len(header) == 2 else c[0] for c in cells]


def _from_json(text: str, name: str) -> tuple[Any, list[Any]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("is not JSON", where=name, mend=MEND) from None
    if not isinstance(content, dict) or content.get("kind") not in ("users", "items", "interactions"):
        raise RequestError("does not say its kind", where=name, mend=MEND)
    ids = content.get("ids")
    pairs = content["kind"] == "interactions"
    if not isinstance(ids, list) or any(not _fits(i, pairs) for i in ids):
        raise RequestError("its ids are not a list of ids", where=name, mend=MEND)
    return content["kind"], [tuple(map(str, i)) if pairs else str(i) for i in ids]


def _fits(entry: Any, pair: bool) -> bool:
    if pair:
        return isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str | int) for e in entry)
    return isinstance(entry, str | int) and not isinstance(entry, bool)
