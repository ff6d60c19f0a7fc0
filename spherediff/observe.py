"""Linear observations of a field: y = Hx + noise.

x are real orthonormal coefficients, (n,) or (channels, n); H has m rows and is applied together
with its exact transpose, ⟨Hx, y⟩ = ⟨x, Hᵀy⟩, never stored.  With S_c the synthesis of channel c on
a grid, w the weights of a region times the areas of the points, b_ℓ a gain per degree:

    Values         (Hx)_j = (S_c x)_j                  at the points where a mask is true
    Component      (Hx)_j = (S (E, B))_j               u or v of a vector field, likewise
    Means          (Hx)_k = Σ_j w_kj (S_c x)_j / Σ_j w_kj
    Averaged       (Hx)_k = Σ_q w_kq (H'x)_kq          of as many numbers for each k
    Coefficients   (Hx)_i = x_i                        of selected coefficients
    Filtered       Hx = H'(b x)                        a beam or another smoothing before H'
    Dense          Hx = H'x                            by a matrix
    Stacked        Hx = (H'x, H''x, …)

A subclass of :class:`Operator` has ``event_shape``, ``size``, H and Hᵀ on plain tensors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spherediff import harmonics
from spherediff._linear import linear
from spherediff.grids import Grid
from spherediff.vector import VectorTransform
from spherediff.zonal import Places

_ROWS = 64  # of a matrix made at once


class Operator(ABC):
    """A linear map H of states and its exact transpose.

    Both are differentiable any number of times, also under ``torch.func``, batched over leading
    axes, in float32 and float64.

    Args:
        event_shape: shape of a state, (n,) or (channels, n) with n = (lmax+1)².
        size: m, number of numbers observed.

    Raises:
        ValueError: the shape has neither one nor two axes, or n is no square.
    """

    def __init__(self, event_shape: Sequence[int], size: int) -> None:
        self.event_shape = tuple(event_shape)
        self.size = size
        if len(self.event_shape) not in (1, 2):
            raise ValueError(
                f"expected states of shape (n,) or (channels, n), got {self.event_shape}"
            )
        self.lmax = harmonics.band_limit(self.event_shape[-1])

    @abstractmethod
    def _apply(self, x: Tensor) -> Tensor:
        """H on plain tensors: (*batch, *event_shape) → (*batch, m)."""

    @abstractmethod
    def _transpose(self, y: Tensor) -> Tensor:
        """Hᵀ on plain tensors: (*batch, m) → (*batch, *event_shape)."""

    def places(self, weight: Tensor) -> list[Places] | None:
        """The places that it gives values at, of a single field, with weights of shape (m,).

        None if it gives something else than values of a field, or of a smoothed one.
        """
        return None

    def __call__(self, x: Tensor) -> Tensor:
        """H x: (*batch, *event_shape) → (*batch, m).

        Raises:
            TypeError: ``x`` is not float32 or float64.
            ValueError: its trailing axes are not ``event_shape``.
        """
        _require(x, self.event_shape, "coefficients")
        return linear(x, self._apply, self._transpose)

    def adjoint(self, y: Tensor) -> Tensor:
        """Hᵀ y: (*batch, m) → (*batch, *event_shape).

        Raises:
            TypeError: ``y`` is not float32 or float64.
            ValueError: its last axis is not m.
        """
        _require(y, (self.size,), "observed numbers")
        return linear(y, self._transpose, self._apply)


class _OnGrid(Operator):
    """Something of the values of one channel on a grid."""

    def __init__(self, grid: Grid, event_shape: Sequence[int], channel: int, size: int) -> None:
        super().__init__(event_shape, size)
        channels = math.prod(self.event_shape[:-1])
        if not 0 <= channel < channels:
            raise ValueError(
                f"expected a channel from 0 to {channels - 1} of states of shape "
                f"{self.event_shape}, got {channel}"
            )
        self.grid, self.channel = grid, channel

    def _values(self, x: Tensor) -> Tensor:
        """S_c x, the axes of the grid flattened."""
        one = x if len(self.event_shape) == 1 else x[..., self.channel, :]
        return self.grid.synthesis(one).flatten(-len(self.grid.shape))

    def _values_transpose(self, flat: Tensor) -> Tensor:
        """S_cᵀ of flattened values."""
        one = self.grid.adjoint(flat.unflatten(-1, self.grid.shape), self.lmax)
        if len(self.event_shape) == 1:
            return one
        x = one.new_zeros(*one.shape[:-1], *self.event_shape)
        x[..., self.channel, :] = one
        return x


class Values(_OnGrid):
    """Values of one channel on a grid: stations, masked maps.

    Args:
        grid: where the field is observed.
        event_shape: shape of a state, (n,) or (channels, n).
        channel: which channel.
        mask: true where the value is observed, shape ``grid.shape``; everywhere if not given.
            The numbers are in the order of ``values[mask]``.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: a mask of another shape or without a true entry, or no such channel.
    """

    def __init__(
        self,
        grid: Grid,
        event_shape: Sequence[int],
        channel: int = 0,
        mask: Tensor | np.ndarray | None = None,
    ) -> None:
        if mask is None:
            mask = np.ones(grid.shape, dtype=bool)
        index = _selection(mask, grid.shape, "mask")
        super().__init__(grid, event_shape, channel, len(index))
        self._index = index

    def places(self, weight: Tensor) -> list[Places] | None:
        if len(self.event_shape) > 1:
            return None
        latitude, longitude, index = self.grid.latitude, self.grid.longitude, self._index.numpy()
        if len(self.grid.shape) == 2:
            nlat, nlon = self.grid.shape
            latitude, longitude = latitude.repeat(nlon), np.tile(longitude, nlat)
        one = torch.ones(self.lmax + 1, dtype=torch.float64)
        return [Places(latitude[index], longitude[index], weight.double(), one)]

    def _apply(self, x: Tensor) -> Tensor:
        return self._values(x).index_select(-1, self._index.to(x.device))

    def _transpose(self, y: Tensor) -> Tensor:
        flat = y.new_zeros(*y.shape[:-1], math.prod(self.grid.shape))
        return self._values_transpose(flat.index_copy(-1, self._index.to(y.device), y))


class Component(Operator):
    """Values of one component of a vector field on a grid (:mod:`spherediff.vector`).

    Args:
        grid: where the field is observed.
        event_shape: shape of a state, (channels, n).
        channels: those of E and of B.
        component: 0 for the eastward one, 1 for the northward one.
        mask: true where it is observed, shape ``grid.shape``; everywhere if not given.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: a mask of another shape or without a true entry, no such channels or component.
    """

    def __init__(
        self,
        grid: Grid,
        event_shape: Sequence[int],
        channels: tuple[int, int],
        component: int,
        mask: Tensor | np.ndarray | None = None,
    ) -> None:
        if mask is None:
            mask = np.ones(grid.shape, dtype=bool)
        index = _selection(mask, grid.shape, "mask")
        super().__init__(event_shape, len(index))
        count = self.event_shape[0] if len(self.event_shape) == 2 else 0
        if not all(0 <= c < count for c in channels) or component not in (0, 1):
            raise ValueError(
                f"expected two channels of states of shape {self.event_shape} and component 0 or "
                f"1, got channels {channels} and component {component}"
            )
        self.channels, self.component = list(channels), component
        self._transform, self._index = VectorTransform(grid), index

    def _apply(self, x: Tensor) -> Tensor:
        values = self._transform.synthesis(x[..., self.channels, :])
        flat = values.flatten(-len(self._transform.grid.shape))[..., self.component, :]
        return flat.index_select(-1, self._index.to(x.device))

    def _transpose(self, y: Tensor) -> Tensor:
        shape = self._transform.grid.shape
        flat = y.new_zeros(*y.shape[:-1], 2, math.prod(shape))
        flat[..., self.component, self._index.to(y.device)] = y
        x = y.new_zeros(*y.shape[:-1], *self.event_shape)
        x[..., self.channels, :] = self._transform.adjoint(flat.unflatten(-1, shape), self.lmax)
        return x


class Means(_OnGrid):
    """Weighted area means of one channel, of regions for example.

    Args:
        grid: where the weights are given; its quadrature is used.
        weights: weights ≥ 0, shape (m, *grid.shape), 0 and 1 for plain regions.  They are
            multiplied by ``grid.area_weights`` and scaled to sum to one each.
        event_shape: shape of a state, (n,) or (channels, n).
        channel: which channel.

    Raises:
        ValueError: weights of another shape, negative, not finite or all zero, a grid without
            quadrature, or no such channel.
    """

    def __init__(
        self, grid: Grid, weights: Tensor | np.ndarray, event_shape: Sequence[int], channel: int = 0
    ) -> None:
        w = torch.as_tensor(weights).double()
        if w.ndim == 0 or len(w) == 0 or tuple(w.shape[1:]) != grid.shape:
            raise ValueError(
                f"expected weights of shape (m, {', '.join(map(str, grid.shape))}) on {grid!r}, "
                f"got {tuple(w.shape)}"
            )
        bad = int((~(torch.isfinite(w) & (w >= 0))).sum())
        if bad:
            raise ValueError(
                f"weights must be finite and not negative; {bad} of {w.numel()} are not"
            )
        w = (w * grid.area_weights.to(w.device)).flatten(1)
        total = w.sum(1, keepdim=True)
        if (total == 0).any():
            empty = torch.nonzero(total[:, 0] == 0)[:, 0].tolist()
            raise ValueError(f"the weights of regions {empty} are zero everywhere: leave them out")
        super().__init__(grid, event_shape, channel, len(w))
        self._weights = w / total

    def _apply(self, x: Tensor) -> Tensor:
        return self._values(x) @ self._weights.to(x).T

    def _transpose(self, y: Tensor) -> Tensor:
        return self._values_transpose(y @ self._weights.to(y))


class Averaged(Operator):
    """Weighted sums of numbers that another operator gives, as many in each.

    Args:
        operator: H', which gives those of one sum after those of the other.
        weights: w, shape (m, number in a sum).

    Raises:
        ValueError: other weights than H' has numbers, or some that are not finite.
    """

    def __init__(self, operator: Operator, weights: Tensor | np.ndarray) -> None:
        w = torch.as_tensor(weights).double()
        if w.ndim != 2 or w.numel() != operator.size:
            raise ValueError(
                f"expected weights of shape (m, q) with m·q = {operator.size}, as many as there "
                f"are numbers, got {tuple(w.shape)}"
            )
        _count_bad(~torch.isfinite(w), "the weights must be finite", "leave such sums out")
        super().__init__(operator.event_shape, len(w))
        self.operator, self.weights = operator, w

    def _apply(self, x: Tensor) -> Tensor:
        values = self.operator(x).unflatten(-1, self.weights.shape)
        return torch.einsum("kq,...kq->...k", self.weights.to(values), values)

    def _transpose(self, y: Tensor) -> Tensor:
        return self.operator.adjoint((y[..., None] * self.weights.to(y)).flatten(-2))


class Coefficients(Operator):
    """Selected coefficients themselves.

    Args:
        selected: true for those observed, shape ``event_shape``; the numbers are in the order of
            ``x[selected]``.
        event_shape: shape of a state, (n,) or (channels, n).

    Raises:
        TypeError: ``selected`` is not boolean.
        ValueError: its shape is not ``event_shape``, or it has no true entry.
    """

    def __init__(self, selected: Tensor | np.ndarray, event_shape: Sequence[int]) -> None:
        index = _selection(selected, tuple(event_shape), "selection")
        super().__init__(event_shape, len(index))
        self._index = index

    @classmethod
    def up_to(cls, lmax: int, event_shape: Sequence[int]) -> Coefficients:
        """All degrees ℓ ≤ ``lmax`` of every channel.

        Raises:
            ValueError: ``lmax`` is negative or above the band limit of the state.
        """
        shape = tuple(event_shape)
        limit = harmonics.band_limit(shape[-1])
        if not 0 <= lmax <= limit:
            raise ValueError(f"expected lmax from 0 to {limit}, that of the state, got {lmax}")
        return cls((harmonics.degrees(limit) <= lmax).expand(shape), shape)

    @classmethod
    def channels(cls, channels: Iterable[int], event_shape: Sequence[int]) -> Coefficients:
        """All coefficients of some channels, in rising order of channel.

        Raises:
            ValueError: states without a channel axis, or no such channel.
        """
        shape, wanted = tuple(event_shape), sorted(set(channels))
        if len(shape) != 2 or not all(0 <= c < shape[0] for c in wanted):
            raise ValueError(
                f"expected states of shape (channels, n) and channels among them, got {shape} and "
                f"channels {wanted}"
            )
        selected = torch.zeros(shape, dtype=torch.bool)
        selected[wanted] = True
        return cls(selected, shape)

    def _apply(self, x: Tensor) -> Tensor:
        return x.flatten(-len(self.event_shape)).index_select(-1, self._index.to(x.device))

    def _transpose(self, y: Tensor) -> Tensor:
        flat = y.new_zeros(*y.shape[:-1], math.prod(self.event_shape))
        flat = flat.index_copy(-1, self._index.to(y.device), y)
        return flat.unflatten(-1, self.event_shape)


class Filtered(Operator):
    """An operator after multiplication by b_ℓ of each degree: a beam, a smoothing.

    Args:
        operator: what is observed of the filtered field.
        gain: b_ℓ, shape (lmax+1,), or (channels, lmax+1) for one of each channel.

    Raises:
        ValueError: another shape, or a gain that is not finite.
    """

    def __init__(self, operator: Operator, gain: Tensor | np.ndarray) -> None:
        super().__init__(operator.event_shape, operator.size)
        b = torch.as_tensor(gain).double()
        per_channel = (*self.event_shape[:-1], self.lmax + 1)
        if tuple(b.shape) not in ((self.lmax + 1,), per_channel):
            raise ValueError(
                f"expected a gain of shape {(self.lmax + 1,)} or {per_channel} for states of shape "
                f"{self.event_shape}, got {tuple(b.shape)}"
            )
        if not torch.isfinite(b).all():
            bad = int((~torch.isfinite(b)).sum())
            raise ValueError(f"the gain must be finite; {bad} of {b.numel()} numbers are not")
        self.operator, self.gain = operator, b

    def places(self, weight: Tensor) -> list[Places] | None:
        found = self.operator.places(weight)
        return found and [some._replace(gain=some.gain * self.gain) for some in found]

    def _apply(self, x: Tensor) -> Tensor:
        return self.operator(harmonics.expand(self.gain.to(x)) * x)

    def _transpose(self, y: Tensor) -> Tensor:
        return harmonics.expand(self.gain.to(y)) * self.operator.adjoint(y)


class Dense(Operator):
    """An operator as a matrix: the same numbers, quicker where it is applied again and again.

    Args:
        operator: of moderate size; m·n numbers are kept, float64.
    """

    def __init__(self, operator: Operator) -> None:
        super().__init__(operator.event_shape, operator.size)
        rows = [operator.adjoint(part) for part in torch.eye(self.size).double().split(_ROWS)]
        self.matrix = torch.cat(rows).flatten(1)

    def _apply(self, x: Tensor) -> Tensor:
        return x.flatten(-len(self.event_shape)) @ self.matrix.to(x).T

    def _transpose(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).unflatten(-1, self.event_shape)


class Stacked(Operator):
    """Several operators at once, their numbers one after the other.

    Args:
        operators: at least one, all for states of the same shape.

    Raises:
        ValueError: none, or states of different shapes.
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        shapes = sorted({operator.event_shape for operator in operators})
        if len(shapes) != 1:
            raise ValueError(
                "expected at least one operator, all for states of the same shape; found shapes "
                f"{shapes}"
            )
        super().__init__(shapes[0], sum(operator.size for operator in operators))
        self.operators = tuple(operators)

    def places(self, weight: Tensor) -> list[Places] | None:
        parts = weight.split([operator.size for operator in self.operators])
        pairs = zip(self.operators, parts, strict=True)
        found = [operator.places(part) for operator, part in pairs]
        return None if None in found else [one for some in found if some for one in some]

    def _apply(self, x: Tensor) -> Tensor:
        return torch.cat([operator(x) for operator in self.operators], -1)

    def _transpose(self, y: Tensor) -> Tensor:
        parts = y.split([operator.size for operator in self.operators], -1)
        x = self.operators[0].adjoint(parts[0])
        for operator, part in zip(self.operators[1:], parts[1:], strict=True):
            x = x + operator.adjoint(part)
        return x


@dataclass(frozen=True, eq=False, init=False)
class Observation:
    """Observed numbers y = Hx + ε with independent errors ε_j ~ N(0, N_j).

    Args:
        operator: H.
        values: y, shape (m,), float32 or float64, in the units of what H gives.
        noise_std: √N_j > 0, shape (m,), or one number for all.

    Raises:
        TypeError: values that are not float32 or float64.
        ValueError: shapes that do not fit, values that are not finite, or standard deviations
            that are not positive and finite; the message says how many.
    """

    operator: Operator
    values: Tensor
    noise_std: Tensor

    def __init__(
        self,
        operator: Operator,
        values: Tensor | np.ndarray,
        noise_std: Tensor | np.ndarray | float,
    ) -> None:
        y = torch.as_tensor(values)
        expected = (operator.size,)
        _require(y, expected, "observed values", batch=False)
        std = torch.as_tensor(noise_std).to(y)
        if std.ndim:
            _require(std, expected, "noise_std", batch=False)
        _count_bad(~torch.isfinite(y), "observed values must be finite", "leave them out of H")
        _count_bad(
            ~(torch.isfinite(std) & (std > 0)),
            "noise_std must be positive and finite",
            "leave out what is not observed; for all but exact values use a small positive number",
        )
        object.__setattr__(self, "operator", operator)
        object.__setattr__(self, "values", y)
        object.__setattr__(self, "noise_std", std.expand(expected))

    @property
    def noise_variance(self) -> Tensor:
        """N_j, shape (m,)."""
        return self.noise_std.square()


def gaussian_beam(fwhm: float, lmax: int) -> Tensor:
    """Gain b_ℓ = exp(−ℓ(ℓ+1) s²/2) of a Gaussian beam, s = fwhm/√(8 log 2).

    Args:
        fwhm: full width at half maximum in radians, ≥ 0.
        lmax: largest degree.

    Returns:
        float64, shape (lmax+1,).

    Raises:
        ValueError: a negative or infinite width, or a negative ``lmax``.
    """
    if not 0 <= fwhm < math.inf:
        raise ValueError(f"expected a beam width of at least 0 radians, got {fwhm}")
    harmonics.count(lmax)
    ell = torch.arange(lmax + 1, dtype=torch.float64)
    return torch.exp(-ell * (ell + 1) * fwhm**2 / (16 * math.log(2)))


def _selection(mask: Tensor | np.ndarray, shape: tuple[int, ...], what: str) -> Tensor:
    """Flat indices of the true entries."""
    chosen = torch.as_tensor(mask)
    if chosen.dtype != torch.bool:
        raise TypeError(f"expected a boolean {what}, got {chosen.dtype}")
    if tuple(chosen.shape) != shape:
        raise ValueError(f"expected a {what} of shape {shape}, got {tuple(chosen.shape)}")
    if not chosen.any():
        raise ValueError(f"the {what} has no true entry: nothing is observed")
    return torch.nonzero(chosen.flatten())[:, 0]


def _require(x: Tensor, trailing: tuple[int, ...], what: str, batch: bool = True) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected float32 or float64 {what}, got {x.dtype}; convert them first")
    found = tuple(x.shape[x.ndim - len(trailing) :]) if batch else tuple(x.shape)
    if found != trailing:
        shape = f"(..., {', '.join(map(str, trailing))})" if batch else f"{trailing}"
        raise ValueError(f"expected {what} of shape {shape}, got {tuple(x.shape)}")


def _count_bad(bad: Tensor, requirement: str, remedy: str) -> None:
    if bad.any():
        raise ValueError(f"{requirement}; {int(bad.sum())} of {bad.numel()} are not: {remedy}")
