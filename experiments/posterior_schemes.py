"""How far from the exact posterior is each scheme, for a number of steps and a level of noise?

    python experiments/posterior_schemes.py

Printed are markdown tables, one for each standard deviation of the observations' errors, in units
of the standard deviation of what is observed.

*Gaussian data* (16 coefficients whose law is not that of the noise γ, 6 stations).  All schemes are
affine in the noise, so that impulses in place of noise give the mean and the covariance of the
output without Monte-Carlo error.  They are compared with kriging in the posterior's own units:

    mean        ‖S^{−1/2}(mean − exact)‖/√n,
    covariance  ‖S^{−1/2}(covariance − S)S^{−1/2}‖_F/√n.

*A mixture of two Gaussian fields* (4 coefficients, 2 stations that observe the mean of both).  Its
posterior is again a mixture.  Errors as above, and that of the weight of its first component, from
8000 draws, whose Monte-Carlo errors are about 0.011 (mean), 0.025 (covariance) and 0.005 (weight),
the same noise in all rows but the last; twisted sampling has 8000 particles, and somewhat larger
errors, since they share ancestors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import spherediff as sd
from spherediff.observe import Observation, Operator, Values
from spherediff.posterior import (
    MomentMatching,
    PseudoinverseGuidance,
    Referenced,
    posterior_reference,
)
from spherediff.reference import CorrelatedReference
from spherediff.sample import Sampler
from spherediff.twisted import TwistedSampler

NOISE = (0.01, 0.3, 3.0)
STEPS = (8, 16, 32, 64)
DRAWS = 8000

Law = tuple[Tensor, Tensor]


class Matrix(Operator):
    """A dense H: quicker than transforms for a few stations and a small lmax."""

    def __init__(self, H: Tensor) -> None:
        super().__init__((H.shape[1],), H.shape[0])
        self.H = H

    def _apply(self, x: Tensor) -> Tensor:
        return x @ self.H.T

    def _transpose(self, y: Tensor) -> Tensor:
        return y @ self.H


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_process(lmax: int) -> sd.OrnsteinUhlenbeck:
    C = 1 / (1.0 + torch.arange(lmax + 1)) ** 2
    return sd.OrnsteinUhlenbeck(sd.GaussianField(sd.Tabulated(C), lmax, dtype=torch.float64))


def stations(law: Law, x: Tensor, latitudes: Sequence[float], noise: float) -> Observation:
    """Values of x at points, scaled to standard deviation one under the law, and errors."""
    n = len(x)
    points = sd.Points(latitudes, [137.5 * k % 360 for k in range(len(latitudes))])
    H = Values(points, (n,))(torch.eye(n, dtype=torch.float64)).T
    H = H / (H @ law[1] @ H.T).diagonal().sqrt()[:, None]
    return Observation(Matrix(H), H @ x + noise * normal(len(H), seed=2), noise)


def kriged(law: Law, observation: Observation) -> tuple[Law, float]:
    """The law given the observation, and the log evidence."""
    (mean, S), H = law, observation.operator.H  # type: ignore[attr-defined]
    A = H @ S @ H.T + torch.diag(observation.noise_variance)
    gain = torch.linalg.solve(A, H @ S).T
    evidence = torch.distributions.MultivariateNormal(H @ mean, A).log_prob(observation.values)
    posterior = mean + gain @ (observation.values - H @ mean), S - gain @ H @ S
    return posterior, float(evidence)


def errors(found: Law, exact: Law) -> tuple[float, float]:
    inverse = torch.linalg.inv(torch.linalg.cholesky(exact[1]))
    root = math.sqrt(len(exact[0]))
    mean = float((inverse @ (found[0] - exact[0])).norm())
    excess = float((inverse @ (found[1] - exact[1]) @ inverse.T).norm())
    return mean / root, excess / root


class Impulses:
    """Sample 0 sees no noise; each of the others sees one coefficient of one draw."""

    def __init__(self, draws: int, n: int) -> None:
        self.samples, self.n, self.first = 1 + draws * n, n, 1

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        out = torch.zeros(self.samples, self.n, dtype=dtype)
        out[self.first : self.first + self.n] = torch.eye(self.n, dtype=dtype)
        self.first += self.n
        return out


def output_law(sampler: Sampler) -> Law:
    (n,) = sampler.process.event_shape
    draws = 1 + sampler.steps * isinstance(sampler, sd.ReverseSDE)
    samples = sampler.sample((1 + draws * n,), generator=Impulses(draws, n))
    response = samples[1:] - samples[0]
    return samples[0], response.T @ response


def table(title: str, rows: dict[str, Callable[[int], str]]) -> None:
    print(f"\n{title}\n\n| scheme | " + " | ".join(f"{n} steps" for n in STEPS) + " |")
    print("|---|" + "---|" * len(STEPS))
    for name, cell in rows.items():
        print(f"| {name} | " + " | ".join(cell(n) for n in STEPS) + " |", flush=True)


def gaussian_tables() -> None:
    process = make_process(3)
    C = process.field.variance_per_coefficient
    U = 0.4 * normal(3, 16, seed=3) * C.sqrt()
    covariance = sd.Covariance(C * (0.2 + 0.5 * normal(16, seed=4).square()), U)
    mean = normal(16, seed=5) * C.sqrt()
    denoiser = sd.GaussianDenoiser(process, covariance=covariance, mean=mean)
    law = mean, torch.diag(covariance.diagonal) + U.T @ U
    own = CorrelatedReference(process, mean, covariance)
    x = mean + torch.linalg.cholesky(law[1]) @ normal(16, seed=1)

    for noise in NOISE:
        observation = stations(law, x, [-65.0, -30.0, -5.0, 20.0, 45.0, 75.0], noise)
        exact, _ = kriged(law, observation)
        matching = MomentMatching(denoiser, observation)
        close = Referenced(matching, posterior_reference(own, observation))
        pseudo = PseudoinverseGuidance(denoiser, observation)
        pseudo_own = PseudoinverseGuidance(Referenced(denoiser, own), observation)

        def cells(
            kind: type[Sampler], posterior: sd.Denoiser, per_step: int = 1, exact: Law = exact
        ) -> Callable[[int], str]:
            def cell(n: int) -> str:
                mean, excess = errors(output_law(kind(posterior, n // per_step)), exact)
                return f"{mean:.1e}, {excess:.1e}"

            return cell

        rows = {
            "moment matching, flow": cells(sd.ProbabilityFlow, matching),
            "moment matching, reverse SDE": cells(sd.ReverseSDE, matching),
            "moment matching, Heun with half the steps": cells(sd.Heun, matching, 2),
            "moment matching, posterior reference, flow": cells(sd.ProbabilityFlow, close),
            "moment matching, posterior reference, reverse SDE": cells(sd.ReverseSDE, close),
            "pseudoinverse, reference γ, flow": cells(sd.ProbabilityFlow, pseudo),
            "pseudoinverse, the data's reference, flow": cells(sd.ProbabilityFlow, pseudo_own),
        }
        table(f"Gaussian data, noise {noise}: errors of mean, covariance", rows)


def mixture_tables() -> None:
    process = make_process(1)
    C = process.field.variance_per_coefficient
    means, shares, weights = (0.9 * C.sqrt(), -0.9 * C.sqrt()), (0.3, 0.6), (0.6, 0.4)
    laws = [(mean, torch.diag(share * C)) for mean, share in zip(means, shares, strict=True)]
    mixture = sd.MixtureDenoiser(
        [sd.GaussianDenoiser(process, S.diagonal(), mean=mean) for mean, S in laws], weights
    )
    total = moments(laws, torch.tensor(weights, dtype=torch.float64))
    factor = sd.Covariance(torch.zeros(4).double(), torch.linalg.cholesky(total[1]).T)
    denoiser = Referenced(mixture, CorrelatedReference(process, total[0], factor))

    for noise in NOISE:
        observation = stations(total, total[0], [-40.0, 35.0], noise)
        posteriors, evidences = zip(*(kriged(law, observation) for law in laws), strict=True)
        w = (torch.tensor(weights).double().log() + torch.tensor(evidences)).softmax(0)

        def judged(x: Tensor, posteriors: Sequence[Law] = posteriors, w: Tensor = w) -> str:
            exact = moments(posteriors, w)
            mean, excess = errors((x.mean(0), x.T.cov()), exact)
            log_joint = torch.stack(
                [torch.distributions.MultivariateNormal(*law).log_prob(x) for law in posteriors]
            )
            share = (log_joint + w.log()[:, None]).softmax(0)[0].mean()
            return f"{mean:.3f}, {excess:.3f}, {float(share - w[0]):+.3f}"

        def guided(
            posterior: sd.Denoiser, judged: Callable[[Tensor], str] = judged
        ) -> Callable[[int], str]:
            def cell(n: int) -> str:
                generator = torch.Generator().manual_seed(6)
                return judged(
                    sd.ProbabilityFlow(posterior, n).sample((DRAWS,), generator=generator)
                )

            return cell

        def twisted(
            n: int, observation: Observation = observation, judged: Callable[[Tensor], str] = judged
        ) -> str:
            sampler = TwistedSampler(denoiser, observation, particles=DRAWS, steps=n)
            return judged(sampler.sample(generator=torch.Generator().manual_seed(7)).samples)

        rows = {
            "moment matching, flow": guided(MomentMatching(denoiser, observation)),
            "pseudoinverse, reference γ, flow": guided(PseudoinverseGuidance(mixture, observation)),
            "pseudoinverse, the data's moments, flow": guided(
                PseudoinverseGuidance(denoiser, observation)
            ),
            "twisted sampling": twisted,
        }
        title = f"Mixture, noise {noise}, weight {float(w[0]):.3f}"
        table(f"{title}: errors of mean, covariance, weight", rows)


def moments(laws: Sequence[Law], weights: Tensor) -> Law:
    means, covariances = (torch.stack(part) for part in zip(*laws, strict=True))
    mean = weights @ means
    spread = means - mean
    return mean, torch.einsum("k,kij->ij", weights, covariances) + spread.T @ (
        weights[:, None] * spread
    )


if __name__ == "__main__":
    gaussian_tables()
    mixture_tables()
