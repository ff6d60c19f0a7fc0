"""Where products may have few digits, and where they may not."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

_Self = TypeVar("_Self")
_Result = TypeVar("_Result")
_Others = ParamSpec("_Others")
_Method = Callable[Concatenate[_Self, Tensor, _Others], _Result]


def full_precision(
    method: _Method[_Self, _Others, _Result],
) -> _Method[_Self, _Others, _Result]:
    """A method on tensors, the first of them given first, whose products autocast leaves alone."""

    @wraps(method)
    def alone(self: _Self, x: Tensor, *others: _Others.args, **named: _Others.kwargs) -> _Result:
        with torch.autocast(x.device.type, enabled=False):
            return method(self, x, *others, **named)

    return alone


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 faster than those of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older torch has none
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
