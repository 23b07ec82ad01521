"""Commands given something wrong, in a folder of their own."""

from made_commands import curerec


def train(place, *more, data=None, recipe=None):
    options = ("--data", data or place / "data", "--recipe", recipe or place / "r.yaml")
    return curerec("train", *options, "--out", place / "made", *more)


def unlearn(place, made, request, *more):
    return curerec(
        "unlearn", "--recommender", made.full, "--data", made.data, "--request", request,
        "--out", place / "made", *more,
    )  # fmt: skip
