"""The circuit's page in a real browser: quiet, inside the viewport, readable, and its slider works."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curerec.reports.circuit_page import write_circuit_page
from made_cases import in_turn

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "reports"), str(Path(__file__).resolve().parent)]
made_circuit = importlib.import_module("made_circuit").made_circuit
checks = importlib.import_module("test_report_page")

pytestmark = checks.pytestmark
NARROW, WIDE = checks.NARROW, checks.WIDE


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with checks.sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=checks.CHROMIUM, args=checks.ARGS)
        yield launched
        launched.close()


@pytest.fixture(params=[(2, 4), (12, 12)], ids=["small", "large"])
def page_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    layers, heads = request.param
    return write_circuit_page(made_circuit(layers=layers, heads=heads), tmp_path / "circuit.html")


@pytest.mark.slow_but("small-390-light", "large-1280-dark")
@in_turn(width=[WIDE, NARROW], scheme=["light", "dark"])
def test_the_page_is_quiet_fits_and_can_be_read(
    browser: Any, page_file: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    page, noise = checks.opened(browser, page_file, width=width, scheme=scheme)
    try:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(checks.OVERFLOW) == []
        assert page.evaluate(checks.COLLISIONS) == []
        assert page.evaluate(checks.FAINT) == []
        shot = tmp_path / f"circuit-{width}-{scheme}.png"
        assert checks.picture(page, shot) > 20_000 and noise == []
    finally:
        page.close()


def test_the_slider_shows_the_circuit_of_its_size(browser: Any, tmp_path: Path) -> None:
    file = made_circuit()
    page, noise = checks.opened(browser, write_circuit_page(file, tmp_path / "circuit.html"))
    inside = "[...document.querySelectorAll('.node.in:not(.end)')].map(n => n.dataset.name)"
    core = {n["name"] for n in file["nodes"] if n["in_graph"]}
    assert set(page.evaluate(inside)) == core
    assert page.locator("#said").inner_text() == "5 of 10 parts keep 90 % of the margin"
    page.locator("#slider").fill("2")
    assert set(page.evaluate(inside)) == {n["name"] for n in file["nodes"] if n["rank"] < 2}
    assert "2 of 10" in page.locator("#said").inner_text()
    shown = "[...document.querySelectorAll('.edge:not(.off)')].map(e => [e.dataset.source, e.dataset.target])"
    kept = {*page.evaluate(inside), "input", "logits"}
    assert all(s in kept and t in kept for s, t in page.evaluate(shown))
    page.locator("#slider").focus()
    page.keyboard.press("ArrowRight")
    assert "3 of 10" in page.locator("#said").inner_text()
    page.locator('.faith .point[data-size="10"]').dispatch_event("click")
    assert len(page.evaluate(inside)) == 10
    page.locator("#back").click()
    assert set(page.evaluate(inside)) == core and noise == []
    page.close()


def test_pointing_and_the_keyboard_show_numbers(browser: Any, tmp_path: Path) -> None:
    file = made_circuit()
    page, noise = checks.opened(browser, write_circuit_page(file, tmp_path / "circuit.html"))
    name = next(n["name"] for n in file["nodes"] if n["in_graph"] and n["reads"] and n["reads"]["part"])
    node = page.locator(f'.node[data-name="{name}"]')
    node.hover()
    detail = page.locator("#detail").inner_text()
    assert "95 % interval" in detail and "reads" in detail and "task-shared" in detail
    node.click()
    page.mouse.move(5, 5)
    assert page.evaluate("document.querySelectorAll('.edge.dim').length") > 0
    page.keyboard.press("Escape")
    assert page.evaluate("document.querySelectorAll('.edge.dim').length") == 0
    other = page.locator('.node[data-name="layers.1.mlp"]')
    other.focus()
    assert "Layer 1, MLP" in page.locator("#detail-title").inner_text()
    page.locator(".edge:not(.off) .hit").first.dispatch_event("pointerenter")
    assert noise == []
    page.close()


def test_an_attack_in_the_file_does_nothing(browser: Any, tmp_path: Path) -> None:
    file = made_circuit()
    attack = '</script></svg></style><script>alert(1)</script><img src=x onerror=alert(1)>" onload="alert(1)'
    file["notes"] = [attack]
    file["about"] = {"data": attack, "base": attack}
    file["scorer"] = file["nodes"][0]["name"] = file["edges"][0]["source"] = attack
    page, noise = checks.opened(browser, write_circuit_page(file, tmp_path / "circuit.html"))
    assert noise == [] and page.evaluate("document.images.length") == 0
    page.close()
