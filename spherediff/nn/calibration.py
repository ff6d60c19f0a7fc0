"""What a network's output is corrected by, degree by degree and noise level by noise level.

    F ← a_ℓ(s) F + b_ℓ(s) u,    a, b linear between knots of s = log(σ/α), constant beyond them.

It commutes with every rotation.  a = 1 and b = 0, no correction, until they are fitted
(:mod:`spherediff.calibrate`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spherediff import harmonics

_KNOTS = tuple(range(-3, 4))


class Calibration(nn.Module):
    """The tables a and b, shape (knots, channels, lmax + 1).

    Args:
        lmax: band limit.
        channels: number of fields.
    """

    knots: Tensor
    degree: Tensor
    a: Tensor
    b: Tensor

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("knots", torch.tensor(_KNOTS, dtype=torch.float32), persistent=False)
        self.register_buffer("degree", harmonics.degrees(lmax), persistent=False)
        self.register_buffer("a", torch.ones(len(_KNOTS), channels, lmax + 1))
        self.register_buffer("b", torch.zeros(len(_KNOTS), channels, lmax + 1))

    def reset(self) -> None:
        """No correction."""
        self.a.fill_(1)
        self.b.zero_()

    def forward(self, F: Tensor, u: Tensor, log_noise: Tensor) -> Tensor:
        """a F + b u; F and u of shape (B, channels, n), log(σ/α) of shape (B,)."""
        s = log_noise.clamp(_KNOTS[0], _KNOTS[-1])[:, None]
        hats = (1 - (s - self.knots).abs()).clamp(min=0)  # (B, knots), they sum to 1
        a, b = (
            torch.tensordot(hats, table.to(hats), dims=1)[..., self.degree]
            for table in (self.a, self.b)
        )
        return a * F + b * u
