"""What a denoiser is: a conditional expectation, and the score that follows from it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from spherediff.gaussian import check_coefficients
from spherediff.process import ForwardProcess
from spherediff.reference import Reference


class Denoiser(ABC):
    """A conditional expectation m(x, t) = E[X_0 | X_t = x] under a forward process.

    A time is a float or a tensor that broadcasts against the leading axes of ``x`` (all but the
    coefficient axis); states have shape (*batch, *process.event_shape).
    """

    process: ForwardProcess

    @abstractmethod
    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m(x, t), shape of ``x``."""

    @property
    def reference(self) -> Reference:
        """The Gaussian law that samplers integrate exactly; γ unless the data's is known better."""
        C = self.process.field.variance_per_coefficient
        return Reference(self.process, C.new_zeros(()), C)

    def residual(self, z: Tensor, t: Tensor | float) -> Tensor:
        """F(z, t) in m = w + √p F: what is not linear, relative to :attr:`reference`, t > 0.

        Args:
            z: standardised states, see :class:`~spherediff.reference.Reference`.
            t: time.

        Returns:
            Shape of ``z``; of order one at every time and in every degree.
        """
        reference = self.reference
        return reference.residual(self(reference.state(z, t), t), z, t)

    def score(self, x: Tensor, t: Tensor | float) -> Tensor:
        """∇log p_t(x) = (α m − x)/σ², t > 0."""
        alpha, sigma = self.process.marginal(t)
        return (alpha * self(x, t) - x) / sigma.square()

    def malliavin_gamma_score(self, x: Tensor, t: Tensor | float) -> Tensor:
        """D log h_t(x) = C∇log p_t(x) + x, an element of H_C (arXiv 2505.13189), t > 0.

        h_t is the density with respect to γ = N(0, C), the process's ``field``.
        """
        return self.process.field.variance_per_coefficient * self.score(x, t) + x

    def logarithmic_derivative(self, x: Tensor, t: Tensor | float, h: Tensor) -> Tensor:
        """β_h(x) = ⟨h, ∇log p_t(x)⟩, for which E[∂_hφ(X_t)] = −E[φ(X_t) β_h(X_t)], t > 0.

        It has a limit as lmax → ∞ for directions h in the Cameron–Martin space of the noise
        (arXiv 2508.20316); :meth:`~spherediff.process.ForwardProcess.cameron_martin` tells which
        are.

        Args:
            x: states, shape (*batch, *event_shape).
            t: time.
            h: direction, shape (*event_shape), or one for each state.

        Returns:
            Shape (*batch,).

        Raises:
            ValueError: a direction of another shape.
        """
        check_coefficients(self.process.field, h, "direction")
        axes = tuple(range(-len(self.process.event_shape), 0))
        return (h * self.score(x, t)).sum(axes)


class ResidualDenoiser(Denoiser):
    """One that is given by its residual: m = w + √p F."""

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m(x, t), shape of ``x``."""
        reference = self.reference
        z = reference.standardise(x, t)
        return reference.estimate(self.residual(z, t), z, t)

    @abstractmethod
    def residual(self, z: Tensor, t: Tensor | float) -> Tensor:
        """F(z, t), shape of ``z``."""


def require_finite(x: Tensor, what: str) -> None:
    """Refuse numbers that are not finite.

    Raises:
        ValueError: some are not.
    """
    if bad := int((~torch.isfinite(x)).sum()):
        raise ValueError(
            f"{what}: expected finite coefficients, found {bad} of {x.numel()} that are not in "
            f"{x.dtype}; leave out the fields that they are of"
        )
