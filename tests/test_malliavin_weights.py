"""Skorokhod weights against laws that are known, and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from malliavin_oracles import SCALAR, Given, Oracle, all_paths, tanh
from torch import Tensor
from torch.func import grad, vmap

from spherediff.malliavin import (
    SDE,
    LinearSDE,
    autodiff_weight,
    bismut_elworthy_li_weight,
    conditional_expectation,
    discrete_weight,
    estimated_weight,
    euler_maruyama,
    malliavin_covariance,
    milstein,
    variation_weight,
)

TESTS = ((torch.sin, torch.cos), (torch.square, lambda y: 2 * y))


def coupled(d: int) -> dict[str, SDE]:
    """Equations without any structure, one for each form of the noise."""
    g = torch.Generator().manual_seed(d)
    W, V = (0.4 * torch.randn(2, d, d, generator=g)).double()

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return torch.sin(W @ x) - 0.5 * x + t * torch.cos(x)

    def diagonal(t: Tensor, x: Tensor) -> Tensor:
        return 1 + 0.3 * torch.sin(V @ x) * torch.cos(t)

    def rectangular(t: Tensor, x: Tensor) -> Tensor:
        return torch.cat([torch.diag(diagonal(t, x)), 0.3 * torch.cos(x + t)[:, None]], 1)

    return {
        "additive": SDE(drift, lambda t: (1 + t) * torch.eye(d).double()),
        "scalar": SDE(drift, lambda t, x: 1 + 0.3 * torch.sin(x.sum())),
        "diagonal": SDE(drift, diagonal),
        "rectangular": SDE(drift, rectangular),
    }


def paths(sde: SDE, d: int, count: int, steps: int, seed: int = 0, T: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(count, d, generator=generator, dtype=torch.float64)
    return euler_maruyama(sde, x0, torch.linspace(0, T, steps + 1).double(), generator=generator)


# --- the law of the scheme, without Monte Carlo -------------------------------------------------


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize(("steps", "nodes"), [(1, 40), (2, 40), (3, 24)])
def test_discrete_weight_integrates_by_parts_exactly(name, steps, nodes):
    # E[δ φ(X)] = E[φ′(X)] under the law of the scheme; all paths of a Gauss rule.  The quartic
    # potential needs small steps, for its polynomials have high degree.
    o = SCALAR[name]
    T = 0.05 if name == "Langevin in a double well" else o.T
    if name in ("CIR", "Langevin in a double well"):  # no node may be so far out as to leave (0, ∞)
        nodes = min(nodes, 12)
    path, mass = all_paths(o.sde, o.start, T, steps, nodes)
    weight, X = discrete_weight(o.sde, path)[:, 0], path.end[:, 0]
    for f, df in TESTS:
        expected = float((mass * df(X)).sum())
        assert float((mass * weight * f(X)).sum()) == pytest.approx(expected, abs=2e-8)


@pytest.mark.parametrize("kind", ["additive", "scalar", "diagonal", "rectangular"])
def test_discrete_weight_integrates_by_parts_exactly_in_the_plane(kind):
    sde = coupled(2)[kind]
    m = 3 if kind == "rectangular" else 2
    steps, nodes = (1, 30) if kind == "rectangular" else (2, 16)
    start = (torch.tensor([0.3]).double(), torch.ones(1).double())
    rule, mass = all_paths(SDE(lambda t, x: 0 * x, 1.0), start, 0.4, steps, nodes, d=m)
    noise = (rule.increments / rule.steps.sqrt()[..., None]).movedim(0, 1).flatten(1)
    x0 = torch.tensor([[0.3, -0.2]]).double().expand(len(noise), 2)
    path = euler_maruyama(sde, x0, rule.times[:, 0], generator=Given(noise))
    weight, X = discrete_weight(sde, path), path.end
    f = torch.sin(X[:, 0] + 0.5 * X[:, 1])
    df = torch.cos(X[:, 0] + 0.5 * X[:, 1])
    expected = torch.stack([(mass * df).sum(), 0.5 * (mass * df).sum()])
    assert torch.allclose((mass * f) @ weight, expected, atol=1e-6)


# --- the discrete weight is the derivative that it says it is -----------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kind", ["additive", "scalar", "diagonal", "rectangular"])
def test_recursion_equals_automatic_differentiation(d, kind):
    sde = coupled(d)[kind]
    path = paths(sde, d, count=5, steps=6)
    assert torch.allclose(discrete_weight(sde, path), autodiff_weight(sde, path), atol=1e-11)


def test_weights_do_not_depend_on_the_parts_in_which_they_are_taken(monkeypatch):
    sde = coupled(2)["diagonal"]
    path = paths(sde, 2, count=7, steps=5)
    whole = [w(sde, path) for w in (discrete_weight, variation_weight, bismut_elworthy_li_weight)]
    monkeypatch.setattr("spherediff.malliavin.weights._LARGEST_PART", 1)
    parts = [w(sde, path) for w in (discrete_weight, variation_weight, bismut_elworthy_li_weight)]
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_estimates_do_not_depend_on_the_parts_in_which_they_are_taken(monkeypatch):
    sde = coupled(2)["rectangular"]
    path = paths(sde, 2, count=5, steps=4)

    def estimate() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return estimated_weight(sde, path, generator=generator, probes=2, tolerance=1e-12)

    whole = estimate()
    monkeypatch.setattr("spherediff.malliavin.twin._LARGEST_PART", 2 * 4 * 5)
    assert torch.allclose(estimate(), whole, atol=1e-9)


@pytest.mark.parametrize("kind", ["additive", "diagonal", "rectangular"])
def test_estimate_has_the_exact_weight_as_its_mean(kind):
    # One path many times over, so that the probes alone vary; 9 components in all, |z| < 4.5 each:
    # false-alarm rate 6e-5.
    d, count = 3, 4000
    sde = coupled(d)[kind]
    one = paths(sde, d, count=1, steps=5)
    x0 = one.states[0].expand(count, d)
    xi = (one.increments / one.steps.sqrt()[..., None]).movedim(0, 1).flatten(1).expand(count, -1)
    path = euler_maruyama(sde, x0, one.times[:, 0], generator=Given(xi))
    estimates = estimated_weight(sde, path, generator=torch.Generator().manual_seed(0))
    error = estimates.std(0) / math.sqrt(count)
    assert float(error.max()) < 0.05
    assert bool(((estimates.mean(0) - autodiff_weight(sde, one)[0]).abs() < 4.5 * error).all())


def test_more_probes_average():
    # The error falls as 1/√probes: 1/4 over 12 paths of 2 components, here within a factor of 2.
    sde = coupled(2)["diagonal"]
    path = paths(sde, 2, count=12, steps=4)
    exact = discrete_weight(sde, path)
    rough, fine = (
        estimated_weight(sde, path, probes=p, generator=torch.Generator().manual_seed(1)) - exact
        for p in (1, 16)
    )
    assert float(fine.norm()) < 0.5 * float(rough.norm())


# --- the papers' formulas ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["additive", "scalar", "diagonal", "rectangular"])
@pytest.mark.parametrize("d", [1, 2])
def test_variation_formula_tends_to_the_discrete_weight(kind, d):
    # Pathwise: with additive noise as h, otherwise as √h.
    sde = coupled(d)[kind]
    difference, levels = [], (16, 64, 256)
    for n in levels:
        path = paths(sde, d, count=40, steps=n, T=0.5)
        a, b = discrete_weight(sde, path), variation_weight(sde, path)
        difference.append(float((a - b).square().mean().sqrt() / a.square().mean().sqrt()))
        correlation = float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
    order = -np.polyfit(np.log(levels), np.log(difference), 1)[0]
    assert order == pytest.approx(1.0 if sde.additive else 0.5, abs=0.3)
    assert correlation > 0.99


def gap(o: Oracle, weight, f, steps: int, count: int = 20_000, fine: int = 64):
    """E[(δ − δ_discrete) φ(X)] and its standard error; antithetic noise common to all steps."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count // 2, fine, generator=generator, dtype=torch.float64)
    noise = noise.unflatten(1, (steps, -1)).sum(-1) * math.sqrt(steps / fine)
    which = torch.multinomial(o.start[1], count // 2, replacement=True, generator=generator)
    x0 = o.start[0][which][:, None].repeat(2, 1)
    times = torch.linspace(0, o.T, steps + 1).double()
    path = euler_maruyama(o.sde, x0, times, generator=Given(torch.cat([noise, -noise])))
    difference = (weight(o.sde, path) - discrete_weight(o.sde, path))[:, 0]
    value = (difference * f(path.end[:, 0])).view(2, -1).mean(0)
    return float(value.mean()), float(value.std()) / math.sqrt(len(value))


@pytest.mark.parametrize(
    ("name", "weight"),
    [(name, variation_weight) for name in SCALAR]
    + [(name, bismut_elworthy_li_weight) for name in ("tanh drift", "sinh process", "CIR")],
)
def test_bias_is_of_first_order_in_the_step(name, weight):
    # The discrete weight belongs to the law of the scheme, whose own bias is of first order too
    # (below).  The levels share their noise, which fixes each slope to about 0.1.
    f, levels = torch.square, (8, 16, 32)
    if name == "Langevin in a double well":  # symmetric, and steep
        f, levels = (lambda x: x), (16, 32, 64)
    gaps = [gap(SCALAR[name], weight, f, n) for n in levels]
    assert abs(gaps[0][0]) > 4 * gaps[0][1]  # there is a bias to measure
    order = -np.polyfit(np.log(levels), np.log([abs(g) for g, _ in gaps]), 1)[0]
    assert order == pytest.approx(1.0, abs=0.35)


@pytest.mark.parametrize("name", ["tanh drift", "geometric Brownian motion", "CIR", "sinh process"])
def test_law_of_the_scheme_is_of_first_order(name):
    # E[δ φ(X_h)] against −E[(log p_T)′ φ] of the exact law, both by quadrature.
    o = SCALAR[name]
    f = torch.sin if name == "tanh drift" else torch.square
    exact, levels, errors = -o.expectation(lambda y: o.score(y) * f(y)), (2, 3, 4), []
    for n, nodes in zip(levels, (30, 16, 12), strict=True):
        path, mass = all_paths(o.sde, o.start, o.T, n, nodes)
        value = float((mass * discrete_weight(o.sde, path)[:, 0] * f(path.end[:, 0])).sum())
        errors.append(abs(value - exact))
    assert -np.polyfit(np.log(levels), np.log(errors), 1)[0] == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("weight", [discrete_weight, variation_weight])
def test_score_by_conditional_expectation(name, weight):
    # −E[δ | X_T = y] at three places, |z| < 4.5 beside 0.01 of the spread of the scores for the
    # biases of kernel and step: false-alarm rate below 2e-5 a case.
    o, count = SCALAR[name], 20_000
    generator = torch.Generator().manual_seed(2)
    which = torch.multinomial(o.start[1], count, replacement=True, generator=generator)
    path = euler_maruyama(
        o.sde, o.start[0][which][:, None], torch.linspace(0, o.T, 41).double(), generator=generator
    )
    places = torch.quantile(path.end, torch.tensor([0.25, 0.5, 0.75]).double(), dim=0)
    estimate = conditional_expectation(weight(o.sde, path), path.end, places, bandwidth=0.1)
    exact = -o.score(places)
    spread = math.sqrt(o.expectation(lambda y: o.score(y) ** 2))
    allowed = 4.5 * estimate.standard_error + 0.05 * spread
    assert bool(((estimate.mean - exact).abs() < allowed).all())
    assert float(estimate.standard_error.max()) < 0.1 * spread


Change = Callable[[Tensor], Tensor]


def sheared(d: int, c: float = 0.4) -> tuple[SDE, Change, Change]:
    """x_i = z_i + c z²_{i−1} with independent z of tanh drift, rotated: coupled, and known."""
    Q = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(d)).double())[0]
    shift = torch.diag(torch.ones(d - 1), -1).double()

    def forward(z: Tensor) -> Tensor:
        return Q @ (z + c * shift @ z.square())

    def backward(x: Tensor) -> Tensor:
        x, z = Q.T @ x, [(Q.T @ x)[0]]
        for i in range(1, d):
            z.append(x[i] - c * z[i - 1] ** 2)
        return torch.stack(z)

    def slope(z: Tensor) -> Tensor:
        return Q @ (torch.eye(d).double() + 2 * c * shift * z)

    def drift(t: Tensor, x: Tensor) -> Tensor:  # Itô's formula
        z = backward(x)
        return slope(z) @ torch.tanh(z) + Q @ (c * shift @ torch.ones(d).double())

    return SDE(drift, lambda t, x: slope(backward(x))), backward, forward


@pytest.mark.parametrize("d", [2, 4, 8])
@pytest.mark.parametrize("weight", [discrete_weight, variation_weight])
def test_score_of_coupled_products(d, weight):
    # E[(δ_k + ∂_k log p(X)) φ(X)] = 0 for φ = sin of a random combination: 2 × 8 steps against
    # 8 steps by Richardson's rule with common noise leave no bias of first order; |z| < 4.5 beside
    # 0.02 for the second: false-alarm rate below 6e-5 a case.
    sde, backward, forward = sheared(d)
    z0, T, count = torch.linspace(0.3, 0.6, d).double(), 0.2, 2400 // d
    x0 = forward(z0).expand(count, d)

    def log_density(x: Tensor) -> Tensor:
        z = backward(x)
        return (torch.log(torch.cosh(z)) - (z - z0) ** 2 / (2 * T)).sum()

    generator = torch.Generator().manual_seed(d)
    direction = torch.randn(d, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 16, d, generator=generator, dtype=torch.float64)

    def defects(steps: int) -> Tensor:
        xi = noise.unflatten(1, (steps, -1)).sum(2) * math.sqrt(steps / 16)
        times = torch.linspace(0, T, steps + 1).double()
        path = euler_maruyama(sde, x0, times, generator=Given(xi.flatten(1)))
        score = vmap(grad(log_density))(path.end)
        return (weight(sde, path) + score) * torch.sin(path.end @ direction)[:, None]

    value = 2 * defects(16) - defects(8)
    error = value.std(0) / math.sqrt(count)
    assert bool((value.mean(0).abs() < 4.5 * error + 0.02).all())


@pytest.mark.parametrize("d", [2, 5, 8])
@pytest.mark.parametrize("weight", [discrete_weight, variation_weight, bismut_elworthy_li_weight])
def test_weights_turn_with_the_coordinates(d, weight):
    # In rotated coordinates the scheme commutes with the rotation, and so does the weight.
    sde = SDE(lambda t, z: torch.tanh(z), lambda t, z: (1 + 0.3 * z**2).sqrt())
    Q = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(d)).double())[0]
    turned = SDE(lambda t, x: Q @ torch.tanh(Q.T @ x), lambda t, x: Q @ sde.matrix(t, Q.T @ x))
    path = paths(sde, d, count=6, steps=8)
    xi = (path.increments / path.steps.sqrt()[..., None]).movedim(0, 1).flatten(1)
    other = euler_maruyama(turned, path.states[0] @ Q.T, path.times[:, 0], generator=Given(xi))
    assert torch.allclose(weight(turned, other), weight(sde, path) @ Q.T, atol=1e-9)


def test_bismut_elworthy_li_in_closed_form():
    # Ornstein–Uhlenbeck under the scheme: δ = Σ_n w_n (1 − λh)^{n−N} ΔB_n/σ, any w of integral 1.
    decay, sigma, n = 0.7, 1.3, 10
    sde = SDE(lambda t, x: -decay * x, sigma)
    path = paths(sde, 1, count=4, steps=n)
    k = torch.arange(n).double()
    for w, shape in ((None, torch.ones(n).double()), (lambda s: 1 + s, 1 + k / n)):
        factor = n * shape / shape.sum() * (1 - decay / n) ** (k - n) / sigma
        expected = (factor[:, None] * path.increments[:, :, 0]).sum(0)
        assert torch.allclose(bismut_elworthy_li_weight(sde, path, w)[:, 0], expected)


# --- linear equations: denoising score matching --------------------------------------------------


def test_linear_weight_is_the_target_of_denoising_score_matching():
    # X_T given X_0 is Gaussian under the scheme: δ = Σ⁻¹(X_T − E X_T), pathwise.
    A = torch.tensor([[-0.8, 0.5], [-0.4, -0.3]]).double()
    B = torch.tensor([[1.0, 0.2], [0.0, 0.6]]).double()
    sde = LinearSDE(lambda t: A * (1 + t), lambda t: B * (1 + 0.5 * t))
    path = paths(sde, 2, count=9, steps=12)
    mean, covariance = path.states[0], torch.zeros(2, 2).double()
    for t, h in zip(path.times[:-1, 0], path.steps[:, 0], strict=True):
        step = torch.eye(2).double() + h * sde.A(t)
        mean = mean @ step.T
        covariance = step @ covariance @ step.T + h * sde.B(t) @ sde.B(t).T
    target = torch.linalg.solve(covariance, (path.end - mean).T).T
    assert torch.allclose(discrete_weight(sde, path), target, atol=1e-12)
    estimate = estimated_weight(sde, path, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(estimate, target, atol=1e-7)  # no second derivative, nothing to estimate


def test_linear_weight_tends_to_the_target_of_the_continuous_law():
    A = torch.tensor([[-0.8, 0.5], [-0.4, -0.3]]).double()
    sde = LinearSDE(lambda t: A * (1 + t), lambda t: torch.eye(2).double() * (1 + t))
    zero, Y = torch.zeros(2, 2).double(), sde.propagator(1.0)
    errors, levels = [], (16, 64, 256)
    for n in levels:
        path = paths(sde, 2, count=20, steps=n)
        noise = path.end - path.states[0] @ Y.T  # the score is that of N(0, γ) at this place
        target = -sde.score(noise, 1.0, zero[0], zero)
        errors.append(float((variation_weight(sde, path) - target).norm()))
    assert -np.polyfit(np.log(levels), np.log(errors), 1)[0] == pytest.approx(1.0, abs=0.2)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [discrete_weight, variation_weight, autodiff_weight])
def test_a_direction_without_noise_is_named(weight):
    # Two equal equations driven by one Brownian motion: nothing moves x_1 − x_2.
    sde = SDE(lambda t, x: -x, lambda t: torch.ones(2, 1).double())
    path = paths(sde, 2, count=3, steps=5)
    with pytest.raises(ValueError, match=r"direction \(-?0.707, -?0.707\), eigenvalue"):
        weight(sde, path)


def test_noise_that_spreads_through_the_drift_is_enough():
    # Kinetic Langevin: noise in the velocity alone, and the position follows.
    sde = SDE(
        lambda t, x: torch.stack([x[1], -torch.sin(x[0]) - x[1]]),
        lambda t: torch.tensor([[0.0], [1.0]]).double(),
    )
    path = paths(sde, 2, count=4, steps=12)
    assert torch.allclose(discrete_weight(sde, path), autodiff_weight(sde, path), atol=1e-9)
    assert float(torch.linalg.eigvalsh(malliavin_covariance(sde, path)).min()) > 0
    with pytest.raises(ValueError, match="σσᵀ is singular"):
        bismut_elworthy_li_weight(sde, path)


def test_conjugate_gradients_that_do_not_converge_are_reported():
    sde = SDE(lambda t, x: -x, lambda t: torch.ones(2, 1).double())
    path = paths(sde, 2, count=3, steps=5)
    with pytest.raises(ValueError, match="singular or nearly so"):
        estimated_weight(sde, path, generator=torch.Generator())


def test_weights_of_the_scheme_refuse_other_schemes():
    sde = SDE(lambda t, x: -x, 1.0)
    path = milstein(sde, torch.zeros(2, 1), torch.linspace(0, 1, 5), generator=torch.Generator())
    for weight in (discrete_weight, autodiff_weight):
        with pytest.raises(ValueError, match="euler_maruyama"):
            weight(sde, path)


def test_float32():
    o = tanh()
    path = euler_maruyama(
        o.sde, torch.full((50, 1), 0.6), torch.linspace(0, 0.5, 9),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    weight = discrete_weight(o.sde, path)
    assert weight.dtype == torch.float32
    double = discrete_weight(
        o.sde,
        type(path)(
            path.times.double(), path.states.double(), path.increments.double(), path.scheme
        ),
    )
    assert torch.allclose(weight.double(), double, rtol=1e-4, atol=1e-4)
