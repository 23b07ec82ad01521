"""What single measures of docs/speed.md save or change, each beside its absence, in turns on one machine.

``answers`` needs a recommender of the data, too (``curerec train``).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternating, done, options, write
from scipy import sparse
from transformers.activations import NewGELUActivation

from curerec.data.fetch import load
from curerec.data.forget import draw_request
from curerec.data.graph import RESTART, liked_graph, personalised_pagerank
from curerec.models import device
from curerec.opened import open_recommender
from curerec.pipeline import unlearn
from curerec.prompts.encoding import Encoder, queries
from curerec.recipes import load_recipe
from curerec.recommender.nano import nano_tokenizer
from curerec.splitting import split_of


def answers(args: argparse.Namespace) -> dict[str, Any]:
    """A request for a tenth of the users with the answers that training kept, and without."""
    kept = open_recommender(args.recommender, load(args.data))
    runs = {"kept": kept, "asked anew": replace(kept, answered=None)}
    request = draw_request(kept.data, kept.split, share=0.1, seed=1)
    seconds = alternating(
        {name: lambda o=opened: unlearn(o, request, "cure", seed=0) for name, opened in runs.items()},
        args.repeats,
    )
    return {"seconds": seconds, "ratio": seconds["asked anew"]["median"] / seconds["kept"]["median"]}


def pagerank(args: argparse.Namespace) -> dict[str, Any]:
    """Ranks from 120 users by sweeps, and by steps of power iteration to the same tolerance."""
    data = load(args.data)
    rows = split_of(data, load_recipe("demo").split).train.target
    walk, n_users = liked_graph(data, rows), len(data.user_ids)
    starts = np.unique(data.user_code[rows])[: 5 if args.tiny else 120]
    found: dict[str, np.ndarray] = {}

    def by_sweeps() -> None:
        found["sweeps"] = personalised_pagerank(walk, starts, n_users=n_users)

    def by_steps() -> None:
        found["steps"] = power_iteration(walk, starts)

    seconds = alternating({"sweeps": by_sweeps, "steps": by_steps}, args.repeats)
    return {
        "seconds": seconds,
        "ratio": seconds["steps"]["median"] / seconds["sweeps"]["median"],
        "largest_difference": float(np.abs(found["sweeps"] - found["steps"]).sum(1).max()),
    }


def power_iteration(walk: sparse.csr_array, starts: np.ndarray, tol: float = 1e-8) -> np.ndarray:
    """The same ranks step by step, float64 [b, n]."""
    home = np.zeros((walk.shape[0], len(starts)))
    home[starts, np.arange(len(starts))] = RESTART
    onwards, rank = ((1 - RESTART) * walk.T).tocsr(), home
    while True:
        new = home + onwards @ rank
        moved, rank = np.abs(new - rank).sum(0), new
        if moved.max() < tol:
            return (rank / rank.sum(0)).T


def gelu(args: argparse.Namespace) -> dict[str, Any]:
    """GPT-2's formula in one kernel and written out, beside the products around it (GPT-2 Large, bf16)."""
    width, tokens = (64, 256) if args.tiny else (1280, 8192)

    def made(*size: int) -> torch.Tensor:
        return torch.randn(*size, dtype=torch.bfloat16, device=device())

    up, down = made(width, 4 * width), made(4 * width, width)
    x, inner = made(tokens, width), made(tokens, 4 * width)
    fused, written_out = torch.nn.GELU(approximate="tanh"), NewGELUActivation()
    with torch.no_grad():
        seconds = alternating(
            {
                "one kernel": lambda: fused(inner),
                "written out": lambda: written_out(inner),
                "matrix products": lambda: (x @ up, inner @ down),
            },
            args.repeats,
        )
        exact = torch.nn.functional.gelu(inner.double(), approximate="tanh")
        errors = {
            name: float((f(inner).double() - exact).abs().mean())
            for name, f in {"one kernel": fused, "written out": written_out}.items()
        }
    return {"seconds": seconds, "mean_error": errors}


def prefixes(args: argparse.Namespace) -> dict[str, Any]:
    """What prompts of single test examples have in common: nothing is timed."""
    data, recipe = load(args.data), load_recipe("demo")
    test, titles = split_of(data, recipe.split).test, data.titles["title"].to_pylist()
    found: dict[str, Any] = {"histories": len(test), "differing": len(np.unique(test.history, axis=0))}
    for template in ("likes", "stars"):
        prompts = Encoder(nano_tokenizer(titles), template, titles).encode(queries(data, test))
        rows = sorted(row.tolist() for row in np.split(prompts.ids, prompts.offsets[1:-1]))
        # In this order the longest beginning that a prompt shares with any other is shared with a neighbour.
        beside = [common(a, b) for a, b in pairwise(rows)]
        longest = np.maximum(np.r_[beside, 0], np.r_[0, beside])
        found[template] = {
            "share_of_tokens": float(longest.sum() / sum(map(len, rows))),
            "tokens_of_all": common(rows[0], rows[-1]),
        }
    return found


def common(a: list[int], b: list[int]) -> int:
    """How many tokens both begin with."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


MEASURES = {"answers": answers, "pagerank": pagerank, "gelu": gelu, "prefixes": prefixes}


def main() -> None:
    """One row a measure."""
    parser = options(__doc__ or "")
    parser.add_argument("which", nargs="+", choices=list(MEASURES))
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--recommender", type=Path)
    args = parser.parse_args()
    args.repeats = 1 if args.tiny else args.repeats
    for name in args.which:
        key = {"question": name} if name == "gelu" else {"question": name, "data": Path(args.data).name}
        if not done(args.results, key):
            write(args.results, key, MEASURES[name](args), args.note)


if __name__ == "__main__":
    main()
