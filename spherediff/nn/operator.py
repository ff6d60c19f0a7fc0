"""A spherical neural operator: coefficients in, coefficients out, nonlinear on the grid between.

With S the synthesis on the Gauss–Legendre grid, A = S⁻¹ its analysis, e an embedding of
log(σ_t/α_t) and of what else is known, such as the time of the year, and u and w the two views of
:class:`~spherediff.denoise.NeuralDenoiser`, preconditioned coefficients (unit variance in each) and
the best linear estimate of the field,

    lift     (y, y'') = y' = g_ℓ(e) (u, w)
             h = W (S y', ∇S y', p S y'') + V (1 + v(e)) s,
    block    z = (1 + γ(e)) h + β(e)
             (y, y') = R_ℓ (1 + r_ℓ(e)) A z
             h ← h + B φ(K (S y, ∇S y') + D z + c)
    project  F = (1 + q_ℓ(e)) A(O h)

s being positional fields, sin(latitude) and its square, p the amplitude that each channel was
divided by, one if by none: a value that is exceeded nowhere is one number for a nonlinearity that
sees the field undivided.  W, V, B, K, D, O act on channels alone; R_ℓ is a full matrix between
channels for each degree, the convolution that commutes with every rotation; g, v, r, q are gains
for each degree or field that depend on the noise, as the gains of a Wiener filter do.  R_ℓ and what
the noise adds to the gains are piecewise linear in the degree, with a knot for each octave: what
holds at one degree holds nearly so at the next, and the kernels of the convolutions are smooth.

Such a convolution is alike in all directions.  The slopes ∇S y', eastward and poleward, of the
input and of some of its results tell directions apart, and with them fronts, jets and what they
carry along.  They leave one symmetry more than the rotations about the axis: to mirror the fields
in the equator, as the laws of the atmosphere nearly allow.  Only the positional fields, the sine of
the latitude and p break these: they let the operator know where land, mountains and storm tracks
are.  The positional fields are learned; some start as what is known beforehand, such as the yearly
cycle, and their gains v make of it what holds at the time of the year.  Everything but the grid, on
which φ = GELU acts, is free of resolution.

O starts at zero, so that an untrained operator is F = 0 and the denoiser around it the exact
Wiener filter.  There is no normalisation layer: the input has unit variance at every noise level
by construction, each block adds to the residual stream with a small initial B, and dividing by a
map's own variance would hide its amplitude, which rare strong events are made of.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from spherediff import harmonics
from spherediff.nn.transform import Transform

_FREQUENCIES = 8


@dataclass(frozen=True)
class OperatorConfig:
    """Everything that rebuilds a :class:`SphericalOperator` but its weights.

    Attributes:
        lmax: band limit of input and output.
        channels: number of physical fields.
        width: channels of the residual stream on the grid.
        blocks: number of residual blocks.
        hidden: channels inside a block, after its first product.
        slopes: channels inside a block whose slopes eastward and poleward enter its nonlinearity,
            as do those of the input; 0 for none of either, and a network that is alike in all
            directions but for the positional fields.
        lifts: differently filtered copies of each preconditioned field that enter the grid.
        positional: learned positional fields that start at random.
        static: further ones, which start as fields that are known beforehand.
        embedding: size of the embedding of the noise level.
        conditions: numbers that the law of the field depends on, such as the time of the year.
        oversampling: grid latitudes divided by lmax + 1; above 1 the products that the
            nonlinearity makes alias less.
    """

    lmax: int
    channels: int
    width: int = 32
    blocks: int = 4
    hidden: int = 64
    slopes: int = 8
    lifts: int = 4
    positional: int = 8
    static: int = 0
    embedding: int = 64
    conditions: int = 0
    oversampling: float = 1.0

    def __post_init__(self) -> None:
        for name in ("channels", "width", "blocks", "hidden", "lifts", "embedding"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lmax", "slopes", "positional", "static", "conditions"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.oversampling < 1:
            raise ValueError(f"oversampling must be at least 1, got {self.oversampling}")

    def to_dict(self) -> dict[str, Any]:
        """The attributes as JSON can hold them."""
        return asdict(self)


class _NoiseEmbedding(nn.Module):
    """Smooth features of log(σ/α): cosines and sines of wavelengths 16 down to 2, then an MLP."""

    frequencies: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies", math.pi / 8 * (1 + torch.arange(_FREQUENCIES)), persistent=False
        )
        self.mlp = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU()
        )

    def forward(self, log_noise: Tensor) -> Tensor:
        phase = log_noise[:, None] * self.frequencies
        return self.mlp(torch.cat([phase.cos(), phase.sin()], dim=-1))


def _small_linear(inputs: int, outputs: int, std: float = 0.0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


class _ByOctave(nn.Module):
    """Numbers for each degree, piecewise linear between degrees 0, 1, 3, 7, 15, … and lmax."""

    hats: Tensor

    def __init__(self, lmax: int) -> None:
        super().__init__()
        knots = sorted({2**k - 1 for k in range((lmax + 1).bit_length())} | {lmax})
        hats = [np.interp(np.arange(lmax + 1), knots, one) for one in np.eye(len(knots))]
        self.register_buffer("hats", torch.tensor(np.array(hats)).float(), persistent=False)

    @property
    def knots(self) -> int:
        """How many degrees the others lie between."""
        return len(self.hats)

    def forward(self, values: Tensor) -> Tensor:
        """Values at the knots, (knots, …), to those at every degree, (lmax + 1, …)."""
        return torch.tensordot(self.hats.T.to(values), values, dims=1)


class _DegreeGain(nn.Module):
    """A gain for each degree and channel that depends on the noise: (B, E) → (lmax + 1, 1, B, K).

    It multiplies tables of coefficients (lmax + 1, 2·lmax + 1, B, K).
    """

    def __init__(self, embedding: int, initial: Tensor) -> None:
        super().__init__()
        degrees, self.channels = initial.shape
        self.mean = nn.Parameter(initial.clone())
        self.by_octave = _ByOctave(degrees - 1)
        self.layer = _small_linear(embedding, self.by_octave.knots * self.channels)

    def forward(self, embedded: Tensor) -> Tensor:
        change = self.layer(embedded).view(len(embedded), -1, self.channels).transpose(0, 1)
        return (self.mean[:, None] + self.by_octave(change))[:, None]


class SpectralConvolution(nn.Module):
    """Mix channels by one matrix for each degree: a_{ℓm} → R_ℓ a_{ℓm}.

    By Schur's lemma these are the linear maps between scalar fields that commute with every
    rotation of the sphere; here R_ℓ is piecewise linear between degrees 0, 1, 3, 7, 15, … and lmax.
    Acts on tables of shape (lmax + 1, 2·lmax + 1, B, inputs).
    """

    def __init__(self, lmax: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.by_octave = _ByOctave(lmax)
        shape = self.by_octave.knots, inputs, outputs
        self.weight = nn.Parameter(torch.randn(shape) / math.sqrt(inputs))

    def forward(self, table: Tensor) -> Tensor:
        mixed = torch.bmm(table.flatten(1, 2), self.by_octave(self.weight))
        return mixed.view(*table.shape[:3], -1)


class _Block(nn.Module):
    def __init__(self, config: OperatorConfig, transform: Transform) -> None:
        super().__init__()
        width, hidden, slopes = config.width, config.hidden, config.slopes
        self.transform, self.slopes = transform, slopes
        self.modulation = _small_linear(config.embedding, 2 * width)
        self.gain = _DegreeGain(config.embedding, torch.ones(config.lmax + 1, width))
        self.convolution = SpectralConvolution(config.lmax, width, width + slopes)
        self.far = nn.Linear(width + 2 * slopes, hidden, bias=False)
        self.near = nn.Linear(width, hidden)
        self.out = _small_linear(hidden, width, std=0.1 / math.sqrt(hidden))

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        scale, shift = self.modulation(embedded).chunk(2, dim=-1)
        z = torch.addcmul(shift, h, 1 + scale)  # (nlat, nlon, B, width)
        a = self.transform.analysis(z.flatten(2)).unflatten(2, z.shape[2:])
        a = self.convolution(a * self.gain(embedded))
        far = _with_slopes(self.transform, *a.split((z.shape[-1], self.slopes), dim=-1))
        return h + self.out(functional.gelu(self.far(far) + self.near(z)))


class SphericalOperator(nn.Module):
    """Network on coefficients and on the Gauss–Legendre grid; see the module's formulas.

    Args:
        lmax: band limit of input and output.
        channels: number of physical fields.
        options: the other attributes of :class:`OperatorConfig`.

    Raises:
        ValueError: an argument is out of its range.
    """

    latitude_fields: Tensor
    amplitude: Tensor

    def __init__(self, lmax: int, channels: int, **options: Any) -> None:
        super().__init__()
        self.config = config = OperatorConfig(lmax, channels, **options)
        nlat = math.ceil(config.oversampling * (lmax + 1))
        self.transform = Transform(lmax, nlat, 2 * nlat)
        self.embedding = _NoiseEmbedding(config.embedding)
        self.condition = nn.Parameter(torch.randn(config.conditions, config.embedding) / 2)
        passes = _low_passes(lmax, config.lifts).repeat_interleave(channels, dim=1)
        initial = torch.cat([passes, torch.ones(lmax + 1, channels)], dim=1)
        self.lift_gain = _DegreeGain(config.embedding, initial)
        self.sloping = initial.shape[1] if config.slopes else 0
        self.lift = nn.Linear(initial.shape[1] + 2 * self.sloping + channels, config.width)
        self.register_buffer(
            "latitude_fields",
            torch.stack([self.transform.sin_latitude() ** k for k in (1, 2)], dim=-1).float(),
            persistent=False,
        )
        fields = config.positional + config.static
        self.positional = nn.Parameter(
            torch.randn(harmonics.count(lmax), fields) / math.sqrt(lmax + 1)
        )
        one = torch.zeros(harmonics.count(lmax), channels)
        one[0] = math.sqrt(4 * math.pi)
        self.register_buffer("amplitude", one)
        self.place_gain = _small_linear(config.embedding, fields + 2)
        self.place = nn.Linear(fields + 2, config.width, bias=False)
        self.blocks = nn.ModuleList(_Block(config, self.transform) for _ in range(config.blocks))
        self.output_gain = _DegreeGain(config.embedding, torch.ones(lmax + 1, channels))
        self.project = _small_linear(config.width, channels)

    @torch.no_grad()
    def start_from(self, static: Tensor, amplitude: Tensor) -> None:
        """Let the last positional fields be those known beforehand, and the amplitude what it is.

        Args:
            static: shape (static, n).
            amplitude: p, shape (channels, n).
        """
        self.positional[:, self.config.positional :] = static.T
        self.amplitude.copy_(amplitude.T)

    def forward(
        self, u: Tensor, w: Tensor, log_noise: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """Evaluate F; it depends on the degrees up to the network's lmax and is zero above.

        Args:
            u: preconditioned coefficients, shape (B, channels, n).
            w: the best linear estimate, shape of ``u``.
            log_noise: log(σ_t/α_t) of each, shape (B,).
            condition: shape (B, conditions); may be left out if there are none.

        Returns:
            F, shape (B, channels, n).

        Raises:
            ValueError: u has another number of channels, or fewer coefficients, than the network,
                w another shape than u; or another number of conditions.
        """
        channels, known = self.config.channels, harmonics.count(self.config.lmax)
        if u.ndim != 3 or u.shape[1] != channels or u.shape[2] < known:
            raise ValueError(
                f"the network acts on (batch, {channels} channels, {known} coefficients of lmax "
                f"{self.config.lmax} or more), got shape {tuple(u.shape)}"
            )
        if w.shape != u.shape:
            raise ValueError(
                f"the linear estimate has shape {tuple(w.shape)}, the fields {tuple(u.shape)}"
            )
        given = u.new_zeros(len(u), 0) if condition is None else condition
        if tuple(given.shape) != (len(u), self.config.conditions):
            raise ValueError(
                f"the network expects conditions of shape ({len(u)}, {self.config.conditions}), "
                f"got {tuple(given.shape)}: tell it what the fields depend on, such as their dates"
            )
        embedded = self.embedding(log_noise) + given @ self.condition
        h = self._lifted(torch.cat([u.repeat(1, self.config.lifts, 1), w], dim=1), embedded)
        for block in self.blocks:
            h = block(h, embedded)
        a = self.transform.analysis(self.project(h).flatten(2)).unflatten(2, u.shape[:2])
        a = self.transform.pack((a * self.output_gain(embedded)).flatten(2))
        F = a.view(-1, *u.shape[:2]).permute(1, 2, 0)
        return functional.pad(F, (0, u.shape[2] - known))

    def _lifted(self, fields: Tensor, embedded: Tensor) -> Tensor:
        """Enter the grid: (B, copies, n) → (nlat, nlon, B, width)."""
        known = fields[..., : harmonics.count(self.config.lmax)].permute(2, 0, 1)
        table = self.transform.unpack(known.flatten(1)).unflatten(2, known.shape[1:])
        table = table * self.lift_gain(embedded)
        values = _with_slopes(self.transform, table, table[..., : self.sloping])
        amplitude = self.transform.synthesis(self.transform.unpack(self.amplitude))[:, :, None]
        estimate = values[..., table.shape[-1] - self.config.channels : table.shape[-1]]
        return self.lift(torch.cat([values, amplitude * estimate], -1)) + self._place(embedded)

    def _place(self, embedded: Tensor) -> Tensor:
        """What the network knows of each place, (nlat, nlon, B, width)."""
        fields = self.transform.synthesis(self.transform.unpack(self.positional))
        latitude = self.latitude_fields[:, None].expand(-1, fields.shape[1], -1)
        matrix = (1 + self.place_gain(embedded))[:, None] * self.place.weight  # (B, width, fields)
        values = torch.cat([fields, latitude], dim=-1) @ matrix.flatten(0, 1).T
        return values.unflatten(-1, matrix.shape[:2])


def _with_slopes(transform: Transform, fields: Tensor, sloping: Tensor) -> Tensor:
    """Values of fields, then slopes of others eastward, then poleward, on the grid.

    Tables (lmax + 1, 2·lmax + 1, B, K) and (…, B, K') to (nlat, nlon, B, K + 2K').
    """
    parts = (transform.synthesis(fields.flatten(2)), *transform.slopes(sloping.flatten(2)))
    batch = fields.shape[2]
    return torch.cat([x.unflatten(2, (batch, x.shape[2] // batch)) for x in parts], dim=-1)


def _low_passes(lmax: int, count: int) -> Tensor:
    """A bank of ``count`` Gaussian low passes, the first of them 1, each with unit output variance.

    The cut-off falls by halves; "output variance" is the pointwise variance on the sphere when
    every input coefficient has variance one.  Shape (lmax + 1, count).
    """
    ell = torch.arange(lmax + 1, dtype=torch.float64)
    cutoff = (lmax + 1) / 2.0 ** torch.arange(count)
    gain = torch.exp(-((ell[:, None] / cutoff) ** 2))
    gain[:, 0] = 1
    variance = ((2 * ell + 1)[:, None] * gain**2).sum(0) / (4 * math.pi)
    return (gain / variance.sqrt()).float()
