"""What keeping the states below an adapter saves: training over the same prompts, with the store and without.

An adapter on the last layers alone leaves what lies below as it is (curerec.recommender.lower). Both see the
same batches in the same order; the store is empty at the start of every run.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

from common import alternating, done, options, write
from setting import setting
from training import compared

from curerec.recommender import lower
from curerec.recommender.tune import TuneConfig, tune


def main() -> None:
    """One row a number of layers."""
    parser = options(__doc__ or "")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", type=int, nargs="*", default=[6])
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    repeats = 1 if args.tiny else args.repeats
    for layers in args.layers:
        key = {"question": "states", "model": args.model, "layers": layers, "prompts": args.prompts}
        key |= {"epochs": args.epochs, "dtype": args.dtype}
        if done(args.results, key):
            continue
        made = setting(args.model, "lora", args.prompts, layers=layers, dtype=args.dtype)
        config = TuneConfig(epochs=args.epochs, batch_size=32, lr=1e-3)
        last: dict[str, Any] = {}

        def trained(name: str, made: Any = made, config: Any = config, last: dict[str, Any] = last) -> None:
            lower.STATES.clear()
            with lower.nothing_kept() if name == "anew" else nullcontext():
                last[name] = tune(copy.deepcopy(made.model), made.train, made.answers, config, seed=0)

        runs = {"kept": lambda: trained("kept"), "anew": lambda: trained("anew")}
        seconds = alternating(runs, repeats)
        values = compared(made, seconds, last, "kept", "anew", epochs=args.epochs)
        write(args.results, key, values, args.note)


if __name__ == "__main__":
    main()
