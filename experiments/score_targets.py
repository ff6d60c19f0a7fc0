"""How noisy are the targets of score regression, and the gradients they give, against time?

    python experiments/score_targets.py

Data are eight Gaussians, the forward equation Langevin in U = 2 Σ log cosh x_i.  In classes of
log t are printed

    target        E(δ²) per coordinate, times t;
    restarted     the same of the weight of the second half of each path alone, times t;
    Bismut        the same of the Bismut–Elworthy–Li weight, times t;
    controlled    what part of the variance of δ is left when the differences of the three, whose
                  mean given X_t is 0, are subtracted with the best coefficients;
    gradient      standard deviation of the gradient of a mini-batch of 256, Euclidean over all
                  weights of a network that has begun to learn: raw, and preconditioned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spherediff.malliavin import (
    Path,
    bismut_elworthy_li_weight,
    discrete_weight,
    euler_maruyama,
)
from spherediff.malliavin.processes import Langevin, log_cosh
from spherediff.malliavin.regression import (
    Examples,
    Perceptron,
    Reference,
    ScoreRegression,
    fit_score,
    log_uniform_times,
    score_targets,
)

CLASSES = ((1e-3, 4e-3), (4e-3, 1.6e-2), (1.6e-2, 0.06), (0.06, 0.25), (0.25, 1.0), (1.0, 4.0))
PATHS, STEPS, BATCHES = 4096, 16, 24


def eight_gaussians(count: int, generator: torch.Generator) -> Tensor:
    angle = torch.randint(8, (count,), generator=generator) * math.pi / 4
    centre = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.1 * torch.randn(count, 2, generator=generator)


def weights(process: Langevin, t: Tensor, generator: torch.Generator) -> list[Tensor]:
    """δ of whole paths, of their second halves, and Bismut's."""
    x0 = eight_gaussians(len(t), generator).double()
    times = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)[:, None] * t
    path = euler_maruyama(process.sde, x0, times, generator=generator)
    half = STEPS // 2
    rest = Path(path.times[half:], path.states[half:], path.increments[half:], path.scheme)
    whole = discrete_weight(process.sde, path)
    return [
        whole,
        discrete_weight(process.sde, rest),
        bismut_elworthy_li_weight(process.sde, path),
    ]


def left_by_control(whole: Tensor, others: list[Tensor]) -> float:
    """Residual variance of δ after regression on the differences, as a part of the whole."""
    target = whole.flatten()
    differences = torch.stack([(other - whole).flatten() for other in others], 1)
    solution = torch.linalg.lstsq(differences, target[:, None]).solution[:, 0]
    return float((target - differences @ solution).var() / target.var())


def gradient_noise(model: ScoreRegression, examples: Examples) -> float:
    gradients = []
    for part in range(BATCHES):
        model.zero_grad()
        model.loss(examples[slice(256 * part, 256 * (part + 1))]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.network.parameters()]))
    return float(torch.stack(gradients).var(0).sum().sqrt())


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    process = Langevin(log_cosh)

    def pool(count: int, low: float, high: float) -> Examples:
        t = log_uniform_times(count, low, high, generator=generator)
        x0 = eight_gaussians(count, generator)
        return score_targets(process.sde, x0, t, largest_step=0.1, generator=generator)

    pilot = pool(12_000, 1e-3, 4.0)
    models = []
    for reference in (Reference.identity(2), Reference.fit(pilot)):
        model = ScoreRegression(Perceptron(2, width=64, generator=generator), reference)
        fit_score(model, pilot, steps=50, generator=generator)
        models.append(model)
    names = ("t", "target", "restarted", "Bismut", "controlled", "raw grad.", "precond. grad.")
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for low, high in CLASSES:
        t = log_uniform_times(PATHS, low, high, generator=generator).double()
        deltas = weights(process, t, generator)
        sizes = [float((t[:, None] * delta.square()).mean()) for delta in deltas]
        examples = pool(256 * BATCHES, low, high)
        noise = [gradient_noise(model, examples) for model in models]
        cells = [f"{size:.3g}" for size in sizes]
        cells += [f"{left_by_control(deltas[0], deltas[1:]):.2f}", *(f"{x:.3g}" for x in noise)]
        print(f"| {low:g} to {high:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
