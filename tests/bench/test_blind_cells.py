"""A cell is given ratings with the test set in them, and hands back the same whatever that holds."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from made_bench import CHANGE, SHORT, made_place, made_recipe

from curerec.bench import work
from curerec.bench.plan import plan
from curerec.bench.sequence import one_after_the_other
from curerec.bench.work import Workshop
from curerec.config import merged
from curerec.data.splits import LIKED
from curerec.evaluation.guard import probes_changed
from curerec.interactions import Interactions, coded
from curerec.methods import METHODS
from curerec.methods.cragru.retrieval import Retriever
from curerec.models import logits_of
from curerec.opened import Opened
from curerec.pipeline import unlearn
from curerec.records import Examples, Outcome, Split
from curerec.splitting import drawn_request, granted

SEED = 20
#: Small beside the demo's own settings, of which the rest stands: what goes back, ``target``, ``small``, ...
METHOD = {
    **{name: SHORT for name in ("weighted_sum", "pcgrad", "cagrad", "gru")},  # the recipe's go before SHORT
    "task_vector": {"alphas": [1.0, 2.0]},
    "scrub": {"epochs": 1, "retain_share": 0.2, "max_steps": 40},
    "rome": {"steps": 3, "covariance_size": 40},
    "wise": {"margin_scale": 0.01, "lr": 5.0},
    "sisa": {"shards": 2, "slices": 2},
    "receraser": {"shards": 2, "attention_steps": 3, "width": 8},
    "apa": {"shards": 2, "valid_size": 60},
    "cragru": {"strategy": "preference"},  # the one that reads ratings
    "e2urec": {"r": 2, "max_steps": 10},
}
KEPT = {"model": {"waypoints": [0.5, 1.0]}, "cure": {"written": 0.5}, "methods": METHOD}


def with_another_test_set(data: Interactions, split: Split) -> Interactions:
    """The same but for what the test examples ask about: other items, and liked what was not."""
    rating, item = data.rating.copy(), data.item_code.copy()
    rng = np.random.default_rng(0)
    for row in np.unique(split.test.target):
        user = data.user_code[row]
        others = np.setdiff1d(np.arange(len(data.items)), item[data.first[user] : data.first[user + 1]])
        rating[row] = 1.0 if rating[row] >= LIKED else 5.0
        item[row] = rng.choice(others)
    table = data.ratings
    for name, column in (("rating", pa.array(rating)), ("item", coded(item, data.item_ids))):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return Interactions(table, data.titles, data.name, data.source)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """The same recommender made, and opened, on ratings with one test set and with another."""
    folder = tmp_path_factory.mktemp("blind")
    models = {"nano": {"recipe": "demo", "change": merged(CHANGE, KEPT), "every_method": SHORT}}
    recipe = made_recipe(models=models, requests=[{"share": 0.2, "methods": ["all"]}])
    cell = next(job for job in plan(recipe) if job.kind == "cell")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUREREC_CACHE", str(folder / "cache"))
        patch.setattr("curerec.methods.expected.LEAST_CLUSTERS", 5)  # there are few people
        first = Workshop(recipe, folder / "one", made_place(folder))
        one = first._opened(cell)
        second = Workshop(recipe, folder / "other", {})
        second._data = {"made": with_another_test_set(one.data, one.split)}
        yield one, second._opened(cell)


@dataclass(frozen=True)
class Cell:
    """What a cell's method hands back, and what that shows of D_f: histories, and its answers to them."""

    outcome: Outcome
    history: np.ndarray
    answers: np.ndarray


def cell_of(opened: Opened, name: str, kind: str = "users", parts: int = 1) -> Cell:
    """A method on a request, carried out as ``Workshop._measured`` does; it must have done something."""
    ask = opened.recipe.request.model_copy(update={"kind": kind})
    opened = replace(opened, recipe=opened.recipe.model_copy(update={"request": ask}))
    request = drawn_request(opened.data, opened.recipe, opened.split)
    config, split = opened.recipe.config_of(name), granted(opened.data, opened.recipe, opened.split, request)
    if parts > 1:
        out = one_after_the_other(opened, request, parts, name, config, seed=SEED, as_trained=True)
    else:
        out, _ = unlearn(opened, request, name, config, seed=SEED)
    shown = out.details.get("rebuild", lambda examples: examples)(split.forget)
    found = logits_of(replace(opened.recommender, model=out.model), opened.data, shown)
    assert probes_changed(logits_of(opened.recommender, opened.data, split.forget), found), "nothing happened"
    return Cell(out, shown.history, found)


def same(one: Cell, other: Cell) -> None:
    """Weights bit for bit, what they were found by, and what D_f is answered."""
    a, b = one.outcome, other.outcome
    for part in ("circuit", "groups"):
        x, y = ({} if (v := getattr(o, part)) is None else asdict(v) for o in (a, b))
        np.testing.assert_equal(x, y, f"the {part} depends on the test set")
    weights, others = a.model.state_dict(), b.model.state_dict()
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        assert torch.equal(value, others[key]), f"{key} depends on the test set"
    np.testing.assert_equal(list(a.trace), list(b.trace), "what looks found depends on the test set")
    assert (a.stop_reason, a.n_trainable) == (b.stop_reason, b.n_trainable)
    assert np.array_equal(one.history, other.history), "the histories of D_f depend on the test set"
    assert np.array_equal(one.answers, other.answers), "the answers to D_f depend on the test set"


def test_nothing_else_differs(twins):
    """The premise: another D_t, which no other part shows, and the same of all that is trained on."""
    one, other = twins
    assert one.data.fingerprint != other.data.fingerprint
    changed = (one.data.rating != other.data.rating) & (one.data.item_code != other.data.item_code)
    assert np.array_equal(np.flatnonzero(changed), np.unique(one.split.test.target))
    for part in ("train", "control", "valid"):
        a, b = getattr(one.split, part), getattr(other.split, part)
        for field in ("target", "history", "label"):
            assert np.array_equal(getattr(a, field), getattr(b, field)), part
        assert not changed[np.r_[a.target, a.history[a.history >= 0]]].any()
    assert (one.split.test.label != other.split.test.label).all()
    weights, others = (x.recommender.model.state_dict() for x in twins)
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[key]) for key, value in weights.items())
    assert one.answered and other.answered and one.waypoints and other.waypoints


@pytest.mark.slow_but("cure", "npo", "cragru", "finetune", "retrain")
@pytest.mark.parametrize("name", METHODS)
def test_a_cell_is_the_same_whatever_the_test_set_is(twins, name):
    same(*(cell_of(opened, name) for opened in twins))


@pytest.mark.slow_but("cragru-*")
@pytest.mark.parametrize(("name", "kind"), [("cure", "items"), ("cragru", "interactions")])
def test_so_is_one_of_another_kind_of_request(twins, name, kind):
    same(*(cell_of(opened, name, kind) for opened in twins))


@pytest.mark.slow
def test_so_is_a_sequence(twins):
    same(*(cell_of(opened, "npo", parts=2) for opened in twins))


@pytest.mark.slow
def test_a_cell_opens_answers_of_retrains_and_to_the_test_set_when_its_method_is_done(tmp_path, monkeypatch):
    """Neither the yardstick nor a retrain is read before there is an outcome, in one piece or in parts."""
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    requests = [{"share": 0.2, "methods": ["npo"]}, {"share": 0.2, "parts": 2, "methods": ["npo"]}]
    recipe = made_recipe(requests=requests)
    shop = Workshop(recipe, tmp_path / "out", made_place(tmp_path))
    order: list[str] = []

    def told(name, real):
        def call(*rest, **more):
            found = real(*rest, **more)
            order.append(name)
            return found

        return call

    for name in ("unlearn", "one_after_the_other"):
        monkeypatch.setattr(work, name, told("carried out", getattr(work, name)))
    for name in ("_yardstick", "_reference", "_yardstick_models"):
        monkeypatch.setattr(shop, name, told("opened", getattr(shop, name)))
    for cell in (job for job in plan(recipe) if job.kind == "cell"):
        order.clear()
        shop._last.pop("yardstick", None)
        row = shop._cell(cell, {})
        assert row["failure"] is None
        assert order[0] == "carried out" and "opened" in order


# Such a dependence would be found.


@pytest.mark.slow_but("receraser-*")
@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        ("cure", "curerec.prompts.counterfactual", "liked_graph"),  # PageRank
        ("cure", "curerec.prompts.counterfactual", "popularity_decile"),
        ("receraser", "curerec.methods.receraser.method", "factors"),
    ],
)
def test_a_method_that_looked_would_be_found(twins, name, module, function, monkeypatch):
    """Each of these is told which rows it may use; here it uses all."""
    place = importlib.import_module(module)
    real = getattr(place, function)

    def looking(data, rows, *rest, **more):
        return real(data, np.arange(len(data)), *rest, **more)

    monkeypatch.setattr(place, function, looking)
    with pytest.raises(AssertionError, match="on the test set"):
        same(*(cell_of(opened, name) for opened in twins))


def test_a_retrieval_of_later_ratings_would_be_found(twins, monkeypatch):
    def later(self, examples):
        """The user's latest, whenever they were."""
        end = self.data.first[self.data.user_code[examples.target] + 1]
        history = end[:, None] - np.arange(examples.history.shape[1], 0, -1)
        return Examples(examples.target, history, examples.label)

    monkeypatch.setattr(Retriever, "__call__", later)
    with pytest.raises(AssertionError, match="on the test set"):
        same(*(cell_of(opened, "cragru") for opened in twins))
