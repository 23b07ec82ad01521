"""What the commands print: metrics, the verdict, and what unlearning does not reach."""

from __future__ import annotations

from typing import Any

import typer


def table_of(measured: Any) -> None:
    """Print the metrics, a line a model, and what a residual is measured between."""
    for name, row in measured.metrics.items():
        parts = [f"{name:<12}"]
        for key, form in (
            ("test_auc", ".4f"),
            ("membership_auc", ".3f"),
            ("jsd", ".4f"),
            ("residual", ".2f"),
        ):
            if row.get(key) is not None and (key != "residual" or measured.rankable):
                parts.append(f"{key} {row[key]:{form}}")
        typer.echo("  ".join(parts))
    if measured.floor_jsd is not None:
        say_scale(measured.floor_jsd, measured.ceiling_jsd, rankable=measured.rankable)


def say_scale(floor: float, ceiling: float, *, rankable: bool) -> None:
    """Print the two ends of the residual's scale, and where they are too near for it why it is not given."""
    typer.echo(f"floor {floor:.4f}  ceiling {ceiling:.4f} nats")
    if not rankable:
        typer.echo(
            "no residuals: the ceiling is under twice the floor, nothing measurable was there to forget"
        )


def say_plan(made: Any) -> None:
    """Print what a request is estimated to cost, stage by stage."""
    typer.echo(f"forget {made.n_forget} training examples, keep {made.n_retain}")
    if made.kept:
        typer.echo(f"prepared in training, or left by an earlier request: {', '.join(made.kept)}")

    def line(stage: Any) -> str:
        return f"{stage.name:<16} {stage.time_s:8.1f} s  {stage.forward_equivalents:10.0f} forward passes"

    for stage in made.stages:
        typer.echo(line(stage))
    typer.echo(f"{'total':<16} {made.time_s:8.1f} s")
    typer.echo(line(made.result))
    typer.echo(f"{'total, measured':<16} {made.whole_s:8.1f} s")
    typer.echo(f"memory {made.mem_bytes / 2**20:.0f} MiB, disk {made.disk_bytes / 2**20:.1f} MiB")
    typer.echo(f"calibrated in {made.calibration_s:.1f} s")


def say_values(measured: Any, asked: list[str], *, shadows: bool) -> None:
    """Print what was asked for beyond the table: value, interval, size, or why there is none."""
    from curerec.evaluation import METRICS
    from curerec.measure import names_for

    named = names_for(asked, shadows=shadows) or []
    extra = [key for key in named if METRICS[key].cost != "arrays" or key in asked]
    for key in extra:
        typer.echo(f"{key} ({METRICS[key].unit})")
        for name, values in measured.values.items():
            found = values[key]
            if found.missing:
                typer.echo(f"  {name:<12} none: {found.missing}")
                continue
            between = "" if found.low is None else f"  [{found.low:.4g}, {found.high:.4g}]"
            size = "" if found.n is None else f"  n {found.n}"
            typer.echo(f"  {name:<12} {found.value:.4g}{between}{size}")


def say_base(data: Any, recipe: Any, request: Any) -> None:
    """Print what of a request the base model was pre-trained on, if anything."""
    from curerec.data.forget import deleted_rows
    from curerec.splitting import base_share

    share = base_share(data, recipe, deleted_rows(data, request))
    if share:
        typer.echo(f"note: {share.text}")


def say_other_request(card: Any, request: Any) -> None:
    """Print that a model was made for other requests than the one it is judged by, where its card says so."""
    from curerec.measure import of_others

    if of_others(card, request):
        typer.echo("note: the card of the model that is judged names other requests, and not this one")


def say_verdict(found: dict[str, Any], *, strict: bool = True, residual: float | None = None) -> None:
    """Print the verdict and leave with 1 if it is no (or, asked for a verdict, if there is none).

    Args:
        found: of :func:`curerec.judge.judge`, which sees no retrain.
        strict: leave with 1 also where nothing is decided.
        residual: where there are retrains to hold the model against and something was there to forget: from 1
            on it is no nearer to them than the original, whatever the checks say.
    """
    astray = residual is not None and residual >= 1
    word = {True: "verified", False: "not verified", None: "not judged"}[found["verified"]]
    if astray and found["verified"]:
        word = "passed its checks, and is no nearer to a retrain"
    typer.echo(word)
    for check in found["checks"]:
        if check["passed"] is None:  # the text says why
            typer.echo(f"  {check['name']}: {check['text']}")
        elif not check["passed"]:
            typer.echo(
                f"  {check['name']}: failed, {check['value']:.3g} (limit {check['limit']:.3g}). "
                f"It asks that this holds: {check['text']}"
            )
    if astray:
        typer.echo(f"  residual: {residual:.2f}; from 1 on nothing was gained towards a retrained model")
    if found["verified"] is False or (strict and (found["verified"] is None or astray)):
        raise typer.Exit(1)
