"""Skorokhod weights: E[−δ(u_k) | X_T = y] = ∂_k log p_T(y).

Any field u_k with ⟨DX_T, u_k⟩ = e_k will do.  Three are offered.

*The variation formula* (arXiv 2507.05550; for additive noise 2503.16917).  With the variations Y
and Z, V_s = Y_s⁻¹σ(s, X_s), C = ∫V_sV_sᵀ ds and F = C⁻¹Y_T⁻¹, the field is u = V_sᵀF and

    δ(u_k) = F_k·∫V_s dB_s − Σ_l ∫(D^l_s F_k)·V^l_s ds.

For a = V^l_s, G = Y_s⁻¹(Z_s[·, a] − ∂σ_l Y_s) and r ≥ s,

    D^l_s V_r = M_r a + G V_r,   M_r a = Y_r⁻¹∂σ(X_r)[Y_r a] − Y_r⁻¹Z_r[·, a]V_r,
    P_s a = ∫_s^T (M_r a)V_rᵀ dr,   Q_s = ∫_s^T V_rV_rᵀ dr,
    D^l_s C = P_s a + (P_s a)ᵀ + G Q_s + Q_s Gᵀ,
    D^l_s Y_T = Z_T[·, a] − Y_T G,   D^l_s F = −C⁻¹(D^l_s C)F − F(D^l_s Y_T)Y_T⁻¹,

so that all integrals over r are reverse cumulative sums.

*Bismut–Elworthy–Li*: u = w(s) σ⁻¹Y_s Y_T⁻¹ with ∫w = 1 needs no C.

*The discrete weight* is exact for the law of the Euler–Maruyama path X_T = Φ(ξ), ξ standard
normal.  With J = ∂Φ/∂ξ, B = (JJᵀ)⁻¹ and the field u = JᵀB, the divergence is

    δ(u) = B (Jξ − ΔΦ + q + r),   r = tr(JᵀBJ ∂²Φ),   q_c = Σ_ab B_ab ∂²Φ_b[J_a, J_c],

where the second derivatives are sums over the steps.  With R_n = ∂X_T/∂X_n, the covariance
S_n = A_n S_{n−1}A_nᵀ + hσσᵀ and N_n = S_nR_nᵀ,

    ∂²Φ[p, p'] = Σ_n R_{n+1}(H_n[δx_n, δ'x_n] + Σ_l ∂σ_l[δx_n p'^l_n + δ'x_n p^l_n]),

each direction J_a giving δx_n = N_n e_a.  No Y is inverted, and the cost is linear in the steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spherediff.malliavin.sde import SDE, Path
from spherediff.malliavin.variation import (
    Linearisation,
    first_variation,
    linearise,
    second_variation,
)

# Numbers that the derivatives of one part of the paths may hold: 64 MB in float64.
_LARGEST_PART = 1 << 23


def variation_weight(sde: SDE, path: Path) -> Tensor:
    """δ(u_k) by the variation formula, shape (N, d).

    Cost and memory are linear in the steps; the paths are taken in parts so that memory stays
    bounded in their number.

    Args:
        sde: the equation that made the path.
        path: simulated paths.

    Raises:
        ValueError: the Malliavin covariance is singular; the message names the direction that the
            noise does not reach and its eigenvalue.
    """
    return _by_parts(_variation_weight, sde, path)


def bismut_elworthy_li_weight(
    sde: SDE, path: Path, w: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """δ(u_k) for the Bismut–Elworthy–Li field, shape (N, d).

    Args:
        sde: the equation that made the path.
        path: simulated paths.
        w: weight function of the elapsed share of time s/T ∈ [0, 1); it is normalised here, and
            constant if not given.

    Raises:
        ValueError: σ does not have rank d somewhere, or w integrates to zero.
    """
    w = torch.ones_like if w is None else w
    return _by_parts(lambda sde, part: _bismut_elworthy_li_weight(sde, part, w), sde, path)


def discrete_weight(sde: SDE, path: Path) -> Tensor:
    """δ(u_k), exact for the law of the Euler–Maruyama path, shape (N, d).

    Args:
        sde: the equation that made the path.
        path: paths by :func:`~spherediff.malliavin.sde.euler_maruyama`.

    Raises:
        ValueError: another scheme made the path, or the covariance JJᵀ is singular.
    """
    require_euler(path)
    return _by_parts(_discrete_weight, sde, path)


def malliavin_covariance(sde: SDE, path: Path) -> Tensor:
    """γ = Y_T C Y_Tᵀ of each path, shape (N, d, d)."""

    def covariance(sde: SDE, part: Path) -> Tensor:
        linear = linearise(sde, part)
        Y = first_variation(linear)
        V = torch.linalg.solve(Y[:-1], linear.sigma)
        C = torch.einsum("sp,spil,spjl->pij", part.steps, V, V)
        return Y[-1] @ C @ Y[-1].mT

    return _by_parts(covariance, sde, path)


def _variation_weight(sde: SDE, path: Path) -> Tensor:
    linear, Y, Z, inverse, V = _variations(sde, path)
    h = path.steps
    squares = torch.einsum("sp,spil,spjl->spij", h, V, V)
    C = squares.sum(0)
    require_regular(Y[-1] @ C @ Y[-1].mT)
    F = torch.linalg.solve(C, inverse[-1])
    G = _tangent(linear, Y[:-1], Z[:-1], inverse[:-1], V)
    # M_r a, its last axis being that of a
    M = -torch.einsum("spix,spxbk,spbl->spilk", inverse[:-1], Z[:-1], V)
    if linear.dsigma is not None:
        M = M + torch.einsum("spix,spxlb,spbk->spilk", inverse[:-1], linear.dsigma, Y[:-1])
    P = _after(torch.einsum("sp,spilk,spjl->spijk", h, M, V))
    Q = _after(squares)
    half = torch.einsum("spijk,spkl->splij", P, V) + torch.einsum("splix,spxj->splij", G, Q)
    DC = half + half.mT
    DF = -torch.linalg.solve(C[:, None], DC @ F[:, None]) - _second(Y, Z, inverse, G, V, F)
    return _divergence(path, V.mT, F, DF)


def _bismut_elworthy_li_weight(sde: SDE, path: Path, w: Callable[[Tensor], Tensor]) -> Tensor:
    linear, Y, Z, inverse, V = _variations(sde, path)
    elapsed = (path.times[:-1] - path.times[0]) / (path.times[-1] - path.times[0])
    share = w(elapsed)
    total = (share * path.steps).sum(0)
    if not bool((total.abs() > 0).all()):
        raise ValueError("expected a weight function w with an integral other than zero")
    require_regular((linear.sigma @ linear.sigma.mT).flatten(0, 1), "σσᵀ")
    adapted = (share / total)[..., None, None] * torch.linalg.pinv(linear.sigma) @ Y[:-1]
    F = inverse[-1]
    G = _tangent(linear, Y[:-1], Z[:-1], inverse[:-1], V)
    return _divergence(path, adapted, F, -_second(Y, Z, inverse, G, V, F))


def _variations(sde: SDE, path: Path) -> tuple[Linearisation, Tensor, Tensor, Tensor, Tensor]:
    """The derivatives of the steps, Y, Z, Y⁻¹ and V = Y⁻¹σ."""
    linear = linearise(sde, path)
    Y = first_variation(linear)
    inverse = torch.linalg.inv(Y)
    return linear, Y, second_variation(linear, Y), inverse, inverse[:-1] @ linear.sigma


def _tangent(linear: Linearisation, Y: Tensor, Z: Tensor, inverse: Tensor, V: Tensor) -> Tensor:
    """G = Y_s⁻¹(Z_s[·, V^l_s] − ∂σ_l Y_s), shape (s, path, l, i, j)."""
    change = torch.einsum("spijk,spkl->splij", Z, V)
    if linear.dsigma is not None:
        change = change - torch.einsum("spilx,spxj->splij", linear.dsigma, Y)
    return inverse[:, :, None] @ change


def _second(Y: Tensor, Z: Tensor, inverse: Tensor, G: Tensor, V: Tensor, F: Tensor) -> Tensor:
    """F(D^l_s Y_T)Y_T⁻¹ with D^l_s Y_T = Z_T[·, V^l_s] − Y_T G, shape (s, path, l, i, k)."""
    DY = torch.einsum("pijk,spkl->splij", Z[-1], V) - Y[-1][:, None] @ G
    return F[:, None] @ DY @ inverse[-1][:, None]


def _divergence(path: Path, adapted: Tensor, F: Tensor, DF: Tensor) -> Tensor:
    """F_k·∫A_sᵀdB_s − Σ_l ∫(D^l_sF_k)·A^l_s ds for an adapted A of shape (s, path, l, i)."""
    ito = torch.einsum("pik,spli,spl->pk", F, adapted, path.increments)
    return ito - torch.einsum("sp,splik,spli->pk", path.steps, DF, adapted)


def _after(x: Tensor) -> Tensor:
    """Σ_{r>s} x_r: reverse cumulative sums without the present step."""
    return x.sum(0) - x.cumsum(0)


def _discrete_weight(sde: SDE, path: Path) -> Tensor:
    linear, h, dB = linearise(sde, path), path.steps, path.increments
    A, H = linear.A, linear.H
    R = [torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(A.shape[1:])]
    for step in A.flip(0):
        R.append(R[-1] @ step)
    R = torch.stack(R).flip(0)
    squares = torch.einsum("sp,spil,spjl->spij", h, linear.sigma, linear.sigma)
    S = [torch.zeros_like(A[0])]
    for step, square in zip(A, squares, strict=True):
        S.append(step @ S[-1] @ step.mT + square)
    covariance = S[-1]
    require_regular(covariance)
    S = torch.stack(S[:-1])
    B = torch.linalg.inv(covariance)
    N = S @ R[:-1].mT
    after = R[1:]
    J = after @ linear.sigma  # ∂X_T/∂B_s; a step's normal variable ξ has √h of it
    NB = N @ B
    bent = NB @ N.mT - S
    change = torch.einsum("spibc,spbc->spi", H, bent)
    twist = torch.einsum("spibc,spxi,spbx->spc", H, B @ after, N)  # Σ_ab B_ab R_b H[N_a, ·]
    q = torch.einsum("spkc,spk->pc", N, twist)
    if linear.dsigma is not None:
        change = change + 2 * torch.einsum("sp,spilk,spkx,spxl->spi", h, linear.dsigma, NB, J)
        turn = torch.einsum("spxi,spilk->spxlk", B @ after, linear.dsigma)
        q = q + torch.einsum("sp,spxlk,spkx,spcl->pc", h, turn, N, J)
        q = q + torch.einsum("sp,spxlk,spkc,spxl->pc", h, turn, N, J)
    r = torch.einsum("spxi,spi->px", after, change)  # tr(JᵀBJ ∂²Φ) − ΔΦ
    noise = torch.einsum("spil,spl->pi", J, dB)
    return torch.einsum("pki,pi->pk", B, noise + q + r)


def require_euler(path: Path) -> None:
    """Raise unless the path was made by the Euler–Maruyama scheme."""
    if path.scheme != "euler-maruyama":
        raise ValueError(
            f"expected paths by euler_maruyama, got {path.scheme}: this weight belongs to the law"
            " of the Euler–Maruyama scheme"
        )


def require_regular(covariance: Tensor, name: str = "the Malliavin covariance") -> None:
    """Raise if a symmetric matrix (..., d, d) is singular, naming the direction.

    Raises:
        ValueError: the smallest eigenvalue of a matrix is zero at the precision of its dtype.
    """
    eigenvalues, directions = torch.linalg.eigh(covariance)
    smallest, largest = eigenvalues[:, 0], eigenvalues[:, -1]
    ratio = smallest / largest.clamp_min(torch.finfo(covariance.dtype).tiny)
    worst = int(ratio.argmin())
    if float(ratio[worst]) > 10 * covariance.shape[-1] * torch.finfo(covariance.dtype).eps:
        return
    direction = ", ".join(f"{v:.3g}" for v in directions[worst, :, 0].tolist())
    raise ValueError(
        f"{name} is singular: the noise does not reach the direction ({direction}), eigenvalue"
        f" {float(smallest[worst]):.3g} beside {float(largest[worst]):.3g}, so the score does not"
        " exist there; add noise in that direction"
    )


def _by_parts(function: Callable[[SDE, Path], Tensor], sde: SDE, path: Path) -> Tensor:
    n, _, m = path.increments.shape
    d = path.end.shape[-1]
    numbers = n * d**2 * (d + m)  # of one path in the largest arrays
    return torch.cat([function(sde, part) for part in path.split(max(1, _LARGEST_PART // numbers))])
