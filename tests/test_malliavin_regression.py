"""Score regression: targets with the right conditional mean, constants, training at small times."""

import math
from functools import partial

import pytest
import torch
from scipy import stats
from torch import nn

from spherediff.malliavin import SDE, estimated_weight
from spherediff.malliavin.processes import StudentDiffusion
from spherediff.malliavin.regression import (
    Examples,
    Perceptron,
    Reference,
    ScoreRegression,
    fit_score,
    log_uniform_times,
    score_targets,
)

DOUBLE = torch.float64
SPREAD = 0.25
TANH = SDE(lambda t, x: torch.tanh(x), 1.0)
SINH = SDE(lambda t, x: x / 2, lambda t, x: torch.sqrt(1 + x.square()))
# A mean of N independent terms beyond 4.5 standard errors: by chance once in 1.5·10⁵ seeds.
FAR = 4.5


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def root(x, t):
    return torch.sqrt(1 + x.square())


def tanh_data(count, d, generator):
    """p_0 ∝ cosh(x)e^{−x²/2s}: two normal laws of variance s at ±s, by which p_t is known."""
    sign = torch.randint(2, (count, d), generator=generator) * 2 - 1
    noise = torch.randn(count, d, dtype=DOUBLE, generator=generator)
    return sign * SPREAD + math.sqrt(SPREAD) * noise


def tanh_score(x, t):
    return torch.tanh(x) - x / (SPREAD + t[:, None])


def sinh_data(count, d, generator):
    return torch.sinh(0.5 * torch.randn(count, d, dtype=DOUBLE, generator=generator))


def sinh_score(x, t):
    """asinh X_t ~ N(0, ¼ + t)."""
    return -torch.asinh(x) / ((0.25 + t[:, None]) * root(x, t)) - x / (1 + x.square())


CASES = {
    "tanh": (TANH, tanh_data, tanh_score),
    "sinh": (SINH, sinh_data, sinh_score),
}


def examples_of(case, count, *, low, high, steps, seed, d=2, largest_step=math.inf):
    sde, data, _ = CASES[case]
    generator = seeded(seed)
    return score_targets(
        sde,
        data(count, d, generator),
        log_uniform_times(count, low, high, generator=generator),
        steps=steps,
        largest_step=largest_step,
        generator=generator,
    )


@pytest.mark.parametrize("case", CASES)
def test_targets_have_the_score_as_conditional_mean(case):
    """E[(−δ − s(X_t)) g(X_t)] = 0 for bounded g; 48 steps leave a bias far below the error."""
    examples = examples_of(case, 5000, low=0.05, high=0.5, steps=48, seed=0)
    x = examples.states
    score = CASES[case][2](x, examples.times)
    tests = [torch.ones_like(x), torch.tanh(x), torch.tanh(x).square(), torch.cos(2 * x)]
    for g in tests:
        terms = ((examples.targets - score) * g).sum(1)
        assert abs(terms.mean() / (terms.std() / math.sqrt(len(terms)))) < FAR
    wrong = ((examples.targets - 0.8 * score) * x).sum(1)
    assert abs(wrong.mean() / (wrong.std() / math.sqrt(len(wrong)))) > FAR


def test_targets_of_a_linear_sde_are_those_of_denoising_score_matching():
    """For Euler's rule X_n = αX_0 + σξ with α = (1−h)ⁿ and σ² = 2hΣ(1−h)^{2k}, path by path."""
    generator = seeded(1)
    x0 = torch.randn(40, 3, dtype=DOUBLE, generator=generator)
    t = log_uniform_times(40, 1e-3, 2.0, generator=generator).double()
    sde = SDE(lambda t, x: -x, torch.tensor(2.0, dtype=DOUBLE).sqrt())
    examples = score_targets(sde, x0, t, steps=10, generator=generator)
    h = t / 10
    alpha = (1 - h) ** 10
    variance = sum(2 * h * (1 - h) ** (2 * k) for k in range(10))
    expected = -(examples.states - alpha[:, None] * x0) / variance[:, None]
    assert torch.allclose(examples.targets, expected, rtol=1e-10)


def test_longer_horizons_take_more_steps_and_paths_keep_their_places():
    """With a drift alone Euler's rule ends at (1 − t/n)ⁿ x_0, which tells n."""
    x0 = torch.arange(1.0, 7.0, dtype=DOUBLE)[:, None]
    t = torch.tensor([3.0, 0.1, 0.9, 1.7, 0.4, 0.8], dtype=DOUBLE)
    sde = SDE(lambda t, x: -x, 1e-9)
    examples = score_targets(
        sde,
        x0,
        t,
        steps=4,
        largest_step=0.2,
        generator=seeded(0),
        weight=lambda sde, path: path.end,
    )
    n = torch.tensor([16, 4, 8, 16, 4, 4])
    assert torch.allclose(examples.states[:, 0], x0[:, 0] * (1 - t / n) ** n, rtol=1e-6)
    assert torch.equal(examples.targets, -examples.states)
    assert torch.equal(examples.times, t)


def test_other_weights_may_be_given():
    x0 = torch.randn(20, 5, dtype=DOUBLE, generator=seeded(0))
    t = torch.full((20,), 0.3, dtype=DOUBLE)
    sde = SDE(lambda t, x: -x, 1.0)
    estimated = partial(estimated_weight, generator=seeded(2))
    targets = [
        score_targets(sde, x0, t, steps=6, generator=seeded(1), **extra).targets
        for extra in ({}, {"weight": estimated})
    ]
    assert torch.allclose(*targets, rtol=1e-6)  # linear: the probes have no variance


@pytest.mark.parametrize(("case", "frame"), [("tanh", torch.zeros), ("sinh", root)])
def test_variance_of_the_target_against_time(case, frame):
    """Raw targets have a variance of order 1/t; those of the network variance 1 at every t."""
    framed = {} if case == "tanh" else {"frame": frame}
    pilot = examples_of(case, 12_000, low=1e-3, high=1.0, steps=6, seed=2)
    fresh = examples_of(case, 5000, low=1e-3, high=1.0, steps=6, seed=3)
    reference = Reference.fit(pilot, knots=12, **framed).double()
    model = ScoreRegression(Zero(), reference, **framed)
    raw, whole, times = [], [], []
    for members in fresh.times.argsort().tensor_split(8):
        part = fresh[members]
        times.append(float(part.times.log().mean()))
        raw.append(float(part.targets.square().mean().log()))
        whole.append(float(model.loss(part)))
    assert stats.linregress(times[:6], raw[:6]).slope == pytest.approx(-1, abs=0.1)
    assert all(0.85 < value < 1.15 for value in whole)


class Zero(nn.Module):
    def forward(self, z, log_time):
        return torch.zeros_like(z)


def test_reference_of_gaussian_data_is_the_exact_score():
    """OU from N(1, ¼): m = e^{−t}, v² = e^{−2t}/4 + 1 − e^{−2t}, and the score is linear."""
    generator = seeded(4)
    count = 60_000
    x0 = 1 + 0.5 * torch.randn(count, 1, generator=generator)
    t = log_uniform_times(count, 0.01, 2.0, generator=generator)
    alpha = torch.exp(-t)[:, None]
    sigma = (1 - alpha.square()).sqrt()
    noise = torch.randn(count, 1, generator=generator)
    examples = Examples(t, alpha * x0 + sigma * noise, -noise / sigma)
    model = ScoreRegression(Zero(), Reference.fit(examples, knots=24))
    t = torch.tensor([0.02, 0.1, 0.5, 1.5])
    x = torch.tensor([[-0.5], [0.2], [1.0], [1.6]])
    alpha = torch.exp(-t)[:, None]
    variance = alpha.square() / 4 + 1 - alpha.square()
    # 2,500 draws a knot: moments to 2 %, and as much from straight lines between knots
    assert torch.allclose(model(x, t), -(x - alpha) / variance, rtol=0.05, atol=0.05)
    far = model(x, torch.full((4,), 100.0))
    assert torch.equal(far, model(x, torch.full((4,), 3.0)))


def single(examples):
    return Examples(*(x.float() for x in (examples.times, examples.states, examples.targets)))


@pytest.mark.parametrize("case", CASES)
def test_learned_score(case):
    """t E‖ŝ − s‖², what a class of log t adds to the Kullback–Leibler bound, in four classes."""
    frame = {} if case == "tanh" else {"frame": root}
    pool = single(
        examples_of(case, 20_000, low=1e-3, high=1.0, steps=4, largest_step=0.05, seed=5, d=1)
    )
    held_out = single(
        examples_of(case, 2000, low=1e-3, high=1.0, steps=4, largest_step=0.05, seed=6, d=1)
    )
    exact = CASES[case][2](held_out.states, held_out.times)
    pairs = {
        "raw": (Reference.identity(1), {}),
        "preconditioned": (Reference.fit(pool, **frame), frame),
    }
    errors = {}
    for form, (reference, extra) in pairs.items():
        network = Perceptron(1, width=32, depth=2, generator=seeded(7))
        model = ScoreRegression(network, reference, **extra)
        fit_score(model, pool, steps=500, batch=256, generator=seeded(8))
        with torch.no_grad():
            wrong = (model(held_out.states, held_out.times) - exact).square().mean(1)
        parts = held_out.times.argsort().tensor_split(4)
        errors[form] = [float((held_out.times * wrong)[p].mean()) for p in parts]
    signal = float((held_out.times[:, None] * exact.square()).mean()) * len(parts)
    assert sum(errors["preconditioned"]) < 0.05 * signal, errors
    assert sum(errors["raw"]) > 1.3 * sum(errors["preconditioned"]), errors


def test_training_is_reproducible_and_reports_a_loss_that_falls():
    pool = single(examples_of("sinh", 2000, low=0.1, high=1.0, steps=4, seed=9))
    outputs = []
    for _ in range(2):
        network = Perceptron(2, width=16, depth=2, generator=seeded(1))
        model = ScoreRegression(network, Reference.identity(2))
        losses = fit_score(model, pool, steps=60, batch=128, generator=seeded(2))
        outputs.append(model(pool.states[:5], pool.times[:5]))
        assert len(losses) == 60
        assert sum(losses[-20:]) < sum(losses[:20])
    assert torch.equal(*outputs)


def test_untrained_score_is_the_reference():
    pool = examples_of("sinh", 2000, low=0.01, high=1.0, steps=4, seed=9)
    process = StudentDiffusion()
    reference = Reference.fit(pool, frame=process.frame, knots=8).double()
    network = Perceptron(2, width=16, generator=seeded(1)).double()
    model = ScoreRegression(network, reference, process.frame)
    x, t = pool.states[:50], pool.times[:50]
    mean, std, slope, _ = reference(t)
    assert torch.allclose(model(x, t) * process.frame(x, t).square(), slope * (x - mean) / std)


def test_errors():
    x0, t = torch.zeros(4, 2), torch.ones(4)
    with pytest.raises(ValueError, match="4 positive horizons"):
        score_targets(TANH, x0, -t, generator=seeded(0))
    with pytest.raises(ValueError, match="4 positive horizons"):
        score_targets(TANH, x0, t[:3], generator=seeded(0))
    with pytest.raises(ValueError, match="0 < low < high"):
        log_uniform_times(3, 0.0, 1.0, generator=seeded(0))
    with pytest.raises(ValueError, match="480 examples or more"):
        Reference.fit(Examples(t, x0, x0))
    many = Examples(torch.rand(500), torch.randn(500, 2), torch.full((500, 2), math.nan))
    with pytest.raises(ValueError, match="not all finite"):
        Reference.fit(many)
    network = Perceptron(2, width=8, generator=seeded(0))
    with pytest.raises(ValueError, match="not finite from step 0"):
        fit_score(
            ScoreRegression(network, Reference.identity(2)), many, steps=3, generator=seeded(0)
        )


def test_examples_at_one_time_alone():
    generator = seeded(0)
    x = 2 + 3 * torch.randn(5000, 2, generator=generator)
    examples = Examples(torch.full((5000,), 0.3), x, torch.randn(5000, 2, generator=generator))
    model = ScoreRegression(Zero(), Reference.fit(examples, knots=4))
    assert torch.allclose(model(x[:9], examples.times[:9]), -(x[:9] - 2) / 9, atol=0.1)
