"""Training: schedules, averages, judgement, checkpoints that survive a kill, and errors."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from spherediff import _tensors, harmonics
from spherediff.covariance import Covariance
from spherediff.denoise import GaussianDenoiser, NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.grids import GaussLegendre
from spherediff.nn import SphericalOperator
from spherediff.nn.operator import SpectralConvolution
from spherediff.process import OrnsteinUhlenbeck
from spherediff.spectra import Tabulated
from spherediff.train import (
    CHECKPOINT,
    METRICS,
    Fields,
    TrainConfig,
    batches,
    checkpoint,
    ema_decay,
    held_out_loss,
    learning_rate,
    loop,
    residual_error,
    train,
)

TINY = {"width": 6, "blocks": 1, "hidden": 6, "lifts": 1, "positional": 1, "embedding": 6}
SHORT = TrainConfig(
    steps=24,
    batch=4,
    warmup=4,
    learning_rate=5e-3,
    levels=(-1.0, 0.0),
    evaluate_every=6,
    checkpoint_every=8,
    log_every=3,
)


def lognormal_fields(count: int, lmax: int, seed: int) -> Tensor:
    """Coefficients (count, 1, n) of exp(g) − E exp(g), g a smooth isotropic Gaussian field."""
    C = 1 / (1 + torch.arange(lmax + 1).double() / 3) ** 4
    field = GaussianField(Tabulated(C), lmax, dtype=torch.float64)
    g = field.sample((count, 1), generator=torch.Generator().manual_seed(seed))
    grid = GaussLegendre(lmax)
    variance = float(field.variance)
    maps = torch.exp((1.3 / math.sqrt(variance)) * grid.synthesis(g) - 1.3**2 / 2) - 1
    return grid.analysis(maps, lmax).float()


def make_denoiser(
    data: Tensor, *, seed: int = 0, schedule=None, network: nn.Module | None = None, **options
) -> NeuralDenoiser:
    channels, lmax = data.shape[1], harmonics.band_limit(data.shape[-1])
    torch.manual_seed(seed)
    network = network or SphericalOperator(lmax, channels, **(TINY | options))
    spectrum = harmonics.degree_spectrum(data.double()).mean(0)
    field = GaussianField(Tabulated(spectrum), lmax, dtype=torch.float32)
    return NeuralDenoiser(
        OrnsteinUhlenbeck(field, schedule), network, data.mean(0), data.var(0) + 1e-6
    )


@pytest.fixture(scope="module")
def fields() -> tuple[Tensor, Tensor]:
    return lognormal_fields(40, 5, seed=1), lognormal_fields(8, 5, seed=2)


@pytest.fixture
def one_thread(set_threads):
    set_threads(1)


def same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]


# --- formulas ---------------------------------------------------------------------------------


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    config = TrainConfig(steps=100, warmup=10, learning_rate=2.0)
    assert learning_rate(5, config) == pytest.approx(0.5 * (1 + math.cos(0.05 * math.pi)))
    assert learning_rate(50, config) == pytest.approx(1.0)
    assert learning_rate(75, config) == pytest.approx(1 - math.sqrt(0.5))
    assert learning_rate(100, config) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(1, dataclasses.replace(config, warmup=0)) == pytest.approx(2, rel=1e-3)


def test_average_is_the_exponential_moving_average() -> None:
    network, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 5.0)
    weights, decays = [1.0, -2.0, 4.0, 0.5], [0.2, 0.5, 0.9, 0.99]
    for weight, decay in zip(weights, decays, strict=True):
        nn.init.constant_(network.weight, weight)
        loop.average(average, network, decay)
    # unrolled: Π d_k · 5 + Σ_k (1 − d_k) Π_{j>k} d_j · w_k
    expected = 5.0 * math.prod(decays)
    for k, weight in enumerate(weights):
        expected += (1 - decays[k]) * math.prod(decays[k + 1 :]) * weight
    assert average.weight.item() == pytest.approx(expected, rel=1e-6)


def test_ema_decay_warms_up() -> None:
    config = TrainConfig(ema=0.9)
    assert [ema_decay(k, config) for k in (1, 8, 1000)] == [2 / 11, 9 / 18, 0.9]


def test_weight_decay_acts_on_the_matrices_of_layers_alone() -> None:
    torch.manual_seed(0)
    network = SphericalOperator(3, 1, **TINY, conditions=2)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    state = checkpoint.TrainingState.start(network, weight_decay=0.3, seed=0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for group in state.optimiser.param_groups:
        group["lr"] = 0.1
    state.optimiser.step()  # without a gradient AdamW is θ ← (1 − rate · decay) θ
    shrunk = set()
    for name, parameter in network.named_parameters():
        if not torch.equal(parameter, before[name]):
            torch.testing.assert_close(parameter.detach(), 0.97 * before[name])
            shrunk.add(name)
    layers = (nn.Linear, SpectralConvolution)
    modules = network.named_modules()
    assert shrunk == {f"{name}.weight" for name, module in modules if isinstance(module, layers)}


def test_noise_levels_have_their_law_and_stay_in_range(fields) -> None:
    denoiser = make_denoiser(fields[0])
    config = TrainConfig(batch=20_000, log_noise_mean=-0.3, log_noise_std=1.2)
    draw = batches.draw_log_noise(denoiser, config, torch.Generator().manual_seed(0))
    # 4.5 standard errors of mean and standard deviation: false alarms below 2e-5
    assert draw.mean().item() == pytest.approx(-0.3, abs=4.5 * 1.2 / math.sqrt(20_000))
    assert draw.std().item() == pytest.approx(1.2, abs=4.5 * 1.2 / math.sqrt(40_000))
    wide = dataclasses.replace(config, log_noise_std=50.0)
    draw = batches.draw_log_noise(denoiser, wide, torch.Generator().manual_seed(0))
    low, high = denoiser.process.schedule.log_snr_range
    assert draw.min() == -high
    assert draw.max() == -low


def test_training_target_has_unit_variance_at_every_noise_level() -> None:
    data = lognormal_fields(4000, 3, seed=5)
    denoiser = make_denoiser(data)
    generator = torch.Generator().manual_seed(0)
    for level in (-3.0, 0.0, 3.0):
        levels = torch.full((len(data),), level)
        error, target = residual_error(denoiser, data, levels, generator)
        assert torch.equal(error, -target)
        # 64 000 numbers, heavy tails at low noise: well under 10 %
        assert target.square().mean().item() == pytest.approx(1, abs=0.1)


def test_untrained_network_scores_one(fields) -> None:
    assert held_out_loss(make_denoiser(fields[0]), fields[1], SHORT) == pytest.approx(
        [1, 1], abs=1e-6
    )


# --- learning ---------------------------------------------------------------------------------


def test_network_beats_the_full_covariance_gaussian_on_lognormal_fields(tmp_path) -> None:
    data, held_out = lognormal_fields(400, 7, seed=1), lognormal_fields(64, 7, seed=2)
    denoiser = make_denoiser(data, width=16, blocks=2, hidden=16, positional=0, embedding=16)
    config = TrainConfig(
        steps=160, batch=16, warmup=10, learning_rate=1e-2, levels=(-1.0, 0.0), evaluate_every=40
    )
    result = train(denoiser, data, held_out, config, tmp_path, progress=False)
    losses = [line["loss"] for line in metrics(tmp_path)[1:]]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    found = held_out_loss(denoiser, held_out, config)
    assert result.best == pytest.approx(sum(found) / 2)

    # the best linear denoiser, on the same noise and in the same units
    gaussian = GaussianDenoiser(
        denoiser.process, covariance=Covariance.shrunk(data), mean=data.mean(0)
    )
    generator = torch.Generator().manual_seed(7)
    for level in config.levels:
        t = denoiser.process.time_of(torch.full((len(held_out), 1), level))
        x = denoiser.process.noised(held_out, t, generator=generator)
        unit = denoiser.reference.std * denoiser.reference.angle(t).sin  # √p
        with torch.no_grad():
            learned, linear = (
                ((m(x, t) - held_out) / unit).square().mean() for m in (denoiser, gaussian)
            )
        assert learned < 0.9 * linear


def test_early_stopping_restores_the_best_average(tmp_path) -> None:
    data, held_out = lognormal_fields(4, 5, seed=1), lognormal_fields(16, 5, seed=2)
    denoiser = make_denoiser(data)
    config = dataclasses.replace(SHORT, steps=400, learning_rate=3e-2, ema=0.5, patience=2)
    result = train(denoiser, data, held_out, config, tmp_path, progress=False)
    judged = {line["step"]: line["held_out"] for line in metrics(tmp_path) if "held_out" in line}
    assert result.stopped_early
    assert result.step == result.best_step + 2 * config.evaluate_every
    assert result.best == judged[result.best_step] == min(judged.values())
    found = held_out_loss(denoiser, held_out, config)
    assert sum(found) / 2 == pytest.approx(result.best, rel=1e-6)


# --- checkpoints ------------------------------------------------------------------------------

KILLED = TrainConfig(
    steps=150,
    batch=4,
    levels=(0.0,),
    held_out_maps=4,
    evaluate_every=15,
    patience=1000,
    checkpoint_every=20,
    log_every=3,
)
SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_train import KILLED, lognormal_fields, make_denoiser
from spherediff.train import train
torch.set_num_threads(1)
data, held_out = lognormal_fields(40, 5, seed=1), lognormal_fields(8, 5, seed=2)
train(make_denoiser(data), data, held_out, KILLED, sys.argv[1], progress=False)
"""


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_resumes_with_the_same_bits(fields, tmp_path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(killed), str(Path(__file__).parent)]
    )
    deadline = time.monotonic() + 300
    while not _written_beyond_a_checkpoint(killed) and time.monotonic() < deadline:
        assert child.poll() is None, "training ended before it was killed"
        time.sleep(0.002)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    header, _ = _tensors.read(killed / CHECKPOINT, "checkpoint")
    assert 0 < header["step"] < KILLED.steps
    # as if the kill had struck in the middle of a line
    with (killed / METRICS).open("a") as file:
        file.write('{"step": 39')

    resumed = make_denoiser(fields[0], seed=99)  # its first weights must not matter
    result = train(resumed, *fields, KILLED, killed, resume=True, progress=False)
    straight = make_denoiser(fields[0])
    assert train(straight, *fields, KILLED, whole, progress=False) == result
    assert (killed / METRICS).read_bytes() == (whole / METRICS).read_bytes()
    found, expected = (_tensors.read(d / CHECKPOINT, "checkpoint") for d in (killed, whole))
    assert found[0] == expected[0]
    assert same_tensors(found[1], expected[1])  # raw, average and best weights, moments, RNG
    assert same_tensors(resumed.network.state_dict(), straight.network.state_dict())
    assert {name.split("/")[0] for name in found[1]} == {
        "raw", "average", "best", "adam", "generator",
    }  # fmt: skip


def _written_beyond_a_checkpoint(directory: Path) -> bool:
    if not (directory / CHECKPOINT).exists():
        return False
    lines = (directory / METRICS).read_text().splitlines()
    return len(lines) > KILLED.checkpoint_every // KILLED.log_every + 1


class Disturbed(nn.Module):
    """A network to which something happens at its k-th training pass."""

    def __init__(self, network: nn.Module, at: int, event) -> None:
        super().__init__()
        self.inner, self.at, self.event, self.passes = network, at, event, 0

    def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.passes += 1
            if self.passes == self.at:
                return self.event(self.inner(u, w, log_noise))
        return self.inner(u, w, log_noise)


def disturbed(fields, at: int, event) -> NeuralDenoiser:
    network = Disturbed(SphericalOperator(5, 1, **TINY), at, event)
    return make_denoiser(fields[0], network=network)


@pytest.mark.usefixtures("one_thread")
def test_interrupt_ends_the_step_and_saves(fields, tmp_path) -> None:
    def interrupt(result: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return result

    handler = signal.getsignal(signal.SIGINT)
    torch.manual_seed(3)
    denoiser = disturbed(fields, 5, interrupt)
    straight = disturbed(fields, 0, None)
    straight.network.load_state_dict(denoiser.network.state_dict())
    with pytest.raises(KeyboardInterrupt, match="after step 5.*resume"):
        train(denoiser, *fields, SHORT, tmp_path / "a", progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    train(denoiser, *fields, SHORT, tmp_path / "a", resume=True, progress=False)
    train(straight, *fields, SHORT, tmp_path / "b", progress=False)
    assert same_tensors(denoiser.network.state_dict(), straight.network.state_dict())
    assert (tmp_path / "a" / METRICS).read_text() == (tmp_path / "b" / METRICS).read_text()


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint(
    fields, tmp_path
) -> None:
    denoiser = disturbed(fields, 11, lambda result: result * math.nan)
    with pytest.raises(FloatingPointError, match="nan.* at step 11.*lower learning rate"):
        train(denoiser, *fields, SHORT, tmp_path, progress=False)
    header, tensors = _tensors.read(tmp_path / CHECKPOINT, "checkpoint")
    assert header["step"] == 8
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())


@pytest.fixture(scope="module")
def finished(fields, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    train(make_denoiser(fields[0]), *fields, SHORT, directory, progress=False)
    return directory


def copied(finished: Path, directory: Path, change=lambda b: b) -> Path:
    (directory / CHECKPOINT).write_bytes(change((finished / CHECKPOINT).read_bytes()))
    return directory


def test_metrics_are_json_lines_with_every_due_step(finished) -> None:
    start, *lines = metrics(finished)
    # an untrained network is the Gaussian emulator
    assert start["step"] == 0
    assert start["held_out"] == pytest.approx(1, rel=1e-6)
    assert [line["step"] for line in lines] == list(range(3, 25, 3))
    assert [line["step"] for line in lines if "held_out" in line] == [6, 12, 18, 24]
    for line in lines:
        assert math.isfinite(line["loss"])
        assert line["gradient"] > 0
        assert line["learning_rate"] == learning_rate(line["step"], SHORT)


def test_a_finished_run_resumes_to_itself(fields, finished, tmp_path) -> None:
    denoiser = make_denoiser(fields[0], seed=1)
    copied(finished, tmp_path)
    result = train(denoiser, *fields, SHORT, tmp_path, resume=True, progress=False)
    assert result.step == SHORT.steps
    assert not result.stopped_early
    best = _tensors.read(finished / CHECKPOINT, "checkpoint")[1]
    for name, weight in denoiser.network.state_dict().items():
        assert torch.equal(weight, best[f"best/{name}"])


def flip_last_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "change", [lambda b: b[: len(b) // 2], lambda b: b[:20], lambda _: b"", flip_last_byte]
)
def test_damaged_checkpoints_are_refused(fields, finished, tmp_path, change) -> None:
    copied(finished, tmp_path, change)
    with pytest.raises(ValueError, match="corrupted.*restore it"):
        train(make_denoiser(fields[0]), *fields, SHORT, tmp_path, resume=True, progress=False)


def test_a_checkpoint_serves_where_numbers_are_rounded_otherwise(fields, finished, tmp_path):
    """As with another number of threads: all moments and the archive differ in the last digits."""
    copied(finished, tmp_path)
    generator = torch.Generator().manual_seed(0)
    data, held_out = (x * (1 + 1e-7 * torch.randn(x.shape, generator=generator)) for x in fields)
    assert not torch.equal(data, fields[0])
    result = train(
        make_denoiser(data), data, held_out, SHORT, tmp_path, resume=True, progress=False
    )
    assert result.step == SHORT.steps


def test_checkpoints_of_another_run_are_refused(fields, finished, tmp_path) -> None:
    copied(finished, tmp_path)

    def resume(data: Tensor, held_out: Tensor, config: TrainConfig = SHORT, **options) -> None:
        denoiser = make_denoiser(data, **options)
        train(denoiser, data, held_out, config, tmp_path, resume=True, progress=False)

    data, held_out = fields
    lower = [harmonics.resize(x, 4) for x in fields]
    with pytest.raises(ValueError, match="lmax 5, this training 4"):
        resume(*lower)
    with pytest.raises(ValueError, match="channels 1, this training 2"):
        resume(data.repeat(1, 2, 1), held_out.repeat(1, 2, 1))
    with pytest.raises(ValueError, match="batch was 4 and is 5"):
        resume(data, held_out, dataclasses.replace(SHORT, batch=5))
    with pytest.raises(ValueError, match="another network"):
        resume(data, held_out, width=7)
    with pytest.raises(ValueError, match="another process"):
        resume(data * 1.5, held_out)
    with pytest.raises(ValueError, match="another archive"):
        resume(data, held_out + 1)
    with pytest.raises(ValueError, match="another archive"):
        resume(data.flip(0), held_out)
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(FileNotFoundError, match="expected a checkpoint"):
        resume(data, held_out)


# --- errors before work begins ----------------------------------------------------------------


def test_an_earlier_training_is_not_overwritten(fields, finished) -> None:
    before = (finished / CHECKPOINT).read_bytes(), (finished / METRICS).read_bytes()
    with pytest.raises(ValueError, match="earlier training; resume"):
        train(make_denoiser(fields[0]), *fields, SHORT, finished, progress=False)
    assert before == ((finished / CHECKPOINT).read_bytes(), (finished / METRICS).read_bytes())


def test_output_that_cannot_be_written_is_found_before_training(fields, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    denoiser = disturbed(fields, 1, lambda _: pytest.fail("training began"))
    with pytest.raises(PermissionError, match="cannot write"):
        train(denoiser, *fields, SHORT, tmp_path / "file" / "run", progress=False)


def test_unfit_fields_are_refused(fields, tmp_path) -> None:
    denoiser, (data, held_out) = make_denoiser(fields[0]), fields
    spoiled = data.clone()
    spoiled[3, 0, 7] = math.nan
    for wrong, message in [
        (data[:, 0], "training fields of shape"),
        (data[:, :, :25], "1 channel.* at lmax 5, got .40, 1, 25."),
        (data[:0], "N >= 1"),
        (spoiled, "1 of 1440 training coefficients are not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(denoiser, wrong, held_out, SHORT, tmp_path, progress=False)
    with pytest.raises(ValueError, match="held-out fields of shape"):
        train(denoiser, data, held_out[:, :, :4], SHORT, tmp_path, progress=False)
    outside = dataclasses.replace(SHORT, levels=(-9.0,))
    with pytest.raises(ValueError, match="covers log"):
        train(denoiser, data, held_out, outside, tmp_path, progress=False)
    denoiser.covariance.diagonal[0, 3] = 0
    with pytest.raises(ValueError, match="positive variance"):
        train(denoiser, data, held_out, SHORT, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 0},
        {"learning_rate": -1.0},
        {"clip": math.inf},
        {"ema": 1.0},
        {"warmup": -1},
        {"levels": ()},
        {"patience": 0},
        {"label_dropout": 1.1},
        {"label_dropout": math.nan},
    ],
)
def test_impossible_configurations_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must|expected"):
        TrainConfig(**wrong)


# --- conditions -------------------------------------------------------------------------------


def seasonal(fields: Tensor, seed: int) -> Fields:
    """Fields turned upside down, x → −x, under the condition −1: no mean, but opposite skewness."""
    sign = torch.randint(2, (len(fields), 1), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Fields(fields * sign[..., None], sign.float())


def test_conditions_are_learnt_and_belong_to_their_fields(tmp_path: Path) -> None:
    data = seasonal(lognormal_fields(1024, 3, seed=1), seed=3)
    held_out = seasonal(lognormal_fields(64, 3, seed=2), seed=4)
    config = dataclasses.replace(
        SHORT, steps=400, batch=16, learning_rate=2e-2, levels=(-0.5, 0.5), patience=100
    )
    told = make_denoiser(data.x, conditions=1)
    known = train(told, data, held_out, config, tmp_path / "told", progress=False)
    blind = make_denoiser(data.x)
    unknown = train(blind, data.x, held_out.x, config, tmp_path / "blind", progress=False)
    # the law of −x and x mixed is symmetric: the sign of the skewness is worth something
    assert known.best < unknown.best - 0.02
    swapped = Fields(held_out.x, -held_out.condition)
    right, wrong = (sum(held_out_loss(told, f, config)) / 2 for f in (held_out, swapped))
    assert right == pytest.approx(known.best)
    assert wrong > right + 0.01  # and the sign told wrongly costs something
    # one condition a state, or one for all
    x, t = data.x[:6], told.process.time_of(torch.zeros(6, 1))
    one_by_one = torch.cat([told.given(data.condition[k])(x[k : k + 1], t[k]) for k in range(6)])
    torch.testing.assert_close(told.given(data.condition[:6])(x, t), one_by_one)
    other = dataclasses.replace(config, seed=config.seed)
    with pytest.raises(ValueError, match="another archive"):
        train(told, data, swapped, other, tmp_path / "told", resume=True, progress=False)


def test_labels_are_dropped_at_the_stated_share() -> None:
    """Each label alone is kept or zeroed whole; fields without labels draw no random numbers."""
    count, share = 4000, 0.1
    condition = torch.stack([torch.ones(count), torch.arange(1.0, 1 + count)], dim=1)
    fields = Fields(torch.randn(count, 1, 4), condition)
    generator = torch.Generator().manual_seed(0)
    dropped = batches.drop_labels(fields, share, generator)
    assert dropped.x is fields.x
    null = (dropped.condition == 0).all(1)
    assert torch.equal(dropped.condition[~null], condition[~null])
    # a binomial of 4000: standard error 0.0047; four of them, one false alarm in 16,000
    assert abs(float(null.float().mean()) - share) < 4 * math.sqrt(share * (1 - share) / count)
    assert not torch.equal(null, (batches.drop_labels(fields, share, generator)[1] == 0).all(1))
    assert torch.equal(batches.drop_labels(fields, 0.0, generator).condition, condition)
    assert (batches.drop_labels(fields, 1.0, generator).condition == 0).all()
    state = generator.get_state()
    plain = Fields.of(fields.x)
    assert batches.drop_labels(plain, share, generator) is plain
    assert torch.equal(generator.get_state(), state)


def test_what_the_network_is_told_in_training(monkeypatch, tmp_path) -> None:
    """A network that records its conditions: some dropped in learning, none in judging."""
    data = seasonal(lognormal_fields(64, 3, seed=1), seed=3)
    denoiser = make_denoiser(data.x, conditions=1)
    told: dict[bool, list[Tensor]] = {True: [], False: []}
    forward = SphericalOperator.forward

    def record(self, u: Tensor, w: Tensor, log_noise: Tensor, condition: Tensor) -> Tensor:
        told[torch.is_grad_enabled()].append(condition[:, 0])
        return forward(self, u, w, log_noise, condition)

    monkeypatch.setattr(SphericalOperator, "forward", record)
    config = dataclasses.replace(SHORT, batch=32, label_dropout=0.3)
    train(denoiser, data, data, config, tmp_path, progress=False)
    learnt, judged = (torch.cat(told[key]) for key in (True, False))
    assert len(learnt) == 24 * 32
    assert (judged != 0).all()
    # 768 draws: standard error 0.0165; four of them, one false alarm in 16,000
    assert abs(float((learnt == 0).float().mean()) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 768)
    assert set(learnt.tolist()) == {-1.0, 0.0, 1.0}


def test_a_resumed_training_with_labels_has_the_same_bits(one_thread, tmp_path) -> None:
    data = seasonal(lognormal_fields(40, 3, seed=1), seed=3)
    whole, parts = (make_denoiser(data.x, conditions=1) for _ in range(2))
    train(whole, data, data, SHORT, tmp_path / "whole", progress=False)
    step = loop._take_step

    def stop(learners, state, *rest):
        if state.step == 13:
            raise KeyboardInterrupt
        return step(learners, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_take_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(parts, data, data, SHORT, tmp_path / "parts", progress=False)
    train(parts, data, data, SHORT, tmp_path / "parts", resume=True, progress=False)
    assert same_tensors(whole.network.state_dict(), parts.network.state_dict())


def test_errors_of_conditions(fields, tmp_path) -> None:
    data, held_out = fields
    told = make_denoiser(data, conditions=2)
    with pytest.raises(ValueError, match=r"expects conditions of shape \(8, 2\)"):
        told(held_out, 0.5)
    short = Fields(data, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="one condition for each of 40 training fields"):
        train(told, short, held_out, SHORT, tmp_path, progress=False)
