"""The methods on the bench, by name and in the order of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from archives import Split
from emulators import Bootstrap, Emulator, FullGaussian, IsotropicGaussian, SphereDiff


def pixel(_: Split) -> Emulator:
    from diffusion import PixelDiffusion

    return PixelDiffusion()


def functional(_: Split) -> Emulator:
    from functional import FunctionSpace

    return FunctionSpace()


@dataclass(frozen=True)
class Method:
    """How to make an emulator.

    Attributes:
        make: from the archive it is for.
        budgeted: whether it uses the training time.
        needs: packages besides spherediff's own dependencies.
    """

    make: Callable[[Split], Emulator]
    budgeted: bool = False
    needs: tuple[str, ...] = ()


METHODS = {
    "isotropic": Method(lambda _: IsotropicGaussian()),
    "gaussian": Method(lambda _: FullGaussian()),
    "bootstrap": Method(lambda _: Bootstrap()),
    "pixel": Method(pixel, True, ("azula", "einops")),
    "functional": Method(functional, True),
    "spherediff": Method(lambda split: SphereDiff(split.encoder), True),
}
