"""Denoisers m(x, t) = E[X_0 | X_t = x] and the Malliavin–Gamma score.

Let X_t = α X_0 + σ ε, α and σ diagonal, have the law h_t γ.  Mode by mode the score is a
conditional expectation:

    ∂_i log p_t(x) = (α_i m_i − x_i)/σ_i²,
    D log h_t(x) = C∇log p_t(x) + x = (e^{−τ} m − e^{−2τ} x)/(1 − e^{−2τ})   (in H_C),

the last form being the Malliavin–Gamma score of Greco's process (arXiv 2505.13189).  So a model
is a denoiser; this module has the exact ones, the learned one, and guidance by labels.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from spherediff.calibration import Calibration
from spherediff.chaos import ChaosDensity
from spherediff.covariance import Covariance
from spherediff.gaussian import check_coefficients
from spherediff.process import ForwardProcess
from spherediff.reference import CorrelatedReference, Reference


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


class GaussianDenoiser(Denoiser):
    """Data N(μ, S): m = μ + Sα(αSα + σ²)⁻¹(x − αμ).

    Args:
        process: the forward process.
        variance: variance per coefficient, shape (n,) or (channels, n); or
        covariance: a diagonal plus low-rank :class:`~spherediff.covariance.Covariance`.
        mean: μ, shape of one event; zero if not given.

    Raises:
        TypeError: not exactly one of ``variance`` and ``covariance``.
        ValueError: shapes that do not fit the process, or numbers that are not finite.
    """

    def __init__(
        self,
        process: ForwardProcess,
        variance: Tensor | None = None,
        *,
        covariance: Covariance | None = None,
        mean: Tensor | None = None,
    ) -> None:
        if (variance is None) == (covariance is None):
            raise TypeError("give exactly one of variance and covariance")
        self.process = process
        place = {"device": process.field.device, "dtype": process.field.dtype}
        if covariance is None:
            assert variance is not None
            check_coefficients(process.field, variance, "variance")
            covariance = Covariance(variance.to(**place).expand(process.event_shape))
        if covariance.event_shape != process.event_shape:
            raise ValueError(
                f"expected a covariance of fields of shape {process.event_shape}, "
                f"got {covariance.event_shape}"
            )
        self.covariance = Covariance(covariance.diagonal.to(**place), covariance.factor.to(**place))
        self.mean = torch.zeros(process.event_shape, **place) if mean is None else mean.to(**place)
        check_coefficients(process.field, self.mean, "mean")
        _require_finite(self.mean, "mean")

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m(x, t) = μ + Sα(αSα + σ²)⁻¹(x − αμ)."""
        check_coefficients(self.process.field, x, "denoiser")
        alpha, sigma = self.process.marginal(t)
        residual = self.covariance.solve(alpha, sigma.square(), x - alpha * self.mean)
        return self.mean + self.covariance.matmul(alpha * residual)

    def log_density_ratio(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log h_t(x) = log dN(αμ, αSα + σ²)/dN(0, C)(x), shape (*batch,).

        At t = 0 it is that of the data, all of whose variances must then be positive.  Densities
        are taken with respect to γ, so the difference of two such numbers has a limit as lmax → ∞
        where the measures are equivalent.
        """
        field = self.process.field
        alpha, sigma = self.process.marginal(t)
        axes = tuple(range(-len(field.event_shape), 0))
        centred = x - alpha * self.mean
        residual = self.covariance.solve(alpha, sigma.square(), centred)
        log_det = self.covariance.log_det(alpha, sigma.square())
        log_det = log_det - field.variance_per_coefficient.log().sum()
        quadratic = (centred * residual).sum(axes) - field.whiten(x).square().sum(axes)
        return -0.5 * (quadratic + log_det)


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
        _require_finite(self.data, "archive")
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


class ChaosDenoiser(Denoiser):
    """A finite-chaos law h_0γ, γ = N(0, C) and h_0 = 1 + Σ c_a H_a: exact and not Gaussian.

    With V = α²C + σ² and the correlation ρ = α√(C/V) of X_0 and X_t under γ, Mehler's formula
    gives the law of X_t as F_t N(0, V), and m from its score:

        F_t(x) = 1 + Σ ρ^a c_a H_a(x/√V),    m = αC/V ⊙ x + σ²√C/V ⊙ ρ⁻¹∇_z F_t/F_t.

    For Greco's process with noise γ, V = C and F_t = Σ e^{−n_a τ} c_a H_a.

    Args:
        process: the forward process; its noise need not be γ.
        density: h_0 over γ.

    Raises:
        ValueError: the density's fields have another shape than those of the process.
    """

    def __init__(self, process: ForwardProcess, density: ChaosDensity) -> None:
        if density.field.event_shape != process.event_shape:
            raise ValueError(
                f"expected a density of fields of shape {process.event_shape}, "
                f"got {density.field.event_shape}"
            )
        self.process, self.density = process, density
        variance = density.field.variance_per_coefficient
        self.variance = variance.to(process.field.device, process.field.dtype)

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m(x, t)."""
        alpha, sigma, total = self._marginal(x, t)
        F = self.density.expansion
        z, correlation = self._standardised(x, alpha, total)
        slope = F.gradient(z, correlation) / F.value(z, correlation)[..., None]
        m = (alpha * self.variance / total * x).flatten(-self._events)
        pull = (sigma.square() * self.variance.sqrt() / total).expand_as(x).flatten(-self._events)
        m[..., F.modes] += pull[..., F.modes] * slope.to(x)
        return m.reshape(x.shape)

    def log_density_ratio(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log h_t(x) = log F_t + log dN(0, V)/dN(0, C')(x), C' that of the process's ``field``."""
        alpha, _, total = self._marginal(x, t)
        reference = self.process.field.variance_per_coefficient
        gaussian = x.square() / reference - x.square() / total + (reference / total).log()
        axes = tuple(range(-self._events, 0))
        factor = self.density.expansion.value(*self._standardised(x, alpha, total))
        return factor.log().to(x) + 0.5 * gaussian.sum(axes)

    def _marginal(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        check_coefficients(self.process.field, x, "denoiser")
        alpha, sigma = self.process.marginal(t)
        return alpha, sigma, alpha.square() * self.variance + sigma.square()

    def _standardised(self, x: Tensor, alpha: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """x/√V and ρ at the modes of the density, float64."""
        modes = self.density.expansion.modes
        correlation = (alpha * (self.variance / total).sqrt()).expand_as(x)
        z, r = ((v.flatten(-self._events))[..., modes] for v in (x / total.sqrt(), correlation))
        return z.double(), r.double()

    @property
    def _events(self) -> int:
        return len(self.process.event_shape)


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
        _require_finite(self.mean, "mean")
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


class Conditional(Protocol):
    """A law that depends on a label."""

    @property
    def process(self) -> ForwardProcess: ...

    @property
    def reference(self) -> Reference: ...

    def given(self, condition: Tensor) -> Denoiser:
        """The denoiser under labels of shape (*batch, k); all zeros: nothing is told."""
        ...


class GuidedDenoiser(Denoiser):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6), with w = 1 + their w.

    Between and beyond the denoiser of all fields, m_0, and that of a label's, m_c,

        m_w = m_0 + w (m_c − m_0),    and F_w = F_0 + w (F_c − F_0) likewise:

    w = 0 is not told, w = 1 is the conditional law, w > 1 goes for what is typical of the label:
    its score is that of p_t p_t(c | x)^w, which no forward process leads to, so that the fields
    have no law known in advance; the higher w, the less they differ from one another.

    Args:
        denoiser: under a label and without.
        condition: label c, shape (*batch, k) or (k,).
        weight: w; the label alone is evaluated for 1, and nothing else than the null label for 0.

    Raises:
        ValueError: a weight that is not finite.
    """

    def __init__(self, denoiser: Conditional, condition: Tensor, weight: float) -> None:
        if not math.isfinite(weight):
            raise ValueError(f"expected a finite weight of guidance, got {weight}")
        self.process, self.denoiser = denoiser.process, denoiser
        self.condition, self.weight = condition, weight

    @property
    def reference(self) -> Reference:
        """That of the denoiser, whatever the label."""
        return self.denoiser.reference

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m_w(x, t)."""
        return self._guided(lambda denoiser, x: denoiser(x, t), x)

    def residual(self, z: Tensor, t: Tensor | float) -> Tensor:
        """F_w(z, t)."""
        return self._guided(lambda denoiser, z: denoiser.residual(z, t), z)

    def _guided(self, evaluate: Callable[[Denoiser, Tensor], Tensor], x: Tensor) -> Tensor:
        w, told = self.weight, self.condition
        if w in (0, 1):
            return evaluate(self.denoiser.given(w * told), x)
        told = told.expand(*x.shape[: -len(self.process.event_shape)], -1)
        both = self.denoiser.given(torch.stack([told, torch.zeros_like(told)]))
        with_label, without = evaluate(both, x.expand(2, *x.shape))
        return without + w * (with_label - without)


def _require_finite(x: Tensor, what: str) -> None:
    if bad := int((~torch.isfinite(x)).sum()):
        raise ValueError(
            f"{what}: expected finite coefficients, found {bad} of {x.numel()} that are not in "
            f"{x.dtype}; leave out the fields that they are of"
        )
