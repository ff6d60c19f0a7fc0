"""The methods on the bench, by name and in the order of the table."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from archives import Split
from emulators import Bootstrap, Emulator, FullGaussian, IsotropicGaussian, SphereDiff

ENVIRONMENT = Path(__file__).parent / "earthsampler" / ".environment"


def pixel(_: Split) -> Emulator:
    from diffusion import PixelDiffusion

    return PixelDiffusion()


def functional(_: Split) -> Emulator:
    from functional import FunctionSpace

    return FunctionSpace()


def earthsampler(_: Split) -> Emulator:
    from earthsampler_peer import EarthSampler, prepare

    return EarthSampler(prepare(ENVIRONMENT))


def nothing() -> None:
    """What a method asks for that needs no preparation."""


def require_azula() -> None:
    """Raises ImportError if it is not installed."""
    missing = [name for name in ("azula", "einops") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the method pixel needs {', '.join(missing)}: pip install 'spherediff[bench]', or"
            " leave the method out with --methods"
        )


def install_earthsampler() -> None:
    """An environment of its own, the first time."""
    from earthsampler_peer import prepare

    prepare(ENVIRONMENT)


@dataclass(frozen=True)
class Method:
    """How to make an emulator.

    Attributes:
        make: from the archive it is for.
        budgeted: whether it uses the training time.
        prepare: to be called before work begins.
    """

    make: Callable[[Split], Emulator]
    budgeted: bool = False
    prepare: Callable[[], None] = nothing


METHODS = {
    "isotropic": Method(lambda _: IsotropicGaussian()),
    "gaussian": Method(lambda _: FullGaussian()),
    "bootstrap": Method(lambda _: Bootstrap()),
    "pixel": Method(pixel, True, require_azula),
    "functional": Method(functional, True),
    "earthsampler": Method(earthsampler, True, install_earthsampler),
    "spherediff": Method(SphereDiff, True),
}
