"""Diffusions whose law at time T is known, for the tests of the Malliavin weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import ncx2
from torch import Tensor

from spherediff.malliavin import SDE, Path, euler_maruyama


@dataclass(frozen=True)
class Given:
    """A source of normal numbers that hands out what it was given, shape (samples, n)."""

    values: Tensor

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        assert self.values[0].numel() == math.prod(event_shape)
        return self.values.to(dtype)


@dataclass(frozen=True)
class Oracle:
    """A scalar diffusion from x0 and the exact law of X_T.

    Attributes:
        sde: the equation.
        start: quadrature points and weights of X_0.
        T: end time.
        density: p_T(y).
        score: (log p_T)'(y).
        places: grid on which the density lives.
    """

    name: str
    sde: SDE
    start: tuple[Tensor, Tensor]
    T: float
    density: Callable[[Tensor], Tensor]
    score: Callable[[Tensor], Tensor]
    places: Tensor

    def expectation(self, f: Callable[[Tensor], Tensor]) -> float:
        """E f(X_T) under the exact law."""
        p = self.density(self.places)
        return float(torch.trapezoid(f(self.places) * p, self.places))


def fixed(x: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([x]).double(), torch.ones(1).double()


def tanh(x: float = 0.6, T: float = 0.5) -> Oracle:
    constant = math.exp(-T / 2) / math.cosh(x) / math.sqrt(2 * math.pi * T)
    return Oracle(
        "tanh drift",
        SDE(lambda t, x: torch.tanh(x), 1.0),
        fixed(x),
        T,
        lambda y: constant * torch.cosh(y) * torch.exp(-((y - x) ** 2) / (2 * T)),
        lambda y: torch.tanh(y) - (y - x) / T,
        torch.linspace(-9, 9, 4001).double(),
    )


def sinh(x: float = 0.4, T: float = 0.3) -> Oracle:
    def score(y: Tensor) -> Tensor:
        return -(torch.asinh(y) - math.asinh(x)) / (T * (1 + y**2).sqrt()) - y / (1 + y**2)

    def density(y: Tensor) -> Tensor:
        exponent = -((torch.asinh(y) - math.asinh(x)) ** 2) / (2 * T)
        return torch.exp(exponent) / (2 * math.pi * T * (1 + y**2)).sqrt()

    return Oracle(
        "sinh process",
        SDE(lambda t, x: 0.5 * x, lambda t, x: (1 + x**2).sqrt()),
        fixed(x),
        T,
        density,
        score,
        torch.sinh(torch.linspace(-6, 6, 4001).double()),
    )


def geometric(x: float = 1.2, T: float = 0.5, mu: float = 0.3, sigma: float = 0.5) -> Oracle:
    mean, variance = math.log(x) + (mu - sigma**2 / 2) * T, sigma**2 * T

    def density(y: Tensor) -> Tensor:
        z = (y.log() - mean) ** 2 / (2 * variance)
        return torch.exp(-z) / (y * math.sqrt(2 * math.pi * variance))

    return Oracle(
        "geometric Brownian motion",
        SDE(lambda t, x: mu * x, lambda t, x: sigma * x),
        fixed(x),
        T,
        density,
        lambda y: -(1 + (y.log() - mean) / variance) / y,
        torch.exp(mean + math.sqrt(variance) * torch.linspace(-9, 9, 4001).double()),
    )


def cir(
    x: float = 1.5, T: float = 0.4, k: float = 1.2, mean: float = 1.0, s: float = 0.25
) -> Oracle:
    c = s**2 * (1 - math.exp(-k * T)) / (4 * k)
    law = ncx2(4 * k * mean / s**2, x * math.exp(-k * T) / c)

    def density(y: Tensor) -> Tensor:
        return torch.from_numpy(law.pdf((y / c).numpy()) / c)

    def score(y: Tensor) -> Tensor:
        step = 1e-5 * y
        high, low = (torch.from_numpy(law.logpdf(((y + d) / c).numpy())) for d in (step, -step))
        return (high - low) / (2 * step)

    return Oracle(
        "CIR",
        SDE(lambda t, x: k * (mean - x), lambda t, x: s * x.sqrt()),
        fixed(x),
        T,
        density,
        score,
        torch.linspace(0.2, 4.5, 4001).double(),
    )


def double_well(T: float = 0.4) -> Oracle:
    """Langevin dX = −U' dt + √2 dB in equilibrium: the score is −U' at every time."""
    places = torch.linspace(-4, 4, 4001).double()

    def potential(y: Tensor) -> Tensor:
        return 0.25 * (y**2 - 1) ** 2

    constant = float(torch.trapezoid(torch.exp(-potential(places)), places))
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(60))
    start = 3.8 * nodes
    return Oracle(
        "Langevin in a double well",
        SDE(lambda t, x: -x * (x**2 - 1), math.sqrt(2)),
        (start, 3.8 * weights * torch.exp(-potential(start)) / constant),
        T,
        lambda y: torch.exp(-potential(y)) / constant,
        lambda y: -y * (y**2 - 1),
        places,
    )


def all_paths(
    sde: SDE, start: tuple[Tensor, Tensor], T: float, steps: int, nodes: int, d: int = 1
) -> tuple[Path, Tensor]:
    """Every path of a tensor Gauss–Hermite rule over the noise, and its weight.

    Sums over these paths are expectations under the law of the Euler–Maruyama scheme, without
    Monte-Carlo error.
    """
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight = weight / weight.sum()
    noise = torch.tensor(list(itertools.product(node, repeat=steps * d)), dtype=torch.float64)
    mass = torch.tensor(list(itertools.product(weight, repeat=steps * d))).double().prod(1)
    x0 = start[0].reshape(len(start[0]), -1).repeat_interleave(len(noise), 0).expand(-1, d)
    noise = noise.repeat(len(start[0]), 1)
    path = euler_maruyama(sde, x0, torch.linspace(0, T, steps + 1).double(), generator=Given(noise))
    return path, (start[1][:, None] * mass).flatten()


SCALAR = {o.name: o for o in (tanh(), sinh(), geometric(), cir(), double_well())}
