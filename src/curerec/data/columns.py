"""Columns of any origin as checked arrow and numpy arrays.

Messages name a file and a row, never an id, a rating or a title.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curerec.errors import DataError

#: Bytes of text that one array may hold: arrow counts them in 32 bits.
TEXT_BYTES = (1 << 31) - 2
#: What columns of times are called, their words joined by "_": moments, no spans (``watch_time``).
MOMENTS = re.compile(
    r"(unix|epoch)(_.+)?|dt|.+_at"
    r"|(.+_)?(timestamp|time_stamp|datetime|date_time|unixtime|unixtimestamp|ts)(_.+)?"
    r"|(time|date)(_(added|created|ms|ns|rated|read|reviewed|s|sec|seconds|unix|updated|us|utc))?"
    r"|(.+_)?date|(created|creation|event|interaction|rated|rating|review|reviewed)_?(date|time)"
)
#: Words in the names of dates that an item or a user has, whenever it was rated.
OF_OTHERS = {"air", "aired", "birth", "born", "join", "joined", "launch", "launched", "premiere", "premiered"}
OF_OTHERS |= {"publication", "publish", "published", "registered", "registration", "release", "released"}


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


def as_array(values: Any, origin: Origin) -> pa.Array:
    """One contiguous arrow array of whatever was given: a list, a numpy array, a column.

    Text in any of arrow's forms becomes its plain one; of values of several types each becomes text.

    Raises:
        DataError: the text is not UTF-8, or more than an array holds.
    """
    try:
        array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # mixed types, or beyond 64 bits
        array = pa.array([_as_text(v) for v in values], pa.string())
    if _n_bytes(array) > TEXT_BYTES:
        raise _too_much(origin)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # pyarrow keeps a column of no chunks as it is
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    try:
        return array.cast(pa.string()) if _is_bytes(array.type) else array
    except pa.ArrowInvalid:  # its message may quote a value
        raise DataError("text is not UTF-8", where=origin.file, mend="Write it as UTF-8.") from None


def _as_text(value: Any) -> str | None:
    """Text of one of several types' values; None for what stands for a gap, as nan does in pandas."""
    if value is None or (not isinstance(value, str) and str(value) in ("nan", "NaN", "NaT", "<NA>")):
        return None
    # How pandas writes integers once a column had a gap; beyond 2**53 a float may stand for another one.
    if isinstance(value, (float, np.floating)) and float(value).is_integer() and abs(float(value)) < 2**53:
        return str(int(value))
    return str(value)


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether a type is one of text that is no plain string: bytes, or one of arrow's views."""
    types = pa.types
    views = types.is_string_view(kind) or types.is_binary_view(kind)
    return views or types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _n_bytes(array: pa.Array | pa.ChunkedArray) -> int:
    """Bytes of text that an array or a column holds; of views, which cannot be asked, an upper bound."""
    if pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        return int(array.nbytes)
    if pa.types.is_dictionary(array.type):  # few distinct texts, to be written out for each row
        pieces = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
        if not is_text(pieces[0].dictionary if pieces else array):
            return 0
        lengths = (pc.binary_length(piece.dictionary).take(piece.indices) for piece in pieces)
        return sum(int(pc.sum(each).as_py() or 0) for each in lengths)
    if is_text(array) or _is_bytes(array.type):
        return int(pc.sum(pc.binary_length(array)).as_py() or 0)
    return 0


def _too_much(origin: Origin) -> DataError:
    mend = "Write the ratings as parquet and pack them: `curerec pack --data FOLDER --out FOLDER`."
    return DataError("a column holds more than 2 GiB of text", where=origin.file, mend=mend)


def is_text(array: pa.Array | pa.ChunkedArray) -> bool:
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
    array = as_array(values, origin)
    mend = f"Give every row a {what} (text or a whole number)."
    refuse(pc.is_null(array), f"{what} is missing", origin, mend)
    if pa.types.is_floating(array.type):  # how pandas writes integers once a column had a gap
        refuse(pc.invert(_whole(array)), f"{what} is no whole number", origin, mend)
        array = array.cast(pa.int64())
    try:
        text = nfc(pc.ascii_trim_whitespace(array.cast(pa.string())))
    except pa.ArrowCapacityError:  # of numbers, which are longer as text
        raise _too_much(origin) from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{what} column holds neither text nor whole numbers", where=origin.file) from None
    refuse(pc.equal(text, ""), f"{what} is empty", origin, mend)
    # Tabs and line ends would make two tables look alike to the fingerprint.
    refuse(pc.match_substring_regex(text, "[\\x00-\\x1f]"), f"{what} holds a control character", origin, mend)
    return text


def ratings(values: Any, origin: Origin, scale: tuple[float, float]) -> np.ndarray:
    """Ratings as float64 [n], all within the scale."""
    mend = f"Ratings are numbers from {scale[0]:g} to {scale[1]:g}, with a decimal point."
    number = _numbers(as_array(values, origin), "rating", origin, mend)
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
    array = as_array(values, origin)
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


def time_column(names: list[str], file: str, known: tuple[str, ...] = ("time",)) -> str | None:
    """Which of the columns is that of times; None if there is none, and the order of the rows counts.

    Args:
        names: of the columns.
        file: for the message.
        known: names under which the format has its times, first match wins.

    Raises:
        DataError: there is such a column, but under another name: left out, the order of the rows would be
            taken for that of time.
    """
    found = next((name for name in known if name in names), None)
    others = [k for k, name in enumerate(names, start=1) if _is_moment(name)]
    if found is None and others:
        mend = (
            f"Name it {' or '.join(known)}, or take it out if it is no time of the rating; without one the "
            "order of the rows is taken for that of time."
        )
        what = f"has a column of times under another name (column {others[0]})"
        raise DataError(what, where=file, mend=mend)
    return found


def _is_moment(name: str) -> bool:
    """Whether a column of this name holds times of ratings, as ``unixReviewTime`` and ``rated_at`` do."""
    words = re.sub(r"[^0-9A-Za-z]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).casefold().strip("_")
    return MOMENTS.fullmatch(words) is not None and OF_OTHERS.isdisjoint(words.split("_"))


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
