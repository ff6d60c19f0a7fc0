"""Linear maps as differentiable functions: the backward of y = A x is Aᵀ, and that of Aᵀ is A."""
# torch.autograd.Function leaves its arguments untyped.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, operator: Operator, _transpose: Operator) -> Tensor:
        return operator(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        _, ctx.operator, ctx.transpose = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return linear(gradients[0], ctx.transpose, ctx.operator), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return linear(tangents[0], ctx.operator, ctx.transpose)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:  # noqa: ARG004
        x, operator, transpose = args
        return linear(x.movedim(in_dims[0], 0), operator, transpose), 0


def linear(x: Tensor, operator: Operator, transpose: Operator) -> Tensor:
    """A x, differentiable any number of times, in reverse and forward mode and under ``vmap``.

    Args:
        x: the argument, batched over its leading axes.
        operator: the map A; it need not be differentiable itself.
        transpose: its exact transpose for the Euclidean inner products.
    """
    return _Linear.apply(x, operator, transpose)  # pyright: ignore[reportReturnType]
