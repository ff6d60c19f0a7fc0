"""Angular power spectra C_ℓ of isotropic Gaussian fields.

An isotropic Gaussian field u = Σ a_{ℓm} Y_{ℓm} has independent coefficients of variance C_ℓ.  It
lives in L²(S²) iff Σ(2ℓ+1)C_ℓ < ∞, and its pointwise variance is Σ(2ℓ+1)C_ℓ/4π.

The Whittle–Matérn field solves (κ² − Δ)^{α/2} u = τ⁻¹ W with α = ν + 1 (Lindgren, Rue & Lindström
2011, §2.3), so that

    C_ℓ = τ⁻² (κ² + ℓ(ℓ+1))^{−(ν+1)},    κ = √(8ν)/ρ.

Its public parameters are the pointwise standard deviation σ, the smoothness ν and the correlation
length ρ (radians); τ follows from the *untruncated* variance series, so that σ does not depend on
a band limit.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from spherediff.harmonics import band_limit, degree_spectrum

# where maximum likelihood looks for the parameters
_KAPPA, _SMOOTHNESS = (1e-3, 1e6), (1e-3, 1e3)


class Spectrum(Protocol):
    """C_ℓ as a function of the degree ℓ."""

    def __call__(self, degrees: Tensor) -> Tensor:
        """C_ℓ in float64 at integer ``degrees`` of shape (k,): shape (k,), or (channels, k)."""
        ...


@dataclass(frozen=True)
class WhittleMatern:
    """Whittle–Matérn spectrum C_ℓ = τ⁻² (κ² + ℓ(ℓ+1))^{−(ν+1)}.

    Args:
        std: pointwise standard deviation σ > 0, in the units of the field.
        smoothness: ν > 0; samples are almost ν times differentiable.
        correlation_length: ρ > 0 in radians; the correlation at angle ρ is about 0.1.

    Raises:
        ValueError: a parameter is not positive and finite (for ν ≤ 0 the covariance is not trace
            class: the "field" is not a function).
    """

    std: float
    smoothness: float
    correlation_length: float

    def __post_init__(self) -> None:
        for name in ("std", "smoothness", "correlation_length"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                reason = "; ν ≤ 0 gives no trace-class covariance" if name == "smoothness" else ""
                raise ValueError(f"{name} must be positive and finite, got {value}{reason}")

    @property
    def kappa(self) -> float:
        """κ = √(8ν)/ρ, in inverse radians."""
        return math.sqrt(8 * self.smoothness) / self.correlation_length

    @property
    def tau(self) -> float:
        """τ such that the pointwise variance of the untruncated field is σ²."""
        return math.exp(self._log_tau)

    @property
    def _log_tau(self) -> float:
        return 0.5 * _log_variance_series(self.smoothness, self.kappa) - math.log(self.std)

    def __call__(self, degrees: Tensor) -> Tensor:
        """C_ℓ in float64, shape of ``degrees``."""
        ell = degrees.to(torch.float64)
        shape = torch.log(self.kappa**2 + ell * (ell + 1)) * -(self.smoothness + 1)
        return torch.exp(shape - 2 * self._log_tau)

    @staticmethod
    def fit(coefficients: Tensor, lmin: int = 1) -> WhittleMaternFit:
        """Maximum-likelihood fit to the degree spectra of a set of fields.

        With N independent isotropic Gaussian fields, N(2ℓ+1)Ĉ_ℓ/C_ℓ is χ² with N(2ℓ+1) degrees of
        freedom, so −2 log L = N Σ(2ℓ+1)(Ĉ_ℓ/C_ℓ + log C_ℓ) (Bond, Jaffe & Knox 2000, eq. 10).

        Args:
            coefficients: fields of mean zero, shape (..., n), all leading axes pooled.
            lmin: lowest degree used; the mean of the sphere (ℓ = 0) is left out by default, since
                anomalies often lack it.

        Returns:
            The fitted spectrum with standard errors from the Fisher information, which count the
            fields as independent.

        Raises:
            ValueError: a negative ``lmin``, fewer than four degrees, non-finite values, or a degree
                without power.

        Warns:
            UserWarning: the fitted noise is smoother than the data (see
                :attr:`WhittleMaternFit.excess_slope`), or κ or ν ends at a bound.
        """
        fields = coefficients.detach().reshape(-1, coefficients.shape[-1]).double()
        lmax = band_limit(fields.shape[-1])
        if lmin < 0:
            raise ValueError(f"lmin must be at least 0, got {lmin}")
        if lmax - lmin < 3:
            raise ValueError(f"expected at least four degrees above lmin={lmin}, got lmax={lmax}")
        empirical = degree_spectrum(fields).mean(0)[lmin:]
        bad = ~(torch.isfinite(empirical) & (empirical > 0))
        if bad.any():
            place = int(torch.nonzero(bad)[0])
            raise ValueError(
                "expected finite coefficients with power in every degree from lmin on; "
                f"degree {lmin + place} has mean square {float(empirical[place])}"
            )
        ell = torch.arange(lmin, lmax + 1)
        weight = len(fields) * (2 * ell + 1).double()
        return _fit_whittle_matern(ell, empirical, weight)


@dataclass(frozen=True)
class WhittleMaternFit:
    """A fitted Whittle–Matérn spectrum.

    Attributes:
        spectrum: the fitted :class:`WhittleMatern`.
        standard_errors: standard errors of (std, smoothness, correlation_length), by name.
        excess_slope: slope of log(Ĉ_ℓ/C_ℓ) against log ℓ over the upper half of the degrees.  If
            it is positive the data are rougher than the fitted noise, and the Feldman–Hájek sum
            of the two grows without bound.
        excess_slope_error: standard error of that slope under the model.
    """

    spectrum: WhittleMatern
    standard_errors: dict[str, float]
    excess_slope: float
    excess_slope_error: float


@dataclass(frozen=True)
class PowerLaw:
    """Power law C_ℓ = A (1+ℓ)^{−p} (Lang & Schwab 2015, §4: samples are Hölder of order < p/2 − 1).

    Args:
        amplitude: A > 0, squared units of the field.
        exponent: p > 2, for a trace-class covariance.

    Raises:
        ValueError: A ≤ 0 or p ≤ 2.
    """

    amplitude: float
    exponent: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.amplitude) and self.amplitude > 0):
            raise ValueError(f"amplitude must be positive and finite, got {self.amplitude}")
        if not (math.isfinite(self.exponent) and self.exponent > 2):
            raise ValueError(
                f"exponent must exceed 2 for a trace-class covariance, got {self.exponent}"
            )

    def __call__(self, degrees: Tensor) -> Tensor:
        """C_ℓ in float64, shape of ``degrees``."""
        return self.amplitude * (1 + degrees.double()) ** -self.exponent


class Tabulated:
    """A table of C_ℓ, ℓ = 0 … lmax.

    Args:
        C: array-like of shape (lmax+1,), or (channels, lmax+1) for independent channels, each
            with its own spectrum; squared units of the field.

    Raises:
        ValueError: negative or non-finite entries, another number of axes.
    """

    def __init__(self, C: Tensor | np.ndarray | list) -> None:
        table = torch.as_tensor(C, dtype=torch.float64)
        if table.ndim not in (1, 2) or table.shape[-1] < 1:
            raise ValueError(
                f"expected C_ℓ of shape (lmax+1,) or (channels, lmax+1), got {tuple(table.shape)}"
            )
        bad = ~(torch.isfinite(table) & (table >= 0))
        if bad.any():
            place = int(torch.nonzero(bad)[0, -1])
            raise ValueError(
                f"C_ℓ must be finite and not negative; degree {place} has "
                f"{float(table[..., place].min())}"
            )
        self.C = table

    def __call__(self, degrees: Tensor) -> Tensor:
        """C_ℓ in float64; raises ValueError for a degree beyond the table."""
        top = int(degrees.max())
        if top >= self.C.shape[-1]:
            raise ValueError(
                f"the table ends at degree {self.C.shape[-1] - 1}, asked for degree {top}"
            )
        return self.C[..., degrees]


def _log_variance_series(nu: float, kappa: float) -> float:
    """log Σ_{ℓ≥0} (2ℓ+1)/(4π) (κ² + ℓ(ℓ+1))^{−(ν+1)}, to about 13 digits of the sum.

    With x = ℓ+½ the summand is f(x) = 2x (b + x²)^{−(ν+1)}, b = κ² − ¼: the sum is taken up to
    ℓ < M, and the rest is the midpoint Euler–Maclaurin formula
    ∫_M^∞ f + f'(M)/24 − 7 f'''(M)/5760, whose integral is (b + M²)^{−ν}/ν.  Both are taken in
    units of the largest summand, since f itself leaves the range of numbers for a large ν.
    """
    M = math.ceil(100 + 4 * kappa)
    b, p = kappa**2 - 0.25, nu + 1
    x = np.arange(M) + 0.5
    log_f = np.log(2 * x) - p * np.log(b + x**2)
    largest = float(log_f.max())
    head = float(np.sum(np.exp(log_f - largest)[::-1]))
    r = b + M**2
    first = 2 - 4 * p * M**2 / r
    third = -12 * p / r + 48 * p * (p + 1) * M**2 / r**2 - 16 * p * (p + 1) * (p + 2) * M**4 / r**3
    tail = math.exp(-p * math.log(r) - largest) * (r / nu + first / 24 - 7 * third / 5760)
    return largest + math.log((head + tail) / (4 * math.pi))


def _fit_whittle_matern(ell: Tensor, empirical: Tensor, weight: Tensor) -> WhittleMaternFit:
    """Minimise ½ Σ w(Ĉ/C + log C) over θ = (log A, log κ, log ν).

    log C_ℓ = log A − (ν+1) log(1 + ℓ(ℓ+1)/κ²), and the Fisher information is ½ Jᵀ diag(w) J with
    J = ∂ log C/∂θ.
    """
    eigenvalue = (ell * (ell + 1)).double().numpy()
    target, w = empirical.numpy(), weight.numpy()

    def log_spectrum(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kappa, nu = np.exp(theta[1:])
        u = eigenvalue / kappa**2
        jacobian = np.stack([np.ones_like(u), 2 * (nu + 1) * u / (1 + u), -nu * np.log1p(u)], 1)
        return theta[0] - (nu + 1) * np.log1p(u), jacobian

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        log_C, jacobian = log_spectrum(theta)
        # the line search may try absurd parameters; the bound keeps its objective finite
        ratio = np.exp(np.minimum(np.log(target) - log_C, 500))
        loss = 0.5 * np.average(ratio + log_C, weights=w)
        return float(loss), 0.5 * np.average((1 - ratio)[:, None] * jacobian, axis=0, weights=w)

    bounds = [(None, None), *np.log([_KAPPA, _SMOOTHNESS]).tolist()]
    starts = [
        np.array([math.log(target[0]), math.log(kappa), math.log(nu)])
        for kappa in (2.0, 10.0, 50.0)
        for nu in (0.5, 2.0)
    ]
    best = min(
        (
            minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, tol=1e-14)
            for start in starts
        ),
        key=lambda result: result.fun,
    )
    spectrum, public = _public_parameters(best.x)
    log_C, jacobian = log_spectrum(best.x)
    fisher = 0.5 * (jacobian.T * w) @ jacobian
    covariance = public @ np.linalg.pinv(fisher, hermitian=True) @ public.T
    errors = np.sqrt(np.clip(np.diag(covariance), 0, None)).tolist()
    slope, slope_error = _excess_slope(ell.numpy(), np.log(target) - log_C, w)
    # One false alarm in about 30,000 fits to data that follow the model.
    if slope > 4 * slope_error:
        warnings.warn(
            "the fitted noise is smoother than the data: towards high degrees the data's spectrum "
            f"exceeds the fit as ℓ^{slope:.2f} (± {slope_error:.2f}). A diffusion with this noise "
            "starts from a measure that is singular to the data; choose a smaller smoothness, or "
            "Tabulated with the data's own spectrum",
            stacklevel=3,
        )
    if reached := _bounds_reached(best.x):
        warnings.warn(
            f"the fit ends at a bound of its search, {reached}: no Whittle–Matérn spectrum is the "
            "best for these data (one with a cut-off asks for ν → ∞, a white one for κ → ∞, a pure "
            "power law for κ → 0), and standard errors say little. Tabulated has the data's own "
            "spectrum",
            stacklevel=3,
        )
    names = ("std", "smoothness", "correlation_length")
    return WhittleMaternFit(spectrum, dict(zip(names, errors, strict=True)), slope, slope_error)


def _bounds_reached(theta: np.ndarray) -> str:
    """Which of κ and ν, from (log A, log κ, log ν), are at the end of their range."""
    found = {"κ": (theta[1], _KAPPA), "ν": (theta[2], _SMOOTHNESS)}
    return " and ".join(
        f"{name} = {math.exp(value):g}"
        for name, (value, ends) in found.items()
        if np.isclose(value, np.log(ends)).any()
    )


def _public_parameters(theta: np.ndarray) -> tuple[WhittleMatern, np.ndarray]:
    """(σ, ν, ρ) from (log A, log κ, log ν), and the Jacobian of that map (3, 3)."""

    def parameters(point: np.ndarray) -> np.ndarray:
        kappa, nu = np.exp(point[1:])
        log_variance = point[0] + 2 * (nu + 1) * point[1] + _log_variance_series(nu, kappa)
        return np.array([math.exp(0.5 * log_variance), nu, math.sqrt(8 * nu) / kappa])

    step = 1e-5
    columns = [
        (parameters(theta + step * unit) - parameters(theta - step * unit)) / (2 * step)
        for unit in np.eye(3)
    ]
    return WhittleMatern(*parameters(theta).tolist()), np.stack(columns, axis=1)


def _excess_slope(ell: np.ndarray, log_ratio: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """Weighted least-squares slope of log(Ĉ/C) on log ℓ, upper half; Var log(Ĉ/C) ≈ 2/w."""
    upper = ell >= (ell[0] + ell[-1]) / 2
    x, y, w = np.log(ell[upper]), log_ratio[upper], w[upper]
    x = x - np.average(x, weights=w)
    information = np.sum(w * x**2)
    return float(np.sum(w * x * y) / information), math.sqrt(2 / information)
