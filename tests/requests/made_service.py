"""The service as a process of its own, and a client of a few lines that keeps one connection."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import made_store

from curerec.requests.runner import run
from curerec.requests.store import Store

TOKEN = "t0ken-of-the-test-0123456789"


def stand_command(wait_s: float) -> Any:
    """A worker with stand-in stages that take this long each."""

    def command(root: Path, options: dict[str, bool]) -> list[str]:
        here = [str(Path(__file__).parent), *sys.path]
        code = (
            f"import sys; sys.path[:0] = {here!r}\n"
            "import made_store, pathlib, made_service\n"
            f"made_service.work(pathlib.Path({str(root)!r}), {options!r}, {wait_s})"
        )
        return [sys.executable, "-c", code]

    return command


def work(root: Path, options: dict[str, bool], wait_s: float) -> None:
    """What that worker does."""
    with Store(root) as store:
        run(store, made_store.stand(wait_s=wait_s), **options)


@contextmanager
def served(root: Path, *, wait_s: float = 0.0, rule: Any = None) -> Iterator[int]:
    """The service in a fork, at a free port of this machine."""
    import uvicorn

    from curerec.requests.api import make_app
    from curerec.requests.serve import listen_at

    listening = listen_at("127.0.0.1", 0)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            log = os.open(root.parent / "service.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            app = make_app(root, token=TOKEN, command=stand_command(wait_s), rule=rule, look_s=0.05)
            config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
            uvicorn.Server(config).run(sockets=[listening])
            code = 0
        finally:
            os._exit(code)
    port = listening.getsockname()[1]
    listening.close()
    try:
        for _ in range(200):
            try:
                if ask(port, "GET", "/health", token=None)[0] == 200:
                    break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        os.kill(pid, 15)
        os.waitpid(pid, 0)


def ask(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = TOKEN,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any, dict[str, str]]:
    """One question on a connection of its own: status, body, headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        sent = {"Authorization": f"Bearer {token}"} if token else {}
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, raw, sent | (headers or {}))
        answer = connection.getresponse()
        content = answer.read()
        found = {k.lower(): v for k, v in answer.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content, found
    finally:
        connection.close()


def start(port: int) -> int:
    """Start a run, once the worker before is gone."""
    for _ in range(200):
        if (status := ask(port, "POST", "/run")[0]) != 409:
            return status
        time.sleep(0.05)
    return 409


class Line:
    """One kept-alive connection."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes, float]:
        """Status, body, seconds."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        start = time.perf_counter()
        self.writer.write(head.encode() + body)
        raw = await self.reader.readuntil(b"\r\n\r\n")
        length = int(raw.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        content = await self.reader.readexactly(length)
        return int(raw[9:12]), content, time.perf_counter() - start

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()
