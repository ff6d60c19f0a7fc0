"""What a network's residual is corrected by, noise level by noise level.

    F ← a_g (e F + c_ℓ z + d) + b_g z

The tables a to d are linear between knots of s = log(σ/α), and constant beyond.  a and b are of
groups g of the reference's modes, in which signal and noise are independent: by the variance of a
mode in units of its noise, the strongest, the next 3, the next 12, 48 and so on.  Of the fields of
coefficients that z makes, c is of each channel and degree, d of each coefficient and e of each
channel.  a = e = 1 and b = c = d = 0, no correction, until they are fitted
(:mod:`spherediff.calibrate`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spherediff import harmonics
from spherediff._precision import full_precision

_KNOTS = tuple(range(-3, 4))


class Calibration(nn.Module):
    """The tables a to e of a denoiser, as buffers.

    What is beyond the first n coefficients or modes of a channel is left as it is.

    Args:
        std: of the modes, in units of the noise, shape (channels, n).
    """

    knots: Tensor
    group: Tensor
    degree: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    e: Tensor

    def __init__(self, std: Tensor) -> None:
        super().__init__()
        group, lmax = _groups(std), harmonics.band_limit(std.shape[-1])
        groups = int(group.max()) + 1
        place = {"device": std.device, "dtype": std.dtype}
        self.register_buffer("group", group, persistent=False)
        degree = harmonics.degrees(lmax).to(std.device)
        self.register_buffer("degree", degree, persistent=False)
        self.register_buffer("knots", torch.tensor(_KNOTS, **place), persistent=False)
        self.register_buffer("a", torch.ones(len(_KNOTS), groups, **place))
        self.register_buffer("b", torch.zeros(len(_KNOTS), groups, **place))
        self.register_buffer("c", torch.zeros(len(_KNOTS), len(std), lmax + 1, **place))
        self.register_buffer("d", torch.zeros(len(_KNOTS), *std.shape, **place))
        self.register_buffer("e", torch.ones(len(std), **place))

    def reset(self) -> None:
        """No correction."""
        for table in (self.a, self.e):
            table.fill_(1)
        for table in (self.b, self.c, self.d):
            table.zero_()

    @full_precision
    def fields(self, F: Tensor, z: Tensor, log_noise: Tensor) -> Tensor:
        """e F + c z + d of fields of shape (*batch, channels, n), log(σ/α) of shape (*batch,)."""
        hats = self._hats(log_noise)
        c, d = (torch.tensordot(hats, table.to(hats), dims=1) for table in (self.c, self.d))
        n, e = len(self.degree), self.e.to(hats)[:, None]
        known = e * F[..., :n] + c[..., self.degree] * z[..., :n] + d
        return torch.cat([known, F[..., n:]], dim=-1)

    @full_precision
    def modes(self, F: Tensor, z: Tensor, log_noise: Tensor) -> Tensor:
        """a F + b z of modes, shapes as for :meth:`fields`."""
        hats = self._hats(log_noise)
        a, b = ((hats @ table.to(hats))[..., self.group] for table in (self.a, self.b))
        n = len(self.degree)
        return torch.cat([a * F[..., :n] + b * z[..., :n], F[..., n:]], dim=-1)

    def _hats(self, log_noise: Tensor) -> Tensor:
        """Weights of the knots, (*batch, knots); they sum to 1."""
        s = log_noise.clamp(_KNOTS[0], _KNOTS[-1])[..., None]
        return (1 - (s - self.knots.to(s)).abs()).clamp(min=0)


def _groups(std: Tensor) -> Tensor:
    """⌈log₄(k + 1)⌉ of the k-th strongest mode, k = 0, 1, …; shape of ``std``."""
    order = std.flatten().argsort(descending=True, stable=True)
    of_rank = [(k.bit_length() + 1) // 2 for k in range(len(order))]
    group = torch.empty_like(order)
    group[order] = torch.tensor(of_rank, device=order.device)
    return group.view(std.shape)
