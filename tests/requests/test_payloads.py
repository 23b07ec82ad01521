"""Markup, formulas, paths and broken files from outside: inert, inside the root, or refused."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import random
import tracemalloc

import pytest
from made_service import ask, served
from made_store import made_store, users

from curerec.cli.requests import as_csv
from curerec.data.readers import read as read_data
from curerec.data.request_file import read_request
from curerec.errors import CurerecError
from curerec.reports.html import render
from curerec.reports.schema import SCHEMA
from curerec.requests.api import read as read_body
from curerec.requests.ledger import Asked
from curerec.requests.store import Store
from made_commands import curerec, tree

EVENTS = ("onload", "onerror", "onclick", "onmouseover", "onfocus", "onbegin", "ontoggle", "onpointerdown")
TAGS = ("img", "svg", "body", "iframe", "video", "details", "input", "math", "marquee", "object")
XSS = [
    *(f"<{tag} {event}=alert(1)>" for tag in TAGS for event in EVENTS),
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "'\"><script>alert(1)</script>",
    "<svg><script>alert(1)</script></svg>",
    "<a href=javascript:alert(1)>x</a>",
    "<a href='java\tscript:alert(1)'>x</a>",
    "<iframe src=https://evil.example>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<style>@import 'https://evil.example/x.css';</style>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<form action=https://evil.example><button>x</button></form>",
    "<math><mtext></form><form><mglyph><style></math><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% import os %}",
    "{{ ''.__class__.__mro__ }}",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u003cscript\u003ealert(1)\u003c/script\u003e",
]


class Strict(html.parser.HTMLParser):
    """Collects scripts, handlers and addresses of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "iframe", "object", "embed", "base", "form", "link", "img", "video", "input"):
            self.found.append(tag)
        for name, value in attributes:
            if name.startswith("on"):
                self.found.append(name)
            address = name in ("href", "src", "action", "xlink:href", "srcdoc") and not (
                value or ""
            ).startswith("#")
            if address or "javascript:" in (value or "").lower():
                self.found.append(f"{name}={value}")


def test_payloads_stay_text_in_the_report(capsys):
    assert len(XSS) >= 100
    for payload in XSS:
        page = render(
            {
                "schema": SCHEMA,
                "method": "cure",
                "metrics": {"original": {}, "cure": {}, payload: {"test_auc": 0.5}},
                "dataset": {"name": payload, "source": payload},
                "model": {"base": payload, "note": payload, "template": payload},
                "request": {"kind": "users", "choice": payload, "digest": payload},
                "update": {"stop_reason": payload},
                "verdict": {
                    "verified": False,
                    "checks": [{"name": payload, "passed": False, "value": 1, "limit": 0, "text": payload}],
                },
                "config": {payload: payload},
                "missing": {"circuit": payload},
            }
        )
        parser = Strict()
        parser.feed(page)
        assert not parser.found, (payload, parser.found)
        assert "49" not in page or "{{ 7 * 7 }}" not in payload or "{{ 7 * 7 }}" in page
    with capsys.disabled():
        print(f"\n  XSS: {len(XSS)} payloads, no script, handler or address in the parsed report")


FORMATS = ("text", "json", "csv")
FORMULAS = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    '=HYPERLINK("http://x")',
    "\n=1",
    "|=1",
]


def test_csv_cells_are_inert(tmp_path):
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        for k, text in enumerate(FORMULAS):
            store.ledger.add(Asked("users", ((f"usr{k:03d}",),), reason=text))
        rows = store.ledger.all()
    cells = [cell for row in csv.reader(io.StringIO(as_csv(rows))) for cell in row]
    assert len(cells) > 9 * 5 and not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    listed = curerec("request", "list", "--store", root, "--format", "csv").out
    assert sum(1 for _ in csv.reader(io.StringIO(listed))) == len(FORMULAS) + 1


def test_no_request_is_left_out_of_a_list(tmp_path):
    root = made_store(tmp_path / "store")
    with Store(root) as store:  # which takes any id; those who ask it look first
        store.ledger.add_all(Asked("users", ((str(k),),)) for k in range(1100))
    listed = {form: curerec("request", "list", "--store", root, "--format", form).out for form in FORMATS}
    counts = [len(json.loads(listed["json"])), *(len(listed[f].splitlines()) for f in ("text", "csv"))]
    assert counts == [1100, 1100, 1101]


PATHS = [
    *(f"{up * n}{x}" for up in ("../", "..\\", "%2e./", "..%2f") for n in (1, 3, 9) for x in ("x", "etc/p")),
    *("/etc/passwd", "//etc/passwd", "~/x", "$HOME/x", "C:\\x", "\\\\host\\x", "file:///etc/x", "x/../y"),
    *("x\0y", "x\ny", "con", "nul", ".", "..", "...", "....//", ".ssh/x", "a" * 300, "/dev/null", "|id"),
    *("$(touch x)", "`x`", ";x", "&&touch x", "--help", "-rf", "\u202e/x", "．．/x", "%00", "%c0%ae/"),
    *("/proc/self/environ", "{{x}}", "*.json", "x%0a", "..;/x", "/../x", "r-0000000000000000/../x"),
]  # fmt: skip


def test_paths_from_outside_write_nothing_outside(tmp_path, capsys, monkeypatch):
    assert len(PATHS) >= 60
    root = made_store(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    outside = {p for p in tree(tmp_path) if not p.startswith("store") and p != "service.log"}
    with Store(root) as store:
        for path in PATHS:
            with pytest.raises(CurerecError):
                store.ledger.get(path)
            store.ledger.add(Asked("users", ((path,),)))  # an id is never a path
            store.ledger.cancel(store.ledger.add(Asked("users", ((path,),)))[0])
    with served(root) as port:
        for path in PATHS:
            name = "".join(f"%{b:02x}" for b in path.encode())
            for where in ("/requests/", "/reports/", "/reports/b-0000000000000000/", "/records/"):
                assert ask(port, "GET", where + name)[0] in (404, 422), path
            assert ask(port, "DELETE", f"/requests/{name}")[0] in (404, 405, 422)
    assert {p for p in tree(tmp_path) if not p.startswith("store") and p != "service.log"} == outside
    with capsys.disabled():
        print(f"\n  paths: {len(PATHS)} payloads, nothing written outside the store")


def broken(rng, seeds):
    """A damaged copy of one of these texts."""
    out = bytearray(rng.choice(seeds))
    words = [
        b'"',
        b",",
        b"\n",
        b"[" * 2000,
        b"\xff",
        b"\0",
        b"null",
        b"1e999",
        b"user,item",
        b"\r",
        b"{",
        b"9" * 5000,
    ]
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            out[at:at] = rng.choice(words)
        elif kind == 1:
            del out[at : at + rng.randint(1, 8)]
        elif kind == 2 and at < len(out):
            out[at] = rng.randrange(256)
        else:
            del out[at:]
    return bytes(out)


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.soak)])
def test_broken_files_meet_only_our_own_errors(number, tmp_path, capsys):
    rng = random.Random(number)
    requests = [b"user\n196\n186\n", b"user,item\n1,2\n3,4\n", b'\xef\xbb\xbfitem\n"a,b"\n']
    bodies = [
        b'{"kind": "users", "ids": ["1", 2]}',
        b'{"kind": "interactions", "ids": [["1", "2"]], "due": "2030-01-01", "reason": "x"}',
    ]
    ratings = [b"user,item,rating,time\n1,a,5,10\n2,b,3,11\n1,b,1,12\n"]
    (tmp_path / "titles.csv").write_text("item,title\na,Alien\nb,Brazil\n")
    refused = [0, 0]
    tracemalloc.start()
    for k in range(number):
        kind = k % 4
        try:
            if kind == 0:
                (tmp_path / "r.csv").write_bytes(broken(rng, requests))
                read_request(tmp_path / "r.csv")
            elif kind == 1:
                (tmp_path / "r.json").write_bytes(broken(rng, bodies))
                read_request(tmp_path / "r.json")
            elif kind == 2:
                read_body(broken(rng, bodies))
            else:
                (tmp_path / "interactions.csv").write_bytes(broken(rng, ratings))
                read_data(tmp_path)
            refused[1] += 1
        except CurerecError:
            refused[0] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with capsys.disabled():
        print(f"\n  broken files: {refused[0]} of {number} refused, the rest sound, peak {peak >> 20} MiB")
    assert refused[0] > number // 4 and peak < 64 << 20


def test_ids_that_look_like_anything_survive_the_ledger(tmp_path):
    root = made_store(tmp_path / "store")
    odd = [*XSS, *PATHS, *FORMULAS, "'; DROP TABLE request; --", "\u202e", "𝔘", "r-0000000000000000"]
    with Store(root) as store:
        name, _ = store.ledger.add(Asked("users", tuple((text,) for text in odd)))
        assert store.ledger.entries(name) == [(text,) for text in dict.fromkeys(odd)]
        assert store.ledger.add(users(1))[1]
