"""Wiener chaos: Hermite expansions over γ = N(0, C), and non-Gaussian laws with a known score.

With z_i = x_i/√C_ℓ the normalised Hermite products

    H_a(z) = Π_i He_{a_i}(z_i)/√(a_i!),    n_a = Σ a_i the order of the chaos,

are orthonormal in L²(γ).  On F = Σ c_a H_a the operators of the Malliavin calculus act exactly:

* the semigroup, P_t F = Σ e^{−n_a t} c_a H_a (Mehler);
* its generator, 𝓛F = −Σ n_a c_a H_a, with the Dirichlet form E(F, G) = −∫F 𝓛G dγ = Σ n_a c_a d_a;
* the derivative in H_C, (DF)_i = C_ℓ ∂_iF; along e_i = √C_ℓ Y_i it is ∂F/∂z_i, and
  ∂/∂z_i H_n(z_i) = √n H_{n−1}(z_i);
* the divergence δ(Σ u_i e_i) = Σ (z_i u_i − ∂u_i/∂z_i), the adjoint of D: on a term of u_i it
  raises a_i, taking H_n to √(n+1) H_{n+1}, and δD = −𝓛;
* Γ(F, G) = Σ C_ℓ ∂_iF ∂_iG = Σ ∂F/∂z_i ∂G/∂z_i.

A density h_0 = 1 + Σ c_a H_a ≥ 0 with finitely many terms makes h_0γ a probability on H that is
not Gaussian; its noised laws, score, marginals and moments E[H_a] = c_a are all known.  Only the
coefficients that occur in it differ from γ, so it is exact at every band limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from spherediff.gaussian import GaussianField, check_coefficients
from spherediff.streams import Randomness, open_source

Index = tuple[tuple[int, int], ...]
"""A multi-index a as pairs (coefficient i, a_i ≥ 1) in order of i; () is the constant."""

_TOLERANCE = 1e-10
_BISECTIONS = 64
_WIDEST = 14.0  # standard deviations: no double-precision uniform lies beyond


class Chaos:
    """A finite expansion F = Σ c_a H_a over a Gaussian field.

    Args:
        field: γ = N(0, C), every C_ℓ > 0.
        terms: c_a by multi-index, e.g. ``{(): 1.0, ((4, 2),): 0.3, ((1, 1), (2, 1)): 0.1}`` for
            1 + 0.3 H₂(z₄) + 0.1 H₁(z₁)H₁(z₂); i counts the coefficients of a whole event.

    Raises:
        ValueError: a coefficient outside the field, an order below one, or a mode without noise.
    """

    def __init__(self, field: GaussianField, terms: Mapping[Index, float]) -> None:
        self.field = field
        self.terms = _collected((_checked(index, field), c) for index, c in terms.items())
        self.modes = sorted({i for index in self.terms for i, _ in index})
        std = field.std_per_coefficient.double().flatten()[self.modes]
        if (std == 0).any():
            raise ValueError("every coefficient of an expansion needs noise, C_ℓ > 0")
        self._std = std
        place = {i: k for k, i in enumerate(self.modes)}
        self._exponents = torch.zeros(len(self.terms), len(self.modes), dtype=torch.int64)
        for row, index in enumerate(self.terms):
            for i, order in index:
                self._exponents[row, place[i]] = order
        self._weights = torch.tensor(list(self.terms.values()), dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        """F(x) in float64, shape (*batch,)."""
        return self.value(self.standardised(x))

    def standardised(self, x: Tensor) -> Tensor:
        """z of the modes that occur, float64, shape (*batch, len(modes))."""
        check_coefficients(self.field, x, "chaos")
        flat = x.flatten(-len(self.field.event_shape))
        return flat[..., self.modes].double() / self._std.to(x.device)

    def value(self, z: Tensor, damping: Tensor | float = 1.0) -> Tensor:
        """Σ c_a r^a H_a(z), r = ``damping`` for each mode; shape (*batch,)."""
        return (self._damped(z, damping) * self._products(hermite(z, self.order))).sum(-1)

    def gradient(self, z: Tensor, damping: Tensor | float = 1.0) -> Tensor:
        """r_i⁻¹ ∂_{z_i} Σ c_a r^a H_a(z), shape (*batch, len(modes)); finite for r = 0."""
        table, exponents = hermite(z, self.order), self._exponents.to(z.device)
        partials = []
        for k in range(len(self.modes)):
            lowered = exponents.clone()
            lowered[:, k] = (lowered[:, k] - 1).clamp(min=0)
            weights = self._weights.to(z.device) * exponents[:, k].double().sqrt()
            r = torch.as_tensor(damping, dtype=z.dtype, device=z.device).expand_as(z)
            damped = weights * (r[..., None, :] ** lowered).prod(-1)
            partials.append((damped * self._products(table, lowered)).sum(-1))
        return torch.stack(partials, -1) if partials else torch.zeros_like(z)

    @property
    def order(self) -> int:
        """The highest power of a single mode."""
        return int(self._exponents.max()) if self._exponents.numel() else 0

    def semigroup(self, t: float) -> Chaos:
        """P_t F: every chaos of order n times e^{−nt}."""
        return self._map(lambda index, c: math.exp(-_total(index) * t) * c)

    def generator(self) -> Chaos:
        """𝓛F, 𝓛 = Σ (C_ℓ ∂_i² − x_i ∂_i)."""
        return self._map(lambda index, c: -_total(index) * c)

    def derivative(self, mode: int) -> Chaos:
        """∂_{z_i}F = ⟨DF, e_i⟩_C."""
        return Chaos(
            self.field,
            _collected(
                (_shifted(index, mode, -1), math.sqrt(dict(index)[mode]) * c)
                for index, c in self.terms.items()
                if mode in dict(index)
            ),
        )

    def malliavin_derivative(self, x: Tensor) -> Tensor:
        """DF(x) ∈ H_C, (DF)_i = C_ℓ ∂_iF, shape of ``x``, float64."""
        flat = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        flat = flat.flatten(-len(self.field.event_shape))
        flat[..., self.modes] = self._std.to(x.device) * self.gradient(self.standardised(x))
        return flat.reshape(x.shape)

    def inner(self, other: Chaos) -> float:
        """∫FG dγ = Σ c_a d_a."""
        return sum(c * other.terms.get(index, 0.0) for index, c in self.terms.items())

    def dirichlet(self, other: Chaos) -> float:
        """E(F, G) = ∫Γ(F, G) dγ = Σ n_a c_a d_a."""
        return -self.inner(other.generator())

    def gamma(self, other: Chaos, x: Tensor) -> Tensor:
        """Γ(F, G)(x) = Σ C_ℓ ∂_iF ∂_iG, shape (*batch,)."""
        found = [self.derivative(i)(x) * other.derivative(i)(x) for i in self.modes]
        return torch.stack(found).sum(0) if found else torch.zeros_like(self(x))

    def __add__(self, other: Chaos) -> Chaos:
        return Chaos(self.field, _collected([*self.terms.items(), *other.terms.items()]))

    def __mul__(self, other: Chaos) -> Chaos:
        """FG, by He_m He_n = Σ_k k! (m over k)(n over k) He_{m+n−2k} in each mode."""
        return Chaos(
            self.field,
            _collected(
                (index, c * d * weight)
                for a, c in self.terms.items()
                for b, d in other.terms.items()
                for index, weight in _linearised(a, b)
            ),
        )

    def _map(self, new: Callable[[Index, float], float]) -> Chaos:
        return Chaos(self.field, {index: new(index, c) for index, c in self.terms.items()})

    def _products(self, table: Tensor, exponents: Tensor | None = None) -> Tensor:
        """Π_k H_{a_k}(z_k) for every term, shape (*batch, terms)."""
        exponents = self._exponents.to(table.device) if exponents is None else exponents
        factors = [table[..., k, exponents[:, k]] for k in range(len(self.modes))]
        start = table.new_ones(*table.shape[:-2], len(exponents))
        return math.prod(factors, start=start)

    def _damped(self, z: Tensor, damping: Tensor | float) -> Tensor:
        r = torch.as_tensor(damping, dtype=z.dtype, device=z.device).expand_as(z)
        powers = r[..., None, :] ** self._exponents.to(z.device)
        return self._weights.to(z.device) * powers.prod(-1)


def divergence(components: Mapping[int, Chaos]) -> Chaos:
    """δ(u) of u = Σ u_i e_i, the adjoint of D: ∫⟨DF, u⟩_C dγ = ∫F δ(u) dγ.

    Args:
        components: u_i by coefficient i, all over one field; at least one.
    """
    if not components:
        raise ValueError("expected at least one component")
    field = next(iter(components.values())).field
    return Chaos(
        field,
        _collected(
            (_shifted(index, i, 1), math.sqrt(dict(index).get(i, 0) + 1) * c)
            for i, u in components.items()
            for index, c in u.terms.items()
        ),
    )


class ChaosDensity:
    """The law h_0γ with h_0 = 1 + Σ c_a H_a ≥ 0.

    That h_0 ≥ 0 is proved, or the density refused.  Without certificates h_0 is split into groups
    of terms that share no mode, whose least values add up; a group of one mode is a polynomial in
    one variable, a group of order two a quadratic form, and both have exact minima.  Anything else
    needs ``roots``: expansions the sum of whose squares is h_0 (see :meth:`squared`).

    Args:
        expansion: h_0; the constant must be one, so that it has mass one.
        roots: expansions R_k with h_0 = Σ R_k², checked term by term.

    Raises:
        ValueError: a constant other than one, a density that takes negative values, or one that
            is not proved to be positive.
    """

    def __init__(self, expansion: Chaos, roots: Sequence[Chaos] = ()) -> None:
        mass = expansion.terms.get((), 0.0)
        if abs(mass - 1) > _TOLERANCE:
            raise ValueError(f"a density has the constant term 1, got {mass:g}")
        if roots:
            squares = [root * root for root in roots]
            total = sum(squares[1:], start=squares[0])
            off = total + expansion._map(lambda _, c: -c)
            if max(map(abs, off.terms.values()), default=0.0) > _TOLERANCE:
                raise ValueError("the squares of the roots do not add up to the expansion")
        else:
            least = lower_bound(expansion)
            if least < -_TOLERANCE:
                raise ValueError(
                    f"not a density: it falls to {least:.4g}; make the coefficients of order one "
                    f"and more smaller by a factor of at least {1 - least:.4g}, or use "
                    "ChaosDensity.squared"
                )
        self.expansion, self.field = expansion, expansion.field

    @classmethod
    def squared(cls, root: Chaos) -> ChaosDensity:
        """h_0 = R²/∫R²dγ for any expansion R."""
        size = math.sqrt(root.inner(root))
        if size == 0:
            raise ValueError("the root vanishes")
        root = root._map(lambda _, c: c / size)
        return cls(root * root, [root])

    def __call__(self, x: Tensor) -> Tensor:
        """h_0(x), float64, shape (*batch,)."""
        return self.expansion(x)

    def noised(self, t: float) -> ChaosDensity:
        """h_t = P_t h_0 = 1 + Σ e^{−n_at} c_a H_a, the density of Greco's process at its time t.

        It is positive since P_t keeps positivity.
        """
        later = object.__new__(ChaosDensity)
        later.expansion, later.field = self.expansion.semigroup(t), self.field
        return later

    def malliavin_gamma_score(self, x: Tensor) -> Tensor:
        """D log h(x) = Dh/h ∈ H_C, shape of ``x``, float64."""
        h = self(x).reshape(*x.shape[: -len(self.field.event_shape)], *_ones(self.field))
        return self.expansion.malliavin_derivative(x) / h

    def sample(self, shape: Sequence[int] = (), *, generator: Randomness) -> Tensor:
        """Exact draws from h_0γ, shape (*shape, *event_shape).

        Mode by mode, z_k given those before it has a density b_0⁻¹ Σ b_n H_n in one variable, with
        the distribution function Φ(z) − φ(z) Σ_{n≥1} (b_n/b_0) H_{n−1}(z)/√n, inverted by
        bisection at Φ(ξ) of the mode's white noise ξ.
        """
        field, expansion = self.field, self.expansion
        source = open_source(generator, math.prod(shape))
        white = source.normal(field.event_shape, field.dtype).to(field.device)
        z = white.double().reshape(math.prod(shape), -1)
        previous = z.new_zeros(len(z), len(expansion.modes))
        for k, mode in enumerate(expansion.modes):
            previous[:, k] = _inverse_cdf(self._conditional(k, previous), z[:, mode])
        z[:, expansion.modes] = previous
        return field.color(z.to(field.dtype).reshape(*shape, *field.event_shape))

    def _conditional(self, k: int, z: Tensor) -> Tensor:
        """b_n/b_0 of mode k given the modes before it, shape (batch, order + 1)."""
        expansion = self.expansion
        exponents = expansion._exponents.to(z.device)
        earlier = exponents.clone()
        earlier[:, k:] = 0
        products = expansion._weights.to(z.device) * expansion._products(
            hermite(z, expansion.order), earlier
        )
        only = (exponents[:, k + 1 :] == 0).all(1)  # what integrating out later modes leaves
        b = z.new_zeros(len(z), expansion.order + 1)
        b = b.index_add(1, exponents[only, k], products[:, only])
        return b / b[:, :1]


def hermite(z: Tensor, order: int) -> Tensor:
    """H_n(z) = He_n(z)/√(n!) for n ≤ order, shape (*z.shape, order + 1)."""
    table = [torch.ones_like(z), z]
    for n in range(1, order):
        table.append((z * table[n] - math.sqrt(n) * table[n - 1]) / math.sqrt(n + 1))
    return torch.stack(table[: order + 1], -1)


def lower_bound(expansion: Chaos) -> float:
    """The least value of F, exact where it can be found (see :class:`ChaosDensity`).

    Raises:
        ValueError: a group of several modes with terms above order two.
    """
    least = expansion.terms.get((), 0.0)
    for group in _groups(expansion):
        modes = sorted({i for index in group for i, _ in index})
        if len(modes) == 1:
            least += _polynomial_minimum({index[0][1]: c for index, c in group.items()})
        elif max(_total(index) for index in group) <= 2:
            least += _quadratic_minimum(group, modes)
        else:
            raise ValueError(
                f"cannot prove that terms coupling the coefficients {modes} above order two are "
                "bounded; give roots, or use ChaosDensity.squared"
            )
    return least


def _groups(expansion: Chaos) -> list[dict[Index, float]]:
    """Terms that share modes, directly or through others, together; without the constant."""
    groups: list[tuple[set[int], dict[Index, float]]] = []
    for index, c in expansion.terms.items():
        if not index:
            continue
        modes, terms = {i for i, _ in index}, {index: c}
        for other in [group for group in groups if group[0] & modes]:
            groups.remove(other)
            modes, terms = modes | other[0], terms | other[1]
        groups.append((modes, terms))
    return [terms for _, terms in groups]


def _polynomial_minimum(coefficients: Mapping[int, float]) -> float:
    series = np.zeros(max(coefficients) + 1)
    for n, c in coefficients.items():
        series[n] = c / math.sqrt(math.factorial(n))
    power = np.polynomial.hermite_e.herme2poly(series)
    power = np.trim_zeros(power, "b")
    if len(power) == 0:
        return 0.0
    if len(power) % 2 == 0 or power[-1] < 0:
        return -math.inf
    critical = np.polynomial.polynomial.polyroots(np.polynomial.polynomial.polyder(power))
    return float(np.polynomial.polynomial.polyval(critical.real, power).min())


def _quadratic_minimum(terms: Mapping[Index, float], modes: Sequence[int]) -> float:
    """min of c + bᵀz + ½zᵀMz."""
    place = {i: k for k, i in enumerate(modes)}
    M, b, c = np.zeros((len(modes), len(modes))), np.zeros(len(modes)), 0.0
    for index, weight in terms.items():
        match [(place[i], n) for i, n in index]:
            case [(k, 1)]:
                b[k] += weight
            case [(k, _)]:  # H₂ = (z² − 1)/√2
                M[k, k] += math.sqrt(2) * weight
                c -= weight / math.sqrt(2)
            case [(j, _), (k, _)]:
                M[j, k] += weight
                M[k, j] += weight
    values, vectors = np.linalg.eigh(M)
    along = vectors.T @ b
    flat = np.abs(values) <= _TOLERANCE
    if (values < -_TOLERANCE).any() or (np.abs(along[flat]) > _TOLERANCE).any():
        return -math.inf
    return float(c - 0.5 * (along[~flat] ** 2 / values[~flat]).sum())


def _inverse_cdf(b: Tensor, normal: Tensor) -> Tensor:
    """z with Φ(z) − φ(z) Σ_{n≥1} b_n H_{n−1}(z)/√n = Φ(normal)."""
    n = torch.arange(1, b.shape[1], dtype=b.dtype, device=b.device)
    slopes = b[:, 1:] / n.sqrt()

    def excess(z: Tensor) -> Tensor:
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        series = (slopes * hermite(z, b.shape[1] - 1)[:, : b.shape[1] - 1]).sum(1)
        return _normal_difference(z, normal) - density * series

    low, high = torch.full_like(normal, -_WIDEST), torch.full_like(normal, _WIDEST)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        above = excess(middle) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return 0.5 * (low + high)


def _normal_difference(z: Tensor, y: Tensor) -> Tensor:
    """Φ(z) − Φ(y), in the tail where it does not cancel."""
    upper = 0.5 * (torch.special.erfc(y / math.sqrt(2)) - torch.special.erfc(z / math.sqrt(2)))
    lower = 0.5 * (torch.special.erfc(-z / math.sqrt(2)) - torch.special.erfc(-y / math.sqrt(2)))
    return torch.where(z > 0, upper, lower)


def _total(index: Index) -> int:
    return sum(order for _, order in index)


def _ones(field: GaussianField) -> tuple[int, ...]:
    return (1,) * len(field.event_shape)


def _collected(pairs: Iterable[tuple[Index, float]]) -> dict[Index, float]:
    terms: dict[Index, float] = {}
    for index, c in pairs:
        terms[index] = terms.get(index, 0.0) + c
    return terms


def _shifted(index: Index, mode: int, by: int) -> Index:
    orders = dict(index)
    orders[mode] = orders.get(mode, 0) + by
    return tuple(sorted((i, n) for i, n in orders.items() if n))


def _linearised(a: Index, b: Index) -> list[tuple[Index, float]]:
    """H_a H_b = Σ weight · H_index."""
    products: list[tuple[Index, float]] = [((), 1.0)]
    left, right = dict(a), dict(b)
    for i in sorted({*left, *right}):
        m, n = left.get(i, 0), right.get(i, 0)
        choices = [
            (
                m + n - 2 * k,
                math.comb(m, k)
                * math.comb(n, k)
                * math.factorial(k)
                * math.sqrt(
                    math.factorial(m + n - 2 * k) / (math.factorial(m) * math.factorial(n))
                ),
            )
            for k in range(min(m, n) + 1)
        ]
        products = [
            ((*index, (i, order)) if order else index, weight * factor)
            for index, weight in products
            for order, factor in choices
        ]
    return products


def _checked(index: Index, field: GaussianField) -> Index:
    size = math.prod(field.event_shape)
    for i, order in index:
        if not 0 <= i < size or order < 1:
            raise ValueError(
                f"expected pairs (coefficient below {size}, order ≥ 1), got ({i}, {order})"
            )
    if len({i for i, _ in index}) < len(index):
        raise ValueError(f"a coefficient occurs twice in {index}")
    return tuple(sorted(index))
