"""Posterior sampling: fields that agree with observations, with any denoiser and any sampler.

Given y = HX_0 + N(0, R), R diagonal, the denoiser of the posterior is

    E[X_0 | X_t = x, y] = m + (σ²/α) ∇_x log p(y | x_t),    m = E[X_0 | X_t = x],

and p(y | x_t) = ∫ p(y | x_0) p(x_0 | x_t) dx_0 is not known.  Both schemes here take X_0 given x_t
to be Gaussian around m, so that y | x_t ~ N(Hm, A), and hold A when they differentiate:

    E[X_0 | x_t, y] ≈ m + V Hᵀ A⁻¹ (y − Hm),    V = Cov[X_0 | X_t = x] = (σ²/α) ∂m/∂x,

the last being Tweedie's formula of second order, symmetric because m is a gradient.

    MomentMatching           A = H V Hᵀ + R    exact for Gaussian data (arXiv 2405.13712)
    PseudoinverseGuidance    A = H P Hᵀ + R    exact for the reference's law (Song et al. 2023)

P = √p √p is the covariance of X_0 given x_t under the Gaussian reference of the denoiser,
p = v sin²ψ in its modes (:mod:`spherediff.reference`).  In those modes, with the residual
F of the denoiser, J = ∂F/∂z and whitened sensitivities L = R^{−1/2} H √P, all of this reads

    V = √P (1 + J tan ψ) √P,    F_y = F + (1 + tan ψ Jᵀ) Lᵀ u,
    (1 + L K Lᵀ) u = R^{−1/2} (y − Hm),    K = 1 + tan ψ Jᵀ or 1,

free of units at every time, so that single precision will do when σ → 0.  The system is solved by
conjugate gradients in the space of the data, J entering by vector-Jacobian products, preconditioned
by (1 + LLᵀ)⁻¹ for a few thousand coefficients.

F_y is the residual of a :class:`~spherediff.denoise.Denoiser` like any other: the samplers of
:mod:`spherediff.sample` take it as it is.  By default its reference is that of the prior.  Where
observations say much about a mode, the posterior is far from that, and a sampler needs steps; noise
below the schedule's last, √R ≪ σ/α, it cannot resolve at all.  :func:`posterior_reference` is the
Gaussian posterior itself, with which :class:`Referenced` makes F_y = 0 for data of the reference's
law: exact in any number of steps.

For data that are not Gaussian both schemes are biased, whatever the number of steps.
:class:`~spherediff.twisted.TwistedSampler` is not, with many particles.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from spherediff._linear import Operator as Map
from spherediff._linear import Solution, conjugate_gradients
from spherediff.covariance import Covariance
from spherediff.denoise import Denoiser, ResidualDenoiser
from spherediff.observe import Observation
from spherediff.reference import CorrelatedReference, Reference

_DENSE = 4096  # coefficients up to which a matrix of them is factorised at each time
_ROWS = 256  # fields observed at once
_SMALLEST_SHARE = 1e-12  # of a coefficient's prior variance that observations leave


class Guided(NamedTuple):
    """The residuals at one state, and how well it explains the observations.

    Attributes:
        prior: F, shape of z.
        posterior: F_y, shape of z.
        misfit: (y − Hm)ᵀ A⁻¹ (y − Hm), float64, shape (*batch,).
        curvature: w ↦ tan ψ Jᵀ w, for which V = √P (1 + tan ψ Jᵀ) √P.
    """

    prior: Tensor
    posterior: Tensor
    misfit: Tensor
    curvature: Map


class PosteriorDenoiser(ResidualDenoiser):
    """What the schemes share: m + V Hᵀ A⁻¹ (y − Hm), with A left to them.

    Args:
        denoiser: m(x, t) of the prior, differentiable in x.
        observation: H, y and √R.
        tolerance: relative residual of the linear system in units of √R, at which conjugate
            gradients stop.
        max_iterations: largest number of iterations.

    Raises:
        ValueError: observations of states of another shape.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        observation: Observation,
        *,
        tolerance: float = 1e-4,
        max_iterations: int = 100,
    ) -> None:
        found, expected = observation.operator.event_shape, denoiser.process.event_shape
        if found != expected:
            raise ValueError(
                f"expected observations of states of shape {expected}, those of the denoiser, "
                f"got {found}"
            )
        self.process, self.prior, self.observation = denoiser.process, denoiser, observation
        self.tolerance, self.max_iterations = tolerance, max_iterations

    @property
    def reference(self) -> Reference:
        """That of the prior."""
        return self.prior.reference

    def residual(self, z: Tensor, t: Tensor | float) -> Tensor:
        """F_y."""
        return self.guide(z, t).posterior

    def guide(self, z: Tensor, t: Tensor | float) -> Guided:
        """F, F_y and the misfit at standardised states.

        Args:
            z: standardised states of the reference, shape (*batch, *event_shape).
            t: time.
        """
        F, pull = _pullback(lambda z: self.prior.residual(z, t), z)
        cos, sin = self.reference.angle(t)
        # where α underflows F does not depend on z: V = P there
        tan = sin / cos.clamp_min(torch.finfo(cos.dtype).tiny)

        def curvature(w: Tensor) -> Tensor:
            return tan * pull(w)

        L = Sensitivity(self.reference, self.observation, t, z)
        innovation = L.innovation(self.reference.estimate(F, z, t))
        u = self._explain(innovation, L, curvature)
        pulled = L.adjoint(u)
        misfit = (innovation.double() * u.double()).sum(-1)
        return Guided(F, F + pulled + curvature(pulled), misfit, curvature)

    @abstractmethod
    def _explain(self, innovation: Tensor, L: Sensitivity, curvature: Map) -> Tensor:
        """u = R^{1/2} A⁻¹ R^{1/2} applied to the innovation."""

    def explain_by_reference(self, innovation: Tensor, L: Sensitivity) -> Tensor:
        """(1 + LLᵀ)⁻¹ applied to the innovation; a warning says if it was not solved.

        Args:
            innovation: in units of √R, shape (*batch, m).
            L: the sensitivities.
        """
        found = self._solve(lambda u: u + L(L.adjoint(u)), innovation, L)
        if self._unsolved(found).any():
            warnings.warn(
                f"{type(self).__name__} did not converge: relative residual "
                f"{float(found.residual.max()):.1e} after {self.max_iterations} iterations, "
                f"tolerance {self.tolerance:.1e}. Allow more of either",
                stacklevel=2,
            )
        return found.solution

    def _solve(self, system: Map, b: Tensor, L: Sensitivity) -> Solution:
        """Conjugate gradients, with (1 + LLᵀ)⁻¹ as preconditioner where that is affordable."""
        preconditioner = None
        if L.std.numel() == self._size <= _DENSE:
            preconditioner = L.woodbury(self._information)
        return conjugate_gradients(
            system, b, self.tolerance, self.max_iterations, preconditioner=preconditioner
        )

    @cached_property
    def _information(self) -> Tensor:
        """HᵀR⁻¹H in the modes of the reference, float64, shape (n, n)."""
        G = _observed(self.observation, self.reference.coefficients(_modes(self.reference)))
        return G @ G.T

    @property
    def _size(self) -> int:
        return math.prod(self.process.event_shape)

    def _unsolved(self, found: Solution) -> Tensor:
        """Which systems were not solved; rounding alone may add to a residual at the end."""
        solved = found.residual <= 2 * self.tolerance
        return ~solved & (found.iterations == self.max_iterations)


class MomentMatching(PosteriorDenoiser):
    """m + V Hᵀ (H V Hᵀ + R)⁻¹ (y − Hm): moment matching posterior sampling.

    Rozet et al. (2024, arXiv 2405.13712).  Exact for Gaussian data; costs a vector-Jacobian
    product in each iteration of the solver.

    A learned denoiser's V need not be positive definite where the noise is strong, tan ψ large, and
    the field all but unknown.  States whose system conjugate gradients do not solve have P in place
    of V in A, as :class:`PseudoinverseGuidance` has.

    Arguments and errors are those of :class:`PosteriorDenoiser`.
    """

    def _explain(self, innovation: Tensor, L: Sensitivity, curvature: Map) -> Tensor:
        def system(u: Tensor) -> Tensor:
            w = L.adjoint(u)
            return u + L(w + curvature(w))

        found = self._solve(system, innovation, L)
        unsolved = self._unsolved(found)
        if not unsolved.any():
            return found.solution
        by_reference = self.explain_by_reference(innovation, L)
        return torch.where(unsolved[..., None], by_reference, found.solution)


class PseudoinverseGuidance(PosteriorDenoiser):
    """m + V Hᵀ (H P Hᵀ + R)⁻¹ (y − Hm): pseudoinverse guidance, ΠGDM.

    Song et al. (2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR), with
    the covariance P of the denoiser's Gaussian reference in place of a multiple of the identity.
    Exact for data of the reference's law; one vector-Jacobian product a state.

    Arguments and errors are those of :class:`PosteriorDenoiser`.
    """

    def _explain(self, innovation: Tensor, L: Sensitivity, curvature: Map) -> Tensor:
        return self.explain_by_reference(innovation, L)


class Sensitivity:
    """L = R^{−1/2} H √P at time t: modes to observed numbers in units of their noise.

    Args:
        reference: P.
        observation: H and R.
        t: time.
        like: states of the batch shape to act on.
    """

    def __init__(
        self, reference: Reference, observation: Observation, t: Tensor | float, like: Tensor
    ) -> None:
        self.reference, self.operator = reference, observation.operator
        self.values, self.noise_std = observation.values.to(like), observation.noise_std.to(like)
        self.std = reference.std * reference.angle(t).sin  # √p
        self._transpose = _pullback(reference.coefficients, like)[1]

    def __call__(self, w: Tensor) -> Tensor:
        return self.operator(self.reference.coefficients(self.std * w)) / self.noise_std

    def adjoint(self, u: Tensor) -> Tensor:
        return self.std * self._transpose(self.operator.adjoint(u / self.noise_std))

    def woodbury(self, information: Tensor) -> Map:
        """(1 + LLᵀ)⁻¹ = 1 − L (1 + LᵀL)⁻¹ Lᵀ, from HᵀR⁻¹H in modes; one time for all states."""
        std = self.std.double().flatten()
        factor = torch.linalg.cholesky(
            torch.eye(len(std)).to(information) + std[:, None] * information * std
        )

        def apply(b: Tensor) -> Tensor:
            w = self.adjoint(b)
            flat = w.double().reshape(-1, len(std)).T
            return b - self(torch.cholesky_solve(flat, factor).T.reshape(w.shape).to(w))

        return apply

    def innovation(self, m: Tensor) -> Tensor:
        """R^{−1/2} (y − Hm)."""
        return (self.values - self.operator(m)) / self.noise_std


def _pullback(function: Map, z: Tensor) -> tuple[Tensor, Map]:
    """function(z) and w ↦ (∂function/∂z)ᵀ w, of use any number of times, also under no_grad."""
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        value = function(point) + 0 * point  # a constant has a derivative too

    def pull(w: Tensor) -> Tensor:
        return torch.autograd.grad(value, point, w, retain_graph=True)[0]

    return value.detach(), pull


class Referenced(Denoiser):
    """A denoiser with another reference: the same m(x, t), integrated from another Gaussian law.

    Args:
        denoiser: m(x, t).
        reference: a Gaussian law close to that of the denoiser, over the same process, v > 0.
    """

    def __init__(self, denoiser: Denoiser, reference: Reference) -> None:
        self.process, self.denoiser, self._reference = denoiser.process, denoiser, reference

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m(x, t)."""
        return self.denoiser(x, t)

    @property
    def reference(self) -> Reference:
        """The one given."""
        return self._reference


def posterior_reference(reference: Reference, observation: Observation) -> CorrelatedReference:
    """The law of X_0 given y, for X_0 of the reference's law: kriging.

    With G = R^{−1/2} H √S and N(μ, S) the reference,

        μ_y = μ + √S (1 + GᵀG)⁻¹ Gᵀ R^{−1/2} (y − Hμ),    S_y = √S (1 + GᵀG)⁻¹ √Sᵀ,

    by dense matrices with as many rows as there are coefficients: for thousands of them.

    Args:
        reference: N(μ, S), over an :class:`~spherediff.process.OrnsteinUhlenbeck`.
        observation: H, y and √R.

    Raises:
        TypeError: a process whose degrees decay each at a rate of its own.
    """
    event = reference.process.event_shape
    rows = reference.coefficients(reference.std * _modes(reference)).double()  # of √Sᵀ
    noise_std = observation.noise_std.to(rows)
    G = _observed(observation, rows)
    factor = torch.linalg.cholesky(torch.eye(len(G)).to(G) + G @ G.T)
    U = torch.linalg.solve_triangular(factor, rows.flatten(1), upper=False)
    mean = reference.mean.to(rows).expand(event)
    innovation = (observation.values.to(rows) - observation.operator(mean)) / noise_std
    shift = torch.cholesky_solve((G @ innovation)[:, None], factor)[:, 0] @ rows.flatten(1)
    floor = _SMALLEST_SHARE * rows.square().sum(0)
    return CorrelatedReference(
        reference.process,
        (mean + shift.reshape(event)).to(reference.mean),
        Covariance(floor, U.reshape(rows.shape)),
    )


def _modes(reference: Reference) -> Tensor:
    """Every mode of a reference by itself, (n, *event_shape)."""
    event = reference.process.event_shape
    return torch.eye(math.prod(event)).to(reference.std).reshape(-1, *event)


def _observed(observation: Observation, fields: Tensor) -> Tensor:
    """R^{−1/2} H of many fields, float64, (fields, m)."""
    noise_std = observation.noise_std.to(fields.device, torch.float64)
    G = noise_std.new_empty(len(fields), len(noise_std))  # may be gigabytes: once, and in place
    for part, rows in zip(fields.split(_ROWS), G.split(_ROWS), strict=True):
        torch.div(observation.operator(part.double()), noise_std, out=rows)
    return G
