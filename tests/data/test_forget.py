"""What a deletion request does to every prompt that is left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curerec.data.forget import apply_request, deleted_rows, draw_request
from curerec.data.request_file import from_json, read_request, write_request
from curerec.data.splits import examples, per_user_split
from curerec.data.table import interactions
from curerec.errors import RequestError
from curerec.records import ForgetRequest
from made_catalogue import made_catalogue

DATA = made_catalogue()
SPLIT = per_user_split(DATA)
USER, ITEM = DATA.ratings["user"].to_pylist(), DATA.ratings["item"].to_pylist()
KINDS = ("users", "items", "interactions")


def matches(request):
    """The rows a request means, one by one."""
    ids = set(request.ids)
    named = {
        "users": lambda r: USER[r],
        "items": lambda r: ITEM[r],
        "interactions": lambda r: (USER[r], ITEM[r]),
    }
    return np.asarray([named[request.kind](r) in ids for r in range(len(DATA))])


@st.composite
def requests(draw):
    kind = draw(st.sampled_from(KINDS))
    pool = {
        "users": sorted(set(USER)),
        "items": sorted(set(ITEM)),
        "interactions": list(zip(USER, ITEM, strict=True)),
    }
    return ForgetRequest(kind, tuple(draw(st.lists(st.sampled_from(pool[kind]), min_size=1, max_size=8))))


@settings(max_examples=60)
@given(requests())
def test_no_prompt_that_is_kept_holds_a_deleted_interaction(request):
    deleted = deleted_rows(DATA, request)
    np.testing.assert_array_equal(deleted, matches(request))
    hit = deleted[SPLIT.train.target]
    if not hit.any():
        shown = SPLIT.train.history[SPLIT.train.history >= 0]
        why = "histories of some show it" if deleted[shown].any() else "saw nothing of it"
        with pytest.raises(RequestError, match=why):
            apply_request(DATA, SPLIT, request)
        return
    done = apply_request(DATA, SPLIT, request)
    # D_f is what the model was trained on, histories as they were.
    np.testing.assert_array_equal(done.forget.target, SPLIT.train.target[hit])
    np.testing.assert_array_equal(done.forget.history, SPLIT.train.history[hit])
    for part, before in ((done.retain, SPLIT.train), (done.valid, SPLIT.valid), (done.test, SPLIT.test)):
        assert not deleted[part.target].any()
        assert not deleted[part.history[part.history >= 0]].any()
        kept = before.target[~deleted[before.target]]
        want = [t for t in kept if earlier(t, deleted) >= 5]
        assert part.target.tolist() == want
        for target, history in zip(part.target, part.history, strict=True):
            assert set(history[history >= 0]) == set(last(target, deleted))
    gone = deleted[done.control.target]
    assert set(done.control.target[gone]) == set(SPLIT.control.target[deleted[SPLIT.control.target]])
    clean = done.control.history[~gone]
    assert not deleted[clean[clean >= 0]].any()
    np.testing.assert_array_equal(done.deleted, deleted)


def rows_before(target, deleted):
    return [r for r in range(target) if USER[r] == USER[target] and not deleted[r]]


def earlier(target, deleted):
    return len(rows_before(target, deleted))


def last(target, deleted):
    return rows_before(target, deleted)[-10:]


def test_an_older_interaction_moves_up_where_one_was_deleted():
    target = next(
        t for t in SPLIT.train.target if t - np.flatnonzero(DATA.user_code == DATA.user_code[t])[0] > 11
    )
    full = examples(DATA, [target]).history[0]
    removed = full[6]
    request = ForgetRequest("interactions", ((USER[removed], ITEM[removed]),))
    cleaned = examples(DATA, [target], deleted=deleted_rows(DATA, request)).history[0]
    assert cleaned.tolist() == [full[0] - 1, *np.delete(full, 6)]


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_repetition_of_ids_do_not_matter(kind):
    request = draw_request(DATA, SPLIT, kind=kind, share=0.1)
    again = ForgetRequest(kind, (*request.ids[::-1], request.ids[0], *request.ids))
    np.testing.assert_array_equal(deleted_rows(DATA, request), deleted_rows(DATA, again))
    assert request.digest == again.digest
    assert request.digest != ForgetRequest(kind, request.ids[1:]).digest
    assert not any(str(i) in request.digest for i in request.ids)


def test_pairs_may_come_as_lists_or_numbers():
    listed = ForgetRequest("interactions", ([USER[3], ITEM[3]],))
    assert listed.digest == ForgetRequest("interactions", ((USER[3], ITEM[3]),)).digest
    assert np.flatnonzero(deleted_rows(DATA, listed)).tolist() == [3]
    assert (
        ForgetRequest("interactions", ((1, 2),)).digest == ForgetRequest("interactions", (("1", "2"),)).digest
    )


@pytest.mark.parametrize(
    ("kind", "known", "unknown"),
    [
        ("users", USER[0], "secret7"),
        ("items", ITEM[0], "secret7"),
        ("interactions", (USER[0], ITEM[0]), ("x7", "y7")),
    ],
)
def test_unknown_ids_are_told_by_position_and_never_by_name(kind, known, unknown):
    with pytest.raises(RequestError, match=r"2 \w+\(s\) .*entries 2, 4\)") as caught:
        deleted_rows(DATA, ForgetRequest(kind, (known, unknown, known, unknown)))
    for text in (str(caught.value), repr(caught.value)):
        assert not any(
            word in text for word in ("secret7", "x7", "y7", *([known] if kind != "interactions" else known))
        )


def test_a_long_list_of_unknown_ids_is_cut_between_numbers():
    ids = tuple(f"nobody{k}" for k in range(300))
    with pytest.raises(
        RequestError, match=r"300 user\(s\) .*entries 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, \.\.\.\)"
    ):
        deleted_rows(DATA, ForgetRequest("users", ids))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_and_everybody_are_refused(kind):
    with pytest.raises(RequestError, match="names nothing"):
        apply_request(DATA, SPLIT, ForgetRequest(kind, ()))
    everything = {"users": set(USER), "items": set(ITEM), "interactions": set(zip(USER, ITEM, strict=True))}[
        kind
    ]
    with pytest.raises(RequestError, match="deletes all training data"):
        apply_request(DATA, SPLIT, ForgetRequest(kind, tuple(everything)))


def test_a_user_without_training_examples_is_nothing_to_forget():
    data = made_catalogue(41, per_user=(20, 30))
    split = per_user_split(data, users=np.arange(40))
    with pytest.raises(RequestError, match="saw nothing of it"):
        apply_request(data, split, ForgetRequest("users", (data.users[40],)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_drawn_request_has_the_share_and_the_seed(kind, share):
    request, again, other = (draw_request(DATA, SPLIT, kind=kind, share=share, seed=s) for s in (1, 1, 2))
    pool = {"users": DATA.user_code, "items": DATA.item_code, "interactions": np.arange(len(DATA))}[kind]
    assert (
        len(request.ids) == len(set(request.ids)) == round(share * len(np.unique(pool[SPLIT.train.target])))
    )
    assert request.ids == again.ids != other.ids
    apply_request(DATA, SPLIT, request)


@pytest.mark.parametrize("kind", ["users", "items"])
def test_core_and_edge_take_the_two_ends_of_activity(kind):
    code = (DATA.user_code if kind == "users" else DATA.item_code)[SPLIT.train.target]
    names = DATA.users if kind == "users" else DATA.items
    activity = {str(names[c]): n for c, n in zip(*np.unique(code, return_counts=True), strict=True)}
    ordered = sorted(activity.values())
    for choice, want in (("edge", ordered[:6]), ("core", ordered[-6:])):
        share = 6 / len(activity)
        chosen = draw_request(DATA, SPLIT, kind=kind, share=share, choice=choice).ids
        assert sorted(activity[i] for i in chosen) == want


@pytest.mark.parametrize("share", [1e-6, 0.9999])
def test_a_share_of_nothing_or_all_is_refused(share):
    with pytest.raises(RequestError, match="share of"):
        draw_request(DATA, SPLIT, share=share)


@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", "\u2028"])
def test_a_request_file_names_whom_it_names(tmp_path, blank):
    """Blanks that the ids of the data keep are kept in a request: less them it would name somebody else."""
    titles = {"a": "Alien", "b": "Brazil"}
    table = interactions(
        [" u1", "u1 ", f"u1{blank}", f"u1{blank}"],
        list("abab"),
        [5, 3, 4, 1],
        None,
        titles,
        name="x",
        source="y",
    )
    asked = ForgetRequest("users", (f"u1{blank}",))
    assert read_request(write_request(asked, tmp_path / "request.csv")).ids == asked.ids
    (tmp_path / "request.csv").write_text(f"user\n u1{blank} \n", encoding="utf-8")
    assert deleted_rows(table, read_request(tmp_path / "request.csv")).tolist() == [False, False, True, True]


@pytest.mark.parametrize("kind", ["users", "interactions"])
def test_half_a_letter_in_json_is_refused_by_its_place(kind):
    """JSON may escape one half of a pair of surrogates, which is no text."""
    half = '"\\ud800somebody"'
    entries = f'"1", {half}' if kind == "users" else f'["1", "a"], ["1", {half}]'
    with pytest.raises(RequestError, match="entry 2 of its ids is not") as refused:
        from_json(f'{{"kind": "{kind}", "ids": [{entries}]}}', "request")
    assert "somebody" not in str(refused.value)
    whole = '{"kind": "users", "ids": ["\\ud83d\\ude00"]}'
    assert from_json(whole, "request")[1] == [("entry 1", "\U0001f600")]
