"""SDE paths: strong orders, reproducibility, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from malliavin_oracles import Given
from torch import Tensor

from spherediff.malliavin import SDE, euler_maruyama, milstein


def brownian(count: int, steps: int, m: int, seed: int = 0) -> Tensor:
    """Increments of B on a unit interval, shape (steps, count, m)."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(steps, count, m, generator=generator, dtype=torch.float64)
    return white / math.sqrt(steps)


def strong_order(simulate, sde: SDE, x0: Tensor, exact: Tensor, dB: Tensor) -> float:
    errors, levels = [], (16, 32, 64, 128)
    for n in levels:
        coarse = dB.unflatten(0, (n, -1)).sum(1)
        noise = (coarse * math.sqrt(n)).movedim(0, 1).flatten(1)
        path = simulate(sde, x0, torch.linspace(0, 1, n + 1).double(), generator=Given(noise))
        errors.append(float((path.end - exact).square().mean().sqrt()))
    return -np.polyfit(np.log(levels), np.log(errors), 1)[0]


def scalar_cases():
    dB = brownian(4000, 128, 1)
    B = dB.sum(0)
    x0 = torch.full((4000, 1), 0.7).double()
    yield (
        SDE(lambda t, x: 0.5 * x, lambda t, x: (1 + x**2).sqrt()),
        x0,
        torch.sinh(torch.asinh(x0) + B),
        dB,
    )
    yield (
        SDE(lambda t, x: 0.3 * x, lambda t, x: 0.8 * x),
        x0,
        x0 * torch.exp(0.3 - 0.32 + 0.8 * B),
        dB,
    )


def diagonal_case():
    """Two geometric motions with a diagonal diffusion."""
    dB = brownian(4000, 128, 2, seed=1)
    sigma = torch.tensor([0.9, 0.5]).double()
    x0 = torch.tensor([[0.7, 1.3]]).double().expand(4000, 2)
    return (
        SDE(lambda t, x: 0.2 * x, lambda t, x: sigma * x),
        x0,
        x0 * torch.exp(0.2 - sigma**2 / 2 + sigma * dB.sum(0)),
        dB,
    )


def rotated_case():
    """The same in rotated coordinates: a full matrix, and the noise still commutes."""
    sde, x0, exact, dB = diagonal_case()
    Q = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(5)).double())[0]
    return (
        SDE(lambda t, x: 0.2 * x, lambda t, x: Q @ sde.matrix(t, Q.T @ x)),
        x0 @ Q.T,
        exact @ Q.T,
        dB,
    )


@pytest.mark.parametrize("case", [*scalar_cases(), diagonal_case(), rotated_case()])
def test_strong_orders(case):
    # The levels share their noise and 4000 paths fix each slope to about 0.05.
    assert strong_order(euler_maruyama, *case) == pytest.approx(0.5, abs=0.15)
    assert strong_order(milstein, *case) == pytest.approx(1.0, abs=0.15)


def test_additive_noise_makes_euler_maruyama_of_order_one():
    # Ornstein–Uhlenbeck with the exact solution on the finest grid of the noise.
    dB = brownian(4000, 2048, 1, seed=2)
    s = (torch.arange(2048) + 0.5).double() / 2048
    x0 = torch.full((4000, 1), 1.5).double()
    noise = (torch.exp(-(1 - s))[:, None, None] * dB).sum(0)
    exact = x0 * math.exp(-1) + noise
    sde = SDE(lambda t, x: -x, 1.0)
    assert strong_order(euler_maruyama, sde, x0, exact, dB) == pytest.approx(1.0, abs=0.15)


def test_milstein_is_euler_maruyama_for_additive_noise():
    sde = SDE(lambda t, x: -(x**3), lambda t: (1 + t) * torch.eye(2))
    x0, times = torch.zeros(5, 2), torch.linspace(0, 1, 9)
    a, b = (
        f(sde, x0, times, generator=torch.Generator().manual_seed(0)).states
        for f in (euler_maruyama, milstein)
    )
    assert torch.equal(a, b)


def test_milstein_refuses_noise_that_does_not_commute():
    # σ_1 = (1, 0), σ_2 = (0, x_1): ∂σ_2 σ_1 = (0, 1), ∂σ_1 σ_2 = 0.
    def sigma(t, x):
        return torch.stack([torch.stack([torch.ones_like(x[0]), 0 * x[0]]),
                            torch.stack([0 * x[0], x[0]])])  # fmt: skip

    sde = SDE(lambda t, x: -x, sigma)
    with pytest.raises(ValueError, match="commuting noise"):
        milstein(sde, torch.ones(3, 2), torch.linspace(0, 1, 5), generator=torch.Generator())


def test_shapes_of_the_diffusion_mean_the_same_matrix():
    x0, times = torch.randn(6, 3, dtype=torch.float64), torch.linspace(0, 1, 5)
    ends = [
        euler_maruyama(
            SDE(lambda t, x: -x, sigma), x0, times, generator=torch.Generator().manual_seed(0)
        ).end
        for sigma in (
            0.5,
            torch.tensor(0.5),
            lambda t: torch.full((3,), 0.5).to(t),
            lambda t: 0.5 * torch.eye(3).to(t),
            lambda t, x: 0.5 + 0 * x[0],
            lambda t, x: 0.5 + 0 * x,
            lambda t, x: torch.diag(0.5 + 0 * x),
        )
    ]
    for end in ends[1:]:
        assert torch.allclose(end, ends[0], atol=1e-14)


def test_whether_noise_is_additive_is_read_from_the_signature():
    assert SDE(lambda t, x: x, 1.0).additive
    assert SDE(lambda t, x: x, lambda t: t).additive
    assert not SDE(lambda t, x: x, lambda t, x: 0 * x + 1).additive
    with pytest.raises(TypeError, match="3 arguments"):
        SDE(lambda t, x: x, lambda t, x, y: x)
    with pytest.raises(TypeError, match=r"\*args"):
        SDE(lambda t, x: x, lambda *a: a[0])
    with pytest.raises(TypeError, match="two arguments"):
        SDE(lambda x: x, 1.0)


def test_a_path_does_not_depend_on_its_batch():
    sde, times = (
        SDE(lambda t, x: torch.sin(x) * t, lambda t, x: 1 + x**2 / 9),
        torch.linspace(0, 1, 7),
    )
    x0 = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
    many = euler_maruyama(sde, x0, times, generator=torch.Generator().manual_seed(4))
    few = euler_maruyama(sde, x0[:3], times, generator=torch.Generator().manual_seed(4))
    assert torch.equal(many.increments[:, :3], few.increments)
    assert torch.allclose(many.states[:, :3], few.states)
    assert torch.equal(torch.cat([p.end for p in many.split(3)]), many.end)


def test_each_path_may_have_its_own_times():
    sde = SDE(lambda t, x: t * x, lambda t, x: 1 + t + 0.1 * x)
    ends = torch.tensor([0.3, 1.0, 2.0]).double()
    times = torch.linspace(0, 1, 6).double()[:, None] * ends
    x0 = torch.ones(3, 1).double()
    noise = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = euler_maruyama(sde, x0, times, generator=Given(noise))
    for k in range(3):
        alone = euler_maruyama(sde, x0[k : k + 1], times[:, k], generator=Given(noise[k : k + 1]))
        assert torch.allclose(together.states[:, k : k + 1], alone.states, atol=1e-14)


def test_refusals():
    sde, x0, times = SDE(lambda t, x: x, 1.0), torch.zeros(4, 2), torch.linspace(0, 1, 5)
    generator = torch.Generator()
    with pytest.raises(ValueError, match="increasing"):
        euler_maruyama(sde, x0, times.flip(0), generator=generator)
    with pytest.raises(ValueError, match="times of shape"):
        euler_maruyama(sde, x0, torch.zeros(5, 3), generator=generator)
    with pytest.raises(ValueError, match="starting points"):
        euler_maruyama(sde, x0[0], times, generator=generator)
    with pytest.raises(ValueError, match="drift of shape"):
        euler_maruyama(SDE(lambda t, x: x[:1], 1.0), x0, times, generator=generator)
    with pytest.raises(ValueError, match="diffusion of shape"):
        euler_maruyama(SDE(lambda t, x: x, lambda t: t.expand(3)), x0, times, generator=generator)


def test_a_path_that_explodes_is_named_with_its_time():
    sde = SDE(lambda t, x: torch.where(t > 0.49, x / 0, x), 1.0)
    with pytest.raises(ValueError, match=r"the first at t = 0.625 \(path 0, step 5\)"):
        euler_maruyama(sde, torch.ones(3, 1), torch.linspace(0, 1, 9), generator=torch.Generator())
