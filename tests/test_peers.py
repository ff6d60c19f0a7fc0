"""The bench of the peers: splits, laws of the simple emulators, samplers, the table."""

import importlib
import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from spherediff import harmonics
from spherediff.gaussian import GaussianField
from spherediff.grids import GaussLegendre
from spherediff.spectra import Tabulated, WhittleMatern
from spherediff.train import Fields, conditioned, residual_error

PEERS = Path(__file__).parent.parent / "experiments" / "peers"


@pytest.fixture
def peer(monkeypatch):
    """Import a script of the bench by name."""
    monkeypatch.syspath_prepend(PEERS)
    return importlib.import_module


@pytest.fixture
def winds(peer):
    return peer("archives").load("winds")


@pytest.fixture
def smooth_winds(peer, monkeypatch):
    """Few degrees, for tests that build a whole model."""
    archives = peer("archives")
    monkeypatch.setattr(archives, "LMAX", 7)
    return archives.load("winds")


def correlated_maps(count, lmax, generator):
    """Two channels, the second ½ the first plus as much of its own, C_ℓ = 1/(1+ℓ)²."""
    field = GaussianField(
        Tabulated(1 / (1 + torch.arange(lmax + 1.0)) ** 2), lmax, dtype=torch.float32
    )
    first, own = field.sample((2, count), generator=generator)
    return torch.stack([first, 0.5 * (first + own)], dim=1)


def test_winds_are_split_in_time_and_standardised_by_what_is_known(winds):
    assert [len(x) for x in (winds.training, winds.validation, winds.test)] == [97, 11, 24]
    assert torch.equal(winds.known[:97], winds.training)
    assert winds.known_told["time"].values.max() < winds.test_told["time"].values.min()
    power = winds.known.double().square().sum(-1).mean(0) / (4 * math.pi)
    torch.testing.assert_close(power, torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=0)


def test_validation_maps_are_no_combination_of_training_maps(winds):
    training, validation = winds.tuning
    months = winds.known_told["time"].dt.month.values
    for month in range(1, 13):
        of_month = months[:97] == month
        torch.testing.assert_close(
            training[of_month].mean(0), torch.zeros_like(training[0]), rtol=0, atol=1e-6
        )
    assert torch.allclose(
        validation[0] - winds.validation[0], training[months[:97] == months[97]][0]
        - winds.training[months[:97] == months[97]][0], atol=1e-6,
    )  # fmt: skip

    def unexplained(x, by):
        return float((torch.linalg.lstsq(by.T, x.T).solution.T @ by - x).norm() / x.norm())

    plain = [x.double().flatten(1) for x in (winds.validation, winds.training)]
    assert unexplained(*plain) < 1e-4
    assert unexplained(*(x.double().flatten(1) for x in (validation, training))) > 0.3


def test_archives_ask_for_their_files_before_work_begins(peer, tmp_path):
    archives = peer("archives")
    archives.require(["winds"], None)
    with pytest.raises(ValueError, match="name its folder"):
        archives.require(["winds", "pr"], None)
    with pytest.raises(FileNotFoundError, match="speedy-daily.nc"):
        archives.require(["pr"], tmp_path)
    with pytest.raises(ValueError, match="no archive 'rain'"):
        archives.load("rain", tmp_path)


def test_ensemble_is_split_by_member(peer):
    archives = peer("archives")
    import numpy as np
    import xarray as xr

    member = np.repeat([3, 5, 9, 11], 5)
    ds = xr.Dataset(coords={"member": ("sample", member)})
    members = [set(part.member.values.tolist()) for part in archives._by_member(ds)]
    assert members == [{3, 5}, {9}, {11}]


def test_isotropic_emulator_has_the_spectra_and_cross_spectra(peer):
    emulators = peer("emulators")
    x = correlated_maps(400, 7, torch.Generator().manual_seed(0))
    emulator = emulators.IsotropicGaussian()
    emulator.fit(x[:300], x[300:], 0.0, 0)
    expected = torch.tensor([[1.0, 0.5], [0.5, 0.5]], dtype=torch.float64)
    expected = expected / (1 + torch.arange(8))[:, None, None] ** 2
    found = emulators.cross_spectrum(emulator.sample(4000, seed=1))
    # The archive's own error at ℓ = 0 is √(2/400), 7 %, and five of them are allowed; ℓ > 1 have
    # at least five orders.
    torch.testing.assert_close(found[2:], expected[2:], rtol=0.17, atol=0)
    torch.testing.assert_close(found[:2], expected[:2], rtol=0.35, atol=0)


def test_cross_spectrum_of_one_channel_is_the_degree_spectrum(peer):
    x = torch.randn(5, 1, 16, generator=torch.Generator().manual_seed(2))
    found = peer("emulators").cross_spectrum(x)[:, 0, 0]
    torch.testing.assert_close(found, harmonics.degree_spectrum(x.double()).mean(0)[0])


def test_gaussian_emulator_has_the_shrunk_covariance_and_the_mean(peer):
    x = correlated_maps(40, 2, torch.Generator().manual_seed(3)) + 2.0  # few: much shrinkage
    emulator = peer("emulators").FullGaussian()
    emulator.fit(x[:30], x[30:], 0.0, 0)
    draws = emulator.sample(40_000, seed=4).flatten(1)
    identity = torch.eye(18).unflatten(1, (2, 9))
    covariance = emulator.covariance.matmul(identity).flatten(1)
    scale = covariance.diagonal().sqrt()
    # Means and covariances of 40,000 draws are known to 1/200 of the standard deviations (times
    # at most √2); five standard errors, for 18 means and 171 covariances.
    assert ((draws.mean(0) - x.mean(0).flatten()) / scale).abs().max() < 0.025
    assert ((draws.T.cov() - covariance) / scale / scale[:, None]).abs().max() < 0.036


def test_bootstrap_draws_known_maps(peer, winds):
    emulator = peer("emulators").Bootstrap()
    emulator.fit(winds.training, winds.validation, 0.0, 0)
    draws = emulator.sample(50, seed=0)
    assert all((winds.known == draw).all((1, 2)).any() for draw in draws)
    assert torch.equal(draws, emulator.sample(50, seed=0))
    assert not torch.equal(draws, emulator.sample(50, seed=1))


def test_function_space_sampler_with_the_exact_score_has_the_exact_law(peer, monkeypatch):
    functional = peer("functional")
    monkeypatch.setattr(functional, "BATCH_DRAWN", 40_000)
    lmax, count = 1, 40_000
    noise = GaussianField(WhittleMatern(1.0, 1.0, 1.0), lmax, dtype=torch.float32)
    noise = GaussianField(Tabulated(noise.degree_variance[None]), lmax, dtype=torch.float32)
    C = noise.variance_per_coefficient
    S = C * torch.linspace(0.2, 2, harmonics.count(lmax))  # of the data

    def exact(x, t):
        alpha, sigma = functional.marginal(t[:, None, None])
        return sigma * C * x / (alpha.square() * S + sigma.square() * C)  # E[ξ | x_t]

    emulator = functional.FunctionSpace()
    emulator.noise, emulator.network = noise, exact
    ratio = emulator.sample(count, seed=0).var(0) / S
    # A variance of 40,000 draws has a standard error of 0.7 %, five of which are allowed; the rest
    # is the bias of 500 first-order steps.
    assert (ratio - 1).abs().max() < 0.035 + 0.01


def test_training_keeps_within_its_time_and_keeps_the_best_weights(peer, monkeypatch):
    training = peer("training")
    ticks = itertools.count(step=0.01)
    monkeypatch.setattr(training, "clock", lambda: next(ticks))
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))

    def loss(network, batch):
        return (network(batch + 0.1 * torch.randn(batch.shape)) - batch).square().mean()

    network = torch.nn.Linear(3, 3)
    torch.nn.init.zeros_(network.weight)
    budget = training.Budget(seconds=3.0, seed=0, learning_rate=2e-2, ema=0.9)
    record = training.train_within(budget, network, loss, x, x)
    assert 250 < record["steps"] <= 300
    errors = [error for _, _, error in record["validation"]]
    assert training.judge(network, loss, x, budget.batch) == pytest.approx(min(errors))
    assert min(errors) < 0.05  # 1 untrained, 0.01 the best
    assert len(errors) == 20


def test_rate_of_learning_rises_and_falls_to_nothing(peer):
    budget = peer("training").Budget(seconds=100.0, seed=0, learning_rate=2.0, warmup=0.1)
    assert budget.rate(5.0) == pytest.approx(0.5 * (1 + math.cos(0.05 * math.pi)))
    assert budget.rate(50.0) == pytest.approx(1.0)
    assert budget.rate(100.0) == pytest.approx(0.0)


def test_run_draws_scores_and_goes_on_where_it_stopped(peer, tmp_path, monkeypatch, capsys):
    run = peer("run")
    methods = ["isotropic", "bootstrap"]
    command = ["run.py", str(tmp_path), "--output", str(tmp_path / "out"), "--archives", "winds"]
    monkeypatch.setattr(
        sys, "argv", [*command, "--resamples", "2", "--threads", "1", "--methods", *methods]
    )
    run.main()
    table = json.loads((tmp_path / "out" / "table.json").read_text("utf-8"))
    assert list(table["winds"]) == methods
    (copied,) = (
        row
        for row in table["winds"]["bootstrap"]["card"]["rows"]
        if row["statistic"].startswith("share") and row["variable"] == "all"
    )
    assert copied["value"] == 1.0
    text = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "| variable | statistic | isotropic | bootstrap |" in text
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "winds").iterdir())]
    run.main()
    assert "2 results, 2 of them already there" in capsys.readouterr().out
    again = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "winds").iterdir())]
    assert again == times


def test_pixel_network_is_periodic_in_longitude_only(peer):
    pytest.importorskip("azula", reason="a peer, in the bench extra")
    diffusion = peer("diffusion")
    layer = diffusion.Cylinder(torch.nn.Conv2d(2, 2, 3, padding=1))
    x = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x).roll(3, -1), layer(x.roll(3, -1)))
    assert not torch.allclose(layer(x).roll(1, -2), layer(x.roll(1, -2)), atol=1e-2)


def test_turning_a_field_about_the_axis_shifts_its_longitudes(peer):
    rotated = peer("ablations").rotated
    x = torch.randn(2, 1, 49, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = GaussLegendre(7)  # 16 longitudes
    turned = grid.synthesis(rotated(x, 2 * math.pi * 3 / 16))
    torch.testing.assert_close(turned, grid.synthesis(x).roll(3, -1))


def test_turned_fields_are_in_the_part_of_those_that_they_were(peer):
    """The learner of a part has a reference from the others, which must not have its copies."""
    ablations = peer("ablations")
    x = torch.randn(23, 2, 16, generator=torch.Generator().manual_seed(0))
    condition = torch.arange(23.0)[:, None]
    turned = ablations.in_positions(Fields(x, condition), count=4, parts=5)
    assert turned.x.shape == (80, 2, 16)  # 4 of each part, 3 left out
    for k in range(5):
        part, copies = slice(4 * k, 4 * k + 4), turned.at(slice(16 * k, 16 * k + 16))
        for m, some in enumerate(copies.split(4)):
            assert torch.equal(some.x, ablations.rotated(x[part], 2 * math.pi * m / 4))
            assert torch.equal(some.condition, condition[part])


def test_rough_noise_has_the_power_of_the_archive_at_other_degrees(peer, smooth_winds):
    ablations = peer("ablations")
    plain, rough = (
        ablations.Ablation(
            ablations.Variant(0, network=ablations.sized, noise_exponent=k), smooth_winds, 0
        )
        for k in (0.0, 1.0)
    )
    assert len(rough.learners) == 5
    pairs = zip(
        [plain.denoiser, *plain.learners],
        [rough.denoiser, *rough.learners],
        strict=True,
    )
    for one, other in pairs:
        (of_archive, noise) = (x.process.field.degree_variance for x in (one, other))
        slope = noise / of_archive / (1 + torch.arange(noise.shape[-1]))
        torch.testing.assert_close(slope, slope[:, :1].expand_as(slope))
        torch.testing.assert_close(noise.sum(-1), of_archive.sum(-1))
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.covariance.variance, other.covariance.variance)


def test_entropic_errors_are_weighed_by_the_integrand_of_the_bound(peer, smooth_winds):
    """cos²ψ = α²p/σ² of each mode, p the variance of X_0 given X_t by the reference."""
    ablations = peer("ablations")
    variant = ablations.Variant(
        0, correlations=ablations.independent, network=ablations.sized, learner=ablations.Entropic
    )
    ablation = ablations.Ablation(variant, smooth_winds, 0)
    entropic = ablation.learners[0]
    plain = variant.of(entropic, entropic.network, ablations.NeuralDenoiser)
    x, log_noise = ablation.known.at(slice(6)), torch.linspace(-2, 2, 6)
    found, expected = (
        residual_error(conditioned(one, x), x.x, log_noise, torch.Generator().manual_seed(1))[0]
        for one in (entropic, plain)
    )
    s = plain.covariance.variance  # of X_0
    n = plain.process.field.variance_per_coefficient * log_noise.exp()[:, None, None] ** 2
    torch.testing.assert_close(found.square(), expected.square() * s / (s + n))


def test_a_variant_that_changes_nothing_is_the_packages_model(peer, smooth_winds):
    ablations, emulators = peer("ablations"), peer("emulators")
    ablation = ablations.Ablation(ablations.Variant(), smooth_winds, 3)
    model, known, judged = emulators.untrained(smooth_winds, *smooth_winds.tuning, 3)
    for one, other in ((ablation.known, known), (ablation.judged, judged)):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.condition, other.condition)
    pairs = [(ablation.denoiser, model.denoiser)]
    pairs += zip(ablation.learners, model.learners(known.x), strict=True)
    for one, other in pairs:
        expected = other.state_dict()
        assert expected.keys() == one.state_dict().keys()
        for name, value in one.state_dict().items():
            torch.testing.assert_close(value, expected[name])
        torch.testing.assert_close(one.covariance.variance, other.covariance.variance)
