"""One exception tree. A message says what is wrong, where, and how to mend it, and holds no user data.

The command turns every :class:`CurerecError` into one line on stderr and its ``exit_code``:
1 for a refusal (nothing is broken, but the request was not carried out or not verified),
2 for bad input.
"""

from __future__ import annotations


class CurerecError(Exception):
    """Base of all errors this package raises on purpose.

    Args:
        what: what is wrong, in one clause.
        where: file, row, option or stage it concerns.
        mend: what the reader can do about it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(self.__str__())

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.mend}" if self.mend else text


class DataError(CurerecError):
    """A ratings or titles file cannot be read as what it is said to be."""


class FetchError(CurerecError):
    """A data set or model could not be had from any of its sources, or did not match its digest."""


class RequestError(CurerecError):
    """A deletion request names what does not exist, nothing, or everything."""


class PromptError(CurerecError):
    """A prompt cannot be built (no answer token, title too long for the model, ...)."""


class ModelError(CurerecError):
    """A model, adapter or tokenizer cannot be loaded safely, or does not fit its base."""


class ConfigError(CurerecError):
    """A configuration holds an unknown key or a value out of range."""


class StorageError(CurerecError):
    """An artefact could not be written whole (full disk, no permission)."""


class RefusedError(CurerecError):
    """The input is sound but the result is not to be trusted or used (exit code 1)."""

    exit_code = 1
