"""Diagonal plus low-rank covariances against dense linear algebra."""

from __future__ import annotations

import pytest
import torch

from spherediff.covariance import Covariance, shrinkage_intensity

torch_rng = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_rng, dtype=torch.float64)


@pytest.mark.parametrize("rank", [0, 1, 5])
@pytest.mark.parametrize("event", [(9,), (2, 9)])
@pytest.mark.parametrize("batched", [False, True])
def test_woodbury_equals_dense(rank: int, event: tuple[int, ...], batched: bool) -> None:
    S = Covariance(normal(*event).square() + 0.1, normal(rank, *event))
    lead = (4, *(1,) * len(event)) if batched else (1,) * len(event)
    scale = normal(*lead).abs()[..., :1]
    noise = normal(*(4,) if batched else (), *event).square() + 0.05
    y = normal(4, *event)
    flat = S.factor.flatten(1)
    dense = S.diagonal.flatten().diag() + flat.T @ flat
    torch.testing.assert_close(S.matmul(y).flatten(1), y.flatten(1) @ dense)
    torch.testing.assert_close(S.variance.flatten(), dense.diagonal())
    a2 = scale.square().reshape(-1, 1, 1)
    shifted = a2 * dense + torch.diag_embed(noise.reshape(-1, dense.shape[0]))
    expected = torch.linalg.solve(shifted.expand(4, -1, -1), y.flatten(1))
    torch.testing.assert_close(S.solve(scale, noise, y).flatten(1), expected)
    log_det = S.log_det(scale, noise).reshape(-1)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(shifted).logabsdet)


def test_shrinkage_intensity_equals_the_textbook_double_sum() -> None:
    x = normal(12, 7) @ normal(7, 7)
    z = (x - x.mean(0)) / x.std(0)
    N = 12
    w = z[:, :, None] * z[:, None, :]
    variance = N / (N - 1) ** 3 * (w - w.mean(0)).square().sum(0)
    correlation = torch.corrcoef(x.T)
    off = ~torch.eye(7, dtype=torch.bool)
    expected = variance[off].sum() / correlation[off].square().sum()
    assert shrinkage_intensity(z) == pytest.approx(float(expected), rel=1e-12)


def test_shrunk_covariance_is_the_weighted_mean_of_sample_covariance_and_its_diagonal() -> None:
    data = normal(30, 2, 4) @ normal(4, 4)
    S = Covariance.shrunk(data)
    flat = data.flatten(1)
    delta = shrinkage_intensity((flat - flat.mean(0)) / flat.std(0))
    assert 0 < delta < 1
    sample = torch.cov(flat.T)
    expected = (1 - delta) * sample + delta * sample.diagonal().diag()
    torch.testing.assert_close(
        S.matmul(torch.eye(8, dtype=torch.float64).reshape(8, 2, 4)), expected.reshape(8, 2, 4)
    )
    truncated = Covariance.shrunk(data, rank=3)
    assert len(truncated.factor) == 3
    torch.testing.assert_close(truncated.variance, S.variance)


def test_shrinkage_vanishes_with_many_samples_and_is_full_for_independent_data() -> None:
    mix = normal(6, 6)
    few, many = (shrinkage_intensity(_standard(normal(N, 6) @ mix)) for N in (20, 20_000))
    assert many < 1e-2 < few
    assert shrinkage_intensity(_standard(normal(50, 200))) > 0.8


def test_constant_coefficients_keep_zero_variance() -> None:
    data = normal(10, 5)
    data[:, 2] = 3.0
    S = Covariance.shrunk(data)
    assert S.variance[2] == 0
    assert torch.isfinite(S.matmul(normal(5))).all()


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least four samples"):
        Covariance.shrunk(normal(3, 5))
    with pytest.raises(ValueError, match="rank must be at least 1"):
        Covariance.shrunk(normal(9, 5), rank=0)
    with pytest.raises(ValueError, match="finite and not negative"):
        Covariance(torch.tensor([1.0, -1.0]))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="variances must be finite.*found 1 that are not"):
            Covariance(torch.tensor([1.0, bad]))
        with pytest.raises(ValueError, match="factor must be finite; found 1 numbers"):
            Covariance(torch.ones(2), torch.tensor([[1.0, bad]]))
    with pytest.raises(ValueError, match="factor of shape"):
        Covariance(torch.ones(3), torch.ones(2, 4))


def _standard(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(0)) / x.std(0)
