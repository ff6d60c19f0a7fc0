"""Between torch tensors of real coefficients and the packed complex arrays of ducc0."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics


def threads() -> int:
    """Threads ducc0 may use: as many as torch does."""
    return torch.get_num_threads()


def band_limit(a: Tensor) -> int:
    """Band limit of coefficients of shape (..., n)."""
    return harmonics.band_limit(a.shape[-1])


def components(x: NDArray[Any], spin: int) -> NDArray[Any]:
    """Arrays (fields, 1, …) as (fields/c, c, …) of c = 1 + spin components each, without a copy."""
    return x.reshape(-1, 1 + spin, *x.shape[2:])


def pack(a: Tensor) -> NDArray[np.complexfloating]:
    """Real coefficients (..., n) to ducc0's (batch, 1, n_packed)."""
    packed = harmonics.to_healpy(a.detach().cpu().reshape(-1, a.shape[-1]))
    return packed.unsqueeze(1).numpy()


def unpack(alm: NDArray[np.complexfloating], like: Tensor, trailing: int) -> Tensor:
    """ducc0's (batch, 1, n_packed) to real coefficients, batch axes and device from ``like``.

    Args:
        alm: packed coefficients.
        like: the values they were made from.
        trailing: number of trailing axes of ``like`` that make one field.
    """
    a = harmonics.from_healpy(torch.from_numpy(alm).squeeze(1))
    batch = like.shape[: like.ndim - trailing]
    return a.reshape(*batch, a.shape[-1]).to(like.device)


def empty(maps: NDArray[np.floating], lmax: int) -> NDArray[np.complexfloating]:
    """Room for the packed coefficients of maps (batch, 1, *shape), at their precision."""
    dtype = np.complex64 if maps.dtype == np.float32 else np.complex128
    return np.empty((len(maps), 1, (lmax + 1) * (lmax + 2) // 2), dtype=dtype)


def to_maps(values: Tensor, shape: tuple[int, ...]) -> NDArray[np.floating]:
    """Values (..., *shape) to a contiguous array (batch, 1, *shape) on the CPU."""
    return values.detach().cpu().contiguous().reshape(-1, 1, *shape).numpy()


def empty_maps(packed: NDArray[np.complexfloating], shape: tuple[int, ...]) -> NDArray[np.floating]:
    """Room for the maps (batch, 1, *shape) of packed coefficients, at their precision."""
    dtype = np.float32 if packed.dtype == np.complex64 else np.float64
    return np.empty((len(packed), 1, *shape), dtype=dtype)


def from_maps(maps: NDArray[np.floating], like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An array (batch, 1, *shape) to values, batch axes and device from the coefficients."""
    return torch.from_numpy(maps).reshape(*like.shape[:-1], *shape).to(like.device)
