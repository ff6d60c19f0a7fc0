"""Settings that every test relies on."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings

# Figures are drawn without a display; pyplot reads this when it is first imported.
os.environ["MPLBACKEND"] = "Agg"

# The same examples in every run, and no limit on time: a shared machine may stall for seconds.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Weights that a test draws from the global generator are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
