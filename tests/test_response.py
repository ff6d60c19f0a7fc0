"""Labels are amplified until draws depend on them as the known fields do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spherediff import harmonics, response
from spherediff.denoise import NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.nn import SphericalOperator
from spherediff.process import OrnsteinUhlenbeck
from spherediff.response import respond
from spherediff.spectra import Tabulated
from spherediff.train import Fields

LMAX, KNOWN = 12, 3000
TINY = {"width": 4, "blocks": 1, "hidden": 4, "slopes": 2, "lifts": 1, "positional": 2,
        "embedding": 4}  # fmt: skip
SPECTRUM = (1.0 + torch.arange(LMAX + 1))[None] ** -2.5


class Modulated(nn.Module):
    """E[T | z] of fields whose variance is 1 + strength · (c − ½), the label taken for c'.

    With data and noise of one spectrum ψ is the same for all coefficients, Cov(T, z) is
    cos ψ sin ψ (r − 1) and Var z = r cos²ψ + sin²ψ, where r is the variance.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength, self.factor = strength, 1.0
        self.mean = torch.tensor(0.5)

    def amplify(self, factor: float, mean: Tensor) -> None:
        self.factor, self.mean = factor, mean[1]

    def forward(self, u: Tensor, _: Tensor, log_noise: Tensor, condition: Tensor) -> Tensor:
        c = self.mean + self.factor * (condition[:, 1] - self.mean)
        r = (1 + self.strength * (c - 0.5)).clamp(min=0)[:, None, None]
        psi = torch.atan(log_noise.exp())[:, None, None]
        return psi.cos() * psi.sin() * (r - 1) / (r * psi.cos() ** 2 + psi.sin() ** 2) * u


def denoiser(network: nn.Module) -> NeuralDenoiser:
    field = GaussianField(Tabulated(SPECTRUM), LMAX, dtype=torch.float32)
    variance = harmonics.expand(SPECTRUM).float()
    return NeuralDenoiser(OrnsteinUhlenbeck(field), network, torch.zeros_like(variance), variance)


def fields(strength: float) -> Fields:
    """With variances 1 ± strength/2, as their label says."""
    generator = torch.Generator().manual_seed(0)
    c = torch.rand(KNOWN, generator=generator)
    field = GaussianField(Tabulated(SPECTRUM), LMAX, dtype=torch.float32)
    x = (
        field.sample((KNOWN,), generator=generator)
        * (1 + strength * (c - 0.5)).sqrt()[:, None, None]
    )
    return Fields(x, torch.stack([torch.ones(KNOWN), c], 1))


@pytest.mark.parametrize("damped", [0.7, 1.0, 1.25])
def test_draws_get_the_response_of_the_fields(damped: float) -> None:
    network = Modulated(damped * 1.2)
    respond(denoiser(network), fields(1.2), torch.Generator().manual_seed(1), False)
    # Places see about ten independent coefficients, and the sphere a dozen places: the slope of
    # 3000 variances on labels of variance 1/12 is known to sqrt(2 · 12/3000/12)/1.2 = 2 %.
    assert network.factor * damped == pytest.approx(1, abs=0.08)
    assert float(network.mean) == pytest.approx(0.5, abs=0.05)


def test_few_places_and_fields_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response, "_FINEST", 5)
    monkeypatch.setattr(response, "_FIELDS", 1500)
    network = Modulated(0.8 * 1.2)
    respond(denoiser(network), fields(1.2), torch.Generator().manual_seed(1), False)
    assert network.factor * 0.8 == pytest.approx(1, abs=0.1)
    assert network.factor != 1


def test_a_network_that_does_not_respond_stays_as_it_is() -> None:
    network = Modulated(0.0)
    respond(denoiser(network), fields(1.2), torch.Generator().manual_seed(1), False)
    assert network.factor == 1


def test_what_is_noise_is_not_responded_to() -> None:
    network = Modulated(0.05)
    respond(denoiser(network), fields(0.0), torch.Generator().manual_seed(1), False)
    assert network.factor == 1


@pytest.mark.parametrize(
    "known",
    [
        Fields(fields(1.2).x, torch.ones(KNOWN, 1)),
        Fields.of(fields(1.2).x),
        fields(1.2).at(slice(50)),
    ],
    ids=["labels all alike", "no labels", "few fields"],
)
def test_nothing_is_amplified_without_labels_that_differ(known: Fields) -> None:
    network = Modulated(0.5)
    respond(denoiser(network), known, torch.Generator().manual_seed(1), False)
    assert network.factor == 1


def test_operator_takes_labels_for_others_and_the_null_label_for_itself() -> None:
    torch.manual_seed(0)
    network = SphericalOperator(3, 1, conditions=3, **TINY)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    u, w, log_noise = torch.randn(5, 1, 16), torch.randn(5, 1, 16), torch.randn(5)
    condition = torch.cat([torch.ones(5, 1), torch.randn(5, 2)], 1)
    mean = torch.tensor([1.0, 0.3, -0.2])
    further, null = mean + 1.4 * (condition - mean), torch.zeros(5, 3)
    expected = [network(u, w, log_noise, c) for c in (further, null)]
    network.amplify(1.4, mean)
    for c, F in zip((condition, null), expected, strict=True):
        torch.testing.assert_close(network(u, w, log_noise, c), F)
