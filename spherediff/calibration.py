"""What a network's residual is corrected by, for groups of modes and noise level by noise level.

    F ← a_g(s) F + b_g(s) z,    a, b linear between knots of s = log(σ/α), constant beyond them,

in the modes of the reference, in which signal and noise are independent.  The groups g go by the
variance of a mode in units of its noise: the strongest, the next 3, the next 12, 48 and so on.
a = 1 and b = 0, no correction, until they are fitted (:mod:`spherediff.calibrate`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_KNOTS = tuple(range(-3, 4))


class Calibration(nn.Module):
    """The tables a and b, shape (knots, groups).

    Args:
        std: of the modes, in units of the noise, shape (channels, n).
    """

    knots: Tensor
    group: Tensor
    a: Tensor
    b: Tensor

    def __init__(self, std: Tensor) -> None:
        super().__init__()
        group = _groups(std)
        shape = (len(_KNOTS), int(group.max()) + 1)
        self.register_buffer("group", group, persistent=False)
        self.register_buffer("knots", torch.tensor(_KNOTS).to(std), persistent=False)
        self.register_buffer("a", torch.ones(shape).to(std))
        self.register_buffer("b", torch.zeros(shape).to(std))

    def reset(self) -> None:
        """No correction."""
        self.a.fill_(1)
        self.b.zero_()

    def forward(self, F: Tensor, z: Tensor, log_noise: Tensor) -> Tensor:
        """a F + b z; F and z of shape (*batch, channels, n), log(σ/α) of shape (*batch,)."""
        s = log_noise.clamp(_KNOTS[0], _KNOTS[-1])[..., None]
        hats = (1 - (s - self.knots).abs()).clamp(min=0)  # (*batch, knots), they sum to 1
        a, b = ((hats @ table.to(hats))[..., self.group] for table in (self.a, self.b))
        return a * F + b * z


def _groups(std: Tensor) -> Tensor:
    """⌈log₄(k + 1)⌉ of the k-th strongest mode, k = 0, 1, …; shape of ``std``."""
    order = std.flatten().argsort(descending=True, stable=True)
    of_rank = [(k.bit_length() + 1) // 2 for k in range(len(order))]
    group = torch.empty_like(order)
    group[order] = torch.tensor(of_rank, device=order.device)
    return group.view(std.shape)
