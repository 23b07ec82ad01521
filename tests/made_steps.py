"""What happens inside the steps of an update, noted step by step."""

from __future__ import annotations

import pytest

from curerec.methods import loop


class Steps:
    """Watches the steps that methods take from now on.

    Attributes:
        noted: of each step, what :meth:`note` was told while its direction was worked out.
        inside: whether that is so now.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.noted: list[list[str]] = []
        self.inside = False
        self._plain = loop.optimise
        monkeypatch.setattr(loop, "optimise", self._optimise)

    def note(self, what: str) -> None:
        """Something happened; outside of a step it does not count."""
        if self.inside:
            self.noted[-1].append(what)

    def _optimise(self, params, steps, gradients, *args, **options):
        def watched(step):
            self.noted.append([])
            self.inside = True
            try:
                gradients(step)
            finally:
                self.inside = False

        return self._plain(params, steps, watched, *args, **options)
