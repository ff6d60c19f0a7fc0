"""Draws that respond to labels as the known fields do.

What a label changes is a small part of what a network has to learn at any noise level, and adds up
along the flow: of a network that underrates it a little, draws have too little of a yearly cycle in
their variance, say.  With labels c_k(i) of the samples i, of known fields f as of draws,

    f_i(s)/std f(s) ≈ … + Σ_k μ_k(s) c_k(i),    f_i(s)²/var f(s) ≈ … + Σ_k γ_k(s) c_k(i)

by least squares at each place s.  Draws under labels that depart from their mean by more or less
than they should, c → c̄ + e (c − c̄), have e times the response ρ = (μ, γ), nearly, and

    e = (⟨ρ_f, ρ_f⟩ − E⟨n, n⟩)/⟨ρ_f, ρ⟩,    ρ_f the known fields' response, n its noise,

gives them as much of ρ_f as the fields have.  ⟨·, ·⟩ is over places by area, and over those μ_k and
γ_k that are more than noise, by the variance that they would have if nothing depended on labels: a
climatology that is removed leaves no μ to respond to.  What ρ has by chance, draws from the same
noise under the mean label have too, and it is taken off.  e is known as well as its values without
one part of fields and draws or another agree (the jackknife), and what that leaves open of e − 1 is
shrunk away (James & Stein 1961).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spherediff import harmonics
from spherediff.denoise import NeuralDenoiser
from spherediff.grids import GaussLegendre
from spherediff.sample import ProbabilityFlow
from spherediff.train import Fields

_DRAWS = 128
_FIELDS = 1024  # known ones, at most
_FINEST = 31  # degrees of the grid of places, at most
_SPACING = 0.5  # in log(σ/α), of the steps
_PARTS = 8  # of the jackknife; of at least as many fields each
_CLEAR = 2.0  # times its noise: the least power of a response that draws are to have
_LIMITS = 0.5, 2.0  # of e
_BATCH = 64


@runtime_checkable
class Told(Protocol):
    """A network that is told labels."""

    def amplify(self, factor: float, mean: Tensor) -> None:
        """Take labels c for c̄ + factor · (c − c̄), c̄ their mean, from now on."""
        ...


@torch.no_grad()
def respond(
    denoiser: NeuralDenoiser, known: Fields, generator: torch.Generator, progress: bool
) -> None:
    """Amplify what the network makes of labels, in place; draws then depend on them as fields do.

    Nothing is changed if there are no labels that differ, or too few fields to tell.

    Args:
        denoiser: of a network that is :class:`Told` labels.
        known: fields that it has learnt from, with their labels.
        generator: of the draws.
        progress: show a progress bar.
    """
    varies = (known.condition != known.condition[:1]).any(0)
    network, mean = denoiser.network, known.condition.mean(0)
    if not (isinstance(network, Told) and varies.any() and len(known.x) >= _PARTS**2):
        return
    told = known.at(_spread(len(known.x), _DRAWS)).condition
    known = known.at(_spread(len(known.x), min(len(known.x), _FIELDS)))
    seed = int(torch.randint(2**62, (), generator=generator))
    parts = 2 * _DRAWS // _BATCH
    with tqdm(total=parts, desc="responding", leave=False, disable=not progress) as bar:
        draws = [_drawn(denoiser, c, seed, bar) for c in (mean.expand_as(told), told)]
    n = draws[0].shape[-1]
    fields = _Sample.of(known.x[..., :n], known.condition[:, varies])
    network.amplify(_factor(fields, *(_Sample.of(x, told[:, varies]) for x in draws)), mean)


def _spread(count: int, chosen: int) -> Tensor:
    """Indices of so many of ``count`` samples, from first to last."""
    return torch.linspace(0, count - 1, chosen).round().long()


def _factor(fields: _Sample, unmoved: _Sample, moved: _Sample) -> float:
    """e, given draws under the mean label and under their own."""
    noise, known = fields.noise(), fields.response()
    power = (fields.area * known.square()).sum(-1, keepdim=True) / fields.area.sum()
    weight = (power > _CLEAR * noise) * fields.area / noise
    if not weight.any():
        return 1.0

    def of(fields: _Sample, unmoved: _Sample, moved: _Sample) -> Tensor:
        known, drawn = fields.response(), moved.response() - unmoved.response()
        return (weight * (known.square() - fields.noise())).sum() / (weight * known * drawn).sum()

    samples = fields, unmoved, moved
    change = of(*samples) - 1
    values = torch.stack([of(*(one.without(k) for one in samples)) for k in range(_PARTS)])
    if not (change.isfinite() and values.isfinite().all()):
        return 1.0  # draws that do not respond at all, as of a network that has learnt nothing
    variance = (_PARTS - 1) * values.var(correction=0)
    kept = (1 - variance / change.square()).clamp(min=0).nan_to_num(0)
    return float((1 + kept * change).clamp(*_LIMITS))


def _drawn(denoiser: NeuralDenoiser, condition: Tensor, seed: int, bar: tqdm) -> Tensor:
    """What the network knows of draws, one under each label, (draws, channels, n), on the CPU."""
    generator, draws = torch.Generator().manual_seed(seed), []
    steps = round(denoiser.process.schedule.span / _SPACING)
    for some in condition.split(_BATCH):
        flow = ProbabilityFlow(denoiser.given(some), steps)
        draws.append(flow.sample((len(some),), generator=generator).cpu())
        bar.update()
    return torch.cat(draws)[..., : len(denoiser.calibration.degree)]


class _Sample(NamedTuple):
    """Fields at the points of a grid, and their labels.

    Attributes:
        f: values, shape (samples, channels, points), float64.
        c: labels, shape (samples, k).
        area: of the points, shape (points,).
    """

    f: Tensor
    c: Tensor
    area: Tensor

    @classmethod
    def of(cls, x: Tensor, condition: Tensor) -> _Sample:
        """From coefficients, (samples, channels, n)."""
        grid = GaussLegendre(min(harmonics.band_limit(x.shape[-1]), _FINEST))
        f = torch.cat([grid.synthesis(some.double()).flatten(2) for some in x.cpu().split(_BATCH)])
        return cls(f, condition.cpu().double(), grid.area_weights.flatten())

    def without(self, k: int) -> _Sample:
        """All but the k-th of the parts, which are interleaved."""
        kept = torch.arange(len(self.f)) % _PARTS != k
        return self._replace(f=self.f[kept], c=self.c[kept])

    def response(self) -> Tensor:
        """μ and γ, shape (2, k, channels, points)."""
        return torch.einsum("ki,picx->pkcx", self._fit(), self._powers())

    def noise(self) -> Tensor:
        """The variance of μ and of γ where nothing depends on labels, (2, k, channels, 1)."""
        share = self.area / self.area.sum()
        variance = (self._powers().var(1) * share).sum(-1)  # (2, channels)
        return (variance[:, None] * self._fit().square().sum(1)[:, None])[..., None]

    def _fit(self) -> Tensor:
        """Least squares on labels about their mean, (k, samples)."""
        return torch.linalg.pinv(self.c - self.c.mean(0))

    def _powers(self) -> Tensor:
        """f/std f and its square, (2, samples, channels, points)."""
        z = (self.f - self.f.mean(0)) / self.f.std(0)
        return torch.stack([z, z.square()])
