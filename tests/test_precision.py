"""Mixed precision: bfloat16 in the network's products and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from spherediff._precision import multiplies_bfloat16
from spherediff.covariance import Covariance
from spherediff.denoise import NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.nn import SphericalOperator
from spherediff.process import OrnsteinUhlenbeck
from spherediff.spectra import Tabulated
from spherediff.train import METRICS, TrainConfig, train

LMAX = 5
N = (LMAX + 1) ** 2


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_denoiser() -> NeuralDenoiser:
    """With a correlated reference, as models have it."""
    process = OrnsteinUhlenbeck(GaussianField(Tabulated([[1.0] * (LMAX + 1)] * 2), LMAX))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SphericalOperator(LMAX, 2, width=8, hidden=8, blocks=2, embedding=8)
        torch.nn.init.normal_(network.project.weight, std=0.3)
    covariance = Covariance(torch.full((2, N), 0.5), 0.3 * normal(20, 2, N))
    denoiser = NeuralDenoiser(process, network, torch.zeros(2, N), covariance)
    for table in denoiser.calibration.state_dict().values():
        table.add_(0.1 * normal(*table.shape))
    return denoiser


def test_what_is_around_the_network_keeps_its_digits_under_autocast() -> None:
    denoiser = make_denoiser()
    x, F, log_noise = normal(3, 2, N), normal(3, 2, N, seed=1), torch.tensor([-1.3, 0.0, 0.7])
    reference, calibration = denoiser.reference, denoiser.calibration

    def around() -> list[torch.Tensor]:
        z = reference.standardise(x, 0.4)
        found = [z, reference.linear(z, 0.4), reference.mixed(z), reference.state(z, 0.4)]
        corrected = [calibration.fields(F, z, log_noise), calibration.modes(F, z, log_noise)]
        return [*found, *corrected, reference.residual(x, z, 0.4)]

    expected = around()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = around()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_residual_is_single_precision_under_autocast_and_right_to_two_digits() -> None:
    denoiser, z = make_denoiser(), normal(4, 2, N)
    with torch.no_grad():
        expected = denoiser.residual(z, 0.4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = denoiser.residual(z, 0.4)
    assert found.dtype == torch.float32
    error = float((found - expected).square().mean().sqrt() / expected.std())
    assert 0 < error < 0.03  # bfloat16 has 8 bits


@pytest.mark.parametrize("calibrated", [False, True])
def test_training_in_mixed_precision_follows_that_in_single_precision(
    calibrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spherediff.train.loop.multiplies_bfloat16", lambda device: True)
    losses = {}
    for mixed in (False, True):
        denoiser = make_denoiser()
        if not calibrated:
            denoiser.calibration.reset()
        config = TrainConfig(steps=5, batch=8, log_every=1, mixed_precision=mixed)
        data, held_out = normal(20, 2, N, seed=1), normal(8, 2, N, seed=2)
        train(denoiser, data, held_out, config, tmp_path / str(mixed), progress=False)
        lines = (tmp_path / str(mixed) / METRICS).read_text().splitlines()[1:]
        losses[mixed] = torch.tensor([json.loads(line)["loss"] for line in lines])
    assert not torch.equal(losses[True], losses[False])
    torch.testing.assert_close(losses[True], losses[False], rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, False),
        ({"avx2": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_processors_with_instructions_for_bfloat16_use_them(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert multiplies_bfloat16(torch.device("cpu")) is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not multiplies_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize("new_enough", [False, True])
def test_cards_that_only_emulate_bfloat16_do_not_use_it(
    new_enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or new_enough

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert multiplies_bfloat16(torch.device("cuda")) is new_enough
    assert not multiplies_bfloat16(torch.device("meta"))
