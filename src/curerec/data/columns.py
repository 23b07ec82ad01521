"""Columns of any origin as checked arrow and numpy arrays.

Messages name a file and a row, never an id, a rating or a title.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curerec.errors import DataError


@dataclass(frozen=True)
class Origin:
    """Where a column came from, so that a message can name file and row.

    Attributes:
        file: name of the file (no folder: a path may name a person).
        first_row: number of its first row of data, 1-based; 2 where row 1 is a header.
    """

    file: str
    first_row: int = 1

    def row(self, index: int) -> str:
        """``u.data, row 17`` for the row at a 0-based index."""
        return f"{self.file}, row {self.first_row + int(index)}"


def as_array(values: Any) -> pa.Array:
    """One contiguous arrow array of whatever was given: a list, a numpy array, a column."""
    try:
        array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # mixed types, or beyond 64 bits
        array = pa.array([None if v is None else str(v) for v in values])
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # pyarrow keeps a column of no chunks as it is
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def is_text(array: pa.Array) -> bool:
    """Whether an array holds strings."""
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)


def _first(mask: pa.Array) -> int | None:
    """Index of the first true value, None if there is none."""
    index = pc.index(mask, pa.scalar(True)).as_py()
    return None if index < 0 else index


def refuse(bad: pa.Array, what: str, origin: Origin, mend: str) -> None:
    """Raise a DataError that names the first row where ``bad`` is true."""
    index = _first(bad)
    if index is not None:
        raise DataError(what, where=origin.row(index), mend=mend)


def ids(values: Any, what: str, origin: Origin) -> pa.Array:
    """Ids as strings in one Unicode form, no blanks around them; ``what`` is ``user id`` or ``item id``."""
    array = as_array(values)
    mend = f"Give every row a {what} (text or a whole number)."
    refuse(pc.is_null(array), f"{what} is missing", origin, mend)
    if pa.types.is_floating(array.type):  # how pandas writes integers once a column had a gap
        refuse(pc.invert(_whole(array)), f"{what} is no whole number", origin, mend)
        array = array.cast(pa.int64())
    try:
        text = nfc(pc.ascii_trim_whitespace(array.cast(pa.string())))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{what} column holds neither text nor whole numbers", where=origin.file) from None
    refuse(pc.equal(text, ""), f"{what} is empty", origin, mend)
    # Tabs and line ends would make two tables look alike to the fingerprint.
    refuse(pc.match_substring_regex(text, "[\\x00-\\x1f]"), f"{what} holds a control character", origin, mend)
    return text


def ratings(values: Any, origin: Origin, scale: tuple[float, float]) -> np.ndarray:
    """Ratings as float64 [n], all within the scale."""
    mend = f"Ratings are numbers from {scale[0]:g} to {scale[1]:g}, with a decimal point."
    number = _numbers(as_array(values), "rating", origin, mend)
    refuse(pc.invert(pc.is_finite(number)), "rating is not finite", origin, mend)
    out = pc.or_(pc.less(number, scale[0]), pc.greater(number, scale[1]))
    refuse(out, f"rating is outside {scale[0]:g} to {scale[1]:g}", origin, mend)
    return number.to_numpy(zero_copy_only=False) + 0.0  # -0.0 and 0.0 are one rating, so one fingerprint


def times(values: Any, origin: Origin, *, keep_unit: bool = False) -> np.ndarray:
    """Times as int64 [n].

    Args:
        values: the column, or a piece of it.
        origin: for messages.
        keep_unit: time stamps keep their own unit though these are whole seconds, since others of the column
            are not.
    """
    mend = "Times are whole numbers, e.g. seconds since 1970."
    array = as_array(values)
    refuse(pc.is_null(array), "time is missing", origin, mend)
    if pa.types.is_temporal(array.type):
        array = _stamps(array, keep_unit)
    if is_text(array):
        array = pc.ascii_trim_whitespace(array)
        try:  # exact, and what nearly every file holds
            array = array.cast(pa.int64())
        except pa.ArrowInvalid:
            array = _numbers(array, "time", origin, mend)
    if pa.types.is_floating(array.type):
        refuse(pc.invert(_whole(array)), "time is no whole number", origin, mend)
    try:
        return array.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError("time column holds no whole numbers", where=origin.file, mend=mend) from None


def refuse_other_times(names: list[str], file: str) -> None:
    """Refuse a column of times under another name than ``time``: without one the row order would count.

    Args:
        names: of the columns.
        file: for the message.

    Raises:
        DataError: there is such a column, and none named ``time``.
    """
    others = [name for name in names if name.strip().casefold() in ("time", "timestamp")]
    if others and "time" not in names:
        mend = "Name it time; without it the order of the rows is taken for that of time."
        raise DataError("has a column of times under another name", where=file, mend=mend)


def nfc(text: pa.Array) -> pa.Array:
    """Texts in one Unicode form (NFC); what is ASCII is as it was.

    An accented letter is one sign or two, by what wrote it: an id in the other form would be another person.
    """
    return pc.utf8_normalize(text, form="NFC") if _beyond_ascii(text) else text


def _beyond_ascii(text: pa.Array) -> bool:
    return bool(pc.any(pc.invert(pc.string_is_ascii(text))).as_py())


def codes_in(known: pa.Array, ids: pa.Array | list[str]) -> np.ndarray:
    """Place of each id among the known ones, int32 [n]; -1 where it is none of them in any Unicode form."""
    values = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string())
    codes = pc.index_in(values, value_set=known)
    if codes.null_count and _beyond_ascii(values.filter(pc.is_null(codes))):
        # Requests come in any form, and what was stored before ids were read in one still has its own.
        codes = pc.coalesce(codes, pc.index_in(nfc(values), value_set=nfc(known)))
    return codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)


def _whole(array: pa.Array) -> pa.Array:
    """Whether each float is a whole number that a float holds exactly; false for nan and inf."""
    exact = pc.and_(pc.is_finite(array), pc.less(pc.abs(array), float(2**53)))
    return pc.and_(exact, pc.equal(array, pc.floor(array)))


def finer_than_seconds(kind: pa.DataType) -> bool:
    """Whether a column of this type holds time stamps of less than a second."""
    return pa.types.is_timestamp(kind) and kind.unit != "s"


def whole_seconds(stamps: pa.Array) -> bool:
    """Whether time stamps lose nothing by being told in seconds."""
    try:
        stamps.cast(pa.timestamp("s", stamps.type.tz))
    except pa.ArrowInvalid:
        return False
    return True


def _stamps(array: pa.Array, keep_unit: bool) -> pa.Array:
    """Time stamps as integers: seconds, or their own finer unit if that would lose the order."""
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("s"))
    if not pa.types.is_timestamp(array.type):
        return array
    if keep_unit or not whole_seconds(array):
        return array.cast(pa.int64())
    return array.cast(pa.timestamp("s", array.type.tz)).cast(pa.int64())


def _numbers(array: pa.Array, what: str, origin: Origin, mend: str) -> pa.Array:
    refuse(pc.is_null(array), f"{what} is missing", origin, mend)
    if not is_text(array):
        try:
            return array.cast(pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(f"{what} column holds no numbers", where=origin.file, mend=mend) from None
    text = pc.ascii_trim_whitespace(array)
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid:  # its message would quote the value; find the row ourselves
        good = pc.match_substring_regex(text, r"^[-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?$")
        refuse(pc.invert(good), f"{what} is no number", origin, mend)
        raise DataError(f"{what} column holds no numbers", where=origin.file, mend=mend) from None
