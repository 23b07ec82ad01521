"""The benchmark's page: what it says, what it hides, and that nothing in it can act."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from made_page import assert_scrolled_by_keys

from curerec.bench.summary import summarise
from curerec.errors import DataError
from curerec.reports.alone import standalone
from curerec.reports.bench_page import COLUMNS, render_bench
from curerec.reports.bench_pictures import residuals
from curerec.reports.bench_schema import as_bench
from curerec.reports.scatter import Axis, Dot, scatter

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))
made_bench = importlib.import_module("made_bench")
WORTH = {"cure": 0.2, "random_modules": 0.5, "npo": None, "grad_ascent": 1.6}


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    recipe = made_bench.made_recipe(
        seeds=[20, 21, 22],
        search={"seed": 0},
        requests=[{"share": 0.1}, {"share": 0.1, "parts": 10, "methods": ["cure", "random_modules"]}],
    )
    made_bench.made_rows(folder, recipe, worth=WORTH, n=120)
    return summarise(folder)


def test_the_page_shows_scale_table_pictures_marks_and_failures(summary):
    page = render_bench(summary)
    assert_scrolled_by_keys(page)
    assert page.count('<table class="numbers bench">') == 2
    assert page.count("<svg") == 2 * 4 * 2  # requests, pictures, widths
    assert "Floor 0.00" in page and "out of memory" in page
    assert re.search(r"Random groups and weights</th><td>0\.\d\d ± 0\.\d\d\*", page)
    assert "the recipe does not ask for it" in page  # why there is no relearn ratio
    order = [page.index(f">{name}</th>") for name in ("CURE", "Random groups and weights", "Gradient ascent")]
    assert order == sorted(order)  # by residual, as the planted worths are


def _with(summary, **residual):
    """The first block with these residuals: mean and half-width."""
    block = as_bench(summary).blocks[0]
    lines = []
    for line in block.lines:
        if line.name in residual:
            mean, half = residual[line.name]
            found = line.values["residual"].model_copy(update={"mean": mean, "half": half})
            line = line.model_copy(update={"values": {**line.values, "residual": found}})
        lines.append(line)
    return block.model_copy(update={"lines": lines})


def _drawn(block):
    """By name: where the dot lies and where the interval ends, as shares of the way from 0 to 1."""
    root = ET.fromstring(standalone(residuals(block)))
    name = "{http://www.w3.org/2000/svg}"
    zero, one = sorted(float(x.get("x1")) for x in root.iter(f"{name}line") if x.get("class") == "mark")[:2]
    out = {}
    for row in root.iter(f"{name}g"):
        dot, line = row.find(f"{name}circle"), row.find(f"{name}line")
        at = [dot.get("cx")] if dot is not None else []
        at += [line.get("x1"), line.get("x2")] if line is not None else []
        out[row.find(f"{name}text").text] = [(float(x) - zero) / (one - zero) for x in at]
    return out


def test_residuals_are_drawn_where_they_are_nearest_first(summary):
    drawn = _drawn(_with(summary, cure=(0.2, 0.1), random_modules=(0.5, 0.8), grad_ascent=(3.0, 0.1)))
    names = list(drawn)
    assert names.index("CURE") < names.index("Random groups and weights") < names.index("Gradient ascent")
    assert drawn["CURE"] == pytest.approx([0.2, 0.1, 0.3], abs=0.01)
    # An interval ends at the edge of the scale; what lies beyond is an arrow without one.
    assert drawn["Random groups and weights"] == pytest.approx([0.5, -0.3, 1.3], abs=0.01)
    assert drawn["Gradient ascent"] == []
    assert "Original" not in drawn and "Retrained" not in drawn


def test_a_negative_residual_of_one_seed_lies_on_the_scale(summary):
    """It has no interval to make room for it."""
    assert _drawn(_with(summary, cure=(-0.2, None)))["CURE"] == pytest.approx([-0.2], abs=0.01)


def test_a_picture_of_its_own_has_its_style_and_loads_nothing(summary):
    text = standalone(residuals(as_bench(summary).blocks[0]))
    assert "prefers-color-scheme: dark" in text and "svg .ours" in text
    assert text.count("http") == 1 and "<script" not in text  # the name space
    with pytest.raises(ValueError, match="nothing was drawn"):
        standalone(residuals(as_bench(summary).blocks[0].model_copy(update={"rankable": False})))


@pytest.mark.parametrize(("wanted", "said"), [(1, "(1 seed)"), (3, "(1 of 3 seeds)")])
def test_a_line_of_fewer_seeds_says_how_many_and_of_how_many_planned(summary, wanted, said):
    block = as_bench(summary).blocks[0]
    found = [
        line.model_copy(update={"fewer": True, "seeds": line.seeds[:1], "wanted": wanted})
        if line.name == "grad_ascent"
        else line
        for line in block.lines
    ]
    text = residuals(block.model_copy(update={"lines": found})).replace("\xa0", " ")
    assert f"Gradient ascent {said}" in text and text.count(" seed") == text.count(said)


def test_every_column_of_the_protocol_has_its_place():
    from curerec.bench import rows

    assert set(rows.COLUMNS) <= {key for key, _, _ in COLUMNS}


def test_nothing_is_ranked_or_drawn_where_nothing_was_to_be_forgotten(summary):
    changed = {**summary, "blocks": [{**b, "rankable": False} for b in summary["blocks"]]}
    page = render_bench(changed)
    assert "not ranked" in page and "<svg" not in page
    cell = re.search(r"CURE</th><td>([^<]*)</td>", page)
    assert cell[1] == "–"


def test_text_from_outside_stays_text(summary):
    attack = "</style><script>alert(1)</script><img src=x onerror=alert(1)> https://example.org"
    line = summary["blocks"][0]["lines"][2]
    failure = {"seed": 20, "text": attack}
    block = {
        **summary["blocks"][0],
        "title": attack,
        "lines": [{**line, "name": attack, "failures": [failure]}],
    }
    page = render_bench({**summary, "name": attack, "blocks": [block], "devices": [attack]})
    assert "<script" not in page and "<img" not in page and "https://" not in page


def test_what_is_no_summary_is_refused():
    with pytest.raises(DataError, match="no summary"):
        render_bench({"schema": "curerec-bench/1", "name": "x"})


def test_the_page_needs_no_torch():
    code = "import sys, curerec.reports.bench_page; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


AXIS = Axis("x", lambda v: f"{v:.2f}")


def test_points_without_a_place_are_left_out():
    assert scatter([Dot("a", None, 1.0), Dot("b", 1.0, float("nan"))], AXIS, AXIS, name="n", about="a") == ""
    drawn = scatter([Dot("a", 1.0, 1.0), Dot("b", None, 1.0)], AXIS, AXIS, name="n", about="a")
    assert drawn.count("<circle") == 1


def test_points_beyond_the_scale_are_arrows():
    axis = Axis("y", lambda v: f"{v:.2f}", most=(-0.5, 2.0))
    drawn = scatter([Dot("a", 0.1, 9.0), Dot("b", 0.2, 0.5)], AXIS, axis, name="n", about="a")
    assert drawn.count("<circle") == 1 and drawn.count("<path") == 1 and "9.00" in drawn


def test_equal_factors_are_equal_steps():
    axis = Axis("s", lambda v: f"{v:g}", least=1.0, log=True)
    drawn = scatter(
        [Dot(n, x, 0.5) for n, x in (("a", 1), ("b", 10), ("c", 100))], axis, AXIS, name="n", about="a"
    )
    xs = sorted(float(x) for x in re.findall(r'cx="([\d.]+)"', drawn))
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.05)


def test_labels_do_not_lie_on_each_other():
    dots = [Dot(f"method {k}", 0.5 + 0.001 * (k % 5), 0.5 + 0.001 * k) for k in range(24)]
    axis = Axis("x", lambda v: f"{v:.2f}", least=0.5)
    drawn = scatter(dots, axis, axis, name="n", about="a")
    assert 1 <= len(re.findall(r">method \d+</text>", drawn)) < 24
    assert len(re.findall(r"<title>method \d+:", drawn)) == 24
