"""Kriging: the exact law of a Gaussian field given linear observations.

Prior x ~ N(μ, S), observations y = Hx + ε, ε ~ N(0, N), N = diag(N_j).  The conditional law is
Gaussian with

    mean         μ + SHᵀ(HSHᵀ + N)⁻¹(y − Hμ),
    covariance   S − SHᵀ(HSHᵀ + N)⁻¹HS.

With a root S = RRᵀ both follow from the posterior precision A of white noise z, x = μ + Rz:

    A = 1 + RᵀHᵀN⁻¹HR,    mean μ + RA⁻¹RᵀHᵀN⁻¹(y − Hμ),    covariance RA⁻¹Rᵀ,

and the correction of a draw x' of the prior, with a draw ε' of the noise, is a draw of the
conditional law (Hoffman & Ribak 1991; Matheron's rule):

    x' + RA⁻¹RᵀHᵀN⁻¹(y − Hx' − ε').

Systems in A are solved by conjugate gradients; nothing but vectors is stored.  A has no eigenvalue
below 1, so a solution with residual r is wrong by at most ‖r‖ posterior standard deviations in any
direction: its error e has eᵀAe = rᵀA⁻¹r ≤ ‖r‖².  The other end of its spectrum is that of
N^{−1/2}(HSHᵀ + N)N^{−1/2}, so data space has the same condition number and needs as many
iterations.  What only coefficient space allows is to replace HᵀN⁻¹H by the mean t_ℓ of its
diagonal over the orders of each degree (Σ_j 1/N_j/4π for values at points): A is preconditioned by
P = 1 + RᵀtR.  For maps of most of the sphere P is close to A at any noise level.  A few stations
determine no coefficient by themselves: tr(1 − A⁻¹) ≤ m, and where P claims more, it is left out.

Noise far below the field and large unobserved areas together are hard: there P takes for known what
is not, and iterations grow with the ratio of field to noise.  Values of an isotropic field are
therefore preconditioned by what they tell on average over rotations about an axis
(:mod:`spherediff.zonal`), which sees caps about it and bands across it as they are.  With
gaps of another form, or another prior, a system that takes long is gone on with by

    A⁻¹ ≈ (1 − EEᵀ) P⁻¹ (1 − EEᵀ) + E (EᵀAE)⁻¹ Eᵀ,

E picking the 4096 numbers of z that are told most, by diag RᵀtR: degrees up to 63 of an isotropic
field, all there is of a small one, which is then solved directly.  Iterations then grow with the
ratio of field to noise beyond these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from spherediff._linear import Operator as Map
from spherediff._linear import conjugate_gradients
from spherediff._roots import Prior, root_of
from spherediff.gaussian import GaussianField
from spherediff.harmonics import degree_spectrum, expand
from spherediff.observe import Observation, Operator
from spherediff.streams import Randomness, open_source
from spherediff.zonal import ZonalInverse, axis_of

_PROBES = 8  # for the diagonal of HᵀN⁻¹H
_RESTARTS = 5
_PATIENCE = 100, 1000  # iterations before the numbers told most are taken together
_TOGETHER = 4096  # of them, a matrix of 128 MiB
_ZONAL = 255  # degree up to which they are told apart by latitude
_LARGEST_PART = 1 << 22  # numbers in the vectors of the systems that are solved at once


class Kriging:
    """The law of a Gaussian field given an observation, computed in float64.

    Args:
        observation: y, H and the standard deviations of the noise.
        prior: S, as an isotropic field, one correlated across channels, or diagonal plus low rank.
        mean: μ, shape (*event_shape); zero if not given.
        tolerance: largest error of means and draws in any direction, in posterior standard
            deviations; for covariances relative to the two standard deviations concerned.
        max_iterations: largest number of iterations of conjugate gradients.

    Raises:
        TypeError: a prior of another kind.
        ValueError: prior, mean and observation are not of fields of the same shape, a mean that is
            not finite, or a tolerance or number of iterations that is not positive.
    """

    def __init__(
        self,
        observation: Observation,
        prior: Prior,
        mean: Tensor | None = None,
        *,
        tolerance: float = 1e-3,
        max_iterations: int = 10_000,
    ) -> None:
        if not isinstance(prior, Prior):
            raise TypeError(
                "expected a GaussianField, a MultivariateGaussianField or a Covariance as prior, "
                f"got {type(prior).__name__}"
            )
        if not (tolerance > 0 and max_iterations > 0):
            raise ValueError(
                "expected a positive tolerance and number of iterations, got "
                f"{tolerance} and {max_iterations}"
            )
        H = observation.operator
        if H.event_shape != prior.event_shape:
            raise ValueError(
                f"expected a prior of fields of shape {H.event_shape}, that of the observation, "
                f"got {prior.event_shape}"
            )
        self.observation, self.prior = observation, prior
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.event_shape = H.event_shape
        self._root = root_of(prior)
        place = {"device": self._root.device, "dtype": torch.float64}
        self._y = observation.values.detach().to(**place)
        self._std = observation.noise_std.detach().to(**place)
        self._mu = torch.zeros(self.event_shape, **place)
        if mean is not None:
            self._mu = _checked(mean.detach(), self.event_shape).to(**place)
            if mean.ndim != len(self.event_shape):
                raise ValueError(f"expected one mean, found a batch of shape {tuple(mean.shape)}")
        self._information = self._diagonal()
        self._precondition: Map = self._zonal() or self._by_degree()
        self._together = False

    @property
    def mean(self) -> Tensor:
        """Posterior mean μ + SHᵀ(HSHᵀ + N)⁻¹(y − Hμ), shape (*event_shape), float64.

        Raises:
            RuntimeError: the tolerance was not reached.
        """
        return self._mu + self._root.apply(self._of_mean.z)

    @property
    def residual(self) -> float:
        """Bound on the error of :attr:`mean` in posterior standard deviations, ‖r‖."""
        return float(self._of_mean.residual)

    @property
    def iterations(self) -> int:
        """Number of iterations that :attr:`mean` took."""
        return self._of_mean.iterations

    def covariance_matmul(self, x: Tensor) -> Tensor:
        """(S − SHᵀ(HSHᵀ + N)⁻¹HS) x, shape (*batch, *event_shape), float64.

        ⟨g, result⟩ is the posterior covariance of ⟨g, field⟩ and ⟨x, field⟩; its error is at most
        ``tolerance`` times the product of their posterior standard deviations.

        Raises:
            ValueError: the trailing axes of ``x`` are not ``event_shape``, or it is not finite.
            RuntimeError: the tolerance was not reached.
        """
        flat = _checked(x, self.event_shape).detach().to(self._y)
        v = self._root.transpose(flat.reshape(-1, *self.event_shape))
        return self._root.apply(self._posterior(v)).reshape(x.shape)

    def variance(self, operator: Operator) -> Tensor:
        """Posterior variance of each number that an operator gives, shape (operator.size,).

        Values at stations, means over regions or single coefficients; one system is solved for
        each number.  For a whole map, the variance of K draws has the relative error √(2/K).

        Args:
            operator: G; the result is the diagonal of G Cov(x|y) Gᵀ, float64.

        Raises:
            ValueError: an operator for fields of another shape.
            RuntimeError: the tolerance was not reached.
        """
        if operator.event_shape != self.event_shape:
            raise ValueError(
                f"expected an operator on fields of shape {self.event_shape}, got one on "
                f"{operator.event_shape}"
            )
        found = []
        for rows in torch.arange(operator.size, device=self._y.device).split(self._part):
            unit = one_hot(rows, operator.size).to(self._y)
            v = self._root.transpose(operator.adjoint(unit))
            found.append((v * self._posterior(v)).sum(-1))
        return torch.cat(found)

    def sample(self, shape: Sequence[int] = (), *, generator: Randomness) -> Tensor:
        """Independent draws of the conditional law: constrained realisations.

        Sample k is the same, to within the tolerance, for every batch that reaches it.

        Args:
            shape: batch shape.
            generator: a CPU generator, a sequence of them (one a sample), or open
                :class:`~spherediff.streams.Streams`.

        Returns:
            Coefficients of shape (*shape, *event_shape), float64.

        Raises:
            RuntimeError: the tolerance was not reached.
        """
        source = open_source(generator, math.prod(shape))
        white = self._root.white(source).to(self._y)
        noise = source.normal((self.observation.operator.size,), torch.float64).to(self._y)
        x = white.new_empty(len(white), *self.event_shape)
        for k in range(0, len(x), self._part):
            part = slice(k, k + self._part)
            x[part] = self._mu + self._root.apply(white[part])
            misfit = self._y - self.observation.operator(x[part]) - self._std * noise[part]
            x[part] += self._root.apply(self._solve(self._gradient(misfit)).z)
        return x.reshape(*shape, *self.event_shape)

    @cached_property
    def _of_mean(self) -> _Solution:
        return self._solve(self._gradient(self._y - self.observation.operator(self._mu)))

    def _posterior(self, v: Tensor) -> Tensor:
        """A⁻¹ v; vᵀA⁻¹v ≥ (vᵀv)²/vᵀAv says how small the posterior variance may be."""
        parts = []
        for part in v.split(self._part):
            square = part.square().sum(-1, keepdim=True)
            least = square / (part * self._precision(part)).sum(-1, keepdim=True).sqrt()
            parts.append(self._solve(part, least.nan_to_num(1.0)).z)
        return torch.cat(parts) if parts else v

    def _solve(self, b: Tensor, std: Tensor | float = 1.0) -> _Solution:
        """A⁻¹ b with residuals of at most ``tolerance`` times ``std``, which may be (*batch, 1).

        Rounding keeps the residual of conjugate gradients from falling as their recursion says;
        solving for what is left, a few times over, makes up for it.
        """
        allowed = self.tolerance * std
        z, residual, iterations = torch.zeros_like(b), b, 0
        for _ in range(_RESTARTS):
            relative = allowed / residual.norm(dim=-1, keepdim=True)
            most = self.max_iterations - iterations
            if not self._together:
                most = min(most, self._patience(math.prod(b.shape[:-1])))
            found = conjugate_gradients(
                self._precision, residual, relative, most, preconditioner=self._precondition
            )
            z = z + found.solution
            residual = b - self._precision(z)
            iterations += found.iterations
            if bool((residual.norm(dim=-1, keepdim=True) <= allowed).all()):
                return _Solution(z, residual.norm(dim=-1), iterations)
            if found.iterations == most and iterations < self.max_iterations:
                self._take_together()
        left = float((residual.norm(dim=-1, keepdim=True) / std).max())
        raise RuntimeError(
            f"conjugate gradients left a residual of {left:.1e} "
            f"posterior standard deviations after {iterations} iterations, more than the tolerance "
            f"{self.tolerance:.1e}: allow more than {self.max_iterations} iterations "
            "(max_iterations) or a larger tolerance; observations far more precise than the prior "
            "take long, so consider a larger noise_std"
        )

    def _precision(self, z: Tensor) -> Tensor:
        """A z = z + RᵀHᵀN⁻¹HRz."""
        return z + self._gradient(self.observation.operator(self._root.apply(z)))

    def _gradient(self, misfit: Tensor) -> Tensor:
        """RᵀHᵀN⁻¹ misfit."""
        weighted = misfit / self._std.square()
        return self._root.transpose(self.observation.operator.adjoint(weighted))

    def _patience(self, systems: int) -> int:
        """Iterations until A was applied as often as its rows that are taken together need.

        What is known of rotations also says how numbers told most hang together with others, which
        is lost then: it is given up late.
        """
        least, largest = _PATIENCE
        if isinstance(self._precondition, ZonalInverse):
            return largest
        return min(max(least, min(_TOGETHER, self._root.size) // max(1, systems)), largest)

    def _take_together(self) -> None:
        """From now on precondition by the exact inverse for the numbers that are told most."""
        size = self._root.size
        chosen = self._root.told(self._information).topk(min(_TOGETHER, size)).indices
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._precision_among(chosen)))
        others = self._y.new_ones(size).index_fill(0, chosen, 0)
        apart = self._by_degree()  # its restriction is the inverse of a restriction

        def precondition(r: Tensor) -> Tensor:
            z = others * apart(others * r)
            return z.index_copy(-1, chosen, r[..., chosen] @ inverse)

        self._precondition, self._together = precondition, True

    def _precision_among(self, chosen: Tensor) -> Tensor:
        """EᵀAE for the chosen numbers of z."""
        among = self._y.new_empty(len(chosen), len(chosen))
        for rows, part in zip(among.split(self._part), chosen.split(self._part), strict=True):
            rows.copy_(self._precision(one_hot(part, self._root.size).to(self._y))[:, chosen])
        return among

    def _zonal(self) -> ZonalInverse | None:
        """By what is told on average over rotations about the axis, where that is known."""
        places = self.observation.operator.places(self._std.square().reciprocal())
        if places is None or not isinstance(self.prior, GaussianField):
            return None
        lowest = self.prior.degree_variance[: _ZONAL + 1].to(self._y).sqrt()
        axis = axis_of(places, lowest)
        rings = [some.about(axis) for some in places]
        P = ZonalInverse(rings, lowest, 1 + self._information * self._root.variance, axis)
        return P if P.claims <= self.observation.operator.size else None

    def _by_degree(self) -> Map:
        gain = self._information * self._root.variance
        credible = (gain / (1 + gain)).sum() <= self.observation.operator.size
        return self._root.preconditioner(credible * self._information)

    def _diagonal(self) -> Tensor:
        """t of each coefficient; E[(HᵀN^{−1/2}s)_i²] is that of HᵀN⁻¹H for random signs s."""
        H = self.observation.operator
        generator = torch.Generator().manual_seed(0)
        signs = 2 * torch.randint(2, (_PROBES, H.size), generator=generator) - 1
        probes = H.adjoint(signs.to(self._y) / self._std)
        return expand(degree_spectrum(probes).mean(0))

    @property
    def _part(self) -> int:
        return max(1, _LARGEST_PART // max(self._root.size, self.observation.operator.size))


class _Solution(NamedTuple):
    z: Tensor
    residual: Tensor  # norm for each system
    iterations: int


def _checked(x: Tensor, event_shape: tuple[int, ...]) -> Tensor:
    if tuple(x.shape[x.ndim - len(event_shape) :]) != event_shape:
        raise ValueError(
            f"expected coefficients of shape (..., {', '.join(map(str, event_shape))}), "
            f"got {tuple(x.shape)}"
        )
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{bad} of {x.numel()} coefficients are NaN or infinite")
    return x
