"""Checks of functions that are defined again and again: as strict as those of any other function."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
from jaxtyping import TypeCheckError

import made_checks

MODULE = '''
from __future__ import annotations
from collections.abc import Iterator
from contextlib import contextmanager
import numpy as np
from jaxtyping import Float64

def adding(shift: float):
    def add(x: Float64[np.ndarray, "n"], y: Float64[np.ndarray, "n"], *more: int, by: int = 1) -> str:
        """Sum."""
        return "none" if by else x + y + shift
    return add

def shifting(shift: float):
    def shifted(x: Float64[np.ndarray, "n"], by: float = 0.0, /, *more: int, twice: bool = False):
        return x + shift + by + sum(more) + twice
    return shifted

def inside(told: list[str]):
    @contextmanager
    def opened(name: str) -> Iterator[str]:
        told.append(name)
        yield name
    class Kept:
        def __init__(self, name: str) -> None:
            self.name = name
        @property
        def of(self) -> int:
            return self.name
    return opened, Kept
'''


@pytest.fixture
def defined(tmp_path, monkeypatch):
    """A module that the import hook has checked."""
    (tmp_path / "made_defined.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    made_checks.install(["made_defined"], "beartype.beartype")
    yield importlib.import_module("made_defined")
    del sys.modules["made_defined"]


def test_each_definition_is_called_by_its_own_values(defined):
    one, two = defined.shifting(1.0), defined.shifting(2.0)
    x = np.zeros(2)
    assert one(x).tolist() == [1, 1] and two(x, 1.0, 2, 3, twice=True).tolist() == [9, 9]
    assert one(x).tolist() == [1, 1] and one.__name__ == "shifted"
    first, second = [], []
    for told in (first, second):
        opened, _ = defined.inside(told)
        with opened("a") as name:
            assert name == "a"
    assert first == second == ["a"]


def test_checks_are_made_once_for_all_definitions(defined, monkeypatch):
    made = {}
    monkeypatch.setattr(made_checks, "_MADE", made)
    for shift in range(3):
        defined.shifting(float(shift))(np.zeros(2))
    assert len(made) == 1


def test_of_many_calls_one_in_so_many_is_checked(defined):
    add, x = defined.adding(0.0), np.zeros(3)
    refused = []
    for call in range(1, 4 * made_checks.OFTEN + 1):
        try:
            add(x, np.zeros(1))
        except TypeCheckError:
            refused.append(call)
    every = made_checks.OFTEN
    assert refused == [*range(1, every + 1), 2 * every, 3 * every, 4 * every]
    made_checks.forget_calls()
    with pytest.raises(TypeCheckError):
        add(x, np.zeros(1))


def test_shapes_and_types_are_checked_every_time(defined):
    for shift in (0.0, 1.0):
        add, x = defined.adding(shift), np.zeros(3)
        assert add(x, x) == "none"
        with pytest.raises(TypeCheckError, match=r"(?s)parameters of made_defined\.adding.*add"):
            add(x, np.zeros(4))
        with pytest.raises(TypeCheckError, match="parameters"):
            add(x, x, "1")
        with pytest.raises(TypeCheckError, match="parameters"):
            add(x, x, by="1")
        with pytest.raises(TypeCheckError, match="return value"):
            add(x, x, by=0)
        with pytest.raises(TypeError, match="missing a required argument: 'y'"):
            add(x, by=0)
        opened, kept = defined.inside([])
        with pytest.raises(TypeCheckError, match="parameters"), opened(1):
            pass
        with pytest.raises(TypeCheckError, match="parameters"):
            kept(1)
        with pytest.raises(TypeCheckError, match="return value"):
            _ = kept("a").of


def test_libraries_are_there_before_the_hook():
    """What is first imported inside a checked module is compiled from source, by every process."""
    importlib.import_module("curerec.judge")
    specs = {name: getattr(module, "__spec__", None) for name, module in list(sys.modules.items())}
    hooked = {name for name, spec in specs.items() if "jaxtyping" in str(getattr(spec, "cached", ""))}
    assert any(name.startswith("curerec.") for name in hooked)  # these it is for
    heavy = ("torch", "transformers", "peft", "scipy", "sklearn", "sympy", "accelerate", "numpy")
    assert not {name for name in hooked if name.split(".")[0] in heavy}
