"""A batch that was begun: who goes on with it, with which of its stages, and who gives it up."""

from __future__ import annotations

import pytest
import yaml
from made_store import made_store, sound, stand, states, users

from curerec.errors import RefusedError, RequestError
from curerec.requests import maintain, policy
from curerec.requests.lock import runner
from curerec.requests.runner import run
from curerec.requests.store import Store


@pytest.fixture
def root(tmp_path):
    return made_store(tmp_path / "store")


def test_a_second_runner_is_refused(root):
    with Store(root) as store, runner(store.lock):
        assert maintain.status(store)["running"]
        with pytest.raises(RefusedError, match="another run"):
            run(store, stand())
    with Store(root) as store:
        assert not maintain.status(store)["running"]


def test_an_interrupted_stage_leaves_the_batch_to_the_next_run(root):
    with Store(root) as store:
        store.ledger.add(users(1))
        with pytest.raises(KeyboardInterrupt):
            run(store, stand(fail="groups", error=KeyboardInterrupt()))
        assert states(root)["running"] == 1
        store.ledger.add(users(2))  # comes in meanwhile and waits for the batch after
        engine = stand()
        done = run(store, engine)
        assert [len(one.requests) for one in done] == [1, 1] and all(one.committed for one in done)
        assert engine.calls[:3] == ["groups", "update", "verdict"]


def test_a_stage_that_refuses_holds_the_request(root):
    with Store(root) as store:
        store.ledger.add(users(1))
        error = RequestError("the request deletes all training data", where="request")
        assert not run(store, stand(fail="update", error=error))[0].committed
        assert states(root)["held"] == 1


def test_other_options_give_a_begun_batch_up(root):
    with Store(root) as store:
        store.ledger.add(users(1))
        with pytest.raises(KeyboardInterrupt):
            run(store, stand(fail="update", error=KeyboardInterrupt()))
        engine = stand()
        assert run(store, engine, seed=4)[0].committed and len(engine.calls) == 4
    sound(root)


@pytest.mark.parametrize("what", ["recipe", "keep_answers", "__version__", "source_digest"])
@pytest.mark.parametrize("held", [False, True])
def test_stages_of_other_settings_are_not_taken(root, monkeypatch, what, held):
    with Store(root) as store:
        store.ledger.add(users(1))
        if held:
            assert not run(store, stand(verified=False))[0].committed
        else:
            with pytest.raises(KeyboardInterrupt):
                run(store, stand(fail="verdict", error=KeyboardInterrupt()))
    if what == "__version__":  # an upgrade, whose method or verdict may be another
        monkeypatch.setattr(policy, what, "0.0.0+other")
    elif what == "source_digest":  # a checkout that was pulled: its version is still the same
        monkeypatch.setattr(policy, what, lambda: "0123456789ab")
    else:
        change = {"recipe": "quick"} if what == "recipe" else {"keep_answers": True}
        values = yaml.safe_load((root / "policy.yaml").read_text())
        (root / "policy.yaml").write_text(yaml.safe_dump(values | change))
    with Store(root) as store:
        engine = stand()
        assert run(store, engine)[0].committed and len(engine.calls) == 4
    sound(root)


def test_what_no_stage_depends_on_leaves_them_as_they_are(root):
    with Store(root) as store:
        store.ledger.add(users(1))
        assert not run(store, stand(verified=None))[0].committed
    values = yaml.safe_load((root / "policy.yaml").read_text())
    (root / "policy.yaml").write_text(yaml.safe_dump(values | {"accept_unjudged": True}))
    with Store(root) as store:
        engine = stand()
        assert run(store, engine)[0].committed and not engine.calls


def test_batches_that_no_run_takes_up_again_leave_no_adapter_behind(root):
    """Held ones that a new request joined, or whose requests were cancelled; a held retrain of none stays."""
    with Store(root) as store:
        names = []
        for number in range(3):
            names.append(store.ledger.add(users(number))[0])
            assert not run(store, stand(verified=None))[0].committed
        assert not run(store, stand(verified=None))[0].committed
        assert len(list((root / "work").iterdir())) == 1
        for name in names:
            maintain.cancel(store, name)
            assert not list((root / "work").iterdir())  # no run is of the others without the one cancelled
        run(store, stand())
        assert not list((root / "work").iterdir())
        engine = stand(auc_drop=0.5)
        assert not run(store, engine, retrain=True)[0].committed
        calls = len(engine.calls)
        assert not run(store, engine, retrain=True)[0].committed and len(engine.calls) == calls
    sound(root)
