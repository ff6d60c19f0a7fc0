"""What every statistic starts from: numbers of each map, computed once for the whole pool.

Fields are compared in local units, x(s) = (f(s) − μ(s))/σ(s) with the mean and the standard
deviation of the real maps (reference and training) at each place s.  The places are the nodes of
a Gauss–Legendre grid.  Bands are

    ψ_j = Σ_ℓm b(ℓ/2^j) a_ℓm Y_ℓm,   b(2^u) = cos(πu/2) for −1 < u < 1, else 0,   Σ_j b(ℓ/2^j)² = 1,

a needlet frame (Narcowich, Petrushev & Ward 2006) with windows of an octave to either side.
Gradients are exact, by spin-1 synthesis.  Principal components, √C_ℓ and thresholds are those
of a third of the training maps, with at most one component for five of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import ducc0
import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff.grids import GaussLegendre, Points
from spherediff.metrics.distributions import Histograms
from spherediff.metrics.resampling import Members, Sets

Array = NDArray[np.float64]

SEPARATIONS = (5, 15, 45)  # degrees
_BELTS, _SECTORS = 4, 6  # of the regions
_COARSEST, _COARSE, _FINEST = 11, 15, 31  # band limits of grids of places
_PAIRS = 500
_COMPONENTS = 50


def octaves(lmax: int) -> list[tuple[int, int]]:
    """Degrees (1, 1), (2, 3), (4, 7), … (lowest, highest) up to ``lmax``."""
    return [(2**k, min(2 ** (k + 1) - 1, lmax)) for k in range(int(lmax).bit_length())]


def band_windows(lmax: int) -> Array:
    """b(ℓ/2^j), shape (bands, lmax + 1); zero at ℓ = 0."""
    bands = 1 + math.ceil(math.log2(lmax))
    octave = np.log2(np.arange(1, lmax + 1))
    u = octave - np.arange(bands)[:, None]
    windows = np.where(np.abs(u) < 1, np.cos(math.pi / 2 * u), 0.0)
    return np.pad(windows, ((0, 0), (1, 0)))


@dataclass(frozen=True)
class Features:
    """One field of all maps of a pool.

    Attributes:
        coefficients: float64, shape (maps, (lmax+1)²), in the units of the field.
        sets: which of the maps are what.
        units: of the field.
    """

    coefficients: Tensor
    sets: Sets
    units: str = ""

    @property
    def channels(self) -> tuple[Features, ...]:
        """This one field."""
        return (self,)

    @cached_property
    def lmax(self) -> int:
        """Band limit."""
        return harmonics.band_limit(self.coefficients.shape[-1])

    @cached_property
    def grid(self) -> GaussLegendre:
        """The places."""
        return GaussLegendre(min(max(self.lmax, _COARSEST), _FINEST))

    @cached_property
    def sparse_grid(self) -> GaussLegendre:
        """Fewer places, where the order of all maps is taken at each."""
        return GaussLegendre(min(max(self.lmax, _COARSEST), _COARSE))

    @cached_property
    def area(self) -> Array:
        """Of each place as a fraction of the sphere, shape (places,)."""
        return self.grid.area_weights.numpy().ravel() / (4 * math.pi)

    @cached_property
    def region(self) -> NDArray[np.intp]:
        """Region of each place: four belts of equal area, six sectors of each."""
        belt = np.floor((1 - np.sin(np.radians(self.grid.latitude))) / 2 * _BELTS)
        sector = np.floor(self.grid.longitude / 360 * _SECTORS)
        return (belt[:, None] * _SECTORS + sector).astype(np.intp).ravel()

    @cached_property
    def physical(self) -> Array:
        """Values in the units of the field, shape (maps, places)."""
        return self.grid.synthesis(self.coefficients).flatten(1).numpy()

    @cached_property
    def values(self) -> Array:
        """Values in local units, shape (maps, places)."""
        return _standardised(self.physical, self.sets.real)

    @cached_property
    def sparse(self) -> Array:
        """Values in local units at fewer places, shape (maps, places)."""
        values = self.sparse_grid.synthesis(self.coefficients).flatten(1).numpy()
        return _standardised(values, self.sets.real)

    @property
    def sparse_area(self) -> Array:
        """Of each of these as a fraction of the sphere."""
        return self.sparse_grid.area_weights.numpy().ravel() / (4 * math.pi)

    @cached_property
    def power(self) -> Array:
        """Variance that each degree contributes to a map, Σ_m a_ℓm²/4π, shape (maps, lmax + 1)."""
        return harmonics.sum_orders(self.coefficients.square()).numpy() / (4 * math.pi)

    @cached_property
    def regional(self) -> Histograms:
        """Of values in local units in the regions."""
        return Histograms.of(self.values, self.area, self.region)

    @cached_property
    def means(self) -> Array:
        """Mean of the values in local units over each region, shape (maps, regions)."""
        share = self.area / np.bincount(self.region, self.area)[self.region]
        return self.values @ (np.eye(_BELTS * _SECTORS)[self.region] * share[:, None])

    @cached_property
    def gradient(self) -> Histograms:
        """Of ‖∇f‖ in units of its local root mean square."""
        size = gradient_magnitude(self.coefficients, self.grid)
        scale = np.sqrt(np.square(size[self.sets.real]).mean(axis=0))
        return Histograms.of(size / scale, self.area, np.zeros_like(self.region))

    @cached_property
    def increments(self) -> Histograms:
        """Of f(s) − f(t) over random pairs, in units of their root mean square, by separation."""
        here, there = random_pairs()
        difference = (
            here.synthesis(self.coefficients) - there.synthesis(self.coefficients)
        ).numpy()
        scale = np.sqrt(np.square(difference[self.sets.real]).mean(axis=0))
        group = np.repeat(np.arange(len(SEPARATIONS)), _PAIRS)
        return Histograms.of(difference / scale, np.ones(len(group)), group)

    @cached_property
    def bands(self) -> Array:
        """Area means of powers one to four of ψ_j in local units, shape (4, maps, bands)."""
        moments = []
        for window in band_windows(self.lmax):
            filtered = self.coefficients * harmonics.expand(torch.from_numpy(window))
            psi = _standardised(self.grid.synthesis(filtered).flatten(1).numpy(), self.sets.real)
            square = np.square(psi)
            moments.append([x @ self.area for x in (psi, square, square * psi, square * square)])
        return np.array(moments).transpose(1, 2, 0)

    @cached_property
    def extremes(self) -> Array:
        """Area mean, maximum, minimum, area above the local 95th percentile, shape (maps, 4)."""
        x = self.physical
        high = np.quantile(x[self.sets.basis], 0.95, axis=0)
        return np.stack([x @ self.area, x.max(1), x.min(1), (x > high) @ self.area], axis=1)

    @cached_property
    def scores(self) -> Array:
        """Standardised principal components, shape (maps, components)."""
        return principal_components(self.coefficients.numpy(), self.sets.basis)

    @cached_property
    def squared_distances(self) -> Array:
        """Mean squared difference over the sphere in units of its average, shape (maps, maps)."""
        return _squared_distances(self.coefficients.numpy(), self.sets.real)

    @cached_property
    def whitened_distances(self) -> Array:
        """The same with each coefficient divided by √C_ℓ."""
        a = self.coefficients.numpy()
        anomalies = a[self.sets.basis] - a[self.sets.basis].mean(axis=0)
        spectrum = harmonics.degree_spectrum(torch.from_numpy(anomalies)).mean(0)
        weight = torch.where(spectrum > 0, spectrum.rsqrt(), 0.0)
        return _squared_distances(a * harmonics.expand(weight).numpy(), self.sets.real)

    @cached_property
    def to_training(self) -> Array:
        """Mean squared difference of the fields in local units, shape (maps, training maps)."""
        x = self.values * np.sqrt(self.area)
        return _squares(x, x[self.sets.training])


@dataclass(frozen=True)
class JointFeatures:
    """Several fields of all maps of a pool, each in units of its standard deviation.

    Attributes:
        channels: the fields.
    """

    channels: tuple[Features, ...]

    @property
    def sets(self) -> Sets:
        """Which of the maps are what."""
        return self.channels[0].sets

    @cached_property
    def means(self) -> Array:
        """As for one field, those of all side by side."""
        return np.concatenate([one.means for one in self.channels], axis=1)

    @cached_property
    def scores(self) -> Array:
        """Standardised principal components of all fields together, shape (maps, components)."""
        fields = [one.coefficients.numpy() for one in self.channels]
        scales = [np.sqrt(x[self.sets.real].var(axis=0).sum()) for x in fields]
        joint = np.concatenate([x / s for x, s in zip(fields, scales, strict=True)], axis=1)
        return principal_components(joint, self.sets.basis)

    @property
    def squared_distances(self) -> Array:
        """As for one field, averaged over fields."""
        return np.mean([one.squared_distances for one in self.channels], axis=0)

    @property
    def whitened_distances(self) -> Array:
        """As for one field, averaged over fields."""
        return np.mean([one.whitened_distances for one in self.channels], axis=0)

    @property
    def to_training(self) -> Array:
        """As for one field, averaged over fields."""
        return np.mean([one.to_training for one in self.channels], axis=0)


def _standardised(x: Array, real: Members) -> Array:
    std = x[real].std(axis=0)
    return (x - x[real].mean(axis=0)) / np.where(std > 0, std, 1.0)


def _squares(x: Array, y: Array) -> Array:
    """‖x_i − y_j‖², about a common centre lest large means cancel."""
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
    return np.maximum(squares, 0.0)


def _squared_distances(x: Array, real: Members) -> Array:
    squares = _squares(x, x)
    np.fill_diagonal(squares, 0.0)
    return squares / squares[np.ix_(real, real)].mean()


def gradient_magnitude(a: Tensor, grid: GaussLegendre) -> Array:
    """‖∇f‖ on the unit sphere, by spin-1 synthesis; (maps, (lmax+1)²) → (maps, places)."""
    nlat, nlon = grid.shape
    size = np.empty((len(a), nlat * nlon))
    for packed, row in zip(harmonics.to_healpy(a).numpy(), size, strict=True):
        components = ducc0.sht.synthesis_2d(
            alm=packed[None], spin=1, lmax=harmonics.band_limit(a.shape[-1]), geometry="GL",
            ntheta=nlat, nphi=nlon, mode="DERIV1", nthreads=torch.get_num_threads(),
        )  # fmt: skip
        np.hypot(*components.reshape(2, -1), out=row)
    return size


def random_pairs() -> tuple[Points, Points]:
    """The same pairs of points at every call, for each separation in turn."""
    rng = np.random.default_rng(5)
    start = rng.normal(size=(len(SEPARATIONS) * _PAIRS, 3))
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    tangent = np.cross(start, rng.normal(size=start.shape))
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    angle = np.radians(np.repeat(SEPARATIONS, _PAIRS))[:, None]
    end = np.cos(angle) * start + np.sin(angle) * tangent
    return _points(start), _points(end)


def _points(vectors: Array) -> Points:
    x, y, z = vectors.T
    return Points(np.degrees(np.arcsin(np.clip(z, -1, 1))), np.degrees(np.arctan2(y, x)))


def principal_components(x: Array, basis: Members) -> Array:
    """Scores of all maps, of mean 0 and variance 1 over the basis, shape (maps, components)."""
    centred = x - x[basis].mean(axis=0)
    fitted = centred[basis]
    count = max(1, min(_COMPONENTS, len(basis) // 5, x.shape[1]))
    if len(fitted) < x.shape[1]:
        gram, lift = fitted @ fitted.T, fitted.T
    else:
        gram, lift = fitted.T @ fitted, np.eye(x.shape[1])
    last = len(gram) - 1
    _, vectors = scipy.linalg.eigh(gram, subset_by_index=[last - count + 1, last])
    scores = centred @ (lift @ vectors[:, ::-1])
    std = scores[basis].std(axis=0)
    return scores / np.where(std > 0, std, 1.0)
