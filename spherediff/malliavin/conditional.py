"""Conditional expectations E[δ | X_T = y] by local linear regression, in few dimensions.

Around y the values are fitted by a plane, with weights k_i = exp(−|x_i − y|²/2b²) in coordinates
in which the points have unit covariance.  The estimate is linear in the values, Σ_i l_i(y) δ_i,
its bias is O(b²) and its standard error √(Σ_i l_i² ε_i²) with the residuals ε_i of the fit
(Fan & Gijbels 1996, chapter 3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_PLACES_AT_ONCE = 64


class Estimate(NamedTuple):
    """A conditional expectation at some places, and its standard error, both (places, k)."""

    mean: Tensor
    standard_error: Tensor


def conditional_expectation(
    values: Tensor, given: Tensor, at: Tensor, *, bandwidth: float | None = None
) -> Estimate:
    """E[values | given = at].

    Args:
        values: shape (N, k).
        given: shape (N, d), d small: the number of samples needed grows as b^{−d}.
        at: places y, shape (places, d).
        bandwidth: b in units of the spread of ``given``; by default Silverman's
            (4/((d + 2)N))^{1/(d+4)}.

    Raises:
        ValueError: shapes that do not fit, or a place with too few samples around it.
    """
    (count, d), places = given.shape, len(at)
    if len(values) != count or at.shape != (places, d):
        raise ValueError(
            f"expected values (N, k), given (N, d) and at (places, d), got {tuple(values.shape)},"
            f" {tuple(given.shape)} and {tuple(at.shape)}"
        )
    bandwidth = (4 / ((d + 2) * count)) ** (1 / (d + 4)) if bandwidth is None else bandwidth
    scale = torch.linalg.cholesky(torch.cov(given.T).reshape(d, d)) * bandwidth
    x, y = (torch.linalg.solve_triangular(scale, p.T, upper=False).T for p in (given, at))
    parts = [_local_plane(values, x, part) for part in y.split(_PLACES_AT_ONCE)]
    return Estimate(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _local_plane(values: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    offset = x - y[:, None]  # (place, sample, d)
    kernel = torch.exp(-0.5 * offset.square().sum(-1))
    effective = kernel.sum(1).square() / kernel.square().sum(1).clamp_min(1e-300)
    if not bool((effective > 4 * (x.shape[1] + 1)).all()):
        raise ValueError(
            f"only {float(effective.min()):.1f} samples count around the place number"
            f" {int(effective.argmin())}; take more samples, a larger bandwidth, or a place where"
            " there are some"
        )
    plane = torch.cat([torch.ones_like(kernel)[..., None], offset], -1)
    weighted = kernel[..., None] * plane
    normal = torch.linalg.inv(weighted.mT @ plane)
    influence = (weighted @ normal[:, :, :1])[..., 0]  # l_i(y)
    fit = plane @ (normal @ (weighted.mT @ values))
    residual = values - fit
    error = torch.einsum("yi,yik->yk", influence.square(), residual.square()).sqrt()
    return influence @ values, error
