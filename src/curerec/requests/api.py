"""The service: requests in, states, progress, reports and metrics out. Run by ``curerec serve``."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from curerec.data.request_file import from_json
from curerec.errors import CurerecError, RefusedError, RequestError
from curerec.requests.desk import Command, Desk, run_command
from curerec.requests.guard import COOKIE, Guard, Sessions, TooLargeError
from curerec.requests.ledger import REQUEST_ID, Asked
from curerec.requests.maintain import status
from curerec.requests.metrics import Metrics
from curerec.requests.schedule import Clerk, Rule

BATCH_ID = re.compile(r"b-[0-9a-f]{16}")
REPORTS = {"report.html": "text/html; charset=utf-8", "record.json": "application/json"}
PAGE = {"/": ("page.html", "text/html; charset=utf-8"), "/page.js": ("page.js", "text/javascript")}
PAGE |= {"/page.css": ("page.css", "text/css")}
MAX_STREAMS = 100
LOOK_S = 0.3  # between looks for new events
CLERK_S = 5.0  # between looks for what is to be run
QUIET_S = 15.0  # after which a stream says that it is alive
LARGEST = 2**63 - 1  # number that SQLite takes
ENDS = ("committed", "held", "cancelled")


def make_app(
    root: Path,
    *,
    token: str,
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1"),
    command: Command = run_command,
    rule: Rule | None = None,
    look_s: float = CLERK_S,
) -> Any:
    """The service as an ASGI application.

    Args:
        root: of the store.
        token: that callers must bear.
        hosts: names it may be asked under.
        command: what a worker process runs.
        rule: when runs start by themselves; None: never.
        look_s: seconds between looks for that.
    """
    desk = Desk(root, command)
    clerk = Clerk(desk, rule or Rule())
    metrics, sessions = Metrics(desk.store, clerk), Sessions()

    async def looking() -> None:
        while clerk.rule.active:
            try:
                clerk.look()
            except Exception as error:  # a ledger that is locked, a disk that fails: the next look sees
                print(f"curerec: no run could be started ({type(error).__name__})", file=sys.stderr)
            await asyncio.sleep(look_s)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(looking())
        yield
        task.cancel()
        desk.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    ledger, streams = desk.store.ledger, [0]

    @app.exception_handler(CurerecError)
    async def refused(request: Request, error: CurerecError) -> Response:
        return _json({"error": str(error)}, _status_of(error))

    @app.exception_handler(TooLargeError)
    async def too_large(request: Request, error: TooLargeError) -> Response:
        return _json({"error": "the body is too large"}, 413)

    def with_papers(row: dict[str, Any]) -> dict[str, Any]:
        """A request's row with the addresses of its report and record, where there are any."""
        found: dict[str, str | None] = {"report": None, "record": None}
        if row["state"] == "committed":
            if (root / "reports" / str(row["batch"]) / "report.html").is_file():
                found["report"] = f"/reports/{row['batch']}/report.html"
            known = ledger.db.execute(
                "SELECT sequence FROM record WHERE request = ? AND action = 'deletion'", (row["id"],)
            ).fetchone()
            found["record"] = None if known is None else f"/records/{known['sequence']}"
        return row | found

    @app.post("/requests")
    async def add(request: Request) -> Response:
        asked, places = read(await request.body())
        name, new = await desk.add(asked, places)
        return _json({"id": name, "new": new}, 201 if new else 200)

    @app.get("/requests")
    async def listed(state: str = "", after: str = "", limit: int = 200) -> Response:
        states = [s for s in state.split(",") if s]
        rows = ledger.all(states, limit=max(1, min(limit, 1000)), after=after)
        return _json({"requests": [with_papers(row) for row in rows]})

    @app.get("/requests/{name}")
    async def one(name: str) -> Response:
        row = ledger.get(name)
        stage = ledger.db.execute("SELECT stage, state FROM batch WHERE id = ?", (row["batch"],)).fetchone()
        return _json({**with_papers(row), "stage": None if stage is None else stage["stage"]})

    @app.delete("/requests/{name}")
    async def cancel(name: str) -> Response:
        await desk.cancel(name)
        return _json({"id": name, "state": "cancelled"})

    @app.get("/requests/{name}/events")
    async def progress(name: str, request: Request, after: int = 0) -> Response:
        ledger.get(name)
        return _stream(name, _after(request, after))

    @app.get("/events")
    async def events(request: Request, after: int = 0) -> Response:
        return _stream(None, _after(request, after))

    def _stream(name: str | None, after: int) -> Response:
        if streams[0] >= MAX_STREAMS:
            return _json({"error": "too many streams"}, 503)

        async def lines() -> AsyncIterator[bytes]:
            streams[0] += 1
            try:
                last, quiet = after, time.monotonic()
                while True:
                    over = name is not None and ledger.get(name)["state"] in ENDS
                    for event in ledger.events(after=last, request=name):
                        last, quiet = event["id"], time.monotonic()
                        yield b"id: %d\nevent: %s\ndata: %s\n\n" % (
                            last,
                            event["kind"].encode(),
                            json.dumps(event).encode(),
                        )
                    if over:
                        yield b"event: end\ndata: {}\n\n"
                        return
                    if time.monotonic() - quiet > QUIET_S:
                        quiet = time.monotonic()
                        yield b": alive\n\n"
                    await asyncio.sleep(LOOK_S)
            finally:
                streams[0] -= 1

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.post("/run")
    async def run(request: Request) -> Response:
        try:
            options = json.loads(await request.body() or b"{}")
        except (ValueError, RecursionError):
            options = None
        known = {"each", "retrain"}
        if not isinstance(options, dict) or not all(
            k in known and isinstance(v, bool) for k, v in options.items()
        ):
            raise RequestError(
                "has unknown options", where="run", mend='Send {"each": true} or {"retrain": true}'
            )
        desk.start(options)
        return _json({"started": True}, 202)

    @app.get("/status")
    async def stand() -> Response:
        last = ledger.db.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0]
        return _json({**status(desk.store), "schedule": clerk.state(), "last_event": last})

    @app.get("/reports/{batch}/{name}")
    async def report(batch: str, name: str) -> Response:
        path = root / "reports" / batch / name
        if not BATCH_ID.fullmatch(batch) or name not in REPORTS or path.is_symlink() or not path.is_file():
            return _json({"error": "there is no such report"}, 404)
        return Response(path.read_bytes(), media_type=REPORTS[name])

    @app.get("/records/{sequence}")
    async def record(sequence: int) -> Response:
        asked = (max(0, min(sequence, LARGEST)),)
        row = ledger.db.execute("SELECT body FROM record WHERE sequence = ?", asked).fetchone()
        if row is None:
            return _json({"error": "there is no such record"}, 404)
        return Response(row["body"], media_type="application/json")

    @app.get("/metrics")
    async def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/health")
    async def health() -> Response:
        ledger.db.execute("SELECT 1").fetchone()
        return _json({"status": "ok"})

    @app.post("/session")
    async def session() -> Response:
        response = _json({})
        response.set_cookie(COOKIE, sessions.make(), httponly=True, samesite="strict", max_age=8 * 3600)
        return response

    for path, (name, kind) in PAGE.items():
        content = (files("curerec.requests") / "page" / name).read_bytes()
        app.add_api_route(path, _constant(content, kind), methods=["GET"])
    return Guard(app, token=token, hosts=hosts, sessions=sessions, timed=metrics.observe)


def read(body: bytes) -> tuple[Asked, tuple[str, ...]]:
    """A request from the body of a POST: ``kind``, ``ids``, and maybe ``reason`` and ``due``.

    Raises:
        RequestError: it is none; no id is quoted.
    """
    try:
        text = body.decode()
        kind, placed = from_json(text, "request", beside=("reason", "due"))
        content = json.loads(text)
    except UnicodeDecodeError:
        raise RequestError("is not UTF-8", where="request", mend="Send JSON in UTF-8") from None
    reason, due = content.get("reason"), content.get("due")
    if not all(value is None or isinstance(value, str) for value in (reason, due)):
        raise RequestError("reason and due are texts", where="request", mend="Send texts")
    entries = tuple(e if isinstance(e, tuple) else (e,) for _, e in placed)
    first = {entry: place for (place, _), entry in reversed(list(zip(placed, entries, strict=True)))}
    distinct = tuple(dict.fromkeys(entries))
    return Asked(kind, distinct, reason, due), tuple(first[e] for e in distinct)


def _constant(content: bytes, kind: str) -> Any:
    async def answer() -> Response:
        return Response(content, media_type=kind)

    return answer


def _after(request: Request, after: int) -> int:
    last = request.headers.get("last-event-id", "")
    # A raised two is a digit to Python, and no number.
    return int(last) if last.isdecimal() and len(last) < 19 else min(max(0, after), LARGEST)


def _json(content: Any, status_code: int = 200) -> Response:
    return Response(json.dumps(content).encode(), status_code, media_type="application/json")


def _status_of(error: CurerecError) -> int:
    if isinstance(error, RefusedError):
        return 409
    if isinstance(error, RequestError):
        return 404 if "no such request" in error.what else 422
    # Of the store (its disk, its table, its policy): a caller who is told that the request is to blame
    # would not send it again.
    return 503


__all__ = ["REQUEST_ID", "make_app", "read"]
