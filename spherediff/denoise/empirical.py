"""The exact denoiser of an archive itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spherediff.denoise.base import Denoiser, require_finite
from spherediff.gaussian import check_coefficients
from spherediff.process import ForwardProcess


class EmpiricalDenoiser(Denoiser):
    """The empirical measure of an archive: m = Σ_j softmax_j(−½‖(x − αx_j)/σ‖²) x_j.

    Its reverse process draws members of the archive again: it is the memoriser, a baseline and a
    test, not a generator.  The archive is visited in chunks with a running log-sum-exp, so memory
    is bounded whatever its length.

    Args:
        process: the forward process.
        data: the archive, shape (N, *event_shape).
        chunk_elements: at most about so many numbers are held at a time.

    Raises:
        ValueError: an empty archive, shapes that do not fit, or numbers that are not finite.
    """

    def __init__(
        self, process: ForwardProcess, data: Tensor, chunk_elements: int = 1 << 25
    ) -> None:
        check_coefficients(process.field, data, "archive")
        if data.ndim != 1 + len(process.event_shape) or len(data) == 0:
            raise ValueError(
                f"expected an archive of shape (N, {', '.join(map(str, process.event_shape))}) "
                f"with N ≥ 1, got {tuple(data.shape)}"
            )
        self.process = process
        self.data = data.to(process.field.device, process.field.dtype)
        require_finite(self.data, "archive")
        self.chunk_elements = chunk_elements

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m(x, t), t > 0."""
        return self._moments(x, t)[1]

    def log_density_ratio(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log h_t(x) = log N⁻¹ Σ_j dN(αx_j, σ²)/dN(0, C)(x), shape (*batch,), t > 0."""
        field = self.process.field
        axes = tuple(range(-len(field.event_shape), 0))
        _, sigma = self.process.marginal(t)
        whitened = field.whiten(x).square().sum(axes)
        log_scale = (sigma / field.std_per_coefficient).log().sum(axes)
        return self._moments(x, t)[0] - math.log(len(self.data)) + 0.5 * whitened - log_scale

    def _moments(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """log Σ_j w_j and Σ_j w_j x_j / Σ_j w_j, with w_j = exp(−½‖(x − αx_j)/σ‖²)."""
        check_coefficients(self.process.field, x, "denoiser")
        alpha, sigma = self.process.marginal(t)
        events = len(self.process.event_shape)
        axes = tuple(range(-events, 0))
        # a new axis for the members, just before the event
        x1, alpha1, sigma1 = (
            v.unsqueeze(-events - 1) if v.ndim > events else v for v in (x, alpha, sigma)
        )
        log_total = x.new_full(x.shape[: x.ndim - events], -math.inf)
        m = torch.zeros_like(x)
        size = max(1, self.chunk_elements // max(1, x.numel()))
        for members in self.data.split(size):
            logits = -0.5 * ((x1 - alpha1 * members) / sigma1).square().sum(axes)
            log_chunk = torch.logsumexp(logits, -1)
            updated = torch.logaddexp(log_total, log_chunk)
            weights = (logits - updated[..., None]).exp()
            kept = (log_total - updated).exp()
            average = (weights @ members.flatten(1)).reshape(x.shape)
            m = kept.reshape(*kept.shape, *(1,) * events) * m + average
            log_total = updated
        return log_total, m
