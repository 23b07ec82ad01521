"""Question 6: prompts scored a second against a plain ``model(**batch)`` loop over batches as they come."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from common import alternating, done, options, write
from setting import setting

from curerec.recommender.score import score


@torch.no_grad()
def plain(model: Any, prompts: Any, answers: tuple[int, int], batch: int) -> np.ndarray:
    """The loop of a tutorial: pad, run the model, read two logits of the last token."""
    out = np.zeros((len(prompts), 2), np.float32)
    device = next(model.parameters()).device
    for start in range(0, len(prompts), batch):
        index = np.arange(start, min(start + batch, len(prompts)))
        ids, last = prompts.padded(index)
        mask = (np.arange(ids.shape[1])[None] <= last[:, None]).astype(np.int64)
        given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        logits = model(**{k: v.to(device) for k, v in given.items()}).logits
        out[index] = logits[torch.arange(len(index)), torch.from_numpy(last)][:, list(answers)].float().cpu()
    return out


def main() -> None:
    """One row a batch size of the plain loop and kind of prompts; ours takes its default."""
    parser = options(__doc__ or "")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--kinds", nargs="*", default=["full", "lora"])
    parser.add_argument(
        "--prompts", nargs="*", default=["test", "lists"], help="of examples, of lists to rank"
    )
    args = parser.parse_args()
    n, repeats = (100, 1) if args.tiny else (args.examples, args.repeats)
    for kind, what in itertools.product(args.kinds, args.prompts):
        for batch in (16, 64):
            key = {
                "question": "scoring",
                "model": args.model,
                "kind": kind,
                "examples": n,
                "plain_batch": batch,
            }
            if what == "lists":
                key["prompts"] = "lists of 100"
            if done(args.results, key):
                continue
            made = setting(args.model, kind, 64, n, n // 100)
            prompts = getattr(made, what)
            found: dict[str, Any] = {}

            def ours(made: Any = made, prompts: Any = prompts, found: Any = found) -> None:
                found["ours"] = score(made.model, prompts, made.answers)

            def theirs(
                made: Any = made, prompts: Any = prompts, found: Any = found, batch: int = batch
            ) -> None:
                found["plain"] = plain(made.model, prompts, made.answers, batch)

            seconds = alternating({"ours": ours, "plain": theirs}, repeats)
            values = {
                "seconds": seconds,
                "examples_per_s": {name: len(prompts) / s["median"] for name, s in seconds.items()},
                "ratio": seconds["plain"]["median"] / seconds["ours"]["median"],
                "largest_difference": float(np.abs(found["ours"] - found["plain"]).max()),
            }
            write(args.results, key, values, args.note)


if __name__ == "__main__":
    main()
