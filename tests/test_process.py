"""Forward processes against their SDE."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from spherediff.gaussian import GaussianField
from spherediff.process import ConstantRate, LogSNR, OrnsteinUhlenbeck, Schedule
from spherediff.spectra import PowerLaw, Tabulated

SCHEDULES = [ConstantRate(), ConstantRate(2.0, 4.0), LogSNR(), LogSNR(3.0, -7.0)]


def make(lmax: int = 3, schedule: Schedule | None = None) -> OrnsteinUhlenbeck:
    return OrnsteinUhlenbeck(GaussianField(PowerLaw(2.0, 3.0), lmax, dtype=torch.float64), schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule: Schedule) -> None:
    t = torch.linspace(0.01, 1, 25, dtype=torch.float64, requires_grad=True)
    tau = schedule.tau(t)
    torch.testing.assert_close(schedule.time(tau), t)
    (rate,) = torch.autograd.grad(tau.sum(), t)
    torch.testing.assert_close(schedule.rate(t), rate)
    assert (tau.diff() > 0).all()


def test_schedules_are_what_they_say() -> None:
    t = torch.linspace(0.01, 1, 7, dtype=torch.float64)
    process = make(schedule=ConstantRate(3.0))
    torch.testing.assert_close(process.alpha(t)[:, 0], torch.exp(-3 * t))
    process = make(schedule=LogSNR(4.0, -2.0))
    torch.testing.assert_close(process.log_noise(t), -4 + 6 * t)
    torch.testing.assert_close(process.time_of(process.log_noise(t)), t)
    low, high = ConstantRate(2.0).log_snr_range
    assert low == pytest.approx(math.log(math.exp(-2) / math.sqrt(1 - math.exp(-4))))
    assert high == 5.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_marginals_solve_the_moment_equations(schedule: Schedule) -> None:
    """dα/dt = −βα and dσ²/dt = −2βσ² + 2βC: the moments of dX = −βX dt + √(2β) dW^C."""
    process = make(schedule=schedule)
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    C = process.field.variance_per_coefficient

    def moments(time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma = process.marginal(time)
        return alpha.expand_as(sigma), sigma.square()

    (alpha, variance), (dalpha, dvariance) = torch.autograd.functional.jvp(
        moments, t, torch.ones_like(t)
    )
    beta = process.rate(t)
    torch.testing.assert_close(dalpha, -beta * alpha)
    torch.testing.assert_close(dvariance, 2 * beta * (C - variance))


def test_transitions_compose_to_the_marginal_law() -> None:
    process, N = make(), 4000
    x0 = torch.full((N, 16), 1.7, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    middle = process.noised(x0, 0.3, generator=generator)
    end = process.transition(middle, 0.3, 0.6, generator=generator)
    for x, t in ((middle, 0.3), (end, 0.6)):
        alpha, sigma = process.marginal(t)
        z = (x - alpha * x0) / sigma
        # mean and variance of 16 modes, false-alarm rate 1e-3 for each of the four sets
        assert (z.mean(0).abs() * N**0.5).max() < stats.norm.isf(1e-3 / 32)
        tail = 1e-3 / 32
        chi2 = z.square().sum(0)
        assert chi2.min() > stats.chi2.ppf(tail, N)
        assert chi2.max() < stats.chi2.isf(tail, N)


def test_the_noise_is_invariant() -> None:
    process = make()
    alpha, sigma = process.marginal(torch.linspace(0.1, 1, 5, dtype=torch.float64))
    C = process.field.variance_per_coefficient
    torch.testing.assert_close(alpha.square() * C + sigma.square(), C.expand(5, -1))


def test_times_broadcast_over_channels() -> None:
    field = GaussianField(Tabulated(torch.ones(2, 4)), 3, dtype=torch.float64)
    process = OrnsteinUhlenbeck(field)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x0 = torch.ones(3, 2, 16, dtype=torch.float64)
    x = process.noised(x0, t[:, None], generator=torch.Generator().manual_seed(1))
    one = process.noised(x0, 0.5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(x[1], one[1])


def test_times_of_one_field_have_noise_of_their_own() -> None:
    process = make()
    x0 = torch.zeros(2, 16, dtype=torch.float64)
    t = torch.full((3, 1), 0.5, dtype=torch.float64)
    for draw in (process.noised, lambda x, t, **kw: process.transition(x, 0.2, t, **kw)):
        found = draw(x0, t, generator=torch.Generator().manual_seed(1))
        expected = draw(x0.expand(3, 2, 16), 0.5, generator=torch.Generator().manual_seed(1))
        assert torch.equal(found, expected)
        assert not torch.equal(found[0], found[1])


def test_errors() -> None:
    with pytest.raises(ValueError, match="C_ℓ = 0 at degree 2"):
        OrnsteinUhlenbeck(GaussianField(Tabulated([1.0, 1.0, 0.0]), 2))
    with pytest.raises(ValueError, match="horizon"):
        ConstantRate(0.0)
    with pytest.raises(ValueError, match="highest_log_snr"):
        ConstantRate(1.0, -3.0)
    with pytest.raises(ValueError, match="high > low"):
        LogSNR(1.0, 1.0)
    process = make()
    x = torch.zeros(2, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match="expected s ≤ t"):
        process.transition(x, 0.5, 0.4, generator=torch.Generator())
    with pytest.raises(ValueError, match="for lmax 3, found.*lmax 2"):
        process.noised(x[:, :9], 0.5, generator=torch.Generator())
