"""What was observed: numbers and their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spherediff.observe.operator import Operator, require, require_none


@dataclass(frozen=True, eq=False, init=False)
class Observation:
    """Observed numbers y = Hx + ε with independent errors ε_j ~ N(0, N_j).

    Args:
        operator: H.
        values: y, shape (m,), float32 or float64, in the units of what H gives.
        noise_std: √N_j > 0, shape (m,), or one number for all.

    Raises:
        TypeError: values that are not float32 or float64.
        ValueError: shapes that do not fit, values that are not finite, or standard deviations
            that are not positive and finite; the message says how many.
    """

    operator: Operator
    values: Tensor
    noise_std: Tensor

    def __init__(
        self,
        operator: Operator,
        values: Tensor | np.ndarray,
        noise_std: Tensor | np.ndarray | float,
    ) -> None:
        y = torch.as_tensor(values)
        expected = (operator.size,)
        require(y, expected, "observed values", batch=False)
        std = torch.as_tensor(noise_std).to(y)
        if std.ndim:
            require(std, expected, "noise_std", batch=False)
        require_none(~torch.isfinite(y), "observed values must be finite", "leave them out of H")
        require_none(
            ~(torch.isfinite(std) & (std > 0)),
            "noise_std must be positive and finite",
            "leave out what is not observed; for all but exact values use a small positive number",
        )
        object.__setattr__(self, "operator", operator)
        object.__setattr__(self, "values", y)
        object.__setattr__(self, "noise_std", std.expand(expected))

    @property
    def noise_variance(self) -> Tensor:
        """N_j, shape (m,)."""
        return self.noise_std.square()
