"""The membership AUC that a retrain would have, from what theta_o and the base model answer.

How well some users are told from others depends on who they are: of 1 % of the users the AUC of a retrain,
which never saw them, lies anywhere between .42 and .58. The base model has never seen them either, but what
is hard for it is not all that is hard for a recommender. Both are known of ratings that nobody was trained on
(D_c): they say how much of the base's AUC carries over to a fine-tuned model. And theta_o's own AUC on D_f is
what a retrain's would be, plus memory; users who stay (D_r) say how much memory there is, and how far it
differs between users. The two estimates are weighed by what each leaves open, an empirical Bayes estimate.

Most ratings of D_c are by people whose other ratings were trained on, and all are of items that were: they
teach what a model answers about ratings that it has not seen. Where single ratings are deleted, a retrain is
in that very position. Of deleted people it has seen nothing, so a little more is expected than retrains show,
.002 to .004 (docs/method.md). Of deleted items they teach nothing, and the base's AUC is what is expected
then.

No retrain and no test example enters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from curerec.methods.task import Task
from curerec.recommender.score import label_nll
from curerec.records import Examples

#: Examples of D_c, and of D_r, that are asked; whole users (or items), so that their scatter is seen.
POOL = 1500
#: Of D_r so many times as many are asked in training: a deletion takes some of them out.
SPARE = 1.25
#: Of the order in which people are drawn; the same for all requests, so that training can ask the base.
ORDER = 54
#: Users (or items) of D_c below which what the base says is taken as it is.
LEAST_CLUSTERS = 20


@dataclass(frozen=True)
class Expectation:
    """How the AUC of a model that has not seen some people follows from the base's and from theta_o's.

    Attributes:
        slope: of a fine-tuned model's AUC on the base's, over people's unseen ratings; in [0, 1].
        base, original: AUC of both models on unseen ratings against those of other people; near .5.
        memory: by how much theta_o's AUC on people it was trained on lies above what the base's says.
        weight: of what theta_o answers on D_f, against what the base does; in [0, 1].
        within, between: variance of an unseen example's placement about what the base says of it: of its own,
            and what all of a person's examples share.
        common: variance of what was learned of D_c and D_r, which errs alike for every group.
    """

    slope: float
    base: float
    original: float
    memory: float
    weight: float
    within: float = 0.0
    between: float = 0.0
    common: float = 0.0

    def error(self, cluster: np.ndarray) -> float:
        """Standard error of what is expected of a group, at the most.

        It is that of the base's word alone, for people with as many examples as these, and of what was
        learned; what theta_o adds makes it smaller, by how much is not known: how far theta_o's answers on
        unseen ratings are its own and how far any fine-tuned model's, one model does not tell.
        ``benchmarks/quality/verdict`` holds it against retrains.

        Args:
            cluster: user (or item) of each example of the group, [n].
        """
        size = np.unique(cluster, return_counts=True)[1]
        return float(np.sqrt(_of_mean(self.within, self.between, size) + self.common))

    def of(self, base: float, original: float) -> float:
        """The AUC to expect of a retrain on a group.

        Args:
            base, original: AUC of the two models on it.

        Example:
            >>> known = Expectation(slope=0.7, base=0.5, original=0.5, memory=0.09, weight=0.5)
            >>> round(known.of(0.55, 0.61), 4)
            0.5275
        """
        by_base = self.original + self.slope * (base - self.base)
        return by_base + self.weight * (original - self.memory - by_base)


def expectation(
    unseen: tuple[np.ndarray, np.ndarray, np.ndarray], seen: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> Expectation:
    """Estimate how a retrain's AUC follows from the base's and from theta_o's.

    With placements V (:func:`placements`) a group's AUC is their mean. Summed by cluster (user or item) and
    centred, S_b and S_o of unseen ratings give the slope ``sum S_b S_o / sum S_b^2`` and the scatter
    ``v_1 = sum (S_o - slope S_b)^2 / n``; those of people who were trained on the memory, the mean of
    ``d = V_o - slope V_b`` above that of unseen ones, and the scatter v_2 of d. What the base says is off
    by v_1 / n, what theta_o says less the memory by (v_2 - v_1) / n, so theta_o weighs v_1 / v_2. Of
    ``V_o - slope V_b`` of unseen ratings the products of two of a person's give the variance that these share
    (moments, no less than 0), and the rest is each example's own.

    Args:
        unseen: base's placements of D_c, theta_o's, each [n], and cluster of each, int [n].
        seen: the same of D_r.

    Source: this project's own; placements as in DeLong, DeLong and Clarke-Pearson 1988, regression of cluster
    totals as in Cochran 1977 (chapter 9A), weights as in Efron and Morris 1973.
    """
    vb, vo, cluster = unseen
    base, original = float(vb.mean()), float(vo.mean())
    sb, so = totals(vb - base, cluster), totals(vo - original, cluster)
    among = float((sb**2).sum())
    slope = min(1.0, max(0.0, float((sb * so).sum()) / among)) if among > 0 else 1.0
    left = float(((so - slope * sb) ** 2).sum()) / len(vb)
    wb, wo, of = seen
    d = (wo - original) - slope * (wb - base)
    memory = float(d.mean())
    scatter = float((totals(d - memory, of) ** 2).sum()) / len(d)
    weight = min(1.0, left / scatter) if scatter > 0 else 0.0
    q = (vo - original) - slope * (vb - base)
    size = totals(np.ones(len(q)), cluster)
    twos = float((size * (size - 1)).sum())
    shared = float((totals(q, cluster) ** 2 - totals(q**2, cluster)).sum()) / twos if twos else 0.0
    between = max(0.0, shared)
    within = max(0.0, float((q**2).mean()) - between)
    common = _of_mean(within, between, size) + weight**2 * scatter / len(d)
    return Expectation(slope, base, original, memory, weight, within, between, common)


def _of_mean(within: float, between: float, size: np.ndarray) -> float:
    """Variance of a mean over clusters of these sizes."""
    return float((within * size + between * size**2).sum() / size.sum() ** 2)


def placements(of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Share of reference losses that each loss lies below, ties counted half.

    Their mean is the AUC of the loss attack.

    Args:
        of: losses, nats, [n].
        among: losses of the reference, nats, [m].

    Example:
        >>> placements(np.array([0.1, 0.5, 0.9]), np.array([0.5, 0.7])).tolist()
        [1.0, 0.75, 0.0]
    """
    ordered = np.sort(among)
    above = np.searchsorted(ordered, of, "left") + np.searchsorted(ordered, of, "right")
    return np.asarray(1 - above / (2 * len(among)))


def totals(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Sum of values by cluster, [n_clusters]."""
    found, index = np.unique(cluster, return_inverse=True)
    return np.bincount(index, values, minlength=len(found))


def clusters(task: Task) -> np.ndarray:
    """Code by row of whichever the request is of: users where all of theirs is deleted, else items likewise.

    Of single ratings users, or items where D_f is of fewer of these. Counting alone does not tell what a
    request is of: where users have a training prompt or two each, hundreds of them rated fewer items.

    Args:
        task: the request.
    """
    data, deleted, rows = task.data, task.deleted, task.forget.target
    user, item = data.user_code[rows], data.item_code[rows]
    if deleted[data.rows_of_users(user)].all():
        return data.user_code
    if deleted[data.rows_of_items(item)].all():
        return data.item_code
    return data.item_code if len(np.unique(item)) < len(np.unique(user)) else data.user_code


def pool(cluster: np.ndarray, size: int = POOL) -> np.ndarray:
    """Places of whole clusters in an order drawn once for all until there are ``size`` of them, ascending.

    Who comes first does not depend on who else is there: a pool of fewer people is the larger one without
    them, and with the next in the order.

    Args:
        cluster: code of each example's user (or item), int [n], n >= 1.
        size: the cluster that it falls into is taken whole.

    Example:
        >>> some = np.repeat(np.arange(50), 4)
        >>> left = some[some % 5 > 0]
        >>> set(left[pool(left, 40)]) >= set(left[np.isin(left, some[pool(some, 40)])])
        True
    """
    key = np.random.default_rng(ORDER).random(int(cluster.max()) + 1)[cluster]  # a longer draw begins alike
    drawn = np.argsort(key, kind="stable")
    last = key[drawn[min(size, len(drawn)) - 1]]
    return np.flatnonzero(key <= last)


def items_gone(task: Task) -> bool:
    """Whether most of D_f is about items that no training example is about any more.

    A retrain then knows of them what the base does. Items of D_c were trained on, whoever rated them.
    """
    item = task.data.item_code
    left = np.isin(item[task.forget.target], item[task.retain.target])
    return bool(left.mean() < 0.5) if len(left) else False


Said = tuple[np.ndarray, np.ndarray]  # of the base and of theta_o


def expected_auc(task: Task, reference: np.ndarray, losses: Said, aucs: tuple[float, float]) -> float:
    """The membership AUC to expect of a retrain on D_f, for an update to aim for.

    Args:
        task: the request.
        reference: places in D_c of the examples that D_f is held against.
        losses: of the base and of theta_o on these, nats, each [m].
        aucs: of the base and of theta_o, on D_f against these.

    Returns:
        The AUC; that of the base where D_c has too few people beside the reference to learn from, and where
        whole items are deleted.
    """
    if items_gone(task):
        return aucs[0]
    others = task.control.take(np.setdiff1d(np.arange(len(task.control)), reference))
    if not len(others):
        return aucs[0]
    unseen = others.take(pool(clusters(task)[others.target]))
    known = _learned(task, losses, unseen, lambda: (task.base_logits(unseen), task.original_logits(unseen)))
    return aucs[0] if known is None else known.of(*aucs)


@dataclass(frozen=True)
class Expected:
    """What the loss attack on D_f is expected to show of a model that never saw it.

    Attributes:
        auc: membership AUC against the reference.
        error: its standard error.
        reference: places in D_c of the examples that D_f is held against; the others were learned from.
    """

    auc: float
    error: float
    reference: np.ndarray


def expected_membership(task: Task, forget: Said, control: Said) -> Expected | None:
    """The same for a verdict: of all of D_f, against half of the people of D_c, and how sure it is.

    Args:
        task: the request.
        forget, control: answer logits of the base and of theta_o on D_f, and on D_c, each [n, 2].

    Returns:
        None where D_c or D_r has too few people to learn from, and where whole items are deleted.
    """
    if items_gone(task):
        return None
    code = clusters(task)
    of = code[task.control.target]
    if not len(of):
        return None
    reference = pool(of, len(of) // 2)
    others = np.setdiff1d(np.arange(len(of)), reference)
    if len(np.unique(of[reference])) < LEAST_CLUSTERS:
        return None
    among = [label_nll(z[reference], task.control.label[reference]) for z in control]
    known = _learned(
        task,
        (among[0], among[1]),
        task.control.take(others),
        lambda: (control[0][others], control[1][others]),
    )
    if known is None:
        return None
    losses = [label_nll(z, task.forget.label) for z in forget]
    aucs = [float(placements(loss, r).mean()) for loss, r in zip(losses, among, strict=True)]
    return Expected(known.of(aucs[0], aucs[1]), known.error(code[task.forget.target]), reference)


def _learned(task: Task, among: Said, unseen: Examples, said: Callable[[], Said]) -> Expectation | None:
    """What ratings of D_c, unseen, and of D_r teach.

    Args:
        task: the request; of D_r a pool is asked.
        among: losses of the reference, by the base and by theta_o.
        unseen: examples of D_c beside the reference.
        said: answer logits of both on these, asked for only where there are people enough.

    Returns:
        None where there are too few people.
    """
    code = clusters(task)
    if min(len(np.unique(code[part.target])) for part in (unseen, task.retain)) < LEAST_CLUSTERS:
        return None
    seen = task.retain.take(pool(code[task.retain.target]))
    parts = []
    for examples, answers in ((unseen, said()), (seen, (task.base_logits(seen), task.original_logits(seen)))):
        losses = [label_nll(z, examples.label) for z in answers]
        placed = [placements(loss, r) for loss, r in zip(losses, among, strict=True)]
        parts.append((placed[0], placed[1], code[examples.target]))
    return expectation(parts[0], parts[1])
