"""EarthSampler's network and training on maps of ours; runs in an environment of its own.

    python worker.py train FOLDER SECONDS SEED
    python worker.py draw FOLDER COUNT SEED

FOLDER/maps.npz holds ``training`` and ``validation`` (N, channels, nlat, nlon), ``latitude`` and
``longitude`` in degrees; ``train`` writes weights.eqx and record.json, ``draw`` writes draws.npy.

EarthSampler (Bouabid, Souza & Ferrari 2026, arXiv 2510.04358): a U-Net on HEALPix pixels, to which
and from which a learned average over neighbours carries the grid's values, trained to denoise,

    loss  E |D(y + σε, σ) − y|²/(1 + log(1 + σ)),    log σ uniform,

with white noise on the grid; draws follow the probability flow by Heun's rule.  Network (its second
version, with learned positions), loss, schedule and sampler are its own.  Its conditions, day of
the year and global warming, are held fixed: one day, and a map of zeros.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from diffusion import (
    ContinuousHeunSampler,
    ContinuousVESchedule,
    HealPIXUNetv2,
    denoising_batch_loss,
    denoising_make_step,
)
from utils.graphs import compute_latlon_to_healpix_edges

NSIDE, NEIGHBOURS = 16, 5
ENCODER, DECODER, BLOCKS, BOTTLENECK = [16, 32, 64], [64, 32, 16], [1, 1, 1], 1
EMBEDDING, POSITION = 64, 16
SIGMA_MIN, SIGMA_MAX = 0.01, 80.0
BATCH, LEARNING_RATE, EMA = 16, 1e-3, 0.995
JUDGEMENTS, STEPS, DRAWN = 10, 30, 16
DAY = 1.0


class Fixed(eqx.Module):
    """The network on one day of the year."""

    network: HealPIXUNetv2

    def __call__(self, x, sigma):
        return self.network(x, sigma, jnp.asarray(DAY))


def build(maps, seed):
    channels, nlat, nlon = maps["training"].shape[1:]
    to_healpix, to_latlon = compute_latlon_to_healpix_edges(
        jnp.asarray(maps["latitude"]), jnp.asarray(maps["longitude"]), NSIDE, NEIGHBOURS
    )
    model = Fixed(
        HealPIXUNetv2(
            input_size=(channels + 1, nlat, nlon),
            out_channels=channels,
            nside=NSIDE,
            enc_filters=list(ENCODER),
            dec_filters=list(DECODER),
            dec_blocks=list(BLOCKS),
            n_bottleneck_blocks=BOTTLENECK,
            temb_dim=EMBEDDING,
            doyemb_dim=EMBEDDING,
            healpix_emb_dim=POSITION,
            posemb_dim=POSITION,
            edges_to_healpix=to_healpix,
            edges_to_latlon=to_latlon,
            key=jax.random.PRNGKey(seed),
        )
    )
    # Weakly typed weights become strongly typed by the first steps, and each change would cost
    # another minute of compilation.
    return jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(np.asarray(leaf)) if eqx.is_array(leaf) else leaf, model
    )


def with_context(maps):
    """Maps with the channel of zeros that stands for global warming."""
    return np.concatenate([maps, np.zeros_like(maps[:, :1])], axis=1).astype(np.float32)


def clock():
    """Seconds of processor time per core that this process may use."""
    return time.process_time() / len(os.sched_getaffinity(0))


def train(folder, seconds, seed):
    start = clock()
    maps = np.load(folder / "maps.npz")
    training, validation = (with_context(maps[name]) for name in ("training", "validation"))
    schedule = ContinuousVESchedule(SIGMA_MIN, SIGMA_MAX)
    model = build(maps, seed)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))
    state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
    average, best, best_error, step, judged = model, model, np.inf, 0, []
    key, rng = jax.random.PRNGKey(seed + 1), np.random.default_rng(seed)
    elapsed = 0.0
    while elapsed < seconds:
        batch = jnp.asarray(training[rng.integers(len(training), size=BATCH)])
        _, model, key, state, _ = denoising_make_step(
            model, 1, schedule, batch, key, state, optimiser.update
        )
        step += 1
        average = blend(average, model, jnp.asarray(min(EMA, (1 + step) / (10 + step))))
        elapsed = clock() - start
        if elapsed >= (len(judged) + 1) / JUDGEMENTS * seconds:
            error = judge(average, schedule, validation)
            judged.append([round(elapsed, 1), step, error])
            print(f"{elapsed:.0f}/{seconds:.0f} s: step {step}, validation {error:.4f}", flush=True)
            if error < best_error:
                best, best_error = average, error
    eqx.tree_serialise_leaves(folder / "weights.eqx", best)
    leaves = jax.tree_util.tree_leaves(eqx.filter(best, eqx.is_inexact_array))
    record = {
        "steps": step,
        "parameters": sum(x.size for x in leaves),
        "cpu_seconds": time.process_time(),
        "validation": judged,
    }
    (folder / "record.json").write_text(json.dumps(record))


@eqx.filter_jit
def blend(average, model, decay):
    """The running average of the weights."""
    return jax.tree_util.tree_map(
        lambda a, b: decay * a + (1 - decay) * b if eqx.is_inexact_array(a) else a, average, model
    )


def judge(model, schedule, validation):
    """Mean loss over the validation maps, with the same noise every time."""
    keys = jax.random.split(jax.random.PRNGKey(0), len(validation) // BATCH + 1)
    parts = [validation[k : k + BATCH] for k in range(0, len(validation), BATCH)]
    parts = [part for part in parts if len(part) == BATCH] or parts  # one shape to compile
    losses = [denoising_batch_loss(model, 1, schedule, jnp.asarray(part), key)
              for part, key in zip(parts, keys, strict=False)]  # fmt: skip
    return float(np.mean([float(loss) for loss in losses]))


def draw(folder, count, seed):
    maps = np.load(folder / "maps.npz")
    model = eqx.tree_deserialise_leaves(folder / "weights.eqx", build(maps, seed))
    shape = maps["training"].shape[1:]
    zeros = jnp.zeros((1, *shape[1:]))
    sampler = ContinuousHeunSampler(
        ContinuousVESchedule(SIGMA_MIN, SIGMA_MAX),
        lambda x, sigma: model(jnp.concatenate([x, zeros]), sigma),
        shape,
    )
    drawn = []
    for k, key in enumerate(jax.random.split(jax.random.PRNGKey(seed), -(-count // DRAWN))):
        drawn.append(np.asarray(sampler.sample(DRAWN, key=key, steps=STEPS)))
        print(f"{min((k + 1) * DRAWN, count)} of {count} maps", flush=True)
    np.save(folder / "draws.npy", np.concatenate(drawn)[:count])


if __name__ == "__main__":
    task, folder, amount, seed = sys.argv[1:]
    if task == "train":
        train(Path(folder), float(amount), int(seed))
    else:
        draw(Path(folder), int(amount), int(seed))
