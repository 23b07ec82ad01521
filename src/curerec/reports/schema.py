"""The record of one unlearning run: what `record.json` holds, and how it is read and written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from curerec.errors import DataError
from curerec.reports.files import replace_file
from curerec.reports.parts import (
    CircuitPart,
    Cost,
    Count,
    Dataset,
    GroupsPart,
    Metrics,
    Model,
    Number,
    Part,
    Request,
    Split,
    Text,
    Update,
    Verdict,
)

SCHEMA = "curerec-record/2"

# Keys of free-form dicts under which a config could name people; their values never reach a record.
_IDS = re.compile(r"^((user|item|forget)_ids?|ids|users|forget_users)$")


class Record(Part):
    """Everything a report is made of; any value may be None, its reason under its path in ``missing``.

    Attributes:
        method: name of the method whose outcome the record is about: a key of ``metrics``, beside
            ``original`` and whatever else was measured (``retrain``, ``retrain_2``, ...: references).
    """

    schema_version: Literal["curerec-record/2"] = Field(alias="schema")
    method: str
    created: Text = None
    seed: Count = None
    dataset: Dataset = Dataset()
    model: Model = Model()
    request: Request = Request()
    split: Split = Split()
    metrics: dict[str, Metrics | None]
    floor_jsd: Number = None
    ceiling_jsd: Number = None
    residual: dict[str, Number] = Field(default_factory=dict)
    circuit: CircuitPart = CircuitPart()
    groups: GroupsPart = GroupsPart()
    update: Update = Update()
    cost: Cost = Cost()
    verdict: Verdict = Verdict()
    versions: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    config_hash: Text = None
    missing: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _both_sides(self) -> Record:
        if self.method == "original" or not {"original", self.method} <= self.metrics.keys():
            raise ValueError("metrics needs at least the models 'original' and the record's method")
        return self

    @property
    def ours(self) -> Metrics | None:
        """Metrics of the model that the record is about."""
        return self.metrics[self.method]

    @property
    def retrained(self) -> Metrics | None:
        """Metrics of the first reference model retrained without the data; None where there is none."""
        names = [n for n in self.metrics if is_retrain(n) and n != self.method]
        return self.metrics[min(names, key=lambda n: (len(n), n))] if names else None

    @property
    def references(self) -> list[Metrics]:
        """Metrics of the models retrained without the data, but the record's own."""
        return [m for n, m in self.metrics.items() if m and is_retrain(n) and n != self.method]

    @property
    def retrain_s(self) -> float | None:
        """Seconds of a retraining, mean over the references; None where none was timed."""
        found = [m.t_total_s for m in self.references if m.t_total_s]
        return sum(found) / len(found) if found else None

    @field_validator("versions", "machine", "config")
    @classmethod
    def _nobody_named(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _withhold(value)


def retrain_names() -> Iterator[str]:
    """Keys of ``metrics`` for models retrained without the deleted data, without end.

    Example:
        >>> from itertools import islice
        >>> list(islice(retrain_names(), 3))
        ['retrain', 'retrain_2', 'retrain_3']
    """
    yield "retrain"
    yield from (f"retrain_{k}" for k in count(2))


def is_retrain(name: str) -> bool:
    """Whether a key of ``metrics`` names a model retrained without the deleted data.

    Example:
        >>> is_retrain("retrain_2"), is_retrain("cure")
        (True, False)
    """
    return re.fullmatch(r"retrain(_\d+)?", name) is not None


def as_record(record: Record | Mapping[str, Any], *, where: str | None = None) -> Record:
    """Check a mapping against the schema.

    Args:
        record: a record, or the mapping it is to be made of (numpy numbers and arrays are taken; what is
            not finite becomes null).
        where: file to name in an error.

    Returns:
        The checked record; values that could name users (``ids`` in a config) are withheld.

    Raises:
        DataError: it is not a record of this version.

    Example:
        >>> record = as_record({"schema": SCHEMA, "method": "npo", "metrics": {"original": {}, "npo": {}}})
        >>> record.ours.jsd is None
        True
    """
    if isinstance(record, Record):
        return record
    version = record.get("schema") if isinstance(record, Mapping) else None
    if version != SCHEMA:
        found = f"its schema is {version[:40]!r}" if isinstance(version, str) else "it names no schema"
        raise DataError(
            f"not a record of this version: {found}, not {SCHEMA!r}",
            where=where,
            mend="Give the record.json that `curerec unlearn` wrote, with the same version of curerec",
        )
    try:
        # A part that is null as a whole reads as one whose every value is null. By way of JSON, so that
        # a record in memory and one on disk pass exactly the same checks.
        given = {key: value for key, value in record.items() if value is not None}
        return Record.model_validate_json(_dumps(given), strict=True)
    except ValidationError as error:
        # Paths and kinds of fault only: pydantic's own text quotes the input.
        faults = error.errors(include_input=False)[:3]
        listed = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'record'}: {fault['msg']}" for fault in faults
        )
        mend = "Write it anew with `curerec unlearn`"
        raise DataError(f"not a valid record ({listed})", where=where, mend=mend) from None
    except RecursionError:
        raise DataError("not a valid record (nested too deeply)", where=where) from None


def read_record(path: str | Path) -> Record:
    """Read ``record.json``.

    Args:
        path: the file.

    Returns:
        The checked record.

    Raises:
        DataError: no such file, not JSON, or not a record of this version.

    Related: :func:`write_record`.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise DataError(what, where=str(path), mend="Give a record.json") from error
    except (ValueError, RecursionError) as error:
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"is not JSON{line}", where=str(path), mend="Give a record.json") from None
    return as_record(data, where=str(path))


def write_record(record: Record | Mapping[str, Any], path: str | Path) -> Path:
    """Write ``record.json``: sorted keys, indent 2, null for what is not finite, whole or not at all.

    Args:
        record: a record or the mapping it is made of; it is checked first.
        path: target file.

    Returns:
        The path written.

    Raises:
        DataError: it does not fit the schema.
        StorageError: it cannot be written.

    Related: :func:`read_record`.
    """
    checked = as_record(record, where=str(path))
    return replace_file(path, _dumps(checked.model_dump(mode="python", by_alias=True)) + "\n")


def plain(value: Any, where: str = "record") -> Any:
    """Plain JSON values: numpy to Python, not finite to None, lone surrogates to question marks.

    Args:
        value: any nest of mappings, sequences and scalars.
        where: dotted path for the error.

    Raises:
        DataError: something in it has no JSON form.

    Example:
        >>> plain({"a": (1, float("inf"))})
        {'a': [1, None]}
    """
    if isinstance(value, Mapping):
        return {plain(str(k)): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}.{i}") for i, v in enumerate(value)]
    if isinstance(value, str):
        return str(value).encode("utf-8", "replace").decode("utf-8")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy for it
        return plain(value.tolist(), where)
    what = f"{where} is a {type(value).__name__}, which has no JSON form"
    raise DataError(what, mend="Store numbers and text only")


def _dumps(value: Any) -> str:
    return json.dumps(plain(value), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)


def _withhold(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: "withheld" if _names_people(k, v) else _withhold(v) for k, v in value.items()}
    return [_withhold(v) for v in value] if isinstance(value, list) else value


def _names_people(key: str, value: Any) -> bool:
    # `users: 57` is a count and stays; `user_id: 196` is a person and goes.
    is_count = key in {"users", "forget_users"} and isinstance(value, int)
    return bool(_IDS.match(key)) and value is not None and not is_count
