"""Networks that compete with the spherical operator in the ablations.

They map (u, w, log σ/α, season) to F, shape (B, channels, n), start at F = 0 and are made from the
static fields, shape (K, n), and the amplitudes of the channels, shape (channels, n).

    SpectralNetwork   dense layers on all coefficients at once, no grid: F = W₂ φ((1+γ) W₁u + β)
    SphericalUNet     convolutions of 3 × 3 on the Gauss–Legendre grid at three resolutions, padded
                      across the date line and over the poles
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from spherediff import harmonics
from spherediff.nn.operator import (
    SpectralConvolution,
    _DegreeGain,
    _NoiseEmbedding,
    _small_linear,
)
from spherediff.nn.transform import Transform

EMBEDDING = 64
HIDDEN = 1024
WIDTHS, POSITIONAL = (24, 48, 72), 8


class Embedding(nn.Module):
    """(log σ/α, season) → (B, EMBEDDING)."""

    def __init__(self, conditions: int) -> None:
        super().__init__()
        self.noise = _NoiseEmbedding(EMBEDDING)
        self.condition = nn.Parameter(torch.randn(conditions, EMBEDDING) / 2)

    def forward(self, log_noise: Tensor, condition: Tensor | None) -> Tensor:
        embedded = self.noise(log_noise)
        return embedded if condition is None else embedded + condition @ self.condition


class WithoutEstimate(nn.Module):
    """A network that is not shown the linear estimate w."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, u: Tensor, w: Tensor, log_noise: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        return self.network(u, torch.zeros_like(w), log_noise, condition)


def degrees_apart(operator: nn.Module) -> nn.Module:
    """Let the weights of every degree go their own way, from the same start."""
    for part in operator.modules():
        if isinstance(part, SpectralConvolution):
            part.weight = nn.Parameter(part.by_octave(part.weight).detach())
            part.by_octave = nn.Identity()
        if isinstance(part, _DegreeGain):
            part.layer = _small_linear(part.layer.in_features, part.mean.numel())
            part.by_octave = nn.Identity()
    return operator


class SpectralNetwork(nn.Module):
    """Two dense layers on the vector of all coefficients."""

    def __init__(self, _: Tensor, amplitude: Tensor, conditions: int) -> None:
        super().__init__()
        size = amplitude.numel()
        self.embedding = Embedding(conditions)
        self.inner = nn.Linear(size, HIDDEN)
        self.modulation = _small_linear(EMBEDDING, 2 * HIDDEN)
        self.outer = _small_linear(HIDDEN, size)

    def forward(
        self, u: Tensor, _: Tensor, log_noise: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        scale, shift = self.modulation(self.embedding(log_noise, condition)).chunk(2, dim=-1)
        h = functional.gelu((1 + scale) * self.inner(u.flatten(1)) + shift)
        return self.outer(h).view_as(u)


def padded(x: Tensor) -> Tensor:
    """One more row and column on every side of (B, C, nlat, nlon): over the poles the map goes on
    at the opposite longitude.
    """
    half = x.shape[-1] // 2
    x = torch.cat([x[:, :, :1].roll(half, -1), x, x[:, :, -1:].roll(half, -1)], dim=2)
    return functional.pad(x, (1, 1, 0, 0), mode="circular")


class Residual(nn.Module):
    """h ← h + conv(φ(conv((1+γ)h + β)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = _small_linear(EMBEDDING, 2 * width)
        self.first, self.second = nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)
        nn.init.normal_(self.second.weight, std=0.1 / math.sqrt(9 * width))

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        scale, shift = self.modulation(embedded)[..., None, None].chunk(2, dim=1)
        inner = functional.gelu(self.first(padded((1 + scale) * h + shift)))
        return h + self.second(padded(inner))


class SphericalUNet(nn.Module):
    """A U-Net between synthesis and analysis, with learned positional fields and static ones."""

    def __init__(self, static: Tensor, amplitude: Tensor, conditions: int) -> None:
        super().__init__()
        channels, lmax = len(amplitude), harmonics.band_limit(static.shape[-1])
        self.transform = Transform(lmax, lmax + 1, 2 * lmax + 2)
        self.embedding = Embedding(conditions)
        learned = torch.randn(harmonics.count(lmax), POSITIONAL) / math.sqrt(lmax + 1)
        self.positional = nn.Parameter(torch.cat([learned, static.T], 1))
        self.lift = nn.Linear(2 * channels + POSITIONAL + len(static), WIDTHS[0])
        self.down = nn.ModuleList(Residual(width) for width in WIDTHS)
        self.up = nn.ModuleList(Residual(width) for width in WIDTHS[:-1])
        pairs = [*pairwise(WIDTHS)]
        self.widen = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairs)
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.project = _small_linear(WIDTHS[0], channels)

    def forward(
        self, u: Tensor, w: Tensor, log_noise: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        B, channels, _ = u.shape
        embedded = self.embedding(log_noise, condition)
        h = self._lifted(u, w).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
        skips = []
        for k, block in enumerate(self.down):
            h = block(h, embedded)
            if k < len(self.widen):
                skips.append(h)
                h = self.widen[k](functional.avg_pool2d(h, 2))
        for k in reversed(range(len(self.up))):
            up = functional.interpolate(self.narrow[k](h), scale_factor=2)
            h = self.up[k](skips[k] + up, embedded)
        values = self.project(h.permute(2, 3, 0, 1))
        table = self.transform.analysis(values.flatten(2))
        return self.transform.pack(table).view(-1, B, channels).permute(1, 2, 0)

    def _lifted(self, u: Tensor, w: Tensor) -> Tensor:
        scale = math.sqrt(4 * math.pi / u.shape[-1])  # to unit variance at every point
        fields = torch.cat([scale * u, w], dim=1)
        table = self.transform.unpack(fields.permute(2, 0, 1).flatten(1))
        values = self.transform.synthesis(table).unflatten(2, fields.shape[:2])
        place = self.transform.synthesis(self.transform.unpack(self.positional))
        place = place[:, :, None].expand(-1, -1, len(u), -1)
        return self.lift(torch.cat([values, place], dim=-1))
