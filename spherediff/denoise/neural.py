"""A learned denoiser, preconditioned by a Gaussian reference."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from spherediff.calibration import Calibration
from spherediff.covariance import Covariance
from spherediff.denoise.base import ResidualDenoiser, require_finite
from spherediff.gaussian import check_coefficients
from spherediff.process import ForwardProcess
from spherediff.reference import CorrelatedReference, Reference


class NeuralDenoiser(torch.nn.Module, ResidualDenoiser):
    """A network, preconditioned in every coefficient: m = w + √p ⊙ F(z, w, log(s/α)).

    The reference N(μ, v) has the mean and variance of the data's coefficients.  So z, the input of
    the network, has unit variance, and so has for Gaussian data its target, (X_0 − w)/√p, at every
    scale and every time; F = 0 is already the exact Gaussian emulator
    (:mod:`spherediff.reference`).  Although w follows from z, the network is shown both: w is the
    field itself as far as it is known, in which it can see what values are possible at a place,
    such as no rain, where z has all degrees made equal.  Its output may be corrected by a
    ``calibration``, which :func:`spherediff.calibrate.calibrate` fits.

    Args:
        process: the forward process, with a channel axis: event shape (channels, n).
        network: maps z and w − μ, the latter in its ``unit``, both of shape (B, channels, n),
            log(s/α) of shape (B,) and, if there is one, the condition of shape (B, k) to F, shape
            (B, channels, n).
        mean: μ, shape (channels, n).
        covariance: of the data; a variance per coefficient v ≥ 0, shape (channels, n), or a
            diagonal plus low-rank :class:`~spherediff.covariance.Covariance`, whose correlations
            the reference then has too.
        condition: what the law depends on besides, a label (:mod:`spherediff.data.labels`) or the
            like, shape (*batch, k).
        unit: of w − μ for the network, shape (channels, 1); if not given, the data's pointwise
            standard deviation √(Σ_i v_i/4π).
        known: the network acts on the first coefficients of each channel, so many, with F = 0 for
            the others; all if not given.

    Raises:
        ValueError: a process without channels, shapes that do not fit, or a mean that is not
            finite.
    """

    mean: Tensor

    def __init__(
        self,
        process: ForwardProcess,
        network: torch.nn.Module,
        mean: Tensor,
        covariance: Covariance | Tensor,
        condition: Tensor | None = None,
        unit: Tensor | None = None,
        known: int | None = None,
    ) -> None:
        super().__init__()
        if len(process.event_shape) != 2:
            raise ValueError(
                "expected a process with channels, event shape (channels, n), got "
                f"{process.event_shape}; build the field from Tabulated of shape "
                "(channels, lmax+1)"
            )
        if isinstance(covariance, Tensor):
            covariance = Covariance(covariance)
        for name, shape in (("mean", mean.shape), ("variance", covariance.event_shape)):
            if tuple(shape) != process.event_shape:
                raise ValueError(
                    f"expected {name} of shape {process.event_shape}, got {tuple(shape)}"
                )
        self.process = process
        self.network = network
        place = {"device": process.field.device, "dtype": process.field.dtype}
        self.register_buffer("mean", mean.to(**place))
        require_finite(self.mean, "mean")
        self.covariance = Covariance(covariance.diagonal.to(**place), covariance.factor.to(**place))
        size = (self.covariance.variance.sum(-1, keepdim=True) / (4 * math.pi)).sqrt()
        self.unit = torch.where(size > 0, size, 1) if unit is None else unit.to(**place)
        self.condition = None if condition is None else condition.to(**place)
        self._reference = (
            CorrelatedReference(process, self.mean, self.covariance)
            if len(covariance.factor)
            else Reference(process, self.mean, self.covariance.diagonal)
        )
        self.calibration = Calibration(self._reference.std[..., :known])

    def given(self, condition: Tensor) -> NeuralDenoiser:
        """The same under a condition of shape (*batch, k), one for each state of a batch."""
        told = copy.copy(self)
        told.condition = condition.to(self.mean)
        return told

    @property
    def reference(self) -> Reference:
        """N(μ, v) or N(μ, S)."""
        return self._reference

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m(x, t), shape of ``x``."""
        check_coefficients(self.process.field, x, "denoiser")
        return ResidualDenoiser.__call__(self, x, t)

    def residual(self, z: Tensor, t: Tensor | float) -> Tensor:
        """F(z, w, log(s/α)): the network's output, calibrated."""
        log_noise = self.process.log_noise(t).to(z)
        # one time a sample: a time that differs between channels has no meaning to the network
        log_noise = log_noise.expand(z.shape[:-1])[..., 0]
        u = self._reference.mixed(z)
        seen = (u, self._reference.linear(z, t) / self.unit)
        arguments = [fields.reshape(-1, *self.process.event_shape) for fields in seen]
        arguments.append(log_noise.reshape(-1))
        if self.condition is not None:
            arguments.append(self.condition.expand(*z.shape[:-2], -1).flatten(0, -2))
        F = self.network(*arguments).to(z).reshape(z.shape)
        F = self._reference.unmixed(self.calibration.fields(F, u, log_noise))
        return self.calibration.modes(F, z, log_noise)
