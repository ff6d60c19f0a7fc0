"""Pixel diffusion as people do it today: white noise on the latitude–longitude grid, and EDM.

Maps y on the 32 × 64 Gauss–Legendre grid are an image of ``channels`` colours, in units of one
standard deviation over the archive and the sphere.  With white noise ε on the pixels (Karras et al.
2022, arXiv 2206.00364)

    y_σ = y + σ ε,    D(y_σ) = y_σ/(1 + σ²) + σ/√(1 + σ²) · U(y_σ/√(1 + σ²), log σ),
    loss  E (1 + σ²)/σ² |D − y|²,    log σ ~ N(m, s²),

U a U-Net; draws follow the probability flow from σ = 80 to 0.01 by Heun's rule.  Denoiser, network,
schedule and sampler are those of azula.

The U-Net's padding is periodic in longitude and zero beyond the poles.  It sees position by
Cartesian coordinates and by learned channels, as image models on weather data do, or it could not
tell land from sea.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from azula.denoise import KarrasDenoiser
from azula.nn.layers import SineEncoding
from azula.nn.unet import UNet
from azula.noise import VESchedule
from azula.sample import HeunSampler
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from training import Budget, train_within

from spherediff import harmonics
from spherediff.grids import GaussLegendre

SIGMA_MIN, SIGMA_MAX = 0.01, 80.0
# Karras et al. take −1.2 and 1.2 for a standard deviation of ½, that is −0.5 here.  The leading
# patterns of a smooth field stand out of far stronger noise than those of photographs of this size.
LOG_SIGMA_MEAN, LOG_SIGMA_STD = 0.3, 1.6
STEPS = 32
WIDTHS, BLOCKS = (16, 32, 64), (2, 2, 2)
POSITIONAL = 8
BATCH = 16
MODULATION = 64
BATCH_DRAWN = 64


class Cylinder(nn.Module):
    """A 3 × 3 convolution, periodic along the last axis and zero-padded along the other."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        convolution.padding = (1, 0)
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(functional.pad(x, (1, 1, 0, 0), mode="circular"))


class Backbone(nn.Module):
    """U(y, log σ) with position channels on ``grid``."""

    position: Tensor

    def __init__(self, channels: int, grid: GaussLegendre) -> None:
        super().__init__()
        self.register_buffer("position", cartesian(grid))
        self.learned = nn.Parameter(torch.randn(POSITIONAL, *grid.shape))
        self.embedding = nn.Sequential(
            SineEncoding(MODULATION), nn.Linear(MODULATION, MODULATION), nn.SiLU()
        )
        self.unet = UNet(
            channels,
            channels,
            cond_channels=3 + POSITIONAL,
            hid_channels=WIDTHS,
            hid_blocks=BLOCKS,
            mod_features=MODULATION,
            norm="group",
            groups=8,
        )
        wrap_longitude(self.unet)

    def forward(self, y: Tensor, log_sigma: Tensor) -> Tensor:
        place = torch.cat([self.position, self.learned]).expand(len(y), -1, -1, -1)
        # SineEncoding is made for integers up to 10⁴.
        embedded = self.embedding(1000 * log_sigma.expand(len(y)))
        return self.unet(y, embedded, place)


class PixelDiffusion:
    """A U-Net with white pixel noise and EDM's preconditioning."""

    def fit(
        self, training: Tensor, validation: Tensor, seconds: float, seed: int
    ) -> dict[str, Any]:
        self.channels = training.shape[1]
        self.lmax = harmonics.band_limit(training.shape[-1])
        self.grid = GaussLegendre(self.lmax)
        pixels = self.grid.synthesis(training)
        self.std = pixels.std()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = Backbone(self.channels, self.grid)
        self.denoiser = KarrasDenoiser(backbone, VESchedule(SIGMA_MIN, SIGMA_MAX))
        return train_within(
            Budget(seconds, seed, batch=BATCH),
            self.denoiser,
            denoising_loss,
            pixels / self.std,
            self.grid.synthesis(validation) / self.std,
        )

    @torch.no_grad()
    def sample(self, count: int, seed: int) -> Tensor:
        sampler = HeunSampler(self.denoiser, steps=STEPS, silent=True)
        draw = partial(self._draw, sampler)
        sizes = [min(BATCH_DRAWN, count - k) for k in range(0, count, BATCH_DRAWN)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.cat([draw(size) for size in tqdm(sizes, desc="drawing")])

    def _draw(self, sampler: HeunSampler, count: int) -> Tensor:
        pixels = sampler(sampler.init((count, self.channels, *self.grid.shape)))
        return self.grid.analysis(pixels * self.std, self.lmax)


def denoising_loss(denoiser: nn.Module, pixels: Tensor) -> Tensor:
    """The loss of the module's formula at random noise levels."""
    log_sigma = LOG_SIGMA_MEAN + LOG_SIGMA_STD * torch.randn(len(pixels))
    low, high = torch.tensor([SIGMA_MIN, SIGMA_MAX]).log()
    t = ((log_sigma - low) / (high - low)).clamp(0, 1)
    assert isinstance(denoiser, KarrasDenoiser)
    return denoiser.loss(pixels, t)


def wrap_longitude(module: nn.Module) -> None:
    """Make every convolution inside ``module`` a :class:`Cylinder`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, Cylinder(child))
        else:
            wrap_longitude(child)


def cartesian(grid: GaussLegendre) -> Tensor:
    """The unit vectors of the grid's points, (3, nlat, nlon)."""
    latitude = torch.deg2rad(torch.from_numpy(grid.latitude))[:, None]
    longitude = torch.deg2rad(torch.from_numpy(grid.longitude))
    z = latitude.sin().expand(grid.shape)
    x, y = (latitude.cos() * wave for wave in (longitude.cos(), longitude.sin()))
    return torch.stack([x, y, z]).float()
