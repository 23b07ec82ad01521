"""Question: reading, splitting and resolving a 0.1 % request, with time and peak memory, as the rows grow.

Each size runs in a process of its own, so that the peak memory is its own. The peak counts pages of the
memory-mapped files that the system keeps while there is room, too.
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
    """Parquet of made-up interactions: 100 a user, in no order of users."""
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


def peak_bytes() -> int:
    """Largest resident set of this process; getrusage's would begin with the one that started it."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))


def child(folder: Path, rows: int) -> None:
    """One size; prints its values."""
    import numpy as np

    from curerec.data.push import liked_graph_on_disk, push
    from curerec.data.store import build
    from curerec.data.store_split import examples_at, resolve, roles
    from curerec.records import ForgetRequest

    values: dict[str, float] = {"rows": rows}

    def timed(name: str, run):
        start = time.perf_counter()
        out = run()
        values[f"{name}_s"] = time.perf_counter() - start
        return out

    imports = peak_bytes()
    store = timed("read", lambda: build(folder / "interactions.parquet", folder / "store"))
    role = timed("split", lambda: roles(store))
    graph = timed("graph", lambda: liked_graph_on_disk(store, role))
    rng = np.random.default_rng(1)
    ids = store.ids("users").take(rng.choice(store.n_users, max(1, store.n_users // 1000), replace=False))
    request = ForgetRequest("users", tuple(ids.to_pylist()))
    touched = timed("resolve_users", lambda: resolve(store, request))
    users = store.column("user")
    one = int(np.flatnonzero(np.diff(store.first) > 30)[0])
    rows_of = np.arange(store.first[one] + 15, store.first[one] + 25)
    items = store.ids("items").take(store.column("item")[rows_of]).to_pylist()
    pairs = ForgetRequest("interactions", tuple((store.ids("users")[one].as_py(), i) for i in items))
    few = timed("resolve_interactions", lambda: resolve(store, pairs))
    timed("rebuild", lambda: examples_at(store, few.changed, few.deleted))
    starts = store.n_users + rng.choice(store.n_items, 20)
    timed("pagerank_20", lambda: [push(graph, int(s), tolerance=1e-5) for s in starts])
    values |= {"deleted": len(touched.deleted), "users": store.n_users, "items": store.n_items}
    values["imports_bytes"] = imports
    values["peak_bytes"] = peak_bytes()
    assert len(users) == store.n_rows
    print(json.dumps(values))


def main() -> None:
    """All sizes."""
    parser = options(__doc__ or "")
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--scratch", type=Path, default=None, help="about 60 bytes a row")
    parser.add_argument("--child", nargs=2)
    options_ = parser.parse_args()
    if options_.child:
        child(Path(options_.child[0]), int(options_.child[1]))
        return
    for rows in [20_000] if options_.tiny else options_.rows:
        key = {"question": "data", "rows": rows}
        if done(options_.results, key):
            continue
        with tempfile.TemporaryDirectory(dir=options_.scratch) as name:
            generate(Path(name), rows)
            command = [sys.executable, __file__, "--child", name, str(rows)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        write(options_.results, key, json.loads(printed.splitlines()[-1]), options_.note)


if __name__ == "__main__":
    main()
