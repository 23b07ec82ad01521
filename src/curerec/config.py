"""Configurations: pydantic models that refuse unknown keys, read from YAML, written back resolved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from curerec.errors import ConfigError

C = TypeVar("C", bound="Strict")
#: Torch and SQLite take 64 bits at most, of seeds derived from one as well; JSON holds these exactly.
MAX_SEED = 2**53 - 1


class Strict(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error, not a silent default.

    A part that is given as a mapping is the field's default with these values put in, key by key: that of
    ``cure.update`` forgets by another loss than an update by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    #: Fields of later versions, left out of what is written while they are None: digests of earlier
    #: configurations, which name cached models and benchmark cells, must not change.
    added: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        parts = {
            name: merged(field.default.model_dump(), values[name])
            for name, field in cls.model_fields.items()
            if isinstance(field.default, BaseModel) and isinstance(values.get(name), Mapping)
        }
        return {**values, **parts}

    def idle(self) -> str | None:
        """What is given and could do nothing where it stands, with what to write instead; None: all acts."""
        return None

    @model_validator(mode="after")
    def _acts(self, info: ValidationInfo) -> Self:
        tried = info.context is not None and info.context.get("tried", False)
        if not tried and (said := self.idle()):
            raise ValueError(said)
        return self

    @model_serializer(mode="wrap")
    def _without_added(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = written(self)
        return {k: v for k, v in values.items() if k not in self.added or v is not None}

    @property
    def digest(self) -> str:
        """sha256 of the resolved configuration, keys sorted."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def parse(kind: type[C], values: Any, *, where: str, tried: bool = False) -> C:
    """A configuration from plain values.

    Args:
        kind: of configuration.
        values: by key.
        where: for messages.
        tried: a point of a search's grid, whose values are taken in every combination: what cannot act at
            some of them is no mistake there.

    Raises:
        ConfigError: naming the key and what is wrong with it, never the value's surroundings.
    """
    if not isinstance(values, dict):
        raise ConfigError("is not a mapping of keys to values", where=where, mend="Write `key: value` lines")
    try:
        return kind.model_validate(values, context={"tried": tried})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, f['loc'])) or 'file'}: {f['msg']}"
            for f in error.errors(include_input=False)[:3]
        )
        raise ConfigError(
            f"does not fit ({faults})", where=where, mend=f"Known keys: {', '.join(kind.model_fields)}"
        ) from None


def read_yaml(kind: type[C], path: str | Path) -> C:
    """A configuration from a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit.
    """
    return parse(kind, values_in(path), where=str(path))


class _TwiceError(ValueError):
    """A key that a mapping has twice."""


class _Once(yaml.SafeLoader):
    """Values only, and no key twice: of two ``split:`` YAML would keep the last and drop the first unsaid."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, not where values are made: merging (`<<`) puts the keys of others into a mapping later.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
            if key.value in seen:
                raise _TwiceError(f"has the key {key.value} twice, row {key.start_mark.line + 1}")
            seen.add(key.value)
        return node


def values_in(path: str | Path) -> Any:
    """What a YAML file holds (safe loader: values only); an empty file is a mapping without keys.

    Raises:
        ConfigError: the file is missing, is not YAML, or has a key twice.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Once)
    except OSError as error:
        raise ConfigError(
            f"cannot be read ({error.strerror})", where=str(path), mend="Give a YAML file"
        ) from None
    except _TwiceError as error:
        raise ConfigError(str(error), where=str(path), mend="Write what belongs under it once") from None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: no UTF-8, or a date that is none
        raise ConfigError("is not YAML", where=str(path), mend="Write `key: value` lines") from None
    return values or {}


def merged(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with the values of ``change`` put in.

    Example:
        >>> merged({"split": {"train": 1, "seed": 0}}, {"split": {"train": 2}})
        {'split': {'train': 2, 'seed': 0}}
    """
    out = dict(values)
    for key, value in change.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out
