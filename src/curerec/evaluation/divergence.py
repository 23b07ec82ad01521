"""How far two models' predictions lie apart: Jensen-Shannon, half Jeffreys, Euclidean."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.special import logit, rel_entr

from curerec.errors import ConfigError
from curerec.evaluation.inputs import MEND, probabilities

EPS = 1e-7  # about the resolution of float32; bounds half Jeffreys at 16.1 nats
_CHUNK = 1 << 22  # probabilities of the full vocabulary worked on at once


def jsd_each(p: np.ndarray, q: np.ndarray) -> Float64[np.ndarray, "*shape"]:
    """Jensen-Shannon divergence of each pair of Bernoulli distributions, nats, in [0, ln 2].

    Args:
        p: P(yes), any shape.
        q: P(yes), a shape that broadcasts with p's.

    Returns:
        float64 of the common shape. Finite at 0 and 1, where ``0 log 0 = 0``.
    """
    p, q = _pair(p, q)
    m = (p + q) / 2
    n = ((1 - p) + (1 - q)) / 2  # not 1 - m, which would lose a tiny p against a tiny 1 - q
    each = (rel_entr(p, m) + rel_entr(1 - p, n) + rel_entr(q, m) + rel_entr(1 - q, n)) / 2
    return np.clip(each, 0.0, np.log(2))  # rounding alone leaves the range


def jsd(p: np.ndarray, q: np.ndarray) -> float:
    """Mean Jensen-Shannon divergence of two models' answers, nats.

    ``JSD = (KL(p|m) + KL(q|m)) / 2``, ``m = (p + q) / 2``, over {No, Yes}.

    Args:
        p: P(yes) of one model, [n].
        q: P(yes) of the other on the same examples, [n].

    Returns:
        In [0, ln 2]; symmetric; 0 iff equal.

    Raises:
        ConfigError: empty, nan, outside [0, 1], or lengths that differ.

    Related: :func:`jeffreys_half`, :class:`curerec.evaluation.residual.Reference`.

    Example:
        >>> round(jsd(np.array([1.0]), np.array([0.0])), 4)
        0.6931
    """
    return float(jsd_each(p, q).mean())


def jeffreys_half(p: np.ndarray, q: np.ndarray, eps: float = EPS) -> float:
    """Mean of half the Jeffreys divergence, nats.

    ``(KL(p|q) + KL(q|p)) / 2 = (p - q)(logit p - logit q) / 2``. Infinite at 0 and 1, hence the clipping.

    Args:
        p: P(yes) of one model, [n].
        q: P(yes) of the other, [n].
        eps: both are clipped to [eps, 1 - eps].

    Source: E2URec (arXiv 2403.03536), evaluate.py, which adds 1e-12 instead of clipping.

    Example:
        >>> round(jeffreys_half(np.array([0.75]), np.array([0.25])), 4)  # ln(3) / 2
        0.5493
    """
    return float(jeffreys_half_each(p, q, eps).mean())


def jeffreys_half_each(p: np.ndarray, q: np.ndarray, eps: float = EPS) -> Float64[np.ndarray, "*shape"]:
    """Half the Jeffreys divergence of each pair, nats; see :func:`jeffreys_half`."""
    p, q = (np.clip(x, eps, 1 - eps) for x in _pair(p, q))
    return (p - q) * (logit(p) - logit(q)) / 2


def l2(p: np.ndarray, q: np.ndarray) -> float:
    """Mean Euclidean distance of the two answer distributions, ``sqrt(2) |p - q|``.

    Args:
        p: P(yes) of one model, [n].
        q: P(yes) of the other, [n].

    Example:
        >>> round(l2(np.array([0.5]), np.array([0.25])), 4)
        0.3536
    """
    return float(l2_each(p, q).mean())


def l2_each(p: np.ndarray, q: np.ndarray) -> Float64[np.ndarray, "*shape"]:
    """Euclidean distance of each pair of answer distributions; see :func:`l2`."""
    p, q = _pair(p, q)
    return np.sqrt(2) * np.abs(p - q)


def jsd_full(p: np.ndarray, q: np.ndarray) -> float:
    """Mean Jensen-Shannon divergence over the full vocabulary, nats.

    Args:
        p: probabilities of one model at the answer position, [n, vocab].
        q: of the other, [n, vocab].

    Returns:
        In [0, ln 2]. Rows are renormalised in float64, since half-precision rows do not sum to 1.

    Raises:
        ConfigError: not [n, vocab], shapes that differ, or rows whose sum is off by more than 1 %.

    Example:
        >>> jsd_full(np.eye(3), np.eye(3))
        0.0
    """
    return float(jsd_full_each(p, q).mean())


def jsd_full_each(p: np.ndarray, q: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Jensen-Shannon divergence over the vocabulary of each pair of rows, nats; see :func:`jsd_full`."""
    p, q = np.asarray(p), np.asarray(q)
    if p.ndim != 2 or p.shape != q.shape or p.size == 0:
        raise ConfigError("not two arrays of one shape [n, vocab]", where="jsd_full", mend=MEND)
    step = max(1, _CHUNK // p.shape[1])
    out = []
    for start in range(0, len(p), step):
        a, b = (_rows(x[start : start + step]) for x in (p, q))
        m = (a + b) / 2
        each = (rel_entr(a, m) + rel_entr(b, m)).sum(1) / 2
        out.append(np.clip(each, 0.0, np.log(2)))
    return np.concatenate(out)


def _pair(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, q = probabilities(p, "p"), probabilities(q, "q")
    if p.shape[-1:] != q.shape[-1:]:  # a length of 1 would broadcast in silence
        raise ConfigError(f"shapes {p.shape} and {q.shape} do not pair", where="divergence", mend=MEND)
    return p, q


def _rows(x: np.ndarray) -> np.ndarray:
    x = probabilities(x, "rows of the vocabulary")
    sums = x.sum(1, keepdims=True)
    if (np.abs(sums - 1) > 0.01).any():
        raise ConfigError(
            "rows that do not sum to 1", where="jsd_full", mend="Give softmax outputs, not logits"
        )
    return x / sums
