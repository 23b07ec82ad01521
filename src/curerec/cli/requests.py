"""``curerec request ...``."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from curerec.cli.options import MAX_SEED, StoreFolder

requests = typer.Typer(
    name="request",
    help="Deletion requests as a service: a ledger, crash-safe runs, an atomic commit, a chain of records.",
    rich_markup_mode=None,
    no_args_is_help=True,
)

Request = Annotated[str, typer.Argument(help="Id of a request, as `curerec request add` prints it.")]
#: Beginnings that a spreadsheet takes for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")


def _store(folder: Path) -> Any:
    from curerec.requests.store import Store

    return Store(folder)


@requests.command(
    epilog="Example: curerec request init --store runs/service --recommender runs/recommender --data ml-100k"
)
def init(
    store: Annotated[Path, typer.Option("--store", help="Folder to make.")],
    recommender: Annotated[Path, typer.Option("--recommender", help="Folder that `curerec train` wrote.")],
    data: Annotated[
        str | None, typer.Option("--data", help="What it was trained on. Default: its recipe's.")
    ] = None,
    base: Annotated[Path | None, typer.Option("--base", help="Folder of its base model.")] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="YAML: method, budgets, what becomes of old artefacts.")
    ] = None,
) -> None:
    """Make a store: a recommender, its training table, and an empty ledger."""
    from curerec.cli.inputs import quiet, ratings
    from curerec.config import read_yaml
    from curerec.data.output import check_out
    from curerec.opened import titles_note
    from curerec.recipe import recipe_of_card
    from curerec.recommender.storage import read_card
    from curerec.requests import making
    from curerec.requests.policy import Policy

    quiet()
    check_out(store, inputs=[recommender, base], option="--store")
    chosen = read_yaml(Policy, policy) if policy else Policy()
    card = read_card(recommender)
    recipe, of_settings = recipe_of_card(card, where="recommender, its recipe")
    table = ratings(data, recipe)[0]
    for note in filter(None, (of_settings, titles_note(card, table))):
        typer.echo(f"note: {note}")
    version = making.init(store, recommender, table, base=base, policy=chosen)
    typer.echo(f"{store}: version {version}")


@requests.command(
    epilog="Example: curerec request add --store runs/service --file request.csv --due 2030-01-31"
)
def add(
    store: StoreFolder,
    user: Annotated[list[str] | None, typer.Option("--user", help="A user to delete.")] = None,
    item: Annotated[list[str] | None, typer.Option("--item", help="An item to delete.")] = None,
    interaction: Annotated[
        list[str] | None, typer.Option("--interaction", help="USER,ITEM: one interaction to delete.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="csv with the header user, item or user,item; or JSON.")
    ] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Stays in the ledger, enters no record.")
    ] = None,
    due: Annotated[str | None, typer.Option("--due", help="YYYY-MM-DD.")] = None,
) -> None:
    """Take a request in; the same request again is the one that is there."""
    from curerec.data.request_file import bare, read_request
    from curerec.errors import RequestError
    from curerec.requests.ledger import Asked

    given = {"users": user, "items": item, "interactions": interaction}
    kinds = [kind for kind, ids in given.items() if ids]
    if len(kinds) + (file is not None) != 1:
        mend = "Give --user, --item, --interaction or --file; one kind a request"
        raise RequestError(
            "does not say what is to be deleted, or two things at once", where="request", mend=mend
        )
    if file is not None:
        read = read_request(file)
        entries = tuple((i,) if isinstance(i, str) else tuple(i) for i in read.ids)
        asked, places, source = Asked(read.kind, entries, reason, due), read.places, read.source
    else:
        kind, source = kinds[0], f"--{kinds[0][:-1]}"
        entries = tuple(
            tuple(map(bare, i.rsplit(",", 1) if kind == "interactions" else [i])) for i in given[kind] or []
        )
        asked, places = (
            Asked(kind, entries, reason, due),
            tuple(f"no. {k}" for k in range(1, len(entries) + 1)),
        )
    with _store(store) as opened:
        opened.table().check(asked.kind, list(asked.entries), places, source)
        name, new = opened.ledger.add(asked)
    typer.echo(name if new else f"{name} (was there already)")


@requests.command("list", epilog="Example: curerec request list --store runs/service --state open")
def show_all(
    store: StoreFolder,
    state: Annotated[
        list[str] | None, typer.Option("--state", help="open, running, held, committed or cancelled.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="text, json or csv.")] = "text",
) -> None:
    """List requests, the most urgent first."""
    from curerec.errors import RequestError

    if form not in ("text", "json", "csv"):
        raise RequestError("unknown", where="list --format", mend="Use text, json or csv")
    with _store(store) as opened:
        rows = opened.ledger.all(state or (), limit=1 << 40)  # not a page of them
    if form == "json":
        typer.echo(json.dumps(rows, ensure_ascii=True))
    elif form == "csv":
        typer.echo(as_csv(rows), nl=False)
    else:
        for row in rows:
            due = f"due {row['due']}" if row["due"] else "no date"
            typer.echo(f"{row['id']}  {row['state']:<9}  {row['n_ids']:>5} {row['kind']:<12}  {due}")


@requests.command(epilog="Example: curerec request show --store runs/service r-0123456789abcdef")
def show(store: StoreFolder, request: Request) -> None:
    """Everything about one request but whom it names."""
    with _store(store) as opened:
        row = opened.ledger.get(request)
        records = opened.db.execute(
            "SELECT sequence, sha256, action FROM record WHERE request = ?", (request,)
        )
        for key, value in row.items():
            if value is not None:
                typer.echo(f"{key:<9} {_line(value)}")
        for record in records:
            typer.echo(f"record    {record['sequence']} {record['action']} {record['sha256']}")


@requests.command(epilog="Example: curerec request cancel --store runs/service r-0123456789abcdef")
def cancel(store: StoreFolder, request: Request) -> None:
    """Take a request back that is not being carried out yet."""
    from curerec.requests.maintain import cancel as take_back

    with _store(store) as opened:
        take_back(opened, request)
    typer.echo(f"{request}: cancelled")


@requests.command(epilog="Example: curerec request run --store runs/service")
def run(
    store: StoreFolder,
    each: Annotated[bool, typer.Option("--each", help="A batch a request, instead of one for all.")] = False,
    method: Annotated[str | None, typer.Option("--method", help="Instead of the policy's.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Instead of the policy's.")
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train anew without what is to be deleted.")
    ] = False,
    prepare: Annotated[
        bool,
        typer.Option(help="After a commit take what no request changes, so that the next one is quicker."),
    ] = True,
) -> None:
    """Carry out what is open; after a kill, go on where it was. Exit code 1 if anything is not verified."""
    from curerec.cli.bars import bars
    from curerec.cli.inputs import quiet
    from curerec.pipeline import check_method
    from curerec.requests.engine import CureEngine
    from curerec.requests.runner import run as carry_out

    quiet()
    if method is not None:
        check_method(method, saved=True)
    with _store(store) as opened, bars() as reporter:
        done = carry_out(
            opened, CureEngine, each=each, method=method, seed=seed, retrain=retrain, reporter=reporter
        )
    if not done:
        typer.echo("nothing is open")
    for one in done:
        typer.echo(f"{one.batch}: {'committed' if one.committed else 'held'}, {len(one.requests)} request(s)")
        for reason in one.reasons:
            typer.echo(f"  {reason}")
        if one.broke and len(one.requests) > 1:
            typer.echo("  carried out in halves, to find the request that breaks it")
        if one.committed:
            typer.echo(f"  version {one.version}")
    if prepare and any(one.committed for one in done):
        _prepared(store, method, seed)
    through = {request for one in done if one.committed for request in one.requests}
    if any(not one.committed and not through.issuperset(one.requests or ("none",)) for one in done):
        raise typer.Exit(1)


def _prepared(store: Path, method: str | None, seed: int | None) -> None:
    """For the next request of the new version; what cannot be taken now, that request takes."""
    import contextlib

    from curerec.cli.bars import bars
    from curerec.errors import CurerecError
    from curerec.recommender.memory import as_far_as_it_fits
    from curerec.requests.engine import prepare_next

    with contextlib.suppress(CurerecError), as_far_as_it_fits(), _store(store) as opened:
        if (method or opened.policy.method) != "cure":
            return
        typer.echo("for the next request:", err=True)
        with bars() as reporter:
            prepare_next(opened, opened.policy.seed if seed is None else seed, reporter)


@requests.command(epilog="Example: curerec request status --store runs/service")
def status(
    store: StoreFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """How the store stands: requests, run under way, drift, versions."""
    from curerec.requests.maintain import status as look

    with _store(store) as opened:
        seen = look(opened)
    if as_json:
        typer.echo(json.dumps(seen))
        return
    typer.echo("requests  " + ", ".join(f"{n} {state}" for state, n in seen["requests"].items()))
    typer.echo(f"overdue   {seen['overdue']}")
    typer.echo(f"running   {'yes' if seen['running'] else 'no'}")
    for batch in seen["batches"]:
        typer.echo(f"batch     {batch['id']} at stage {batch['stage'] or 'start'}")
    drift = seen["drift"]
    typer.echo(f"drift     {drift['distance']:.4f} of {drift['distance_budget']:g}")
    typer.echo(f"auc fall  {drift['auc_drop']:.4f} of {drift['auc_budget']:g}")
    if seen["retrain_due"]:
        typer.echo(seen["retrain_due"])
    typer.echo(f"records   {seen['records']}, head {seen['head']}")
    for version in seen["versions"]:
        typer.echo(f"version   {version['id']} {version['state']}{', current' if version['current'] else ''}")


@requests.command(epilog="Example: curerec request rollback --store runs/service")
def rollback(
    store: StoreFolder,
    version: Annotated[
        str | None, typer.Argument(help="Content hash or its beginning. Default: the last one.")
    ] = None,
) -> None:
    """Serve an earlier version that is still lawful."""
    from curerec.requests.maintain import rollback as back

    with _store(store) as opened:
        typer.echo(f"version {back(opened, version)}")


@requests.command(epilog="Example: curerec request ingest --store runs/service --data new.csv")
def ingest(
    store: StoreFolder,
    data: Annotated[Path, typer.Option("--data", help="New rows, in a format that `curerec train` reads.")],
    skip: Annotated[
        bool, typer.Option("--skip-deleted", help="Leave out deleted rows instead of refusing all.")
    ] = False,
) -> None:
    """Add rows to the stored table; what was deleted does not come back."""
    from curerec.data.fetch import load
    from curerec.requests.maintain import ingest as take_in

    with _store(store) as opened:
        done = take_in(opened, load(f"./{data}" if not data.is_absolute() else data), skip=skip)
    typer.echo(f"{done.added} row(s) added, {done.refused} deleted one(s) kept out")
    if done.differing:
        typer.echo(f"{done.differing} known row(s) left with the rating and time that the table has")


@requests.command(epilog="Example: curerec request shred --store runs/service r-0123456789abcdef")
def shred(
    store: StoreFolder,
    request: Annotated[str | None, typer.Argument(help="Id of a finished request.")] = None,
    expired: Annotated[bool, typer.Option("--expired", help="All whose retention time is over.")] = False,
) -> None:
    """Destroy the key of a request's pseudonyms: its record stays and leads to nobody."""
    from curerec.errors import RequestError
    from curerec.requests.maintain import shred as destroy

    if (request is None) != expired:
        raise RequestError("takes an id or --expired", where="shred", mend="Give one of them")
    with _store(store) as opened:
        names = destroy(opened, request)
    typer.echo(f"{len(names)} key(s) destroyed")


@requests.command(epilog="Example: curerec request artefact --store runs/service runs/cache --policy destroy")
def artefact(
    store: StoreFolder,
    path: Annotated[Path, typer.Argument(help="Cache, checkpoint, logits, earlier recommender ...")],
    policy: Annotated[
        str, typer.Option("--policy", help="list, quarantine or destroy, at the next commit.")
    ] = "list",
    kind: Annotated[str, typer.Option("--kind", help="What it is, for the record.")] = "artefact",
) -> None:
    """Have something outside of the store that holds what was learnt dealt with at the next commit."""
    from curerec.errors import RequestError
    from curerec.requests.maintain import register

    if policy not in ("list", "quarantine", "destroy"):
        raise RequestError("unknown", where="artefact --policy", mend="Use list, quarantine or destroy")
    if not kind.replace(" ", "").isalnum():
        raise RequestError(
            "may hold letters, digits and spaces", where="artefact --kind", mend="Leave the rest out"
        )
    with _store(store) as opened:
        register(opened, path, kind=kind, policy=policy)
    typer.echo(f"{path}: {policy}")


@requests.command(epilog="Example: curerec request export --store runs/service --out ledger.json")
def export(store: StoreFolder, out: Annotated[Path, typer.Option("--out", help="File to write.")]) -> None:
    """Write the ledger as one canonical JSON file without ids; `curerec verify` reads it."""
    from curerec.data.durable import write
    from curerec.errors import StorageError
    from curerec.requests.audit import export as as_bytes

    with _store(store) as opened:
        if out.resolve().is_relative_to(store.resolve()):  # over the ledger itself, it may be
            mend = "Name a file elsewhere; a copy beside the ledger goes with it"
            raise StorageError("is inside of the store", where="export --out", mend=mend)
        write(out, as_bytes(opened), mode=0o644)
    typer.echo(str(out))


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as csv whose cells no spreadsheet takes for a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    if rows:
        writer.writerow(rows[0])
    for row in rows:
        cells = ["" if value is None else _line(value) for value in row.values()]
        writer.writerow([f"'{cell}" if cell.lstrip().startswith(FORMULA) else cell for cell in cells])
    return out.getvalue()


def _line(value: Any) -> str:
    return "".join(c if c.isprintable() else " " for c in str(value))


def attach(app: typer.Typer) -> None:
    """Put these commands beside the others."""
    app.add_typer(requests)
