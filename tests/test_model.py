"""Models: moments of an archive, files that load to the same bits, and errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from spherediff import harmonics
from spherediff._model_file import CONFIG
from spherediff.calibrate import calibrate
from spherediff.calibration import Calibration
from spherediff.covariance import Covariance
from spherediff.data import Category, Encoder, Harmonics, Labels, Log1p, Scalar, Season
from spherediff.data.cells import of_rectangle
from spherediff.data.observations import Standardised, observe
from spherediff.data.readings import Reading
from spherediff.data.static import amplitude_fields, static_fields
from spherediff.denoise import GuidedDenoiser, NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.grids import GaussLegendre, Points
from spherediff.kriging import Kriging
from spherediff.model import Model, archive_moments
from spherediff.nn import OperatorConfig, SphericalOperator
from spherediff.observe import Observation, Values
from spherediff.process import ConstantRate, LogSNR, OrnsteinUhlenbeck
from spherediff.sample import Heun, ProbabilityFlow
from spherediff.spectra import Tabulated
from spherediff.train import Fields, TrainConfig

LMAX = 4
TINY = {"width": 4, "blocks": 1, "hidden": 4, "lifts": 1, "positional": 1, "embedding": 4}


def archive(count: int = 12, channels: int = 2) -> xr.Dataset:
    grid = GaussLegendre(LMAX)
    spectrum = (1 + torch.arange(LMAX + 1.0)) ** -3
    field = GaussianField(Tabulated(spectrum), LMAX, dtype=torch.float64)
    a = field.sample((count, channels), generator=torch.Generator().manual_seed(0))
    maps = 10 + 3 * grid.synthesis(a).numpy()
    dims = ("time", "lat", "lon")
    return xr.Dataset(
        {f"f{c}": (dims, maps[:, c], {"units": "m s-1"}) for c in range(channels)},
        coords={
            "time": np.datetime64("2001-01-01", "ns") + np.arange(count) * np.timedelta64(1, "D"),
            "lat": ("lat", grid.latitude, {"units": "degrees_north"}),
            "lon": ("lon", grid.longitude, {"units": "degrees_east"}),
        },
    )


def build(channels: int = 2, schedule: LogSNR | ConstantRate = LogSNR(high=4, low=-4)) -> Model:
    ds = archive(channels=channels)
    encoder = Encoder.fit(ds, lmax=LMAX)
    network = OperatorConfig(LMAX, channels, **TINY)
    model = Model.build(encoder, encoder.encode(ds), network=network, schedule=schedule)
    with torch.no_grad():  # as after training: F is not zero
        model.denoiser.network.project.weight.normal_(std=0.3)
    return model


def draw(model: Model, count: int = 3, **options) -> Tensor:
    return model.sample(count, generator=torch.Generator().manual_seed(1), steps=4, **options)


def test_degrees_beyond_the_network_are_exactly_gaussian_and_leave_the_others_alone() -> None:
    ds = archive()
    encoder = Encoder.fit(ds, lmax=LMAX, amplitude_degree=2)
    model = Model.build(encoder, encoder.encode(ds), network=OperatorConfig(2, 2, **TINY))
    with torch.no_grad():
        model.network.project.weight.normal_(std=0.3)
        for table in model.denoiser.calibration.state_dict().values():
            table.add_(0.1 * torch.randn(table.shape, generator=torch.Generator().manual_seed(2)))
    x = draw(model)
    low = harmonics.count(2)
    learner = model.learner()
    assert learner.process.event_shape == (2, low)
    alone = ProbabilityFlow(learner, 4).sample((3,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(x[..., :low], alone)
    assert not torch.allclose(alone, learner.mean, atol=0.1)  # it does draw something

    # F = 0 above, and there the sampler carries the standardised noise over as it is
    reference = model.denoiser.reference
    start = model.denoiser.process.field.sample((3,), generator=torch.Generator().manual_seed(1))
    expected = reference.clean(reference.standardise(start, 1.0))
    torch.testing.assert_close(x[..., low:], expected[..., low:])


def test_a_model_told_the_season_draws_by_date() -> None:
    ds = archive(24)
    encoder = Encoder.fit(ds, lmax=LMAX, climatology=Harmonics(1))
    model = Model.build(encoder, encoder.encode(ds), network=OperatorConfig(2, 2, **TINY))
    assert model.labels == Labels((Season(2),))
    listen(model)
    january, july = (draw(model, time=f"2001-{month}-15") for month in ("01", "07"))
    assert not torch.allclose(january, july, atol=0.01)
    mixed = draw(model, time=np.array(["2001-01-15", "2001-07-15", "2001-01-15"], "M8[ns]"))
    torch.testing.assert_close(mixed[1], july[1])
    torch.testing.assert_close(mixed[[0, 2]], january[[0, 2]])
    in_parts = draw(
        model, time=np.array(["2001-01-15", "2001-07-15", "2001-01-15"], "M8[ns]"), batch=2
    )
    torch.testing.assert_close(in_parts, mixed)
    with pytest.raises(ValueError, match="needs the date of every sample"):
        draw(model)


def test_untrained_draws_given_observations_have_the_law_of_kriging() -> None:
    """F = 0: the model is Gaussian, and its posterior exact in any number of steps.

    The mean square of whitened misfits of mean and spread: a false alarm in 10⁴ of each.
    """
    ds = archive(60)
    encoder = Encoder.fit(ds, lmax=LMAX, amplitude_degree=2)
    model = Model.build(encoder, encoder.encode(ds), network=OperatorConfig(LMAX, 2, **TINY))
    denoiser = model.denoiser
    stations = Points([50.0, -20.0, 0.0], [10.0, 100.0, 250.0])
    H = Standardised(Values(stations, (2, 25), channel=1), encoder)
    given = Observation(H, torch.tensor([2.0, -1.0, 0.5]).double(), torch.tensor([0.02, 0.3, 1.0]))
    count = 400
    x = draw(model, count, given=given, batch=200).double()
    exact = Kriging(given, denoiser.covariance, denoiser.mean)
    eye = torch.eye(50, dtype=torch.float64).reshape(50, 2, 25)
    S = exact.covariance_matmul(eye).flatten(1)
    values, vectors = torch.linalg.eigh((S + S.T) / 2)
    kept = values > 1e-6 * values.max()
    white = (x - exact.mean).flatten(1) @ vectors[:, kept] / values[kept].sqrt()
    n = int(kept.sum())
    assert n == 50
    chi2 = float(count * white.mean(0).square().sum())
    assert abs(chi2 - n) < 4.5 * math.sqrt(2 * n)
    spread = float(white.square().mean())
    assert abs(spread - 1) < 4 * math.sqrt(2 / (n * count))
    # and is another law than without observations
    free = draw(model, count, batch=200).double()
    assert float(((free - exact.mean).flatten(1) @ vectors[:, :1]).std()) > 3 * values[0].sqrt()


def told_of_members() -> Model:
    """A model that is told the season, the year and the member, and whose network listens."""
    ds = archive(24).assign_coords(member=("time", np.arange(24) % 3))
    ds = ds.assign_coords(
        time=np.datetime64("1999-01-15", "ns") + np.arange(24) * np.timedelta64(30, "D")
    )
    encoder = Encoder.fit(ds, lmax=LMAX, climatology=Harmonics(1))
    kinds = {"year": Scalar, "member": Category}
    labels = Labels.fit(ds, kinds, climatology=encoder.climatology)
    x = encoder.encode(ds)
    return listen(Model.build(encoder, x, labels=labels, network=OperatorConfig(2, 2, **TINY)))


def listen(model: Model) -> Model:
    with torch.no_grad():
        model.network.project.weight.normal_(std=0.3)
        model.network.blocks[0].modulation.weight.normal_(std=0.3)
    return model


def test_a_coarse_map_is_compared_with_draws_of_the_reference() -> None:
    """Of a variable with a transform; and the observation is one that the model can be told."""
    ds = archive()
    encoder = Encoder.fit(ds, lmax=LMAX, transform={"f1": Log1p(0.5)})
    network = OperatorConfig(LMAX, 2, **TINY)
    model = Model.build(encoder, encoder.encode(ds), network=network)
    axes = np.arange(60.0, -61.0, -60.0), np.arange(0.0, 360.0, 60.0)
    cells = of_rectangle(*axes, LMAX, True)
    assert cells is not None
    maps = encoder.decode(encoder.encode(ds)[:1], cells.nodes)
    values = (maps["f1"].values.reshape(cells.weights.shape) * cells.weights).sum(1)
    readings = [Reading("f1", Points(*cells_at(axes)), values, None, cells=cells)]
    found = model.observe(readings)
    noise = torch.randn(64, 2, 25, generator=torch.Generator().manual_seed(0))
    prior = model.denoiser.reference.clean(noise)
    assert prior.std(0).max() > 0
    expected = observe(readings, encoder, prior=prior)
    assert torch.equal(found.values, expected.values)
    other = observe(readings, encoder, prior=0 * prior)
    assert (found.values - other.values).abs().max() > 1e-4
    drawn = draw(model, 2, given=found)
    residual = (found.operator(drawn.double()) - found.values) / found.noise_std
    assert residual.square().mean() < 4


def cells_at(axes: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(axes[0], len(axes[1])), np.tile(axes[1], len(axes[0]))


def test_labels_reach_the_network_as_they_are_encoded() -> None:
    model = told_of_members()
    dates = np.array(["1999-02-03", "2000-05-06", "2000-07-08"], "M8[ns]")
    label = model.labels.encode({"time": dates, "member": [2, 0, 1]}, 3)
    expected = ProbabilityFlow(model.denoiser.given(label), 4).sample(
        (3,), generator=torch.Generator().manual_seed(1)
    )
    # guidance 1 asks for the label's law alone: the same bits
    assert torch.equal(draw(model, time=dates, labels={"member": [2, 0, 1]}), expected)
    parts = draw(model, time=dates, labels={"member": [2, 0, 1]}, batch=1)
    torch.testing.assert_close(parts, expected, rtol=1e-5, atol=1e-5)
    year = [1999, 2000, 2000]  # that of the dates, if it is not given
    assert torch.equal(
        draw(model, time=dates, labels={"member": [2, 0, 1], "year": year}), expected
    )
    other = draw(model, time=dates, labels={"member": [2, 0, 1], "year": 2000})
    assert not torch.allclose(other[0], expected[0], atol=1e-3)
    torch.testing.assert_close(other[1:], expected[1:])


def test_guidance_of_a_model() -> None:
    model = told_of_members()
    told = {"time": "1999-02-03", "labels": {"member": 1}}
    nothing = ProbabilityFlow(model.denoiser.given(torch.zeros(3, model.labels.size)), 4).sample(
        (3,), generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(draw(model, guidance=0), nothing)
    assert torch.equal(draw(model, guidance=0, **told), nothing)
    label = model.labels.encode({"time": "1999-02-03", "member": 1}, 3)
    guided = ProbabilityFlow(GuidedDenoiser(model.denoiser, label, 2.5), 4).sample(
        (3,), generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(draw(model, guidance=2.5, **told), guided)
    assert not torch.allclose(draw(model, **told), guided, atol=1e-3)
    torch.testing.assert_close(draw(model, guidance=2.5, batch=2, **told), guided)


def test_labels_are_saved_with_the_model(tmp_path) -> None:
    model = told_of_members()
    model.save(tmp_path)
    loaded = Model.load(tmp_path)
    assert loaded.labels == model.labels
    told = {"time": "1999-02-03", "labels": {"member": 1}}
    assert torch.equal(draw(loaded, **told), draw(model, **told))
    edit(tmp_path, lambda d: d["labels"].pop())
    with pytest.raises(
        ValueError, match=r"\(time, year\) are 6 numbers, but the network expects 9"
    ):
        Model.load(tmp_path)


def test_errors_of_labels(model) -> None:
    with pytest.raises(ValueError, match="guidance 2 needs labels, but the model is told nothing"):
        draw(model, guidance=2)
    with pytest.raises(ValueError, match="not told member; it is told nothing"):
        draw(model, labels={"member": 1})
    members = told_of_members()
    with pytest.raises(ValueError, match="member has no value: give member, one of 0, 1, 2"):
        draw(members, time="1999-02-03")
    with pytest.raises(ValueError, match="member = 5 is not known: .* 0, 1, 2"):
        draw(members, time="1999-02-03", labels={"member": 5})
    with pytest.raises(ValueError, match="finite weight of guidance"):
        draw(members, time="1999-02-03", labels={"member": 1}, guidance=math.nan)


def test_the_network_starts_from_what_the_archive_says_of_each_place() -> None:
    ds = archive(20)
    encoder = Encoder.fit(ds, lmax=LMAX, climatology=Harmonics(1), amplitude_degree=2)
    x = encoder.encode(ds)
    told = Labels.seasonal(encoder.climatology).encode(ds, 20)
    network = Model.build(encoder, Fields(x, told), network=OperatorConfig(3, 2, **TINY)).network
    static = static_fields(encoder, x, told, 3)
    assert network.config.static == len(static) == 2 * (2 * 3 + 2 + 4)
    assert torch.equal(network.positional[:, TINY["positional"] :], static.T)
    assert torch.equal(network.amplitude, amplitude_fields(encoder, 3).T)


def test_learner_shares_the_network_and_survives_saving(tmp_path: Path) -> None:
    ds = archive()
    encoder = Encoder.fit(ds, lmax=LMAX)
    model = Model.build(encoder, encoder.encode(ds), network=OperatorConfig(2, 2, **TINY))
    with torch.no_grad():
        model.learner().network.project.weight.normal_(std=0.3)
    model.save(tmp_path)
    assert torch.equal(draw(Model.load(tmp_path)), draw(model))


def test_training_ends_with_a_calibration_that_survives_saving(tmp_path: Path) -> None:
    ds = archive(30)
    encoder = Encoder.fit(ds, lmax=LMAX)
    loud = torch.arange(30) % 3 == 0  # a mixture, which is more than its Gaussian reference
    x = encoder.encode(ds) * torch.where(loud, 2.0, 0.3)[:, None, None]
    known, held_out = x[:20], x[20:]
    model = Model.build(encoder, known, network=OperatorConfig(2, 2, **TINY))
    model.denoiser.calibration.b.fill_(9.0)  # of an earlier training
    config = TrainConfig(steps=20, batch=4, learning_rate=1e-2, warmup=0, evaluate_every=10)
    result = model.train(known, held_out, config, tmp_path / "training", progress=False)
    assert result.best_step == 20
    assert result.best < 1.5  # not that of a network corrected by what it is to be corrected by
    calibration, learner = model.denoiser.calibration, model.learner()
    assert torch.equal(calibration.group, learner.calibration.group)
    assert len(calibration.group.unique()) == 4  # 2·9 modes: 1, 3, 12 and the last 2
    known, held_out = (harmonics.resize(fields, 2) for fields in (known, held_out))
    calibrate(learner, known, held_out, learners=model.learners(known), amplitude=encoder.amplitude)
    for name in "abcd":
        assert torch.equal(getattr(learner.calibration, name), getattr(calibration, name))
        assert (getattr(calibration, name) != getattr(Calibration(torch.ones(2, 9)), name)).any()
    model.save(tmp_path / "model")
    assert torch.equal(draw(Model.load(tmp_path / "model")), draw(model))
    before = draw(model)
    calibration.reset()
    assert not torch.equal(draw(model), before)


@pytest.fixture(scope="module")
def model() -> Model:
    return build()


@pytest.fixture
def saved(model, tmp_path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_moments_are_those_of_the_archive_with_shrunk_variances() -> None:
    x = torch.randn(30, 2, 16, generator=torch.Generator().manual_seed(0)).double() + 5
    mean, variance, spectrum = archive_moments(x)
    torch.testing.assert_close(mean, x.mean(0))
    raw = x.var(0)
    for channel in range(2):
        for ell in range(4):
            rows = slice(ell * ell, (ell + 1) ** 2)
            expected = (30 * raw[channel, rows] + 20 * raw[channel, rows].mean()) / 50
            torch.testing.assert_close(variance[channel, rows], expected)
            power = x[:, channel, rows].square().mean()
            torch.testing.assert_close(spectrum[channel, ell], power)


def test_degrees_without_variance_keep_a_positive_noise_and_variance() -> None:
    x = torch.randn(10, 1, 16, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] = 0
    x[:, :, 4:9] = 0
    _, variance, spectrum = archive_moments(x)
    assert (variance > 0).all()
    assert (spectrum > 0).all()
    assert spectrum[0, 2] < 1e-9 * spectrum[0, 3]


def test_an_untrained_model_draws_the_gaussian_emulator() -> None:
    ds = archive(count=60)
    encoder = Encoder.fit(ds, lmax=LMAX)
    model = Model.build(encoder, encoder.encode(ds), network=OperatorConfig(LMAX, 2, **TINY))
    x = model.sample(2000, generator=torch.Generator().manual_seed(0), batch=2000).double()
    # 50 variances of 2000 draws: standard error √(2/2000) = 3.2 %; 4.5 of them and 1 % of solver
    ratio = x.var(0) / model.denoiser.covariance.variance
    assert (ratio - 1).abs().max() < 4.5 * math.sqrt(2 / 2000) + 0.01


def test_building_does_not_touch_the_global_generator_and_is_reproducible() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    ds = archive()
    encoder = Encoder.fit(ds, lmax=LMAX)
    first, second = (Model.build(encoder, encoder.encode(ds), seed=3) for _ in range(2))
    assert torch.rand(1) == expected
    for a, b in zip(
        first.denoiser.network.parameters(), second.denoiser.network.parameters(), strict=True
    ):
        assert torch.equal(a, b)


def test_samples_do_not_depend_on_the_batch(model) -> None:
    together = draw(model, 5)
    torch.testing.assert_close(together, draw(model, 5, batch=2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[:2], draw(model, 2), rtol=1e-5, atol=1e-5)
    assert together.shape == (5, 2, harmonics.count(LMAX))
    assert not torch.equal(together, draw(model, 5, sampler=Heun))


def test_draws_in_several_batches_show_one_bar(model, capsys: pytest.CaptureFixture[str]) -> None:
    draw(model, 5, batch=2, progress=True)
    shown = capsys.readouterr().err
    assert "ProbabilityFlow: 100%" in shown
    assert "12/12" in shown  # three batches of four steps
    assert "/4 " not in shown


@pytest.mark.parametrize("schedule", [LogSNR(high=4.5, low=-3.5), ConstantRate(horizon=4.0)])
def test_a_saved_model_loads_to_the_same_bits(schedule, tmp_path) -> None:
    model = build(schedule=schedule)
    model.save(tmp_path)
    loaded = Model.load(tmp_path)
    assert loaded.denoiser.process.schedule == schedule
    x = draw(model)
    assert torch.equal(draw(loaded), x)
    grid = GaussLegendre(LMAX)
    xr.testing.assert_identical(loaded.encoder.decode(x, grid), model.encoder.decode(x, grid))


def test_a_factor_of_half_precision_is_stored_in_half_precision(model, tmp_path) -> None:
    known = model.denoiser
    sizes = []
    for k, factor in enumerate([known.covariance.factor, known.covariance.factor.half().float()]):
        covariance = Covariance(known.covariance.diagonal, factor)
        denoiser = NeuralDenoiser(
            known.process, known.network, known.mean, covariance, unit=known.unit
        )
        one = Model(model.encoder, denoiser, model.labels)
        one.save(tmp_path / str(k))
        assert torch.equal(Model.load(tmp_path / str(k)).denoiser.covariance.factor, factor)
        sizes.append(weights_of(tmp_path / str(k)).stat().st_size)
    saved = sizes[0] - sizes[1]
    assert saved == pytest.approx(2 * known.covariance.factor.numel(), rel=0.05)  # and headers


def test_saving_again_replaces_the_model(model, saved) -> None:
    other = build()
    with torch.no_grad():
        other.denoiser.network.project.weight.add_(1)
    other.save(saved)
    assert torch.equal(draw(Model.load(saved)), draw(other))
    assert sorted(p.suffix for p in saved.iterdir()) == [".json", ".safetensors"]
    model.save(saved)
    assert torch.equal(draw(Model.load(saved)), draw(model))


def test_a_save_that_fails_leaves_the_old_model(model, saved, monkeypatch) -> None:
    other = build()
    with torch.no_grad():
        other.denoiser.network.project.weight.add_(1)

    def fail(*_args, **_options):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="no space"):
        other.save(saved)
    monkeypatch.undo()
    assert torch.equal(draw(Model.load(saved)), draw(model))


def weights_of(directory: Path) -> Path:
    return next(directory.glob("*.safetensors"))


def edit(directory: Path, change) -> None:
    description = json.loads((directory / CONFIG).read_text())
    change(description)
    (directory / CONFIG).write_text(json.dumps(description))


def test_missing_models_are_reported(saved, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a model directory with model.json"):
        Model.load(tmp_path / "nowhere")
    weights_of(saved).unlink()
    with pytest.raises(FileNotFoundError, match="expected a model at"):
        Model.load(saved)


@pytest.mark.parametrize("keep", [0, 50, -1])
def test_damaged_models_are_refused(saved, keep) -> None:
    content = weights_of(saved).read_bytes()
    weights_of(saved).write_bytes(content[:keep])
    with pytest.raises(ValueError, match="truncated or corrupted"):
        Model.load(saved)
    flipped = bytes([content[-5] ^ 8])
    weights_of(saved).write_bytes(content[:-5] + flipped + content[-4:])
    with pytest.raises(ValueError, match="checksum"):
        Model.load(saved)
    weights_of(saved).write_bytes(content.replace(b'{\\"kind', b'!\\"kind'))
    with pytest.raises(ValueError, match="weights-.* is truncated or corrupted"):
        Model.load(saved)
    text = (saved / CONFIG).read_text()
    (saved / CONFIG).write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="model.json is truncated or corrupted"):
        Model.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=99), "format 99, this version of spherediff reads 11"),
        (lambda d: d["network"].update(lmax=7), "lmax 7, but an encoder for 2 at lmax 4"),
        (lambda d: d["network"].update(channels=1), "for 1 channel.*encoder for 2"),
        (lambda d: d["network"].update(width=5), "belong to another network"),
        (lambda d: d.pop("encoder"), "lacks encoder"),
        (lambda d: d.pop("labels"), "lacks labels"),
        (lambda d: d.update(labels=[{"kind": "Weather"}]), "unknown label 'Weather'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(saved, change, message) -> None:
    edit(saved, change)
    with pytest.raises(ValueError, match=message):
        Model.load(saved)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["network"].update(widht=5), "unexpected keyword argument 'widht'"),
        (lambda d: d["network"].pop("lmax"), "'lmax'"),
        (lambda d: d["network"].update(width="x"), "not supported between"),
        (lambda d: d["schedule"].update(kind="LogSNQ"), "unknown schedule 'LogSNQ'"),
        (lambda d: d["schedule"].update(speed=1), "unexpected keyword argument 'speed'"),
        (lambda d: d["schedule"].pop("kind"), "'kind' is missing"),
        (lambda d: d["encoder"]["channels"][0].pop("name"), "'name' is missing"),
        (lambda d: d.update(encoder=[]), "no attribute 'get'"),
        (lambda d: d.update(weights=None), "Invalid name None"),
        (lambda d: d.pop("format"), "'format' is missing"),
    ],
)
def test_damaged_descriptions_are_named(saved, change, reason) -> None:
    edit(saved, change)
    message = rf"{CONFIG} is truncated or corrupted \(.*{reason}.*\); restore it or train again"
    with pytest.raises(ValueError, match=message):
        Model.load(saved)


def test_an_encoder_of_other_fields_is_refused(model) -> None:
    encoder = Encoder.fit(archive(channels=1), lmax=3)
    with pytest.raises(ValueError, match=r"1 channel.* lmax 3, the denoiser expects 2 at lmax 4"):
        Model(encoder, model.denoiser)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:1], "at least two training fields, got 1"),
        (lambda x: x[:, :1], r"shape \(N, 2, 25\)"),
        (lambda x: x * torch.tensor([1.0, 0.0])[:, None], "channel 1 is constant"),
        (lambda x: x / (torch.arange(25) != 3), "12 of 600 coefficients|not finite"),
    ],
)
def test_unfit_archives_are_refused(spoil, message) -> None:
    ds = archive()
    encoder = Encoder.fit(ds, lmax=LMAX)
    with pytest.raises(ValueError, match=message):
        Model.build(encoder, spoil(encoder.encode(ds)))


def test_more_modes_than_there_is_memory_for_are_refused(monkeypatch) -> None:
    """Ten matrices of the 2·25 modes, of eight bytes a number: one byte less is not enough."""
    ds = archive()
    encoder = Encoder.fit(ds, lmax=LMAX)
    fields, needed = encoder.encode(ds), 10 * 50**2 * 8
    monkeypatch.setattr("spherediff.model.physical_memory", lambda: needed)
    Model.build(encoder, fields)
    monkeypatch.setattr("spherediff.model.physical_memory", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"to degree 4 have 50 modes.*--network-lmax"):
        Model.build(encoder, fields)
    Model.build(encoder, fields, network=OperatorConfig(3, 2))


def test_output_that_cannot_be_written_is_reported(model, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PermissionError, match="cannot write"):
        model.save(tmp_path / "file" / "model")


def test_whoever_may_read_a_file_may_read_a_model(saved: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("as the umask has it")
    assert {path.stat().st_mode for path in saved.iterdir()} == {plain.stat().st_mode}


def test_at_least_one_field_is_drawn(model) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        draw(model, 0)


def test_learners_have_not_seen_their_part() -> None:
    """Their references do not change with their own part, and do with any other."""
    ds = archive(30)
    encoder = Encoder.fit(ds, lmax=LMAX)
    x = encoder.encode(ds)
    model = Model.build(encoder, x, network=OperatorConfig(2, 2, **TINY))
    low = harmonics.resize(x, 2)
    changed = low.clone()
    changed[6:12] *= 3  # the second of five parts
    before, after = model.learners(low), model.learners(changed)
    for k, (one, other) in enumerate(zip(before, after, strict=True)):
        assert one.network is model.network
        same = torch.equal(one.covariance.variance, other.covariance.variance)
        assert same == (k == 1)
    with pytest.raises(ValueError, match="at least 10 fields up to the network's lmax 2"):
        model.learners(x)


def test_cross_fitting_shows_the_network_what_new_fields_are_like() -> None:
    """Standardised by a reference from other fields, fields are as large as new ones will be.

    By one from the same fields they are smaller, which a network would learn to reproduce.
    """
    count, lmax = 60, 9
    field = GaussianField(Tabulated([1.0] * (lmax + 1)), lmax, dtype=torch.float64)
    x = field.sample((count, 1), generator=torch.Generator().manual_seed(3))

    def energy(learner: NeuralDenoiser, fields: Tensor) -> float:
        """Mean square of standardised clean fields: 1 in units of the law they come from."""
        y = learner.reference.modes(fields - learner.mean) / learner.reference.std
        return float(y.square().mean())

    network = SphericalOperator(lmax, 1, **TINY)

    def learner(fields: Tensor) -> NeuralDenoiser:
        mean, variance, spectrum = archive_moments(fields)
        covariance = Covariance.principal(fields, variance)
        noise = GaussianField(Tabulated(spectrum), lmax, dtype=torch.float64)
        return NeuralDenoiser(OrnsteinUhlenbeck(noise), network, mean, covariance)

    own = energy(learner(x), x)
    others = [torch.cat([x[: 12 * k], x[12 * (k + 1) :]]) for k in range(5)]
    crossed = sum(energy(learner(o), x[12 * k : 12 * (k + 1)]) for k, o in enumerate(others)) / 5
    fresh = field.sample((4000, 1), generator=torch.Generator().manual_seed(4))
    truth = energy(learner(x), fresh)
    assert abs(crossed - truth) < 0.5 * abs(own - truth)
