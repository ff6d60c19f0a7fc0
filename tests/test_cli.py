"""Every command: what it writes, what it says, how it fails, and that a seed decides all draws."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import healpy
import numpy as np
import pytest
import torch
import xarray as xr
from astropy.io import fits
from scipy.stats import wasserstein_distance

import spherediff as sd
from spherediff import data, report
from spherediff.cli import main
from spherediff.data.transforms import transform_from_config

LMAX = 6
TINY = shlex.split(
    "--lmax 6 --steps 12 --evaluate-every 6 --checkpoint-every 6 --batch 4 --width 4 --blocks 1"
    " --hidden 8 --lifts 1 --positional 1 --device cpu"
)


def archive(path, months=36, seed=0):
    """Two correlated fields with a yearly cycle, 3 years of months, on a 15° grid."""
    field = sd.GaussianField(sd.WhittleMatern(1.0, 1.0, 0.8), LMAX, dtype=torch.float64)
    x = field.sample((months, 2), generator=torch.Generator().manual_seed(seed))
    x[:, 1] += x[:, 0]
    time = np.datetime64("2001-01") + np.arange(months)
    x[:, :, 2] += 3 * torch.cos(2 * torch.pi * torch.arange(months) / 12)[:, None]
    latitude, longitude = np.linspace(-90, 90, 13), np.arange(0.0, 360.0, 15.0)
    values = sd.LatLon(latitude, longitude).synthesis(x).numpy().astype(np.float32)
    dims = ("time", "lat", "lon")
    ds = xr.Dataset(
        {
            "u": (dims, values[:, 0], {"units": "m s-1", "long_name": "wind"}),
            "v": (dims, values[:, 1], {"units": "K"}),
        },
        {"time": time.astype("datetime64[ns]"), "lat": latitude, "lon": longitude},
    )
    ds.to_netcdf(path, engine="h5netcdf")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An archive and a model of it, trained for a few steps."""
    path = tmp_path_factory.mktemp("cli")
    archive(path / "archive.nc")
    options = ["--climatology", "harmonics:1", "--held-out", "6", *TINY]
    assert run("train", path / "archive.nc", "--output", path / "model", *options) == 0
    return path


def run(*arguments):
    return main([str(a) for a in arguments])


def failure(capsys, *arguments):
    """The single line that a failing command prints."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("spherediff: error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


# ---- help ----


def test_train_has_the_defaults_of_the_library():
    """They are written down twice, so that --help need not import it."""
    from spherediff.cli.train import Train
    from spherediff.nn import OperatorConfig
    from spherediff.train import TrainConfig

    command = Train(("navy-winds",), Path("model"))
    assert command._config() == TrainConfig()
    network = OperatorConfig(command.lmax, 1)
    assert OperatorConfig(command.lmax, 1, **vars(command.network)) == network


def test_the_entry_point_teaches():
    entry = Path(sys.executable).with_name("spherediff")
    done = subprocess.run([entry, "--help"], capture_output=True, text=True, check=True)
    for name in ("demo", "train", "sample", "evaluate", "plot", "info", "generate"):
        assert name in done.stdout
    assert "spherediff train navy-winds" in done.stdout


@pytest.mark.parametrize(
    "name", ["demo", "train", "sample", "evaluate", "plot", "info", "generate"]
)
def test_each_command_has_examples_and_explains_its_options(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"  spherediff {name}" in text
    assert "For example" in text
    for line in text.splitlines():
        if line.startswith("│ --"):
            option = line.strip("│ ").split()
            explained = text.split(line)[1].splitlines()[1].strip("│ ")
            assert len(option) > 2 or explained, f"{line} has no explanation"


def test_help_imports_nothing_heavy_beyond_the_package():
    code = (
        "import sys, spherediff; before = set(sys.modules)\n"
        "import spherediff.cli\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "assert not new & {'xarray', 'matplotlib', 'healpy', 'dask', 'pandas', 'astropy'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_option_is_an_error(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--lmxa", "3", "--output", "a.nc"])
    assert stop.value.code == 2
    assert "--lmax" in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error():
    entry = Path(sys.executable).with_name("spherediff")
    done = subprocess.run(
        f"set -o pipefail; {shlex.quote(str(entry))} train --help | head -n 1",
        shell=True, executable="bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.startswith("usage: spherediff train")


# ---- generate ----


def test_generate_healpix_fits(tmp_path):
    path = tmp_path / "noise.fits"
    command = ["generate", "--lmax", 8, "--count", 2, "--nside", 8, "--seed", 5, "--output", path]
    assert run(*command) == 0
    maps = healpy.read_map(path, field=None)
    field = sd.GaussianField(sd.WhittleMatern(1.0, 1.5, 0.3), 8)
    x = field.sample((2, 1), generator=torch.Generator().manual_seed(5))[:, 0]
    np.testing.assert_allclose(maps, sd.HEALPix(8).synthesis(x.double()), atol=1e-5)
    history = " ".join(map(str, fits.getheader(path, 1)["HISTORY"]))
    for part in ("command: spherediff generate", "seed: 5", "spherediff_version: "):
        assert part in history


def test_generate_netcdf(tmp_path):
    path = tmp_path / "noise.nc"
    assert run("generate", "--lmax", 8, "--units", "K", "--name", "t", "--output", path) == 0
    with xr.open_dataset(path) as ds:
        assert ds["t"].dims == ("sample", "latitude", "longitude")
        assert ds["t"].attrs["units"] == "K"
        assert ds.attrs["command"].startswith("spherediff generate --lmax 8")
        assert ds.attrs["seed"] == 0
        assert ds.attrs["spherediff_version"] == sd.__version__
        x = data.grid_of(data.open(path)).analysis(torch.from_numpy(ds["t"].values.copy()), 8)
    field = sd.GaussianField(sd.WhittleMatern(1.0, 1.5, 0.3), 8)
    expected = field.sample((8, 1), generator=torch.Generator().manual_seed(0))[:, 0]
    assert torch.allclose(x, expected, atol=1e-5)


@pytest.mark.parametrize(("grid", "shape"), [("gauss", (9, 18)), ("10", (19, 36))])
def test_generate_on_a_grid(tmp_path, grid, shape):
    path = tmp_path / "noise.zarr"
    assert run("generate", "--lmax", 8, "--grid", grid, "--count", 1, "--output", path) == 0
    with xr.open_zarr(path, consolidated=False) as ds:
        assert ds["field"].shape[0] == 1
        assert ds["field"].shape[1] == shape[0]
        assert ds["field"].shape[2] >= shape[1] - 1


def test_generate_coefficients_from_a_table(tmp_path):
    table = tmp_path / "cl.txt"
    table.write_text(
        "# l C_l\n" + "".join(f"{ell} {4.0 if ell == 2 else 0.0}\n" for ell in range(6))
    )
    path = tmp_path / "a.safetensors"
    assert run("generate", "--lmax", 5, "--table", table, "--count", 300, "--output", path) == 0
    a, attrs = data.read_coefficients(path)
    assert a.shape == (300, 1, 36)
    assert (attrs["seed"], attrs["channels"], attrs["units"]) == ("0", "field", "1")
    power = a.square().mean((0, 1))
    assert (power[:4] == 0).all()
    assert (power[9:] == 0).all()
    # 1,500 draws: a standard error of 4·√(2/1500) ≈ 0.15 of their mean square.
    assert power[4:9].mean() == pytest.approx(4.0, abs=0.6)


def test_generate_a_power_law(tmp_path):
    path = tmp_path / "a.safetensors"
    assert run("generate", "--lmax", 5, "--power-law", 2, 3, "--output", path) == 0
    a, _ = data.read_coefficients(path)
    field = sd.GaussianField(sd.PowerLaw(2.0, 3.0), 5)
    assert torch.equal(a, field.sample((8, 1), generator=torch.Generator().manual_seed(0)))


def test_the_seed_decides(tmp_path):
    paths = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        assert run("generate", "--lmax", 5, "--seed", seed, "--output", path) == 0
    first, again, other = (data.read_coefficients(path)[0] for path in paths)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_train_low_degrees_and_draw_all(folder, tmp_path):
    command = ["train", folder / "archive.nc", "--variables", "u", "--network-lmax", "2"]
    command += ["--amplitude-degree", "1", "--held-out", "6", "--output", tmp_path / "m", *TINY]
    assert run(*command) == 0
    model = sd.model.Model.load(tmp_path / "m")
    assert model.network.config.lmax == 2
    assert model.encoder.lmax == LMAX
    assert model.encoder.amplitude.log_std.shape == (1, 4)
    path = tmp_path / "x.safetensors"
    assert (
        run("sample", "--model", tmp_path / "m", "--count", 3, "--steps", 4, "--output", path) == 0
    )
    x = data.read_coefficients(path)[0]
    assert x.shape == (3, 1, (LMAX + 1) ** 2)
    assert (x[..., 9:].std() > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--smoothness 0 --output a.nc", "smoothness must be positive"),
        ("--count 0 --output a.nc", "--count must be at least 1"),
        ("--seed -1 --output a.nc", "--seed must not be negative"),
        ("--lmax -1 --output a.safetensors", "lmax must be at least 0"),
        ("--output a.txt", "expected a name that ends in .nc, .zarr or .fits"),
        ("--nside 3 --grid 2 --output a.nc", "exclude each other"),
        ("--grid 7 --output a.nc", "divides 180"),
        ("--grid coarse --output a.nc", "--grid expects a number, got 'coarse'"),
        ("--grid 5 --output a.fits", "a FITS file holds HEALPix maps"),
        ("--nside 4 --output a.safetensors", "need no --nside"),
        ("--power-law 1 3 --table t --output a.nc", "exclude each other"),
        ("--table missing.txt --output a.nc", "there is no file missing.txt"),
        ("--power-law 1 2 --output a.nc", "exponent must exceed 2"),
    ],
)
def test_generate_refuses(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in failure(capsys, "generate", *options.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder.nc", "folder.nc: it is a folder"),
        ("folder.safetensors", "folder.safetensors: it is a folder"),
        ("folder.zarr", "folder.zarr is there but no Zarr store"),
        ("a.fits", "1000 samples of . variables do not fit into the 999 columns"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_drawing(
    folder, tmp_path, monkeypatch, capsys, name, message
):
    monkeypatch.setattr(sd.GaussianField, "sample", None)
    monkeypatch.setattr(sd.model.Model, "sample", None)
    if name.startswith("folder"):
        (tmp_path / name / "precious").mkdir(parents=True)
    for command in (["generate"], ["sample", "--model", folder / "model"]):
        found = failure(capsys, *command, "--count", 1000, "--output", tmp_path / name)
        assert re.search(message, found)


def test_a_negative_spectrum_or_a_short_table_is_refused(tmp_path, capsys):
    table = tmp_path / "cl.txt"
    table.write_text("1\n1\n-1\n1\n")
    command = ("generate", "--table", table, "--output", tmp_path / "a.nc", "--lmax")
    assert "degree 2" in failure(capsys, *command, 3)
    assert "lower it to that" in failure(capsys, *command, 9)
    table.write_text("1\none\n")
    assert "lines of numbers" in failure(capsys, *command, 1)


# ---- train ----


def test_train_leaves_a_model_and_its_record(folder):
    record = json.loads((folder / "model" / "run.json").read_text())
    assert record["command"].startswith("spherediff train ")
    assert record["seed"] == 0
    assert record["training"] == "30 samples, 2001-01-01 to 2003-06-01"
    assert record["held_out"] == "6 samples, 2003-07-01 to 2003-12-01"
    model = sd.model.Model.load(folder / "model")
    assert model.encoder.names == ("u", "v")
    lines = [json.loads(x) for x in (folder / "model" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 12
    assert "held_out" in lines[0]
    assert all("loss" in line for line in lines[1:])


def test_train_options_reach_the_encoder(folder, tmp_path):
    ds = np.exp(xr.open_dataset(folder / "archive.nc")[["u"]]).assign_attrs()
    ds["u"].attrs["units"] = "mm"
    ds.to_netcdf(tmp_path / "rain.nc", engine="h5netcdf")
    command = ["train", tmp_path / "rain.nc", "--transform", "u=log1p:0.5", "--climatology"]
    command += ["monthly", "--held-out", "0.2", "--output", tmp_path / "m", *TINY]
    assert run(*command) == 0
    encoder = sd.model.Model.load(tmp_path / "m").encoder
    assert encoder.transforms == (data.Log1p(0.5),)
    assert encoder.climatology == data.Monthly()
    path = tmp_path / "a.safetensors"
    command = ["sample", "--model", tmp_path / "m", "--count", 2, "--steps", 4, "--output", path]
    assert run(*command) == 0
    attrs = data.read_coefficients(path)[1]
    assert attrs["units"] == ""  # the logarithm has no units
    assert transform_from_config(json.loads(attrs["transforms"])[0]) == data.Log1p(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("archive.nc --variables w", "no variable w; there are u"),
        ("archive.nc --lmax 12", "the largest that LatLon"),
        ("archive.nc --lmax 4 --network-lmax 5", "between 0 and --lmax = 4, got 5"),
        ("archive.nc --lmax 6 --transform w=sqrt", "a transform is given for w"),
        ("archive.nc --transform u=cube", "unknown transform 'u=cube'"),
        ("archive.nc --lmax 6 --transform u=sqrt", "SquareRoot needs values that are not negative"),
        ("archive.nc --climatology weekly", "unknown climatology 'weekly'"),
        ("archive.nc --held-out 0", "--held-out must be"),
        ("archive.nc --held-out 35", "--held-out must be"),
        ("archive.nc --held-out 2.5", "--held-out must be"),
        ("archive.nc --select lev", "expected --select name=value"),
        ("archive.nc --select lev=850", "cannot select lev"),
        ("archive.nc --fill zero", "--fill expects a number"),
        ("archive.nc --device tpu9", "cannot compute on --device tpu9"),
        ("archive.nc --steps 0", "steps must be at least 1"),
        ("archive.nc --lmax 6 --width 0", "width must be at least 1"),
        ("archive.nc --resume", "nothing to resume"),
        ("archive.nc --label year", "expected --label NAME=scalar or NAME=category"),
        ("archive.nc --label year=number", "as in year=scalar, got 'year=number'"),
        ("archive.nc --label storm=scalar", "the label storm has no value; there is"),
        (
            "archive.nc --held-out 12 --label year=category",
            "year = 2003 is not known: the training",
        ),
        ("archive.nc --lmax 6 --vectors u", "--vectors expects pairs"),
        ("archive.nc --lmax 6 --vectors u v", "same units"),
        ("archive.nc --lmax 6 --variables u --vectors u v", "v"),
        ("missing.nc", "there is no file missing.nc"),
        ("", "expected an archive"),
        ("broken.nc", "broken.nc"),
        ("holes.nc --lmax 6", "u has 3 missing"),
    ],
)
def test_train_refuses_before_it_works(folder, monkeypatch, capsys, tmp_path, options, message):
    monkeypatch.chdir(folder)
    (folder / "broken.nc").write_bytes((folder / "archive.nc").read_bytes()[:3000])
    ds = xr.open_dataset(folder / "archive.nc").load()
    ds["u"][0, 0, :3] = np.nan
    ds.to_netcdf(folder / "holes.nc", engine="h5netcdf")
    output = tmp_path / "model"
    assert message in failure(capsys, "train", *options.split(), "--output", output)
    assert not (output / "checkpoint.safetensors").exists()


def test_holes_are_filled_when_asked(folder, tmp_path):
    ds = xr.open_dataset(folder / "archive.nc").load()
    ds["u"][0, 0, :3] = np.nan
    ds.to_netcdf(tmp_path / "holes.nc", engine="h5netcdf")
    command = ["train", tmp_path / "holes.nc", "--fill", "mean", "--output", tmp_path / "m", *TINY]
    assert run(*command) == 0


def test_train_refuses_an_unwritable_folder(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    command = ("train", folder / "archive.nc", "--output", tmp_path / "file" / "model")
    assert "cannot write" in failure(capsys, *command)


def test_train_does_not_overwrite_a_training(folder, capsys):
    text = failure(capsys, "train", folder / "archive.nc", "--output", folder / "model")
    assert "add --resume" in text


def test_resume_with_other_options_is_refused(folder, capsys):
    record = (folder / "model" / "run.json").read_text(encoding="utf-8")
    command = ["train", folder / "archive.nc", "--output", folder / "model", "--resume"]
    text = failure(capsys, *command, *TINY, "--held-out", "6", "--climatology", "harmonics:1",
                   "--seed", "3")  # fmt: skip
    assert "seed was 0 and is 3" in text
    assert (folder / "model" / "run.json").read_text(encoding="utf-8") == record


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_resume(folder, tmp_path):
    options = [str(folder / "archive.nc"), "--output", str(tmp_path / "m"), *TINY]
    options[options.index("--steps") + 1] = "100000"
    entry = Path(sys.executable).with_name("spherediff")
    with subprocess.Popen(
        [entry, "train", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        while "loss=" not in process.stderr.read(80):
            pass
        process.send_signal(signal.SIGINT)
        _, text = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in text
    assert f"--output {tmp_path / 'm'}" in text
    assert text.rstrip().endswith("--resume")
    assert (tmp_path / "m" / "checkpoint.safetensors").exists()


# ---- sample ----


def test_sample_maps_in_physical_units_with_their_months(folder, tmp_path):
    path = tmp_path / "samples.nc"
    command = ["sample", "--model", folder / "model", "--count", 5, "--steps", 8, "--seed", 3]
    assert run(*command, "--output", path) == 0
    model = sd.model.Model.load(folder / "model")
    with xr.open_dataset(path) as ds:
        dates = ds["time"].values
        x = model.sample(5, generator=torch.Generator().manual_seed(3), time=dates, steps=8)
        assert ds["u"].attrs["units"] == "m s-1"
        assert ds["u"].attrs["long_name"] == "wind"
        assert ds["time"].dims == ("sample",)
        assert ds.attrs["seed"] == 3
        assert ds.attrs["lmax"] == LMAX
        assert "spherediff sample" in ds.attrs["command"]
        assert ds.attrs["month"].split() == [str(m) for m in ds["time"].dt.month.values]
        grid = sd.LatLon(ds["latitude"].values, ds["longitude"].values)
        expected = model.encoder.decode(x, grid, ds["time"].values)
        np.testing.assert_allclose(ds["v"], expected["v"], atol=1e-5)


def test_sample_one_month_on_healpix(folder, tmp_path):
    path = tmp_path / "january.fits"
    command = [
        "sample",
        "--model",
        folder / "model",
        "--count",
        2,
        "--steps",
        8,
        "--where",
        "month=1",
    ]
    assert run(*command, "--output", path) == 0
    assert healpy.read_map(path, field=None).shape == (4, 12 * 4**2)
    assert "month: 1 1" in " ".join(map(str, fits.getheader(path, 1)["HISTORY"]))


def test_sample_is_the_same_for_every_count_and_batch(folder, tmp_path):
    common = ["sample", "--model", folder / "model", "--steps", 4, "--output"]
    assert run(*common, tmp_path / "a.safetensors", "--count", 5, "--batch", 2) == 0
    assert run(*common, tmp_path / "b.safetensors", "--count", 3) == 0
    a, attrs = data.read_coefficients(tmp_path / "a.safetensors")
    b, _ = data.read_coefficients(tmp_path / "b.safetensors")
    assert torch.allclose(a[:3], b, atol=1e-5)
    assert attrs["variables"] == "u v"
    assert attrs["units"] == "m s-1, K"


@pytest.mark.parametrize("sampler", ["sde", "heun"])
def test_samplers(folder, tmp_path, sampler):
    path = tmp_path / "a.safetensors"
    command = ["sample", "--model", folder / "model", "--sampler", sampler, "--steps", 4]
    assert run(*command, "--count", 2, "--output", path) == 0
    assert torch.isfinite(data.read_coefficients(path)[0]).all()


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """Two members of 24 months, and a model of them that is told season, year and member."""
    path = tmp_path_factory.mktemp("ensemble")
    members = [xr.open_dataset(archive(path / f"{k}.nc", 24, k)).load() for k in range(2)]
    ds = xr.concat(members, xr.Variable("member", ["a", "b"]))
    ds["v"].attrs["units"] = "m s-1"
    ds.to_netcdf(path / "archive.nc", engine="h5netcdf")
    options = ["--climatology", "harmonics:1", "--held-out", "6", *TINY, "--output", path / "model"]
    labels = ["--label", "year=scalar", "member=category"]
    assert run("train", path / "archive.nc", *options, *labels) == 0
    return path


def test_train_says_how_to_draw_maps_of_its_labels(ensemble, tmp_path, capsys):
    options = ["--label", "year=scalar", "member=category", "--held-out", "6", *TINY]
    assert run("train", ensemble / "archive.nc", *options, "--output", tmp_path / "my model") == 0
    _, *command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:3] == ["sample", "--model", str(tmp_path / "my model")]
    assert command[3:6] == ["--where", "year=2002", "member=a"]
    command[-1] = tmp_path / "samples.nc"
    assert run(*command, "--steps", 2) == 0


def test_labels_are_fitted_to_the_training_samples_of_all_members(ensemble):
    labels = sd.model.Model.load(ensemble / "model").labels
    season, year, member = labels.parts
    assert season == data.Season(2)
    assert member == data.Category("member", ("a", "b"))
    # the last 6 of 48 samples are the last 3 months of both members
    years = np.repeat([2001, 2002], [24, 18])
    assert isinstance(year, data.Scalar)
    assert (year.low, year.high) == (2001, 2002)
    assert year.mean == pytest.approx(years.mean())
    assert year.std == pytest.approx(years.std())


def test_sample_where(ensemble, tmp_path):
    path = tmp_path / "samples.nc"
    command = ["sample", "--model", ensemble / "model", "--count", 12, "--steps", 4, "--seed", 3]
    where = ["--where", "month=12,1,2", "year=2001,2002", "member=b", "--guidance", 2]
    assert run(*command, *where, "--output", path) == 0
    model = sd.model.Model.load(ensemble / "model")
    with xr.open_dataset(path) as ds:
        assert set(ds["time"].dt.month.values) == {1, 2, 12}
        assert set(ds["year"].values) == {2001, 2002}
        assert (ds["year"] == ds["time"].dt.year).all()
        assert (ds["member"] == "b").all()
        assert ds.attrs["member"] == " ".join("b" * 12)
        assert [int(y) for y in ds.attrs["year"].split()] == ds["year"].values.tolist()
        x = model.sample(
            12,
            generator=torch.Generator().manual_seed(3),
            time=ds["time"].values,
            labels={"member": "b", "year": ds["year"].values},
            guidance=2.0,
            steps=4,
        )
        grid = sd.LatLon(ds["latitude"].values, ds["longitude"].values)
        expected = model.encoder.decode(x, grid, ds["time"].values)
        np.testing.assert_allclose(ds["v"], expected["v"], atol=1e-5)
        # what was written can be read as an archive with the same labels
        told = model.labels.encode(data.open(path), 12)
        values = {name: ds[name].values for name in ("time", "year", "member")}
        assert torch.equal(told, model.labels.encode(values, 12))


def test_sample_without_labels_ignores_them(ensemble, tmp_path):
    common = ["sample", "--model", ensemble / "model", "--count", 3, "--steps", 4, "--guidance", 0]
    for name, where in (("a", []), ("b", ["--where", "member=a", "year=2001"])):
        assert run(*common, *where, "--output", tmp_path / f"{name}.safetensors") == 0
    first, second = (data.read_coefficients(tmp_path / f"{n}.safetensors")[0] for n in "ab")
    assert torch.equal(first, second)  # the months are drawn alike


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--where year=… is missing: the model is told year, a number that was between 2001"),
        ("--where year=2001", "member=… is missing: the model is told member, one of a, b"),
        ("--where year=2001 member=c", "member = c is not known: the training samples had a, b"),
        ("--where year=soon member=a", "--where year expects a number, got 'soon'"),
        ("--where year=2001 member=a level=3", "--where level: the model is told month, from 1"),
    ],
)
def test_sample_refuses_labels(ensemble, tmp_path, capsys, options, message):
    command = ["sample", "--model", ensemble / "model", "--output", tmp_path / "a.nc"]
    assert message in failure(capsys, *command, *options.split())
    assert not (tmp_path / "a.nc").exists()


@pytest.mark.filterwarnings("default:year = 1800")
def test_sample_warns_of_years_far_from_the_training(ensemble, tmp_path, capsys):
    command = ["sample", "--model", ensemble / "model", "--count", 1, "--steps", 2]
    where = ["--where", "year=1800", "member=a", "--output", tmp_path / "a.nc"]
    assert run(*command, *where) == 0
    assert "warning: year = 1800 is far from the training samples" in capsys.readouterr().err
    with xr.open_dataset(tmp_path / "a.nc") as ds:
        assert ds["time"].dt.year.item() == 1800


def test_train_winds_as_a_vector_field(ensemble, tmp_path):
    options = ["--vectors", "u", "v", "--held-out", "6", *TINY, "--output", tmp_path / "m"]
    assert run("train", ensemble / "archive.nc", *options) == 0
    model = sd.model.Model.load(tmp_path / "m")
    assert model.encoder.vectors == (("u", "v"),)
    assert model.labels == data.Labels()
    path = tmp_path / "samples.nc"
    command = ["sample", "--model", tmp_path / "m", "--count", 2, "--steps", 4, "--output", path]
    assert run(*command) == 0
    with xr.open_dataset(path) as ds:
        assert set(ds.data_vars) == {"u", "v"}
    path = tmp_path / "samples.safetensors"
    assert run(*command[:-1], path) == 0
    attrs = data.read_coefficients(path)[1]
    parts = "the divergent part of u, v; the rotational part of u, v"
    assert (attrs["variables"], attrs["channels"], attrs["units"]) == (
        "u v",
        parts,
        "m s-1, m s-1",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model nowhere --output a.nc", "expected a model directory"),
        ("--model model --output a.nc --where month=13", "month expects numbers from 1 to 12"),
        ("--model model --output a.nc --where month", "expected --where NAME=VALUE"),
        ("--model model --output a.nc --where month=1 month=2", "each name once"),
        ("--model model --output a.nc --where month=1,", "expected --where NAME=VALUE"),
        (
            "--model model --output a.nc --where year=1990",
            "--where year: the model is told month, from 1 to 12",
        ),
        ("--model model --output a.nc --guidance nan", "expected a finite weight of guidance"),
        ("--model model --output a.nc --count 0", "count and batch must be at least 1"),
        ("--model model --output a.nc --steps 1", "expected at least 2 steps"),
        ("--model model --output a.png", "expected a name that ends in"),
        ("--model damaged --output a.nc", "truncated or corrupted"),
    ],
)
def test_sample_refuses(folder, monkeypatch, capsys, options, message):
    monkeypatch.chdir(folder)
    (folder / "damaged").mkdir(exist_ok=True)
    (folder / "damaged" / "model.json").write_text("{")
    assert message in failure(capsys, "sample", *options.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("member=a --steps 1", "expected at least 2 steps"),
        ("member=a --guidance nan", "expected a finite weight of guidance"),
        ("member=c", "member = c is not known"),
    ],
)
def test_sample_refuses_before_the_gaussian_posterior(
    ensemble, tmp_path, capsys, monkeypatch, options, message
):
    def never(*_):
        raise AssertionError("long work before the options are checked")

    monkeypatch.setattr("spherediff.model.posterior_reference", never)
    (tmp_path / "a.csv").write_text("latitude,longitude,u\n5,0,1\n")
    command = ["sample", "--model", ensemble / "model", "--given", tmp_path / "a.csv"]
    command += ["--output", tmp_path / "a.nc", "--where", "month=7", "year=2001"]
    assert message in failure(capsys, *command, *options.split())


def test_sample_takes_the_year_of_the_observations(ensemble, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("latitude,longitude,u,time\n5,0,1,2002-03-04\n")
    command = ["sample", "--model", ensemble / "model", "--given", tmp_path / "a.csv", "--count", 2]
    command += ["--steps", 2, "--output", tmp_path / "a.nc", "--where", "member=a"]
    assert run(*command) == 0
    with xr.open_dataset(tmp_path / "a.nc") as ds:
        assert set(ds["year"].values) == {2002}
        assert {str(date)[:10] for date in ds["time"].values} == {"2002-03-04"}
    capsys.readouterr()
    message = "--where year=2001, but the observations are of 2002-03-04"
    assert message in failure(capsys, *command, "year=2001")


def test_given_expects_a_file(folder, tmp_path, capsys):
    command = ["sample", "--model", folder / "model", "--output", tmp_path / "a.nc", "--given"]
    assert "--given expects at least one file" in failure(capsys, *command)


def test_sample_given_stations_agrees_with_them(folder, tmp_path):
    table = tmp_path / "stations.csv"
    table.write_text(
        "name,latitude,longitude,u [m s-1],u_error,time\n"
        "A,45,30,4.0,0.01,2001-07-10\nB,-15,210,-3.0,0.01,2001-07-10\n"
    )
    path = tmp_path / "maps.nc"
    command = ["sample", "--model", folder / "model", "--given", table, "--count", 6]
    assert run(*command, "--steps", 8, "--grid", 15, "--output", path) == 0
    with xr.open_dataset(path) as ds:
        assert {str(date)[:10] for date in ds.time.values} == {"2001-07-10"}
        for latitude, longitude, value in ((45, 30, 4.0), (-15, 210, -3.0)):
            here = ds.u.sel(latitude=latitude, longitude=longitude, method="nearest")
            assert float(here.latitude) == latitude
            np.testing.assert_allclose(here, value, atol=0.1)
            assert float(ds.v.sel(latitude=latitude, longitude=longitude).std()) > 0.1


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("latitude,longitude,u\n95,0,1\n", "--where month=7", "latitude outside"),
        ("latitude,longitude,w\n5,0,1\n", "--where month=7", "none of the model's variables"),
        ("latitude,longitude,u [K]\n5,0,1\n", "--where month=7", "u is in 'K'"),
        ("latitude,longitude,u\n5,0,1\n", "", "say --where month=1, …, 12"),
        ("latitude,longitude,u,time\n5,0,1,2001-03-04\n", "--where month=7", "are of 2001-03-04"),
    ],
)
def test_observations_that_sample_refuses(folder, tmp_path, capsys, header, options, message):
    table = tmp_path / "stations.csv"
    table.write_text(header)
    command = ["sample", "--model", folder / "model", "--given", table, *options.split()]
    assert message in failure(capsys, *command, "--output", tmp_path / "a.nc")
    assert not (tmp_path / "a.nc").exists()


# ---- evaluate ----


def test_evaluate_prints_a_scorecard_and_writes_json(folder, tmp_path, capsys):
    archive(tmp_path / "samples.nc", seed=1)
    archive(tmp_path / "training.nc", months=96, seed=2)
    command = ["evaluate", tmp_path / "samples.nc", folder / "archive.nc", "--training"]
    command += [tmp_path / "training.nc", "--climatology", "harmonics:1", "--lmax", "6"]
    command += ["--resamples", 20]
    assert run(*command, "--output", tmp_path / "card.json") == 0
    text = capsys.readouterr().out
    assert "36 samples, 36 maps of the reference, 96 training maps; degrees up to 6" in text
    assert "note:" not in text
    assert "maximum of a map, W1 [m s-1]" in text
    assert "20 bootstrap resamples" in text
    record = json.loads((tmp_path / "card.json").read_text())
    assert record["command"].startswith("spherediff evaluate")
    assert record["seed"] == 0
    card = report.from_json((tmp_path / "card.json").read_text())
    assert {row.variable for row in card.rows} == {"u", "v", "all"}
    # All have one law: 2 of 66 rows differ on average, in clusters since they are correlated.
    assert sum(row.differs for row in card.rows) <= 12


def test_evaluate_finds_a_scaled_archive(folder, tmp_path, capsys):
    ds = 2 * xr.open_dataset(folder / "archive.nc")[["u"]]
    ds["u"].attrs["units"] = "m s-1"
    ds.to_netcdf(tmp_path / "twice.nc", engine="h5netcdf")
    command = ["evaluate", tmp_path / "twice.nc", folder / "archive.nc", "--variables", "u"]
    assert run(*command, "--lmax", 6, "--resamples", 20, "--output", tmp_path / "card.json") == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "spectrum by octave" in x)
    assert line.endswith("*")
    card = report.from_json((tmp_path / "card.json").read_text())
    assert card.row("spectrum by octave").value == pytest.approx(math.log(4), abs=1e-3)


def test_evaluate_compares_transformed_values(folder, tmp_path, capsys):
    for name, seed in (("rain", 1), ("more", 2)):
        archive(tmp_path / "archive.nc", seed=seed)
        ds = np.exp(xr.open_dataset(tmp_path / "archive.nc")[["u"]].load())
        ds["u"].attrs["units"] = "mm"
        ds.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
    command = ["evaluate", tmp_path / "rain.nc", tmp_path / "more.nc", "--lmax", 6]
    command += ["--transform", "u=log1p:0.5", "--resamples", 5]
    assert run(*command, "--output", tmp_path / "card.json") == 0
    assert "[mm]" not in capsys.readouterr().out  # the logarithm has no units
    values = {
        name: np.log1p(xr.open_dataset(tmp_path / f"{name}.nc")["u"] / 0.5)
        for name in ("rain", "more")
    }
    area = np.cos(np.radians(values["rain"]["lat"]))
    means = [values[name].weighted(area).mean(("lat", "lon")) for name in ("rain", "more")]
    expected = wasserstein_distance(*(mean.values for mean in means))
    found = report.from_json((tmp_path / "card.json").read_text()).row("area mean").value
    assert found == pytest.approx(expected, rel=0.1)  # cosines are no exact quadrature


def test_evaluate_reads_the_columns_of_fits_as_samples(folder, tmp_path, capsys):
    command = ["sample", "--model", folder / "model", "--count", 12, "--steps", 4]
    assert run(*command, "--output", tmp_path / "s.fits") == 0
    command = ["evaluate", tmp_path / "s.fits", folder / "archive.nc", "--lmax", 6]
    assert run(*command, "--resamples", 5) == 0
    text = capsys.readouterr().out
    assert "12 samples, 36 maps of the reference; degrees up to 6" in text
    assert "note: as many samples as maps of the reference, 36, would show most" in text
    assert "exchanged at random" in text


def test_evaluate_refuses(folder, tmp_path, capsys):
    reference = folder / "archive.nc"
    text = failure(capsys, "evaluate", reference, reference, "--climatology", "monthly")
    assert "give --training" in text
    ds = xr.open_dataset(reference)[["u"]]
    ds["u"].attrs["units"] = "km/h"
    ds.to_netcdf(tmp_path / "kmh.nc", engine="h5netcdf")
    assert "km/h" in failure(capsys, "evaluate", tmp_path / "kmh.nc", reference)
    ds.isel(time=slice(2)).to_netcdf(tmp_path / "two.nc", engine="h5netcdf")
    text = failure(capsys, "evaluate", tmp_path / "two.nc", tmp_path / "kmh.nc")
    assert "at least 10 generated" in text
    text = failure(capsys, "evaluate", reference, reference, "--transform", "w=sqrt")
    assert "a transform is given for w" in text


# ---- plot and info ----


@pytest.mark.parametrize(
    "options",
    [
        "--variables u --maps 0 35 --coastlines",
        "--variables u --projection orthographic --center 20 60 --maps 0 1 2",
        "--variables u --kind spectrum --lmax 6",
        "--variables u --kind moments",
    ],
)
def test_plot_an_archive(folder, tmp_path, options):
    path = tmp_path / "figure.png"
    command = ["plot", folder / "archive.nc", *options.split(), "--dpi", 40, "--output", path]
    assert run(*command) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert b"spherediff plot" in path.read_bytes()


@pytest.mark.parametrize("projection", ["mollweide", "orthographic"])
def test_plot_maps_with_missing_or_equal_values(folder, tmp_path, projection):
    ds = xr.open_dataset(folder / "archive.nc")[["u"]].load()
    ds["u"][0, 3:5] = np.nan
    ds["u"][1] = 2.0
    ds.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    command = ["plot", tmp_path / "a.nc", "--projection", projection, "--dpi", 40]
    for maps in ([0, 2], [1]):
        assert run(*command, "--maps", *maps, "--output", tmp_path / "a.png") == 0


def test_plot_one_figure_for_each_variable_and_a_training_curve(folder, tmp_path, capsys):
    command = ["--dpi", 40, "--output", tmp_path / "figure.png"]
    assert run("plot", folder / "archive.nc", "--maps", 0, *command) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"figure-u.png", "figure-v.png"}
    assert run("plot", folder / "model", *command) == 0
    assert (tmp_path / "figure.png").exists()
    assert "figure.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--output a.gif", "expected .png, .pdf or .svg"),
        ("--output a.png --maps 99", "there are 36 maps"),
        ("--output a.png --variables w", "no variable w"),
        (
            "--output a.png --projection orthographic --columns 0",
            "--columns at least 1, got 4 and 0",
        ),
        ("--output a.png --projection orthographic --maps", "at least one of --maps"),
        ("--output a.png --kind spectrum --lmax 500", "the largest lmax it supports is 11"),
        ("--output a.png --kind spectrum --lmax 0", "expected lmax ≥ 1"),
    ],
)
def test_plot_refuses(folder, monkeypatch, capsys, options, message):
    monkeypatch.chdir(folder)
    assert message in failure(capsys, "plot", "archive.nc", *options.split())


def test_span_of_samples_in_any_order(folder):
    ds = data.open(folder / "archive.nc")
    assert data.span(ds.isel(time=slice(None, None, -1))) == data.span(ds)
    assert data.span(ds.drop_vars("time")) == "36 samples"


def test_info_on_an_archive(folder, capsys):
    assert run("info", folder / "archive.nc", "--climatology", "harmonics:1", "--lmax", 6) == 0
    text = capsys.readouterr().out
    assert "LatLon(13×24" in text
    assert "exact up to lmax 11" in text
    assert "36 samples, 2001-01-01 to 2003-12-01" in text
    assert "u: wind [m s-1]" in text
    assert "Feldman–Hájek" in text
    fitted = next(line for line in text.splitlines() if "standard deviation σ" in line)
    value, error = (float(word) for word in fitted.split()[3:6:2])
    # 36 maps of the true field, less 3 of 36 degrees of freedom; four standard errors.
    assert abs(value - 1.0) < 4 * error + 0.06


def test_info_on_a_bundled_model(capsys):
    assert run("info", "speedy-daily") == 0
    out = capsys.readouterr().out
    assert "variable    pr [mm day-1]" in out
    assert "labels      " in out
    assert "Season" in out


def test_info_on_a_model(folder, capsys):
    assert run("info", folder / "model") == 0
    text = capsys.readouterr().out
    for part in (
        "spherediff train",
        "u [m s-1]",
        "Harmonics(k=1)",
        "lmax 6",
        "12 steps",
        "held-out",
    ):
        assert part in text


def test_info_refuses(capsys, tmp_path):
    assert "no bundled archive" in failure(capsys, "info", tmp_path / "x.nc")
    (tmp_path / "x.nc").write_bytes(b"nothing")
    assert "starts with" in failure(capsys, "info", tmp_path / "x.nc")
