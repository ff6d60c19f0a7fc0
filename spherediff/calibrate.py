"""Calibration of a trained network on fields that it has not learnt from.

The target of a denoiser's network is a conditional expectation, F = E[T | z], so that

    E[F T] = E[F²]   and   E[z T] = E[z F]

degree by degree and at every noise level.  A network that knows its training fields too well fails
both on others: it is too sure of itself, and its guess is less correlated with z than the truth is.
The second matters to every draw, since along the probability flow d|z|²/dψ = −2 z·F: a hundredth of
a correlation missing is several hundredths of the variance in the end.  Fields that were held out
say what is missing.  With F, z and T as they count in the fields, √S F/√diag S and so on, S the
covariance of the reference, the least squares

    a, b = argmin Σ(T − a F − b z)² + (a − 1)²/τ_a² + b²/τ_b²

over all coefficients of an octave of degrees in all fields at one noise level make a F + b z obey
both; the last terms, normal priors for T of unit variance, keep the correction small where the
held-out fields know too little.  Without √S, modes in which the data hardly vary would decide: they
are the most, and what a short archive says of them is the least reliable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spherediff import harmonics
from spherediff.denoise import NeuralDenoiser
from spherediff.nn import Calibration
from spherediff.train import Fields, conditioned, residual_target

_PRIOR = (0.1, 0.03)  # τ_a and τ_b
_DRAWS = 2  # of noise for each field and level
_BATCH = 64


@torch.no_grad()
def calibrate(
    denoiser: NeuralDenoiser,
    calibration: Calibration,
    held_out: Tensor | Fields,
    *,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Fit the calibration of the denoiser's network, in place.

    Args:
        denoiser: trained, with a network that applies ``calibration`` last.
        calibration: what is fitted; what was in it is forgotten.
        held_out: fields that were not trained on, shape (M, channels, n), or with conditions.
        seed: of the noise.
        progress: show a progress bar.
    """
    calibration.reset()
    fields, generator = Fields.of(held_out), torch.Generator().manual_seed(seed)
    low, high = denoiser.process.schedule.log_snr_range
    a, b = torch.empty_like(calibration.a), torch.empty_like(calibration.b)
    knots = calibration.knots.tolist()
    for k, knot in enumerate(tqdm(knots, desc="calibrating", leave=False, disable=not progress)):
        level = min(max(knot, -high), -low)
        a[k], b[k] = _least_squares(_moments(denoiser, fields, level, generator))
    calibration.a.copy_(a)
    calibration.b.copy_(b)


def _moments(
    denoiser: NeuralDenoiser, fields: Fields, level: float, generator: torch.Generator
) -> Tensor:
    """Σ over fields and orders of (F, z, T)(F, z, T)ᵀ, (channels, lmax + 1, 3, 3), float64."""
    reference, scale = denoiser.reference, denoiser.covariance.variance.sqrt()
    batches = [fields.at(slice(k, k + _BATCH)) for k in range(0, len(fields.x), _BATCH)]
    products = torch.zeros((), dtype=torch.float64)
    for part in _DRAWS * batches:
        x0, log_noise = part.x.to(denoiser.mean), torch.full((len(part.x),), level)
        z, t, T = residual_target(denoiser, x0, log_noise, generator)
        F = conditioned(denoiser, part).residual(z, t)
        v = reference.coefficients(reference.std * torch.stack([F, z, T])) / scale
        seen = v.cpu().double()
        products = products + torch.einsum("ibcn,jbcn->cijn", seen, seen) / _DRAWS
    return harmonics.sum_orders(products).movedim(-1, 1)


def _least_squares(moments: Tensor) -> tuple[Tensor, Tensor]:
    """a and b, shape (channels, lmax + 1), the same for all degrees of an octave."""
    octave = torch.tensor([ell.bit_length() for ell in range(moments.shape[1])])
    total = moments.new_zeros(len(moments), int(octave[-1]) + 1, 3, 3)
    total = total.index_add(1, octave, moments)
    prior = torch.tensor(_PRIOR, dtype=total.dtype) ** -2
    known = total[..., :2, :2] + prior.diag()
    pull = total[..., :2, 2] + prior * torch.tensor([1.0, 0.0])
    a, b = torch.linalg.solve(known, pull)[:, octave].unbind(-1)
    return a, b
