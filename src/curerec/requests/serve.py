"""Starting the service: token, address, server."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from curerec.data import durable
from curerec.errors import ConfigError, StorageError
from curerec.requests.schedule import Rule
from curerec.requests.store import DATABASE

TOKEN = "token"
MIN_TOKEN = 16
EVERYWHERE = ("0.0.0.0", "::")


def token_of(root: Path, file: Path | None) -> tuple[str, Path]:
    """The bearer token and where it stands; made in the store if no file is named.

    Raises:
        ConfigError: the file is not there, or its token is short.
    """
    path = file or root / "keys" / TOKEN
    if file is None and not path.exists():
        durable.write(path, secrets.token_urlsafe(32).encode())
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            "cannot be read", where="token file", mend="Name a file with one line of ASCII"
        ) from None
    if len(token) < MIN_TOKEN or not token.isprintable() or " " in token:
        mend = "Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        raise ConfigError(f"holds no token of at least {MIN_TOKEN} characters", where="token file", mend=mend)
    return token, path


def serve(
    root: Path,
    *,
    host: str,
    port: int,
    names: Sequence[str] = (),
    token_file: Path | None,
    say: Callable[[str], None],
    rule: Rule | None = None,
) -> None:
    """Listen until stopped; start runs by ``rule``.

    Args:
        root: the store.
        host, port: to listen at.
        names: that requests may be addressed to (their ``Host``) beside ``host`` and those of this machine;
            others are refused, since a page elsewhere could have its name lead here (DNS rebinding).
        token_file: holds the bearer token; None: made in the store.
        say: told what an operator should know.
        rule: when runs start by themselves.

    Raises:
        StorageError: ``root`` is no store, or the address is taken.
        ConfigError: the extra ``serve`` is not installed, or the token cannot be used.
    """
    try:
        import uvicorn

        from curerec.requests.api import make_app
    except ImportError:
        raise ConfigError(
            "needs the extra `serve`", where="serve", mend="In a clone: pip install -e '.[serve]'"
        ) from None
    if not (root / DATABASE).is_file():
        raise StorageError("is no store", where=root.name, mend="`curerec request init` makes one")
    token, path = token_of(root, token_file)
    try:
        listening = listen_at(host, port)
    except OSError as error:
        raise StorageError(
            f"cannot be listened at ({error.strerror})", where="address", mend="Name another"
        ) from None
    hosts = ("127.0.0.1", "localhost", "::1", host, *names)
    app = make_app(root.resolve(), token=token, hosts=hosts, rule=rule)
    if host in EVERYWHERE and not names:
        say(f"warning: {host} is no name to be asked under: without --name only this machine is answered")
    if not _loopback(host):
        say("warning: reachable from other machines, without TLS; put a proxy with TLS before it")
    shown = f"[{host}]" if ":" in host else host
    say(f"listening at http://{shown}:{listening.getsockname()[1]}/ (token in {path})")
    os.umask(0o077)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listening])


def listen_at(host: str, port: int) -> socket.socket:
    """A listening socket.

    Without TCP_NODELAY, which asyncio does not set for a socket it is handed, every answer in two parts waits
    40 ms for the client's delayed acknowledgement.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=512)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
