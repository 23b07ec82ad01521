"""Getting bytes from elsewhere: an address, or a package index through the user's own pip.

Waits are short, so that a closed network falls through to the next source in seconds.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curerec.data import cache

#: Told what is going on: a line of text, bytes done, bytes in all or None.
Progress = Callable[[str, int, int | None], None]

CONNECT_S = 5.0
READ_S = 30.0
PIP_S = 900.0
CHUNK_BYTES = 1 << 20


class Unavailable(Exception):
    """A source could not be had or did not match; the message is one clause, shown to the user."""


def tell(progress: Progress | None, text: str, done_bytes: int = 0, total_bytes: int | None = None) -> None:
    """Call ``progress`` if there is one."""
    if progress is not None:
        progress(text, done_bytes, total_bytes)


def download(url: str, target: Path, label: str, progress: Progress | None = None) -> None:
    """Stream an address into a file.

    Raises:
        Unavailable: no connection within :data:`CONNECT_S`, an error status, or fewer bytes than announced.
    """
    reach(url)
    opener = urllib.request.build_opener(_PatientHandler(context=ssl.create_default_context()))
    request = urllib.request.Request(url, headers={"User-Agent": "curerec"})
    try:
        response = opener.open(request, timeout=CONNECT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise Unavailable(f"server answered {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"no connection ({type(error).__name__})") from None
    with response, target.open("wb") as file:
        length = response.headers.get("Content-Length", "")
        total, done = int(length) if length.isdigit() else None, 0
        while True:
            try:
                chunk = response.read(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(f"connection was lost ({type(error).__name__})") from None
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            tell(progress, label, done, total)
    if total is not None and done != total:
        raise Unavailable("connection was lost (fewer bytes than announced)")


def pip_download(requirement: str, folder: Path) -> None:
    """Fetch one wheel from whatever package index the user's pip is set to; nothing is built or installed."""
    # -P: else what lies in the folder that the command is called in would be imported first.
    pip = [sys.executable, "-P", "-m", "pip", "download"]
    pip += ["--no-deps", "--no-cache-dir", "--only-binary", ":all:"]
    quiet = ["--disable-pip-version-check", "--quiet"]
    try:
        done = subprocess.run(
            [*pip, *quiet, "-d", str(folder), requirement],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PIP_S,
            env=os.environ | {"TMPDIR": str(folder)},  # pip's own temporary files go away with ours
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable("pip took too long") from None
    if done.returncode == 0:
        return
    if "No space left on device" in done.stderr:
        raise OSError(next(iter(cache.FULL)), "disk is full")
    if "No module named pip" in done.stderr:
        raise Unavailable("this Python has no pip")
    # Not pip's own words: they name the index, at times with its password.
    raise Unavailable(f"pip download ended with code {done.returncode}")


def reach(url: str) -> None:
    """Give up within :data:`CONNECT_S` where names are not resolved, which no socket timeout covers."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.getproxies().get(parts.scheme):
        return  # the proxy resolves the name
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(parts.hostname, parts.port or 443))
        except OSError:
            return

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(CONNECT_S)
    if not found:
        raise Unavailable("no connection (the name is not resolved)")


class _Patient(http.client.HTTPSConnection):
    """Connects within the request's timeout, then waits longer for data."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_S)


class _PatientHandler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._ours = context

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Patient, request, context=self._ours)
