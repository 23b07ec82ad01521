"""Which job is begun when, how long it will take, and what a folder is refused for."""

from __future__ import annotations

import itertools
import json
import os

import pytest
import torch
from made_bench import leaves_later, made_place, made_recipe, made_rows

from curerec.bench import rows as bench_rows
from curerec.bench.crew import Event, Orders, Processes, gpu_is_lost
from curerec.bench.lines import read_lines
from curerec.bench.plan import Job, config_hash, nearness
from curerec.bench.run import run
from curerec.bench.timing import Estimate
from curerec.bench.work import ROWS, TRIALS
from curerec.data import leftovers
from curerec.errors import ConfigError, RefusedError, StorageError


def test_time_that_is_up_begins_nothing(tmp_path):
    done = run(made_recipe(), tmp_path / "out", places=made_place(tmp_path), minutes=1e-6)
    assert done.stopped and done.done == 0 and not (tmp_path / "out" / "rows.jsonl").exists()


def test_a_folder_that_is_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="not of a benchmark"):
        run(made_recipe(), tmp_path)
    with pytest.raises(StorageError, match="is a file"):
        run(made_recipe(), tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "place", [".tmp-bench.json-0", ".bench.html.7.part", "predictions/.tmp-x-0", "yardsticks/.tmp-x-0"]
)
def test_what_a_kill_left_goes_with_the_next_run(place, tmp_path):
    out = tmp_path / "out"
    made_rows(out, made_recipe())
    (out / place).write_bytes(b"half")
    kept = sorted(path for path in out.rglob("*") if path != out / place)
    run(made_recipe(), out, places=made_place(tmp_path), minutes=1e-6)
    assert sorted(out.rglob("*")) == kept


def test_a_refused_run_leaves_no_folder(tmp_path):
    grid = {"seed": 0, "trials": 2, "grids": {"npo": {"updte.lr": [1e-3, 2e-3]}}}
    with pytest.raises(ConfigError, match="holds no settings"):
        run(made_recipe(search=grid), tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())


def test_two_runs_in_one_folder(tmp_path):
    (tmp_path / "out").mkdir()
    held = leftovers.hold(tmp_path / "out")
    with pytest.raises(RefusedError, match="another run"):
        run(made_recipe(), tmp_path / "out", places=made_place(tmp_path))
    os.close(held)


class Watched:
    """A crew of four that does nothing but say what was in hand together; the last begun ends first."""

    def __init__(self):
        self.at_work, self.together = [], []

    def idle(self):
        return len(self.at_work) < 4

    def busy(self):
        return bool(self.at_work)

    def opened(self):
        return [], [job.place for job in self.at_work]

    def start(self, job, settings):
        self.at_work.append(job)
        self.together.append(list(self.at_work))

    def poll(self, timeout_s):
        return [Event("done", self.at_work.pop())]

    def close(self):
        pass


def test_models_that_share_a_training_do_not_train_it_at_the_same_time(tmp_path):
    nano = made_recipe().models["nano"].model_dump(exclude={"resolved"}, exclude_none=True)
    other = {**nano, "change": {**nano["change"], "npo": {"lr": 1e-4}}}
    recipe = made_recipe(models={"nano": nano, "other": other}, seeds=[20, 21])
    crew = Watched()
    run(recipe, tmp_path / "out", places=made_place(tmp_path), crew=lambda orders: crew)
    training = [
        [(j.kind, j.seed, j.request, j.number) for j in jobs if j.kind in ("base", "original", "retrain")]
        for jobs in crew.together
    ]
    assert all(len(set(jobs)) == len(jobs) for jobs in training)
    assert any(len(jobs) > 1 for jobs in training)  # others do run beside each other


class Failing(Watched):
    """Whose jobs all fail."""

    def poll(self, timeout_s):
        return [Event("failed", self.at_work.pop(), "out of memory")]


def test_what_could_not_be_made_does_not_hide_that_the_time_was_up(tmp_path, monkeypatch):
    monkeypatch.setattr(Estimate, "seconds", lambda self, job: 1e6 if job.seed == 21 else 0.0)
    recipe, places = made_recipe(seeds=[20, 21]), made_place(tmp_path)
    done = run(recipe, tmp_path / "out", places=places, minutes=60, crew=lambda orders: Failing())
    assert done.blocked == {"made, nano, seed 20: base: out of memory": 2} and done.stopped
    without = run(recipe, tmp_path / "other", places=places, crew=lambda orders: Failing())
    assert sum(without.blocked.values()) == 4 and not without.stopped


class Seated:
    """A crew of two that does nothing; each remembers what it opened last. Both end together."""

    def __init__(self):
        self.last, self.at_work, self.did = {}, {}, {0: [], 1: []}

    def idle(self):
        return len(self.at_work) < 2

    def busy(self):
        return bool(self.at_work)

    def opened(self):
        free = [place for seat, place in self.last.items() if seat not in self.at_work]
        return free, [job.place for job in self.at_work.values()]

    def start(self, job, settings):
        free = [seat for seat in (0, 1) if seat not in self.at_work]
        seat = min(free, key=lambda s: nearness(job.place, [self.last.get(s)]))
        self.at_work[seat], self.last[seat] = job, job.place
        self.did[seat].append(job)

    def poll(self, timeout_s):
        done, self.at_work = self.at_work, {}
        return [Event("done", job) for job in done.values()]

    def close(self):
        pass


def test_two_workers_open_a_request_each_and_everything_is_done(tmp_path):
    """What a request's cells share takes longer to open than a quick method takes."""
    methods = ["npo", "scrub", "grad_diff", "ga_kl", "finetune"]
    recipe = made_recipe(requests=[{"share": 0.2, "methods": methods}], seeds=[20, 21, 22, 23])
    crew = Seated()
    done = run(recipe, tmp_path / "out", places=made_place(tmp_path), crew=lambda orders: crew)
    assert done.done == done.total == 4 * (len(methods) + 1)
    jobs = [j for seat in (0, 1) for j in crew.did[seat]]
    assert len({j.key for j in jobs}) == len(jobs)
    opened = [{j.place for j in crew.did[seat] if j.kind in ("yardstick", "cell")} for seat in (0, 1)]
    assert not opened[0] & opened[1] and all(opened)
    for seat in (0, 1):  # and none goes back to what it has left
        cells = [j.place for j in crew.did[seat] if j.kind == "cell"]
        assert len(list(dict.fromkeys(cells))) == 1 + sum(a != b for a, b in itertools.pairwise(cells))


def test_models_that_are_fine_tuned_otherwise_are_trained_beside_each_other(tmp_path):
    """Their base is one all the same."""
    nano = made_recipe().models["nano"].model_dump(exclude={"resolved"}, exclude_none=True)
    model = {**nano["change"]["model"], "tuning": {**nano["change"]["model"]["tuning"], "epochs": 2}}
    other = {**nano, "change": {**nano["change"], "model": model}}
    crew = Watched()
    run(
        made_recipe(models={"nano": nano, "other": other}),
        tmp_path / "out",
        places=made_place(tmp_path),
        crew=lambda orders: crew,
    )
    kinds = [[j.kind for j in jobs] for jobs in crew.together]
    assert any(k.count("original") == 2 for k in kinds) and all(k.count("base") < 2 for k in kinds)


def test_time_left_is_learnt_from_cells_that_came_to_something(tmp_path):
    """Not from what all share, whose seconds are a whole yardstick's, nor from one that failed at once."""
    ask = {"share": 0.2, "methods": ["npo", "scrub", "grad_diff"]}
    recipe, out, told = made_recipe(requests=[ask]), tmp_path / "out", []
    made_rows(out, recipe, worth={"scrub": None})
    rows = [r for r in read_lines(out / "rows.jsonl") if r["method"] != "grad_diff"]
    seconds = {"npo": 10.0, "scrub": 0.001}
    with (out / "rows.jsonl").open("w") as file:
        for r in rows:  # that name no yardstick, or its models would have to be there
            row = {**r, "yardstick": None, "wall_s": seconds.get(r["method"], 500.0)}
            file.write(json.dumps(row) + "\n")
    run(recipe, out, places=made_place(tmp_path), minutes=1e-6, tell=told.append)
    assert "3 of 4 cells are there; about 10 s left" in told[0]


class Scripted:
    """A crew of one with rows from a script: the trial that ``best`` names wins.

    Args:
        recipe: of the run.
        best: number of that trial.
        fate: of a job by kind: ``done``, ``fails`` (its row says so), ``dies`` (no row), ``dies after`` it.
    """

    def __init__(self, recipe, best=0, fate=None):
        self.recipe, self.best, self.fate, self.told, self.did = recipe, best, fate or {}, [], []

    def idle(self):
        return not self.told

    def busy(self):
        return bool(self.told)

    def opened(self):
        return [], []

    def rows_of(self, job, settings, failure):
        about = {"dataset": job.dataset, "model": job.model, "method": job.method, "seed": job.seed}
        if job.kind == "trial":
            judged = {"nothing_happened": False, "auc_drop": 0.0, "auc_drop_se": 1.0, "kl_valid": 0.1}
            judged |= {"ece_rise": 0.0, "ece_rise_se": 1.0}
            gap = 0.0 if job.number == self.best else 0.5
            chosen = {"number": job.number, "settings": {"lr": 3e-3} if job.number else {}}
            hashed = {"config_hash": config_hash(self.recipe, job)}
            return [(TRIALS, {**about, **chosen, **hashed, **judged, "gap": gap, "failure": failure})]
        names = self.recipe.measured_once if job.kind == "yardstick" else [job.method]
        made = [bench_rows.about(self.recipe, job, name, shared=False) for name in names]
        said = {"settings": dict(settings)} if job.kind == "cell" else {}
        return [(ROWS, {**row, **said, "failure": failure}) for row in made]

    def start(self, job, settings):
        self.did.append((job.kind, job.number, dict(settings)))
        fate = self.fate.get(job.kind, "done")
        if job.kind in ("yardstick", "trial", "cell") and fate != "dies":
            failure = "out of memory" if fate == "fails" else None
            self.told += [Event("row", job, pair) for pair in self.rows_of(job, settings, failure)]
        self.told.append(Event("died" if fate.startswith("dies") else "done", job, "ended by signal 9"))

    def poll(self, timeout_s):
        out, self.told = self.told, []
        return out

    def close(self):
        pass

    def cells(self):
        return [settings for kind, _, settings in self.did if kind == "cell"]


SEARCHED = {
    "requests": [{"share": 0.2, "methods": ["npo"]}],
    "search": {"seed": 0, "trials": 2, "grids": {"npo": {"lr": [3e-3]}}},
}


def script(tmp_path, **said):
    retry = said.pop("retry", False)
    recipe = made_recipe(**SEARCHED)
    crew = Scripted(recipe, **said)
    places = {"made": str(tmp_path / "data")}
    done = run(recipe, tmp_path / "out", places=places, retry=retry, crew=lambda orders: crew)
    return crew, done


def test_a_cell_is_run_again_if_the_search_chooses_otherwise_and_only_then(tmp_path):
    """What a trial depends on is not all in the hash of the cells that take its choice."""
    made_place(tmp_path)
    assert script(tmp_path)[0].cells() == [{}]
    crew, done = script(tmp_path)
    assert crew.did == [] and done.done == done.total == 2
    (tmp_path / "out" / TRIALS).unlink()
    crew, done = script(tmp_path)  # trials are made anew and choose what they chose
    assert [kind for kind, *_ in crew.did].count("trial") == 2 and crew.cells() == []
    assert done.done == done.total == 2
    (tmp_path / "out" / TRIALS).unlink()
    crew, done = script(tmp_path, best=1)
    assert crew.cells() == [{"lr": 3e-3}] and done.done == done.total == 2
    assert script(tmp_path)[0].did == []


def test_a_failed_cell_is_run_again_if_the_search_chooses_otherwise(tmp_path):
    """It failed with those settings; with others it may not."""
    made_place(tmp_path)
    assert script(tmp_path, fate={"cell": "dies"})[0].cells() == [{}]
    (failed,) = [r for r in read_lines(tmp_path / "out" / ROWS) if r["failure"]]
    assert failed["settings"] == {} and failed["fingerprint"]
    assert script(tmp_path)[0].did == []
    (tmp_path / "out" / TRIALS).unlink()
    assert script(tmp_path, best=1)[0].cells() == [{"lr": 3e-3}]


def test_a_failed_cell_on_other_ratings_is_run_again(tmp_path):
    made_place(tmp_path)
    script(tmp_path, fate={"cell": "dies", "trial": "dies"})
    assert all(t["fingerprint"] for t in read_lines(tmp_path / "out" / TRIALS))
    ratings = next((tmp_path / "data").rglob("u.data"))
    ratings.write_text("\n".join(ratings.read_text().splitlines()[:-1]) + "\n")
    crew, _ = script(tmp_path)
    assert len(crew.cells()) == 1 and [kind for kind, *_ in crew.did].count("trial") == 2


def test_a_trial_that_failed_is_tried_again_when_asked(tmp_path):
    """A method whose trial was lost would otherwise be chosen from fewer than the others, for good."""
    made_place(tmp_path)
    script(tmp_path, best=1, fate={"trial": "dies"})
    assert [t["failure"] for t in read_lines(tmp_path / "out" / TRIALS)] == ["ended by signal 9"] * 2
    assert script(tmp_path, best=1)[0].did == []
    crew, _ = script(tmp_path, best=1, retry=True)
    assert [kind for kind, *_ in crew.did].count("trial") == 2 and crew.cells() == [{"lr": 3e-3}]


def test_trials_on_other_ratings_settle_nothing(tmp_path):
    made_place(tmp_path)
    script(tmp_path)
    path = tmp_path / "out" / TRIALS
    lines = [{**t, "fingerprint": "of before"} for t in read_lines(path)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    crew, _ = script(tmp_path)
    assert [kind for kind, *_ in crew.did].count("trial") == 2 and crew.cells() == []


def test_a_process_that_ends_after_its_row_costs_nothing(tmp_path):
    made_place(tmp_path)
    _, done = script(tmp_path, fate={"cell": "dies after", "trial": "dies after"})
    assert done.done == done.total == 2 and not done.failed and not done.blocked
    assert all(row["failure"] is None for row in read_lines(tmp_path / "out" / ROWS))
    assert all(trial["failure"] is None for trial in read_lines(tmp_path / "out" / TRIALS))


@pytest.mark.soak
def test_a_process_that_died_while_it_was_idle_is_replaced(tmp_path):
    """Its next job never began, so it is no failure of that job."""
    recipe = made_recipe()
    crew = Processes(Orders(recipe, tmp_path, made_place(tmp_path), False, 1, tmp_path / "cache"), 1)
    first, second = [Job("base", "made", "nano", seed) for seed in (20, 21)]
    try:
        crew.start(first, {})
        assert finished(crew) == "done"
        killed = crew.hands[0].process
        killed.kill()
        killed.join()
        crew.start(second, {})
        assert finished(crew) == "done" and crew.hands[0].process.pid != killed.pid
    finally:
        crew.close()


@pytest.mark.slow
@pytest.mark.soak
def test_a_process_that_ends_after_a_job_takes_no_other_with_it(tmp_path, monkeypatch):
    """The next job was not begun when its GPU was found lost, so it is no failure of that job."""
    recipe = made_recipe()
    monkeypatch.setattr("curerec.bench.crew.serve", leaves_later)
    crew = Processes(Orders(recipe, tmp_path, made_place(tmp_path), False, 1, tmp_path / "cache"), 1)
    try:
        for seed in (20, 21):
            crew.start(Job("base", "made", "nano", seed), {})
            assert finished(crew) == "done"
    finally:
        crew.close()


def test_a_process_whose_gpu_takes_no_more_work_is_known(monkeypatch):
    assert not gpu_is_lost()  # none was used

    def synchronize():
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not gpu_is_lost()
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert gpu_is_lost()


def finished(crew):
    while True:
        for event in crew.poll(1):
            if event.what in ("done", "failed", "died"):
                return event.what
