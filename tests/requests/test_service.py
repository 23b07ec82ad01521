"""The service over real sockets: who may ask, what comes back, and how fast under load."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient
from made_service import TOKEN, Line, ask, served, start
from made_store import made_data, made_store, stand, users

from curerec.errors import ConfigError
from curerec.requests.desk import run_command
from curerec.requests.runner import run
from curerec.requests.serve import serve, token_of
from curerec.requests.store import Store
from made_commands import curerec


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = made_store(tmp_path_factory.mktemp("service") / "store")
    with served(root, wait_s=0.05) as port:
        yield root, port


def settled(port, name, states=("committed", "held")):
    for _ in range(400):
        row = ask(port, "GET", f"/requests/{name}")[1]
        if row["state"] in states:
            return row
        time.sleep(0.05)
    raise AssertionError(row)


def test_a_request_from_post_to_report(service):
    _, port = service
    body = {"kind": "users", "ids": ["usr001", "usr002"], "reason": "by letter", "due": "2030-01-31"}
    status, made, _ = ask(port, "POST", "/requests", body)
    assert status == 201 and made["new"]
    assert ask(port, "POST", "/requests", body)[:2] == (200, {"id": made["id"], "new": False})
    assert ask(port, "GET", f"/requests/{made['id']}")[1]["state"] == "open"
    assert ask(port, "POST", "/run", {})[0] == 202
    assert ask(port, "POST", "/run", {})[0] == 409
    row = settled(port, made["id"])
    assert row["state"] == "committed"
    status, page, headers = ask(port, "GET", f"/reports/{row['batch']}/report.html")
    assert (
        status == 200
        and page.startswith(b"<!")
        and "default-src 'none'" in headers["content-security-policy"]
    )
    assert ask(port, "GET", "/status")[1]["requests"]["committed"] >= 1
    assert ask(port, "GET", "/records/1")[1]["predicate"]["action"] == "init"
    text = ask(port, "GET", "/metrics")[1].decode()
    assert 'curerec_requests{state="committed"} 1.0' in text and 'route="/requests/{name}"' in text
    assert made["id"] not in text and "usr" not in text


@pytest.mark.slow
def test_events_tell_every_stage_and_end(service):
    _, port = service
    name = ask(port, "POST", "/requests", {"kind": "users", "ids": ["usr003"]})[1]["id"]
    assert start(port) == 202
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/requests/{name}/events", headers={"Authorization": f"Bearer {TOKEN}"})
    answer = connection.getresponse()
    assert answer.getheader("content-type").startswith("text/event-stream")
    raw = answer.read().decode()  # ends by itself
    connection.close()
    told = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: ")]
    stages = [event["text"] for event in told[:-1] if event["kind"] == "stage"]
    assert stages == ["circuit", "groups", "update", "verdict", "commit"] and "event: end" in raw
    ids = [event["id"] for event in told[:-1]]
    assert ids == sorted(set(ids)) and "usr" not in raw


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x"])
def test_without_the_token_nothing_is_told(service, token):
    _, port = service
    for method, path in (
        ("GET", "/requests"), ("POST", "/requests"), ("GET", "/status"), ("GET", "/metrics"),
        ("GET", "/events"), ("GET", "/records/1"), ("GET", "/nothing"), ("POST", "/session"),
        ("POST", "/run"), ("DELETE", "/health"),
    ):  # fmt: skip
        status, body, headers = ask(port, method, path, token=token)
        assert (status, body) == (401, {"error": "needs the bearer token"}), path
        assert headers["www-authenticate"] == "Bearer"
    for path in ("/", "/page.js", "/page.css", "/health"):
        assert ask(port, "GET", path, token=token)[0] == 200


def test_a_session_reads_and_does_not_write(service):
    _, port = service
    cookie = ask(port, "POST", "/session")[2]["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    sent = {"Cookie": cookie.split(";")[0]}
    assert ask(port, "GET", "/status", token=None, headers=sent)[0] == 200
    assert ask(port, "POST", "/run", token=None, headers=sent)[0] == 401
    assert ask(port, "GET", "/status", token=None, headers={"Cookie": "curerec=forged"})[0] == 401


def test_another_name_is_not_answered(service):
    _, port = service
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert ask(port, "GET", "/status", headers={"Host": host})[0] in (400, 421)


def test_a_proxy_s_name_is_answered_where_the_operator_gives_it(tmp_path, monkeypatch):
    """At 0.0.0.0 no name is meant, so that without one nobody elsewhere would be answered: it says so."""
    told, asked = [], []

    def stopped(server, sockets):
        sockets[0].close()
        asked.append(server.config.app)

    monkeypatch.setattr("uvicorn.Server.run", stopped)
    root = made_store(tmp_path / "store")
    umask = os.umask(0o077)
    for names in ((), ("forget.example",)):
        serve(root, host="0.0.0.0", port=0, names=names, token_file=None, say=told.append)
    os.umask(umask)
    assert sum("without --name" in line for line in told) == 1

    def status(app, host):
        return TestClient(app).get("/health", headers={"host": host}).status_code

    plain, named = asked
    assert status(plain, "forget.example:8765") == status(named, "other.example") == 421
    assert status(named, "forget.example:8765") == status(plain, "localhost:8765") == 200


def test_a_state_that_no_request_can_be_in_is_refused(service):
    """As an empty list it would say that nothing is open."""
    root, port = service
    assert ask(port, "GET", "/requests?state=opn")[0] == 422
    assert ask(port, "GET", "/requests?state=open,held")[0] == 200
    for words in (("--state", "opn"), ("--format", "xml")):
        result = curerec("request", "list", "--store", root, *words)
        assert result.code == 2 and "Use " in result.err


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"\xff", 422),
        (b"[" * 100_000, 422),
        (b'{"kind": "users"}', 422),
        (b'{"kind": "users", "ids": []}', 422),
        (b'{"kind": "users", "ids": [[1]]}', 422),
        (b'{"kind": "users", "ids": [true]}', 422),
        (b'{"kind": "users", "ids": ["SECRET"]}', 422),
        (b'{"kind": "users", "ids": ["\\ud800"]}', 422),
        (b'{"kind": "interactions", "ids": ["usr001"]}', 422),
        (b'{"kind": "users", "ids": ["usr005"], "due": "SECRET"}', 422),
        (b'{"kind": "users", "ids": ["usr005"], "reason": 5}', 422),
        (b'{"kind": "users", "ids": ["usr005"], "reason": "SECRET\\ud800"}', 422),
        (b'{"kind": "users", "ids": ["usr005"], "SECRET": 5}', 422),
        (b'{"kind": "users", "ids": ["usr005"], "ids": ["usr006"]}', 422),
        (b'{"kind": "users", "ids": ["' + b"x" * (1 << 20) + b'"]}', 413),
    ],
)
def test_bodies_that_are_no_request(service, body, status):
    _, port = service
    found, answer, _ = ask(port, "POST", "/requests", body)
    assert found == status and set(answer) == {"error"} and "SECRET" not in answer["error"]


def test_a_body_without_length_is_counted(service):
    _, port = service
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    block = b"x" * 65536
    try:
        connection.request(
            "POST",
            "/requests",
            (block for _ in range(40)),
            {"Authorization": f"Bearer {TOKEN}"},
            encode_chunked=True,
        )
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # turned away before all of it was sent
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/requests/r-0000000000000000", "/requests/x", "/requests/..%2f..%2fledger.sqlite", "/nothing",
        "/reports/b-0000000000000000/report.html", "/reports/../ledger.sqlite",
        "/reports/b-0/../../keys/ledger",
        "/reports/%2e%2e/%2e%2e", "/records/999", "/reports/b-0000000000000000/..%2f..%2fkeys%2fledger",
    ],
)  # fmt: skip
def test_paths_to_nothing(service, path):
    _, port = service
    assert ask(port, "GET", path)[0] in (404, 422)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/run", b"[" * 100_000, {}, 422),
        ("GET", f"/records/{2**63}", None, {}, 404),
        ("GET", f"/records/-{2**64}", None, {}, 404),
        ("GET", "/requests/r-0123456789abcdef/events", None, {"Last-Event-ID": "\xb2"}, 404),
    ],
)
def test_numbers_and_depths_past_all_bounds(service, method, path, body, headers, status):
    _, port = service
    assert ask(port, method, path, body, headers=headers)[0] == status


@pytest.mark.parametrize("last", ["\xb2", "9" * 30, "1", ""])
def test_a_stream_starts_wherever_it_is_asked_to(service, last):
    _, port = service
    name = ask(port, "POST", "/requests", {"kind": "users", "ids": ["usr021"]})[1]["id"]
    ask(port, "DELETE", f"/requests/{name}")
    for path, headers in ((f"?after={2**63}", {}), ("", {"Last-Event-ID": last})):
        status, told, _ = ask(port, "GET", f"/requests/{name}/events{path}", headers=headers)
        assert status == 200 and told.endswith(b"event: end\ndata: {}\n\n")


def test_cancel(service):
    _, port = service
    name = ask(port, "POST", "/requests", {"kind": "users", "ids": ["usr020"]})[1]["id"]
    assert ask(port, "DELETE", f"/requests/{name}")[0] == 200
    assert ask(port, "GET", f"/requests/{name}")[1]["state"] == "cancelled"


def test_the_token_is_made_once_and_for_its_owner_alone(tmp_path):
    root = made_store(tmp_path / "store")
    token, path = token_of(root, None)
    assert token_of(root, None) == (token, path) and len(token) > 30
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(root.stat().st_mode) == 0o700
    short = tmp_path / "short"
    short.write_text("abc")
    for file in (short, tmp_path / "none"):
        with pytest.raises(ConfigError):
            token_of(root, file)


@pytest.mark.slow
@pytest.mark.parametrize("number", [200, pytest.param(2000, marks=pytest.mark.soak)])
def test_fifty_clients_while_a_run_is_under_way(number, tmp_path, capsys):
    root = made_store(tmp_path / "store", data=made_data(number + 50))
    with Store(root) as store:
        store.ledger.add(users(number + 20))

    async def client(port, line, mine, seen):
        await line.open()
        await asyncio.sleep(0.02 * mine)
        for k in range(mine, number, 50):
            body = json.dumps({"kind": "users", "ids": [f"usr{k:03d}"]}).encode()
            status, raw, add_s = await line.ask("POST", "/requests", body)
            assert status == 201, raw
            name = json.loads(raw)["id"]
            status, raw, get_s = await line.ask("GET", f"/requests/{name}")
            assert status == 200
            seen.append((name, add_s, get_s))
            await asyncio.sleep(1.0)  # a client is a person or a queue, not a loop without a pause
        await line.close()

    async def all_clients(port):
        seen = []
        lines = [Line(port) for _ in range(50)]
        await asyncio.gather(*(client(port, line, k, seen) for k, line in enumerate(lines)))
        return seen

    with served(root, wait_s=(number / 50 + 4) / 4) as port:
        assert ask(port, "POST", "/run")[0] == 202
        for _ in range(200):
            if ask(port, "GET", "/status")[1]["running"]:
                break
            time.sleep(0.05)
        seen = asyncio.run(all_clients(port))
        assert ask(port, "GET", "/status")[1]["running"], "the run ended before the load"
        state = ask(port, "GET", "/status")[1]["requests"]
    assert len({name for name, _, _ in seen}) == number and sum(state.values()) == number + 1
    p99 = [float(np.quantile([row[k] for row in seen], 0.99)) * 1000 for k in (1, 2)]
    p50 = [float(np.quantile([row[k] for row in seen], 0.5)) * 1000 for k in (1, 2)]
    with capsys.disabled():
        print(
            f"\n  50 clients, {number} requests, a run under way: "
            f"add p50 {p50[0]:.0f} ms, p99 {p99[0]:.0f} ms; "
            f"state p50 {p50[1]:.0f} ms, p99 {p99[1]:.0f} ms; all accepted once"
        )


def test_a_fault_of_the_store_is_not_said_to_be_the_caller_s(tmp_path):
    """Told that its request is to blame, a caller would not send it again."""
    root = made_store(tmp_path / "store")
    asked = {"kind": "users", "ids": ["usr001"]}
    file, policy = next(root.glob("data/*/rating.npy")), root / "policy.yaml"
    whole, said = file.read_bytes(), policy.read_text()
    with served(root) as port:
        file.write_bytes(whole[:-8])
        assert ask(port, "POST", "/requests", asked)[0] == 503
        file.write_bytes(whole)
        assert ask(port, "POST", "/requests", asked)[0] == 201
        policy.write_text("unknown: 1\n")
        assert ask(port, "GET", "/status")[0] == ask(port, "GET", "/metrics")[0] == 503
        policy.write_text(said)
        assert ask(port, "GET", "/status")[0] == 200


def test_a_worker_imports_nothing_from_the_folder_that_the_service_was_started_in(tmp_path, monkeypatch):
    (tmp_path / "curerec.py").write_text("raise SystemExit(77)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    command = run_command(tmp_path, {})
    start = command[: command.index("request")]
    assert (
        subprocess.run([*start, "--version"], cwd=tmp_path, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.slow
def test_a_worker_that_dies_leaves_the_service_up(tmp_path):
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        store.ledger.add(users(1))
    with served(root, wait_s=0.3) as port:
        ask(port, "POST", "/run")
        for _ in range(200):
            if ask(port, "GET", "/status")[1]["batches"]:
                break
            time.sleep(0.02)
    with Store(root) as store:  # the worker outlives the service or is finished by the next run
        for _ in range(100):
            if store.ledger.counts()["committed"]:
                break
            time.sleep(0.1)
        run(store, stand())
        assert store.ledger.counts()["committed"] == 1
