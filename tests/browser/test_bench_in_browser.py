"""The benchmark's page in a real browser: quiet, inside the viewport, readable in both themes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from curerec.bench.summary import write_summary
from made_cases import in_turn

for folder in ("bench", "browser"):
    sys.path.append(str(Path(__file__).resolve().parents[1] / folder))
made_bench = importlib.import_module("made_bench")
report = importlib.import_module("test_report_page")
browser, pytestmark = report.browser, report.pytestmark


@pytest.fixture(scope="module")
def page_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All methods with planted residuals from 0 to beyond the scale, long failures, and a sequence."""
    folder = tmp_path_factory.mktemp("bench")
    recipe = made_bench.made_recipe(
        seeds=[20, 21, 22],
        search={"seed": 0},
        requests=[{"share": 0.1}, {"share": 0.1, "parts": 10, "methods": ["cure", "random_modules"]}],
    )
    names = recipe.requests[0].chosen
    worth: dict[str, float | None] = {name: 0.2 + 0.06 * k for k, name in enumerate(names)}
    worth |= {"rome": None, "grad_ascent": 1.7}
    made_bench.made_rows(folder, recipe, worth=worth, n=120)
    write_summary(folder)
    return folder / "bench.html"


@pytest.mark.slow_but("390-light", "1280-dark")
@in_turn(width=[report.WIDE, report.NARROW], scheme=["light", "dark"])
def test_the_page_is_quiet_fits_and_can_be_read(
    browser: Any, page_of_all: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    page, noise = report.opened(browser, page_of_all, width=width, scheme=scheme)
    try:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(report.OVERFLOW) == []
        assert page.evaluate(report.COLLISIONS) == []
        assert page.evaluate(report.FAINT) == []
        shot = tmp_path / f"bench-{width}-{scheme}.png"
        assert report.picture(page, shot) > 20_000
        assert noise == []
    finally:
        page.close()
