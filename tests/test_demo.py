"""The demonstration from end to end, at its quick size."""

import healpy
import numpy as np
import pytest
import torch
import xarray as xr

import spherediff as sd
from spherediff import demo, report
from spherediff.cli import main
from spherediff.demo import pipeline
from spherediff.demo.figures import same_months
from spherediff.demo.ready import prepare, trained
from spherediff.train import METRICS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--quick", "--output", str(path)]) == 0
    return path


def test_it_writes_everything_it_names(folder):
    names = {"samples.nc", "samples.fits", "spectra.png", "marginals.png", "training.png"}
    names |= {"scorecard.txt", "scorecard.json", "model"}
    names |= {
        f"{kind}.png"
        for name in ("UWND", "VWND")
        for kind in (f"maps-{name}", f"maps-{name}-anomalies", f"moments-{name}")
    }
    assert {path.name for path in folder.iterdir()} == names


def test_info_says_how_the_model_was_made(folder, capsys):
    assert main(["info", str(folder / "model")]) == 0
    found = capsys.readouterr().out
    assert f"command     spherediff demo --quick --output {folder}\n" in found
    assert "seed        0\n" in found
    assert "archive     navy-winds\n" in found
    assert "spherediff  0.1.0\n" in found
    assert "training    96 samples, 1982-01-16 to 1989-12-17\n" in found
    assert "held out    12 samples, 1990-01-16 to 1990-12-17\n" in found


def test_samples_are_full_winds_of_named_months(folder):
    with xr.open_dataset(folder / "samples.nc") as ds:
        assert set(ds.data_vars) == {"UWND", "VWND"}
        assert ds["UWND"].attrs["units"] == "m s-1"
        assert ds.sizes["sample"] == 16
        assert ds["time"].dt.month.isin(range(1, 13)).all()
        assert ds.attrs["command"].startswith("spherediff demo --quick")
        # Westerlies of the southern ocean, trade winds of the tropical Pacific.
        mean = ds["UWND"].mean("sample")
        assert mean.sel(latitude=-50).mean() > 3
        assert mean.sel(latitude=15, longitude=slice(180, 230)).mean() < -3
    assert healpy.read_map(folder / "samples.fits", field=None).shape == (32, 12 * 8**2)


def test_the_model_can_be_used_again(folder):
    model = sd.model.Model.load(folder / "model")
    settings = demo.QUICK
    with xr.open_dataset(folder / "samples.nc") as ds:
        x = model.sample(
            settings.samples,
            generator=torch.Generator().manual_seed(0),
            time=ds["time"].values,
            steps=settings.steps,
        )
        grid = sd.LatLon(ds["latitude"].values, ds["longitude"].values)
        again = model.encoder.decode(x, grid, ds["time"].values)
        np.testing.assert_allclose(ds["UWND"], again["UWND"], atol=1e-4)


def test_the_scorecard_has_every_row_and_the_verdict(folder):
    card = report.from_json((folder / "scorecard.json").read_text())
    assert {row.variable for row in card.rows} == {"UWND", "VWND", "all"}
    assert {row.group for row in card.rows} == set(range(1, 11))
    assert all(np.isfinite([row.value, row.floor]).all() for row in card.rows)
    text = (folder / "scorecard.txt").read_text()
    assert "held-out denoising loss" in text
    assert report.table(card.rows) in text
    assert sum(pipeline._shown(row) for row in card.rows) == 10


def test_a_second_run_goes_on_from_the_checkpoint(folder, capsys):
    model = sd.model.Model.load(folder / "model")
    metrics = (folder / "model" / METRICS).read_text()
    ready = prepare(sd.data.load("navy-winds"), demo.QUICK)
    again, _ = trained(ready, demo.QUICK, folder / "model", 0)
    assert "going on from the checkpoint" in capsys.readouterr().out
    assert (folder / "model" / METRICS).read_text() == metrics
    weights, before = again.denoiser.state_dict(), model.denoiser.state_dict()
    assert all(torch.equal(weights[name], before[name]) for name in before)


def test_other_settings_in_the_same_folder_are_refused(folder, capsys):
    assert main(["demo", "--quick", "--seed", "1", "--output", str(folder)]) == 2
    assert "belongs to another configuration" in capsys.readouterr().err


def test_an_unwritable_folder_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--quick", "--output", str(tmp_path / "file" / "demo")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_pairs_have_one_month_and_spread_over_the_year():
    observed, drawn = np.tile(np.arange(1, 13), 2), np.array([7, 2, 7, 11, 5])
    pairs = same_months(observed, drawn, 2)
    assert pairs == [(1, 1), (6, 0)]
    every = np.arange(1, 13)
    pairs = same_months(observed, every, 3)
    assert [int(every[k]) for _, k in pairs] == [1, 5, 9]
