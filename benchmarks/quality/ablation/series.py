"""Variants that ask one question each, in series (docs/experiments.md has a section for every one)."""

from __future__ import annotations

from typing import Any

from curerec.methods.cure.second_arm import SecondArm
from curerec.recipe import Recipe
from curerec.recipes import load_recipe

CHOOSERS = ("cure", "random groups, weights chosen in them")
ANY = "of the weights can forget, in rows of any type"
MEMORY = ", rows chosen by what they remember"
#: Variants whose rows are chosen otherwise while they run.
BY_MEMORY = tuple(f"cure, {n} % of the rows can forget, whole{MEMORY}" for n in (25, 20))
OF_ANY_TYPE = tuple(f"{who}, {n} % {ANY}" for n in (25, 20) for who in CHOOSERS)


def looked_at_earlier(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """More looks at the membership gap: the first third of the steps is most of the way, pushed unseen."""
    found = {}
    for every, size in ((10, 300), (5, 300), (5, 600), (3, 600)):
        looks = {"check_every": every, "check_size": size}
        update = {"update": recipe.cure.update.model_copy(update=looks)}
        found[f"cure, looks every {every} at {size}"] = ("cure", recipe.cure.model_copy(update=update))
    six = {"check_every": 10, "looks": "way", "pace_from": "start"}
    parts: dict[str, dict[str, Any]] = {
        "six looks": {},
        "six looks, gradient every 20": {"forget_every": 20},
        "six looks, gradient every 10": {"forget_every": 10},
        "six looks, push 2.5": {"push": 2.5},
    }
    for name, part in parts.items():
        update = {"update": recipe.cure.update.model_copy(update={**six, **part})}
        found[f"cure, {name}"] = ("cure", recipe.cure.model_copy(update=update))
    return found


def in_fewer_rows(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """Fewer rows can forget, as many single weights in them or whole rows: how much groups decide, and how
    much the choice of weights inside them."""
    then = recipe.cure.update.model_copy(update={"lr": 8e-4, "push": 1.5})  # as when these were measured
    cure = recipe.cure.model_copy(update={"update": then})
    methods = {"cure": "cure", "random groups, weights chosen in them": "random_groups"}
    methods["random groups"] = "random_modules"
    found = {"random groups, weights chosen in them": ("random_groups", cure)}
    for share in (0.25, 0.2):
        narrow = cure.model_copy(update={"tau": 1 - share, "saliency": None})
        found |= {f"{who}, {100 * share:.0f} % {ANY}": (methods[who], narrow) for who in CHOOSERS}
    for tau in (0.7, 0.75, 0.8, 0.9):
        rows = f"{100 * (1 - tau):.0f} % of the rows can forget"
        ways: dict[str, dict[str, Any]] = {
            "as many weights": {"saliency": 0.1},  # as when half of them could
            "whole": {"saliency": None},
            "whole, up to half of all weights go back": {"saliency": None, "rolled_back": 0.5},
        }
        for way, parts in ways.items():
            config = cure.model_copy(update={"tau": tau, **parts})
            found |= {f"{who}, {rows}, {way}": (method, config) for who, method in methods.items()}
            if (name := f"cure, {rows}, {way}{MEMORY}") in BY_MEMORY:
                found[name] = ("cure", config)
    harder = {"cure": (2.5, 4.0, 10.0), CHOOSERS[1]: (4.0, 10.0)}
    for who, pushes in harder.items():
        method, config = found[name := f"{who}, 25 % of the rows can forget, whole"]
        for push in pushes:
            update = {"update": config.update.model_copy(update={"push": push})}
            found[f"{name}, push {push:g}"] = (method, config.model_copy(update=update))
    name = "cure, 25 % of the rows can forget, whole, push 4"
    method, config = found[name]
    faster = {"update": config.update.model_copy(update={"lr": 1.2e-3})}  # as it ships
    found[f"{name}, rate 0.0012"] = (method, config.model_copy(update=faster))
    return found


def two_arms(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """A second update beside the one that goes back, each by itself, and other ways to have two."""
    cure = recipe.cure

    def steps(n: int) -> dict[str, int]:
        return {"max_steps": n, "forget_every": n, "check_every": n // 3 if n % 3 == 0 else n // 2}

    def arms(n: int = 30, first: float = 8e-4, saliency: float | None = None, **second: float) -> Any:
        update = cure.update.model_copy(update={"push": 4.0, "lr": first, **steps(n)})
        arm = SecondArm.model_validate({"lr": 6e-4, "push": 1.5, **second}) if second else None
        return cure.model_copy(update={"second_arm": arm, "saliency": saliency, "update": update})

    tried = {
        "two arms": arms(share=0.5),
        "the arm that goes back alone": arms(),
        "the arm that does not alone": arms(share=1 - 1e-6),
        "two arms of 60 steps": arms(60, lr=4e-4),
        "two arms, a tenth of the weights moves in the first": arms(saliency=0.1, share=0.5),
    }
    return {
        **{f"cure, {name}": ("cure", config) for name, config in tried.items()},
        **{f"random groups, {name}": ("random_modules", config) for name, config in tried.items()},
        "cure, two arms, a third of the second": ("cure", arms(share=1 / 3)),
        "cure, two arms, two thirds of the second": ("cure", arms(share=2 / 3)),
        "cure, two arms, second pushed 3": ("cure", arms(push=3.0)),
        "cure, two arms of 20 steps": ("cure", arms(20, 1e-3, lr=8e-4)),
    }


def pushed(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """Each rule in ``cure``'s loop pushed less and more, at the recipe's rate and another."""
    gentle = [{"push": push, "lr": lr} for push, lr in ((0.25, 8e-4), (0.5, 8e-4), (0.5, 4e-4), (1.5, 8e-4))]
    gentler = [{"push": push, "lr": lr} for push, lr in ((1.0, 4e-4), (0.5, 2e-4), (1.0, 2e-4), (2.0, 2e-4))]
    tried: dict[tuple[str, str], list[dict[str, float]]] = {
        ("cure", "cure"): [
            {"push": 4.0},
            {"push": 2.0, "lr": 1.2e-3},
            {"push": 4.0, "lr": 1.2e-3},
            {"push": 10.0, "lr": 4e-4},
        ],
        ("random_modules", "the twin"): [{"push": 4.0}, {"push": 10.0, "lr": 1.2e-3}],
        ("weighted_sum", "the loop alone"): [{"push": 1.0}, {"push": 4.0}, *gentler],
        ("pcgrad", "PCGrad"): [*gentle, *gentler],
        ("cagrad", "CAGrad"): [*gentle, *gentler],
    }
    found = {}
    for (method, name), points in tried.items():
        for point in points:
            of_demo = point.get("lr", 8e-4) == 8e-4
            rate = "" if of_demo else f", rate {point['lr']:g}".replace("0.", ".")
            config = recipe.config_of(method)
            parts = {"update": config.update.model_copy(update=point)} if hasattr(config, "update") else point
            found[f"{name}, push {point['push']:g}{rate}"] = (method, config.model_copy(update=parts))
    return found


def with_what_cure_has(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """The loop's other rules with weights drawn back and steps projected in AdamW's metric, as ``cure``'s."""
    own = recipe.cure.update
    parts = {
        "drawn back": {"anchor": own.anchor},
        "steps projected": {"projection": own.projection},
        "drawn back, steps projected": {"anchor": own.anchor, "projection": own.projection},
    }
    return {
        f"{name}, {what}": (method, recipe.config_of(method).model_copy(update=values))
        for method, name in (("weighted_sum", "the loop alone"), ("pcgrad", "PCGrad"), ("cagrad", "CAGrad"))
        for what, values in parts.items()
        if method != "weighted_sum" or what == "drawn back"  # which projects nothing
    }


def with_fewer_prompts(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """Steps and prompts of D_r a step, alone and as the recipe ``quick`` has them."""
    cure, pcgrad, quick = recipe.cure, recipe.config_of("pcgrad"), load_recipe("quick")
    steps = cure.update.max_steps

    def of(n: int, size: int, **parts: Any) -> dict[str, Any]:
        looks = {"max_steps": n, "forget_every": n, "check_every": n // 3}
        return {**looks, "retain_batch_size": size, **parts}

    def updated(values: dict[str, Any]) -> Any:
        return cure.model_copy(update={"update": cure.update.model_copy(update=values)})

    sizes = [(steps, size) for size in (48, 32, 24, 16)]
    sizes += [(90, 16), (45, 32), (30, 96), (30, 48), (20, 96), (20, 48), (15, 96), (15, 48)]
    further: dict[str, dict[str, Any]] = {
        "rate .0006": {"lr": 6e-4},
        "damping .3": {"damping": 0.3},
        "looks at 150": {"check_size": 150},
        "one look half-way": {"check_every": 30},
        "no labels": {"retain_labels": 0.0},
        "400 of D_f": {"forget_size": 400},
    }
    few = of(steps, 24)
    return {
        **{f"cure, {n} steps of {size}": ("cure", updated(of(n, size))) for n, size in sizes},
        **{f"cure, 60 steps of 24, {k}": ("cure", updated({**few, **v})) for k, v in further.items()},
        "cure, 30 steps of 48, rate .0012": ("cure", updated(of(30, 48, lr=1.2e-3))),
        "cure, 15 steps of 96, rate .0016": ("cure", updated(of(15, 96, lr=1.6e-3))),
        "random groups, 60 steps of 24": ("random_modules", updated(few)),
        "random groups, 30 steps of 48": ("random_modules", updated(of(30, 48))),
        "PCGrad in its loop, 60 steps of 24": ("pcgrad", pcgrad.model_copy(update=few)),
        "cure, quick": ("cure", quick.cure),
        "random groups, quick": ("random_modules", quick.cure),
        "PCGrad in its loop, quick": ("pcgrad", quick.config_of("pcgrad")),
        "CAGrad in its loop, quick": ("cagrad", quick.config_of("cagrad")),
    }
