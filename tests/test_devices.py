"""On a second device everything gives what it gives on the CPU, and nothing is mixed.

:mod:`second_device` shows this without a graphics card; with one, the same is asked of it.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from second_device import SECOND, second_device
from torch import Tensor

import spherediff as sd
from spherediff import data, sample
from spherediff.covariance import Covariance
from spherediff.likelihood import Exact, Hutchinson, Trace, log_density_ratio
from spherediff.malliavin import (
    SDE,
    LinearSDE,
    bismut_elworthy_li_weight,
    discrete_weight,
    euler_maruyama,
    variation_weight,
)
from spherediff.nn import OperatorConfig, SphericalOperator
from spherediff.observe import Filtered, Means, Observation, Operator, Stacked, Values
from spherediff.posterior import (
    MomentMatching,
    PseudoinverseGuidance,
    Referenced,
    posterior_reference,
)
from spherediff.process import DampedHeat
from spherediff.spectra import Tabulated
from spherediff.train import Fields, TrainConfig
from spherediff.twisted import TwistedSampler

LMAX = 4
N = (LMAX + 1) ** 2
LATITUDE, LONGITUDE = np.linspace(-80, 80, 9), np.linspace(0, 320, 9)
Work = Callable[[torch.device], Sequence[Tensor]]


@contextmanager
def cuda() -> Iterator[torch.device]:
    yield torch.device("cuda")


DEVICES = [
    pytest.param(second_device, id="second"),
    pytest.param(
        cuda,
        id="cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]
on_every_device = pytest.mark.parametrize("device", DEVICES)


def agree(work: Work, device: Callable, tolerance: float = 1e-10) -> None:
    """What is computed there is there, and the same as here."""
    expected = work(torch.device("cpu"))
    with device() as there:
        found = work(there)
        for x, y in zip(found, expected, strict=True):
            assert x.device.type == there.type
            assert y.abs().max() > 0
            torch.testing.assert_close(x.cpu(), y, rtol=tolerance, atol=tolerance)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(device)


def spectrum(channels: int) -> Tabulated:
    C = 1 / (1.0 + torch.arange(LMAX + 1)) ** 2
    return Tabulated(torch.stack([(c + 1) * C for c in range(channels)]) if channels else C)


def ornstein_uhlenbeck(device: torch.device, channels: int = 0) -> sd.OrnsteinUhlenbeck:
    field = sd.GaussianField(spectrum(channels), LMAX, dtype=torch.float64, device=device)
    return sd.OrnsteinUhlenbeck(field)


def correlated(device: torch.device) -> sd.MultivariateGaussianField:
    C = torch.stack([torch.tensor([[1.0, 0.5], [0.5, 2.0]]) / (1 + k) for k in range(LMAX + 1)])
    return sd.MultivariateGaussianField(C, dtype=torch.float64, device=device)


def test_the_second_device_refuses_to_mix() -> None:
    with second_device() as there:
        x = torch.arange(4.0, device=there)
        assert x.device == SECOND
        assert (x[torch.tensor([1, 2])] * torch.tensor(2.0)).tolist() == [2.0, 4.0]
        for mix in (x.add, x.mul_, x.copy_(torch.ones(4)).dot, torch.zeros(4).add_):
            with pytest.raises(RuntimeError, match="on the same device"):
                mix(torch.ones(4) if mix.__self__ is x else x)
        with pytest.raises(RuntimeError):
            x.numpy()
        assert x.cpu().numpy().tolist() == [1.0] * 4


# ---- grids ----

GRIDS = {
    "HEALPix": sd.HEALPix(4),
    "nested": sd.HEALPix(4, "nested"),
    "Gauss-Legendre by matrices": sd.GaussLegendre(LMAX),
    "Gauss-Legendre by Fourier transforms": sd.GaussLegendre(LMAX, 9),
    "Gauss-Legendre, aliased": sd.GaussLegendre(2, 5),
    "LatLon": sd.LatLon(np.linspace(90, -90, 10), np.arange(20) * 18.0),
    "Points": sd.Points(LATITUDE, LONGITUDE),
}


@on_every_device
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_transforms(grid: sd.Grid, kind: str, device: Callable) -> None:
    transform = grid if kind == "scalar" else sd.VectorTransform(grid)
    shape = (3, N) if kind == "scalar" else (3, 2, N)

    def work(there: torch.device) -> Sequence[Tensor]:
        a = normal(*shape, device=there).requires_grad_()
        values = transform.synthesis(a)
        values.square().sum().backward()
        assert a.grad is not None
        found = [values.detach(), a.grad, transform.adjoint(values.detach(), LMAX)]
        if grid.max_lmax >= LMAX:
            found.append(transform.analysis(values.detach(), LMAX))
        return found

    agree(work, device)


# ---- fields, processes, denoisers, samplers ----


@on_every_device
def test_gaussian_fields(device: Callable) -> None:
    def work(there: torch.device) -> Sequence[Tensor]:
        several = correlated(there)
        one = sd.GaussianField(spectrum(2), LMAX, dtype=torch.float64, device=there)
        found = []
        for field in (several, one):
            x, h = field.sample((2, 3), generator=seeded()), field.sample((), generator=seeded(1))
            found += [x, field.whiten(x), field.norm(x), field.log_density_shift(h, x)]
        return found

    agree(work, device)


def plain(there: torch.device) -> sd.GaussianDenoiser:
    process = ornstein_uhlenbeck(there)
    v = process.field.variance_per_coefficient * (1 + 0.3 * torch.arange(N).to(there).cos())
    return sd.GaussianDenoiser(process, variance=v)


def low_rank(there: torch.device, process: sd.OrnsteinUhlenbeck) -> sd.GaussianDenoiser:
    v, factor = process.field.variance_per_coefficient, 0.2 * normal(3, N, device=there)
    return sd.GaussianDenoiser(process, mean=0.1 * factor[0], covariance=Covariance(v, factor))


def mixture(there: torch.device) -> sd.MixtureDenoiser:
    first = plain(there)
    return sd.MixtureDenoiser([first, low_rank(there, first.process)], [1.0, 2.0])


def empirical(there: torch.device) -> sd.EmpiricalDenoiser:
    return sd.EmpiricalDenoiser(ornstein_uhlenbeck(there), normal(5, N, device=there))


def of_chaos(there: torch.device) -> sd.ChaosDenoiser:
    process = ornstein_uhlenbeck(there)
    root = sd.Chaos(process.field, {(): 1.0, ((4, 1),): 0.3, ((1, 1), (2, 1)): 0.1})
    return sd.ChaosDenoiser(process, sd.ChaosDensity.squared(root))


def neural(there: torch.device) -> sd.NeuralDenoiser:
    process = ornstein_uhlenbeck(there, 2)
    v, factor = process.field.variance_per_coefficient, 0.2 * normal(3, 2, N, device=there)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SphericalOperator(LMAX, 2, width=4, hidden=4, blocks=2, embedding=4).double()
        torch.nn.init.normal_(network.project.weight)
    return sd.NeuralDenoiser(process, network.to(there), 0 * v, Covariance(v, factor))


DENOISERS = {
    "Gaussian": plain,
    "low rank": lambda there: low_rank(there, ornstein_uhlenbeck(there)),
    "mixture": mixture,
    "empirical": empirical,
    "chaos": of_chaos,
    "neural": neural,
}


@on_every_device
@pytest.mark.parametrize("make", DENOISERS.values(), ids=DENOISERS)
def test_denoisers_and_their_scores(make: Callable, device: Callable) -> None:
    def work(there: torch.device) -> Sequence[Tensor]:
        denoiser = make(there)
        x = normal(3, *denoiser.process.event_shape, device=there)
        found = [denoiser(x, 0.4), denoiser.malliavin_gamma_score(x, 0.4)]
        return [x.detach() for x in found]

    agree(work, device)


SAMPLERS = ["Bridge", "EulerMaruyama", "Heun", "ProbabilityFlow", "ReverseSDE"]


@on_every_device
@pytest.mark.parametrize("make", [plain, mixture, neural])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name: str, make: Callable, device: Callable) -> None:
    def work(there: torch.device) -> Sequence[Tensor]:
        sampler = getattr(sample, name)(make(there), steps=16)
        return [sampler.sample((3,), generator=seeded())]

    agree(work, device)


PROCESSES = {
    "SPDE": lambda there: sd.LinearSPDE(
        DampedHeat(0.3, 1.0), spectrum(0), LMAX, 5.0, dtype=torch.float64, device=there
    ),
    "fractional": lambda there: sd.FractionalOrnsteinUhlenbeck(
        DampedHeat(0.3, 1.0), spectrum(0), LMAX, 5.0, 0.7, dtype=torch.float64, device=there
    ),
}


@on_every_device
@pytest.mark.parametrize("make", PROCESSES.values(), ids=PROCESSES)
def test_other_processes(make: Callable, device: Callable) -> None:
    def work(there: torch.device) -> Sequence[Tensor]:
        process = make(there)
        x0, t = normal(3, N, device=there), torch.tensor([0.2, 0.5, 0.9]).to(there)
        denoiser = sd.GaussianDenoiser(process, variance=process.field.variance_per_coefficient)
        draws = sd.ProbabilityFlow(denoiser, steps=8).sample((2,), generator=seeded())
        return [process.noised(x0, t, generator=seeded()), draws, denoiser(x0, t)]

    agree(work, device)


# ---- given observations ----


def observed(there: torch.device, event_shape: tuple[int, ...]) -> Observation:
    several = len(event_shape) > 1
    channel = 1 if several else 0
    grid = sd.GaussLegendre(LMAX)
    means = Means(grid, torch.ones(2, *grid.shape).cumsum(-1), event_shape, channel)
    parts: list[Operator] = [Values(sd.Points(LATITUDE, LONGITUDE), event_shape, channel), means]
    if not several:
        parts[0] = Filtered(parts[0], 1 / (1.0 + torch.arange(LMAX + 1.0)))
    y = normal(11, device=there)
    return Observation(Stacked(parts), y, torch.full_like(y, 0.3))


@on_every_device
def test_kriging(device: Callable) -> None:
    def work(there: torch.device) -> Sequence[Tensor]:
        field = ornstein_uhlenbeck(there).field
        several = correlated(there)
        v = field.variance_per_coefficient
        covariance = Covariance(v, 0.2 * normal(3, N, device=there))
        found = []
        for prior in (field, several, covariance):
            kriging = sd.Kriging(observed(there, prior.event_shape), prior, tolerance=1e-9)
            found += [kriging.mean, kriging.sample((2,), generator=seeded())]
            stations = Values(sd.Points(LATITUDE, LONGITUDE), prior.event_shape)
            if len(prior.event_shape) == 1:
                found.append(kriging.variance(stations))
        return found

    agree(work, device, 1e-7)


@on_every_device
@pytest.mark.parametrize("make", [mixture, neural])
def test_posteriors(make: Callable, device: Callable) -> None:
    def work(there: torch.device) -> Sequence[Tensor]:
        denoiser = make(there)
        seen = observed(there, denoiser.process.event_shape)
        draws = [
            sd.ProbabilityFlow(guided, steps=2).sample((2,), generator=seeded())
            for guided in (
                PseudoinverseGuidance(denoiser, seen),
                MomentMatching(denoiser, seen),
                Referenced(denoiser, posterior_reference(denoiser.reference, seen)),
            )
        ]
        twisted = TwistedSampler(denoiser, seen, particles=4, steps=2).sample(generator=seeded())
        return [*draws, twisted.samples]

    agree(work, device, 1e-6)


@on_every_device
@pytest.mark.parametrize(
    "trace", [Exact, lambda: Hutchinson(3, seeded())], ids=["exact", "estimate"]
)
def test_likelihood(trace: Callable[[], Trace], device: Callable) -> None:
    def work(there: torch.device) -> Sequence[Tensor]:
        denoiser = neural(there)
        x = denoiser.process.field.sample((2,), generator=seeded())
        return [log_density_ratio(denoiser, x, 2, trace=trace())]

    agree(work, device)


# ---- nonlinear equations ----


@on_every_device
def test_malliavin_weights(device: Callable) -> None:
    def work(there: torch.device) -> Sequence[Tensor]:
        A = torch.tensor([[-1.0, 0.5], [0.0, -0.5]], dtype=torch.float64, device=there)
        linear = LinearSDE(lambda _: A, lambda t: torch.eye(2).to(A) * (1 + t))
        bent = SDE(lambda _, x: x.tanh(), lambda _, x: torch.diag((1 + x.square()).sqrt()))
        times = torch.linspace(0, 1, 9, dtype=torch.float64, device=there)
        found = []
        for sde in (linear, bent):
            path = euler_maruyama(sde, normal(3, 2, device=there), times, generator=seeded())
            weights = (variation_weight, discrete_weight, bismut_elworthy_li_weight)
            found += [path.end, *(weight(sde, path) for weight in weights)]
        return found

    agree(work, device)


# ---- models ----


def archive(count: int = 24) -> xr.Dataset:
    grid = sd.GaussLegendre(LMAX)
    field = sd.GaussianField(spectrum(2), LMAX, dtype=torch.float64)
    maps = 10 + 3 * grid.synthesis(field.sample((count,), generator=seeded())).numpy()
    days = np.arange(count) * np.timedelta64(15, "D")
    return xr.Dataset(
        {name: (("time", "lat", "lon"), maps[:, c]) for c, name in enumerate("uv")},
        coords={
            "time": np.datetime64("2001-01-01", "ns") + days,
            "lat": ("lat", grid.latitude, {"units": "degrees_north"}),
            "lon": ("lon", grid.longitude, {"units": "degrees_east"}),
        },
    )


def interrupt(*_: object) -> None:
    """Ctrl-C while the network learns."""
    if torch.is_grad_enabled():
        signal.raise_signal(signal.SIGINT)


@on_every_device
def test_models_are_trained_resumed_saved_and_drawn_from(device: Callable, tmp_path: Path) -> None:
    ds = archive()
    encoder = data.Encoder.fit(ds, lmax=LMAX, climatology=data.Harmonics(1), amplitude_degree=2)
    labels = data.Labels.seasonal(encoder.climatology)
    told = Fields(encoder.encode(ds), labels.encode(ds, ds.sizes["time"]))
    tiny = OperatorConfig(3, 2, width=4, blocks=1, hidden=4, lifts=1, positional=1, embedding=4)

    def work(there: torch.device) -> Sequence[Tensor]:
        folder = tmp_path / there.type
        model = sd.Model.build(encoder, told.x, network=tiny, device=there)
        config = TrainConfig(steps=3, batch=4, evaluate_every=2, mixed_precision=False)
        train = partial(model.train, told, told.at(slice(8)), config, folder, progress=False)
        hook = model.network.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt, match="after step 1"):
            train()
        hook.remove()
        assert train(resume=True).step == 3
        model.save(folder / "model")
        again = sd.Model.load(folder / "model", device=there)
        time = ds.time.values[:3]
        found = [
            each.sample(3, generator=seeded(), steps=4, time=time, guidance=guidance)
            for each, guidance in ((model, 1.0), (again, 2.0))
        ]
        encoder.decode(found[0], sd.GaussLegendre(LMAX), time)
        return found

    with warnings.catch_warnings():  # torch takes the second device for one without memory
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        agree(work, device, 1e-4)
