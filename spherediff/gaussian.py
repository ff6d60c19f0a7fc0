"""Gaussian reference measures γ = N(0, C) and their Cameron–Martin spaces.

For an isotropic field C Y_i = C_ℓ Y_i.  The Cameron–Martin space is H_C = C^{1/2}H with
⟨g, h⟩_C = Σ g_i h_i / C_ℓ; translating γ by h gives an equivalent measure iff h ∈ H_C, with
log-density ⟨h, x⟩_C − ½‖h‖²_C.  Two isotropic measures N(0, S), N(0, C) are equivalent iff
Σ(2ℓ+1)(S_ℓ/C_ℓ − 1)² < ∞, and singular otherwise (Feldman–Hájek; Da Prato & Zabczyk 2014,
Theorem 2.25).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spherediff.harmonics import band_limit, count, expand
from spherediff.spectra import Spectrum, Tabulated
from spherediff.streams import Randomness, open_source


class GaussianMeasure:
    """What follows from whitening: sampling, the Cameron–Martin geometry, shifts.

    Attributes:
        lmax: band limit.
        event_shape: shape of one field's coefficients, (n,) or (channels, n).
    """

    lmax: int
    event_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def color(self, z: Tensor) -> Tensor:
        """C^{1/2} z: white noise of shape (..., *event_shape) to a draw of the field.

        Raises:
            ValueError: z has another shape, as in all methods below.
        """
        raise NotImplementedError

    def whiten(self, x: Tensor) -> Tensor:
        """C^{−1/2} x, the inverse of :meth:`color`."""
        raise NotImplementedError

    def sample(
        self,
        shape: Sequence[int] = (),
        *,
        generator: Randomness,
    ) -> Tensor:
        """Draw independent fields.

        Sample k is the same for every batch that reaches it, and its first (L+1)² coefficients
        are the same for every ``lmax`` ≥ L.

        Args:
            shape: batch shape.
            generator: a CPU generator, a sequence of them (one a sample), or open
                :class:`~spherediff.streams.Streams`.

        Returns:
            Coefficients of shape (*shape, *event_shape), in the units of the field.
        """
        source = open_source(generator, math.prod(shape))
        white = source.normal(self.event_shape, self.dtype).to(self.device)
        return self._color_in_place(white.reshape(*shape, *self.event_shape))

    def _color_in_place(self, z: Tensor) -> Tensor:
        """:meth:`color` of noise that nobody else needs."""
        return self.color(z)

    def inner(self, g: Tensor, h: Tensor) -> Tensor:
        """Cameron–Martin inner product ⟨g, h⟩_C, shape (...)."""
        product = self.whiten(g) * self.whiten(h)
        return product.sum(dim=tuple(range(-len(self.event_shape), 0)))

    def norm(self, h: Tensor) -> Tensor:
        """Cameron–Martin norm ‖h‖_C, shape (...); infinite outside H_C."""
        return self.inner(h, h).sqrt()

    def log_density_shift(self, h: Tensor, x: Tensor) -> Tensor:
        """Cameron–Martin theorem: log dN(h, C)/dN(0, C)(x) = ⟨h, x⟩_C − ½‖h‖²_C."""
        return self.inner(h, x) - 0.5 * self.inner(h, h)


class GaussianField(GaussianMeasure):
    """Isotropic Gaussian random field with band limit ``lmax``.

    Args:
        spectrum: C_ℓ as a function of ℓ; a :class:`~spherediff.spectra.Tabulated` with a channel
            axis gives independent channels.
        lmax: band limit.
        dtype: float32 or float64; torch's default if not given.
        device: where samples live; the CPU if not given.

    Raises:
        ValueError: C_ℓ negative or not finite.
    """

    def __init__(
        self,
        spectrum: Spectrum,
        lmax: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        count(lmax)
        C = spectrum(torch.arange(lmax + 1)).double()
        if not (torch.isfinite(C) & (C >= 0)).all():
            raise ValueError(
                "the spectrum must be finite and not negative at every degree up to "
                f"lmax={lmax}; its values lie between {float(C.min())} and {float(C.max())}"
            )
        self.spectrum, self.lmax = spectrum, lmax
        self.dtype, self.device = dtype or torch.get_default_dtype(), torch.device(device)
        self.degree_variance = C  # (channels?, lmax+1), float64
        self.event_shape = (*C.shape[:-1], count(lmax))
        self._std_by_degree = C.sqrt().to(self.device, self.dtype)

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> GaussianField:
        """The same field in another precision or on another device."""
        return GaussianField(
            self.spectrum,
            self.lmax,
            dtype=dtype or self.dtype,
            device=self.device if device is None else device,
        )

    @property
    def std_per_coefficient(self) -> Tensor:
        """√C_ℓ of each coefficient, shape ``event_shape``."""
        return expand(self._std_by_degree)

    @property
    def variance_per_coefficient(self) -> Tensor:
        """C_ℓ of each coefficient, shape ``event_shape``."""
        return expand(self.degree_variance.to(self.device, self.dtype))

    def color(self, z: Tensor) -> Tensor:
        """√C_ℓ z_i."""
        check_coefficients(self, z, "color")
        return z * self.std_per_coefficient

    def _color_in_place(self, z: Tensor) -> Tensor:
        return z.mul_(self.std_per_coefficient)

    def whiten(self, x: Tensor) -> Tensor:
        """x_i/√C_ℓ; where C_ℓ = 0, zero stays zero and anything else is infinite."""
        check_coefficients(self, x, "whiten")
        std = self.std_per_coefficient
        # what torch.where does not choose is finite too: gradients are NaN otherwise
        white = x / torch.where(std == 0, 1, std)
        return torch.where((std == 0) & (x != 0), x.detach() / std, white)

    @property
    def variance(self) -> Tensor:
        """Pointwise variance Σ(2ℓ+1)C_ℓ/4π up to ``lmax``, float64, shape () or (channels,)."""
        return (self.degree_variance * self._multiplicity).sum(-1) / (4 * math.pi)

    def correlation(self, angle: Tensor | np.ndarray | float) -> Tensor:
        """Correlation of the field at two points, Σ(2ℓ+1)C_ℓ P_ℓ(cos θ)/Σ(2ℓ+1)C_ℓ.

        Args:
            angle: angular distance θ in radians, any shape.

        Returns:
            float64, shape (*angle.shape) or (channels, *angle.shape).
        """
        cosine = np.cos(torch.as_tensor(angle, dtype=torch.float64).numpy())
        weight = self.degree_variance * self._multiplicity
        weight = weight / weight.sum(-1, keepdim=True)
        return torch.as_tensor(np.polynomial.legendre.legval(cosine, weight.movedim(-1, 0).numpy()))

    def equivalence(self, other: GaussianField) -> Tensor:
        """Feldman–Hájek partial sums Σ_{ℓ≤L}(2ℓ+1)(S_ℓ/C_ℓ − 1)², S the spectrum of ``other``.

        If they level off, N(0, S) and this field N(0, C) are equivalent; if they grow without
        bound the two measures are singular.

        Returns:
            float64 of shape (lmax+1,) or (channels, lmax+1), one partial sum for each L.

        Raises:
            ValueError: the two fields differ in lmax or channels.
        """
        r = self._ratio(other)
        return (self._multiplicity * (r - 1).square()).cumsum(-1)

    def relative_entropy(self, other: GaussianField) -> Tensor:
        """Partial sums of KL(N(0, S) ‖ N(0, C)) = Σ(2ℓ+1) ½(r_ℓ − 1 − log r_ℓ), r_ℓ = S_ℓ/C_ℓ.

        S is the spectrum of ``other``, C that of this field; it is infinite from the first degree
        in which only one of them is zero.  The sum converges as lmax → ∞ exactly when the two
        measures are equivalent.

        Returns:
            float64 of shape (lmax+1,) or (channels, lmax+1), in nats, one for each band limit.

        Raises:
            ValueError: the two fields differ in lmax or channels.
        """
        r = self._ratio(other)
        nats = torch.where(r.isinf(), r, 0.5 * (r - 1 - r.log()))
        return (self._multiplicity * nats).cumsum(-1)

    def _ratio(self, other: GaussianField) -> Tensor:
        """S_ℓ/C_ℓ, 1 where both are zero."""
        _require_same_event(self, other)
        S, C = other.degree_variance, self.degree_variance
        return torch.where((S == 0) & (C == 0), 1, S / C)

    @property
    def _multiplicity(self) -> Tensor:
        return 2 * torch.arange(self.lmax + 1, dtype=torch.float64) + 1


class MultivariateGaussianField(GaussianMeasure):
    """Isotropic Gaussian fields correlated across channels, with a matrix spectrum C_ℓ^{cc'}.

    Coefficients a_{ℓm} ∈ R^channels are independent over (ℓ, m) with covariance C_ℓ = L_ℓ L_ℓᵀ;
    C^{1/2} acts here as the Cholesky factor L_ℓ.

    Args:
        cross_spectrum: C_ℓ^{cc'}, shape (lmax+1, channels, channels), symmetric positive definite.
        dtype: float32 or float64; torch's default if not given.
        device: where samples live; the CPU if not given.

    Raises:
        ValueError: wrong shape, or a degree whose matrix is not symmetric positive definite.
    """

    def __init__(
        self,
        cross_spectrum: Tensor | np.ndarray,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        C = torch.as_tensor(cross_spectrum, dtype=torch.float64)
        if C.ndim != 3 or C.shape[1] != C.shape[2]:
            raise ValueError(
                f"expected C_ℓ of shape (lmax+1, channels, channels), got {tuple(C.shape)}"
            )
        if not torch.allclose(C, C.mT):
            raise ValueError("every C_ℓ must be symmetric")
        factor, failed = torch.linalg.cholesky_ex(C)
        if failed.any():
            ell = int(torch.nonzero(failed)[0])
            raise ValueError(
                "every C_ℓ must be positive definite; degree "
                f"{ell} has eigenvalues {torch.linalg.eigvalsh(C[ell]).tolist()}"
            )
        self.lmax = C.shape[0] - 1
        self.event_shape = (C.shape[1], count(self.lmax))
        self.dtype, self.device = dtype or torch.get_default_dtype(), torch.device(device)
        self.cross_spectrum = C
        self._factor = factor

    def color(self, z: Tensor) -> Tensor:
        """L_ℓ z over the channel axis."""
        check_coefficients(self, z, "color")
        return self._apply(self._factor, z)

    def whiten(self, x: Tensor) -> Tensor:
        """L_ℓ⁻¹ x over the channel axis."""
        check_coefficients(self, x, "whiten")
        eye = torch.eye(self.event_shape[0], dtype=torch.float64)
        return self._apply(torch.linalg.solve_triangular(self._factor, eye, upper=False), x)

    def _apply(self, matrices: Tensor, x: Tensor) -> Tensor:
        by_coefficient = expand(matrices.permute(1, 2, 0)).to(self.device, self.dtype)
        return torch.einsum("abn,...bn->...an", by_coefficient, x)

    @property
    def variance(self) -> Tensor:
        """Pointwise covariance of the channels, Σ(2ℓ+1)C_ℓ/4π, (channels, channels), float64."""
        multiplicity = 2 * torch.arange(self.lmax + 1, dtype=torch.float64) + 1
        return torch.einsum("l,lab->ab", multiplicity, self.cross_spectrum) / (4 * math.pi)

    def marginal(self, channel: int) -> GaussianField:
        """The field of one channel."""
        spectrum = Tabulated(self.cross_spectrum[:, channel, channel])
        return GaussianField(spectrum, self.lmax, dtype=self.dtype, device=self.device)

    def equivalence(self, other: MultivariateGaussianField) -> Tensor:
        """Feldman–Hájek partial sums Σ_{ℓ≤L}(2ℓ+1)‖L_ℓ⁻¹ S_ℓ L_ℓ⁻ᵀ − I‖²_F, shape (lmax+1,)."""
        _require_same_event(self, other)
        half = torch.linalg.solve_triangular(self._factor, other.cross_spectrum, upper=False)
        ratio = torch.linalg.solve_triangular(self._factor, half.mT, upper=False)
        excess = (ratio - torch.eye(self.event_shape[0], dtype=torch.float64)).square().sum((1, 2))
        return ((2 * torch.arange(self.lmax + 1) + 1) * excess).cumsum(0)


def _require_same_event(field: GaussianMeasure, other: GaussianMeasure) -> None:
    if field.event_shape != other.event_shape:
        raise ValueError(
            "expected fields of equal band limit and channels, got "
            f"lmax {field.lmax} {field.event_shape} and lmax {other.lmax} {other.event_shape}"
        )


def check_coefficients(field: GaussianMeasure, x: Tensor, what: str) -> None:
    """Raise ValueError unless ``x`` ends with the field's event shape."""
    expected = field.event_shape
    if tuple(x.shape[-len(expected) :]) == expected:
        return
    found = tuple(x.shape)
    try:
        limit = f", lmax {band_limit(x.shape[-1])}"
    except (ValueError, IndexError):
        limit = ""
    raise ValueError(
        f"{what}: expected coefficients of shape (..., {', '.join(map(str, expected))}) for "
        f"lmax {field.lmax}, found {found}{limit}"
    )
