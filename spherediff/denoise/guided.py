"""Denoisers under labels, and guidance by them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from spherediff.denoise.base import Denoiser
from spherediff.process import ForwardProcess
from spherediff.reference import Reference


class Conditional(Protocol):
    """A law that depends on a label."""

    @property
    def process(self) -> ForwardProcess: ...

    @property
    def reference(self) -> Reference: ...

    def given(self, condition: Tensor) -> Denoiser:
        """The denoiser under labels of shape (*batch, k); all zeros: nothing is told."""
        ...


class GuidedDenoiser(Denoiser):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6), with w = 1 + their w.

    Between and beyond the denoiser of all fields, m_0, and that of a label's, m_c,

        m_w = m_0 + w (m_c − m_0),    and F_w = F_0 + w (F_c − F_0) likewise:

    w = 0 is not told, w = 1 is the conditional law, w > 1 goes for what is typical of the label:
    its score is that of p_t p_t(c | x)^w, which no forward process leads to, so that the fields
    have no law known in advance; the higher w, the less they differ from one another.

    Args:
        denoiser: under a label and without.
        condition: label c, shape (*batch, k) or (k,).
        weight: w; the label alone is evaluated for 1, and nothing else than the null label for 0.

    Raises:
        ValueError: a weight that is not finite.
    """

    def __init__(self, denoiser: Conditional, condition: Tensor, weight: float) -> None:
        if not math.isfinite(weight):
            raise ValueError(f"expected a finite weight of guidance, got {weight}")
        self.process, self.denoiser = denoiser.process, denoiser
        self.condition, self.weight = condition, weight

    @property
    def reference(self) -> Reference:
        """That of the denoiser, whatever the label."""
        return self.denoiser.reference

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m_w(x, t)."""
        return self._guided(lambda denoiser, x: denoiser(x, t), x)

    def residual(self, z: Tensor, t: Tensor | float) -> Tensor:
        """F_w(z, t)."""
        return self._guided(lambda denoiser, z: denoiser.residual(z, t), z)

    def _guided(self, evaluate: Callable[[Denoiser, Tensor], Tensor], x: Tensor) -> Tensor:
        w, told = self.weight, self.condition
        if w in (0, 1):
            return evaluate(self.denoiser.given(w * told), x)
        told = told.expand(*x.shape[: -len(self.process.event_shape)], -1)
        both = self.denoiser.given(torch.stack([told, torch.zeros_like(told)]))
        with_label, without = evaluate(both, x.expand(2, *x.shape))
        return without + w * (with_label - without)
