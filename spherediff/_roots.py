"""Square roots R of prior covariances, S = RRᵀ, as conditioning needs them."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from spherediff._linear import Operator as Map
from spherediff.covariance import Covariance
from spherediff.gaussian import GaussianField, MultivariateGaussianField
from spherediff.harmonics import expand
from spherediff.streams import NormalSource

Prior = GaussianField | MultivariateGaussianField | Covariance


class Root(Protocol):
    """R with S = RRᵀ, from flat white noise (*batch, size) to fields (*batch, *event_shape)."""

    size: int
    device: torch.device
    variance: Tensor  # diagonal of S

    def white(self, source: NormalSource) -> Tensor:
        """White noise of the source's samples."""
        ...

    def apply(self, z: Tensor) -> Tensor:
        """R z."""
        ...

    def transpose(self, x: Tensor) -> Tensor:
        """Rᵀ x."""
        ...

    def told(self, t: Tensor) -> Tensor:
        """Diagonal of RᵀtR for a diagonal t, shape (*event_shape)."""
        ...

    def preconditioner(self, t: Tensor) -> Map:
        """(1 + RᵀtR)⁻¹."""
        ...


class LowRankRoot:
    """R = (√D, Uᵀ) of S = D + UᵀU."""

    def __init__(self, diagonal: Tensor, factor: Tensor) -> None:
        self.event_shape, self.device = diagonal.shape, diagonal.device
        self.std, self.U = diagonal.sqrt().flatten(), factor.flatten(1)
        self.variance = diagonal + factor.square().sum(0)
        self.n, self.k = len(self.std), len(self.U)
        self.size = self.n + self.k

    def white(self, source: NormalSource) -> Tensor:
        z = source.normal(self.event_shape, torch.float64).flatten(1)
        return torch.cat([z, source.normal((self.k,), torch.float64)], -1) if self.k else z

    def apply(self, z: Tensor) -> Tensor:
        x = self.std * z[..., : self.n] + z[..., self.n :] @ self.U
        return x.unflatten(-1, self.event_shape)

    def transpose(self, x: Tensor) -> Tensor:
        flat = x.flatten(-len(self.event_shape))
        return torch.cat([self.std * flat, flat @ self.U.T], -1)

    def told(self, t: Tensor) -> Tensor:
        t = t.flatten()
        return torch.cat([self.std.square() * t, self.U.square() @ t])

    def preconditioner(self, t: Tensor) -> Map:
        """Block elimination; the Schur complement is G = 1 + U t/(1 + Dt) Uᵀ."""
        t = t.flatten()
        own = 1 + self.std.square() * t
        coupling = (self.U * (self.std * t)).T  # (n, k)
        G = torch.eye(self.k).to(t) + (self.U * (t / own)) @ self.U.T
        factor = torch.linalg.cholesky(G)

        def solve(r: Tensor) -> Tensor:
            first, last = r[..., : self.n] / own, r[..., self.n :]
            rows = (last - first @ coupling).reshape(math.prod(last.shape[:-1]), self.k)
            last = torch.cholesky_solve(rows.T, factor).T.reshape(last.shape)  # one system for all
            return torch.cat([first - (last @ coupling.T) / own, last], -1)

        return solve


class ChannelRoot:
    """R = L_ℓ over the channels, C_ℓ = L_ℓL_ℓᵀ."""

    def __init__(self, field: MultivariateGaussianField) -> None:
        self.event_shape, self.device = field.event_shape, field.device
        self.size = math.prod(self.event_shape)
        C = field.cross_spectrum.permute(1, 2, 0).to(self.device)  # (channels, channels, lmax+1)
        L = torch.linalg.cholesky(field.cross_spectrum).permute(1, 2, 0).to(self.device)
        self.variance = expand(C.diagonal().T)
        self.L = expand(L)

    def white(self, source: NormalSource) -> Tensor:
        return source.normal(self.event_shape, torch.float64).flatten(1)

    def apply(self, z: Tensor) -> Tensor:
        return torch.einsum("abn,...bn->...an", self.L, z.unflatten(-1, self.event_shape))

    def transpose(self, x: Tensor) -> Tensor:
        return torch.einsum("abn,...an->...bn", self.L, x).flatten(-2)

    def told(self, t: Tensor) -> Tensor:
        return torch.einsum("abn,an->bn", self.L.square(), t).flatten()

    def preconditioner(self, t: Tensor) -> Map:
        channels = torch.eye(self.event_shape[0]).to(t)
        P = channels + torch.einsum("abn,an,acn->nbc", self.L, t, self.L)
        inverse = torch.linalg.inv(P)

        def solve(r: Tensor) -> Tensor:
            by_channel = r.unflatten(-1, self.event_shape)
            return torch.einsum("nbc,...cn->...bn", inverse, by_channel).flatten(-2)

        return solve


def root_of(prior: Prior) -> Root:
    """R of a prior, float64."""
    if isinstance(prior, MultivariateGaussianField):
        return ChannelRoot(prior)
    if isinstance(prior, GaussianField):
        D = expand(prior.degree_variance.to(prior.device))
        return LowRankRoot(D, D.new_zeros(0, *D.shape))
    return LowRankRoot(prior.diagonal.detach().double(), prior.factor.detach().double())
