"""What the figures mean, in sentences for a reader who is not a researcher."""

from __future__ import annotations

from dataclasses import dataclass

from curerec.reports import figures as f
from curerec.reports.parts import CircuitPart, HeadReads, Metrics
from curerec.reports.schema import Record, is_retrain
from curerec.reports.svg import finite
from curerec.reports.verdicts import CHOICES, asked_for, why

PAIR = 2  # retrains


@dataclass(frozen=True)
class Explained:
    """Text, then figures with what each of them means."""

    text: list[str]
    figures: list[tuple[str, str]]


def request(record: Record) -> list[str]:
    """Section 1."""
    asked, split = record.request, record.split
    if asked.kind is None and asked.n_ids is None:
        return [f"What the deletion request named is {why(record, 'request')}."]
    named = f"A deletion request named {asked_for(record)}"
    if record.dataset.name:
        named += f" of the data set {record.dataset.name}"
    details = []
    if asked.kind == "users" and finite(asked.share):
        details.append(f"{f.percent(asked.share)} of its users")
    if asked.choice:
        details.append(CHOICES.get(asked.choice, asked.choice))
    named += f" ({', '.join(details)})." if details else "."
    if finite(asked.n_interactions):
        fall = "falls" if asked.n_interactions == 1 else "fall"
        named += f" {f.plural(asked.n_interactions, 'rating')} {fall} under it."
    if finite(asked.n_examples):
        of = f" {f.count(split.train)}" if finite(split.train) else ""
        asking = f"{f.count(asked.n_examples)} ask about those ratings"
        named += f" Of the recommender's{of} training examples, {asking}."
    aim = "The aim is a model that answers as if it had never seen any of them, without training it anew."
    if is_retrain(record.method):
        aim = "The model was trained anew without them: it answers as one that has never seen any of them."
    if not asked.n_base_interactions:
        return [named, aim]
    were = "was" if asked.n_base_interactions == 1 else "were"
    by = f" by {f.plural(asked.n_base_users, 'user')}" if asked.n_base_users is not None else ""
    base = (
        f"But {f.plural(asked.n_base_interactions, 'rating')} of them{by} {were} already used to make the "
        "base model that this recommender was fine-tuned from. Whatever the base learnt from them is still "
        "there: only what fine-tuning learnt is unlearnt. To be rid of it, make the base anew without them."
    )
    return [named, aim, base]


def residual(record: Record, value: float | None) -> list[str]:
    """Section 3, first half: distance to a retrain."""
    floor, ceiling = record.floor_jsd, record.ceiling_jsd
    text = [
        "The yardstick is a model trained anew on everything except the deleted data. The residual says how "
        "far the answers about the deleted data still are from that model's: 0 means no further than a "
        "second retraining is, 1 means as far as if nothing had been done."
    ]
    if value is not None:
        if value <= 0.005:
            meaning = "the unlearned model is as close to the retrained one as a second retraining would be"
        elif value < 1:
            meaning = f"{f.percent(1 - value)} of the distance that could be closed is closed"
        else:
            meaning = "the model did not come closer to the retrained one than it was before"
        text.append(f"Here the residual is {f.fixed(value, 2)}: {meaning}.")
    if floor is not None and ceiling is not None and floor > 0:
        ratio = ceiling / floor
        judged = (
            ", so there was something measurable to forget."
            if ratio >= 2
            else ". Below 2 times, hardly anything was there to forget, and no residual is given."
        )
        text.append(
            "Why 0 is not “identical”: two retrainings that differ only in chance are "
            f"{f.brief(floor)} nats apart (the noise floor). The original model is {f.brief(ceiling)} nats "
            f"away, {f.times(ratio)} times the floor{judged}"
        )
        if sum(map(is_retrain, record.metrics)) == PAIR:
            text.append(
                "The floor is the distance of a single pair here. Pairs of retrainings differ by up to a "
                "factor of two, so the residual is provisional: a third retraining steadies it."
            )
    return text


def membership(record: Record) -> list[str]:
    """Section 3, second half: what an attacker can tell."""
    ours, original, retrain = record.ours, record.metrics["original"], record.retrained
    text = [
        "An attacker holds two ratings, one that was deleted and one that the model never saw, and guesses "
        "from the model's answers which is which. Pure guessing is right 50 times in 100."
    ]
    if ours is None or ours.membership_auc is None:
        reason = why(record, f"metrics.{record.method}.membership_auc")
        return [*text, f"For the unlearned model this could not be measured ({reason})."]
    others = []
    if original and original.membership_auc is not None:
        others.append(f"before the change {_in_100(original.membership_auc)}")
    if retrain and retrain.membership_auc is not None:
        others.append(f"with the retrained model {_in_100(retrain.membership_auc)}")
    found = f"With the unlearned model the attacker is right {_in_100(ours.membership_auc)} times in 100"
    found += f" ({', '.join(others)})." if others else "."
    low, high = ours.membership_low, ours.membership_high
    if low is not None and high is not None:
        paired, (aim, whose) = _in_pairs(ours), _yardstick(record)
        digits = 0 if paired else _telling(low, high, aim)
        between = f"between {_in_100(low, digits)} and {_in_100(high, digits)}"
        meaning = paired or _by_itself(low, high, aim, _in_100(aim, digits) + whose)
        if is_retrain(record.method):  # what else it may be like is no trace
            meaning = (
                "It never saw the deleted data, so wherever that lies is chance, or how those people are."
            )
        found += f" The sample is large enough to place the true figure {between}. {meaning}"
    text.append(found)
    if ours.membership_tpr_at_fpr_01 is not None:
        caught = f.percent(ours.membership_tpr_at_fpr_01)
        text.append(
            f"An attacker who accepts 1{f.NBSP}% of false alarms recognises {caught} of the deleted "
            f"examples; guessing would give {f.percent(_guessed(record.split.control))}."
        )
    return text


def _guessed(n: int | None) -> float:
    """Share of hits at 1 % of false alarms that guessing is expected to have.

    The threshold is the lowest that no more than 1 % of the n examples of D_c lie above, and another example
    lies above it a little more often: of 100 in 2 %.
    """
    return 0.01 if not n else (n // 100 + 1) / (n + 1)


def _in_pairs(ours: Metrics) -> str | None:
    """What the gap to the retrained models says; None where its interval is not known.

    What makes a user easy or hard for both falls out of the gap, so it shows traces that are small beside the
    error of the figure itself.
    """
    low, high = (ours.extra.get(f"membership_gap_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return None
    if low > 0:
        by = f"{_in_100(low, 1)} to {_in_100(high, 1)}"
        said = (
            f"That is {by} more than retrained models give on the same ratings: a trace of the deleted data"
        )
        return f"{said} can still be measured, as far as other retrainings would not differ by as much."
    if high < 0:
        by = f"{_in_100(-high, 1)} to {_in_100(-low, 1)}"
        said = f"That is {by} less than retrained models give on the same ratings: the deleted data stand out"
        return f"{said} as too unfamiliar, a trace as well, as far as other retrainings would not."
    by = f"{_in_100(low, 1)} to {f.signed(100 * high, 1)}"
    return (
        f"On the same ratings the difference to retrained models may be none ({by}): no trace of the deleted "
        "data can be told."
    )


def _telling(low: float, high: float, aim: float) -> int:
    """Digits behind the point that do not put an aim into an interval that it lies outside of."""
    inside = round(100 * low) <= round(100 * aim) <= round(100 * high)
    return 1 if inside and not low <= aim <= high else 0


def _by_itself(low: float, high: float, aim: float, whose: str) -> str:
    """What the interval of the figure says of where a model that never saw the deleted data would lie."""
    if low <= aim <= high:
        return f"That includes {whose}: no trace of the deleted data can be told."
    if low > aim:
        return f"That lies above {whose}: a trace of the deleted data can still be measured."
    return f"That lies under {whose}: the deleted data stand out as too unfamiliar, a trace as well."


def _yardstick(record: Record) -> tuple[float, str]:
    """What an attacker would get of a model that never saw the deleted data, and words on how that is known.

    It is not 50: some people are harder to answer than others, whoever was trained on them.
    """
    found = [m.membership_auc for m in record.references if m.membership_auc is not None]
    if found:
        aim = sum(found) / len(found)
        return aim, ", which retrained models give"
    target = next(iter(finite(record.update.target)), None)
    if target is not None:
        return target, ", which is expected of a model that never saw them"
    return 0.5, ""


def utility(record: Record) -> list[str]:
    """Section 4."""
    ours, original, retrain = record.ours, record.metrics["original"], record.retrained
    if ours is None or ours.test_auc is None:
        reason = why(record, f"metrics.{record.method}.test_auc")
        return [f"The quality of the recommendations was not measured ({reason})."]
    compared = ""
    if original and original.test_auc is not None:
        compared += f"; the original model {_in_100(original.test_auc, 1)}"
    if retrain and retrain.test_auc is not None:
        compared += f"; the retrained one {_in_100(retrain.test_auc, 1)}"
    return [
        "Shown one item that somebody went on to like and one that somebody (the same user or another) did "
        f"not, the unlearned model puts the liked one first {_in_100(ours.test_auc, 1)} times in "
        f"100{compared}. Most such pairs are of two users; on one user's items alone it was not measured. "
        "All figures are measured on ratings kept apart for the test."
    ]


def time(record: Record) -> list[str]:
    """Section 5."""
    ours = record.ours
    if ours is None or ours.t_total_s is None:
        reason = why(record, f"metrics.{record.method}.t_total_s")
        return [f"The time cannot be given ({reason})."]
    text = f"The request took {f.seconds(ours.t_total_s)} in all, model loading and evaluation not counted"
    text += f"; {f.seconds(ours.t_core_s)} of that changed the model." if ours.t_core_s is not None else "."
    if record.retrain_s and ours.t_total_s > 0:
        ratio = record.retrain_s / ours.t_total_s
        faster = f"{f.times(ratio)} times as long" if ratio >= 1 else f"{f.percent(ratio)} of that"
        text += f" Retraining on the same machine took {f.seconds(record.retrain_s)}: {faster}."
    elif is_retrain(record.method):
        text += " It is a training anew."
    elif ours.retrain_ratio is not None:
        text += f" That is {f.percent(ours.retrain_ratio)} of the time that retraining takes."
    else:
        reason = why(record, f"metrics.{record.method}.retrain_ratio")
        text += f" It cannot be compared with retraining ({reason})."
    if record.cost.kept:
        parts = " and ".join(record.cost.kept)
        text += f" What training or an earlier request had left of {parts} was used; that is not counted."
    if record.cost.peak_mem_bytes is not None:
        text += f" At most {f.size(record.cost.peak_mem_bytes)} of memory were in use."
    return [text]


def stopping(record: Record) -> list[str]:
    """Why the update ended when it did."""
    update = record.update
    if update.steps is None and not update.stop_reason:
        return []
    took = f"after {f.plural(update.steps, 'step')}" if update.steps is not None else "when it did"
    reason = f": {update.stop_reason}" if update.stop_reason else ""
    text = [
        f"The update stopped {took}{reason}. That was decided from the deleted data and from data it does "
        "not touch, never from a retrained model, which a real deployment does not have."
    ]
    second = update.second_arm
    if second is not None:
        own = f", with {f.plural(second.steps, 'step')} in the second" if second.steps is not None else ""
        text.append(
            f"Two updates were made, each from the model as it was{own}. In the first the parts that "
            "remember the deleted data began where part of the training on users was taken back, in the "
            "second nothing was. The model handed back has the mean of their weights "
            f"({f.percent(second.share)} of the second), and the last check point is of that."
        )
    return text


def _stable(c: CircuitPart) -> bool:
    """As :func:`curerec.circuits.stability.settle` has it, which needs more than reports may import."""
    chance = c.jaccard_chance or 0.0
    return (c.jaccard or 0.0) >= 0.8 and (c.jaccard or 0.0) - chance >= 0.6 * (1 - chance) > 0


def circuit(record: Record) -> Explained:
    """Section 6."""
    c = record.circuit
    if c.size is None and not c.modules:
        return Explained([f"There is no circuit to show ({why(record, 'circuit')})."], [])
    size = c.size if c.size is not None else len(c.modules or [])
    text = [
        "Parts (attention heads and MLPs) are ranked by how much of a recommendation each of them carries. "
        "The circuit is the shortest run from the top of that list that was found to carry one together. Its "
        "parts are framed on the map of section 2."
    ]
    if c.n_fixed:
        text.append(
            f"It was sought among the parts that the request can change. {f.count(c.n_fixed)} further parts "
            "hold no trained weight and stay as they are."
        )
    of = f" of {f.count(c.n_modules)}" if c.n_modules is not None else ""
    explained = [
        (f"{f.count(size)}{of}", 0.0, "parts belong to it."),
        (
            f.percent(c.faithfulness),
            c.faithfulness,
            "of the answer is kept when every other part is fed altered input (faithfulness, measured on "
            "prompts that did not rank the parts; they chose how many).",
        ),
        (
            f.percent(c.completeness),
            c.completeness,
            "of the answer is lost when these parts are fed altered input and all others are left intact.",
        ),
        (
            f.percent(c.jaccard),
            c.jaccard,
            "overlap on average when it is chosen anew from resampled prompts: the choice is "
            + ("stable." if _stable(c) else "in part a matter of chance.")
            + (
                f" Random choices of as many overlap by {f.percent(c.jaccard_chance)}."
                if c.jaccard_chance is not None
                else ""
            ),
        ),
        (
            f.fixed(c.spearman_exact, 2),
            c.spearman_exact,
            "rank correlation of the quick scores with exact measurement (1 = the same order).",
        ),
    ]
    pairs = {k: v for k, v in (c.pairs or {}).items() if v is not None}
    if pairs:
        text.append(
            "To find it, prompts were altered: the earlier likes or dislikes that speak for the answer, "
            "found on the graph of users and items, gave way to equally popular items that do not. Pairs of "
            f"a prompt and its altered twin: {_pairs(pairs)}."
        )
    if c.reads:
        text.append(_heads_read(c.reads))
    return Explained(text, [(shown, meaning) for shown, value, meaning in explained if finite(value)])


def _pairs(pairs: dict[str, int]) -> str:
    """What became of the pairs; of which of them some was counted."""
    moved = {"moved": "moved the answer", "fell": "weakened it", "flipped": "turned it round"}
    groups: list[dict[str, str]] = [
        {"made": "made"},
        moved,
        {"kept": "pairs used", "judged": "of them to judge"},
        {"unaligned": "dropped, because no replacement of equal length was found"},
    ]
    named = {k for group in groups for k in group}
    groups.append({k: k for k in pairs if k not in named})
    listed = [[f"{f.count(pairs[k])} {said}" for k, said in g.items() if k in pairs] for g in groups]
    if listed[1] and "made" in pairs:
        # Records from before the weakened ones were counted hold figures of the judging half.
        listed[1][0] = ("of these " if "fell" in pairs else "of those that judge ") + listed[1][0]
    return "; ".join(", ".join(group) for group in listed if group)


_PROMPT_PARTS = {"liked": "the liked list", "disliked": "the disliked list", "candidate": "the candidate"}


def _heads_read(reads: list[HeadReads]) -> str:
    """Which heads of the circuit read what: by where the answer position looks, with how common that is."""
    said = []
    for part, name in _PROMPT_PARTS.items():
        heads = [r for r in reads if r.part == part]
        if heads:
            best = max(heads, key=lambda r: r.mass or 0.0)
            between = f"{f.percent(best.low)} to {f.percent(best.high)}"
            said.append(
                f"{f.plural(len(heads), 'head')} read{'s' * (len(heads) == 1)} {name} (most of all "
                f"{best.head}: {f.percent(best.mass)} of its attention, 95 % interval {between}, for "
                f"{f.percent(best.tokens)} of the tokens; above that share in {f.percent(best.prompts)} of "
                "the prompts)"
            )
    none = sum(r.part is None for r in reads)
    if none:
        said.append(f"{f.plural(none, 'head')} look{'s' * (none == 1)} at no part more than at the rest")
    return (
        "Of its heads, by where the place of the answer looks: "
        + "; ".join(said)
        + ". Where a head looks is not yet what it does there."
    )


def _in_100(value: float, digits: int = 0) -> str:
    return f.fixed(100 * value, digits)
