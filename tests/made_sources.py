"""A small data set and what a test needs to offer it as a public one."""

from __future__ import annotations

import http.server
from pathlib import Path

from curerec.data.sources import Member, Wheel

NAME = "ml-small"
MEMBERS = (Member("u.data", "u.data"), Member("u.item", "u.item"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def good_wheel(small) -> Wheel:
    return Wheel("tiny==1", MEMBERS, small.digest)


def empty(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())
