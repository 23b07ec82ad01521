"""A whole benchmark on a tiny catalogue: its rows, what is shared, what fails, and going on."""

from __future__ import annotations

import copy
import json
import shutil
import time
import types
import weakref

import numpy as np
import pytest
from made_bench import count_trainings, made_place, made_recipe

from curerec.bench import artefacts, rows, work
from curerec.bench.lines import read_lines
from curerec.bench.plan import plan
from curerec.bench.run import run
from curerec.bench.search import choice
from curerec.bench.summary import summarise, write_summary
from curerec.bench.work import ROWS, TRIALS, Workshop
from curerec.errors import StorageError
from curerec.methods import METHODS
from curerec.records import Outcome
from curerec.reports.bench_page import render_bench
from made_commands import PRIVATE, tree

ASKS = [
    {"share": 0.2, "methods": ["npo", "grad_diff", "scrub", "rome", "gru", "sisa"]},
    {"share": 0.2, "parts": 2, "methods": ["npo", "cragru"]},
]
GRID = {"grids": {"npo": {"lr": [1e-3, 3e-3]}, "cragru": {}}}
SEARCH = {"seed": 0, "trials": 2, "grids": {m: {} for m in METHODS} | GRID["grids"]}


def out_of_memory(task, config):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB for usr42")


def nothing(task, config):
    return Outcome("rome", copy.deepcopy(task.original.model), 0.0, 0.0)


def careless(task, config):
    return {}["usr42"]


SCRUB = METHODS["scrub"]
FAKES = {"scrub": out_of_memory, "rome": nothing, "gru": careless}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One run, done twice."""
    folder = tmp_path_factory.mktemp("bench")
    attacks = ["residual_int8", "relearn_ratio", "depth"]
    recipe = made_recipe(requests=ASKS, search=SEARCH, seeds=[20, 21], columns=attacks)
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUREREC_CACHE", str(folder / "cache"))
        for name, fake in FAKES.items():
            patch.setitem(METHODS, name, (fake, METHODS[name][1]))
        places = made_place(folder)
        trained = count_trainings(patch)
        first = run(recipe, folder / "out", places=places, tell=told.append)
        write_summary(folder / "out")
        before, n_first = tree(folder / "out"), list(trained)
        again = run(recipe, folder / "out", places=places)
        write_summary(folder / "out")
        yield types.SimpleNamespace(
            folder=folder,
            out=folder / "out",
            recipe=recipe,
            places=places,
            first=first,
            again=again,
            told=told,
            before=before,
            trained=n_first,
            trained_again=trained[len(n_first) :],
            rows=read_lines(folder / "out" / "rows.jsonl"),
            trials=read_lines(folder / "out" / "trials.jsonl"),
        )


def test_there_is_a_row_for_every_cell(made):
    once = ("original", "base", "retrain", "retrain_2")
    methods = ("npo", "grad_diff", "scrub", "rome", "gru", "sisa")
    names = [*once, *methods]
    found = {(r["seed"], r["request"], r["method"]) for r in made.rows}
    whole = {(s, "users-0.2-random", n) for s in (20, 21) for n in names}
    parts = {(s, "users-0.2-random-x2", n) for s in (20, 21) for n in ("npo", "cragru")}
    assert found == whole | parts and len(made.rows) == len(found)
    # Two yardsticks count as one cell each.
    assert made.first.done == made.first.total == 2 * (1 + 6 + 2)


def test_every_model_has_its_verdict(made):
    checks = {"something_changed", "membership", "distribution", "control_unseen", "all_reached", "utility"}
    checks |= {"calibration", "deleted_answers"}
    for row in made.rows:
        if row["failure"]:
            assert "verdict" not in row
            continue
        said = row["verdict"]
        assert {*said["failed"], *said["open"]} <= checks and not {*said["failed"]} & {*said["open"]}
        expected = False if said["failed"] else None if said["open"] else True
        assert said["verified"] is expected
        assert ("something_changed" in said["failed"]) == (row["method"] == "original")


def test_rows_bear_the_names_of_the_protocol_and_a_reason_for_every_gap(made):
    for row in made.rows:
        assert set(rows.COLUMNS) | set(rows.ABOUT) <= set(row)
        asked = {"depth"} & row.keys()  # beyond the protocol's, of methods alone
        named = (*rows.COLUMNS, *rows.FURTHER, rows.LATENCY, *asked)
        gaps = {name for name in named if row.get(name) is None}
        if row["residual"] is not None and row.get("residual_low") is None and "retrain" not in row["method"]:
            gaps.add("residual_low")  # in some resamples nothing was there to forget
        assert set(row["missing"]) == gaps and all(row["missing"].values())
    sisa = next(r for r in made.rows if r["method"] == "sisa")
    assert "several models" in sisa["missing"]["depth"]
    good = next(r for r in made.rows if r["method"] == "npo")
    there = set(rows.COLUMNS) - {"relearn_ratio", "int8_residual", "nf4_residual", "residual"}
    assert all(isinstance(good[name], int | float) for name in there)
    assert good["int8_residual"] is not None or "retrained" in good["missing"]["int8_residual"]
    assert "not ask" in good["missing"]["nf4_residual"]
    assert good["latency_ratio"] > 0
    assert good["peak_memory"] > 50e6 and good["t_total"] >= good["t_core"] > 0
    assert good["settings"] is not None and good["method_config"]["check_size"] == 60


def test_the_base_model_stands_beside_what_came_of_it(made):
    bases = [r for r in made.rows if r["method"] == "base"]
    assert len(bases) == 2 and all(r["membership_auc"] and r["test_auc"] for r in bases)
    assert all("not known" in r["missing"]["t_total"] for r in bases)
    originals = {r["seed"]: r["test_auc"] for r in made.rows if r["method"] == "original"}
    assert all(r["test_auc"] != originals[r["seed"]] for r in bases)  # it is not the original again


def test_rows_and_messages_name_nobody(made):
    text = (made.out / "rows.jsonl").read_text() + (made.out / "trials.jsonl").read_text()
    text += (made.out / "bench.html").read_text() + "\n".join(made.told)
    assert not PRIVATE.search(text)


def test_failures_are_rows_and_end_nothing(made):
    why = {(r["method"], r["seed"]): r["failure"] for r in made.rows}
    for seed in (20, 21):
        assert why["scrub", seed] == "out of memory"
        assert "nothing happened" in why["rome", seed]
        assert why["gru", seed].split(" at ")[0] == "KeyError"  # its message would have named somebody
        assert "no single model" in why["cragru", seed]
        assert why["npo", seed] is None and why["sisa", seed] is None
    beside = {r["seed"]: r["yardstick"] for r in made.rows if r["method"] == "original"}
    for row in (r for r in made.rows if r["failure"]):  # beside another original it may do something
        assert row.get("yardstick") == (beside[row["seed"]] if row["method"] == "rome" else None)
    fingerprints = {r["fingerprint"] for r in made.rows}  # of failures, too
    assert len(fingerprints) == 1 and None not in fingerprints
    assert all(r["settings"] is not None for r in made.rows if r["failure"])
    assert any("out of memory" in line for line in made.told)
    assert "out of memory" in (made.out / "bench.html").read_text()


def test_every_model_is_trained_once(made):
    kinds = [name.split("-")[0] for name in made.trained]
    # Seeds 20 and 21 with two retrains each, and the development seed's original; no retrain of that.
    assert kinds.count("original") == 3 and kinds.count("retrain") == 4
    assert len(set(made.trained)) == len(made.trained)


def test_the_second_call_changes_nothing(made):
    assert made.trained_again == [] and made.again.done == made.again.total
    after = tree(made.out)
    assert {k: v for k, v in after.items() if k != "bench.html"} == {
        k: v for k, v in made.before.items() if k != "bench.html"
    }


def test_the_search_never_has_a_retrain_beside_it(made):
    cards = [json.loads(p.read_text()) for p in made.out.glob("models/*/curerec.json")]
    seeds = sorted(c["recipe"]["seed"] for c in cards if c["without"])
    assert seeds == [1020, 1021, 2020, 2021]


def test_cells_take_what_the_search_chose(made):
    trials = [t for t in made.trials if t["method"] == "npo"]
    assert [t["number"] for t in trials] == [0, 1] and {t["seed"] for t in trials} == {0}
    best = choice(trials, 0.01)
    for row in made.rows:
        if row["method"] == "npo":
            assert row["settings"] == best["settings"]
            assert row["method_config"]["lr"] == best["settings"].get("lr", row["method_config"]["lr"])


def test_predictions_give_the_row_back(made):
    row = next(r for r in made.rows if r["method"] == "npo" and r["request"] == "users-0.2-random")
    said = artefacts.read_arrays(made.out / "predictions" / row["predictions"])
    yard = artefacts.read_arrays(made.out / "yardsticks" / row["yardstick"])
    from curerec.evaluation.inputs import p_yes
    from curerec.evaluation.residual import Reference

    scale = Reference(
        np.stack([p_yes(yard[f"{n}/forget"]) for n in ("retrain", "retrain_2")]),
        p_yes(yard["original/forget"]),
    )
    assert scale.distance(said["forget"].astype(float)) == pytest.approx(row["jsd"], rel=1e-4)
    assert (scale.floor, scale.ceiling) == pytest.approx((row["floor"], row["ceiling"]))
    assert set(said) == {"forget", "control", "test"} and len(said["forget"]) == row["n_forget"]


def test_a_kill_before_the_row_leaves_the_earlier_one_with_its_own_answers(made, tmp_path, monkeypatch):
    """The file of answers is written first; what no row names goes with the next run."""
    monkeypatch.setenv("CUREREC_CACHE", str(made.folder / "cache"))
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    job = next(j for j in plan(made.recipe) if j.kind == "cell" and j.method == "grad_diff")
    row = next(r for r in made.rows if r["method"] == "grad_diff" and r["seed"] == job.seed)
    shop, whole = Workshop(made.recipe, out, made.places), tree(out / "predictions")
    ((_, again),) = shop.do(job, {})
    assert again["jsd"] == row["jsd"] and tree(out / "predictions") == whole  # of the same answers one file
    ((_, other),) = shop.do(job, {"lr": 3e-3})
    assert rows.row_key(other) == rows.row_key(row) and other["jsd"] != row["jsd"]
    now = tree(out / "predictions")
    assert {name: now[name] for name in whole} == whole and now.keys() - whole.keys() == {
        other["predictions"]
    }
    run(made.recipe, out, places=made.places)
    assert tree(out / "predictions") == whole


def test_progress_says_how_much_is_left(made):
    assert any("left" in line and line.startswith("[") for line in made.told)
    assert "nothing left" in made.told[-1]


@pytest.mark.slow_but("1-False-")
@pytest.mark.parametrize(
    ("threads", "shared", "told"),
    [(0, False, "threads (0, here 1)"), (1, True, "other work"), (1, False, "")],
)
def test_a_cell_of_another_sitting_than_its_retrains_has_no_ratio(
    threads, shared, told, made, tmp_path, monkeypatch
):
    """Their seconds are those of the sitting that trained them."""
    monkeypatch.setenv("CUREREC_CACHE", str(made.folder / "cache"))
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    for path in out.glob("models/retrain-*/curerec.json"):
        card = json.loads(path.read_text())
        assert card["timed_on"]["shared_machine"] is False
        path.write_text(json.dumps({**card, "timed_on": {**card["timed_on"], "threads": threads}}))
    shop = Workshop(made.recipe, out, made.places, shared)
    job = next(j for j in plan(made.recipe) if j.kind == "cell" and j.method == "grad_diff")
    ((_, row),) = shop.do(job, {})
    assert row["failure"] is None and row["t_total"] > 0 and row["forward_ratio"] > 0
    assert (row["retrain_ratio"] is None) == bool(told) and told in row["missing"].get("retrain_ratio", "")


@pytest.mark.slow
def test_the_seconds_of_a_cell_are_of_all_that_is_measured(made, monkeypatch):
    """The next sitting goes by them: verdict and latency take some as well."""
    monkeypatch.setenv("CUREREC_CACHE", str(made.folder / "cache"))
    monkeypatch.setattr(work, "latency_ratio", lambda *models: time.sleep(3))
    job = next(j for j in plan(made.recipe) if j.kind == "cell" and j.method == "grad_diff")
    shop = Workshop(made.recipe, made.out, made.places)
    start = time.perf_counter()
    ((_, row),) = shop.do(job, {})
    assert row["wall_s"] > time.perf_counter() - start - 1.5


def test_a_worker_that_moves_on_lets_the_recommender_go(made, monkeypatch):
    """Beside the next one there is no room for it where one just fits."""
    monkeypatch.setenv("CUREREC_CACHE", str(made.folder / "cache"))
    shop = Workshop(made.recipe, made.out, made.places)
    first, second = (j for j in plan(made.recipe) if j.kind == "yardstick")
    shop._yardstick(first), shop._ground(first), shop._plain(first)
    left, alive = weakref.ref(shop._opened(first).recommender.model), []
    real = artefacts.open_recommender

    def opened(*args, **rest):
        alive.append(left() is not None)
        return real(*args, **rest)

    monkeypatch.setattr(artefacts, "open_recommender", opened)
    assert shop._yardstick(second) and alive == [False]


@pytest.mark.slow
def test_a_failed_cell_is_tried_again_when_asked(made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    monkeypatch.setenv("CUREREC_CACHE", str(made.folder / "cache"))
    monkeypatch.setitem(METHODS, "scrub", SCRUB)  # mended meanwhile
    done = run(made.recipe, out, places=made.places, retry=True)
    last = {(r["method"], r["seed"]): r for r in rows.newest(read_lines(out / "rows.jsonl"))}
    assert last["scrub", 20]["failure"] is None and last["scrub", 20]["jsd"] is not None
    assert {label.split(": ")[-1] for label, _ in done.failed} == {"rome", "gru", "cragru"}


@pytest.mark.slow
def test_damaged_references_are_made_anew(made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    monkeypatch.setenv("CUREREC_CACHE", str(made.folder / "cache"))
    whole, yards = tree(out), measured(out)
    weights = sorted(out.glob("models/retrain-*/model.safetensors"))[0]
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    for path in (*out.glob("yardsticks/*"), out / "rows.jsonl"):
        path.write_bytes(path.read_bytes()[:-7])
    trained = count_trainings(monkeypatch)
    shop = Workshop(made.recipe, out, made.places)
    for job in plan(made.recipe):
        if job.kind in ("original", "retrain", "yardstick"):
            shop.do(job, {})
    assert trained == [weights.parent.name]
    now = tree(out)
    changed = {k for k in whole if whole[k] != now.get(k) and not k.startswith("yardsticks/")}
    assert changed <= {"rows.jsonl", *cards(whole)}
    assert measured(out) == yards
    assert now[str(weights.relative_to(out))] == whole[str(weights.relative_to(out))]  # bit by bit


def measured(out):
    """Arrays of all yardsticks; the order of a file's header is not settled."""
    files = sorted(out.glob("yardsticks/*"))
    return {f.name: {k: v.tobytes() for k, v in artefacts.read_arrays(f).items()} for f in files}


def cards(names):
    return {name for name in names if name.endswith("curerec.json")}  # hold seconds


@pytest.mark.slow
def test_a_reference_that_cannot_be_trained_blocks_its_cells_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    real = artefacts.train

    def train(data, recipe, folder, **rest):
        if rest.get("without") is not None and recipe.seed == 1020:
            raise MemoryError
        return real(data, recipe, folder, **rest)

    monkeypatch.setattr(artefacts, "train", train)
    recipe = made_recipe(seeds=[20, 21], requests=[{"share": 0.2, "methods": ["grad_diff"]}])
    done = run(recipe, tmp_path / "out", places=made_place(tmp_path))
    assert sum(done.blocked.values()) == 1 and "retrain 1: out of memory" in next(iter(done.blocked))
    assert [r["seed"] for r in read_lines(tmp_path / "out" / "rows.jsonl") if r["method"] == "grad_diff"] == [
        21
    ]
    summary = summarise(tmp_path / "out")
    retrain = next(x for x in summary["blocks"][0]["lines"] if x["name"] == "retrain")
    assert [one["seed"] for one in retrain["failures"]] == [20]
    assert "out of memory" in retrain["failures"][0]["text"] and "out of memory" in render_bench(summary)
    # No row was written of what could not be run: the next call tries it again.
    monkeypatch.setattr(artefacts, "train", real)
    assert run(recipe, tmp_path / "out", places=made_place(tmp_path)).blocked == {}
    assert not any(x["failures"] for x in summarise(tmp_path / "out")["blocks"][0]["lines"])


@pytest.mark.slow
@pytest.mark.parametrize("what", [pytest.param(TRIALS, marks=pytest.mark.soak), artefacts.PREDICTIONS])
def test_a_full_disk_is_no_failure_of_a_method(what, tmp_path, monkeypatch):
    """Nothing is written down against it, and the same command does it once there is room."""
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    full = StorageError("the disk is full", where="made", mend="Make room")

    def no_room(*anything, **more):
        raise full

    if what == TRIALS:
        monkeypatch.setattr(work, "carry_out", no_room)
    else:
        real = artefacts.write_arrays
        monkeypatch.setattr(
            artefacts,
            "write_arrays",
            lambda path, *rest: no_room() if path.parent.name == what else real(path, *rest),
        )
    ask = {"share": 0.2, "methods": ["grad_diff"]}
    search = {"seed": 0, "trials": 1} if what == TRIALS else None
    recipe, places, out = made_recipe(requests=[ask], search=search), made_place(tmp_path), tmp_path / "out"
    done = run(recipe, out, places=places)
    assert (done.done, done.total, done.failed) == (1, 2, [])
    assert sum(done.blocked.values()) == 1 and "the disk is full" in next(iter(done.blocked))
    assert not any(row["failure"] for name in (ROWS, TRIALS) for row in read_lines(out / name))
    monkeypatch.undo()
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    done = run(recipe, out, places=places)
    assert (done.done, done.blocked, done.failed) == (2, {}, [])


def test_outcomes_of_a_sequence_add_up(made):
    one = next(r for r in made.rows if r["method"] == "npo" and r["forget_parts"] == 2)
    assert one["forget_ratio"] == 0.2 and one["t_total"] > 0 and one["jsd"] is not None
    whole = next(r for r in made.rows if r["method"] == "npo" and r["forget_parts"] == 1)
    assert one["yardstick"] == whole["yardstick"] and one["n_forget"] == whole["n_forget"]
