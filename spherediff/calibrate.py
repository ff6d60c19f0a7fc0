"""Calibration of a trained network on fields that it has not learnt from.

The target of a denoiser's network is a conditional expectation, F = E[T | z], so that

    E[F (T − F)] = 0    and    E[z F] = E[z T] = 0

at every noise level, the last equality for fields with the variance of the reference, which is what
z is standardised by.  A network that knows its training fields too well fails both on others: it is
too sure of itself, and its guess leans towards z or away from it.  On fields that were held out,

    β = E[zF]/E[z²],    a = E[T (F − βz)]/E[(F − βz)²],    F ← a (F − βz)

for every group of modes of like strength makes F obey both: what a network has learnt by heart are
the few patterns that vary most.  T has unit variance, and a the prior N(1, τ²), so that few fields
change little.  Nothing is taken from the held-out fields' own variance: the reference knows it from
many more.

Draws are not held-out fields with noise.  Along the probability flow d|z|²/dψ = −2 z·F, so that a
hundredth of a correlation becomes several hundredths of the variance in the end.  So the flow is
run, and the β that is left in each octave of degrees of each channel is taken off as it goes: its
draws keep the reference's degree spectrum, and later levels are judged by draws that have it.  It
runs under the conditions of the known fields, which the reference was made from: held-out ones may
be of a part of the year that is calmer than others.

Modes and coefficients count by their variance in the fields.  Else those in which the data hardly
vary would decide: they are the most, and what a short archive says of them is the least reliable.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from spherediff.denoise import NeuralDenoiser, ResidualDenoiser
from spherediff.reference import Reference
from spherediff.sample import ProbabilityFlow
from spherediff.streams import open_source
from spherediff.train import Fields, conditioned, residual_target

_PRIOR = 0.1  # τ
_NOISES = 2  # for each field and level
_DRAWS = 192
_SPACING = 0.5  # in log(σ/α), of the flow's steps
_BATCH = 64


@torch.no_grad()
def calibrate(
    denoiser: NeuralDenoiser,
    known: Tensor | Fields,
    held_out: Tensor | Fields,
    *,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Fit the calibration of a trained denoiser, in place; what it was before is forgotten.

    Args:
        denoiser: whose ``calibration`` is fitted.
        known: fields that were trained on, shape (N, channels, n), or with conditions.
        held_out: fields that were not, shape (M, channels, n), with as many conditions.
        seed: of the noise.
        progress: show a progress bar.
    """
    denoiser.calibration.reset()
    generator = torch.Generator().manual_seed(seed)
    _regress(denoiser, Fields.of(held_out), generator, progress)
    _balance(denoiser, Fields.of(known), generator, progress)


def _regress(
    denoiser: NeuralDenoiser, fields: Fields, generator: torch.Generator, progress: bool
) -> None:
    """a and b = −aβ from noised held-out fields."""
    low, high = denoiser.process.schedule.log_snr_range
    calibration = denoiser.calibration
    a, b = torch.empty_like(calibration.a), torch.empty_like(calibration.b)
    knots = calibration.knots.tolist()
    for k, knot in enumerate(tqdm(knots, desc="calibrating", leave=False, disable=not progress)):
        level = min(max(knot, -high), -low)
        a[k], b[k] = _regression(_held_out_moments(denoiser, fields, level, generator))
    calibration.a.copy_(a)
    calibration.b.copy_(b)


def _held_out_moments(
    denoiser: NeuralDenoiser, fields: Fields, level: float, generator: torch.Generator
) -> Tensor:
    """Moments of (F, z, T) in each group of modes."""
    batches = [fields.at(slice(k, k + _BATCH)) for k in range(0, len(fields.x), _BATCH)]
    total = torch.zeros((), dtype=torch.float64)
    for part in _NOISES * batches:
        x0, log_noise = part.x.to(denoiser.mean), torch.full((len(part.x),), level)
        z, t, T = residual_target(denoiser, x0, log_noise, generator)
        F = conditioned(denoiser, part).residual(z, t)
        total = total + _of_groups(denoiser, F, z, T) / _NOISES
    return total


def _of_groups(denoiser: NeuralDenoiser, *modes: Tensor) -> Tensor:
    """Σ over samples and the modes of a group of r v_i v_j/⟨r⟩, (groups, i, j), float64.

    r is the variance of a mode in units of the noise, ⟨r⟩ its average over all of them.
    """
    group = denoiser.calibration.group
    r = denoiser.reference.std[..., : group.shape[-1]].double().square()
    return _sums_of_products((r / r.mean()).sqrt() * _known(denoiser, *modes), group)


def _of_octaves(denoiser: NeuralDenoiser, *modes: Tensor) -> Tensor:
    """Σ over samples and the orders of an octave of v_i v_j, (channels, lmax + 1, i, j), float64.

    v are coefficients in units of the noise; every degree has that of its octave.
    """
    reference, noise = denoiser.reference, denoiser.process.field
    fields = (noise.whiten(reference.coefficients(reference.std * v)) for v in modes)
    channels, degrees = denoiser.calibration.c.shape[1:]
    octave = torch.tensor([ell.bit_length() for ell in range(degrees)])
    octaves = int(octave[-1]) + 1
    group = octaves * torch.arange(channels)[:, None] + octave[denoiser.calibration.degree.cpu()]
    total = _sums_of_products(_known(denoiser, *fields), group)
    return total.unflatten(0, (channels, octaves))[:, octave]


def _known(denoiser: NeuralDenoiser, *fields: Tensor) -> Tensor:
    return torch.stack(fields)[..., : denoiser.calibration.group.shape[-1]].double()


def _sums_of_products(v: Tensor, group: Tensor) -> Tensor:
    """Σ over samples and each group of v_i v_j, (groups, i, j), on the CPU.

    v has shape (i, samples, channels, n), the number of the group shape (channels, n).
    """
    products = torch.einsum("ibcn,jbcn->cnij", v, v).flatten(0, 1).cpu()
    total = products.new_zeros(int(group.max()) + 1, *products.shape[1:])
    return total.index_add(0, group.flatten().cpu(), products)


def _regression(moments: Tensor) -> tuple[Tensor, Tensor]:
    """a and b = −aβ, shape (groups,)."""
    FF, Fz, FT, zz, zT = (moments[..., i, j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2)))
    beta = Fz / zz
    a = (FT - beta * zT + _PRIOR**-2) / (FF - beta * Fz + _PRIOR**-2)
    return a, -a * beta


def _balance(
    denoiser: NeuralDenoiser, known: Fields, generator: torch.Generator, progress: bool
) -> None:
    """c from the denoiser's own flow, under conditions of known fields from first to last."""
    told = known.at(torch.linspace(0, len(known.x) - 1, _DRAWS).round().long())
    balanced = _Balanced(denoiser, told)
    flow = ProbabilityFlow(balanced, round(denoiser.process.schedule.span / _SPACING))
    noise, memory = open_source(generator, _DRAWS), None
    x = denoiser.process.field.sample((_DRAWS,), generator=noise)
    steps = list(pairwise(flow.times))
    for t, s in tqdm(steps, desc="balancing", leave=False, disable=not progress):
        x, memory = flow.step(x, t, s, noise, memory)
    beta = torch.stack(balanced.beta)  # (steps, channels, lmax + 1)
    calibration = denoiser.calibration
    log_noise = denoiser.process.log_noise(torch.tensor(flow.times[:-1]))
    hats = (1 - (calibration.knots.cpu().double()[:, None] - log_noise).abs()).clamp(min=0)
    share = hats / hats.sum(1, keepdim=True).clamp(min=1e-9)  # of no step, if the flow begins later
    calibration.c.sub_(torch.tensordot(share, beta, dims=1).to(calibration.c))


class _Balanced(ResidualDenoiser):
    """A denoiser less the β that these states show, which must be draws from first to last."""

    def __init__(self, denoiser: NeuralDenoiser, told: Fields) -> None:
        self.process = denoiser.process
        self.denoiser = denoiser
        self.parts = [slice(k, k + _BATCH) for k in range(0, len(told.x), _BATCH)]
        self.told = [conditioned(denoiser, told.at(part)) for part in self.parts]
        self.beta: list[Tensor] = []

    @property
    def reference(self) -> Reference:
        return self.denoiser.reference

    def residual(self, z: Tensor, t: Tensor | float) -> Tensor:
        pairs = zip(self.told, self.parts, strict=True)
        F = torch.cat([told.residual(z[part], t) for told, part in pairs])
        az = self._added(torch.ones_like(self.denoiser.calibration.c[0]), z, t)
        total = _of_octaves(self.denoiser, F, z, az)
        self.beta.append(total[..., 0, 1] / total[..., 1, 2])  # E[zF]/E[z az]
        return F - self._added(self.beta[-1].to(z), z, t)

    def _added(self, c: Tensor, z: Tensor, t: Tensor | float) -> Tensor:
        """What c, shape (channels, lmax + 1), adds to the output of the denoiser."""
        reference, calibration = self.reference, self.denoiser.calibration
        u = reference.mixed(z)
        beyond = u.shape[-1] - len(calibration.degree)
        cz = reference.unmixed(nn.functional.pad(c[..., calibration.degree], (0, beyond)) * u)
        log_noise = self.process.log_noise(t).to(z).expand(len(z))
        return calibration.modes(cz, torch.zeros_like(z), log_noise)
