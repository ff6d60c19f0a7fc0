"""The coefficient layout, against its definition, healpy and Parseval."""

import math

import healpy as hp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherediff import harmonics
from spherediff.grids import GaussLegendre


def coefficients(*shape, lmax, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, (lmax + 1) ** 2, generator=generator, dtype=dtype)


@given(st.integers(0, 60))
def test_flat_index_is_degree_squared_plus_degree_plus_order(lmax):
    expected = [(ell, m) for ell in range(lmax + 1) for m in range(-ell, ell + 1)]
    found = list(
        zip(harmonics.degrees(lmax).tolist(), harmonics.orders(lmax).tolist(), strict=True)
    )
    assert found == expected
    assert all(ell * ell + ell + m == i for i, (ell, m) in enumerate(found))
    assert harmonics.count(lmax) == len(found)
    assert harmonics.band_limit(len(found)) == lmax


@pytest.mark.parametrize("n", [0, 2, 3, 5, 8, 10])
def test_a_count_that_is_no_square_is_refused(n):
    with pytest.raises(ValueError, match="not a square"):
        harmonics.band_limit(n)


def test_negative_band_limit_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        harmonics.count(-1)


def test_resize_slices_and_pads():
    a = coefficients(3, lmax=5)
    assert torch.equal(harmonics.resize(a, 3), a[..., :16])
    padded = harmonics.resize(a, 7)
    assert torch.equal(padded[..., :36], a)
    assert not padded[..., 36:].any()
    assert torch.equal(harmonics.resize(padded, 5), a)


def test_expand_and_sum_orders_are_transposes():
    x, a = torch.randn(2, 6, dtype=torch.float64), coefficients(2, lmax=5)
    torch.testing.assert_close(
        (harmonics.expand(x) * a).sum(-1), (x * harmonics.sum_orders(a)).sum(-1)
    )


@pytest.mark.parametrize("lmax", [0, 1, 7, 64])
def test_packing_follows_the_formula(lmax):
    a = coefficients(lmax=lmax)
    alm = harmonics.to_healpy(a)
    for ell in range(lmax + 1):
        centre = ell * ell + ell
        for m in range(min(ell, 9) + 1):
            if m == 0:
                expected = complex(a[centre])
            else:
                expected = complex(a[centre + m], -a[centre - m]) / math.sqrt(2)
            assert abs(complex(alm[hp.Alm.getidx(lmax, ell, m)]) - expected) < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("lmax", "batch"), [(0, ()), (1, (2,)), (31, (2, 3)), (300, ()), (1100, (2,))]
)
def test_packing_round_trip(lmax, batch, dtype):
    # lmax 1100 takes several blocks of indices, and rows one by one.
    a = coefficients(*batch, lmax=lmax, dtype=dtype)
    alm = harmonics.to_healpy(a)
    assert alm.shape == (*batch, (lmax + 1) * (lmax + 2) // 2)
    torch.testing.assert_close(
        harmonics.from_healpy(alm), a, rtol=4 * torch.finfo(dtype).eps, atol=0
    )
    weight = torch.full(alm.shape[-1:], 2.0, dtype=dtype)
    weight[: lmax + 1] = 1
    isometry = (alm.abs().square() * weight).sum(-1)
    torch.testing.assert_close(isometry, a.square().sum(-1))


def test_several_blocks_give_what_one_block_gives(monkeypatch):
    a = coefficients(3, lmax=20)
    whole = harmonics.to_healpy(a)
    caches = (
        harmonics._order_blocks,
        harmonics._degree_blocks,
        harmonics._pack_index,
        harmonics._unpack_index,
    )
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(harmonics, "_BLOCK", 37)
    assert len(harmonics._order_blocks(20)) > 3
    assert torch.equal(harmonics.to_healpy(a), whole)
    torch.testing.assert_close(harmonics.from_healpy(whole), a, rtol=1e-15, atol=0)
    for cache in caches:
        cache.cache_clear()


def test_imaginary_part_of_zonal_entries_is_ignored():
    alm = harmonics.to_healpy(coefficients(lmax=4))
    spoilt = alm.clone()
    spoilt[:5] += 3j
    assert torch.equal(harmonics.from_healpy(spoilt), harmonics.from_healpy(alm))


def test_packing_refuses_what_is_not_packed():
    with pytest.raises(TypeError, match="complex"):
        harmonics.from_healpy(torch.zeros(3))
    with pytest.raises(ValueError, match="packed coefficients"):
        harmonics.from_healpy(torch.zeros(4, dtype=torch.complex64))


def test_packing_is_differentiable():
    a = coefficients(2, lmax=3).requires_grad_()
    assert torch.autograd.gradcheck(harmonics.to_healpy, a)
    assert torch.autograd.gradgradcheck(harmonics.to_healpy, a)
    alm = torch.randn(2, 10, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(harmonics.from_healpy, alm)


@pytest.mark.parametrize("lmax", [0, 5, 40])
def test_degree_spectrum_is_alm2cl(lmax):
    a = coefficients(lmax=lmax)
    spectrum = harmonics.degree_spectrum(a).numpy()
    expected = hp.alm2cl(harmonics.to_healpy(a).numpy())
    np.testing.assert_allclose(spectrum, expected, rtol=1e-13)


def test_functions_of_coefficients_are_differentiable():
    a = coefficients(2, lmax=3).requires_grad_()
    assert torch.autograd.gradcheck(harmonics.degree_spectrum, a)
    assert torch.autograd.gradcheck(lambda x: harmonics.resize(x, 5), a)
    assert torch.autograd.gradcheck(lambda x: harmonics.resize(x, 1), a)
    per_degree = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(harmonics.expand, per_degree)


@pytest.mark.parametrize("lmax", [0, 3, 30])
def test_parseval(lmax):
    a = coefficients(4, lmax=lmax)
    grid = GaussLegendre(2 * lmax)  # f² has band limit 2·lmax
    integral = (grid.area_weights * grid.synthesis(a).square()).sum((-2, -1))
    torch.testing.assert_close(integral, a.square().sum(-1), rtol=1e-13, atol=0)
