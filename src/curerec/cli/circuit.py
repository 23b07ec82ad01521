"""``curerec circuit``: find, judge and draw the circuit of a recommender; or draw an imported one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from curerec.cli.options import MAX_SEED, BaseFolder

#: What an output folder of the command holds; one that holds more is not replaced.
FILES = frozenset({"circuit.json", "circuit.eap-ig.json", "circuit.html"})


def circuit(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    recommender: Annotated[
        Path | None, typer.Option("--recommender", help="Folder that `curerec train` wrote.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Public data set or a path. Default: what it was trained on."),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer",
            help="exact, atp, atp_ig, relp, ig_node or adapter. Connections: the same where it is atp, "
            "atp_ig or relp, else atp_ig.",
        ),
    ] = None,
    corruption: Annotated[
        str,
        typer.Option("--corruption", help="prompt (another user's) or history (items by PageRank)."),
    ] = "prompt",
    start: Annotated[
        str | None,
        typer.Option(
            "--start", help="Of --corruption history: where PageRank starts, item (the candidate) or user."
        ),
    ] = None,
    select: Annotated[
        str,
        typer.Option(
            "--select",
            help="How parts are chosen: faithful (as few of the first by score as keep 90 % of the margin), "
            "top:K (so many) or threshold:X (scores of at least X logits).",
        ),
    ] = "faithful",
    select_edges: Annotated[
        str, typer.Option("--select-edges", help="How connections are chosen, likewise.")
    ] = "faithful",
    pairs: Annotated[
        int,
        typer.Option("--pairs", min=4, help="Counterfactual pairs at most; 64 to begin with."),
    ] = 128,
    edges: Annotated[
        int, typer.Option("--edges", min=0, help="Pairs that connections are scored on at first; 0: none.")
    ] = 128,
    edges_most: Annotated[
        int | None,
        typer.Option(
            "--edges-most",
            min=4,
            help="Pairs they are scored on at most, where resamples overturn them. Default: 512; with "
            "--corruption history no more than --pairs.",
        ),
    ] = None,
    test: Annotated[
        int, typer.Option("--test", min=0, help="Test prompts of the knock-out; 0: leave it out.")
    ] = 400,
    reading: Annotated[
        int, typer.Option("--reading", min=0, help="Prompts whose attention is read; 0: leave it out.")
    ] = 128,
    variants: Annotated[
        int,
        typer.Option(
            "--variants",
            min=0,
            help="Pairs of each other seed, template and scorer, at least 2; 0: leave them out.",
        ),
    ] = 48,
    units: Annotated[
        str | None,
        typer.Option(
            "--units",
            help="Also score what fine-tuning stored in each projection, row, rank (rank-one term of an "
            "adapter) or head_mlp.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Prompts a pass; halved where memory runs out.")
    ] = 32,
    record: Annotated[
        Path | None, typer.Option("--record", help="record.json of an unlearning run: colours by group.")
    ] = None,
    imported: Annotated[
        Path | None,
        typer.Option("--import", help="A circuit.json, or one in the JSON form of EAP-IG and MIB."),
    ] = None,
    base: BaseFolder = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of everything random.")] = 0,
) -> None:
    """Find the circuit of a recommender: which parts carry its answers, and how far that can be trusted.

    Writes OUT/circuit.json, OUT/circuit.eap-ig.json (the form of EAP-IG and MIB) and OUT/circuit.html, a page
    to explore. With --import an existing circuit is drawn instead, and judged where a recommender is given.
    """
    from curerec.cli.bars import bars
    from curerec.cli.inputs import opened_with, quiet
    from curerec.config import parse
    from curerec.data.output import check_out, replacing
    from curerec.errors import ConfigError

    if recommender is None and imported is None:
        raise ConfigError(
            "nothing to look at", where="circuit", mend="Give --recommender, or a circuit with --import"
        )
    if recommender is None and units is not None:
        raise ConfigError(
            "needs the recommender: what fine-tuning stored is in its weights",
            where=f"--units {units}",
            mend="Give --recommender as well",
        )
    if start is not None and corruption != "history":
        raise ConfigError(
            "says where PageRank starts, which only history counterfactuals use",
            where=f"--start {start}",
            mend="Give --corruption history as well, or leave it out",
        )
    if edges_most is not None and corruption == "history":
        raise ConfigError(
            "is for prompt counterfactuals; with those of history connections have the pairs of the parts",
            where=f"--edges-most {edges_most}",
            mend="Leave it out, and say with --pairs how many there may be",
        )
    if variants == 1:
        raise ConfigError(
            "is too few: one half of the pairs ranks, one judges",
            where="--variants 1",
            mend="Give at least 2, or 0 to leave the overlaps out",
        )
    quiet()
    from curerec.circuits import DEFAULT, SCORERS
    from curerec.circuits.by_role import groups_of_record
    from curerec.circuits.eap_ig import to_eap_ig
    from curerec.circuits.exchange import write
    from curerec.circuits.selection import selecting
    from curerec.circuits.wiring import wiring_of
    from curerec.imported import judge_imported
    from curerec.inspect_config import InspectConfig
    from curerec.inspection import inspect
    from curerec.progress import Clock
    from curerec.reports.circuit_page import write_circuit_page
    from curerec.reports.files import replace_file

    check_out(out, only=FILES, inputs=[recommender, record, imported, base])
    if scorer is not None and scorer not in SCORERS:
        raise ConfigError(
            "is no scorer", where=f"--scorer {scorer}", mend=f"Choose from {', '.join(SCORERS)}"
        )
    for way in (select, select_edges):
        selecting(way)
    asked = {
        "scorer": scorer or DEFAULT,
        "select": select,
        "select_edges": select_edges,
        "corruption": corruption,
        "pairs": pairs,
        "edges": edges,
        **({} if edges_most is None else {"edges_most": edges_most}),
        "test": test,
        "reading": reading,
        "variants": variants,
        "start": start or "item",
        "units": units,
        "batch_size": batch,
        "seed": seed,
    }
    config = parse(InspectConfig, asked, where="circuit")
    cells = _cells(record) if record else []
    opened = opened_with(recommender, data, base) if recommender else None
    if imported is not None:
        file = _imported(imported, opened)
        if opened is not None:
            file = judge_imported(opened, file, config)
        groups = groups_of_record(cells, n_heads=file.shape.n_heads)
        nodes = [n.model_copy(update={"groups": groups.get(n.name, n.groups)}) for n in file.nodes]
        file = file.model_copy(update={"nodes": nodes})
    else:
        groups = groups_of_record(cells, n_heads=wiring_of(opened.recommender.model).n_heads)  # type: ignore[union-attr]
        with bars() as reporter:
            file = inspect(opened, config, groups=groups, clock=Clock(reporter))  # type: ignore[arg-type]
    with replacing(out, only=FILES) as stage:
        import json

        write(file, stage / "circuit.json")
        replace_file(stage / "circuit.eap-ig.json", json.dumps(to_eap_ig(file), indent=1) + "\n")
        write_circuit_page(file.model_dump(mode="json"), stage / "circuit.html")
    _say(file, out)


def _cells(record: Path) -> list[dict[str, Any]]:
    from curerec.reports.schema import read_record

    return [cell.model_dump() for cell in read_record(record).groups.cells or []]


def _imported(path: Path, opened: Any) -> Any:
    """A circuit of either form."""
    from curerec.circuits.eap_ig import read_eap_ig
    from curerec.circuits.exchange import FORMAT, read, read_json
    from curerec.circuits.wiring import wiring_of

    if read_json(path).get("format") == FORMAT:
        return read(path)
    n_kv = wiring_of(opened.recommender.model).n_kv if opened is not None else None
    return read_eap_ig(path, n_kv_heads=n_kv)


def _say(file: Any, out: Path) -> None:
    """Print what was found, a line each; of an imported file only what it holds."""
    from curerec.reports.circuit_tables import largest_units
    from curerec.reports.circuit_words import no_fall, pairs_text, verdict
    from curerec.reports.figures import NBSP

    measured = file.nodes_measured
    core = sum(n.in_graph for n in file.nodes)
    typer.echo(f"circuit: {core} of {len(file.nodes)} parts{_kept(measured)}")
    if file.edges_measured is not None:
        chosen = sum(e.in_graph for e in file.edges)
        used = f" ({file.edges_pairs} pairs)" if file.edges_pairs else ""
        typer.echo(f"connections: {chosen} of {len(file.edges)}{_kept(file.edges_measured)}{used}")
    if file.pairs:
        typer.echo(f"pairs: {pairs_text(file.pairs)}".replace(NBSP, " "))
    if file.agreement:
        typer.echo(f"exact patching of {_number(file.agreement.get('modules'), 0)} parts: {_agree(file)}")
    for what, found in (("circuit", file.matters), ("connections", file.edges_matter)):
        if found:
            typer.echo(
                f"test AUC {_of(found, 'auc')}; without the {what} {_of(found, 'auc_without')}, without a "
                f"random set of its size {_of(found, 'auc_random')}, all patched {_of(found, 'auc_floor')}"
            )
    if still := [m for m in (file.matters, file.edges_matter) if no_fall(m)]:
        typer.echo(verdict(still[0], "the circuit"))
    if file.compact is not None:
        fewest, found = file.compact, file.compact.matters
        line = f"fewest parts: {len(fewest.members)} of {fewest.total}"
        line += f", faithfulness {_number(fewest.faithfulness)}"
        if found:
            line += (
                f"; test AUC with them alone {_of(found, 'auc_kept')}, "
                f"without them {_of(found, 'auc_without')}, "
                f"without as many random ones {_of(found, 'auc_random')}"
            )
        typer.echo(line)
    for needed in file.necessary:
        line = f"without the {len(needed.members)} {needed.level} it cannot do without"
        if found := needed.matters:
            line += f" {_of(found, 'auc_without')}, without as many random ones {_of(found, 'auc_random')}"
        else:
            line += f" it loses {_number(needed.lost, 2)} of the margin"
        typer.echo(line)
    for table in file.overlaps:
        typer.echo(f"overlap over {table.over}: {_number(table.mean, 2)} ({', '.join(table.names)})")
    if file.units:
        largest = [
            f"{u['name']} {u['score']:.2g}"
            + ("" if u["low"] is None or u["high"] is None else f" ({u['low']:.2g} to {u['high']:.2g})")
            for u in largest_units(file.model_dump()["units"], 3)
        ]
        typer.echo(f"fine-tuning stored most in (of {len(file.units)} units): {', '.join(largest)}")
    cost = file.cost
    if cost.get("forward_equivalents"):
        peak = cost.get("peak_bytes") or cost.get("process_peak_bytes") or 0
        kind = "device" if cost.get("peak_bytes") else "process"
        line = f"cost: {cost['forward_equivalents']:g} forward-equivalents an example to score the parts, "
        if cost.get("edges_forward_equivalents"):
            line += f"{cost['edges_forward_equivalents']:g} the connections, "
        if cost.get("time_s"):
            line += f"{cost['time_s']:.0f} s for all of it, judging included, "
        typer.echo(f"{line}{kind} peak {peak / 2**20:.0f} MiB")
    for note in file.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"page: {out / 'circuit.html'}")


def _number(value: float | None, digits: int = 3) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def _of(found: dict[str, float | None], name: str) -> str:
    return _number(found.get(name))


def _kept(measured: Any) -> str:
    """Faithfulness and overlap of a selection, where they were measured."""
    line = ""
    if measured.faithfulness is not None:
        line += f", faithfulness {measured.faithfulness:.3f}"
    if measured.jaccard is not None:
        line += f", overlap over resamples {measured.jaccard:.2f}"
        if measured.jaccard_chance is not None:
            line += f" (by chance {measured.jaccard_chance:.2f})"
    return line


def _agree(file: Any) -> str:
    """How far the scorer agrees with exact patching: of all parts re-scored, and of heads and MLPs apart."""
    said = []
    for kind, of in (("", ""), ("head_", "of heads "), ("mlp_", "of MLPs ")):
        rank, recall = file.agreement.get(f"{kind}spearman"), file.agreement.get(f"{kind}top_recall")
        if rank is not None or recall is not None:
            said.append(f"{of}Spearman {_number(rank, 2)}, recall of the largest {_number(recall, 2)}")
    return "; ".join(said) or "too few to compare"


def attach(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        epilog="Example: curerec circuit --recommender runs/recommender --data ml-100k --out runs/circuit"
    )(circuit)
