"""What the readers say of files that are not what they should be: file, row, mend, and no user data."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curerec.data.readers import read
from curerec.errors import DataError
from made_ratings import LAYOUTS, RATINGS, TITLES, fails, write_parquet

FORMATS = list(LAYOUTS)
TIMED = [name for name in FORMATS if LAYOUTS[name].timed]
HEADED = [name for name in FORMATS if LAYOUTS[name].ratings_header]


def change(index, value):
    return lambda fields: [*fields[:index], value, *fields[index + 1 :]]


BAD_FIELD = {
    "rating is no number": (2, "good"),
    "rating is not finite": (2, "nan"),
    "rating is not finite ": (2, "-inf"),
    "rating is outside": (2, "881250949"),
    "rating is no number ": (2, ""),
    "user id is empty": (0, ""),
    "item id is empty": (1, " "),
    "has no title in": (1, "itm500"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("what", BAD_FIELD)
def test_bad_field(name, what, tmp_path):
    layout = LAYOUTS[name]
    layout.edit(layout.write(tmp_path), "ratings", 3, change(*BAD_FIELD[what]))
    text = fails(tmp_path)
    assert text.startswith(f"{layout.ratings}, row {layout.first + 3}: ") and what.strip() in text
    assert BAD_FIELD[what][1].strip() in ("", "nan") or BAD_FIELD[what][1] not in text


@pytest.mark.parametrize("name", TIMED)
def test_bad_time(name, tmp_path):
    layout = LAYOUTS[name]
    layout.edit(layout.write(tmp_path), "ratings", 4, change(3, "1998-04-01"))
    assert fails(tmp_path).startswith(f"{layout.ratings}, row {layout.first + 4}: time is no number")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("fields", [lambda f: f[:2], lambda f: [*f, "9"], lambda f: [f[0]]])
def test_ragged_row(name, fields, tmp_path):
    layout = LAYOUTS[name]
    layout.edit(layout.write(tmp_path), "ratings", 2, fields)
    text = fails(tmp_path)
    assert text.startswith(f"{layout.ratings}, row {layout.first + 2}: row has ") and "separated by" in text


@pytest.mark.parametrize("name", FORMATS)
def test_empty_line_inside(name, tmp_path):
    layout = LAYOUTS[name]
    layout.edit(layout.write(tmp_path), "ratings", 2, lambda fields: [""])
    assert fails(tmp_path).startswith(f"{layout.ratings}, row {layout.first + 2}: ")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("which", ["ratings", "titles"])
def test_wrong_separator(name, which, tmp_path):
    layout = LAYOUTS[name]
    file = layout.write(tmp_path) / getattr(layout, which)
    separator = layout.separator if which == "ratings" else layout.title_separator
    file.write_bytes(file.read_bytes().replace(separator.encode(), b";"))
    # By its header alone such a csv is of no known format, so the reader is named.
    text = fails(tmp_path / layout.ratings, format=name, titles=tmp_path / layout.titles)
    assert text.startswith(f"{file.name}, row 1: ") and "separates columns by" in text


@pytest.mark.parametrize("name", FORMATS)
def test_duplicate_pair(name, tmp_path):
    layout = LAYOUTS[name]
    folder = layout.write(tmp_path, [*RATINGS, (*RATINGS[1][:3], 99)])
    text = fails(folder)
    assert text.startswith(f"{layout.ratings}, row {layout.first + 5}: ")
    assert f"of row {layout.first + 1}." in text
    assert len(read(folder, duplicates="last")) == 5


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("title", ["", "  "])
def test_empty_title(name, title, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path, RATINGS, TITLES | {"itm78": title})
    assert fails(tmp_path).startswith(f"{layout.titles}, row {layout.first + 1}: title is empty")


@pytest.mark.parametrize("name", FORMATS)
def test_item_without_or_with_two_titles(name, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path, RATINGS, {k: v for k, v in TITLES.items() if k != "itm79"})
    text = fails(tmp_path)
    assert text.startswith(f"{layout.ratings}, row {layout.first + 3}: ") and layout.titles in text
    layout.edit(layout.write(tmp_path), "titles", 2, change(0, "itm77"))
    assert fails(tmp_path).startswith(f"{layout.titles}, row {layout.first + 2}: repeats the item of row")


@pytest.mark.parametrize("name", HEADED)
@pytest.mark.parametrize("which", ["ratings", "titles"])
def test_missing_column(name, which, tmp_path):
    layout = LAYOUTS[name]
    file = layout.write(tmp_path) / getattr(layout, which)
    column = "rating" if which == "ratings" else ("movie_title" if name == "recbole" else "title")
    file.write_bytes(file.read_bytes().replace(column.encode(), b"stars", 1))
    text = fails(tmp_path)
    assert text.startswith(f"{file.name}, row 1: column {column.removeprefix('movie_')} is missing")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("which", ["ratings", "titles"])
@pytest.mark.parametrize(
    ("content", "what"), [(b"", "file is empty"), (b"\n\r\n", "file is empty"), (b"\xff\xfea\x00", "UTF-16")]
)
def test_empty_or_foreign_file(name, which, content, what, tmp_path):
    layout = LAYOUTS[name]
    file = layout.write(tmp_path) / getattr(layout, which)
    file.write_bytes(content)
    text = fails(tmp_path / layout.ratings, format=name, titles=tmp_path / layout.titles)
    assert text.startswith(f"{file.name}: ") and what in text


@pytest.mark.parametrize("name", HEADED)
def test_only_a_header(name, tmp_path):
    layout = LAYOUTS[name]
    assert fails(layout.write(tmp_path, [])).startswith(layout.ratings)
    assert fails(layout.write(tmp_path, RATINGS, {})).startswith(layout.titles)


@pytest.mark.parametrize("name", HEADED)
def test_wrong_encoding(name, tmp_path):
    layout = LAYOUTS[name]
    file = layout.write(tmp_path) / layout.titles
    file.write_bytes(file.read_bytes().replace(b"Quiet", b"Qui\xe9t"))
    assert fails(tmp_path).startswith(f"{layout.titles}, row 3: text is not UTF-8")


def test_open_quote(tmp_path):
    layout = LAYOUTS["plain"]
    file = layout.write(tmp_path) / layout.titles
    file.write_bytes(file.read_bytes().replace(b'Quiet Quarry (1996)"', b"Quiet Quarry (1996)"))
    assert fails(tmp_path).startswith(f"{layout.titles}, row 3: a double quote is opened")


@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_quote_inside_a_field_opens_nothing(separator, tmp_path):
    """Whether their number is odd or even: inches, and names that are called something."""
    suffix = "csv" if separator == "," else "tsv"
    (tmp_path / f"ratings.{suffix}").write_text(separator.join(["user", "item", "rating\n1", "1", "5\n"]))
    titles = ['The 5" Disk', 'A 7" and a 5" one', '"Quoted" start', 'Ends in "', "Plain"]
    rows = "".join(f"{k}{separator}{title}\n" for k, title in enumerate(titles))
    (tmp_path / f"titles.{suffix}").write_text(f"item{separator}title\n{rows}")
    want = [title.replace('"Quoted"', "Quoted") for title in titles]
    assert read(tmp_path).titles["title"].to_pylist() == want
    for opened in (f'7 inch 5" x{separator}"open', f'8{separator}"open'):
        (tmp_path / f"titles.{suffix}").write_text(
            f"item{separator}title\n{rows}{opened}\n9{separator}Next\n"
        )
        assert fails(tmp_path).startswith(f"titles.{suffix}, row 7: a double quote is opened")


def test_two_open_quotes_do_not_swallow_the_rows_between(tmp_path):
    """The second would close the first, in a column that nobody reads."""
    (tmp_path / "titles.csv").write_text("item,title\n1,A\n2,B\n")
    rows = 'user,item,rating,text\n1,1,5,{}\n1,2,5,x\n2,1,4,{}\n2,2,4,"a ""b"",\n""c"""\n'
    (tmp_path / "ratings.csv").write_text(rows.format('"good', '"bad'))
    with pytest.raises(DataError, match=r"ratings.csv, row 2: a double quote is opened"):
        read(tmp_path)
    (tmp_path / "ratings.csv").write_text(rows.format('"go\nod"', 'a 5" by 7" one'))
    assert len(read(tmp_path)) == 4


@pytest.mark.parametrize("name", FORMATS)
def test_files_not_there(name, tmp_path):
    layout = LAYOUTS[name]
    (layout.write(tmp_path) / layout.titles).unlink()
    text = fails(tmp_path)
    assert text.startswith(f"{layout.ratings}: no titles file beside it")
    stem, _, suffix = layout.titles.rpartition(".")
    place = text.partition("Put it there")[2]
    assert ("NAME.item" if suffix == "item" and stem != "u" else stem) in place  # under which name
    assert fails(tmp_path, titles=tmp_path / "gone.csv").startswith("gone.csv: file is not there")
    assert "no such file or folder" in fails(tmp_path / "gone")


def test_unknown_folders_and_files(tmp_path):
    assert "holds no known format" in fails(tmp_path)
    (tmp_path / "data.zip").write_bytes(b"PK")
    assert "Unzip it" in fails(tmp_path / "data.zip")
    (tmp_path / "interactions.csv.gz").write_bytes(b"\x1f\x8b")
    assert "Unpack it" in fails(tmp_path / "interactions.csv.gz")
    (tmp_path / "interactions.parquet").write_bytes(b"usr901")
    (tmp_path / "titles.parquet").write_bytes(b"usr901")
    assert fails(tmp_path).startswith("interactions.parquet: is no parquet file")
    (tmp_path / "a.inter").touch()
    (tmp_path / "b.inter").touch()
    assert "several ratings files (a.inter, b.inter, interactions.parquet)" in fails(tmp_path)


def test_parquet_rows_count_from_one(tmp_path):
    folder = write_parquet(tmp_path)
    table = pa.table({"user": [1, 1], "item": ["itm77", "itm78"], "rating": [4.0, None]})
    pq.write_table(table, folder / "interactions.parquet")
    assert fails(folder).startswith("interactions.parquet, row 2: rating is missing")
    pq.write_table(table.drop(["rating"]), folder / "interactions.parquet")
    assert fails(folder).startswith(
        "interactions.parquet: lacks the column rating. It needs the columns user"
    )
