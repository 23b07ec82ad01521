"""How near an update comes to its aim, look by look, with other settings of the loop. No retrain is opened.

`python benchmarks/quality/traces.py OUT RECIPE MODEL --data NAME=PLACE... --seeds 241 --change
'{"check_every": 5, "pace_from": "start"}' ...`: OUT, RECIPE and MODEL as for `aim.py`. For each data set,
seed and change of `cure.update` it prints a JSON line: of each look the step, the membership AUC above the
aim and the push of the steps before it, and by how much the AUC on D_v fell in the end.
"""

from __future__ import annotations

import json

import torch
from aim import pairs, parser

from curerec.pipeline import unlearn


def main() -> None:
    """Print a line for each pair and change."""
    asked = parser(__doc__)
    asked.add_argument("--seeds", type=int, nargs="+", required=True)
    asked.add_argument("--change", type=json.loads, nargs="+", default=[{}])
    options = asked.parse_args()
    torch.set_num_threads(1)
    for shop, cell in pairs(options):
        if cell.seed not in options.seeds:
            continue
        opened, (request, _) = shop._opened(cell), shop._asked(cell)
        cure = opened.recipe.config_of("cure")
        for change in options.change:
            config = cure.model_copy(update={"update": cure.update.model_copy(update=change)})
            outcome, _ = unlearn(opened, request, "cure", config, seed=cell.seed)
            aim = outcome.details["target"]
            looks = [
                [point["step"], round(point["membership_auc"] - aim, 4), round(point.get("push", 0.0), 2)]
                for point in outcome.trace
            ]
            row = {"dataset": cell.dataset, "seed": cell.seed, "change": change, "aim": round(aim, 4)}
            print(json.dumps({**row, "looks": looks, "fall": outcome.trace[-1]["auc_drop"]}), flush=True)


if __name__ == "__main__":
    main()
