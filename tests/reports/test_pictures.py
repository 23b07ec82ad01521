"""Pictures: well-formed, true to the numbers, and with no label on top of another."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest
from made_records import full_record, production_record

from curerec.reports import pictures
from curerec.reports.parts import Cell, Metrics, Score, TraceStep
from curerec.reports.schema import as_record
from curerec.reports.svg import _em, shorten, text_width

WIDTHS = (340, 460, 960)


@pytest.fixture
def full() -> dict[str, Any]:
    return full_record()


@pytest.fixture
def production() -> dict[str, Any]:
    return production_record()


def parse(svg: str) -> ET.Element:
    """Well-formed, with finite numbers only and no reference to anything outside."""
    assert (
        "nan" not in svg.lower().replace("finance", "") and "inf" not in re.sub(r">[^<]*<", "><", svg).lower()
    )
    root = ET.fromstring(svg)
    assert root.tag == "svg" and root.get("role") == "img" and root.find("title") is not None
    for node in root.iter():
        for name, value in node.attrib.items():
            assert not name.startswith("on") and name not in {"href", "src", "style"}
            assert "url(" not in value or value.startswith("url(#")
    return root


def boxes(root: ET.Element) -> list[tuple[str, float, float, float, float]]:
    """(text, left, top, right, bottom) of every label."""
    found = []
    for node in root.iter("text"):
        x, y, size = (float(node.attrib[k]) for k in ("x", "y", "font-size"))
        wide = text_width(node.text or "", size)
        left = {"start": x, "middle": x - wide / 2, "end": x - wide}[node.attrib["text-anchor"]]
        found.append((node.text or "", left, y - 0.75 * size, left + wide, y + 0.2 * size))
    return found


def assert_labels_clear(svg: str, slack: float = 12.0) -> None:
    """No two labels touch and none leaves the drawing; widths are upper estimates, hence a little slack."""
    root = parse(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    labels = boxes(root)
    for i, (text, left, top, right, bottom) in enumerate(labels):
        assert left >= -slack and right <= width + slack and top >= -1 and bottom <= height + 1, text
        for other, left2, top2, right2, bottom2 in labels[i + 1 :]:
            apart = right <= left2 + 0.5 or right2 <= left + 0.5 or bottom <= top2 or bottom2 <= top
            assert apart, (text, other)


def dots(svg: str) -> list[float]:
    """Pixel of every row's dot, from top to bottom."""
    return [
        float(dot.attrib["cx"])
        for row in parse(svg).iter("g")
        if row.get("class") == "row"
        for dot in row.iter("circle")
    ]


def metrics(values: dict[str, float | None], **same: float) -> dict[str, Metrics | None]:
    return {
        n: Metrics.model_validate({"membership_auc": v, "test_auc": v, **same}) for n, v in values.items()
    }


CROWDED = {"original": 0.5012, "retrain": 0.5, "retrain_2": 0.5001, "npo": 0.4999, "cure": 0.50005}


# --- every picture, whatever the numbers ---------------------------------------------------------------


def drawn(record: Any, width: float = 460) -> dict[str, str]:
    trace = record.update.trace or []
    c = record.circuit
    return {
        "residual": pictures.residual_scale(record.residual, width=width),
        "membership": pictures.membership(record.metrics, width=width),
        "test_auc": pictures.test_auc(record.metrics, width=width),
        "trace": pictures.update_trace(trace, width=width),
        "conflict": pictures.conflict(trace, width=width),
        "curve": pictures.circuit_curve(c.curve or [], c.size, c.faithfulness, width=width),
        "scores": pictures.module_scores(c.scores or [], width=width),
        "map": pictures.module_map(record.groups.cells or [], c.scores or [], c.modules or []),
    }


@pytest.mark.parametrize("width", WIDTHS)
def test_all_pictures_of_a_full_record(full: dict[str, Any], width: float) -> None:
    for name, svg in drawn(as_record(full), width).items():
        assert svg, name
        assert_labels_clear(svg)


def test_all_pictures_of_a_production_record(production: dict[str, Any]) -> None:
    svgs = drawn(as_record(production))
    assert svgs.pop("residual") == ""
    for svg in svgs.values():
        assert_labels_clear(svg)


def test_nothing_to_draw_is_an_empty_text() -> None:
    record = as_record(
        {"schema": "curerec-record/2", "method": "cure", "metrics": {"original": {}, "cure": {}}}
    )
    assert set(drawn(record).values()) == {""}


@pytest.mark.parametrize("seed", range(25))
def test_labels_stay_clear_for_random_numbers(seed: int) -> None:
    rng = random.Random(seed)
    scale = 10.0 ** rng.randint(-6, 3)

    def number() -> float | None:
        return rng.choice([None, float("nan"), 0.0, rng.gauss(0, scale), rng.random(), scale])

    names = [*CROWDED, "random_modules", "e2urec", "a_method_with_a_very_long_name_" * 3, "模型", "سلام"]
    models = metrics({n: number() for n in rng.sample(names, rng.randint(1, len(names)))})
    trace = [
        TraceStep.model_validate(
            {"step": 7 * i, "membership_auc": number(), "valid_auc": number(), "cos_mean": rng.uniform(-1, 1)}
        )
        for i in range(rng.randint(1, 60))
    ]
    curve = [(i, number()) for i in range(rng.randint(1, 30))]
    scores = [
        Score(module=f"layers.{i}.head.{i}", score=number(), low=number(), high=number()) for i in range(20)
    ]
    for width in WIDTHS:
        for svg in (
            pictures.residual_scale({n: number() for n in names}, width=width),
            pictures.membership(models, width=width),
            pictures.test_auc(models, width=width),
            pictures.update_trace(trace, width=width),
            pictures.conflict(trace, width=width),
            pictures.circuit_curve(curve, rng.randint(0, 30), rng.random(), width=width),
            pictures.module_scores(scores, width=width),
        ):
            if svg:
                assert_labels_clear(svg)


# --- positions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "values", [[0.0, 0.3, 0.47, 0.87, 1.2], [-0.3, -0.01, 0.0, 0.005, 1.9], [0.31, 0.310001]]
)
def test_residuals_stand_in_the_order_of_their_values(values: list[float], width: float) -> None:
    svg = pictures.residual_scale({f"m{i}": v for i, v in enumerate(reversed(values))}, width=width)
    found = dots(svg)
    assert len(found) == len(values)
    assert found == sorted(found)
    assert_labels_clear(svg)


def test_the_residual_scale_is_linear_between_its_ends() -> None:
    svg = pictures.residual_scale({"cure": 0.5, "npo": 0.25})
    quarter, half = dots(svg)
    ends = sorted(float(n.attrib["x1"]) for n in parse(svg).iter("line") if n.get("class") == "mark")
    assert half == pytest.approx((ends[0] + ends[1]) / 2, abs=0.02)
    assert quarter == pytest.approx(ends[0] + (ends[1] - ends[0]) / 4, abs=0.02)


def test_a_residual_far_off_is_an_arrow_and_leaves_the_others_readable() -> None:
    svg = pictures.residual_scale({"cure": 0.3, "npo": 41.0, "random_modules": -7.0})
    root = parse(svg)
    assert len([n for n in root.iter("path") if "dot" in (n.get("class") or "")]) == 2
    assert "41.00" in svg and "−7.00" in svg
    low, high = sorted(float(n.attrib["x1"]) for n in root.iter("line") if n.get("class") == "mark")
    assert high - low > 0.2 * 960


def test_original_and_retrain_are_no_marks_on_the_residual_scale() -> None:
    assert pictures.residual_scale({"original": 1.0, "retrain_2": 0.0}) == ""


@pytest.mark.parametrize("picture", [pictures.membership, pictures.test_auc])
def test_auc_pictures_are_monotone_and_ordered(picture: Callable[..., str]) -> None:
    values = {"original": 0.6, "retrain": 0.502, "retrain_2": 0.513, "npo": 0.521, "cure": 0.517}
    svg = picture(metrics(values))
    by_value = sorted(zip(values.values(), dots(svg), strict=True))
    assert [x for _, x in by_value] == sorted(dots(svg))
    labels = [t for t, *_ in boxes(parse(svg))]
    assert labels.index("Original model") < labels.index("NPO, all parts alike") < labels.index("CURE")


@pytest.mark.parametrize("picture", [pictures.membership, pictures.test_auc])
@pytest.mark.parametrize("width", WIDTHS)
def test_crowded_values(picture: Callable[..., str], width: float) -> None:
    svg = picture(metrics(CROWDED), width=width)
    assert_labels_clear(svg)
    # Differences far under the sampling error must not be blown up to fill the picture.
    assert max(dots(svg)) - min(dots(svg)) < 0.1 * width


def test_the_half_line_is_always_on_the_membership_picture() -> None:
    svg = pictures.membership(metrics({"cure": 0.91}, membership_low=0.9, membership_high=0.92))
    assert "0.5 = pure guessing" in svg and "cannot be told" not in svg  # a retrain need not lie there
    (mark,) = [n for n in parse(svg).iter("line") if n.get("class") == "mark"]
    assert float(mark.attrib["x1"]) < min(dots(svg))


def test_intervals_are_drawn_where_both_ends_are_known() -> None:
    both = pictures.membership(metrics({"cure": 0.5}, membership_low=0.48, membership_high=0.53))
    one = pictures.membership(metrics({"cure": 0.5}, membership_low=0.48))
    assert both.count('class="range') == 1 and "0.480 to 0.530" in both
    assert one.count('class="range') == 0


def test_the_trace_ends_at_the_stop_and_leaves_gaps() -> None:
    values = [0.6, 0.58, None, 0.55, 0.52]
    trace = [TraceStep.model_validate({"step": i, "membership_auc": v}) for i, v in enumerate(values)]
    root = parse(pictures.update_trace(trace))
    points = [n for n in root.iter("circle")]
    assert len(points) == 4
    assert len([n for n in root.iter("path") if n.get("class") == "curve"]) == 2
    (stop,) = [n for n in root.iter("line") if n.get("class") == "stop"]
    assert stop.attrib["x1"] == points[-1].attrib["cx"]
    ys = [float(p.attrib["cy"]) for p in points]
    assert ys == sorted(ys), "a falling AUC must fall on the page"
    assert "0.5 = pure guessing" in pictures.update_trace(trace)
    assert "line: aimed for" in pictures.update_trace(trace, 0.53)


def test_the_curve_rises_on_the_page_and_marks_the_core() -> None:
    svg = pictures.circuit_curve([(0, 0.0), (2, 0.6), (5, 0.92), (9, 1.0)], 5, 0.92)
    circles = list(parse(svg).iter("circle"))
    heights = [float(c.attrib["cy"]) for c in circles if c.get("class") == "point"]
    assert heights == sorted(heights, reverse=True)
    assert "core circuit: 5 parts, 0.92" in svg


def test_conflicts_hang_below_zero() -> None:
    trace = [TraceStep.model_validate({"step": i, "cos_mean": c}) for i, c in enumerate((-0.5, 0.5))]
    stems = [n for n in parse(pictures.conflict(trace)).iter("line") if "stem" in (n.get("class") or "")]
    down, up = (float(s.attrib["y2"]) - float(s.attrib["y1"]) for s in stems)
    assert down > 0 > up and down == pytest.approx(-up, abs=0.02)


# --- the module map -------------------------------------------------------------------------------------


def cells_of(svg: str) -> list[ET.Element]:
    return [n for n in parse(svg).iter("g") if n.get("class") == "cell"]


def titles(svg: str) -> list[str]:
    return [(n.find("title").text or "") for n in cells_of(svg)]  # type: ignore[union-attr]


def test_the_map_has_every_cell_and_every_head(full: dict[str, Any]) -> None:
    record = as_record(full)
    svg = drawn(record)["map"]
    found = [t.split("\n")[0] for t in titles(svg)]
    for cell in record.groups.cells or []:
        if cell.layer is not None:
            assert f"Layer {cell.layer}, {cell.module}" in found
            if cell.head is not None:
                assert f"Layer {cell.layer}, head {cell.head}" in found
    assert "Embedding" in found and "Final norm" in found
    assert len(found) == len(set(found)) == 2 * (4 + 7) + 2


def test_bars_are_as_long_as_the_shares() -> None:
    svg = pictures.module_map([Cell(layer=0, module="q_proj", forget=1, shared=0, retain=2, frozen=1)])
    (cell,) = cells_of(svg)
    widths = {n.get("class"): float(n.attrib["width"]) for n in cell.iter("rect") if n.get("class")}
    total = sum(widths.values())
    assert widths["role-forget"] == pytest.approx(total / 4, abs=0.02)
    assert widths["role-retain"] == pytest.approx(total / 2, abs=0.02)
    assert "role-shared" not in widths
    assert "2 retain-specific" in titles(svg)[0]


def test_colour_is_not_the_only_signal(full: dict[str, Any]) -> None:
    svg = drawn(as_record(full))["map"]
    for role in ("forget", "shared", "retain"):
        assert f'id="hatch-{role}"' in svg and f'fill="url(#hatch-{role})"' in svg
    assert [role for role, _ in pictures.legend()] == ["forget", "shared", "retain", "frozen", "core"]
    for _, swatch in pictures.legend():
        parse(swatch)


def test_the_core_circuit_is_framed(full: dict[str, Any]) -> None:
    record = as_record(full)
    frames = [n for n in parse(drawn(record)["map"]).iter("rect") if n.get("class") == "core"]
    assert len(frames) == len(record.circuit.modules or [])


def test_layers_stand_upwards() -> None:
    cells = [Cell(layer=n, module="q_proj", forget=1) for n in (0, 1, 5)]
    svg = pictures.module_map([Cell(layer=None, module="embed_tokens", frozen=1), *cells])
    heights = {
        t.split("\n")[0]: float(next(c.iter("rect")).attrib["y"])
        for c, t in zip(cells_of(svg), titles(svg), strict=True)
    }
    assert (
        heights["Layer 5, q_proj"]
        < heights["Layer 1, q_proj"]
        < heights["Layer 0, q_proj"]
        < heights["Embedding"]
    )


def test_grouped_key_value_heads_are_not_taken_for_query_heads() -> None:
    cells = [Cell(layer=0, module="q_proj", head=h, forget=1) for h in range(4)]
    cells += [Cell(layer=0, module="k_proj", head=h, frozen=5) for h in range(2)]
    found = dict(
        t.split("\n")[::2] if t.count("\n") == 2 else t.split("\n")
        for t in titles(pictures.module_map(cells))
    )
    assert found["Layer 0, head 1"] == "1\u00a0row: 1 forget-specific"
    assert found["Layer 0, k_proj"] == "10\u00a0rows: 10 frozen"


@pytest.mark.parametrize(
    ("layers", "heads"), [(1, 1), (2, 4), (12, 12), (30, 9), (36, 20), (32, 32), (80, 64)]
)
def test_maps_of_all_sizes(layers: int, heads: int) -> None:
    rng = random.Random(0)
    cells = [
        Cell(layer=n, module=m, head=h, forget=rng.randrange(9), retain=rng.randrange(9), frozen=1)
        for n in range(layers)
        for m in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        for h in (range(heads) if m == "q_proj" else [None])
    ]
    svg = pictures.module_map(cells, (), [f"layers.{n}.mlp" for n in range(0, layers, 3)])
    assert len(cells_of(svg)) == layers * (heads + 7)
    assert_labels_clear(svg)


def test_gpt2_names_heads_without_cells_and_unknown_modules() -> None:
    cells = [
        Cell(layer=0, module=m, shared=3)
        for m in ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj", "ln_1", "<b>")
    ]
    cells.append(Cell(layer=None, module="wpe", frozen=0))
    scores = [Score(module=f"layers.0.head.{h}", score=0.1 * h) for h in range(3)]
    svg = pictures.module_map(
        cells, [*scores, Score(module="something.else", score=1.0)], ["layers.0.head.2"]
    )
    assert_labels_clear(svg)
    assert len(titles(svg)) == 6 + 3 + 1
    assert sum("not among the parts" in t for t in titles(svg)) == 4
    assert "<b>" not in svg


@pytest.mark.parametrize("width", [0.0, 5.0, 60.0, 61.7, 200.0])
@pytest.mark.parametrize(
    "text", ["", "a", "llama-70b of a company", "MMMM mmmm", "\u6a21\u578b \u6a21\u578b", "i" * 500]
)
def test_a_long_name_is_cut_at_the_last_place_that_fits(text, width):
    cut = shorten(text, width)
    if text_width(text) <= width:
        assert cut == text
        return
    kept = cut.removesuffix("…")
    assert cut.endswith("…") and text.startswith(kept) and kept == kept.rstrip()
    assert not kept or text_width(cut) <= width + 1e-9
    longer = text[: len(kept) + 1].rstrip()
    assert longer == kept or text_width(longer + "…") > width - 1e-9


def test_a_name_is_measured_once_however_long_it_is(monkeypatch):
    """A record is not ours: a name of ten thousand letters had cost a minute a page."""
    asked = []
    real = _em
    monkeypatch.setattr(
        "curerec.reports.svg._em", lambda character: asked.append(character) or real(character)
    )
    assert shorten("a" * 10_000, 100).endswith("…")
    assert len(asked) < 30_000
