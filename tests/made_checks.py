"""jaxtyping's checks, made once for every function that is written down, however often it is defined.

A test calls a few of them thousands of times, with arrays that differ in their numbers alone, and a check
takes as long as a pass of a tiny model. So within a test the first calls of each function are checked, and of
those after them one in so many.
"""

from __future__ import annotations

import collections
import functools
import importlib
import inspect
import types
from collections.abc import Callable
from typing import Any

import jaxtyping

#: Imported before the hook is there, with all that they import.
LIBRARIES = (
    "beartype.door",
    "peft",
    "pydantic",
    "scipy.stats",
    "sklearn.metrics",
    "transformers.modeling_utils",
)

_jaxtyped = jaxtyping.jaxtyped
_MADE: dict[Any, Callable[..., Any]] = {}
#: Calls of a function that a test has checked, and then one in as many; and how often each was called.
OFTEN = 20
_CALLS: collections.Counter[types.CodeType] = collections.Counter()


def forget_calls() -> None:
    """Check the next calls of every function again."""
    _CALLS.clear()


def install(modules: list[str], typechecker: str) -> None:
    """Check arguments and results of all functions of modules that are not imported yet.

    jaxtyping's hook writes ``@jaxtyping.jaxtyped(...)`` above every function, which then makes its checks
    anew whenever a ``def`` is run. That takes longer than a pass of a tiny model, and the hooks of a pass are
    defined in it.

    While it imports a module the hook takes bytecode from files of its own, also of whatever is imported for
    the first time from in there: torch and transformers would be compiled from source by every process of
    the tests, which takes longer than the rest of their imports.
    """
    for name in LIBRARIES:
        importlib.import_module(name)
    jaxtyping.jaxtyped = once
    jaxtyping.install_import_hook(modules, typechecker)


def once(*, typechecker: Any) -> Callable[[Any], Any]:
    """``jaxtyped`` that makes the checks of a function inside a function the first time alone."""
    make = _jaxtyped(typechecker=typechecker)

    def decorate(checked: Any) -> Any:
        if not isinstance(checked, types.FunctionType):
            return make(checked)
        if "<locals>" in checked.__qualname__:
            key = (checked.__module__, checked.__code__, *checked.__annotations__.items())
            if key not in _MADE:
                _MADE[key] = make(_stand_in(checked))
            check = functools.partial(_MADE[key], checked)
        else:
            check = make(checked)

        @functools.wraps(checked)
        def wrapped(*args: Any, **named: Any) -> Any:
            _CALLS[checked.__code__] += 1
            n = _CALLS[checked.__code__]
            return (checked if n > OFTEN and n % OFTEN else check)(*args, **named)

        return wrapped

    return decorate


def _call(function: Any, /, *args: Any, **named: Any) -> Any:
    return function(*args, **named)


def _stand_in(like: types.FunctionType) -> types.FunctionType:
    """A function with the signature of another that calls what it is given first."""
    made = types.FunctionType(_call.__code__, like.__globals__)  # names in annotations are looked up in them
    first = inspect.Parameter("_function", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(like)
    made.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])
    made.__name__, made.__qualname__, made.__module__ = like.__name__, like.__qualname__, like.__module__
    return made
