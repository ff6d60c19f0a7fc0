"""A second device for machines that have none: it computes on the CPU and refuses to mix.

On a graphics card an operation between its tensors and those of the CPU fails, and so does a look
at its memory from numpy.  Whether a program moves every tensor where it belongs can be seen without
a card: within :func:`second_device` tensors of device ``"meta"`` hold a tensor of the CPU, with
which every operation is carried out, and behave in all other ways as those of another device do.
Numbers without a dimension may come from the CPU, and so may indices, as on a card.

torch has ``"meta"`` for tensors without data; it is the only device besides the CPU that every
build of it can differentiate on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

SECOND = torch.device("meta")

_aten = torch.ops.aten
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default,
             _aten._index_put_impl_.default}  # fmt: skip


class _There(Tensor):
    """A tensor of the second device."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        there = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=SECOND,
            requires_grad=here.requires_grad,
        )
        there.here = here
        return there

    def __repr__(self) -> str:
        return f"_There({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {})


def _carried_out(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, on the inner tensors; its result is where its arguments are."""
    target = kwargs.get("device")
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = [isinstance(x, _There) for x in tensors]
    if any(x.device == SECOND and not inside for x, inside in zip(tensors, there, strict=True)):
        raise NotImplementedError(f"{func} has an argument that torch made without data")
    to_other = func in (_aten._to_copy.default, _aten.copy_.default)
    if any(there) and not all(there) and not to_other:
        strangers = [x for x in _may_not_be_here(func, args, kwargs) if x.ndim]
        if strangers:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices in "
                f"{func}, one of shape {tuple(strangers[0].shape)} on the CPU"
            )
    if func is _aten._efficientzerotensor.default:  # a tangent that has no memory at all
        func = _aten.zeros.default
    moved = dict(kwargs)
    if target is not None:
        moved["device"] = torch.device("cpu")
    out = func(*tree_map(_inner, args), **tree_map(_inner, moved))
    stays = any(there) if target is None else torch.device(target) == SECOND
    if func is _aten.copy_.default:
        return args[0]
    if not stays:
        return out
    wrapped = tree_map(lambda x: _There(x) if isinstance(x, Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if all(there) else wrapped


def _may_not_be_here(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensors of the CPU among the arguments, other than indices."""
    if func in _INDEXING:
        args = (args[0], *args[2:])
    flat = tree_flatten((args, kwargs))[0]
    return [x for x in flat if isinstance(x, Tensor) and not isinstance(x, _There)]


def _inner(x: Any) -> Any:
    return x.here if isinstance(x, _There) else x


class _Factories(TorchDispatchMode):
    """Tensors that are made on the second device, or brought there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and torch.device(device) == SECOND:
            return _carried_out(func, args, kwargs)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """What torch does in C++ without asking."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.tolist and isinstance(args[0], _There):
            return args[0].here.tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = tree_map(_as_index, args[1], is_leaf=lambda x: isinstance(x, list))
            args = (args[0], index, *args[2:])
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == SECOND:
            return torch.tensor(*args, **kwargs | {"device": "cpu"}).to(SECOND)
        return func(*args, **kwargs)


class _Autocast(torch.autocast):
    """Products of the second device keep the precision of their arguments."""

    def __init__(self, device_type: str, **options: Any) -> None:
        super().__init__("cpu" if device_type == SECOND.type else device_type, **options)


def _as_index(x: Any) -> Any:
    return torch.tensor(x, dtype=torch.int64) if isinstance(x, list) else x


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The device, for as long as it is there."""
    with _Functions(), _Factories(), patch("torch.autocast", _Autocast):
        yield SECOND
