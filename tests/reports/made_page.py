"""A page as a reader of HTML sees it, and whether it could do anything."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADS = {
    "script",
    "link",
    "img",
    "iframe",
    "object",
    "embed",
    "video",
    "audio",
    "source",
    "base",
    "form",
    "input",
}


class Page(HTMLParser):
    """Tags, attributes and visible text; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.comments: list[str] = []
        self.style = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text).replace("\u00a0", " "))


def assert_inert(html: str) -> Page:
    """Nothing that runs, loads or leads away."""
    page = Page(html)
    assert not LOADS & page.tags.keys()
    assert page.comments == []
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert (
            "javascript:" not in value.lower()
            and "://" not in value
            and "data:" not in value.replace("img-src data:", "")
        ), (tag, name, value)
        assert "url(" not in value or re.fullmatch(r"url\(#hatch-\w+\)", value)
        if name == "href":
            assert re.fullmatch(r"#s\d", value), value
        assert name not in {"src", "srcset", "action", "formaction", "xlink:href", "ping", "background"}
        if name == "style":
            assert re.fullmatch(r"width:[0-9.]+%", value), value
    assert "http://" not in html.lower() and "https://" not in html.lower()
    assert "@import" not in page.style and "url(" not in page.style
    return page


def assert_scrolled_by_keys(html: str) -> None:
    """What scrolls by itself takes the keyboard's focus, and says what it is (WCAG 2.1.1, 4.1.2)."""
    boxes = re.findall(r'<div class="scroll[^>]*>', html)
    assert boxes
    for box in boxes:
        assert 'tabindex="0"' in box and 'role="region"' in box, box
        assert re.search(r'aria-label="[^"]+"', box), box
