"""Draws that depend neither on the batch nor on the band limit."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from spherediff.streams import Streams, open_source


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 1000, 65536, 65537, 200_000])
def test_longer_draws_start_with_shorter_ones(n: int) -> None:
    streams_short, streams_long = Streams(seeded(), 3), Streams(seeded(), 3)
    for _ in range(2):  # the second draw too, although the first had another length
        short = streams_short.normal((n,), torch.float32)
        longer = streams_long.normal((n + 70_000,), torch.float32)
        assert torch.equal(short, longer[:, :n])


def test_samples_do_not_depend_on_the_batch() -> None:
    whole = Streams(seeded(), 7).normal((50,), torch.float64)
    generator = seeded()
    parts = [Streams(generator, k).normal((50,), torch.float64) for k in (2, 4, 1)]
    assert torch.equal(whole, torch.cat(parts))


def test_one_generator_a_sample() -> None:
    together = Streams([seeded(5), seeded(6)], 2).normal((2, 50), torch.float64)
    alone = Streams(seeded(6), 1).normal((2, 50), torch.float64)
    assert torch.equal(together[1], alone[0])


def test_draws_channels_and_samples_are_independent_standard_normals() -> None:
    streams = Streams(seeded(), 4)
    rows = torch.cat([streams.normal((2, 20_000), torch.float64).reshape(8, -1) for _ in range(3)])
    # Kolmogorov–Smirnov of 24 rows and all pairwise correlations, false-alarm rate 1e-3 in all.
    worst = min(stats.kstest(row.numpy(), "norm").pvalue for row in rows)
    assert worst > 1e-3 / 2 / len(rows)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows), dtype=torch.float64)
    pairs = len(rows) * (len(rows) - 1) / 2
    bound = stats.norm.isf(1e-3 / 4 / pairs) / 20_000**0.5
    assert correlation.abs().max() < bound


def test_thread_count_does_not_matter(set_threads) -> None:
    draws = []
    for count in (1, 2):
        set_threads(count)
        draws.append(Streams(seeded(), 2).normal((300_000,), torch.float32))
    assert torch.equal(*draws)


def test_errors() -> None:
    with pytest.raises(ValueError, match="one generator or 3"):
        Streams([seeded()], 3)
    with pytest.raises(TypeError, match="expected a torch.Generator"):
        open_source(0, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a torch.Generator"):
        Streams([0], 1)  # type: ignore[list-item]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_generator_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="generator on the CPU"):
        Streams(torch.Generator(device="cuda"), 1)


def test_generator_that_says_it_lives_elsewhere_is_refused() -> None:
    class Elsewhere(torch.Generator):
        device = torch.device("cuda", 0)

    with pytest.raises(ValueError, match="expected a generator on the CPU, found one on cuda:0"):
        Streams(Elsewhere(), 1)
