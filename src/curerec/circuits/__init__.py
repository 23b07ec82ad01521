"""Circuits: module scorers, selection of the core circuit, faithfulness, stability.

To add a scorer: one file in ``scorers`` and one line here.
"""

from curerec.circuits.passes import Scorer
from curerec.circuits.scorers import adapter, atp, atp_ig, exact, ig_node, relp

SCORERS: dict[str, Scorer] = {
    "exact": exact.score,
    "atp": atp.score,
    "atp_ig": atp_ig.score,
    "relp": relp.score,
    "ig_node": ig_node.score,
    "adapter": adapter.score,
}

#: The cheapest scorer that the rule of :mod:`curerec.circuits.choice` takes, by the committed table.
DEFAULT = "atp_ig"

__all__ = ["DEFAULT", "SCORERS"]
