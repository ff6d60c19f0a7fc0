"""Draws that have the power of the known fields, octave by octave, and their mean.

The target of a denoiser's network is a conditional expectation, F = E[T | z].  Along the flow
a mode turns by dz/dψ = −F, and ψ of each by dψ = ρ ds with s = log(σ/α) and ρ = cos ψ sin ψ,
so that an octave o of degrees of the draws loses power at twice the rate

    E⟨z, ρF⟩_o = E⟨z, ρT⟩_o,

if F is right; a hundredth that is missing becomes several hundredths of the variance in the end.
So the flow is run, and

    β_o = (E⟨z, ρF⟩_o − E⟨z, ρT⟩_o)/E⟨z, ρz⟩_o

is taken off as it goes, F ← F − βz: later levels are judged by draws that have it.  It runs under
the conditions of the known fields: held-out ones may be of a part of the year that is calmer.

⟨v, w⟩_o is over the coefficients of K v and K w, in units of the noise, K the local amplitude
(:mod:`spherediff.data.amplitude`): the power that maps have, which a network that sees fields
divided by their amplitude easily misses where that is large.

T needs known fields under references from others, not those that were fitted to them: by how much
their modes have more or less variance is the reference's error.  With z = cos ψ y + sin ψ ε and
T = sin ψ y − cos ψ ε the noise averages to

    E⟨z, ρT⟩_o = E⟨cos ψ y, ρ sin ψ y⟩_o − Σ_j ρ_j² ⟨e_j, e_j⟩_o,    modes e_j,

which is zero for fields that have the law of the reference.

The mean of a mode moves by −E F, which is to be −E T = −sin ψ E y; the reference has the mean of
the known fields, which makes it zero.  A network knows from few parts of an archive, each under
the reference of the others, how far means may be off, and easily gets a mean from it.  What is off
is taken off too, group by group of modes of like strength as far as it exceeds the noise of the
draws (James & Stein 1961): in a long archive it hardly does, in one of eight years it was more than
a standard deviation of the leading mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from spherediff import harmonics
from spherediff.data.amplitude import Amplitude
from spherediff.denoise import NeuralDenoiser, ResidualDenoiser
from spherediff.reference import Reference
from spherediff.sample import ProbabilityFlow
from spherediff.streams import open_source
from spherediff.train import Fields, conditioned, fold

_DRAWS = 256
_LOWEST = 4  # degrees below it are one octave, but for the mean: one has few coefficients to tell
_SPACING = 0.25  # in log(σ/α), of the steps: twice that lets draws gain 2 % of their power
_BATCH = 64


@torch.no_grad()
def balance(
    denoiser: NeuralDenoiser,
    known: Fields,
    learners: Sequence[NeuralDenoiser],
    amplitude: Amplitude | None,
    generator: torch.Generator,
    progress: bool,
) -> None:
    """Take what the denoiser's own flow does wrong off its calibration's c and d.

    Args:
        denoiser: whose ``calibration`` is changed.
        known: fields under whose conditions draws are made, from first to last; (N, channels, n).
        learners: the k-th of K with a reference that the k-th part of the known fields has no part
            in; without any, draws keep the power of the reference.
        amplitude: K of the fields, the identity if not given.
        generator: of the draws.
        progress: show a progress bar.
    """
    octaves = Octaves(denoiser, amplitude)
    parts = [known.x[fold(len(known.x), k, len(learners))] for k in range(len(learners))]
    turning = [_Turning(*of, octaves) for of in zip(learners, parts, strict=True)]
    told = known.spread(_DRAWS)
    mean = denoiser.reference.standardise_clean(known.x.to(denoiser.mean).mean(0))
    balanced = _Balanced(denoiser, told, octaves, turning, mean)
    flow = ProbabilityFlow(balanced, round(denoiser.process.schedule.span / _SPACING))
    noise, memory = open_source(generator, _DRAWS), None
    x = denoiser.process.field.sample((_DRAWS,), generator=noise)
    steps = list(pairwise(flow.times))
    for t, s in tqdm(steps, desc="balancing", leave=False, disable=not progress):
        x, memory = flow.step(x, t, s, noise, memory)
    calibration = denoiser.calibration
    log_noise = denoiser.process.log_noise(torch.tensor(flow.times[:-1]))
    hats = (1 - (calibration.knots.cpu().double()[:, None] - log_noise).abs()).clamp(min=0)
    share = hats / hats.sum(1, keepdim=True).clamp(min=1e-9)  # of no step, if the flow begins later
    for table, off in ((calibration.c, balanced.beta), (calibration.d, balanced.offset)):
        table.sub_(torch.tensordot(share, torch.stack(off).cpu().double(), dims=1).to(table))


class Octaves:
    """⟨v, w⟩_o of what a network knows, o of degrees 0, 1–3, 4–7, 8–15 and so on; float64."""

    def __init__(self, denoiser: NeuralDenoiser, amplitude: Amplitude | None = None) -> None:
        channels, degrees = denoiser.calibration.c.shape[1:]
        ell = range(degrees)
        self.of_degree = torch.tensor([min(k, 1) + (k // _LOWEST).bit_length() for k in ell])
        self.amplitude = amplitude or Amplitude(torch.zeros(channels, 1))
        self._noise_std = denoiser.process.field.std_per_coefficient.cpu().double()

    def fields(self, reference: Reference, z: Tensor) -> Tensor:
        """C^{-1/2} K x of standardised modes z, shape (samples, channels, n), on the CPU."""
        x = reference.coefficients(reference.std * z).cpu()
        a = torch.cat([self.amplitude.multiply(part) for part in x.split(_BATCH)])
        return (a / self._noise_std)[..., : len(self.of_degree) ** 2]

    def sums(self, products: Tensor) -> Tensor:
        """Σ over the coefficients of an octave, (…, n) to (…, octaves)."""
        total = products.new_zeros(*products.shape[:-1], int(self.of_degree[-1]) + 1)
        return total.index_add(-1, self.of_degree, harmonics.sum_orders(products))

    def of_modes(self, reference: Reference) -> Tensor:
        """⟨e_j, e_j⟩_o of the unit vectors, shape (channels · octaves, modes)."""
        std, powers = reference.std, []
        for part in torch.arange(std.numel(), device=std.device).split(_BATCH):
            e = nn.functional.one_hot(part, std.numel()).to(std).unflatten(-1, std.shape)
            powers.append(self.sums(self.fields(reference, e).square()))
        return torch.cat(powers).flatten(1).T


class _Turning:
    """Σ ⟨z, ρT⟩_o over known fields, given a reference that they have no part in."""

    def __init__(self, learner: NeuralDenoiser, x: Tensor, octaves: Octaves) -> None:
        self.octaves, self.reference = octaves, learner.reference
        self.y = self.reference.standardise_clean(x.to(learner.mean))
        self.of_modes = octaves.of_modes(self.reference)

    def at(self, t: Tensor | float) -> Tensor:
        """Shape (channels, octaves)."""
        cos, sin = self.reference.angle(t)
        rate, turns = cos * sin, (cos, cos * sin.square())
        v, w = (self.octaves.fields(self.reference, turn * self.y) for turn in turns)
        total = self.octaves.sums((v * w).sum(0))
        noise = self.of_modes @ rate.square().flatten().cpu().double()
        return total - len(self.y) * noise.view_as(total)


class _Balanced(ResidualDenoiser):
    """A denoiser less what these states show to be wrong, which must be draws from first to last.

    Attributes:
        beta: β of each degree, level by level, shape (channels, lmax + 1).
        offset: what is off in the mean, of each coefficient, level by level, (channels, n).
    """

    def __init__(
        self,
        denoiser: NeuralDenoiser,
        told: Fields,
        octaves: Octaves,
        turning: Sequence[_Turning],
        mean: Tensor,
    ) -> None:
        self.process = denoiser.process
        self.denoiser, self.octaves, self.turning = denoiser, octaves, turning
        self.parts = [slice(k, k + _BATCH) for k in range(0, len(told.x), _BATCH)]
        self.told = [conditioned(denoiser, told.at(part)) for part in self.parts]
        self.mean = mean  # E y of the known fields
        self.beta: list[Tensor] = []
        self.offset: list[Tensor] = []

    @property
    def reference(self) -> Reference:
        return self.denoiser.reference

    def residual(self, z: Tensor, t: Tensor | float) -> Tensor:
        pairs = zip(self.told, self.parts, strict=True)
        F = torch.cat([told.residual(z[part], t) for told, part in pairs])
        F = F - self._off(F, z, t)
        az = self._added(torch.ones_like(self.denoiser.calibration.c[0]), z, t)
        cos, sin = self.reference.angle(t)
        turning = (z, cos * sin * F, cos * sin * az)
        seen, lean, gain = (self.octaves.fields(self.reference, v) for v in turning)
        lean, gain = (self.octaves.sums((seen * v).mean(0)) for v in (lean, gain))
        beta = (lean - self._called_for(t)) / gain
        self.beta.append(beta[..., self.octaves.of_degree])
        return F - self._added(self.beta[-1].to(z), z, t)

    def _off(self, F: Tensor, z: Tensor, t: Tensor | float) -> Tensor:
        """E F − E T of each mode, as far as the draws can tell, shape of a mode."""
        reference, calibration = self.reference, self.denoiser.calibration
        cos, sin = reference.angle(t)
        F, z = F - sin * self.mean, z - cos * self.mean
        slope = (F * (z - z.mean(0))).mean(0) / z.var(0, correction=0)
        F = F - slope * z  # a mean that z has by chance is none of F's
        off = _beyond_noise(F.mean(0), F.var(0) / len(F), calibration.group)
        log_noise = self.process.log_noise(t).to(z)
        gain = calibration.modes(torch.ones_like(off), torch.zeros_like(off), log_noise)
        self.offset.append(reference.mixed(off / gain)[..., : len(calibration.degree)])
        return off

    def _called_for(self, t: Tensor | float) -> Tensor:
        """E⟨z, ρT⟩_o of the known fields."""
        total = sum((one.at(t) for one in self.turning), torch.zeros((), dtype=torch.float64))
        return total / max(1, sum(len(one.y) for one in self.turning))

    def _added(self, c: Tensor, z: Tensor, t: Tensor | float) -> Tensor:
        """What c, shape (channels, lmax + 1), adds to the output of the denoiser."""
        reference, calibration = self.reference, self.denoiser.calibration
        u = reference.mixed(z)
        beyond = u.shape[-1] - len(calibration.degree)
        cz = reference.unmixed(nn.functional.pad(c[..., calibration.degree], (0, beyond)) * u)
        log_noise = self.process.log_noise(t).to(z).expand(len(z))
        return calibration.modes(cz, torch.zeros_like(z), log_noise)


def _beyond_noise(mean: Tensor, variance: Tensor, group: Tensor) -> Tensor:
    """Means shrunk to zero group by group, given the variances of their noise; shape (channels, n).

    Noise is taken for the most that it is likely to be, 1 + 2√(2/k) times its mean in a group of k.
    Those of no group, beyond the first of each channel, become zero.
    """
    n, size = group.shape[-1], int(group.max()) + 1
    power, noise, count = (
        x.new_zeros(size).index_add(0, group.flatten(), x[..., :n].flatten())
        for x in (mean.square(), variance, torch.ones_like(mean))
    )
    likely = (1 + 2 * (2 / count).sqrt()) * noise
    kept = (1 - likely / power).clamp(min=0).nan_to_num(0)[group]
    return nn.functional.pad(kept * mean[..., :n], (0, mean.shape[-1] - n))
