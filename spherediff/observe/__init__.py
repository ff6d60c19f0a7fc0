"""Linear observations of a field: y = Hx + noise.

x are real orthonormal coefficients, (n,) or (channels, n); H has m rows and is applied together
with its exact transpose, ⟨Hx, y⟩ = ⟨x, Hᵀy⟩, never stored.  With S_c the synthesis of channel c on
a grid, w the weights of a region times the areas of the points, b_ℓ a gain per degree:

    Values         (Hx)_j = (S_c x)_j                  at the points where a mask is true
    Component      (Hx)_j = (S (E, B))_j               u or v of a vector field, likewise
    Means          (Hx)_k = Σ_j w_kj (S_c x)_j / Σ_j w_kj
    Averaged       (Hx)_k = Σ_q w_kq (H'x)_kq          of as many numbers for each k
    Coefficients   (Hx)_i = x_i                        of selected coefficients
    Filtered       Hx = H'(b x)                        a beam or another smoothing before H'
    Dense          Hx                                  by a matrix
    Stacked        Hx = (H'x, H''x, …)

A subclass of :class:`Operator` has ``event_shape``, ``size``, H and Hᵀ on plain tensors.
"""

from spherediff.observe.coefficients import Coefficients
from spherediff.observe.combined import Dense, Filtered, Stacked, gaussian_beam
from spherediff.observe.means import Averaged, Means
from spherediff.observe.observation import Observation
from spherediff.observe.operator import Operator
from spherediff.observe.values import Component, Values

__all__ = [
    "Averaged",
    "Coefficients",
    "Component",
    "Dense",
    "Filtered",
    "Means",
    "Observation",
    "Operator",
    "Stacked",
    "Values",
    "gaussian_beam",
]
