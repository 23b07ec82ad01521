"""The service's page in a real browser: login, list, progress, report; nothing foreign is run."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "requests"))
made_service = importlib.import_module("made_service")
made_store = importlib.import_module("made_store")
sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
ARGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
TAGS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "javascript:alert(1)",
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    root = made_store.made_store(tmp_path_factory.mktemp("page") / "store")
    with made_service.Store(root) as store:
        late = store.ledger.add(made_store.Asked("users", (("usr001",),), due="2020-01-01"))[0]
        odd = store.ledger.add(made_store.users(2, 3))[0]
        # Nothing of ours writes markup; should it ever get in, it stays text.
        store.db.execute(
            "UPDATE request SET detail = ?, due = '2031-01-01' WHERE id = ?", ("".join(TAGS), odd)
        )
    with made_service.served(root, wait_s=0.6) as port:
        yield root, port, late, odd


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield launched
        launched.close()


def opened(browser: Any, port: int, *, width: int = 1280) -> tuple[Any, list[str]]:
    """The page in a session of its own, and everything foreign that it asked for or complained about."""
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    noise: list[str] = []
    page.on(
        "request", lambda r: None if r.url.startswith(f"http://127.0.0.1:{port}/") else noise.append(r.url)
    )
    page.on("console", lambda m: None if "401" in m.text else noise.append(m.text))
    page.on("pageerror", lambda e: noise.append(str(e)))
    page.on("dialog", lambda d: (noise.append(f"dialog {d.message}"), d.dismiss()))
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector("#login:not([hidden])")
    return page, noise


def until(page: Any, expression: str) -> None:
    """Wait for it; the browser's own waiting needs eval, which the page's policy forbids."""
    for _ in range(150):
        if page.evaluate(expression):
            return
        time.sleep(0.1)
    raise AssertionError(expression)


def logged_in(browser: Any, port: int, **options: Any) -> tuple[Any, list[str]]:
    page, noise = opened(browser, port, **options)
    page.fill("#token", made_service.TOKEN)
    page.click("button")
    page.wait_for_selector("#content:not([hidden])")
    return page, noise


def test_without_the_token_the_page_shows_nothing(browser: Any, service: Any) -> None:
    page, noise = opened(browser, service[1])
    page.fill("#token", "not the token of this service")
    page.click("button")
    page.wait_for_selector("#wrong:not([hidden])")
    assert page.locator("tbody tr").count() == 0 and "r-" not in page.inner_text("body")
    assert not noise
    page.context.close()


@pytest.mark.slow
def test_requests_progress_and_report(browser: Any, service: Any) -> None:
    _, port, late, odd = service
    page, noise = logged_in(browser, port)
    rows = page.locator("tbody tr")
    assert rows.count() == 2 and rows.nth(0).locator("th").inner_text() == late
    assert "2020-01-01 (overdue)" in rows.nth(0).inner_text() and "1 overdue" in page.inner_text("#summary")
    assert rows.nth(0).locator(".overdue").count() == 1
    second = page.locator("tbody tr", has=page.locator(f"text={odd}"))
    assert (
        TAGS[0] in second.inner_text()
        and TAGS[-1] in second.inner_text()
        and "2 users" in second.inner_text()
    )
    assert page.locator("tbody script, tbody img, tbody svg").count() == 0
    assert made_service.ask(port, "POST", "/run")[0] == 202
    page.wait_for_selector("tr[data-state=running]", timeout=15000)  # by itself: no reload
    until(page, "[...document.querySelectorAll('progress')].some(p => p.value > 0 && p.value < 1)")
    page.wait_for_selector("tr[data-state=committed]", timeout=15000)
    until(page, "document.querySelectorAll('tr[data-state=committed]').length === 2")
    assert page.locator("tbody a", has_text="record").count() == 2
    with page.context.expect_page() as popup:
        page.locator("tbody a", has_text="report").first.click()
    report = popup.value
    report.wait_for_load_state()
    assert "/reports/b-" in report.url and report.locator("h1, .verdict").count() > 0
    assert report.evaluate("getComputedStyle(document.body).maxWidth") != "none"  # its style is let through
    assert "usr0" not in page.content() + report.content()
    assert not noise
    page.context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_stays_inside_its_window(browser: Any, service: Any, width: int) -> None:
    page, noise = logged_in(browser, service[1], width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # No column hides beyond an edge, on a phone either.
    assert (
        page.evaluate(
            "Math.max(...[...document.querySelectorAll('td')].map(c => c.getBoundingClientRect().right))"
        )
        <= width
    )
    assert page.locator("tbody tr").count() == 2 and not noise
    page.context.close()


def test_a_new_request_appears_without_a_reload(browser: Any, service: Any) -> None:
    _, port, *_ = service
    page, noise = logged_in(browser, port)
    name = made_service.ask(port, "POST", "/requests", {"kind": "users", "ids": ["usr020"]})[1]["id"]
    page.wait_for_selector(f"text={name}", timeout=10000)
    assert not noise
    page.context.close()


def test_a_session_that_ended_asks_for_the_token_again(browser: Any, service: Any) -> None:
    page, _ = logged_in(browser, service[1])
    page.context.clear_cookies()
    page.reload()
    page.wait_for_selector("#login:not([hidden])")
    assert page.locator("tbody tr").count() == 0
    page.context.close()


RULE = {"failures": 0, "every_s": None, "before_days": None, "retrain_before_days": None}


@pytest.mark.parametrize(
    ("counts", "rule", "says"),
    [
        ({"open": 0, "held": 0}, {"every_s": 3600}, "nothing is due"),
        ({"open": 1, "held": 0}, {"every_s": 3600}, "a run, at most every 60 min"),
        ({"open": 1, "held": 0}, {"before_days": 7}, "a run, 7 day(s) before a date"),
        ({"open": 1, "held": 0}, {"retrain_before_days": 2}, "waits for a run by hand"),
        (
            {"open": 0, "held": 1},
            {"every_s": 3600, "before_days": 7},
            "held until more comes in, or a retrain",
        ),
        ({"open": 0, "held": 1}, {"retrain_before_days": 2}, "for what is held, a retrain 2 day(s) before"),
        ({"open": 1, "held": 1}, {"every_s": 60}, "a run, at most every 1 min; held until more comes in"),
    ],
)
def test_what_comes_next_is_what_the_service_would_do(
    browser: Any, service: Any, counts: Any, rule: Any, says: str
) -> None:
    """What is held is not tried again by itself; whoever reads this waits for it until a date has passed."""
    page, _ = opened(browser, service[1])
    status = {"running": False, "schedule": {**RULE, **rule}}
    assert page.evaluate("([s, c]) => next(s, c)", [status, counts]).startswith(says)
    page.context.close()


def test_an_error_of_a_proxy_does_not_leave_an_old_picture_standing(browser: Any, service: Any) -> None:
    """A browser gives up a stream of events for good where the answer is an error."""
    _, port, *_ = service
    page, _ = opened(browser, port)
    seen: list[str] = []

    def broken_once(route: Any) -> None:
        seen.append(route.request.url)
        route.fulfill(status=502, body="bad gateway") if len(seen) == 1 else route.continue_()

    page.route("**/events*", broken_once)
    page.fill("#token", made_service.TOKEN)
    page.click("button")
    page.wait_for_selector("#content:not([hidden])")
    until(page, "source !== null && source.readyState === EventSource.OPEN")
    assert len(seen) == 2
    page.context.close()
