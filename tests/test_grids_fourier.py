"""Fourier sums over longitude: by both libraries, against the sums written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spherediff.grids import _fourier
from spherediff.grids._fourier import orders, project_waves, sum_waves


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def waves(n: int) -> Tensor:
    """cos mφ_k and sin mφ_k, one row for each order below n/2, shape (row, k)."""
    m = orders((n - 1) // 2)[:, None]
    phi = 2 * math.pi / n * torch.arange(n, dtype=torch.float64)
    return torch.where(m < 0, torch.sin(-m * phi), torch.cos(m * phi))


def band_limited(n: int, *shape: int) -> Tensor:
    """Random rows; that of order n/2, which has no sine, is zero."""
    rows = normal(n, *shape)
    rows[len(waves(n)) :] = 0
    return rows


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 12])
def test_sums_are_what_they_are_written_to_be(n: int) -> None:
    rows, values = band_limited(n, 3, 5), torch.empty(n, 5, 3, dtype=torch.float64).mT
    sum_waves(rows, values)
    twice = torch.where(orders((n - 1) // 2) == 0, 1.0, 2.0).double()[:, None]
    expected = torch.tensordot(waves(n).T, (twice[..., None] * rows[: len(waves(n))]), dims=1)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 12])
def test_projections_are_what_they_are_written_to_be(n: int) -> None:
    values, rows = normal(n, 4, 2), torch.empty(n, 2, 4, dtype=torch.float64).mT
    project_waves(values, rows)
    expected = torch.tensordot(waves(n), values, dims=1)
    torch.testing.assert_close(rows[: len(expected)], expected, rtol=0, atol=1e-13)


def test_mirrored_values_run_backwards_along_the_last_axis() -> None:
    rows, values = band_limited(8, 3, 4), torch.empty(8, 3, 4, dtype=torch.float64)
    sum_waves(rows, values)
    mirrored, back, again = (torch.empty_like(values) for _ in range(3))
    sum_waves(rows, mirrored, mirrored=True)
    assert torch.equal(mirrored, values.flip(-1))
    project_waves(values, back)
    project_waves(mirrored, again, mirrored=True)
    assert torch.equal(again, back)


@pytest.mark.parametrize("largest_product", [0, 9])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_devices_without_ducc_compute_the_same(n: int, largest_product: int, monkeypatch) -> None:
    monkeypatch.setattr(_fourier, "_LARGEST_PRODUCT", largest_product)
    rows, values = band_limited(n, 2, 3), torch.empty(n, 2, 3, dtype=torch.float64)
    sum_waves(rows, values)
    torch.testing.assert_close(_fourier._sums(rows), values, rtol=0, atol=1e-13)
    project_waves(values, rows)
    torch.testing.assert_close(_fourier._projections(values), rows, rtol=0, atol=1e-12)


def test_nothing_is_nothing() -> None:
    rows, values = torch.empty(4, 0), torch.empty(4, 0)
    sum_waves(rows, values)
    project_waves(values, rows)
