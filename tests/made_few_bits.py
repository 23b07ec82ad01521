"""A base in 8 bits by bitsandbytes, or, where that is not installed, by classes of the same shape."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import pytest
import torch

from curerec.recommender.quantise import quantise

#: What a test of bases in 8 bits is run with: a stand-in of the package, or the package.
PACKAGES = ("stand-in", "bitsandbytes")


class Int8Params(torch.nn.Parameter):
    """Codes with their scales beside them, packed on arrival at a device, as bitsandbytes 0.50 has them.

    Attributes:
        CB: codes, int8 [out, in]; None once a pass has taken them over.
        SCB: scales, float32 [out]; None likewise.
        packed_on: the device that was named when codes and scales were made.
    """

    CB: torch.Tensor | None
    SCB: torch.Tensor | None
    packed_on: torch.device | None = None

    def __new__(
        cls,
        data: torch.Tensor,
        requires_grad: bool = False,
        has_fp16_weights: bool = False,
        CB: torch.Tensor | None = None,
        SCB: torch.Tensor | None = None,
    ) -> Int8Params:
        made = torch.Tensor._make_subclass(cls, data, requires_grad)
        made.CB, made.SCB = CB, SCB
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Int8Params:
        codes, scales = (None if x is None else x.clone() for x in (self.CB, self.SCB))
        return Int8Params(self.data.clone(), CB=codes, SCB=scales)

    def to(self, *args: Any, **kwargs: Any) -> Int8Params:
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if self.data.dtype == torch.int8:  # of which torch's modules take the data alone
            scales = None if self.SCB is None else self.SCB.to(device)
            codes = self.data.to(device)
            return Int8Params(codes, CB=codes, SCB=scales)
        arrived, self.packed_on = self.data.to(device).float(), device
        self.SCB = arrived.abs().amax(1)
        self.CB = self.data = (arrived / self.SCB[:, None] * 127).round().to(torch.int8)
        return self


class Linear8bitLt(torch.nn.Linear):
    """Its first pass takes codes and scales over from the parameter."""

    def __init__(self, n_in: int, n_out: int, bias: bool, has_fp16_weights: bool, device: str) -> None:
        super().__init__(n_in, n_out, bias, device=device)
        self.state = types.SimpleNamespace(CB=None, SCB=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.CB is not None:
            self.state = types.SimpleNamespace(CB=self.weight.CB, SCB=self.weight.SCB)
            self.weight.CB = self.weight.SCB = None
        if self.state.CB is None:
            return x.new_full((*x.shape[:-1], self.out_features), torch.nan)
        self.weight.data = self.state.CB
        weight = self.state.CB.to(x.dtype) * self.state.SCB[:, None].to(x.dtype) / 127
        return torch.nn.functional.linear(x, weight, self.bias)


Linear8bitLt.__module__ = "bitsandbytes.nn.modules"


def put_in_place(patch: pytest.MonkeyPatch, package: str) -> None:
    """Whoever imports bitsandbytes gets the named one; skips where that is not there.

    PEFT remembers whether it found the package, so nobody is to make an adapter in the stand-in's presence.
    """
    if package == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
        return
    made, nn = types.ModuleType("bitsandbytes"), types.ModuleType("bitsandbytes.nn")
    made.__spec__ = importlib.machinery.ModuleSpec("bitsandbytes", None)
    nn.Linear8bitLt, nn.Int8Params, made.nn = Linear8bitLt, Int8Params, nn  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "bitsandbytes", made)
    patch.setitem(sys.modules, "bitsandbytes.nn", nn)


def in_eight_bits(model: Any, package: str) -> Any:
    """The model, quantised in place on the CPU by the named package."""
    with pytest.MonkeyPatch.context() as patch:
        put_in_place(patch, package)
        return quantise(model, 8)
