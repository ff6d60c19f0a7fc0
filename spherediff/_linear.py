"""Linear maps: as differentiable functions, and their inverses by conjugate gradients.

The backward of y = A x is Aᵀ, and that of Aᵀ is A.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: Operator, transpose: Operator) -> Tensor:
        ctx.operator, ctx.transpose = operator, transpose
        return operator(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return linear(gradients[0], ctx.transpose, ctx.operator), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return linear(tangents[0], ctx.operator, ctx.transpose)


class _Transformable(_Linear):
    """The same for ``torch.func``, whose form of a function costs 0.1 ms more in each call."""

    @staticmethod
    def forward(x: Tensor, operator: Operator, _: Operator) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return operator(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        _, ctx.operator, ctx.transpose = inputs

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
    transformed = torch._C._are_functorch_transforms_active()
    function = _Transformable if transformed else _Linear
    return function.apply(x, operator, transpose)  # pyright: ignore[reportReturnType]


class Solution(NamedTuple):
    """What :func:`conjugate_gradients` found.

    Attributes:
        solution: x, shape (*batch, n).
        residual: ‖b − A x‖/‖b‖ of each system, shape (*batch,); NaN if it overflowed.
        iterations: number of iterations.
    """

    solution: Tensor
    residual: Tensor
    iterations: int


def conjugate_gradients(
    operator: Operator,
    b: Tensor,
    tolerance: float | Tensor,
    max_iterations: int,
    scale: float = 0.0,
    preconditioner: Operator | None = None,
) -> Solution:
    """Solve A x = b for every system of the batch at once.

    A system that reaches its tolerance stays as it is: its solution does not depend on the others.
    Each is solved in units of its own, a power of two, so that the squares of its values neither
    overflow nor vanish.

    Args:
        operator: a symmetric positive definite A, (*batch, n) → (*batch, n).
        b: right-hand sides, shape (*batch, n).
        tolerance: relative residual ‖b − A x‖/‖b‖ at which a system counts as solved; a tensor of
            shape (*batch, 1) has one for each.
        max_iterations: largest number of iterations.
        scale: the iteration starts from ``scale`` times b, by default from zero.
        preconditioner: a symmetric positive definite approximation of A⁻¹, by default the identity.
    """
    precondition = preconditioner or (lambda r: r)
    unit = _magnitude(b)
    b = b / unit
    target = tolerance * b.norm(dim=-1, keepdim=True)
    x = scale * b
    residual = b - operator(x)
    direction = improved = precondition(residual)
    power = (residual * improved).sum(-1, keepdim=True)
    iterations = 0
    while iterations < max_iterations:
        unsolved = ~(residual.norm(dim=-1, keepdim=True) <= target)  # NaN is none
        if not unsolved.any():
            break
        image = operator(direction)
        step = unsolved * _quotient(power, (direction * image).sum(-1, keepdim=True))
        x = x + step * direction
        residual = residual - step * image
        improved = precondition(residual)
        previous, power = power, (residual * improved).sum(-1, keepdim=True)
        direction = improved + _quotient(power, previous) * direction
        iterations += 1
    remainder = b - operator(x)
    return Solution(unit * x, _quotient(remainder.norm(dim=-1), b.norm(dim=-1)), iterations)


def _magnitude(b: Tensor) -> Tensor:
    """The power of two next below the largest value of each system, 1 for zeros; (*batch, 1)."""
    largest = b.abs().amax(-1, keepdim=True)
    mantissa, _ = torch.frexp(largest)  # from ½ to 1
    return torch.where(largest == 0, 1.0, largest / (2 * mantissa))


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, 0 where the denominator is: a system that is solved already stays as it is."""
    return torch.where(denominator <= 0, 0.0, numerator / denominator)
