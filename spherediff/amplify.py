"""Draws that are as far from Gaussian as the known fields are.

The target of a denoiser's network is a conditional expectation, F = E[T | z], and what a network
has learnt from a few hundred fields is a part of it, F̂ = E[F | what it knows], of a smaller
variance.  Least squares shrink it further.  Either is best for the error at any noise level, and
adds up along the flow: draws stay too near to those of the reference, for which F = 0.  What fields
have beyond a Gaussian law that is the same under all labels c_k is

    ρ = (μ_k, γ_k, E He_3(z), E He_4(z)),    z(s) = (f(s) − f̄(s))/std f(s),

at each place s, with Hermite polynomials He_j, for which ρ is linear in the law of z, and the
slopes μ_k of z and γ_k of z² on labels by least squares: where storms are weaker in summer.  Draws
of F̂, less what those of the reference have by chance from the same noise, have too little of it by

    D = (⟨ρ_f, ρ_f⟩ − E⟨n, n⟩)/⟨ρ_f, ρ⟩,    ρ_f the known fields' departure, n its noise,

channel by channel.  ⟨·, ·⟩ is over places by area, and over those parts of ρ that are more than
noise, by the variance that they would have if nothing depended on labels: a climatology that is
removed leaves no μ, for example.  F ← eF makes up for D by e = D^{2/3}, nearly: skewness and
kurtosis grow like e², as what is amplified takes z to where F is larger, and γ like e.  A second
step, by the slope that the first has shown, leaves little.  D is known as well as its values
without one part of fields and draws or another agree (the jackknife), and what that leaves open of
log D is shrunk away (James & Stein 1961).  Fields of successive times resemble each other: parts
are of fields that follow each other, and the noise n is that between parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spherediff import harmonics
from spherediff.denoise import NeuralDenoiser, ResidualDenoiser
from spherediff.grids import GaussLegendre
from spherediff.reference import Reference
from spherediff.sample import ProbabilityFlow
from spherediff.train import Fields, conditioned

_DRAWS = 128
_FIELDS = 1024  # known ones, at most
_FINEST = 31  # degrees of the grid of places, at most
_SPACING = 0.5  # in log(σ/α), of the steps
_FEWEST = 256  # fields: of fewer a network knows by heart what they have beyond a Gaussian law
_PARTS = 8  # of fields or draws, of which each is taken for independent of the others
_CLEAR = 2.0  # times its noise: the least power of a departure that draws are to have
_ROUNDS = 2  # of a step each
_SLOPE = 1.5  # −d log D/d log e, about, for the first step; later ones within a factor of 2
_LIMIT = math.log(2.0)  # of |log e|
_BATCH = 64


@torch.no_grad()
def amplify(
    denoiser: NeuralDenoiser, known: Fields, generator: torch.Generator, progress: bool
) -> None:
    """Amplify F, by the calibration's e, until draws depart from Gaussian as fields do.

    Nothing is changed if fields or draws are Gaussian, or the fields too few to tell.

    Args:
        denoiser: whose ``calibration`` is changed.
        known: fields that it has learnt from, with their labels, (N, channels, n).
        generator: of the draws.
        progress: show a progress bar.
    """
    if len(known.x) < _FEWEST:
        return
    told, known = known.spread(_DRAWS), known.spread(min(len(known.x), _FIELDS))
    varies = (known.condition != known.condition[:1]).any(0)
    places = _Places(known.x[..., : len(denoiser.calibration.degree)])
    seed = int(torch.randint(2**62, (), generator=generator))

    def drawn(of: Callable[[Fields], ResidualDenoiser]) -> _Sample:
        x = _drawn(of, told, torch.Generator().manual_seed(seed))
        return places.sample(x, told.condition[:, varies])

    fields = places.sample(known.x, known.condition[:, varies])
    chance = drawn(lambda _: _Gaussian(denoiser))
    e = denoiser.calibration.e
    log_e = before = step = kept = torch.zeros(len(e))
    slope = torch.full_like(log_e, _SLOPE)
    for k in tqdm(range(_ROUNDS), desc="amplifying", leave=False, disable=not progress):
        samples = fields, drawn(partial(conditioned, denoiser)), chance
        log_D = _log_shortfall(*samples)
        if k == 0 and not (kept := _beyond_chance(log_D, *samples)).any():
            return
        if k > 0:
            shown = ((before - log_D) / step).nan_to_num(*3 * [_SLOPE])
            slope = shown.clamp(_SLOPE / 2, 2 * _SLOPE)
        before, step = log_D, log_D / slope
        log_e = (log_e + step).clamp(-_LIMIT, _LIMIT)
        e.copy_(log_e.exp())
    e.copy_((kept * log_e).exp())


class _Gaussian(ResidualDenoiser):
    """The denoiser of a reference: F = 0."""

    def __init__(self, denoiser: NeuralDenoiser) -> None:
        self.process, self._reference = denoiser.process, denoiser.reference

    @property
    def reference(self) -> Reference:
        return self._reference

    def residual(self, z: Tensor, t: Tensor | float) -> Tensor:
        return torch.zeros_like(z)


def _drawn(
    of: Callable[[Fields], ResidualDenoiser], told: Fields, generator: torch.Generator
) -> Tensor:
    """Draws of the denoiser of each part of what is told, (draws, channels, n), on the CPU."""
    draws = []
    for part in told.split(_BATCH):
        denoiser = of(part)
        flow = ProbabilityFlow(denoiser, round(denoiser.process.schedule.span / _SPACING))
        draws.append(flow.sample((len(part.x),), generator=generator).cpu())
    return torch.cat(draws)


class _Places:
    """Points of a grid, and mean and standard deviation there.

    Args:
        x: of these fields, shape (samples, channels, n); what others have beyond is left out.
    """

    def __init__(self, x: Tensor) -> None:
        self._n = x.shape[-1]
        self._grid = GaussLegendre(min(harmonics.band_limit(self._n), _FINEST))
        self._share = self._grid.area_weights.flatten() / (4 * math.pi)
        values = self._values(x)
        self._mean, self._std = values.mean(0), values.std(0)

    def sample(self, x: Tensor, labels: Tensor) -> _Sample:
        """Of fields (samples, channels, n) and what is told of them, (samples, k)."""
        z = (self._values(x) - self._mean) / self._std
        return _Sample(z, labels.cpu().double(), self._share)

    def _values(self, x: Tensor) -> Tensor:
        """Shape (samples, channels, points), float64."""
        parts = x[..., : self._n].cpu().double().split(_BATCH)
        return torch.cat([self._grid.synthesis(part).flatten(2) for part in parts])


class _Sample(NamedTuple):
    """Fields at places, and their labels.

    Attributes:
        z: standardised values, shape (samples, channels, points), float64.
        c: labels, shape (samples, k).
        share: of the points in the sphere's area, shape (points,).
    """

    z: Tensor
    c: Tensor
    share: Tensor

    def without(self, k: int) -> _Sample:
        """All but the k-th of the parts."""
        kept = self._part() != k
        return self._replace(z=self.z[kept], c=self.c[kept])

    def departure(self) -> Tensor:
        """ρ = (μ, γ, E He_3, E He_4), shape (2k + 2, channels, points)."""
        return torch.cat([torch.tensordot(fit, v, dims=1) for fit, v in self._terms()])

    def noise(self) -> Tensor:
        """Its variance if parts are independent, mean over points; shape (2k + 2, channels, 1)."""
        part, variances = self._part(), []
        for fit, v in self._terms():
            off = v - v.mean(0)
            sums = [torch.tensordot(fit[:, part == k], off[part == k], 1) for k in range(_PARTS)]
            beyond = torch.stack(sums) - sum(sums) / _PARTS
            variances.append(_PARTS / (_PARTS - 1) * beyond.square().sum(0) @ self.share)
        return torch.cat(variances)[..., None]

    def unit(self) -> Tensor:
        """Its variance if samples were independent and nothing departed, as :meth:`noise`."""
        variances = [
            fit.square().sum(1)[:, None] * (v.var(0) @ self.share) for fit, v in self._terms()
        ]
        return torch.cat(variances)[..., None]

    def _part(self) -> Tensor:
        """Which of the parts each sample belongs to: they follow each other."""
        return torch.arange(len(self.z)) * _PARTS // len(self.z)

    def _terms(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is averaged over samples: weights (rows, samples), and values in the shape of z."""
        slope = torch.linalg.pinv(self.c - self.c.mean(0))
        mean = self.z.new_full((1, len(self.z)), 1 / len(self.z))
        square = self.z.square()
        yield slope, self.z
        yield slope, square
        yield mean, self.z * (square - 3)
        yield mean, square * (square - 6) + 3


def _log_shortfall(fields: _Sample, draws: _Sample, chance: _Sample) -> Tensor:
    """log D of each channel, or 0 where there is nothing to compare."""
    noise, known = fields.noise(), fields.departure()
    power = (known.square() @ fields.share)[..., None]
    weight = (power > _CLEAR * noise) * fields.share / fields.unit()
    drawn = draws.departure() - chance.departure()
    D = (weight * (known.square() - noise)).sum((0, 2)) / (weight * known * drawn).sum((0, 2))
    return D.log().nan_to_num(0, 0, 0)


def _beyond_chance(log_D: Tensor, *samples: _Sample) -> Tensor:
    """How much of log D of these samples is certain, by channel: 1 all of it, 0 nothing."""
    values = [_log_shortfall(*(one.without(k) for one in samples)) for k in range(_PARTS)]
    variance = (_PARTS - 1) * torch.stack(values).var(0, correction=0)
    kept = 1 - variance / log_D.square()
    return kept.clamp(min=0).nan_to_num(0)
