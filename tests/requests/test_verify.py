"""`curerec verify`: what it passes, and that no mutation of what it covers gets by."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import rfc8785
from made_store import made_data, made_store, stand, users

from curerec.errors import ConfigError, CurerecError
from curerec.requests import maintain, signing
from curerec.requests.audit import audit, audit_export, export
from curerec.requests.ledger import Asked
from curerec.requests.runner import run
from curerec.requests.store import Store
from made_commands import curerec


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """An Ed25519 key pair as openssl writes it."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl")
    folder = tmp_path_factory.mktemp("keys")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", folder / "key.pem"], check=True)
    subprocess.run(
        ["openssl", "pkey", "-in", folder / "key.pem", "-pubout", "-out", folder / "pub.pem"], check=True
    )
    return folder


@pytest.fixture(scope="module")
def made(pem):
    """A signed store of three commits and a rollback-free chain of four records, in memory."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    root = made_store(folder / "store", sign_key=str(pem / "key.pem"))
    with Store(root) as store:
        for k in range(3):
            store.ledger.add(Asked("users", ((f"usr{k:03d}",),), due="2030-01-01"))
            assert run(store, stand())[0].committed
        (folder / "ledger.json").write_bytes(export(store))
        head = store.head().sha256
    yield folder, root, head
    shutil.rmtree(folder)


def test_all_holds(made, pem):
    folder, root, head = made
    found = audit(root, public=pem / "pub.pem", head=head)
    assert (
        not found.faults and (found.records, found.versions, found.signed) == (4, 1, 4) and found.head == head
    )
    assert not audit_export(folder / "ledger.json", public=pem / "pub.pem", head=head).faults
    assert curerec("verify", root, "--public-key", pem / "pub.pem", "--head", head).code == 0
    assert curerec("verify", folder / "ledger.json").code == 0
    assert curerec("verify", root, "--head", "0" * 64).code == 1
    assert curerec("verify", folder).code == 2


def test_the_envelope_is_dsse(made, pem, tmp_path):
    """By openssl alone: the pre-authentication encoding, signed with Ed25519."""
    import base64

    _, root, _ = made
    for path in sorted((root / "records").glob("*.dsse.json")):
        envelope = json.loads(path.read_bytes())
        body = base64.b64decode(envelope["payload"])
        assert body == path.with_name(path.name.replace(".dsse", "")).read_bytes()
        kind = envelope["payloadType"].encode()
        text = b"DSSEv1 " + b"%d " % len(kind) + kind + b" %d " % len(body) + body
        (tmp_path / "m").write_bytes(text)
        (tmp_path / "s").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", pem / "pub.pem", "-rawin"]
        done = subprocess.run(
            [*command, "-in", tmp_path / "m", "-sigfile", tmp_path / "s"], capture_output=True
        )
        assert done.returncode == 0, done.stderr


def test_another_key_is_refused(made, pem, tmp_path):
    _, root, _ = made
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "k"], check=True)
    (tmp_path / "p").write_bytes(signing.public_of(tmp_path / "k"))
    assert len(audit(root, public=tmp_path / "p").faults) >= 4
    with pytest.raises(ConfigError, match="no Ed25519"):
        audit(root, public=root / "policy.yaml")


def test_a_forger_who_recomputes_all_hashes_still_needs_the_key(made, pem, tmp_path):
    """The whole chain is written anew, consistent in itself: only the signature tells."""
    from curerec.requests import chain

    _, root, _ = made
    with Store(root) as store:
        links = store.links()
    forged, before = [], None
    for one in links:
        content = json.loads(one.body)["predicate"]
        subjects = {s["name"]: s["digest"]["sha256"] for s in json.loads(one.body)["subject"]}
        kept = {
            k: v for k, v in content.items() if k not in ("action", "sequence", "previous", "not_claimed")
        }
        if one.action == "deletion":
            kept["measurements"] = [{"name": "membership_auc", "value": 0.5}]
        before = chain.link(one.action, before, subjects, kept)
        forged.append(before)
    assert not chain.faults(forged)
    assert len(chain.faults(forged, public=pem / "pub.pem")) == len(forged)
    assert chain.faults(forged, head=links[-1].sha256)


def test_signed_records_without_the_public_key_do_not_pass(pem, tmp_path):
    root = made_store(tmp_path / "store", sign_key=str(pem / "key.pem"))
    (root / "signing.pub.pem").unlink()
    assert any("public key of the store is not there" in fault for fault in audit(root).faults)


def test_a_chain_keeps_its_key(pem, tmp_path):
    """Another key, or none, is refused before a stage is run: its record would never pass."""
    key = tmp_path / "key.pem"
    shutil.copy(pem / "key.pem", key)
    root = made_store(tmp_path / "store", sign_key=str(key))
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "other"], check=True)
    for spoil in (lambda: shutil.copy(tmp_path / "other", key), key.unlink):
        spoil()
        engine = stand()
        with Store(root) as store:
            store.ledger.add(users(1))
            for act in (lambda store, e=engine: run(store, e), maintain.shred, maintain.rollback):
                with pytest.raises(ConfigError, match="sign_key"):
                    act(store)
            assert store.ledger.counts()["open"] == 1 and not engine.calls
        assert not audit(root).faults
    shutil.copy(pem / "key.pem", key)
    with Store(root) as store:
        assert run(store, stand())[0].committed
    assert not audit(root).faults


def test_a_key_that_was_named_from_one_folder_is_found_from_another(pem, tmp_path, monkeypatch):
    monkeypatch.chdir(pem)
    root = made_store(tmp_path / "store", sign_key="key.pem")
    monkeypatch.chdir(tmp_path)
    with Store(root) as store:
        assert store.sign_key == pem / "key.pem"
        store.ledger.add(users(1))
        assert run(store, stand())[0].committed
    assert not audit(root, public=pem / "pub.pem").faults
    # Named by hand in the store's own policy, it is of the store's folder.
    shutil.copy(pem / "key.pem", root / "mine.pem")
    policy = root / "policy.yaml"
    policy.write_text(policy.read_text().replace(str(pem / "key.pem"), "mine.pem"))
    with Store(root) as store:
        store.check_signing()


@pytest.mark.parametrize("last", ["init", "deletion", "retrain", "ingest", "shred", "rollback"])
def test_another_table_shows_whatever_was_last(last, tmp_path):
    """A table that is whole and well named, and not the one of the chain."""
    from curerec.requests import table as tables

    root = made_store(tmp_path / "store")
    with Store(root) as store:
        old = store.table()
        if last in ("deletion", "shred"):
            name = store.ledger.add(users(1))[0]
            run(store, stand())
        if last in ("retrain", "rollback"):
            run(store, stand(), retrain=True)
        if last == "shred":
            maintain.shred(store, name)
        if last == "rollback":
            maintain.rollback(store)
        if last == "ingest":
            maintain.ingest(store, made_data(2, prefix="new"))
        assert not audit(root).faults and not any("not compared" in n for n in audit(root).notes)
        assert store.links()[-1].action == last
        fewer = old.without(old.rows("users", [("usr007",)]))
        store.ledger.set_meta("data", tables.save(old, root / "data", fewer))
    assert any("stored table" in fault for fault in audit(root).faults)


@pytest.mark.parametrize("how", ["state", "due", "received", "forget", "invent", "version", "kind"])
def test_an_export_whose_hash_was_made_anew_still_shows(how, made, tmp_path):
    import hashlib

    folder, _, _ = made
    content = json.loads((folder / "ledger.json").read_bytes())
    content.pop("sha256")
    rows = content["requests"]
    if how == "forget":
        content["requests"] = [{**rows[0], "state": "open"}, *rows[1:]]
    elif how == "invent":
        content["requests"].append({**rows[0], "id": "r-0000000000000000"})
    elif how == "version":
        content["version"] = "0" * 64
    else:
        rows[0][how] = {"state": "cancelled", "due": "2035-01-01", "received": "2001", "kind": "items"}[how]
    content["sha256"] = hashlib.sha256(rfc8785.dumps(content)).hexdigest()
    (tmp_path / "x.json").write_bytes(rfc8785.dumps(content))
    assert audit_export(tmp_path / "x.json").faults


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """One flip, insertion, deletion, exchange or cut; never the same bytes."""
    while True:
        out, at = bytearray(raw), rng.randrange(len(raw))
        kind = rng.choice(("flip", "insert", "delete", "reorder", "truncate", "space", "append"))
        if kind == "flip":
            out[at] ^= 1 << rng.randrange(8)
        elif kind == "insert":
            out[at:at] = bytes([rng.randrange(256)])
        elif kind == "delete":
            del out[at : at + rng.randint(1, 9)]
        elif kind == "reorder":
            other = rng.randrange(len(raw))
            out[at], out[other] = out[other], out[at]
        elif kind == "truncate":
            del out[at:]
        elif kind == "space":
            out[at:at] = b" "
        else:
            out += rng.choice((b"\n", b" ", b"{}", b"\0"))
        if bytes(out) != raw:
            return bytes(out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.soak)])
def test_mutations_are_detected(number, made, pem, capsys):
    folder, root, head = made
    rng = random.Random(number)
    current = (root / "current").resolve()
    targets = {
        "manifest": [current / "manifest.json"],
        "record": sorted(p for p in (root / "records").iterdir() if ".dsse" not in p.name),
        "signature": sorted((root / "records").glob("*.dsse.json")),
        "adapter": sorted(p for p in current.iterdir() if p.name != "manifest.json"),
        "export": [folder / "ledger.json"],
        "report": sorted(root.glob("reports/*/*")),
        "table": sorted(root.glob("data/*/*")),
    }
    counts = dict.fromkeys([*targets, "chain"], 0)
    for k in range(number):
        kind = [*targets, "chain"][k % 8]
        if kind == "chain":
            undo = disturb_chain(root, rng)
        else:
            path = rng.choice(targets[kind])
            raw = path.read_bytes()
            path.write_bytes(mutate(raw, rng))
            undo = lambda path=path, raw=raw: path.write_bytes(raw)  # noqa: E731
        try:
            found = audit_export(folder / "ledger.json").faults if kind == "export" else audit(root).faults
        except CurerecError as error:
            found = (str(error),)
        assert found, (k, kind)
        counts[kind] += 1
        undo()
    assert not audit(root, head=head).faults
    with capsys.disabled():
        print(f"\n  mutations: {number} of {number} detected ({counts})")


def disturb_chain(root: Path, rng: random.Random):
    """Change the chain as a whole, in the files or in the ledger; returns what undoes it."""
    files = sorted(p for p in (root / "records").iterdir() if ".dsse" not in p.name)
    kind = rng.choice(("remove", "swap", "copy", "rename", "row"))
    if kind == "remove":
        path = rng.choice(files)
        raw = path.read_bytes()
        path.unlink()
        return lambda: path.write_bytes(raw)
    if kind == "swap":
        a, b = rng.sample(files, 2)
        first, second = a.read_bytes(), b.read_bytes()
        a.write_bytes(second)
        b.write_bytes(first)
        return lambda: (a.write_bytes(first), b.write_bytes(second))
    if kind == "copy":
        path = rng.choice(files).with_name(f"{rng.randrange(10**6):06d}-{rng.randbytes(32).hex()}.json")
        path.write_bytes(files[0].read_bytes())
        return path.unlink
    if kind == "rename":
        path = rng.choice(files)
        new = path.with_name(f"{rng.randrange(10, 99):06d}{path.name[6:]}")
        path.rename(new)
        return lambda: new.rename(path)
    with Store(root) as store:
        rows = store.db.execute("SELECT * FROM record ORDER BY sequence").fetchall()
        row = rng.choice(rows)
        how = rng.choice(("DELETE FROM record WHERE sequence = ?", "body", "signature", "sequence"))
        if how.startswith("DELETE"):
            store.db.execute(how, (row["sequence"],))
        elif how == "sequence":
            store.db.execute("UPDATE record SET sequence = 99 WHERE sequence = ?", (row["sequence"],))
        else:
            store.db.execute(
                f"UPDATE record SET {how} = ? WHERE sequence = ?", (mutate(row[how], rng), row["sequence"])
            )

    def undo():
        with Store(root) as store:
            store.db.execute("DELETE FROM record WHERE sequence IN (?, 99)", (row["sequence"],))
            store.db.execute("INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?)", tuple(row))

    return undo


def test_an_export_does_not_go_over_the_ledger(tmp_path):
    root = made_store(tmp_path / "store")
    for out in (root / "ledger.sqlite", tmp_path / "x" / ".." / "store" / "policy.yaml", root / "new.json"):
        result = curerec("request", "export", "--store", root, "--out", out)
        assert result.code == 2 and "inside of the store" in result.err
    assert not (root / "new.json").exists() and not audit(root).faults


def test_a_rollback_and_a_shredding_are_in_the_chain(tmp_path):
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        run(store, stand(), retrain=True)
        maintain.rollback(store)
        name = store.ledger.add(users(1))[0]
        run(store, stand())
        maintain.shred(store, name)
        assert [one.action for one in store.links()] == ["init", "retrain", "rollback", "deletion", "shred"]
    found = audit(root)
    assert not found.faults
