"""The report in a real browser: offline, quiet, inside the viewport, readable in both themes."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curerec.reports.html import write_report
from curerec.reports.schema import SCHEMA
from made_cases import in_turn

# The records live with the tests of the pictures; that folder is not on the path when this one runs alone.
sys.path.append(str(Path(__file__).resolve().parents[1] / "reports"))
made_records = importlib.import_module("made_records")
sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
ARGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WIDE, NARROW = 1280, 390


def failing_record() -> dict[str, Any]:
    """Not verified, with words far longer than any line."""
    record = made_records.full_record()
    record["verdict"]["verified"] = False
    for check in record["verdict"]["checks"]:
        check.update(passed=False, name="a_check_" + "x" * 60, text="no" * 200)
    record["dataset"].update(name="n" * 200, source="https://example.org/" + "s" * 300)
    record["model"].update(base="b" * 300, note="<b>" + "w" * 300)
    record["update"]["stop_reason"] = "r" * 300
    record["metrics"]["m" * 120] = record["metrics"]["npo"]
    record["residual"]["m" * 120] = 7.5
    record["config"] = {"k" * 200: "v" * 500}
    record["cost"]["stages"][0]["name"] = "s" * 200
    return record


RECORDS: dict[str, Callable[[], dict[str, Any]]] = {
    "full": made_records.full_record,
    "production": made_records.production_record,
    "failing": failing_record,
    "bare": lambda: {"schema": SCHEMA, "method": "cure", "metrics": {"original": {}, "cure": {}}},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield launched
        launched.close()


@pytest.fixture(params=sorted(RECORDS))
def report(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_report(RECORDS[request.param](), tmp_path / "report.html")


def picture(page: Any, path: Path) -> int:
    """Bytes of a picture of the whole page. Chromium now and then refuses one capture and takes the next."""
    try:
        page.screenshot(path=path, full_page=True)
    except sync_api.Error as error:
        if "Unable to capture screenshot" not in str(error):
            raise
        page.screenshot(path=path, full_page=True)
    return path.stat().st_size


def opened(browser: Any, report: Path, *, width: int = WIDE, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, and everything it asked for or complained about."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    noise: list[str] = []
    address = report.as_uri()
    page.on("request", lambda r: None if r.url == address else noise.append(f"asked for {r.url}"))
    page.on("console", lambda m: noise.append(f"{m.type}: {m.text}"))
    page.on("pageerror", lambda e: noise.append(str(e)))
    page.on("dialog", lambda d: (noise.append(f"dialog {d.message}"), d.dismiss()))
    page.goto(address)
    page.wait_for_load_state("networkidle")
    return page, noise


# What lies right of the viewport and is not inside a box that scrolls by itself.
OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth, out = [];
  for (const e of document.body.querySelectorAll('*')) {
    const box = e.getBoundingClientRect();
    if (!box.width || (box.right <= wide + 1 && box.left >= -1)) continue;
    let p = e.parentElement, inside = false;
    for (; p && !inside; p = p.parentElement) inside = getComputedStyle(p).overflowX === 'auto';
    if (!inside) out.push(e.tagName + '.' + (e.getAttribute('class') || '') + ' ' + box.right);
  }
  if (document.documentElement.scrollWidth > wide) out.push('page ' + document.documentElement.scrollWidth);
  return out;
}"""

# Pairs of SVG labels whose drawn boxes overlap.
COLLISIONS = """() => {
  const out = [];
  for (const svg of document.querySelectorAll('svg')) {
    const all = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    const shown = all.filter(([, b]) => b.width);
    shown.forEach(([a, p], i) => shown.slice(i + 1).forEach(([b, q]) => {
      const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (x > 1 && y > 0.3 * Math.min(p.height, q.height)) out.push(a + ' | ' + b);
    }));
  }
  return out;
}"""

# Text whose contrast with the nearest filled background is under 4.5.
FAINT = """() => {
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= 10 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = c => c.slice(0, 3).map(linear).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const out = [];
  for (const e of document.body.querySelectorAll('*')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getBoundingClientRect().width || ['title', 'desc'].includes(e.tagName)) continue;
    const style = getComputedStyle(e), ink = rgb(e.closest('svg') ? style.fill : style.color);
    let p = e, paper = [];
    for (; p; p = p.parentElement) {
      paper = rgb(getComputedStyle(p).backgroundColor);
      if (paper.length === 3 || paper[3] > .9) break;
    }
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x), contrast = (a + .05) / (b + .05);
    if (contrast < 4.5) out.push(e.textContent.slice(0, 40) + ' ' + contrast.toFixed(2));
  }
  return out;
}"""


@pytest.mark.slow_but("bare-390-light", "full-1280-dark", "failing-390-dark")
@in_turn(width=[WIDE, NARROW], scheme=["light", "dark"])
def test_the_page_is_quiet_fits_and_can_be_read(
    browser: Any, report: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    page, noise = opened(browser, report, width=width, scheme=scheme)
    try:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(OVERFLOW) == []
        assert page.evaluate(COLLISIONS) == []
        assert page.evaluate(FAINT) == []
        shot = tmp_path / f"report-{width}-{scheme}.png"
        assert picture(page, shot) > 20_000
        assert noise == []
    finally:
        page.close()


def test_the_verdict_is_in_the_first_screen(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(
        browser, write_report(made_records.full_record(), tmp_path / "report.html"), width=NARROW
    )
    box = page.locator("h1").bounding_box()
    assert box["y"] + box["height"] < 400
    assert page.locator("h1").inner_text().startswith("Verified")
    page.close()


def test_sections_are_reached_by_the_list_of_sections(browser: Any, tmp_path: Path) -> None:
    page, noise = opened(browser, write_report(made_records.full_record(), tmp_path / "report.html"))
    page.get_by_role("link", name="What is not claimed").click()
    page.wait_for_timeout(200)  # not wait_for_function: that needs eval, which the page's policy forbids
    assert -1 <= page.evaluate("document.getElementById('s7').getBoundingClientRect().top") < 450
    assert noise == []
    page.close()


def test_a_table_that_is_too_wide_is_scrolled_by_keys(browser: Any, tmp_path: Path) -> None:
    """It takes the focus by Tab, under its name, and then moves with the arrow keys."""
    page, noise = opened(browser, write_report(failing_record(), tmp_path / "report.html"), width=NARROW)
    hidden = "(e => e.querySelector(':scope > table') ? e.scrollWidth - e.clientWidth : 0)"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(f"{hidden}(document.activeElement)") > 0:
            break
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label and page.get_by_role("region", name=label, exact=True).count() == 1
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert page.evaluate("document.activeElement.scrollLeft") > 0
    assert noise == []
    page.close()


def test_an_attack_in_the_record_does_nothing(browser: Any, tmp_path: Path) -> None:
    record = made_records.full_record()
    attack = '</svg></style></title><script>alert(1)</script><img src=x onerror=alert(1)>" onload="alert(1)'
    record["dataset"]["name"] = record["model"]["base"] = record["update"]["stop_reason"] = attack
    record["metrics"][attack] = record["metrics"]["npo"]
    record["circuit"]["scores"][0]["module"] = attack
    record["config"] = {attack: attack}
    page, noise = opened(browser, write_report(record, tmp_path / "report.html"))
    assert noise == []
    assert page.evaluate("document.scripts.length + document.images.length") == 0
    page.close()


@pytest.mark.slow
def test_print_shows_what_is_folded_on_screen(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(
        browser, write_report(made_records.full_record(), tmp_path / "report.html"), scheme="dark"
    )
    page.emulate_media(media="print")
    assert page.evaluate("document.querySelector('.members').getBoundingClientRect().height") > 20
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    assert len(page.pdf(format="A4")) > 20_000
    page.close()
