"""What was changed in the model, and by which rules, in sentences: section 2 of a report."""

from __future__ import annotations

from typing import Any

from curerec.reports import figures as f
from curerec.reports.schema import Record
from curerec.reports.svg import finite
from curerec.reports.verdicts import why


def changed(record: Record) -> list[str]:
    """Section 2, before the table of groups."""
    model, groups = record.model, record.groups
    if not any((groups.cells, groups.forget, groups.retain, groups.shared, groups.frozen)):
        return [f"Which parts were changed, and why: {why(record, 'groups')}."]
    text = [
        "Every part of the model was put to two questions: how much can a change of it do towards forgetting "
        "the deleted data, and how much do good answers about data it never saw lean on it? The two sort "
        "the parts into four groups, and each group was changed by its own rule."
    ]
    if model.n_changed is not None and model.n_parameters:
        share = model.n_changed / model.n_parameters
        rest = " All others are exactly as they were." if share < 1 else ""
        text.append(
            f"{f.count(model.n_changed)} of the model's {f.count(model.n_parameters)} parameters "
            f"({f.percent(share)}) were changed.{rest}"
        )
    kept = _settings(record).get("kept")
    depth = next(iter(finite(record.update.depth)), 1.0)
    along = 1 - next(iter(finite(record.update.written)), 0.0)
    shares = [
        f"{name} parts kept {f.percent(1 - along * depth * (1 - kept[group]))}"
        for group, name in _GROUP.items()
        if isinstance(kept, dict) and isinstance(kept.get(group), (int, float)) and kept[group] < 1
    ]
    if shares:
        text.append(
            "Before the groups' rules were applied, part of what the training on users had changed was taken "
            f"back where memory of single users lies: {' and '.join(shares)} of it.{_rolled_back(record)}"
        )
        if record.update.second_arm:
            text.append(
                "That was done in one of two updates; in the other nothing was taken back, and the model "
                "handed back is the mean of both (section 5)."
            )
        if along < 1:
            text.append(
                f"In as many weights {f.percent(depth * (1 - along))} of what the deleted data's own "
                "gradients had written there during that training, estimated from points that it passed, was "
                "taken off."
            )
    if record.update.unseen_tokens:
        n = record.update.unseen_tokens
        words = (
            f"{f.count(n)} words that only deleted data showed were"
            if n > 1
            else ("One word that only deleted data showed was")
        )
        text.append(
            f"{words} put back to where the model had them before the training on users, where a retrained "
            "model has them, too."
        )
    return text


BY_GROUPS = ("cure", "random_modules", "random_groups")
_GROUP = {"forget": "forget-specific", "shared": "task-shared", "retain": "retain-specific"}


def _settings(record: Record) -> dict[str, Any]:
    """Settings of the method whose groups are shown; empty where they are not known."""
    if record.method not in BY_GROUPS:
        return {}
    found = (record.config or {}).get("cure")
    return found if isinstance(found, dict) else {}


def _rolled_back(record: Record) -> str:
    """Which single weights of the parts were taken back; nothing where all were that could move."""
    share = record.update.rolled_back or _settings(record).get("rolled_back")  # records before had the second
    if not isinstance(share, float) or not finite(share):
        return ""
    which = (
        "drawn at random"
        if record.method == "random_modules"
        else "in whose change, by a first-order estimate, the deleted data are remembered most"
    )
    return f" In those parts only single weights {which} were taken back, at most {f.percent(share)} of all."


def steps(record: Record) -> list[str]:
    """Which weights of the parts that can forget were free to move, and whether they were drawn back.

    Records before these were among what the update did have the settings alone, which a small request may
    have had otherwise.
    """
    if record.method not in BY_GROUPS or "update" in record.missing:  # the model may be of other settings
        return []
    settings = _settings(record)
    asked = settings.get("update")
    share = _share(record.update.saliency, settings.get("saliency"))
    anchor = _share(record.update.anchor, asked.get("anchor") if isinstance(asked, dict) else None)
    text, two = [], record.update.second_arm is not None
    if share:
        which = (
            "drawn at random"
            if record.method == "random_modules"
            else "on which the deleted data pull hardest"
        )
        text.append(
            f"Within the parts that were to forget, only single weights {which} took the steps that "
            f"followed, at most {f.percent(share)} of all weights; the others changed only where they were "
            "taken back." + (" That is of the first update; in the second all of them moved." if two else "")
        )
    if anchor:
        where = " of the first update" if two else ""
        text.append(
            f"After each step{where} all weights that moved were drawn {f.percent(anchor)} of the way back "
            "to where the steps began, less as the steps grew smaller, so that what no other step repeated "
            "faded."
        )
    return text


def _share(recorded: float | None, asked: Any) -> float | None:
    found = asked if recorded is None else recorded
    return found if isinstance(found, float) and finite(found) else None


def agreement(record: Record) -> str | None:
    """How firmly the groups stand."""
    value = record.groups.agreement
    if not finite(value):
        return None
    wavering = "were treated as task-shared, the cautious choice"
    if _settings(record).get("uncertain") == "leading":
        wavering = "stayed in the group that all data together put them in"
    return (
        "How firm is this sorting? It was repeated on resampled data. On average a part fell into the same "
        f"group in {f.percent(value)} of the repeats; parts that wavered {wavering}."
    )
