"""Diffusion in function space, as the papers on Hilbert-space and multilevel diffusion do it.

Lim et al. (2302.07400), Pidstrigach et al. (2302.10130), Hagemann et al. (2303.04772): the noise is
a Gaussian measure with a trace-class covariance C, here Whittle–Matérn fields fitted to the maps,
the process is Ornstein–Uhlenbeck with a linear rate β (Song et al. 2021, 2011.13456),

    x_t = α x + σ ξ,  ξ ~ N(0, C),    dx = −½β x dt + √β dW^C,    α² = exp(−∫β) = 1 − σ²,

a Fourier neural operator learns the noise in the norm of L², which is the score C∇log p = −ξ̂/σ,

    loss  E ‖N(x_t, t) − ξ‖²/4π,    t ~ U(ε, 1),

and draws follow the reverse SDE by the Euler–Maruyama rule with steps even in t.  There is no
preconditioning: the network sees x_t as it is.

The operator is the spherical one (Bonev et al. 2023, 2306.03838) on the Gauss–Legendre grid:

    h ← h + φ((1 + γ(t)) (S R_ℓ A h + D h) + β(t)),    R_ℓ a matrix between channels.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from training import Budget, train_within

from spherediff import harmonics
from spherediff.gaussian import GaussianField
from spherediff.nn.transform import Transform
from spherediff.spectra import Tabulated, WhittleMatern

WIDTH, LAYERS, POSITIONAL, EMBEDDING = 32, 4, 8, 64
BETA_START, BETA_END, EARLIEST = 0.1, 20.0, 1e-3
STEPS = 200
BATCH_DRAWN = 64


class Layer(nn.Module):
    """One residual layer of the operator, on values (nlat, nlon, B, width)."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.spectral = nn.Parameter(
            torch.randn(transform.lmax + 1, WIDTH, WIDTH) / math.sqrt(WIDTH)
        )
        self.local = nn.Linear(WIDTH, WIDTH)
        self.modulation = nn.Linear(EMBEDDING, 2 * WIDTH)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        a = self.transform.analysis(h.flatten(2))  # (lmax + 1, 2 lmax + 1, B · width)
        a = torch.bmm(a.reshape(len(a), -1, WIDTH), self.spectral).view(a.shape)
        mixed = self.transform.synthesis(a).view(h.shape) + self.local(h)
        scale, shift = self.modulation(embedded).chunk(2, dim=-1)
        return h + functional.gelu((1 + scale) * mixed + shift)


class FourierOperator(nn.Module):
    """ξ̂ = N(x_t, t) on coefficients, (B, channels, n) → (B, channels, n)."""

    position: Tensor
    frequencies: Tensor

    def __init__(self, channels: int, lmax: int) -> None:
        super().__init__()
        self.transform = Transform(lmax, lmax + 1, 2 * (lmax + 1))
        self.learned = nn.Parameter(
            torch.randn(POSITIONAL, harmonics.count(lmax)) / math.sqrt(lmax + 1)
        )
        self.register_buffer("position", torch.eye(4, harmonics.count(lmax))[1:])  # ℓ = 1: x, y, z
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(EMBEDDING // 2))
        self.embedding = nn.Sequential(nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU())
        self.lift = nn.Linear(channels + 3 + POSITIONAL, WIDTH)
        self.layers = nn.ModuleList(Layer(self.transform) for _ in range(LAYERS))
        self.project = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, channels)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies
        embedded = self.embedding(torch.cat([phase.cos(), phase.sin()], dim=1))
        place = torch.cat([self.position, self.learned]).expand(len(x), -1, -1)
        inputs = torch.cat([x, place], dim=1).permute(2, 0, 1)  # (n, B, fields)
        values = self.transform.synthesis(self.transform.unpack(inputs.flatten(1)))
        h = self.lift(values.unflatten(2, inputs.shape[1:]))
        for layer in self.layers:
            h = layer(h, embedded)
        a = self.transform.pack(self.transform.analysis(self.project(h).flatten(2)))
        return a.view(-1, *x.shape[:2]).permute(1, 2, 0)


class FunctionSpace:
    """A Fourier neural operator with Matérn noise, without preconditioning."""

    def fit(
        self, training: Tensor, validation: Tensor, seconds: float, seed: int
    ) -> dict[str, Any]:
        lmax = harmonics.band_limit(training.shape[-1])
        self.noise = matern_noise(training)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = FourierOperator(training.shape[1], lmax)
        return train_within(Budget(seconds, seed), self.network, self.loss, training, validation)

    def loss(self, network: nn.Module, x: Tensor) -> Tensor:
        """E ‖N(x_t, t) − ξ‖²/4π at random times."""
        t = EARLIEST + (1 - EARLIEST) * torch.rand(len(x))
        alpha, sigma = marginal(t[:, None, None])
        xi = self._draw_noise(len(x))
        error = network(alpha * x + sigma * xi, t) - xi
        return error.square().sum((1, 2)).mean() / (4 * math.pi)

    @torch.no_grad()
    def sample(self, count: int, seed: int) -> Tensor:
        sizes = [min(BATCH_DRAWN, count - k) for k in range(0, count, BATCH_DRAWN)]
        with (
            torch.random.fork_rng(devices=[]),
            tqdm(total=len(sizes) * STEPS, desc="drawing") as bar,
        ):
            torch.manual_seed(seed)
            return torch.cat([self._reverse(size, bar) for size in sizes])

    def _reverse(self, count: int, bar: tqdm) -> Tensor:
        x = self._draw_noise(count)
        times = torch.linspace(1, EARLIEST, STEPS + 1)
        for t, s in pairwise(times):
            step = rate(t) * (t - s)
            score = -self.network(x, t.expand(count)) / marginal(t)[1]  # C∇log p
            x = x + step * (0.5 * x + score) + step.sqrt() * self._draw_noise(count)
            bar.update()
        alpha, sigma = marginal(times[-1])
        return (x - sigma * self.network(x, times[-1].expand(count))) / alpha

    def _draw_noise(self, count: int) -> Tensor:
        return self.noise.color(torch.randn(count, *self.noise.event_shape))


def rate(t: Tensor) -> Tensor:
    """β(t)."""
    return BETA_START + t * (BETA_END - BETA_START)


def marginal(t: Tensor) -> tuple[Tensor, Tensor]:
    """α(t), σ(t)."""
    exponent = BETA_START * t + 0.5 * (BETA_END - BETA_START) * t.square()  # ∫β
    return torch.exp(-0.5 * exponent), torch.sqrt(-torch.expm1(-exponent))


def matern_noise(x: Tensor) -> GaussianField:
    """The Whittle–Matérn fields closest to the maps, channel by channel."""
    lmax = harmonics.band_limit(x.shape[-1])
    fits = [WhittleMatern.fit(channel).spectrum for channel in x.unbind(1)]
    spectra = torch.stack([spectrum(torch.arange(lmax + 1)) for spectrum in fits])
    return GaussianField(Tabulated(spectra), lmax, dtype=torch.float32)
