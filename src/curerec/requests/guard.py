"""What stands before every answer of the service: who may ask, from where, and how much."""

from __future__ import annotations

import hmac
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

MAX_BODY_BYTES = 1 << 20
OPEN = frozenset({"/", "/page.js", "/page.css", "/health"})  # hold no data
COOKIE = "curerec"
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
NOWHERE = b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
CSP = NOWHERE + b"script-src 'self'; style-src 'self'; connect-src 'self'"
REPORT_CSP = NOWHERE + b"style-src 'unsafe-inline'; img-src data:"


class Sessions:
    """Cookies of browsers that showed the token; they may read, not write, and end with the service."""

    def __init__(self, limit: int = 64) -> None:
        self.known: list[str] = []
        self.limit = limit

    def make(self) -> str:
        """A new one; the oldest goes when there are too many."""
        self.known = [*self.known, secrets.token_urlsafe(32)][-self.limit :]
        return self.known[-1]

    def has(self, value: str) -> bool:
        """Whether it is one."""
        return any([hmac.compare_digest(value.encode(), known.encode()) for known in self.known])


class Guard:
    """ASGI middleware: host, bearer token, body limit, headers, and no word of an error that is not ours.

    Args:
        app: behind it.
        token: that every request but those in :data:`OPEN` must bear.
        hosts: names under which the service is asked; others are turned away (DNS rebinding).
        sessions: of browsers.
        timed: told of route, status and seconds of every answer.
        log: told of errors, without their text.
    """

    def __init__(
        self,
        app: App,
        *,
        token: str,
        hosts: Iterable[str],
        sessions: Sessions,
        timed: Callable[[str, int, float], None] | None = None,
        log: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self.timed = timed
        self.app, self.token, self.sessions, self.log = app, token.encode(), sessions, log
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {k.lower(): v for k, v in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        started, status, start = False, 500, time.perf_counter()
        path = scope["path"]

        async def sending(message: dict[str, Any]) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                csp = REPORT_CSP if path.startswith("/reports/") else CSP
                message["headers"] = [*message["headers"], *HEADERS, (b"content-security-policy", csp)]
            await send(message)

        taken = 0

        async def receiving() -> dict[str, Any]:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY_BYTES:
                raise TooLargeError
            return message

        try:
            await self.app(scope, receiving, sending)
        except Exception as error:
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = "" if place is None else f" at {place.tb_frame.f_code.co_name}:{place.tb_lineno}"
            self.log(f"curerec: internal error {type(error).__name__}{where}")
            if not started:
                await _answer(send, 500, "internal error")
        finally:
            if self.timed is not None:
                pattern = getattr(scope.get("route"), "path", "none")
                self.timed(pattern, status, time.perf_counter() - start)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name.strip("[]") not in self.hosts:
            return 421, "this service is not asked under that name; `curerec serve --name` allows one"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return 413, "the body is too large"
        if scope["path"] in OPEN and scope["method"] in ("GET", "HEAD"):
            return None
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.token):
            return None
        if scope["method"] in ("GET", "HEAD") and self._session(headers.get(b"cookie", b"")):
            return None
        return 401, "needs the bearer token"

    def _session(self, cookie: bytes) -> bool:
        try:
            found = SimpleCookie(cookie.decode("latin-1")).get(COOKIE)
        except CookieError:
            return False
        return found is not None and self.sessions.has(found.value)


class TooLargeError(Exception):
    """A body that grew past the limit while it came in."""


async def _answer(send: Send, status: int, text: str) -> None:
    more = [(b"www-authenticate", b"Bearer")] if status == 401 else []
    headers = [(b"content-type", b"application/json"), *more, *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"error": "%s"}' % text.encode()})
