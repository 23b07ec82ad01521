"""500 planted ids and titles: none in reports, logs, metrics, answers, temporary files or exceptions."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback

import pytest
from made_service import ask, served, start
from made_store import N_ITEMS, bytes_under, made_data, made_store, stand

from curerec.data.table import interactions
from curerec.errors import CurerecError, RequestError
from curerec.requests import maintain
from curerec.requests.audit import audit, export
from curerec.requests.ledger import Asked
from curerec.requests.runner import run
from curerec.requests.store import Store
from made_commands import curerec

N = 250
#: Nothing else looks like this, in any encoding that is searched.
CANARY = re.compile(rb"canary(user|title)[0-9]{4}z", re.IGNORECASE)


def planted():
    """Data whose deleted users and item titles are canaries: 250 of each."""
    data = made_data(40)
    users, items, ratings, times = (data.ratings[c].to_pylist() for c in ("user", "item", "rating", "time"))
    titles = {f"itm{i}": f"Title {i}" for i in range(N_ITEMS)}
    for k in range(N):
        titles[f"canaryitem{k}"] = f"canarytitle{k:04d}z"
        for t in range(12):
            users.append(f"canaryuser{k:04d}z")
            items.append(f"itm{(k + t) % N_ITEMS}")
            ratings.append(float(1 + (k + t) % 5))
            times.append(1000 + t)
        users.append("usr001")
        items.append(f"canaryitem{k}")
        ratings.append(4.0)
        times.append(5000 + k)
    return interactions(users, items, ratings, times, titles, name="made", source="test")


def found_in(raw: bytes) -> list[bytes]:
    """Canaries, also where they are encoded."""
    plain = raw + raw.replace(b"\0", b"") + raw.decode("utf-16-le", "ignore").encode()
    return sorted({m.group() for m in CANARY.finditer(plain)})


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return made_store(tmp_path_factory.mktemp("canaries") / "store", data=planted())


@pytest.fixture
def root(template, tmp_path):
    import shutil

    return shutil.copytree(template, tmp_path / "store", symlinks=True)


USERS = Asked("users", tuple((f"canaryuser{k:04d}z",) for k in range(N)), reason="canaryuser0001z asked")
ITEMS = Asked("items", tuple((f"canaryitem{k}",) for k in range(N)))


def test_after_the_commit_no_canary_is_left_anywhere(root, tmp_path, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    with Store(root) as store:
        store.ledger.add_all([USERS, ITEMS])
        assert found_in(bytes_under(root))  # the test can find them
        with (
            contextlib.redirect_stderr(io.StringIO()) as err,
            contextlib.redirect_stdout(io.StringIO()) as out,
        ):
            assert run(store, stand())[0].committed
        answers = repr((maintain.status(store), store.ledger.all(), store.ledger.events(), export(store)))
    said = (err.getvalue() + out.getvalue() + answers + caplog.text + repr(audit(root))).encode()
    assert not found_in(said) and not found_in(bytes_under(tmp_path))
    with capsys.disabled():
        print(f"\n  canaries: {2 * N} planted, 0 left in the store, answers or logs")


@pytest.mark.parametrize("stage", ["circuit", "groups", "update", "verdict"])
@pytest.mark.parametrize("kind", ["refusal", "fault"])
def test_no_canary_leaves_a_stage_that_fails(stage, kind, root, tmp_path):
    error = RequestError("is refused", where="stage") if kind == "refusal" else RuntimeError("fault")
    with Store(root) as store:
        store.ledger.add_all([USERS, ITEMS])
        text = ""
        try:
            run(store, stand(fail=stage, error=error))
        except RuntimeError as caught:
            text = "".join(traceback.format_exception(caught))
        told = repr((text, maintain.status(store), store.ledger.all(), store.ledger.events()))
    told = told.replace("canaryuser0001z asked", "")  # the reason, which waits with the request
    assert not found_in(told.encode())
    # Outside of the ledger and the table, which must hold them until the request is done, there is none.
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            inside = path.name.startswith("ledger.sqlite") or path.parent.parent.name == "data"
            assert inside or not found_in(path.read_bytes()), path
    listed = [curerec("request", word, "--store", root) for word in ("list", "status")]
    assert not found_in("".join(r.out + r.err for r in listed).encode())


def test_no_canary_in_a_refusal(root):
    asked = Asked("users", tuple((f"canaryuser{k:04d}z",) for k in range(900, 999)))
    with Store(root) as store, pytest.raises(CurerecError) as caught:
        store.table().check(asked.kind, list(asked.entries), (), "request")
    assert not found_in("".join(traceback.format_exception(caught.value)).encode()[-300:])
    for words in (
        ("--user", "canaryuser0900z"),
        ("--interaction", "canaryuser0900z"),
        ("--user", "canaryuser0900z", "canaryuser0901z"),  # an option takes one value
        ("canaryuser0900z",),
        ("--file", "canaryuser0900z.csv"),
    ):
        result = curerec("request", "add", "--store", root, *words)
        assert result.code == 2 and (words[0] == "--file" or not found_in(result.err.encode())), words


def test_no_canary_leaves_the_service(root, tmp_path):
    with served(root) as port:
        body = {"kind": "users", "ids": [e[0] for e in USERS.entries], "reason": "by letter"}
        status, made, _ = ask(port, "POST", "/requests", body)
        assert status == 201
        answers = [
            made,
            ask(port, "POST", "/requests", {"kind": "users", "ids": ["canaryuser0900z"]})[1],
            ask(port, "POST", "/requests", {"kind": "canaryuser0900z", "ids": []})[1],
            ask(port, "POST", "/requests", b'{"canaryuser0900z": [')[1],
            ask(port, "GET", "/requests/canaryuser0900z")[1],
            ask(port, "GET", "/canaryuser0900z")[1],
        ]
        assert start(port) == 202
        import time

        for _ in range(1200):  # a minute: a worker imports the package first
            row = ask(port, "GET", f"/requests/{made['id']}")[1]
            if row["state"] == "committed":
                break
            time.sleep(0.05)
        assert row["state"] == "committed"
        paths = (
            "/status",
            "/metrics",
            "/requests",
            "/records/1",
            "/records/2",
            f"/reports/{row['batch']}/report.html",
        )
        answers += [ask(port, "GET", path)[1] for path in paths]
    assert not found_in(repr(answers).encode())
    assert not found_in((tmp_path / "service.log").read_bytes())
    # The items stay, and their titles with them.
    assert all(b"title" in name for name in found_in(bytes_under(tmp_path)))
