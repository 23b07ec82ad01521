"""Requests that are wrong: one line, and nothing left behind."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_wrong import train, unlearn

from curerec.data.readers import read
from curerec.data.request_file import read_request
from curerec.errors import RequestError
from curerec.recipe import SplitConfig
from curerec.splitting import split_of
from made_commands import N_USERS, TITLES, refused, rows, untouched


def everybody(kind):
    pairs = [(u, i) for u, i, *_ in rows()]
    return {
        "user": [[f"usr{k}"] for k in range(N_USERS)],
        "item": [[item] for item in TITLES],
        "user,item": [list(pair) for pair in pairs],
    }[kind]


def table(header, *lines):
    return "\n".join([header, *(",".join(line) for line in lines)]) + "\n"


UNSEEN = next(item for item in TITLES if item not in {i for u, i, *_ in rows() if u == "usr1"})
BAD_REQUESTS = {
    "empty": ("r.csv", "", "r.csv", "header"),
    "no header": ("r.csv", "usr1\nusr2\n", "r.csv", "header"),
    "another header": ("r.csv", "person\nusr1\n", "r.csv", "header"),
    "wrong separator": ("r.csv", "user;item\nusr1;itm1\n", "r.csv", "header"),
    "names nothing": ("r.csv", "user\n", "r.csv", "names nothing"),
    "ragged": ("r.csv", "user,item\nusr1,itm1\nusr2\n", "r.csv", "row 3"),
    "blank cell": ("r.csv", "user,item\nusr1,\n", "r.csv", "row 2"),
    "no csv": ("r.csv", 'user\n"' + "x" * 200_000 + '"\n', "r.csv", "row 2"),
    "unknown user": ("r.csv", "user\nusr1\n\nusr1\nusr999\n", "r.csv", "(row 5)"),
    "unknown users": ("r.csv", "user\nusr998\nusr1\nusr999\n", "r.csv", "2 user(s)", "(row 2, row 4)"),
    "unknown item": ("r.csv", "item\nitm999\n", "r.csv", "1 item(s)", "(row 2)"),
    "unknown pair": ("r.csv", f"user,item\nusr1,{UNSEEN}\n", "r.csv", "1 interaction(s)", "(row 2)"),
    "unknown user in JSON": (
        "r.json",
        {"kind": "users", "ids": ["usr1", "usr1", "usr999"]},
        "r.json",
        "entry 3",
    ),
    "unknown item in JSON": ("r.json", {"kind": "items", "ids": ["itm999"]}, "r.json", "entry 1"),
    "unknown pair in JSON": (
        "r.json",
        {"kind": "interactions", "ids": [["usr1", UNSEEN]]},
        "r.json",
        "entry 1",
    ),
    "JSON of nobody": ("r.json", {"kind": "users", "ids": []}, "r.json", "names nothing"),
    "JSON of another kind": ("r.json", {"kind": "people", "ids": ["usr1"]}, "r.json", "kind"),
    "JSON without ids": ("r.json", {"kind": "users"}, "r.json", "ids"),
    "JSON of numbers with a point": ("r.json", {"kind": "users", "ids": ["usr1", 1.5]}, "r.json", "entry 2"),
    "JSON of pairs that are none": ("r.json", {"kind": "interactions", "ids": ["usr1"]}, "r.json", "entry 1"),
    "JSON with a date": (
        "r.json",
        {"kind": "users", "ids": ["usr1"], "due": "2030-01-31"},
        "1 unknown key(s)",
        "curerec request add",
    ),
    "JSON of two kinds": ("r.json", {"kind": "users", "ids": ["usr1"], "items": ["itm1"]}, "unknown key"),
    "JSON in capitals": ("R.JSON", {"kind": "users", "ids": ["usr999"]}, "R.JSON", "entry 1"),
    "JSON list": ("r.json", ["usr1"], "r.json", "kind"),
    "no JSON": ("r.json", "{users: usr1}", "r.json", "is not JSON"),
    "deep JSON": ("r.json", "[" * 100_000, "r.json", "is not JSON"),
    "everybody": ("r.csv", table("user", *everybody("user")), "r.csv", "all training data"),
    "every item": ("r.csv", table("item", *everybody("item")), "r.csv", "all training data"),
    "every interaction": ("r.csv", table("user,item", *everybody("user,item")), "r.csv", "all training data"),
    "all but one": ("r.csv", table("user", *everybody("user")[:-1]), "r.csv", "request"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_request(case, place, made_path):
    name, content, *parts = BAD_REQUESTS[case]
    (place / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with untouched(place):
        refused(unlearn(place, made_path, place / name), *parts)
        refused(train(place, "--without", place / name), *parts)


def test_request_with_nothing_to_forget(place, made_path):
    data = read(made_path.data)
    users = data.users[np.unique(data.user_code[split_of(data, SplitConfig(public_share=0.4)).train.target])]
    public = next(user for user in data.users if user not in users)
    held = split_of(data, SplitConfig(public_share=0.4)).test.target[0]
    late = [data.ratings[c][int(held)].as_py() for c in ("user", "item")]
    (place / "public.csv").write_text(f"user\n{public}\n")
    (place / "late.csv").write_text(f"user,item\n{','.join(late)}\n")
    asked = {"public.csv": "only the base model", "late.csv": "saw nothing of it"}
    with untouched(place):
        for name, part in asked.items():
            refused(unlearn(place, made_path, place / name), name, part)
            refused(train(place, "--without", place / name), name, part)


def test_request_file_that_is_none(place, made_path):
    (place / "latin.csv").write_bytes("user\nus\xe9r\n".encode("latin-1"))
    with untouched(place):
        for path, part in (
            (place / "no.csv", "No such file"),
            (place, "cannot be read"),
            (place / "latin.csv", "UTF-8"),
        ):
            refused(unlearn(place, made_path, path), path.name, part)


def test_blanks_around_ids_are_no_part_of_them_wherever_they_come_from(tmp_path):
    """As in a csv, and in the data: only blanks of ASCII, since a no-break space may be part of an id."""
    (tmp_path / "r.json").write_text(json.dumps({"kind": "users", "ids": [" usr1", "usr1\t", 7, "\xa0usr1"]}))
    assert read_request(tmp_path / "r.json").ids == ("usr1", "7", "\xa0usr1")
    (tmp_path / "r.json").write_text(json.dumps({"kind": "interactions", "ids": [["usr1 ", " itm1"]]}))
    assert read_request(tmp_path / "r.json").ids == (("usr1", "itm1"),)


@pytest.mark.parametrize("ids", ['["usr1", " "]', '[""]'])
def test_an_id_of_blanks_alone_names_nobody(tmp_path, ids):
    (tmp_path / "r.json").write_text(f'{{"kind": "users", "ids": {ids}}}')
    with pytest.raises(RequestError, match="of its ids is not a text"):
        read_request(tmp_path / "r.json")
