"""Delimited text into columns of strings, with the row of whatever is wrong.

pyarrow does the reading; its own error messages quote the row, so none of them is passed on.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from curerec.data.columns import Origin
from curerec.errors import DataError

NAMES = {"\t": "tabs", ",": "commas", "|": "'|'", ";": "semicolons", "\x1f": "'::'"}
#: Bytes pyarrow reads at once; no single row may be longer.
BLOCK_BYTES = 16 << 20


def content(path: Path, *, latin1: bool = False) -> bytes:
    """The file as UTF-8 bytes without byte order mark and trailing empty lines.

    Args:
        path: the file.
        latin1: read as latin-1 what is no UTF-8 (old MovieLens files; re-encoded copies are about, too).

    Raises:
        DataError: not there, not readable, empty, or in another encoding.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError("file is not there", where=path.name, mend="Check the path.") from None
    except OSError as error:
        raise DataError(
            f"file cannot be read ({error.strerror})", where=path.name, mend="Check the path."
        ) from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("file is in UTF-16", where=path.name, mend="Save it as UTF-8.")
    raw = raw.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    if b"\n" not in raw:  # line ends of an old Macintosh, or of some spreadsheets on a new one
        raw = raw.replace(b"\r", b"\n")
    if not raw.strip():
        raise DataError("file is empty", where=path.name, mend="Give a file with at least one row of data.")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if not latin1:
            row = raw.count(b"\n", 0, error.start) + 1
            raise DataError(
                "text is not UTF-8", where=f"{path.name}, row {row}", mend="Save it as UTF-8."
            ) from None
        raw = raw.decode("latin-1").encode("utf-8")
    return raw


def header(path: Path, separator: str = ",") -> list[str]:
    """Column names in the first row; empty if the file cannot be read as text."""
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 16).decode("utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        return []
    return [name.strip().strip('"') for name in line.split(separator)]


def table(
    path: Path, raw: bytes, separator: str, *, names: list[str] | None = None, quoted: bool = False
) -> pa.Table:
    """Rows of delimited text, all columns as strings.

    Args:
        path: named in messages.
        raw: from :func:`content`.
        separator: one character.
        names: column names; None takes them from row 1.
        quoted: whether double quotes group a field, as in csv; otherwise they are text.

    Raises:
        DataError: a row with more or fewer fields than the others.
    """
    first = raw.split(b"\n", 1)[0].decode("utf-8").rstrip("\r")
    if names is None:
        names, skip = [name.strip().strip('"') for name in first.split(separator)], 1
        if len(names) < 2:
            raise _separator(path, separator)
    else:
        skip = 0
    if len(set(names)) < len(names):
        raise DataError(
            "a column name is there twice", where=f"{path.name}, row 1", mend="Rename one of them."
        )
    if quoted:
        _refuse_open_quote(path, raw, separator)
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "error"

    try:
        rows = pyarrow.csv.read_csv(
            pa.BufferReader(raw),
            # One thread: only then does pyarrow know the number of a bad row.
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, column_names=names, skip_rows=skip
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if quoted else False,
                double_quote=quoted,
                newlines_in_values=quoted,
                ignore_empty_lines=False,
                invalid_row_handler=note,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=False
            ),
        )
    except pa.ArrowInvalid:
        if ragged:
            raise _ragged(path, separator, ragged[0], skip) from None
        if raw.count(b"\n") < skip:
            raise DataError(
                "holds no row but the header", where=path.name, mend="Give at least one row."
            ) from None
        raise _long(path) from None
    return rows


def pick(rows: pa.Table, path: Path, separator: str, needed: dict[str, str]) -> pa.Table:
    """The needed columns under our names: ``needed`` maps ours to the file's."""
    missing = [theirs for theirs in needed.values() if theirs not in rows.column_names]
    if missing:
        raise DataError(
            f"column {', '.join(missing)} is missing",
            where=f"{path.name}, row 1",
            mend=f"The first row must name the columns {', '.join(needed.values())}, "
            f"separated by {NAMES[separator]}.",
        )
    return rows.select(list(needed.values())).rename_columns(list(needed))


def after_header(path: Path) -> Origin:
    """Origin of a file whose row 1 is a header."""
    return Origin(path.name, first_row=2)


def _separator(path: Path, separator: str) -> DataError:
    return DataError(
        "row is not split into columns (another separator?)",
        where=f"{path.name}, row 1",
        mend=f"This format separates columns by {NAMES[separator]}.",
    )


def _ragged(path: Path, separator: str, row: Any, skipped: int) -> DataError:
    if row.actual_columns == 1 and row.number == 1 + skipped:
        return DataError(
            "row is not split into columns (another separator?)",
            where=f"{path.name}, row {row.number}",
            mend=f"This format separates columns by {NAMES[separator]}.",
        )
    return DataError(
        f"row has {row.actual_columns} fields where {row.expected_columns} are expected",
        where=f"{path.name}, row {row.number}",
        mend=f"Every row needs the same fields, separated by {NAMES[separator]}.",
    )


def _long(path: Path) -> DataError:
    return DataError(
        "a row is longer than 16 MB", where=path.name, mend="Shorten it, or write the file anew."
    )


def _refuse_open_quote(path: Path, raw: bytes, separator: str) -> None:
    """A quote that is never closed would swallow the rows behind it, up to the next one or to the end.

    It opens a text only where a field begins; elsewhere it is a character like others (``7" single``).
    """
    if b'"' not in raw:
        return
    good = _fields(separator).match(raw)
    if good is not None and good.end() < len(raw):
        row = raw.count(b"\n", 0, good.end()) + 1
        raise DataError(
            "a double quote is opened and never closed",
            where=f"{path.name}, row {row}",
            mend='Close it; inside quotes write a quote as "".',
        )


@functools.cache
def _fields(separator: str) -> re.Pattern[bytes]:
    """Matches all fields of delimited text up to the first that opens a quote without closing it.

    Where a quoted text goes over a row's end nothing may follow it in its field: the quote that seems to
    close it was to open another one.
    """
    end = rb"\r\n" + re.escape(separator.encode())
    quoted = rb'"[^"]*+(?:""[^"]*+)*+"[ \t]*+(?=[%b]|\Z)' % end
    in_row = rb'"[^"\r\n]*+(?:""[^"\r\n]*+)*+"[^%b]*+' % end
    field = rb'(?:%b|%b|[^"%b][^%b]*+)?+' % (quoted, in_row, end, end)
    return re.compile(rb"(?:%b[%b])*+%b" % (field, end, field))
