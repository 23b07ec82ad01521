"""The comparison seed by seed: what counts, and what is said of seeds that do not."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"


@pytest.fixture
def over_seeds(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("over_seeds")


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("parts")


def a_row(method, seed, jsd, *, failure=None, rankable=True):
    floor, ceiling = 0.01, 0.03 + seed / 1000
    residual = None if jsd is None else (jsd - floor) / (ceiling - floor)
    place = {"dataset": "ml-100k", "model": "nano", "request": "users-0.1-random", "config_hash": method}
    scale = {"floor": floor, "ceiling": ceiling, "rankable": rankable}
    return {
        **place,
        **scale,
        "method": method,
        "seed": seed,
        "jsd": jsd,
        "residual": residual,
        "failure": failure,
    }


@pytest.fixture
def folder(tmp_path):
    """`cure` and `npo` on four seeds; `npo` handed the original back on one and broke on another."""
    rows = [a_row("original", s, 0.03 + s / 1000) for s in range(1, 5)]
    rows += [a_row("cure", s, 0.012, rankable=s != 3) for s in range(1, 5)]
    rows += [a_row("npo", 1, 0.02), a_row("npo", 4, 0.022)]
    rows += [a_row("npo", 2, None, failure="nothing happened: as it was")]
    rows += [a_row("npo", 3, None, failure="out of memory")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def printed(over_seeds, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["over_seeds.py", *map(str, arguments)])
    over_seeds.main()
    return capsys.readouterr().out


def test_no_seed_is_left_out_without_a_word(over_seeds, folder, monkeypatch, capsys):
    text = printed(over_seeds, monkeypatch, capsys, folder, "--others", "npo")
    assert "npo handed the original back on 2; it counts as that" in text
    assert "npo is left out on 3: out of memory" in text
    assert "on 3 the retrains differ by more than half" in text
    apart = [(0.02 - 0.012) / 0.021, (0.032 - 0.012) / 0.022, (0.022 - 0.012) / 0.024]
    assert f"| npo | 3 | {np.mean(apart):+.3f} |" in text


def test_the_difference_of_ratios_of_means_is_that_of_the_benchmarks_table(over_seeds):
    ours = [{"jsd": 0.012, "floor": 0.01, "ceiling": c} for c in (0.02, 0.05, 0.03)]
    others = [{**r, "jsd": j} for r, j in zip(ours, (0.018, 0.03, 0.02), strict=True)]
    got, low, high = over_seeds.of_means(list(zip(ours, others, strict=True)))
    ratio = [np.mean([r["jsd"] for r in of]) - 0.01 for of in (ours, others)]
    assert got == pytest.approx((ratio[1] - ratio[0]) / (0.1 / 3 - 0.01))
    assert low < got < high


def test_equal_seeds_leave_nothing_to_the_interval(over_seeds):
    scale = {"floor": 0.01, "ceiling": 0.03}
    pair = ({"jsd": 0.012, **scale}, {"jsd": 0.022, **scale})
    assert over_seeds.of_means([pair] * 3) == pytest.approx((0.5, 0.5, 0.5))


def test_each_side_is_on_the_scale_of_its_own_request(over_seeds, folder, monkeypatch, capsys):
    """A tenth as many people leave a tenth to forget: their distances are no difference of residuals."""
    few = {"request": "users-0.01-random", "floor": 0.001, "ceiling": 0.003, "jsd": 0.0014, "residual": 0.2}
    rows = [{**a_row("cure", s, 0.01), **few} for s in range(1, 5)]
    with (folder / "rows.jsonl").open("a") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    text = printed(over_seeds, monkeypatch, capsys, folder, "--others", "cure/users-0.01-random")
    line = next(line for line in text.splitlines() if line.startswith("| cure/"))
    whole = 0.2 - 0.002 / np.mean([0.02 + s / 1000 for s in range(1, 5)])
    assert line.split("|")[8].startswith(f" {whole:+.3f} (")
    assert "cure/users-0.01-random was measured beside other retrains than `cure`" in text


def test_a_pair_of_other_retrains_is_told(over_seeds, folder, monkeypatch, capsys):
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    said = "was measured beside other retrains"
    assert said not in printed(over_seeds, monkeypatch, capsys, folder, "--others", "npo")
    for row in lines:
        if (row["method"], row["seed"]) == ("npo", 4):
            row["floor"] += 0.0005  # one of them was trained anew
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    text = printed(over_seeds, monkeypatch, capsys, folder, "--others", "npo")
    assert f"- ml-100k: on 4 npo {said} than `cure`" in text


def test_a_seed_without_room_counts_in_the_ratios_of_means(over_seeds, folder, monkeypatch, capsys):
    """As in the benchmark's table: left out, the others would be those with much to forget."""
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in lines:
        if row["seed"] == 4:
            row |= {"ceiling": 0.009, "residual": None}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    text = printed(over_seeds, monkeypatch, capsys, folder, "--others", "npo")
    line = next(line for line in text.splitlines() if line.startswith("| npo |"))
    jsd = {"cure": [0.012] * 3, "npo": [0.02, 0.032, 0.022]}  # of 1, 2 (handed back) and 4
    whole = (sum(jsd["npo"]) - sum(jsd["cure"])) / (0.021 + 0.022 - 0.001)
    assert line.startswith("| npo | 2 |") and line.split("|")[8].startswith(f" {whole:+.3f} (")
    assert "npo is left out on 4: the ceiling is not above the floor" in text


def test_another_column_is_compared_where_both_have_it(over_seeds, folder, monkeypatch, capsys):
    ratios = {("cure", 1): 0.5, ("cure", 2): 0.9, ("cure", 4): 0.7, ("npo", 1): 0.3, ("npo", 4): 0.6}
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in lines:
        row["relearn_ratio"] = ratios.get((row["method"], row["seed"]))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    text = printed(over_seeds, monkeypatch, capsys, folder, "--others", "npo", "--column", "relearn_ratio")
    assert "| npo | 2 | -0.150 |" in text and "| 0 of 2 |" in text and "nearer" not in text
    assert "`cure`'s relearn ratios: mean 0.700" in text and "of the means" not in text
    assert "ml-100k: npo has no relearn_ratio on 2, 3 and is left out there" in text


def test_a_residual_below_zero_makes_up_for_none_above(over_seeds, folder, monkeypatch, capsys):
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert "absolute" not in printed(over_seeds, monkeypatch, capsys, folder, "--others", "npo")
    for row in lines:
        if row["method"] == "cure":
            row["residual"] = {1: -0.3, 2: 0.1, 3: 0.1, 4: 0.3}[row["seed"]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    text = printed(over_seeds, monkeypatch, capsys, folder, "--others", "npo")
    assert "residuals: mean 0.050" in text and "of their absolute values 0.200" in text


def test_means_say_what_share_was_verified(over_seeds, folder, monkeypatch, capsys):
    """A verdict that could not judge is none that verifies; a model that was not judged counts nowhere."""
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in lines:
        if row["method"] == "cure":
            said = {1: {"verified": True}, 2: {"verified": None}, 3: {"verified": False}}
            row["verdict"] = said.get(row["seed"])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    text = printed(over_seeds, monkeypatch, capsys, folder, "--others", "npo", "--means")
    heads, *_ = (line.split("|") for line in text.splitlines() if line.startswith("| method"))
    line = next(line for line in text.splitlines() if line.startswith("| cure |"))
    assert line.split("|")[heads.index(" verified ")].startswith(" 0.333 ±")


def test_a_model_that_was_handed_back_is_verified_as_the_original_is(over_seeds, folder, monkeypatch, capsys):
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in lines:
        if row["method"] == "original" or (row["method"], row["seed"]) in {("npo", 1), ("npo", 4)}:
            row["verdict"] = {"verified": row["method"] == "npo"}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    text = printed(over_seeds, monkeypatch, capsys, folder, "--others", "npo", "--means")
    heads, *_ = (line.split("|") for line in text.splitlines() if line.startswith("| method"))
    line = next(line for line in text.splitlines() if line.startswith("| npo |"))
    assert line.split("|")[heads.index(" verified ")].startswith(" 0.667 ±")  # of 1, 2 and 4
    assert "- ml-100k: npo has no verdict on 3 and is left out there" in text


def test_the_same_is_said_without_seeds_that_rank_nothing(over_seeds, folder, monkeypatch, capsys):
    """One whose retrains differ as much as there is to forget may outweigh all others in a mean of ratios."""
    text = printed(over_seeds, monkeypatch, capsys, folder, "--others", "original")
    whole, rest = text.split("Without the seeds")
    assert "| original | 4 |" in whole and "| original | 3 |" in rest
    assert "mean 0.0" in whole and ", 4 seeds" in whole and ", 3 seeds" in rest
    assert rest.count("on 3 the retrains differ") == 1
    again = printed(over_seeds, monkeypatch, capsys, folder, "--others", "original", "--without", "3")
    assert "Without" not in again
    line = next(line for line in again.splitlines() if line.startswith("| original |"))
    assert line in rest and line not in whole


def test_one_seed_is_no_comparison(over_seeds, folder, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        printed(over_seeds, monkeypatch, capsys, folder, "--others", "npo", "--without", "1", "2")
    assert "npo: fewer than two seeds on which `cure` has a residual, too" in capsys.readouterr().err


@pytest.mark.parametrize("instead", [False, True])
def test_a_sequence_that_was_handed_back_has_the_original_of_the_whole_request(
    over_seeds, folder, monkeypatch, capsys, instead
):
    """And so has a model that is called otherwise: its original is its own."""
    row = {"request": "users-0.1-random-x10-kept", "model": "shipped" if instead else "nano"}
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    made = [{**r, **row} if r["method"] != "original" else {**r, "model": row["model"]} for r in lines]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    names = ("--instead", "cure=cure@shipped", "npo=npo@shipped") if instead else ()
    asked = ("--request", row["request"], "--others", "npo", *names)
    text = printed(over_seeds, monkeypatch, capsys, folder, *asked)
    assert "npo handed the original back on 2; it counts as that" in text and "| npo | 3 |" in text


def test_a_folder_may_call_a_method_otherwise(over_seeds, folder, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    other.mkdir()
    rows = [{**a_row("cure", s, 0.016), "model": "shipped"} for s in (5, 6)]  # what counts there
    rows += [a_row("cure", s, 0.05) for s in (5, 6)] + [a_row("npo", s, 0.02) for s in (5, 6)]
    (other / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    instead = ("--instead", "cure=cure@elsewhere", "cure=cure@shipped", "--others", "npo")
    text = printed(over_seeds, monkeypatch, capsys, folder, other, *instead)
    apart = [(0.02 - 0.012) / 0.021, (0.032 - 0.012) / 0.022, (0.022 - 0.012) / 0.024]
    apart += [0.004 / (0.02 + s / 1000) for s in (5, 6)]
    assert f"| npo | 5 | {np.mean(apart):+.3f} |" in text and "| 5 of 5 |" in text


def test_what_is_told_is_corrected_for_how_many_were_looked_at(over_seeds, folder, monkeypatch, capsys):
    rows = [a_row("gru", s, 0.0125 + (s % 2) / 1000) for s in range(1, 5)]
    with (folder / "rows.jsonl").open("a") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)

    def p_of(text, method):
        line = next(line for line in text.splitlines() if line.startswith(f"| {method} |"))
        return float(line.split("|")[7])

    alone = {
        m: p_of(printed(over_seeds, monkeypatch, capsys, folder, "--others", m), m) for m in ("npo", "gru")
    }
    both = printed(over_seeds, monkeypatch, capsys, folder, "--others", "npo", "gru")
    least, most = sorted(alone, key=alone.__getitem__)
    assert p_of(both, least) == pytest.approx(2 * alone[least], abs=2e-4)
    assert p_of(both, most) == pytest.approx(max(alone[most], 2 * alone[least]), abs=2e-4)


def test_a_seed_that_was_handed_back_has_the_originals_answers_but_not_its_cost(
    over_seeds, folder, monkeypatch, capsys
):
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    cost = {"original": 1.0, "cure": 0.2, "npo": 0.4}
    rows = [{**row, "retrain_ratio": None if row["failure"] else cost[row["method"]]} for row in lines]
    rows += [a_row("retrain", s, 0.01) for s in range(1, 5)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = printed(over_seeds, monkeypatch, capsys, folder, "--means", "--others", "npo")
    npo = next(line for line in text.splitlines() if line.startswith("| npo |"))
    assert "0.400 ± 0.000" in npo and "2: 1.00" in npo


def test_parts_count_a_seed_that_was_handed_back(parts, monkeypatch, capsys, tmp_path):
    def with_excess(row, excess):
        return {**row, "excess_jsd": excess}

    rows = [with_excess(a_row("original", s, 0.03 + s / 1000), 0.015) for s in (1, 2)]
    rows += [with_excess(a_row("retrain", s, 0.01), 0.0) for s in (1, 2)]
    rows += [with_excess(a_row("npo", 1, 0.02), 0.005)]
    rows += [with_excess(a_row("npo", 2, None, failure="nothing happened: as it was"), None)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["parts.py", str(tmp_path)])
    parts.main()
    line = next(line for line in capsys.readouterr().out.splitlines() if "| npo |" in line)
    first, second = 0.01 / 0.021, 1.0
    assert f"| 2 | {(first + second) / 2:.3f} |" in line


def test_parts_name_a_seed_that_has_no_residual(parts, monkeypatch, capsys, tmp_path):
    """And of a sequence that was handed back they take the original of the whole request."""
    rows = [{**a_row("original", s, 0.03 + s / 1000), "excess_jsd": 0.015} for s in (1, 2, 3)]
    rows += [{**a_row("retrain", s, 0.01), "excess_jsd": 0.0} for s in (1, 2, 3)]
    row = {"request": "users-0.1-random-x10", "excess_jsd": 0.005}
    rows += [{**a_row("npo", 1, 0.02), **row}, {**a_row("npo", 2, 0.02), **row}]
    rows += [{**a_row("npo", 3, None, failure="nothing happened: as it was"), **row, "excess_jsd": None}]
    for one in rows:
        if one["seed"] == 2:
            one |= {"ceiling": 0.009, "residual": None}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["parts.py", str(tmp_path)])
    parts.main()
    text = capsys.readouterr().out
    assert f"| npo | 2 | {(0.01 / 0.021 + 1) / 2:.3f} |" in text
    assert "users-0.1-random-x10: npo is left out on 2: the ceiling is not above the floor" in text


def test_parts_of_several_choices_are_refused(parts, monkeypatch, tmp_path):
    """A search that was run again, and cells that were cut off after it: their mean would be of no method."""
    rows = [{**a_row(m, s, 0.02), "excess_jsd": 0.0} for m in ("retrain", "npo") for s in (1, 2)]
    for row in rows:
        row["settings"] = {"lr": 0.001 * row["seed"]} if row["method"] == "npo" else None
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["parts.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="npo has rows of several choices"):
        parts.main()


def test_how_much_farther_from_cure_a_method_has_become(over_seeds, folder, tmp_path, monkeypatch, capsys):
    now = tmp_path / "now"
    now.mkdir()
    rows = [a_row("cure", s, 0.014) for s in (1, 4)]  # cure itself is farther than it was, and npo by more
    rows += [a_row("npo", s, 0.020 + 0.001 * s + 0.009) for s in (1, 4)]
    (now / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = (now, "--named", f"then={folder}", "--others", "npo", "--change", "then")
    line = printed(over_seeds, monkeypatch, capsys, *arguments).splitlines()[-1]
    room = {s: 0.02 + s / 1000 for s in (1, 4)}
    before = {1: (0.02 - 0.012) / room[1], 4: (0.022 - 0.012) / room[4]}
    after = {s: (0.029 + 0.001 * s - 0.014) / room[s] for s in (1, 4)}
    change = np.mean([after[s] - before[s] for s in (1, 4)])
    assert line.startswith(f"| npo | 2 | {change:+.3f} |") and "2 of 2" in line
    both = printed(over_seeds, monkeypatch, capsys, *arguments[:3], "--others", "cure@then")
    assert "| cure@then | 2 | -" in both  # rows of one method in two folders, told apart by the name


def test_two_runs_may_share_an_original_and_no_method(over_seeds, folder, tmp_path, monkeypatch, capsys):
    """Other requests of the same models stand in another folder, beside the same original."""
    beside = tmp_path / "beside"
    beside.mkdir()
    rows = [a_row("original", 1, 0.031), {**a_row("cure", 1, 0.013), "request": "users-0.1-random-x10"}]
    (beside / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = over_seeds.rows_of([folder, beside], "ml-100k", "users-0.1-random", "nano", [], [], {})
    assert set(found["original"]) == {1, 2, 3, 4} and set(found["cure/users-0.1-random-x10"]) == {1}
    for other in (a_row("original", 1, 0.03), a_row("cure", 1, 0.012)):  # another one; a method, though alike
        (beside / "rows.jsonl").write_text(json.dumps(other) + "\n")
        with pytest.raises(SystemExit, match="in another folder, too"):
            over_seeds.rows_of([folder, beside], "ml-100k", "users-0.1-random", "nano", [], [], {})
