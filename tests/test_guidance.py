"""Guidance: the formula against exact mixtures, and a trained model's laws, told and not told."""

from __future__ import annotations

import math

import pytest
import torch
import xarray as xr
from torch import Tensor

from spherediff import harmonics
from spherediff.data import Category, Encoder, Labels
from spherediff.denoise import Denoiser, GaussianDenoiser, GuidedDenoiser, MixtureDenoiser
from spherediff.gaussian import GaussianField
from spherediff.grids import GaussLegendre
from spherediff.model import Model
from spherediff.nn import OperatorConfig
from spherediff.process import OrnsteinUhlenbeck
from spherediff.sample import Heun
from spherediff.spectra import Tabulated
from spherediff.train import Fields, TrainConfig

# --- the formula ------------------------------------------------------------------------------


class Labelled:
    """A mixture whose components are the labels, one-hot; the null label is the mixture."""

    def __init__(self, mixture: MixtureDenoiser, calls: list[int] | None = None) -> None:
        self.mixture, self.process, self.reference = mixture, mixture.process, mixture.reference
        self.calls = [] if calls is None else calls

    def given(self, condition: Tensor) -> Denoiser:
        return _Told(self, condition)


class _Told(Denoiser):
    def __init__(self, law: Labelled, condition: Tensor) -> None:
        self.process, self.law, self.condition = law.process, law, condition

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        law, label = self.law, self.condition.expand(*x.shape[:-2], -1)
        law.calls.append(math.prod(x.shape[:-2]))
        every = torch.stack([d(x, t) for d in [law.mixture, *law.mixture.components]])
        which = (label @ torch.arange(1.0, 1 + label.shape[-1]).to(label)).long()
        return every.gather(0, which[None, ..., None, None].expand(1, *x.shape))[0]


def mixture(lmax: int) -> MixtureDenoiser:
    """Two fields that differ in mean and spectrum."""
    n = harmonics.count(lmax)
    field = GaussianField(Tabulated([[1.0] * (lmax + 1)] * 2), lmax, dtype=torch.float64)
    process = OrnsteinUhlenbeck(field)
    generator = torch.Generator().manual_seed(lmax)
    means, roots = (torch.randn(2, 2, n, generator=generator, dtype=torch.float64) for _ in "mr")
    components = [
        GaussianDenoiser(process, 0.2 + root.square(), mean=mean)
        for mean, root in zip(means, roots, strict=True)
    ]
    return MixtureDenoiser(components, [0.3, 0.7])


LABELS = torch.tensor([[1.0, 0], [0, 1], [1, 0]], dtype=torch.float64)


@pytest.mark.parametrize("lmax", [0, 2, 5])
@pytest.mark.parametrize("weight", [-0.5, 0.0, 0.4, 1.0, 2.0, 7.0])
def test_guidance_extrapolates_from_the_mixture_through_the_component(lmax, weight) -> None:
    exact = mixture(lmax)
    x = exact.process.field.sample((3,), generator=torch.Generator().manual_seed(1))
    for t in (0.3, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)[:, None]):
        m_c = torch.stack([exact.components[k](x, t)[j] for j, k in enumerate((0, 1, 0))])
        m_0 = exact(x, t)
        guided = GuidedDenoiser(Labelled(exact), LABELS, weight)
        expected = m_0 + weight * (m_c - m_0)
        torch.testing.assert_close(guided(x, t), expected, rtol=1e-12, atol=1e-12)
        # the score of p_t p_t(c | x)^w, by Bayes' rule p_t^(1−w) p_t(· | c)^w up to a factor
        alpha, sigma = exact.process.marginal(t)
        score = (1 - weight) * exact.score(x, t) + weight * (alpha * m_c - x) / sigma.square()
        torch.testing.assert_close(guided.score(x, t), score, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, 3.0])
def test_residual_and_denoiser_are_one_law(weight) -> None:
    exact = mixture(3)
    guided = GuidedDenoiser(Labelled(exact), LABELS, weight)
    x = exact.process.field.sample((3,), generator=torch.Generator().manual_seed(2))
    for t in (0.05, 0.6, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)[:, None]):
        reference = guided.reference
        z = reference.standardise(x, t)
        estimate = reference.estimate(guided.residual(z, t), z, t)
        torch.testing.assert_close(estimate, guided(x, t), rtol=1e-10, atol=1e-10)


def test_one_label_for_all_states_and_batches_of_batches() -> None:
    exact = mixture(2)
    x = exact.process.field.sample((2, 3), generator=torch.Generator().manual_seed(1))
    one = GuidedDenoiser(Labelled(exact), LABELS[1], 3.0)
    every = GuidedDenoiser(Labelled(exact), LABELS[1].expand(2, 3, 2), 3.0)
    torch.testing.assert_close(one(x, 0.4), every(x, 0.4))
    rows = GuidedDenoiser(Labelled(exact), LABELS, 3.0)(x, 0.4)  # a label for each column
    torch.testing.assert_close(rows[:, 1], one(x, 0.4)[:, 1])
    other = GuidedDenoiser(Labelled(exact), LABELS[0], 3.0)(x, 0.4)
    torch.testing.assert_close(rows[:, [0, 2]], other[:, [0, 2]])


@pytest.mark.parametrize(("weight", "evaluated"), [(0.0, 3), (1.0, 3), (2.0, 6)])
def test_nothing_is_evaluated_in_vain(weight, evaluated) -> None:
    calls: list[int] = []
    exact = mixture(2)
    x = exact.process.field.sample((3,), generator=torch.Generator().manual_seed(1))
    GuidedDenoiser(Labelled(exact, calls), LABELS, weight)(x, 0.4)
    assert calls == [evaluated]


def test_weight_one_draws_the_component_to_the_same_bits() -> None:
    exact = mixture(2)
    guided = GuidedDenoiser(Labelled(exact), LABELS[1], 1.0)
    start = torch.Generator().manual_seed(1)
    x = Heun(guided, 8).sample((4,), generator=start)
    alone = Labelled(exact).given(LABELS[1])
    assert torch.equal(x, Heun(alone, 8).sample((4,), generator=torch.Generator().manual_seed(1)))


def test_the_weight_is_finite() -> None:
    with pytest.raises(ValueError, match="finite weight of guidance, got nan"):
        GuidedDenoiser(Labelled(mixture(0)), LABELS, math.nan)


# --- a trained model --------------------------------------------------------------------------

LMAX = 3
VARIANCE = (1.0, 0.6, 0.4, 0.3)  # C_ℓ
SHIFT, SPREADS = 2.0, {"calm": 0.7, "stormy": 1.3}  # of a_00, up in calm maps; of the rest


def archive(count: int, seed: int) -> xr.Dataset:
    """Calm and stormy maps by turns, a = ±SHIFT e_00 + spread √C ε."""
    grid = GaussLegendre(LMAX)
    field = GaussianField(Tabulated(list(VARIANCE)), LMAX, dtype=torch.float64)
    a = field.sample((count,), generator=torch.Generator().manual_seed(seed))
    regimes = list(SPREADS) * (count // 2)
    a *= torch.tensor([SPREADS[regime] for regime in regimes])[:, None]
    a[:, 0] += torch.tensor([SHIFT if regime == "calm" else -SHIFT for regime in regimes])
    return xr.Dataset(
        {"t": (("sample", "lat", "lon"), grid.synthesis(a).numpy(), {"units": "K"})},
        {"regime": ("sample", regimes), "lat": grid.latitude, "lon": grid.longitude},
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Trained for 400 steps of 64 fields, half of them without their label."""
    training, held_out = archive(1024, 0), archive(256, 1)
    encoder = Encoder.fit(training, lmax=LMAX)  # the climatology is the mean of both regimes
    labels = Labels.fit(training, {"regime": Category})
    fields = [
        Fields(encoder.encode(ds), labels.encode(ds, ds.sizes["sample"]))
        for ds in (training, held_out)
    ]
    network = OperatorConfig(
        LMAX, 1, width=8, blocks=2, hidden=16, lifts=1, positional=1, embedding=32
    )
    model = Model.build(encoder, fields[0].x, labels=labels, network=network)
    config = TrainConfig(
        steps=400, batch=64, learning_rate=1e-2, warmup=20, clip=3.0, ema=0.99, evaluate_every=400,
        log_noise_mean=0.0, log_noise_std=1.0, label_dropout=0.5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("training")
    model.train(fields[0], fields[1], config, folder, progress=False)
    return model


def draw(model: Model, count: int, **options) -> Tensor:
    """Coefficients in units of the maps, less the climatology, (count, n)."""
    generator = torch.Generator().manual_seed(5)
    x = model.sample(count, generator=generator, steps=24, batch=count, **options)
    return model.encoder.anomalies(x)[:, 0]


def spread(a: Tensor) -> float:
    """√(mean of a²/C) over the degrees above 0."""
    C = harmonics.expand(torch.tensor(VARIANCE, dtype=torch.float64))
    return float((a[:, 1:].square() / C[1:]).mean().sqrt())


def test_each_label_draws_its_mean_and_spread(model: Model) -> None:
    """Four standard errors of 500 draws, one false alarm in 16,000, and what 400 steps leave.

    That is taken to be 0.1 in the mean of a_00, 15 % in its standard deviation, and 8 % in the
    spread of the other coefficients.  Both regimes together have a mean of 0 and a spread of 1.04,
    so that draws that ignore their label fail by far.
    """
    for sign, (regime, s) in zip((1, -1), SPREADS.items(), strict=True):
        a = draw(model, 500, labels={"regime": regime})
        assert float(a[:, 0].mean()) == pytest.approx(
            sign * SHIFT, abs=4 * s / math.sqrt(500) + 0.1
        )
        assert float(a[:, 0].std()) == pytest.approx(s, rel=4 / math.sqrt(1000) + 0.15)
        assert spread(a) == pytest.approx(s, rel=4 / math.sqrt(2 * 500 * 15) + 0.08)
        # no other coefficient has a mean: 15 of them, in units of their standard error
        others = a[:, 1:].mean(0) / a[:, 1:].std(0)
        assert float(others.abs().max()) < 4.5 / math.sqrt(500) + 0.1


def test_draws_without_a_label_have_the_law_of_all_maps(model: Model) -> None:
    """Both regimes, in their shares, each with its own spread: not a Gaussian between them.

    Standard errors as above; a calm map has a_00 > 0 in all but 0.2 % of the cases, a stormy one
    in 6.2 %, so that a_00 > 0 in 53 %, with a spread of 0.75 of the rest, and 1.30 elsewhere.
    """
    a = draw(model, 1000, guidance=0.0)
    total = math.sqrt(SHIFT**2 + sum(s**2 for s in SPREADS.values()) / 2)
    assert float(a[:, 0].mean()) == pytest.approx(0, abs=4 * total / math.sqrt(1000) + 0.1)
    assert float(a[:, 0].std()) == pytest.approx(total, rel=4 / math.sqrt(2000))
    up = a[:, 0] > 0
    assert float(up.double().mean()) == pytest.approx(0.53, abs=4 * 0.5 / math.sqrt(1000))
    assert spread(a) == pytest.approx(1.044, rel=0.05)
    # half of the way from the common spread to that of the regime, or more
    assert spread(a[up]) < (1.044 + 0.75) / 2 + 0.05
    assert spread(a[~up]) > (1.044 + 1.30) / 2
    # few between the regimes, where a Gaussian has 17 % of its mass
    assert float((a[:, 0].abs() < 0.5).double().mean()) < 0.12


def test_guidance_goes_beyond_the_label(model: Model) -> None:
    """m_c − m_0 points from all maps to those of the label: w = 2 exaggerates the difference."""
    told, guided = (
        draw(model, 200, labels={"regime": "calm"}, guidance=w)[:, 0] for w in (1.0, 2.0)
    )
    assert float(guided.mean()) > float(told.mean()) + 0.1
    halfway = draw(model, 200, labels={"regime": "calm"}, guidance=0.5)[:, 0]
    assert float(halfway.mean()) < float(told.mean()) - 0.1
