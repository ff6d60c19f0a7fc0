"""What ``spherediff info`` says about an archive and a noise."""

import re

import numpy as np
import pytest
import torch
import xarray as xr

import spherediff as sd
from spherediff.bounds import GaussianTarget, plan
from spherediff.cli import main
from spherediff.harmonics import degree_spectrum

LMAX = 8
MATERN = sd.WhittleMatern(2.0, 1.0, 0.8)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """200 maps of a Whittle–Matérn field."""
    field = sd.GaussianField(MATERN, LMAX, dtype=torch.float64)
    x = field.sample((200,), generator=torch.Generator().manual_seed(0))
    latitude, longitude = np.linspace(-90, 90, 19), np.arange(0.0, 360.0, 15.0)
    values = sd.LatLon(latitude, longitude).synthesis(x).numpy().astype(np.float32)
    coordinates = {"sample": np.arange(200), "lat": latitude, "lon": longitude}
    ds = xr.Dataset({"u": (("sample", "lat", "lon"), values, {"units": "K"})}, coordinates)
    path = tmp_path_factory.mktemp("info") / "archive.nc"
    ds.to_netcdf(path, engine="h5netcdf")
    return path, x


def info(archive, capsys, *options) -> str:
    path = archive[0]
    assert main(["info", str(path), "--climatology", "none", "--lmax", str(LMAX), *options]) == 0
    return capsys.readouterr().out


def row(text: str, name: str) -> list[float]:
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return [float(word) for word in line.split(name)[1].split()]


def asked(text: str) -> tuple[float, int]:
    found = re.search(r"asks for T = ([\d.]+) and ([\d,]+) steps", text)
    assert found is not None, text
    return float(found[1]), int(found[2].replace(",", ""))


def target(archive, noise: sd.GaussianField) -> GaussianTarget:
    spectrum = degree_spectrum(archive[1]).mean(0)
    spectrum[0] = noise.degree_variance[0]
    return GaussianTarget(noise, sd.GaussianField(sd.Tabulated(spectrum), LMAX))


def test_the_sums_and_the_plan_are_those_of_the_library(archive, capsys) -> None:
    text = info(archive, capsys, "--noise", "1.5:0.6:0.5", "--kl", "0.2")
    noise = sd.GaussianField(sd.WhittleMatern(1.5, 0.6, 0.5), LMAX, dtype=torch.float64)
    expected = target(archive, noise)
    entropy, fisher = expected.relative_entropy(), expected.fisher_information()
    hajek = noise.equivalence(expected.data)
    assert row(text, "up to degree L") == [2, 4, 8]
    for name, sums in (
        ("Feldman–Hájek sum", hajek),
        ("KL in nats", entropy.cumsum(0)),
        ("Fisher information", fisher.cumsum(0)),
    ):
        np.testing.assert_allclose(row(text, name), sums[[2, 4, 8]], rtol=0.01)
    octaves = row(text, "of this octave")
    assert octaves[1] == pytest.approx(float(fisher[3:5].sum()), rel=0.01)
    horizon, steps = asked(text)
    wanted = plan(0.2, float(entropy.sum()), float(fisher.sum()))
    assert horizon == pytest.approx(wanted.horizon, abs=0.02)
    assert steps == pytest.approx(wanted.steps, rel=0.01)
    assert expected.bound(horizon, steps).total.value == pytest.approx(0.2, rel=0.02)


def test_the_fitted_noise_suits_as_well_as_chance_allows(archive, capsys) -> None:
    """N/2 times the sum is χ² with L = 8 degrees of freedom, less three fitted.

    Above three times its mean: one false alarm in 400 or more, and the seed is fixed.
    """
    text = info(archive, capsys)
    total, chance = row(text, "Feldman–Hájek sum")[-1], row(text, "by chance alone")[-1]
    assert chance == pytest.approx(2 * 8 / 200, rel=0.01)
    assert total < 3 * chance
    assert "the noise itself is within 0.1 nats" in text


def test_white_noise_asks_for_more_steps_the_closer_one_aims(archive, capsys) -> None:
    steps = [asked(info(archive, capsys, "--noise", "white", "--kl", kl))[1] for kl in ("1", "0.1")]
    assert steps[1] > 10 * steps[0]
    text = info(archive, capsys, "--noise", "white")
    level = float(archive[1][:, 1:].square().mean())
    noise = sd.GaussianField(sd.Tabulated([level] * (LMAX + 1)), LMAX, dtype=torch.float64)
    expected = float(target(archive, noise).relative_entropy().sum())
    assert row(text, "KL in nats")[-1] == pytest.approx(expected, rel=0.01)


def test_a_spectrum_with_a_cut_off_is_judged_up_to_there(archive, capsys) -> None:
    assert main(["info", str(archive[0]), "--climatology", "none"]) == 0
    text = capsys.readouterr().out  # the grid supports three degrees more
    assert "from degree 9 to 11, left out below" in text
    for name in ("up to degree L", "Feldman–Hájek sum", "KL in nats"):
        assert row(text, name) == row(info(archive, capsys), name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--noise", "pink"], "unknown noise 'pink': expected fit, white"),
        (["--noise", "1:2"], "STD:SMOOTHNESS:LENGTH"),
        (["--noise", "1:-1:0.2"], "smoothness must be positive"),
        (["--kl", "0"], "--kl must be a number of nats above zero"),
        (["--kl", "nan"], "--kl must be a number of nats above zero"),
    ],
)
def test_refuses(archive, capsys, options, message) -> None:
    assert main(["info", str(archive[0]), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
