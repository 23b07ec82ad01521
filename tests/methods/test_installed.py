"""Methods of other packages: found by entry points, held to the same contract."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from curerec.bench.recipe import Ask
from curerec.errors import ConfigError
from curerec.methods import METHODS, SHIPPED
from curerec.methods.installed import installed
from curerec.source import packages
from curerec.testing import methods as contract
from made_tasks import made_task

GUIDE = (Path(__file__).parents[2] / "docs" / "your-method.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
POINT = re.search(r"```toml\n\[.*?\]\n(.*?)```", GUIDE, re.DOTALL)[1].replace('"', "")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes the guide's package importable, as pip would install it."""

    def make(point=POINT, code=CODE[0]):
        about = tmp_path / "forgetful-1.2.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: forgetful\nVersion: 1.2\n")
        (about / "entry_points.txt").write_text(f"[curerec.methods]\n{point}")
        (tmp_path / "forgetful.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        return tmp_path

    yield make
    sys.modules.pop("forgetful", None)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_guide_s_method_is_found_and_keeps_to_the_contract(kind, package):
    package()
    ((name, (run, config)),) = installed(SHIPPED).items()
    assert name == "forgetful" and packages() == {"forgetful": "1.2"}
    short = config(max_steps=4, check_every=2, check_size=60, batch_size=32, max_auc_drop=1)
    task = made_task(kind)
    out = contract.check_original_unchanged(run, short, task)
    contract.check_outcome(out, "forgetful", task)
    contract.check_something_changed(out, task)
    contract.check_only_trainable_changed(out, task)
    contract.check_saves_and_loads(out, task)
    contract.check_deterministic(out, run(made_task(kind), short))
    contract.check_config(config, sys.modules["forgetful"].SEARCH)


BROKEN = {
    "a name that is taken": ("cure = forgetful:METHOD\n", CODE[0], "cure.*name already"),
    "no module": ("other = not_there:METHOD\n", CODE[0], "other of package forgetful: cannot be imported"),
    "a fault of its own": (POINT, "raise OSError('user 17')\n", r"cannot be imported \(OSError\)"),
    "the function alone": ("other = forgetful:forgetful\n", CODE[0], "not a function and its configuration"),
    "another class": (POINT, "METHOD = (print, dict)\n", "not a function and its configuration"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_method_is_told(case, package):
    point, code, says = BROKEN[case]
    package(point, code)
    with pytest.raises(ConfigError, match=says) as told:
        installed(SHIPPED)
    assert "user 17" not in str(told.value)


def test_all_are_those_that_ship_and_others_have_to_be_named(monkeypatch):
    """A benchmark must not grow by what else is installed."""
    monkeypatch.setattr("curerec.bench.recipe.RIVALS", (*SHIPPED[:-1], "forgetful"))
    assert set(Ask().chosen) == set(SHIPPED) - {"retrain"}
    assert Ask(methods=["npo", "forgetful"]).chosen == ("npo", "forgetful")
    assert "forgetful" in Ask(methods=["all", "forgetful"]).chosen
    assert set(METHODS) == set(SHIPPED)  # nothing is installed where these tests run


@pytest.mark.slow
def test_the_command_and_the_guide_s_checks_know_it(made_path, package, tmp_path):
    folder = package()
    env = os.environ | {"PYTHONPATH": str(folder), "CUREREC_CACHE": str(made_path.folder / "cache")}
    asked = ["--recommender", made_path.full, "--data", made_path.data, "--request", made_path.request]
    command = [
        sys.executable,
        "-c",
        "from curerec.cli import main; main()",
        "unlearn",
        *asked,
        "--out",
        tmp_path / "new",
    ]
    done = subprocess.run(
        [*map(str, command), "--method", "forgetful"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    record = (tmp_path / "new" / "record.json").read_text()
    assert '"method": "forgetful"' in record and '"forgetful": "1.2"' in record
    script = CODE[1].replace("runs/recommender", str(made_path.full)).replace("ml-100k", str(made_path.data))
    script = script.replace("request.csv", str(made_path.request))
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
