"""What is varied: a method and its configuration by name, and what else differs while it runs."""

from __future__ import annotations

from functools import partial
from typing import Any

from replaced import (
    held_where_nobody_was_trained,
    line_search,
    neither_loss_moves,
    one_projection,
    plain_sum,
    retain_side_of_the_trained,
    rows_by_memory,
    rows_of_any_type,
    weights_chosen_by,
)
from series import (
    BY_MEMORY,
    OF_ANY_TYPE,
    in_fewer_rows,
    looked_at_earlier,
    pushed,
    two_arms,
    with_fewer_prompts,
    with_what_cure_has,
)

from curerec.recipe import Recipe
from curerec.recipes import load_recipe

#: Has a configuration of its own, too.
ALL = "plain sum of both gradients, all weights may move"
CHOSEN_BY = ("half of D_f", "as many of D_r")
#: Variants that replace a function for the run, and those that change what comes out.
WITHIN: dict[str, Any] = {
    "cure, retain side measured on D_r": retain_side_of_the_trained,
    "cure, one projection over all weights": one_projection,
    "cure, projected so that neither loss moves": neither_loss_moves,
    "plain sum of both gradients in the same weights": plain_sum,
    ALL: plain_sum,
    **{f"cure, weights chosen by {whom}": partial(weights_chosen_by, whom) for whom in CHOSEN_BY},
}
WITHIN |= dict.fromkeys(BY_MEMORY, rows_by_memory) | dict.fromkeys(OF_ANY_TYPE, rows_of_any_type)
#: What of each batch of D_r asks for items that nobody was trained on, by variant.
OTHER_ITEMS = {
    f"{name}, half of D_r's prompts ask for other items": method
    for name, method in (("cure", "cure"), ("random groups", "random_modules"), ("its loop alone", "npo"))
}
WITHIN |= {name: partial(held_where_nobody_was_trained, 0.5) for name in OTHER_ITEMS}
AFTER = {"cure, its length searched on D_v and D_c": line_search}
#: Added to the method's seed: what a single run scatters by, on the same original and request.
OFFSETS = {"cure, a second seed of the method": 2000, "cure, a third seed of the method": 3000}


def offset(name: str) -> int:
    """What is added to the method's seed, of a variant or its twin."""
    return OFFSETS.get(name.replace("random groups", "cure"), 0)


def variants(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """Method and configuration by name."""
    return of_adapter(recipe) if recipe.model.kind == "lora" else of_small_model(recipe)


def of_adapter(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """Those of a LoRA adapter, each beside its twin: what is in force there, and on the small model."""
    cure, small = recipe.cure, load_recipe("demo").cure

    def changed(update: dict[str, Any] | None = None, **parts: Any) -> Any:
        return cure.model_copy(update={**parts, "update": cure.update.model_copy(update=update or {})})

    def looked_at(steps: int) -> dict[str, Any]:
        return {"max_steps": steps, "forget_every": steps, "check_every": steps // 3}

    back = {"rolled_back": small.rolled_back, "kept": small.kept}
    gap = {"open_gap": small.update.open_gap}
    both = {"project": small.project}
    steps = {"projection": small.update.projection}
    twice = {"retain_batch_size": 2 * (cure.update.retain_batch_size or cure.update.batch_size)}
    configs = {
        "cure": cure,
        "the small model's settings, batches twice as large": changed(
            {**gap, **steps, **twice}, **back, **both
        ),
        "the small model's settings": changed({**gap, **steps}, **back, **both),
        "weights go back": changed(gap, **back),
        "both gradients projected, and the steps": changed(steps, **both),
        "saliency .05": changed(saliency=0.05),
        "saliency .2": changed(saliency=0.2),
        "whole rows": changed(saliency=None),
        "30 steps": changed(looked_at(30)),
        "batches twice as large": changed(twice),
        "push 3": changed({"push": 3.0}),
        "w 20, push 4": changed({"retain_weight": 20.0, "push": 4.0}),
        "labels of D_r weigh 1": changed({"retain_labels": 1.0}),
        "forget gradient anew every 10 steps": changed({"forget_every": 10}),
        "no average of the weights": changed({"average": 0.0}),
    }
    found = {}
    for name, config in configs.items():
        found[name if name == "cure" else f"cure, {name}"] = ("cure", config)
        found[f"random groups, {name}".removesuffix(", cure")] = ("random_modules", config)
    return {
        **found,
        **{name: ("cure", cure) for name in OFFSETS},
        **{name.replace("cure", "random groups"): ("random_modules", cure) for name in OFFSETS},
        **with_other_items(recipe),
        "its loop alone: no circuit, no groups": ("npo", cure.update),
        "PCGrad in its loop": ("pcgrad", recipe.config_of("pcgrad")),
        "CAGrad in its loop": ("cagrad", recipe.config_of("cagrad")),
        "npo": ("npo", recipe.npo),
    }


def with_other_items(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """``OTHER_ITEMS`` with their configurations."""
    return {
        name: (method, recipe.cure.update if method == "npo" else recipe.cure)
        for name, method in OTHER_ITEMS.items()
    }


def of_small_model(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """Those of the demo's small Llama, fully fine-tuned."""
    cure = recipe.cure

    def changed(**parts: Any) -> Any:
        return cure.model_copy(update=parts)

    def stepping(steps: int, **parts: Any) -> Any:
        looks = {"max_steps": steps, "forget_every": steps, "check_every": steps // 3}
        return changed(update=cure.update.model_copy(update={**looks, **parts}))

    def kept(share: float, others: float = 1.0) -> Any:
        return cure.kept.model_copy(update={"forget": share, "shared": share, "retain": others})

    def updated(**parts: Any) -> Any:
        return cure.update.model_copy(update=parts)

    steps = cure.update.max_steps
    # In force for seeds 61 to 65 of the benchmark, whose search took a push of 2; until 60 whole rows were.
    by_saliency = {
        "rolled_back": None,
        "saliency": 0.2,
        "kept": kept(0.65),
        "update": updated(lr=1.2e-3, push=2.0, open_gap=None),
    }
    by_row = {**by_saliency, "saliency": None, "tau": 0.7, "update": updated(lr=1.2e-3, open_gap=None)}
    fixed = {"kept": kept(0.35), "update": updated(open_gap=None)}  # of seeds 66 to 70
    a_fifth = {"saliency": 0.2}
    half = {"tau": 0.5, "saliency": 0.1}  # in force until seed 233
    summed = recipe.config_of("weighted_sum").model_copy(update={"lr": 1.2e-3, "push": 1.0})  # as searched
    everywhere = {"tau": 1e-9, "scope": "all"}  # every unit is high in both: task-shared
    return {
        "cure": ("cure", cure),
        "cure, groups and weights drawn at random": ("random_modules", cure),
        "random groups and weights, pushed 8": ("random_modules", changed(update=updated(push=8.0))),
        "random groups and weights, pushed 30": ("random_modules", changed(update=updated(push=30.0))),
        "cure, .35 kept on every request": ("cure", changed(**fixed)),
        "random groups and weights, .35 kept on every request": ("random_modules", changed(**fixed)),
        "cure, half of the rows can forget, a tenth of the weights may move": ("cure", changed(**half)),
        "cure, a fifth of the weights may move": ("cure", changed(**a_fifth)),
        "random groups, a fifth of the weights may move": ("random_modules", changed(**a_fifth)),
        **{
            f"{who}, {how}": (method, changed(update=updated(anchor=anchor)))
            for who, method in (("cure", "cure"), ("random groups", "random_modules"))
            for how, anchor in (
                ("not drawn back", None),
                ("drawn back by .01", 0.01),
                ("drawn back by .06", 0.06),
            )
        },
        "the loop alone (weighted_sum)": ("weighted_sum", summed),
        "the loop alone (weighted_sum), drawn back": (
            "weighted_sum",
            summed.model_copy(update={"anchor": cure.update.anchor}),
        ),
        ALL: ("cure", changed(saliency=None)),
        "cure, whole rows may move": ("cure", changed(saliency=None)),
        "random groups, whole rows may move": ("random_modules", changed(saliency=None)),
        "cure, what may move goes back (seeds 61 to 65)": ("cure", changed(**by_saliency)),
        "random groups, what may move goes back": ("random_modules", changed(**by_saliency)),
        "cure, three tenths of the rows, whole (until seed 60)": ("cure", changed(**by_row)),
        "random groups, three tenths of the rows, whole": ("random_modules", changed(**by_row)),
        "no groups (all task-shared)": ("cure", changed(**everywhere)),
        "cure, batches of 144": ("cure", changed(update=updated(retain_batch_size=144))),
        "random groups, batches of 144": ("random_modules", changed(update=updated(retain_batch_size=144))),
        "cure, nothing rolled back": ("cure", changed(kept=kept(1.0))),
        "random groups, nothing rolled back": ("random_modules", changed(kept=kept(1.0))),
        "cure, 30 steps": ("cure", stepping(30)),
        "cure, 90 steps": ("cure", stepping(90)),
        "cure, no labels of D_r": ("cure", stepping(steps, retain_labels=0.0)),
        "cure, overturned units task-shared": ("cure", changed(uncertain="shared")),
        "cure, the forget gradient alone projected": ("cure", changed(project=None)),
        "random groups, the forget gradient alone projected": ("random_modules", changed(project=None)),
        "cure, tau .3": ("cure", changed(tau=0.3)),
        "cure, tau .7": ("cure", changed(tau=0.7)),
        "cure, whole projections as units": ("cure", changed(granularity="projection")),
        "cure, heads and MLPs as units": ("cure", changed(granularity="head_mlp")),
        "cure, yes and no not balanced": ("cure", changed(update=updated(balance=False))),
        "cure, no average of the weights": ("cure", changed(update=updated(average=0.0))),
        "cure, SGD at a rate of .005": ("cure", changed(update=updated(optimizer="sgd", lr=5e-3))),
        "cure, steps projected instead of gradients": (
            "cure",
            changed(update=updated(projection="preconditioned")),
        ),
        "cure, forget gradient anew every 10 steps": ("cure", changed(update=updated(forget_every=10))),
        "cure, forget gradient anew every 5 steps": ("cure", changed(update=updated(forget_every=5))),
        "random groups, forget gradient anew every 5 steps": (
            "random_modules",
            changed(update=updated(forget_every=5)),
        ),
        "cure, forget gradient anew every 5 steps, nothing rolled back": (
            "cure",
            changed(kept=kept(1.0), update=updated(forget_every=5)),
        ),
        "cure, a tenth rolled back": ("cure", changed(rolled_back=0.1)),
        **{name: ("cure", cure) for name in (*WITHIN, *AFTER, *OFFSETS) if name not in (*OTHER_ITEMS, ALL)},
        **with_other_items(recipe),
        "cure, label-free loss": ("cure", changed(update=updated(forget_loss="label_free"))),
        "cure, E2URec's teacher": ("cure", changed(update=updated(forget_loss="teacher"))),
        "cure, calibrated teacher": ("cure", changed(update=updated(forget_loss="calibrated"))),
        "cure, NPO loss": ("cure", changed(update=updated(forget_loss="npo"))),
        "its loop alone: no circuit, no groups, nothing back": ("npo", recipe.cure.update),
        "its loop alone, NPO loss": ("npo", updated(forget_loss="npo")),
        "PCGrad in its loop": ("pcgrad", recipe.config_of("pcgrad")),
        "PCGrad in its loop, push 1": ("pcgrad", recipe.config_of("pcgrad").model_copy(update={"push": 1.0})),
        "PCGrad in its loop, push 1, steps projected": (
            "pcgrad",
            recipe.config_of("pcgrad").model_copy(update={"push": 1.0, "projection": "preconditioned"}),
        ),
        "CAGrad in its loop": ("cagrad", recipe.config_of("cagrad")),
        "npo": ("npo", recipe.npo),
        **with_fewer_prompts(recipe),
        **pushed(recipe),
        **with_what_cure_has(recipe),
        **two_arms(recipe),
        **in_fewer_rows(recipe),
        **looked_at_earlier(recipe),
    }
