"""Question: packing ratings, then opening, splitting, a 0.1 % request: time and peak memory as rows grow.

What is packed is what `curerec pack` writes and every command opens; then the table that `curerec request`
keeps of it: stored, opened, a request resolved, written anew without its rows and with a thousand others.
Packing, the rest and the stored table run in a process of their own each, so that the peak memory is their
own. The peak counts pages of the mapped files that the system keeps while there is room, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import done, options, write


def generate(folder: Path, rows: int, seed: int = 0) -> None:
    """Parquet of made-up interactions, 100 a user, in no order of users, and of titles."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    users, items, part = max(20, rows // 100), max(200, rows // 1000), 1_000_000
    chunks = max(1, rows // part)
    writer = None
    for k in range(chunks):
        n = rows // chunks
        user = (np.arange(n) * chunks + k) % users  # each user in every chunk, few times
        turn = (np.arange(n) * chunks + k) // users
        # An item once a user: neighbours in the catalogue, so that the graph has neighbourhoods.
        base = (user.astype(np.int64) * 2654435761) % items
        item = (base + turn) % items
        table = pa.table(
            {
                "user": user.astype(np.int32),
                "item": item.astype(np.int32),
                "rating": rng.integers(1, 6, n).astype(np.float32),
                "time": (rng.integers(0, 1 << 30, n) + turn).astype(np.int64),
            }
        )
        writer = writer or pq.ParquetWriter(folder / "interactions.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    titles = {"item": [str(k) for k in range(items)], "title": [f"Title {k}" for k in range(items)]}
    pq.write_table(pa.table(titles), folder / "titles.parquet")


def peak_bytes() -> int:
    """Largest resident set of this process; getrusage's would begin with the one that started it."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))


def child(folder: Path, rows: int, stage: str) -> None:
    """One size, ``pack``, what comes ``after``, or the table of ``requests``; prints its values."""
    import numpy as np

    from curerec.data.forget import apply_request, deleted_rows
    from curerec.data.push import liked_graph_on_disk, push
    from curerec.data.readers import pack, read
    from curerec.data.splits import TRAIN, per_user_roles
    from curerec.recipes import load_recipe
    from curerec.records import ForgetRequest
    from curerec.splitting import split_of

    values: dict[str, float] = {"rows": rows}

    def timed(name: str, run):
        start = time.perf_counter()
        out = run()
        values[f"{name}_s"] = time.perf_counter() - start
        return out

    values["imports_bytes"] = peak_bytes()
    if stage == "pack":
        timed("pack", lambda: pack(folder, folder / "packed"))
        values["pack_peak_bytes"] = peak_bytes()
        print(json.dumps(values))
        return
    data = timed("open", lambda: read(folder / "packed"))
    split = timed(
        "split", lambda: split_of(data, load_recipe("lora").split)
    )  # 12,000 prompts, as a recipe has it
    rng = np.random.default_rng(1)
    if stage == "requests":
        stored_table(data, split, folder, rng, timed)
        print(json.dumps(values | {"peak_bytes": peak_bytes()}))
        return
    trained = np.unique(data.user_code[split.train.target])
    n_users = len(data.user_ids)
    asked = rng.choice(trained, max(1, n_users // 1000), replace=False)
    request = ForgetRequest("users", tuple(data.user_ids.take(asked).to_pylist()))
    gone = timed("resolve_users", lambda: deleted_rows(data, request))
    timed("apply", lambda: apply_request(data, split, request))
    one = int(asked[0])
    rows_of = data.first[one] + np.arange(15, 25)
    items = data.item_ids.take(data.item_code[rows_of]).to_pylist()
    pairs = ForgetRequest("interactions", tuple((data.user_ids[one].as_py(), i) for i in items))
    timed("resolve_interactions", lambda: deleted_rows(data, pairs))
    role = per_user_roles(data)
    graph = timed("graph", lambda: liked_graph_on_disk(data, folder, role == TRAIN))
    starts = n_users + rng.choice(len(data.item_ids), 20)
    timed("pagerank_20", lambda: [push(graph, int(s), tolerance=1e-5) for s in starts])
    values |= {"deleted": int(gone.sum()), "users": n_users, "items": len(data.item_ids)}
    values["peak_bytes"] = peak_bytes()
    assert len(data) == rows
    print(json.dumps(values))


def stored_table(data, split, folder: Path, rng, timed) -> None:
    """What `curerec request` does to its table: ``init``, ``add``, ``run`` and ``ingest``."""
    import numpy as np

    from curerec.data.edited import adding
    from curerec.data.table import interactions
    from curerec.requests import table as tables

    place = folder / "store"
    place.mkdir()
    none = np.zeros(0, np.int32)
    name = timed("store", lambda: tables.save(tables.of_split(data, split, none), place))
    table = timed("check_and_open", lambda: tables.load(place, name))
    users = rng.choice(len(data.user_ids), max(1, len(data.user_ids) // 1000), replace=False)
    entries = [(user,) for user in data.user_ids.take(users).to_pylist()]
    gone = timed("find", lambda: table.rows("users", entries))
    timed("histories", lambda: table.split)
    timed("fingerprint", lambda: table.data.fingerprint_of(~gone))
    timed("store_without", lambda: tables.save(table, place, table.without(gone)))
    new = [f"new {k}" for k in range(1000)]
    items = data.item_ids.take(rng.integers(0, len(data.item_ids), 1000)).to_pylist()
    more = interactions(new, items, [5.0] * 1000, range(1000), data.titles, name="made", source="benchmark")
    timed("store_with", lambda: tables.save(table, place, adding(table.data, more)))


def main() -> None:
    """All sizes."""
    parser = options(__doc__ or "")
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--scratch", type=Path, default=None, help="about 180 bytes a row")
    parser.add_argument("--child", nargs=3)
    options_ = parser.parse_args()
    if options_.child:
        child(Path(options_.child[0]), int(options_.child[1]), options_.child[2])
        return
    for rows in [20_000] if options_.tiny else options_.rows:
        keys = {question: {"question": question, "rows": rows} for question in ("packed", "stored table")}
        if all(done(options_.results, key) for key in keys.values()):
            continue
        with tempfile.TemporaryDirectory(dir=options_.scratch) as name:
            generate(Path(name), rows)
            found: dict[str, dict[str, float]] = {}
            for stage in ("pack", "after", "requests"):
                command = [sys.executable, __file__, "--child", name, str(rows), stage]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[stage] = json.loads(printed.splitlines()[-1])
            values = {"packed": found["pack"] | found["after"], "stored table": found["requests"]}
            for question, key in keys.items():
                if not done(options_.results, key):
                    write(options_.results, key, values[question], options_.note)


if __name__ == "__main__":
    main()
