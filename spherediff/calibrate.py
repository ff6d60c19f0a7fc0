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

Draws are not held-out fields with noise: what is still wrong adds up along the flow.  So F is
amplified until draws are as far from Gaussian as fields (:mod:`spherediff.amplify`), and power and
mean are balanced as the flow goes (:mod:`spherediff.balance`).

Modes count by their variance in the fields.  Else those in which the data hardly vary would decide:
they are the most, and what a short archive says of them is the least reliable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spherediff.amplify import amplify
from spherediff.balance import balance
from spherediff.data.amplitude import Amplitude
from spherediff.denoise import NeuralDenoiser
from spherediff.train import Fields, conditioned, residual_target

_PRIOR = 0.1  # τ
_NOISES = 2  # for each field and level
_BATCH = 64


@torch.no_grad()
def calibrate(
    denoiser: NeuralDenoiser,
    known: Tensor | Fields,
    held_out: Tensor | Fields,
    *,
    learners: Sequence[NeuralDenoiser] = (),
    amplitude: Amplitude | None = None,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Fit the calibration of a trained denoiser, in place; what it was before is forgotten.

    Args:
        denoiser: whose ``calibration`` is fitted.
        known: fields that were trained on, shape (N, channels, n), or with conditions.
        held_out: fields that were not, shape (M, channels, n), with as many conditions.
        learners: what was trained, the k-th of K with a reference that the k-th part of the known
            fields has no part in, as of :meth:`spherediff.model.Model.learners`; draws then have
            the power of the known fields, without learners that of the reference.
        amplitude: the local amplitude that the fields were divided by, if they were.
        seed: of the noise.
        progress: show a progress bar.
    """
    denoiser.calibration.reset()
    generator = torch.Generator().manual_seed(seed)
    _regress(denoiser, Fields.of(held_out), generator, progress)
    amplify(denoiser, Fields.of(known), generator, progress)
    balance(denoiser, Fields.of(known), learners, amplitude, generator, progress)


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
    total = torch.zeros((), dtype=torch.float64)
    for part in _NOISES * fields.split(_BATCH):
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
