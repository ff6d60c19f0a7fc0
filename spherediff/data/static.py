"""Static fields: what an archive says of each place beforehand.

The law of a field differs from place to place: rain is skewed where it is rare, temperature varies
more over land.  A network that has to find this out from a few hundred maps spends most of its
training on it, although it is known.  So it is told, channel by channel,

    β_j(s)/std f(s),    β_j(s),    log std f(s),    skewness of f(s),    γ_k(s),

the climatology and moments of the anomalies f at each place s, and how the variance there depends
on the labels c_k, by the least-squares fit f²/var f ≈ 1 + Σ_k γ_k (c_k − ⟨c_k⟩): where storms are
weaker in summer.  They are fields without mean over the sphere and with mean square one.  The
climatology says how far away values are that cannot occur: rain is never less than −Σ_j D_j β_j
below its normal, and hardly ever M − Σ_j D_j β_j above it, with one M everywhere; divided by the
local standard deviation, what was divided by that.  What is the same everywhere, such as a
climatology that is not removed, is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spherediff import harmonics
from spherediff.data.encoder import Encoder
from spherediff.grids import GaussLegendre

_SMALLEST = 1e-3  # of a local standard deviation, relative to the largest
_EVEN = 1e-12  # mean square, relative to the largest value's, of what is the same everywhere
_MAPS = 64  # evaluated at once


def static_fields(encoder: Encoder, x: Tensor, condition: Tensor, lmax: int) -> Tensor:
    """Climatology, also in units of the local spread, moments, and what labels do to the variance.

    Args:
        encoder: of the archive.
        x: standardised anomalies of the training samples, shape (N, channels, n).
        condition: their labels, shape (N, k).
        lmax: band limit of the fields, at most the encoder's.

    Returns:
        Coefficients, float32, shape (K, (lmax+1)²), of mean 0 and mean square 1 on the sphere.
    """
    grid = GaussLegendre(encoder.lmax)
    std, skewness, turns = _moments(encoder, x, condition, grid)
    cycle = grid.synthesis(encoder.cycle.transpose(0, 1))
    parts = [cycle / std[:, None], cycle, std.log()[:, None], skewness[:, None], turns]
    values = torch.cat(parts, 1).flatten(0, 1)
    fields = harmonics.resize(grid.analysis(values, encoder.lmax), lmax)
    size = fields.square().sum(-1)
    fields[:, 0] = 0
    power = fields.square().sum(-1)
    varying = power > _EVEN * size
    return (fields[varying] * (4 * math.pi / power[varying, None]).sqrt()).float()


def amplitude_fields(encoder: Encoder, lmax: int) -> Tensor:
    """Coefficients of the local amplitude σ of each channel, float32, (channels, (lmax+1)²)."""
    grid = GaussLegendre(encoder.lmax)
    sigma = grid.analysis(encoder.amplitude.map(grid), encoder.lmax)
    return harmonics.resize(sigma, lmax).float()


def _moments(
    encoder: Encoder, x: Tensor, condition: Tensor, grid: GaussLegendre
) -> tuple[Tensor, Tensor, Tensor]:
    """Standard deviation and skewness at each place, both (channels, nlat, nlon), and γ."""
    mean = grid.synthesis(encoder.anomalies(x.mean(0, keepdim=True)))
    told = condition[:, (condition != condition[0]).any(0)].to(mean)
    fit = torch.linalg.pinv(told - told.mean(0))  # (k, N)
    second, third = torch.zeros_like(mean[0]), torch.zeros_like(mean[0])
    turns = mean.new_zeros(len(fit), *mean.shape[1:])
    for some, weights in zip(x.split(_MAPS), fit.split(_MAPS, dim=1), strict=True):
        departure = grid.synthesis(encoder.anomalies(some)) - mean
        second += departure.square().sum(0)
        third += departure.pow(3).sum(0)
        turns += torch.tensordot(weights, departure.square(), dims=1)
    std = (second / len(x)).sqrt()
    std = std.maximum(_SMALLEST * std.amax((-2, -1), keepdim=True))
    return std, third / len(x) / std**3, (turns / std.square()).transpose(0, 1)
