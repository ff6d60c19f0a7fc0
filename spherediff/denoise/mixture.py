"""The exact denoiser of a mixture of Gaussian fields."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spherediff.denoise.base import Denoiser
from spherediff.denoise.gaussian import GaussianDenoiser
from spherediff.gaussian import check_coefficients


class MixtureDenoiser(Denoiser):
    """Finite mixture of Gaussian fields: m = Σ_k r_k(x) m_k(x), r_k ∝ w_k h_t^{(k)}(x).

    The responsibilities use log-sum-exp of the densities relative to γ.

    Args:
        components: Gaussian denoisers over one and the same process.
        weights: positive weights, normalised here; equal if not given.

    Raises:
        ValueError: no components, several processes, or weights that do not fit.
    """

    def __init__(
        self, components: Sequence[GaussianDenoiser], weights: Sequence[float] | None = None
    ) -> None:
        if not components:
            raise ValueError("expected at least one component")
        if any(component.process is not components[0].process for component in components):
            raise ValueError("all components must share one process object")
        weights = [1.0] * len(components) if weights is None else list(weights)
        if len(weights) != len(components) or not all(w > 0 and math.isfinite(w) for w in weights):
            raise ValueError(f"expected {len(components)} positive weights, got {weights}")
        self.process = components[0].process
        self.components = list(components)
        self.log_weights = [math.log(w / sum(weights)) for w in weights]

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m(x, t)."""
        responsibilities = self._log_joint(x, t).softmax(0)
        events = (1,) * len(self.process.event_shape)
        m = torch.zeros_like(x)
        for r, component in zip(responsibilities, self.components, strict=True):
            m = m + r.reshape(*r.shape, *events) * component(x, t)
        return m

    def log_density_ratio(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log h_t(x) = log Σ_k w_k h_t^{(k)}(x), shape (*batch,); t as in each component."""
        return self._log_joint(x, t).logsumexp(0)

    def _log_joint(self, x: Tensor, t: Tensor | float) -> Tensor:
        check_coefficients(self.process.field, x, "denoiser")
        return torch.stack(
            [
                log_weight + component.log_density_ratio(x, t)
                for log_weight, component in zip(self.log_weights, self.components, strict=True)
            ]
        )
