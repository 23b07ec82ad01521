"""Numbers as a reader wants them: sensible digits, units, no bare exponents."""

from __future__ import annotations

import math
from typing import TypeGuard

NONE = "–"
NBSP = "\u00a0"

_LABELS = {
    "base": "Before fine-tuning",
    "original": "Original model",
    "retrain": "Retrained model",
    "retrain_2": "Retrained, second seed",
    "retrain_3": "Retrained, third seed",
    "retrain_4": "Retrained, fourth seed",
    "npo": "NPO, all parts alike",
    "weighted_sum": "Weighted sum",
    "pcgrad": "PCGrad",
    "cagrad": "CAGrad",
    "simnpo": "SimNPO",
    "e2urec": "E2URec",
    "scrub": "SCRUB",
    "cau": "CAU",
    "gru": "GRU",
    "rome": "ROME",
    "wise": "WISE",
    "ngdiff": "NGDiff",
    "sisa": "SISA",
    "receraser": "RecEraser",
    "apa": "APA",
    "cragru": "CRAGRU",
    "grad_diff": "Gradient difference",
    "grad_ascent": "Gradient ascent",
    "finetune": "Fine-tuning on D_r",
    "label_flip": "Flipped labels",
    "bad_teacher": "Bad teaching",
    "task_vector": "Task vector",
    "random_modules": "Random groups and weights",
    "random_groups": "Random groups",
    "ga_kl": "Gradient ascent and KL",
    "cure": "CURE",
    "given": "Model judged",
}


def method(name: str) -> str:
    """A model's name for a reader; one this package does not know keeps its own.

    Example:
        >>> method("retrain_2"), method("my_method")
        ('Retrained, second seed', 'my method')
    """
    own = name.replace("_", " ")
    return _LABELS.get(name) or (own if len(own) <= 32 else own[:31].rstrip() + "…")


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with a fixed count of decimals and a true minus sign.

    Example:
        >>> fixed(-0.5217), fixed(None)
        ('−0.522', '–')
    """
    if not _there(value):
        return NONE
    if abs(value) >= 10**9:
        return significant(value)
    shown = f"{value:.{digits}f}"
    return shown[1:] if shown.lstrip("-0.") == "" and shown[0] == "-" else shown.replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """A difference, its sign always shown.

    Example:
        >>> signed(0.0042), signed(-0.01, 2)
        ('+0.004', '−0.01')
    """
    shown = fixed(value, digits)
    return f"+{shown}" if _there(value) and value > 0 and shown.strip("0.") else shown


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits.

    Example:
        >>> significant(0.022613), significant(128.4), significant(4.2e-7)
        ('0.0226', '128', '4.2 × 10⁻⁷')
    """
    if not _there(value):
        return NONE
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if -5 <= power < 9:
        rounded = round(value, digits - 1 - power)
        return f"{rounded:,.{max(0, digits - 1 - power)}f}".replace("-", "−")
    mantissa = f"{value / 10**power:.{digits - 1}f}".rstrip("0").rstrip(".").replace("-", "−")
    exponent = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{exponent}"


def brief(value: float | None) -> str:
    """A number in running text: three significant digits at most, no trailing zeros.

    Example:
        >>> brief(32.0), brief(0.0085), brief(0.30512)
        ('32', '0.0085', '0.305')
    """
    shown = significant(value)
    return shown.rstrip("0").rstrip(".") if "." in shown and "×" not in shown else shown


def count(value: float | None) -> str:
    """A whole number with separators.

    Example:
        >>> count(100000)
        '100,000'
    """
    if not _there(value):
        return NONE
    return f"{value:,.0f}".replace("-", "−") if abs(value) < 1e15 else significant(value)


def percent(value: float | None) -> str:
    """A share of one.

    Example:
        >>> percent(0.1), percent(0.0004), percent(1 / 3)
        ('10\\xa0%', '0.04\\xa0%', '33\\xa0%')
    """
    if not _there(value):
        return NONE
    scaled = 100 * value
    if abs(scaled) >= 1e5:
        return significant(scaled) + NBSP + "%"
    digits = 0 if abs(scaled) >= 9.95 or scaled == 0 else 1 if abs(scaled) >= 0.95 else 2
    shown = f"{scaled:.{digits}f}"
    return (shown.rstrip("0").rstrip(".") if "." in shown else shown).replace("-", "−") + NBSP + "%"


def seconds(value: float | None) -> str:
    """A duration.

    Example:
        >>> seconds(5.93), seconds(72), seconds(0.012), seconds(7300)
        ('5.9\\xa0s', '1\\xa0min 12\\xa0s', '0.012\\xa0s', '2\\xa0h 1\\xa0min')
    """
    if not _there(value):
        return NONE
    if value < 1:
        return f"{value:.2g}{NBSP}s"
    if value >= 59.5:
        return _minutes(value)
    return f"{value:.1f}{NBSP}s" if value < 9.95 else f"{value:.0f}{NBSP}s"


def size(value: float | None) -> str:
    """Bytes.

    Example:
        >>> size(1_310_000_000)
        '1.31\\xa0GB'
    """
    if not _there(value):
        return NONE
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if abs(value) >= 10**power:
            return f"{significant(value / 10**power)}{NBSP}{unit}"
    return f"{count(value)}{NBSP}bytes"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """A 95 % interval.

    Example:
        >>> interval(0.49, 0.553)
        '0.490 to 0.553'
    """
    return f"{fixed(low, digits)} to {fixed(high, digits)}" if _there(low) and _there(high) else NONE


def times(value: float | None) -> str:
    """How many times as fast or as large.

    Example:
        >>> times(6.94), times(41.2)
        ('6.9', '41')
    """
    return f"{value:.1f}" if _there(value) and abs(value) < 9.95 else count(value)


def plural(n: float | None, one: str, many: str | None = None) -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "user"), plural(5000, "rating")
        ('1\\xa0user', '5,000\\xa0ratings')
    """
    return f"{count(n)}{NBSP}{one if n == 1 else many or one + 's'}"


def short_hash(value: str | None) -> str:
    """The start of a digest, enough to compare by eye.

    Example:
        >>> short_hash("0123456789abcdef")
        '0123456789ab…'
    """
    return NONE if not value else value if len(value) <= 14 else value[:12] + "…"


def _minutes(value: float) -> str:
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest}{NBSP}s" if rest else f"{minutes}{NBSP}min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minutes}{NBSP}min" if hours < 1000 else f"{count(hours)}{NBSP}h"


def _there(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
