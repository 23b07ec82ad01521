"""Runs in a process of its own under ``faults.c``: a run, or an addition, with its n-th system call failing.

Called as ``python made_faults.py FOLDER STRIDE``; prints counts as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "requests")]

import made_crash  # noqa: E402
import made_store  # noqa: E402

from curerec.errors import StorageError  # noqa: E402
from curerec.requests.store import Store  # noqa: E402

LIBRARY = ctypes.CDLL(None)
FINE, REFUSED, OTHER = 0, 3, 4


def armed(nth: int, number: int, work: Callable[[], None]) -> int:
    """Do something in a fork whose n-th call fails; how it ended."""
    pid = os.fork()
    if not pid:
        code = OTHER
        try:
            LIBRARY.fault_arm(ctypes.c_long(nth), number)
            work()
            code = FINE
        except StorageError:
            code = REFUSED
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            LIBRARY.fault_arm(ctypes.c_long(-1), 0)
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def counted(work: Callable[[], None]) -> int:
    """Calls of an undisturbed one."""
    LIBRARY.fault_arm(ctypes.c_long(0), 0)
    work()
    seen = LIBRARY.fault_seen()
    LIBRARY.fault_arm(ctypes.c_long(-1), 0)
    return seen


def add(root: Path) -> None:
    """Take one request in."""
    with Store(root) as store:
        store.ledger.add(made_store.users(7))


def main(folder: Path, stride: int) -> dict[str, int]:
    """Every ``stride``-th call of a run and of an addition, with each error."""
    root = made_crash.template(folder)
    there = folder / "store"
    wanted = made_crash.finished(made_crash.copy(root, folder / "undisturbed"))
    calls = counted(lambda: made_crash.run_once(made_crash.copy(root, folder / "counted")))
    found: Counter[str] = Counter(calls=calls)
    for number in made_crash.FAULTS:
        for nth in range(1 + number % stride, calls + 1, stride):
            made_crash.copy(root, there)
            code = armed(nth, number, lambda: made_crash.run_once(there))
            assert code in (FINE, REFUSED), (errno.errorcode[number], nth, code)
            found["refused" if code == REFUSED else "went on"] += 1
            made_crash.whole(there)
            assert made_crash.finished(there) == wanted, (errno.errorcode[number], nth)
    adding = counted(lambda: add(made_crash.copy(root, folder / "counted")))
    for number in made_crash.FAULTS:
        for nth in range(1, adding + 1, max(1, stride // 10)):
            made_crash.copy(root, there)
            code = armed(nth, number, lambda: add(there))
            assert code in (FINE, REFUSED), (errno.errorcode[number], nth, code)
            with Store(there) as store:
                open_ = store.ledger.counts()["open"]
                assert open_ == 3 if code == FINE else open_ in (2, 3)
                store.ledger.add(made_store.users(7))
                assert store.ledger.counts()["open"] == 3
            found["additions"] += 1
    return dict(found)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
