"""The page: complete, self-contained, and inert whatever the record's strings say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_page import Page, assert_inert, assert_scrolled_by_keys
from made_records import full_record, production_record

from curerec.errors import DataError
from curerec.reports.html import render, write_report
from curerec.reports.schema import SCHEMA


@pytest.fixture
def full() -> dict[str, Any]:
    return full_record()


@pytest.fixture
def production() -> dict[str, Any]:
    return production_record()


def edit(value: Any, change: Callable[[str], str]) -> Any:
    """Every string value of a nest changed; keys are kept, except of the free-form dicts' contents."""
    if isinstance(value, dict):
        return {k: edit(v, change) for k, v in value.items()}
    if isinstance(value, list):
        return [edit(v, change) for v in value]
    return change(value) if isinstance(value, str) else value


def poisoned(record: dict[str, Any], payload: str) -> dict[str, Any]:
    """The payload in every string that the schema leaves free, and as keys where keys are free."""
    bad = edit(record, lambda _: payload)
    bad["schema"], bad["model"]["kind"], bad["request"]["kind"] = SCHEMA, "full", "users"
    for part in ("config", "versions", "machine", "missing"):
        bad[part] = {payload: payload}
    bad["metrics"][payload] = dict(record["metrics"]["cure"]) | {payload: 1.0}
    bad["residual"][payload] = 0.5
    bad["circuit"]["pairs"][payload] = 3
    bad["update"]["trace"][0][payload] = 1.0
    # Names that parse as units of the map, with the payload behind them.
    bad["circuit"]["modules"] += [f"layers.0.head.0{payload}", "layers.0.head.1"]
    return bad


PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</svg><script>alert(1)</script>",
    "</desc></svg><img src=x onerror=alert(1)>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg/onload=alert(1)//",
    "<iframe src=javascript:alert(1)>",
    "<body onload=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    '<a href="https://example.org">x</a>',
    "javascript:alert(1)",
    "jaVasCript:/*-/*`/*\\`/*'/*\"/**/(/* */oNcliCk=alert() )//",
    '"><script>alert(1)</script>',
    "'><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    '" style="background:url(https://example.org/x)',
    "x onfocus=alert(1) autofocus",
    "<style>@import 'https://example.org/x.css';</style>",
    "<link rel=stylesheet href=//example.org/x.css>",
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
    "<base href=https://example.org/>",
    "<form action=https://example.org><input name=x></form>",
    "<object data=data:text/html,<script>alert(1)</script>>",
    "<embed src=data:text/html;base64,PHNjcmlwdD4=>",
    "<math><mi xlink:href='data:x,<script>alert(1)</script>'>",
    "<!--<script>alert(1)</script>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "--><script>alert(1)</script><!--",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}{{ config.__class__ }}",
    "${alert(1)} #{7*7} <%= 7*7 %>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#x3c;script&#x3e;alert(1)",
    "\u003cscript\u003ealert(1)",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "\x00<scr\x00ipt>alert(1)</scr\x00ipt>",
    "\u202e<script>\u2066alert(1)",
    "\ud800<script>",
    "<template><script>alert(1)</script></template>",
    "<details open ontoggle=alert(1)>",
    "<marquee onstart=alert(1)>",
    "HTTPS://example.org/?u=1 hTTp://example.org",
    "url(https://example.org/x)",
    "+ADw-script+AD4-alert(1)",
    "",
    " \n\t ",
    "A" * 10_000,
    "مرحبا 模型 👩‍👩‍👧 ｆｕｌｌ",
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_no_string_of_the_record_becomes_markup(full: dict[str, Any], payload: str) -> None:
    harmless = Page(render(poisoned(full, "harmless")))
    html = render(poisoned(full, payload))
    page = assert_inert(html)
    # Same number of every tag: whatever the payload holds, it is text. (An empty string may drop a row.)
    if payload.strip():
        assert page.tags == harmless.tags
    assert {name for _, name, _ in page.attributes} <= {name for _, name, _ in harmless.attributes}
    html.encode("utf-8")


def test_templates_in_strings_are_not_run(full: dict[str, Any]) -> None:
    assert "{{ 7 * 7 }}" in Page(render(poisoned(full, "{{ 7 * 7 }}"))).words


def test_the_full_page_is_inert_and_complete(full: dict[str, Any]) -> None:
    page = assert_inert(render(full))
    for number, title in enumerate(
        (
            "What was asked",
            "What was changed",
            "How well it was forgotten",
            "What it cost the recommendations",
            "Time",
            "The circuit",
            "What is not claimed",
            "For the expert",
        ),
        1,
    ):
        assert ("h2", "id", f"s{number}") in page.attributes
        assert page.words.count(title) >= 2  # in the list of sections and as a heading
    assert page.tags["svg"] >= 9
    assert page.tags["h1"] == 1 and page.tags["main"] == 1
    assert ("html", "lang", "en") in page.attributes


def test_a_rival_that_a_guard_stopped_says_so(full: dict[str, Any]) -> None:
    """A residual of 1 without a reason reads as if the method could not forget."""
    assert "what the steps began with is kept." in Page(render(full)).words
    del full["metrics"]["npo"]["stop_reason"]
    assert "Why each update ended" not in render(full)


def test_the_policy_lets_nothing_in(full: dict[str, Any]) -> None:
    html = render(full)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html.replace("&#39;", "'")
    assert html.index("Content-Security-Policy") < html.index("<style>")


def test_ids_within_the_page_are_unique_and_every_reference_is_met(full: dict[str, Any]) -> None:
    page = Page(render(full))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {v[1:] for _, name, v in page.attributes if name == "href"}
    wanted |= {v[5:-1] for _, _, v in page.attributes if v.startswith("url(#")}
    assert wanted <= set(ids)


@pytest.mark.parametrize(
    ("verified", "word", "also"),
    [
        (True, "Verified", "passed all 4 checks that need no retrained model"),
        (False, "Not verified", "1 of 4 checks failed (membership). Do not treat the request as fulfilled."),
        (None, "Not judged", "how completely it forgot was not judged: no time for it."),
    ],
)
def test_the_page_opens_with_the_verdict(
    full: dict[str, Any], verified: bool | None, word: str, also: str
) -> None:
    full["verdict"]["verified"] = verified
    if verified is False:
        full["verdict"]["checks"][1]["passed"] = False
    if verified is None:
        full["missing"]["verdict.verified"] = "no time for it"
    words = Page(render(full)).words
    sentence = words[words.index("UTC") :].removeprefix("UTC").strip()
    assert sentence.startswith(f"{word} The model was changed to forget 57 users in 5.9 s")
    assert also in words


def test_what_scrolls_can_be_scrolled_by_keys(full: dict[str, Any]) -> None:
    assert_scrolled_by_keys(render(full))


@pytest.mark.parametrize("verified", [True, False, None])
def test_a_model_of_other_requests_is_not_said_to_be_of_this_one(
    full: dict[str, Any], verified: bool | None
) -> None:
    full["verdict"]["verified"], full["request"]["other"] = verified, True
    words = Page(render(full)).words
    assert "to forget what other requests named, and is judged by one for 57 users" in words
    assert "changed to forget 57 users" not in words


def test_every_figure_of_the_summary_is_the_records(full: dict[str, Any]) -> None:
    words = Page(render(full)).words
    for shown in (
        "57 users",
        "5,012 ratings",
        "32 %",
        "2.7 times the floor",
        "right 52 times in 100 (before the change 60, with the retrained model 50)",
        "between 49 and 55. That includes 51, which retrained models give: no trace",
        "72.1 times in 100; the original model 72.3; the retrained one 72.2",
        "Retraining on the same machine took 41 s: 6.9 times as long",
        "At most 1.12 GB",
        "6 of 10 parts belong to it",
        "membership gap closed within its sampling error",
        "412 pairs used",
    ):
        assert shown in words, shown


def test_a_production_page_says_what_is_missing_and_why(production: dict[str, Any]) -> None:
    page = assert_inert(render(production))
    words = page.words
    section = words[words.index("What an attacker can still tell") : words.index("Shown one item")]
    assert "What could not be computed, and why" in section
    assert (
        "Needs a model retrained without the data; a production run makes none. Therefore missing:" in section
    )
    for missing in ("Residual", "Noise floor", "Ceiling", "Gap of the membership test"):
        assert missing in section
    assert "How forgetting stands" not in words
    assert "Not judged" in words and "not computed" in words
    assert "About these weights. Dequantised from a 4-bit GGUF." in words
    assert "No comparison with a retrained model." in words


def test_reasons_are_not_made_up() -> None:
    """What a retrain has nothing to do with is not blamed on its absence."""
    words = Page(render({"schema": SCHEMA, "method": "cure", "metrics": {"original": {}, "cure": {}}})).words
    for told in (
        "What the deletion request named is not recorded.",
        "Which parts were changed, and why: not recorded.",
        "For the unlearned model this could not be measured (not recorded).",
        "The quality of the recommendations was not measured (not recorded).",
        "The time cannot be given (not recorded).",
        "There is no circuit to show (not recorded).",
    ):
        assert told in words, told
    assert words.count("needs a model retrained without the data, and this run made none") == 1


def test_checks_that_nobody_judged_do_not_count_as_passed(full: dict[str, Any]) -> None:
    full["verdict"]["checks"][2]["passed"] = None
    assert "passed 3 of 4 checks" in Page(render(full)).words


def test_tables_have_no_column_or_row_that_is_empty_throughout(production: dict[str, Any]) -> None:
    html = render(production)
    for table in re.findall(r'<table class="numbers.*?</table>', html, re.S):
        rows = [
            re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
            for row in re.findall(r"<tr.*?</tr>", table, re.S)
        ]
        assert len({len(row) for row in rows}) == 1
        if "Every figure" in table:
            assert all(any(cell != "–" for cell in row[1:]) for row in rows)
        elif "AUC</th>" in table:
            assert all(any(cell != "–" for cell in column[1:]) for column in zip(*rows, strict=True))


def nothing(value: Any) -> Any:
    """The same nest with every leaf null."""
    if isinstance(value, dict):
        return {k: nothing(v) for k, v in value.items()}
    return [] if isinstance(value, list) else None


def test_records_with_nothing_in_them_still_render(full: dict[str, Any]) -> None:
    bare = {"schema": SCHEMA, "method": "cure", "metrics": {"original": None, "cure": None}}
    hollow = nothing(full) | {"schema": SCHEMA, "method": "cure", "missing": {}}
    hollow["metrics"] = {n: nothing(m) for n, m in full["metrics"].items()}
    for record in (bare, hollow):
        words = assert_inert(render(record)).words
        assert "None" not in words.replace("None shows", "").replace("None was made", "").replace(
            "None recorded", ""
        )
        assert "nan" not in words.lower().split()


@pytest.mark.parametrize(
    "part", ["dataset", "model", "request", "split", "circuit", "groups", "update", "cost", "verdict"]
)
def test_any_part_may_be_absent(full: dict[str, Any], part: str) -> None:
    for absent in ({}, None):
        assert_inert(render(full | {part: absent}))
    del full[part]
    assert_inert(render(full))


def test_numbers_that_are_not_finite_are_never_shown(full: dict[str, Any]) -> None:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: spoil(v) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v) for v in value]
        return float("nan") if isinstance(value, float) else value

    words = assert_inert(render(spoil(full))).words.lower().split()
    assert not {"nan", "inf", "-inf", "infinity"} & set(words)


def test_huge_and_tiny_numbers(full: dict[str, Any]) -> None:
    full["metrics"]["cure"].update(
        t_total_s=1e9, test_auc=1e300, jsd=1e-300, membership_auc=-5.0, n_trainable=10**15
    )
    full["cost"]["peak_mem_bytes"] = 10**18
    full["residual"]["cure"] = 1e12
    page = assert_inert(render(full))
    assert max(map(len, page.words.split())) < 120


def test_unknown_methods_and_more_numbers_are_shown(full: dict[str, Any]) -> None:
    full["metrics"]["my_method"] = {
        "test_auc": 0.7,
        "relearn_ratio": 0.8123,
        "relearn_ratio_low": 0.5,
        "relearn_ratio_high": 1.25,
        "some_number": 3.25,
        "test_auc_low": 0.68,
    }
    words = Page(render(full)).words
    assert "my method" in words and "some number" in words and "3.25" in words
    assert "Steps to relearn / retrain's" in words
    assert "0.812 [0.500, 1.25]" in words
    assert "test auc low" not in words  # an end of an interval is no row of its own


def test_an_unknown_role_is_refused_not_drawn_wrong(full: dict[str, Any]) -> None:
    full["groups"]["cells"][0]["mystery"] = 5
    with pytest.raises(DataError, match="mystery"):
        render(full)


def test_no_id_is_shown(full: dict[str, Any]) -> None:
    full["config"]["request"] = {"ids": ["u-4711"], "user_ids": ["u-4712"]}
    html = render(full)
    assert "4711" not in html and "4712" not in html


def test_lists_of_many_values_in_the_config_are_counted(full: dict[str, Any]) -> None:
    full["config"]["weights"] = list(range(1000))
    assert "1000 values" in Page(render(full)).words


def test_rendering_is_deterministic(full: dict[str, Any]) -> None:
    assert render(full) == render(full)


def test_a_deep_model_makes_a_page_of_bounded_size(production: dict[str, Any]) -> None:
    assert len(render(production)) < 2_000_000


def test_written_file(full: dict[str, Any], tmp_path: Path) -> None:
    path = write_report(full, tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render(full)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(DataError):
        write_report({"schema": "x"}, path)
