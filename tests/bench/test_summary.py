"""From rows to the table: means, intervals, marks, gaps and what may not be ranked."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from made_bench import TABLED, WORTH, change_rows, line_of, made_rows, table_recipe

from curerec.bench import artefacts
from curerec.bench.lines import read_lines
from curerec.bench.plan import config_hash, plan
from curerec.bench.rows import NOTHING
from curerec.bench.summary import _ratio_of_means, summarise, write_summary
from curerec.bench.table import text_table
from curerec.errors import DataError
from curerec.reports.bench_page import render_bench


def test_mean_and_interval_over_seeds(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    found = line_of(summarise(tmp_path), "npo")["values"]["t_total"]
    values = [r["t_total"] for r in read_lines(tmp_path / "rows.jsonl") if r["method"] == "npo"]
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["half"] == pytest.approx(4.3027 * np.std(values, ddof=1) / np.sqrt(3), rel=1e-4)
    assert found["n"] == 3


def test_the_residual_is_that_of_the_means(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    path = tmp_path / "rows.jsonl"
    found = read_lines(path)
    for row in found:  # a seed whose floor comes near its ceiling: its own ratio says nothing
        if row["seed"] == 22 and row["jsd"] is not None:
            row["floor"] = row["ceiling"] * 0.99
            row["residual"] = (row["jsd"] - row["floor"]) / (row["ceiling"] - row["floor"])
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    values = line_of(summarise(tmp_path), "npo")["values"]
    mine = [r for r in found if r["method"] == "npo"]
    jsd, floor, ceiling = (np.mean([r[k] for r in mine]) for k in ("jsd", "floor", "ceiling"))
    assert values["residual"]["mean"] == pytest.approx((jsd - floor) / (ceiling - floor))
    assert values["residual"]["n"] == 3 and np.isfinite(values["residual"]["half"])
    assert values["residual_of_seeds"]["mean"] == pytest.approx(np.mean([r["residual"] for r in mine]))
    assert values["residual_of_seeds"]["mean"] < -10 < -1 < values["residual"]["mean"] < 0.2


def test_a_seed_without_room_counts_like_any_other(tmp_path):
    """Left out, the residual would be that of the seeds with much to forget, and the marks another one."""
    made_rows(tmp_path, table_recipe(), worth=WORTH)

    def narrow(row):
        if row["seed"] == 22 and row["jsd"] is not None:
            row |= {"floor": row["ceiling"] * 1.01, "residual": None}

    found = change_rows(tmp_path, narrow)
    value = line_of(summarise(tmp_path), "npo")["values"]["residual"]
    mine = [r for r in found if r["method"] == "npo"]
    jsd, floor, ceiling = (np.mean([r[k] for r in mine]) for k in ("jsd", "floor", "ceiling"))
    assert value["n"] == 3 and value["mean"] == pytest.approx((jsd - floor) / (ceiling - floor))


def test_a_seed_without_room_is_missing_from_the_mean_of_residuals_alone(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)

    def narrow(row):
        if row["seed"] == 22 and row["method"] == "npo":
            row |= {"floor": row["ceiling"] * 1.01, "residual": None}
            row["missing"] = {"residual": "there is no scale"}

    change_rows(tmp_path, narrow)
    summary = summarise(tmp_path)
    npo = line_of(summary, "npo")
    assert npo["values"]["residual"]["n"] == 3 and npo["values"]["residual_of_seeds"]["n"] == 2
    assert "residual" not in npo["missing"]
    assert npo["missing"]["residual_of_seeds"] == "there is no scale"
    page = render_bench(summary)
    reasons = re.findall(r"<dt>[^<]*, ([^<]*)</dt><dd>there is no scale</dd>", page)
    assert [reason.replace("&#39;", "'") for reason in reasons] == ["mean of the seeds' residuals"]


def test_trials_are_counted_once_and_of_the_configuration_in_force(tmp_path):
    sought = table_recipe(search={"seed": 0, "trials": 2})
    made_rows(tmp_path, sought, worth=WORTH)
    jobs = [job for job in plan(sought) if job.kind == "trial"]

    def told(job, **more):
        about = {"dataset": job.dataset, "model": job.model, "method": job.method, "seed": job.seed}
        about |= {"number": job.number, "config_hash": config_hash(sought, job), "failure": None}
        return {**about, **more}

    lines = [told(jobs[0], failure="out of memory"), told(jobs[0]), told(jobs[1], config_hash="of before")]
    lines += [told(jobs[1], failure="out of memory")]
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = summarise(tmp_path)["search"]
    assert (found["run"], found["failed"]) == (2, 1)
    # By an earlier version, whose configurations have other hashes: all that there are.
    path.write_text("".join(json.dumps({**one, "config_hash": "old"}) + "\n" for one in lines))
    assert summarise(tmp_path)["search"]["run"] == 2


def test_what_was_chosen_at_an_end_of_its_grid_is_said(tmp_path):
    grid = {"lr": [1.0e-4, 3.0e-4, 1.0e-3], "beta": [0.1, 0.5, 1.0]}
    models = {name: {"recipe": "demo"} for name in ("nano", "other")}
    sought = table_recipe(models=models, search={"seed": 0, "trials": 2, "grids": {"npo": grid}})
    made_rows(tmp_path, sought, worth=WORTH)
    assert summarise(tmp_path)["search"]["ends"] == []

    def chosen(row):
        if row["method"] == "npo":
            row["settings"] = {"lr": 1.0e-3, "beta": 0.5}
            if row["model"] == "other":  # the search chooses for each by itself
                row["settings"] = {"lr": 3.0e-4, "beta": 0.1}

    change_rows(tmp_path, chosen)
    found = summarise(tmp_path)
    assert found["search"]["ends"] == [
        {"method": "npo", "key": "lr", "value": 1.0e-3},
        {"method": "npo", "key": "beta", "value": 0.1},
    ]
    page = " ".join(render_bench(found).split()).replace("\xa0", " ")
    assert "1 method took a setting at an end of what was on offer" in page
    assert "NPO, all parts alike: lr 0.001, beta 0.1." in page


def test_a_setting_that_is_no_number_is_at_no_end(tmp_path):
    """Several values at once cannot be looked up among numbers; the table has to come all the same."""
    grid = {"alphas": [[0.5, 1.0], [1.0, 2.0]], "max_auc_drop": [0.001, 0.01]}
    asked = [{"share": 0.1, "methods": [*TABLED, "task_vector"]}]
    sought = table_recipe(requests=asked, search={"seed": 0, "trials": 2, "grids": {"task_vector": grid}})
    made_rows(tmp_path, sought, worth=WORTH)

    def chosen(row):
        if row["method"] == "task_vector":
            row["settings"] = {"alphas": [1.0, 2.0], "max_auc_drop": 0.01}

    change_rows(tmp_path, chosen)
    ends = summarise(tmp_path)["search"]["ends"]
    assert ends == [{"method": "task_vector", "key": "max_auc_drop", "value": 0.01}]


def test_a_request_has_a_block_where_it_is_run_and_nowhere_else(tmp_path):
    """Two entries of one request, each with its own data set and model, make two places, not four."""
    asks = [
        {"share": 0.1, "methods": TABLED, "datasets": ["one"], "models": ["nano"]},
        {"share": 0.1, "methods": ["npo"], "datasets": ["two"], "models": ["other"]},
    ]
    names = {"datasets": {d: {} for d in ("one", "two")}, "requests": asks}
    models = {name: {"recipe": "demo"} for name in ("nano", "other")}
    made_rows(tmp_path, table_recipe(models=models, **names), worth=WORTH)
    summary = summarise(tmp_path)
    assert [(b["dataset"], b["model"]) for b in summary["blocks"]] == [("one", "nano"), ("two", "other")]
    assert "Not run yet" not in text_table(summary)


def test_an_interval_is_there_where_one_seed_holds_all_the_room():
    parts = [np.array(x) for x in ([0.02, 0.011, 0.01], [0.03, 0.01, 0.05])]
    found = _ratio_of_means(parts)
    assert found["n"] == 2 and found["half"] > 1
    near = [np.array(x) for x in ([0.02, 0.01, 0.03], [0.021, 0.01, 0.031], [0.019, 0.01, 0.028])]
    assert _ratio_of_means(near)["half"] < 0.1


def test_a_method_that_handed_the_original_back_has_its_answers(tmp_path):
    """Left out it would be averaged over the seeds on which it did something."""
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    before = line_of(summarise(tmp_path), "npo")["values"]["residual"]["mean"]

    def nothing(row):
        if row["method"] == "npo" and row["seed"] == 21:
            row |= {"failure": f"{NOTHING}: the answers are the original's", "jsd": None, "residual": None}
            row |= {"t_total": None, "test_auc": None}

    found = change_rows(tmp_path, nothing)
    summary = summarise(tmp_path)
    npo = line_of(summary, "npo")
    rows = [r for r in found if r["method"] == "npo" and r["seed"] != 21]
    rows += [r for r in found if r["method"] == "original" and r["seed"] == 21]
    jsd, floor, ceiling = (np.mean([r[k] for r in rows]) for k in ("jsd", "floor", "ceiling"))
    value = npo["values"]["residual"]["mean"]
    assert value == pytest.approx((jsd - floor) / (ceiling - floor)) and value > before + 0.1
    assert npo["seeds"] == [20, 21, 22] and not npo["fewer"]
    assert [one["seed"] for one in npo["failures"]] == [21] and NOTHING in npo["failures"][0]["text"]
    assert npo["values"]["t_total"]["n"] == 2 and npo["missing"]["t_total"] == NOTHING
    assert npo["against"]["seeds"] == 3 and npo["against"]["difference"] < -0.2
    assert "(2 of 3)" in text_table(summary)


def test_another_failure_leaves_its_seed_out_and_the_line_below_the_others(tmp_path):
    made_rows(tmp_path, table_recipe(), worth={"cure": 0.5, "random_modules": 0.6, "npo": 0.1, "scrub": 0.9})

    def lost(row):
        if row["method"] == "npo" and row["seed"] == 21:
            row |= {"failure": "out of memory", "jsd": None, "residual": None}

    change_rows(tmp_path, lost)
    text = text_table(summarise(tmp_path))
    names = [one.split("|")[1].strip() for one in text.splitlines() if one.startswith("| ")][1:]
    assert names[3:] == ["cure", "random_modules", "scrub", "npo"] and "not ranked" in text


def test_a_column_of_fewer_seeds_says_so_and_why(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)

    def gap(row):
        if row["method"] == "npo" and row["seed"] == 21:
            row["membership_gap"] = None
            row["missing"] = {"membership_gap": "nobody was left"}

    change_rows(tmp_path, gap)
    summary = summarise(tmp_path)
    assert line_of(summary, "npo")["missing"]["membership_gap"] == "nobody was left"
    page = render_bench(summary)
    assert "(2 of 3)" in page and "nobody was left" in page


def test_a_sequence_of_fewer_seeds_stands_beside_their_ends_alone(tmp_path):
    whole = {"share": 0.1, "methods": TABLED}
    short = {**whole, "parts": 2, "methods": ["cure", "random_modules"], "seeds": 2}
    made_rows(tmp_path, table_recipe(requests=[whole, short]), worth=WORTH)
    change_rows(tmp_path, lambda row: row.update(test_auc=0.9) if row["seed"] == 22 else None)
    summary = summarise(tmp_path)
    for name in ("original", "retrain", "base"):
        assert line_of(summary, name, block=1)["seeds"] == [20, 21]
        assert line_of(summary, name, block=0)["seeds"] == [20, 21, 22]
    assert line_of(summary, "retrain", block=1)["values"]["test_auc"]["mean"] == pytest.approx(0.7)
    assert summary["blocks"][1]["floor"]["n"] == 2


def test_the_excess_is_that_of_the_means(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    found = read_lines(tmp_path / "rows.jsonl")

    def mean(*names):
        return np.mean([r["excess_jsd"] for r in found if r["method"] in names])

    none, full = mean("retrain", "retrain_2"), mean("original")
    lines = {name: line_of(summarise(tmp_path), name)["values"]["excess_residual"] for name in WORTH}
    for name, value in lines.items():
        assert value["mean"] == pytest.approx((mean(name) - none) / (full - none))
        assert value["n"] == 3 and np.isfinite(value["half"])
    assert lines["random_modules"]["mean"] > 0.2 > abs(lines["cure"]["mean"])
    whole = line_of(summarise(tmp_path), "original")["values"]["excess_residual"]
    assert whole["mean"] == pytest.approx(1)


def test_the_base_stands_third_is_no_method_and_may_be_missing(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    summary = summarise(tmp_path)
    names = [x["name"] for x in summary["blocks"][0]["lines"]]
    assert names[:3] == ["original", "retrain", "base"] and set(names[3:]) == set(TABLED)
    base = line_of(summary, "base")
    assert base["values"]["test_auc"]["mean"] == pytest.approx(0.8)
    assert base["values"]["auc_drop"]["mean"] == pytest.approx(0.7 - 0.8)
    assert not base.get("against")  # it is compared with nothing
    path = tmp_path / "rows.jsonl"
    kept = [json.dumps(r) + "\n" for r in read_lines(path) if r["method"] != "base"]
    path.write_text("".join(kept), encoding="utf-8")
    assert [x["name"] for x in summarise(tmp_path)["blocks"][0]["lines"]] == [n for n in names if n != "base"]


def test_rows_without_the_excess_leave_it_out(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    path = tmp_path / "rows.jsonl"
    found = [{k: v for k, v in r.items() if k != "excess_jsd"} for r in read_lines(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    for kept in (tmp_path / "predictions").glob("*"):
        arrays = artefacts.read_arrays(kept)
        artefacts.write_arrays(kept, {"forget": arrays["forget"]}, {"of": "test"})
    summary = summarise(tmp_path)
    assert line_of(summary, "npo")["values"]["excess_residual"] is None
    assert (
        line_of(summary, "npo")["against_excess"] is None and line_of(summary, "npo")["against"] is not None
    )


def test_verdicts_are_counted_by_model_and_by_check(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    path = tmp_path / "rows.jsonl"
    found = read_lines(path)
    assert "Verified" not in text_table(summarise(tmp_path))  # rows from before verdicts were in them
    says = {"cure": (True, [], []), "npo": (None, [], ["membership"]), "retrain": (True, [], [])}
    for row in found:
        verified, failed, unknown = says.get(row["method"], (False, ["membership", "distribution"], []))
        row["verdict"] = {"verified": verified, "failed": failed, "open": unknown}
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    summary = summarise(tmp_path)
    assert line_of(summary, "cure")["verdicts"] == {"verified": 3, "refused": 0, "of": 3, "by": {}}
    assert line_of(summary, "npo")["verdicts"] == {"verified": 0, "refused": 0, "of": 3, "by": {}}
    by = {"distribution": 3, "membership": 3}
    assert line_of(summary, "random_modules")["verdicts"] == {"verified": 0, "refused": 3, "of": 3, "by": by}
    assert line_of(summary, "retrain")["verdicts"]["of"] == 6  # each retrain is a model by itself
    text = text_table(summary)
    assert "| 3 of 3 |" in text and "| 0 of 3, 3 refused |" in text
    assert "random_modules: distribution 3, membership 3" in text
    page = write_summary(tmp_path) and (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert "Verified</th>" in page and "Random groups and weights: distribution 3, membership 3" in page


def test_retrains_of_a_seed_count_as_one(tmp_path):
    made_rows(tmp_path, table_recipe())
    mine = line_of(summarise(tmp_path), "retrain")
    assert mine["seeds"] == [20, 21, 22] and mine["models"] == 6 and mine["values"]["test_auc"]["n"] == 3


def test_a_failed_cell_is_in_the_failures_and_its_line_marked(tmp_path):
    made_rows(tmp_path, table_recipe(), worth={**WORTH, "scrub": None})
    summary = summarise(tmp_path)
    bad = line_of(summary, "scrub")
    assert [f["seed"] for f in bad["failures"]] == [20, 21, 22] and bad["fewer"]
    assert all(v is None for v in bad["values"].values())
    assert "seed 20, 21, 22: out of memory" in text_table(summary)


def test_a_later_row_replaces_a_failed_one(tmp_path):
    made_rows(tmp_path, table_recipe(), worth={"npo": None})
    made_rows(tmp_path, table_recipe(), worth={"npo": 0.3})
    assert not line_of(summarise(tmp_path), "npo")["failures"]


def test_fewer_seeds_are_marked(tmp_path):
    asks = [
        {"share": 0.1, "methods": ["cure", "random_modules"]},
        {"share": 0.1, "methods": ["sisa"], "seeds": 1},
    ]
    made_rows(tmp_path, table_recipe(requests=asks))
    summary = summarise(tmp_path)
    assert len(summary["blocks"]) == 1  # the same request in two entries is one table
    assert line_of(summary, "sisa")["fewer"] and not line_of(summary, "cure")["fewer"]
    assert line_of(summary, "sisa")["values"]["residual"]["half"] is None


def test_where_nothing_was_to_be_forgotten_nothing_is_ranked(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    rows = read_lines(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").unlink()
    with (tmp_path / "rows.jsonl").open("w") as file:
        for row in rows:
            file.write(json.dumps({**row, "ceiling": 1.9 * row["floor"]}) + "\n")
    summary = write_summary(tmp_path)
    assert summary["blocks"][0]["rankable"] is False
    assert all(x["against"] is None for x in summary["blocks"][0]["lines"])
    text = text_table(summary)
    assert "not ranked" in text and "*" not in text
    residuals = [row.split("|")[2].strip() for row in text.splitlines() if row.startswith("| cure")]
    assert residuals == ["–"]


def test_a_sequence_stands_beside_the_references_of_the_whole_request(tmp_path):
    asks = [
        {"share": 0.1, "methods": ["cure", "random_modules"]},
        {"share": 0.1, "parts": 5, "methods": ["npo"]},
    ]
    made_rows(tmp_path, table_recipe(requests=asks))
    summary = summarise(tmp_path)
    assert [b["title"] for b in summary["blocks"]] == [
        "made, nano: users 10 %",
        "made, nano: users 5 x 2 %",
    ]
    assert line_of(summary, "original", 1)["values"]["residual"]["mean"] == 1.0
    assert summary["blocks"][1]["floor"] == summary["blocks"][0]["floor"]


def test_a_folder_that_is_no_benchmark(tmp_path):
    with pytest.raises(DataError, match="holds no benchmark"):
        summarise(tmp_path)


@pytest.mark.parametrize("looked", [True, False])
def test_the_page_says_by_what_settings_were_chosen_then(tmp_path, looked):
    """Searches of before did not look at calibration: their tables do not say that they did."""
    made_rows(tmp_path, table_recipe(search={"seed": 0, "trials": 2}), worth=WORTH)
    trial = {"failure": None, **({"ece_rise": 0.0} if looked else {})}
    (tmp_path / "trials.jsonl").write_text(json.dumps(trial) + "\n", encoding="utf-8")
    page = render_bench(summarise(tmp_path))
    assert ("calibration on validation data" in page) == looked
    assert ("a guard on validation AUC" in page) != looked
