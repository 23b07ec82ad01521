"""Sentences of the report that depend on a method's settings."""

from __future__ import annotations

import numpy as np
import pytest
from made_records import full_record, production_record

from curerec.evaluation.membership import tpr_at_fpr
from curerec.evaluation.utility import utility
from curerec.recommender.units import Place
from curerec.records import Groups
from curerec.reports.build import groups_part
from curerec.reports.figures import percent
from curerec.reports.html import render
from curerec.reports.schema import as_record
from curerec.reports.tables import groups
from curerec.reports.verdicts import verdict


@pytest.mark.parametrize("method", ["cure", "npo"])
def test_what_was_taken_back_and_what_became_of_wavering_parts(method: str) -> None:
    """In words, where the settings say so; another method's record says nothing of cure's settings."""
    record = full_record() | {"method": method}
    record["metrics"] = {"original": {}, method: {}}
    record["residual"] = {}
    settings = {"kept": {"forget": 0.6, "retain": 1.0, "shared": 0.5}, "uncertain": "leading"}
    page = " ".join(render(record | {"config": {"cure": settings}}).split())  # also no-break spaces
    taken = "forget-specific parts kept 60 % and task-shared parts kept 50 % of it"
    assert (taken in page) is (method == "cure")
    assert ("that all data together put them in" in page) is (method == "cure")
    for broken in ({"kept": "all"}, {"kept": {"forget": "0.5"}}, "none", {"kept": {"forget": None}}):
        assert "was taken back" not in render(record | {"config": {"cure": broken}})


@pytest.mark.parametrize("method", ["cure", "random_modules", "npo"])
def test_which_weights_were_free_to_move(method: str) -> None:
    """The share that was asked for, and how they were chosen; nothing where whole units move."""
    record = full_record() | {"method": method}
    record["metrics"], record["residual"] = {"original": {}, method: {}}, {}
    page = " ".join(render(record | {"config": {"cure": {"saliency": 0.2}}}).split())
    assert ("at most 20 % of all weights" in page) is (method != "npo")
    assert ("on which the deleted data pull hardest" in page) is (method == "cure")
    assert ("drawn at random took the steps" in page) is (method == "random_modules")
    for settings in ({}, {"saliency": None}, {"saliency": "much"}):
        assert "took the steps" not in render(record | {"config": {"cure": settings}})


def test_that_steps_were_drawn_back_is_said_where_they_were() -> None:
    record = full_record()
    for anchor, said in ((0.03, True), (None, False), (0.0, False), ("much", False)):
        settings = {"saliency": 0.1, "update": {"anchor": anchor}}
        page = " ".join(render(record | {"config": {"cure": settings}}).split())
        assert ("drawn 3 % of the way back to where the steps began" in page) is said


def test_of_a_stored_model_no_steps_are_told() -> None:
    """It may be of other settings than those at hand: those of a small request, or of another recipe."""
    record = full_record()
    record["update"], record["missing"]["update"] = {}, "only stored models were compared"
    settings = {"saliency": 0.1, "update": {"anchor": 0.03}}
    page = " ".join(render(record | {"config": {"cure": settings}}).split())
    assert "took the steps" not in page and "of the way back to where the steps began" not in page


def test_a_small_requests_own_settings_are_said_where_the_record_has_them() -> None:
    record = full_record()
    settings = {"config": {"cure": {"saliency": None, "update": {"anchor": 0.03}}}}
    record["update"] |= {"saliency": 0.1, "anchor": 0.0}
    page = " ".join(render(record | settings).split())
    assert "at most 10 % of all weights" in page and "drawn 3 %" not in page


def test_two_updates_are_told_apart() -> None:
    """What was done in which, and that the mean of both was handed back; nothing of it where one was made."""
    record = full_record()
    kept = {"kept": {"forget": 0.2, "shared": 0.2}, "saliency": 0.1, "update": {"anchor": 0.03}}
    alone = " ".join(render(record | {"config": {"cure": kept}}).split())
    record["update"]["second_arm"] = {
        "share": 0.25,
        "steps": 30,
        "optimizer": "adamw",
        "trace": [{"step": s, "membership_auc": 0.6 - s / 300, "valid_auc": 0.7} for s in (0, 10, 20, 30)],
    }
    both = " ".join(render(record | {"config": {"cure": kept}}).split())
    for said in (
        "That was done in one of two updates",
        "Two updates were made, each from the model as it was, with 30 steps in the second.",
        "the mean of their weights (25 % of the second)",
        "After each step of the first update all weights",
        "The second update, step by step",
        "Check points of the second update",
        "That is of the first update; in the second all of them moved.",
    ):
        assert said in both and said not in alone, said
    record["update"]["second_arm"] = {"share": None, "steps": None}  # a record that says little is shown, too
    assert "from the model as it was. In the first" in render(record | {"config": {"cure": kept}})


def test_membership_is_held_against_what_a_model_without_memory_shows() -> None:
    """Which is not 50: some people are harder to answer than others, whoever was trained on them."""

    def page(retrained: float | None, target: float | None) -> str:
        record = full_record()
        record["metrics"]["cure"] |= {"membership_auc": 0.56, "membership_low": 0.53, "membership_high": 0.59}
        for name in [n for n in record["metrics"] if n.startswith("retrain")]:
            record["metrics"][name]["membership_auc"] = retrained
        record["update"]["target"] = target
        return " ".join(render(record).split())

    assert "That includes 56, which retrained models give: no trace" in page(0.56, 0.5)
    assert "That lies above 50, which retrained models give: a trace" in page(0.5, 0.56)
    assert "That includes 55, which is expected of a model that never saw them" in page(None, 0.55)
    assert "That lies above 50: a trace" in page(None, None)
    assert "That lies under 62, which retrained models give: the deleted data stand out" in page(0.62, None)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.502, 0.56, "between 50.2 and 56.0. That lies above 50.0: a trace"),
        (0.44, 0.498, "between 44.0 and 49.8. That lies under 50.0: the deleted data stand out"),
        (0.498, 0.56, "between 50 and 56. That includes 50: no trace"),
        (0.51, 0.56, "between 51 and 56. That lies above 50: a trace"),
    ],
)
def test_rounding_does_not_put_the_aim_into_the_interval(low: float, high: float, said: str) -> None:
    record = full_record()
    found = {"membership_auc": (low + high) / 2, "membership_low": low, "membership_high": high}
    record["metrics"] = {"original": {}, "cure": found}
    record["update"]["target"] = None
    assert said in " ".join(render(record).split())


@pytest.mark.parametrize(("n", "said"), [(None, "1 %"), (40, "2.4 %"), (100, "2 %"), (800, "1.1 %")])
def test_what_guessing_gives_is_what_it_gives_of_so_many(n: int | None, said: str) -> None:
    record = full_record()
    record["split"]["control"] = n
    page = " ".join(render(record).split())
    assert f"guessing would give {said}." in page
    if n is not None:
        rng = np.random.default_rng(0)
        hits = np.mean([tpr_at_fpr(rng.random(200), rng.random(n)) for _ in range(2000)])
        assert float(said.split()[0]) / 100 == pytest.approx(hits, abs=0.002)


def test_the_quality_is_not_said_to_be_of_one_users_items() -> None:
    """The AUC is of all pairs of ratings, most of them of two users."""
    z, y = (
        np.array([2.0, 2.0, 2.0, 0.0, 0.0, 0.0]),
        np.array([1, 1, 0, 1, 0, 0]),
    )  # two users, told apart alone
    found = utility(z, y)["auc"]
    assert found > 0.6 and utility(z[:3], y[:3])["auc"] == utility(z[3:], y[3:])["auc"] == 0.5
    record = full_record()
    record["metrics"]["cure"]["test_auc"] = found
    page = " ".join(render(record).split())
    assert (
        "one that somebody (the same user or another) did not" in page and f"{100 * found:.1f} times" in page
    )


@pytest.mark.parametrize("reached", [True, False, None, "no such check"])
def test_who_may_be_remembered_unseen_is_said_by_the_checks_that_were_made(
    reached: bool | str | None,
) -> None:
    """Where each of the deleted was held by themselves, a fifth left as they were does not pass."""
    record = full_record()
    record["verdict"]["checks"] = [{"name": "membership", "passed": True}]
    if not isinstance(reached, str):
        record["verdict"]["checks"] += [{"name": "all_reached", "passed": reached}]
    page = " ".join(render(record).split())
    assert ("a twentieth of the people, left as they were" in page) is isinstance(reached, bool)
    assert ("a fifth of the people) and the mean" in page) is not isinstance(reached, bool)


def test_a_trace_that_pairs_show_is_not_called_none() -> None:
    """The figure's own interval may hold the retrains' while the gap, drawn in pairs, is above 0."""

    def page(low: float | None, high: float | None) -> str:
        record = full_record()
        record["metrics"]["cure"] |= {"membership_auc": 0.52, "membership_low": 0.45, "membership_high": 0.59}
        record["metrics"]["cure"] |= {"membership_gap_low": low, "membership_gap_high": high}
        for name in ("retrain", "retrain_2"):
            record["metrics"][name]["membership_auc"] = 0.5
        return " ".join(render(record).split())

    assert "no trace of" not in page(0.012, 0.031) + page(-0.031, -0.012)
    assert "That is 1.2 to 3.1 more than retrained models give on the same ratings: a trace" in page(
        0.012, 0.031
    )
    assert "That is 1.2 to 3.1 less than retrained models give on the same ratings" in page(-0.031, -0.012)
    assert "may be none (−0.4 to +1.2): no trace of the deleted data can be told" in page(-0.004, 0.012)
    assert "That includes 50, which retrained models give: no trace" in page(None, None)


def test_checks_that_passed_do_not_hide_that_nothing_was_gained() -> None:
    record = full_record()
    assert record["verdict"]["verified"] is True
    record["residual"] = {**record["residual"], "cure": 1.84}
    page = " ".join(render(record).split())
    assert "Passed its checks, and no nearer to a retrain" in page and "Do not treat the request" in page
    record["ceiling_jsd"] = 1.5 * record["floor_jsd"]  # nothing was there to forget: no residual counts
    page = " ".join(render(record).split())
    assert "no nearer to a retrain" not in page and "not judged" in page
    assert "two retrainings differ by more than half of what was to be forgotten" in page
    assert "1.84" not in page and "How forgetting stands" not in page  # in no table, in no picture
    others = {"residual_int8": 1.87, "residual_nf4": 1.88, "excess_residual": 1.89}
    record["metrics"]["cure"] |= others | {"membership_auc_int8": 0.517}
    page = render(record)
    assert not any(str(value) in page for value in others.values()) and "0.517" in page
    record["ceiling_jsd"] = 3 * record["floor_jsd"]
    assert all(str(value) in render(record) for value in others.values())


def test_a_residual_by_one_pair_of_retrains_is_called_provisional() -> None:
    record = full_record()
    assert "so the residual is provisional" in " ".join(render(record).split())
    record["metrics"]["retrain_3"] = dict(record["metrics"]["retrain_2"])
    assert "provisional" not in render(record)


def test_seconds_are_held_against_the_mean_of_the_retrains() -> None:
    record = full_record()
    record["metrics"]["cure"]["t_total_s"] = 5.0
    names = [n for n in record["metrics"] if n.startswith("retrain")]
    for name, seconds in zip(names, (30.0, 50.0), strict=True):
        record["metrics"][name]["t_total_s"] = seconds
    page = " ".join(render(record).split())
    assert "Retraining on the same machine took 40 s: 8.0 times as long" in page


def test_words_that_could_forget_are_counted_and_not_named() -> None:
    """They are in what the deleted people rated, so a list of them would tell what that was."""
    names = ("embed_tokens.row.0", "embed_tokens.row.1", "layers.0.o_proj.row.0", "lm_head.row.1")
    places = [
        Place(None, "embed_tokens", None), Place(None, "embed_tokens", None),
        Place(0, "o_proj", None, "attn"), Place(None, "lm_head", None),
    ]  # fmt: skip
    role, zeros = np.array(["forget", "frozen", "forget", "shared"], dtype=object), np.zeros(4)
    part = groups_part(Groups(names, role, zeros, zeros, zeros), places, "row")
    assert part["forget"] == ["layers.0.o_proj.row.0"] and not part["shared"] and not part["frozen"]
    record = full_record() | {"groups": part}
    page = " ".join(render(record).split())
    assert "embed_tokens.row" not in page and "lm_head.row" not in page
    counts = {name: (count, share) for name, count, share in groups(as_record(record))}
    assert counts["forget"] == ("2", percent(0.5)) and counts["shared"] == ("1", percent(0.25))
    whole = groups_part(Groups(("embed_tokens",), role[:1], *[zeros[:1]] * 3), places[:1], "projection")
    assert whole["forget"] == ["embed_tokens"]  # of all words together it may be said


@pytest.mark.parametrize("method", ["cure", "random_modules", "npo"])
def test_which_weights_were_taken_back(method: str) -> None:
    """Their share and how they were chosen, where anything was taken back."""
    record = full_record() | {"method": method}
    record["metrics"], record["residual"] = {"original": {}, method: {}}, {}
    settings = {"kept": {"forget": 0.2, "shared": 0.2}, "rolled_back": 0.2}
    page = " ".join(render(record | {"config": {"cure": settings}}).split())
    assert ("were taken back, at most 20 % of all." in page) is (method != "npo")
    assert ("the deleted data are remembered most" in page) is (method == "cure")
    record["update"]["depth"] = 0.5  # the looks asked for half of the way to the 20 % that may be kept
    page = " ".join(render(record | {"config": {"cure": settings}}).split())
    assert ("forget-specific parts kept 60 % and task-shared parts kept 60 % of it" in page) is (
        method != "npo"
    )
    assert "had written there" not in page
    record["update"] |= {"written": 0.25, "depth": 1.2}  # a quarter of the way is another one
    page = " ".join(render(record | {"config": {"cure": settings}}).split())
    assert ("forget-specific parts kept 28 % and task-shared parts kept 28 % of it" in page) is (
        method != "npo"
    )
    assert ("In as many weights 30 % of what the deleted data" in page) is (method != "npo")
    record["update"]["written"] = None
    record["update"]["depth"] = None
    record["update"]["rolled_back"] = 0.05  # a small request's, whose settings say .2 for others
    page = " ".join(render(record | {"config": {"cure": settings}}).split())
    assert ("were taken back, at most 5 % of all." in page) is (method != "npo")
    record["update"]["rolled_back"] = None
    for other in (
        {"rolled_back": 0.2},
        {**settings, "rolled_back": None},
        {**settings, "rolled_back": "much"},
    ):
        assert "only single weights" not in render(record | {"config": {"cure": other}})


@pytest.mark.parametrize(
    ("count", "said"),
    [(5, "5 words that only deleted data showed were"), (1, "One word that only deleted data showed was")],
)
def test_words_that_only_deleted_data_showed(count: int, said: str) -> None:
    """How many went back; nothing where there were none, or it was not asked for."""
    record = full_record()
    record["update"]["unseen_tokens"] = count
    page = " ".join(render(record).split())
    assert f"{said} put back to where the model had them" in page
    assert "Left exactly as it was, but for the words above." in page
    for none in (0, None):
        record["update"]["unseen_tokens"] = none
        assert "only deleted data showed" not in render(record)


def test_what_was_not_judged_names_the_checks_that_could_not_be_decided():
    """Also where models were retrained: the checks need none, so the lack of one is never the reason."""
    record = full_record()
    record["verdict"] = {
        "verified": None,
        "checks": [
            {"name": "utility", "passed": True, "value": 0.0, "limit": 0.1, "text": "As good."},
            {"name": "deleted_answers", "passed": None, "value": 0.0, "limit": 0.1, "text": "Too little."},
        ],
    }
    state, _, sentence = verdict(as_record(record))
    assert state == "open" and "check could not be decided (deleted answers)" in sentence
    assert "retrained" not in sentence


def test_a_check_that_asks_for_so_many_does_not_call_them_a_limit() -> None:
    """``32 (limit 1)`` beside "passed" reads as a limit that was passed over."""
    record = full_record()
    counted = {"name": "something_changed", "passed": True, "value": 32.0, "limit": 1.0, "text": "x"}
    bounded = {"name": "utility", "passed": True, "value": 0.001, "limit": 0.002, "text": "y"}
    record["verdict"]["checks"] = [counted, bounded]
    page = " ".join(render(record).split())
    assert "32 (at least 1)" in page and "0.001 (limit 0.002)" in page


def _of_a_retrain(**verdict_part: object) -> str:
    record = production_record() | {
        "method": "retrain",
        "residual": {},
        "circuit": {},
        "groups": {},
        "update": {},
    }
    record["metrics"] = {"original": record["metrics"]["original"], "retrain": record["metrics"]["cure"]}
    record["metrics"]["retrain"] |= {"membership_auc": 0.46, "membership_low": 0.43, "membership_high": 0.48}
    record["verdict"] = {**record["verdict"], **verdict_part}
    return " ".join(render(record).split())


def test_a_model_that_was_trained_anew_is_not_told_to_remember() -> None:
    """Checks made for unlearned models refuse one of ten such, and few deleted examples leave most open."""
    failed = [
        {"name": "membership", "passed": False, "value": 0.04, "limit": 0.03, "text": "Told."},
        {"name": "all_reached", "passed": None, "value": None, "limit": None, "text": "Too few."},
    ]
    page = _of_a_retrain(verified=False, checks=failed)
    assert "Trained anew</span>" in page and "it never saw them, so its use alone is judged" in page
    assert (
        "Of 2 checks for models that did see them, 1 failed (membership) and 1 could not be decided" in page
    )
    for untrue in (
        "Do not treat",
        "a trace",
        "without training it anew",
        "cannot be compared with retraining",
    ):
        assert untrue not in page, untrue
    use = [{"name": "utility", "passed": False, "value": 0.1, "limit": 0.01, "text": "Fell."}]
    assert "Not verified</span>" in _of_a_retrain(verified=False, checks=use)
    promoted = _of_a_retrain(
        verified=False, checks=use, promoted=True, notes=["Its membership is no <matter>."]
    )
    assert "Trained anew</span>" in promoted and "<li>Its membership is no &lt;matter&gt;.</li>" in promoted


def test_a_report_says_what_its_fingerprint_can_be_tested_by() -> None:
    record = full_record()
    assert "who guesses what was named can test the guess" in render(record)
    record["request"]["digest"] = "keyed:b-0123456789abcdef"
    page = render(record)
    assert "can test the guess" not in page and "nothing about who was named can be tested by it" in page
