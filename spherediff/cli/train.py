"""``spherediff train``: learn to generate the maps of an archive."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from spherediff._system import say
from spherediff.cli.common import (
    ArchiveOptions,
    Invocation,
    device,
    parse_climatology,
    parse_transforms,
    split_off,
)

if TYPE_CHECKING:
    from spherediff.data import Category, Labels, Scalar
    from spherediff.train import TrainConfig


@dataclass(frozen=True)
class NetworkOptions:
    """Size of the network.

    Attributes:
        width: channels on the grid.
        blocks: residual blocks.
        hidden: channels inside a block.
        slopes: channels inside a block whose slopes, east and poleward, are seen too; 0 for none.
        lifts: differently filtered copies of each variable that enter the grid.
        positional: learned fields that tell the network where it is; 0 for none.
        oversampling: grid latitudes divided by lmax + 1, at least 1.
    """

    width: int = 32
    blocks: int = 4
    hidden: int = 64
    slopes: int = 8
    lifts: int = 4
    positional: int = 8
    oversampling: float = 1.0


@dataclass(frozen=True)
class Train:
    r"""Train a generator of maps like those of an archive.

    The last samples of the archive are held out: they judge the training and end it when it no
    longer gains.  The held-out loss is a fraction of that of the Gaussian emulator, so that 1 means
    as good as a Gaussian random field with the archive's means, variances and correlations, and
    less is better.
    Samples that a variable test(time) of the archive marks are used for nothing.

    For example, the bundled winds; daily rain; and going on after Ctrl-C or a crash:
      spherediff train navy-winds --lmax 31 --climatology monthly --output winds-model
      spherediff train daily.nc --variables pr --lmax 47 --transform pr=sqrt \
          --climatology harmonics:2 --steps 4000 --output rain-model
      spherediff train navy-winds --lmax 31 --climatology monthly --output winds-model --resume

    Winds as a vector field; and an ensemble, to draw maps of any year and member:
      spherediff train navy-winds --vectors UWND VWND --climatology monthly --output winds-model
      spherediff train ensemble.nc --label year=scalar member=category --output ensemble-model

    Attributes:
        archive: a bundled archive (navy-winds), or files: NetCDF, Zarr, GRIB or HEALPix FITS;
            several are joined along the samples.
        output: folder for the model, its checkpoints and metrics.jsonl.
        lmax: band limit, the highest degree ℓ; the finest detail is about 20,000 km / lmax.
        network_lmax: the network learns the degrees up to this one, and those above are Gaussian
            noise with the archive's spectrum and amplitude; by default all are learnt.
        amplitude_degree: highest degree to which the map of the local standard deviation that
            anomalies are divided by is resolved; it is used for a variable if that makes held-out
            samples likelier. 0 for the same everywhere, which keeps the spectrum exact at degrees
            that are not learnt.
        transform: what makes a variable more nearly Gaussian: VARIABLE=sqrt, VARIABLE=log1p:SCALE,
            or VARIABLE=quantile:MINIMUM.  The square root keeps more of the amount of rain than the
            logarithm if much of it falls at scales beyond lmax.
        climatology: what is removed before and added again afterwards: none, constant, monthly,
            or harmonics:K of the year.  With monthly and harmonics the model is told the season.
        label: what else the model is told of each map, a coordinate of the archive: NAME=scalar
            for a number such as year, NAME=category for one of several kinds such as member; year
            and month are also taken from the dates.
        vectors: pairs of variables, the eastward and the northward component of a vector field,
            whose divergent and rotational parts are learnt.
        held_out: the share (below 1) or the number of samples at the end of the archive that are
            held out.
        steps: most optimiser steps.
        batch: maps in each step.
        learning_rate: peak learning rate.
        evaluate_every: steps between judgements on the held-out samples.
        patience: stop after so many judgements without a new best.
        checkpoint_every: steps between checkpoints.
        seed: of the first weights, mini-batches and noise.
        device: cpu, cuda, cuda:1, …; auto takes CUDA where there is one.
        resume: go on from the checkpoint in --output, with the same options as before.
    """

    archive: Annotated[
        Positional[tuple[str, ...]], arg(metavar="ARCHIVE", help_behavior_hint="(required)")
    ]
    output: Path
    lmax: int = 31
    network_lmax: int | None = None
    amplitude_degree: int = 23
    transform: Annotated[
        tuple[str, ...], arg(metavar="VARIABLE=TRANSFORM", help_behavior_hint="(default: none)")
    ] = ()
    climatology: str = "constant"
    label: Annotated[
        tuple[str, ...], arg(metavar="NAME=KIND", help_behavior_hint="(default: none)")
    ] = ()
    vectors: Annotated[
        tuple[str, ...], arg(metavar="EAST NORTH", help_behavior_hint="(default: none)")
    ] = ()
    held_out: float = 0.1
    steps: int = 2400
    batch: int = 16
    learning_rate: float = 6e-3
    evaluate_every: int = 100
    patience: int = 5
    checkpoint_every: int = 100
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    options: Annotated[ArchiveOptions, arg(name="")] = ArchiveOptions()
    network: Annotated[NetworkOptions, arg(name="")] = NetworkOptions()

    def run(self, invocation: Invocation) -> None:
        """Check, encode, train, save."""
        from spherediff._files import require_writable, write_json
        from spherediff.data import Encoder, Labels, sample_dimension, span
        from spherediff.model import Model
        from spherediff.nn import OperatorConfig
        from spherediff.train import CHECKPOINT, RUN, Fields

        where = device(self.device)
        config = self._config()
        network_lmax = self.lmax if self.network_lmax is None else self.network_lmax
        if not 0 <= network_lmax <= self.lmax:
            raise ValueError(
                f"--network-lmax must lie between 0 and --lmax = {self.lmax}, got {network_lmax}"
            )
        climatology, transforms = parse_climatology(self.climatology), self._transforms()
        kinds, vectors = self._kinds(), self._vectors()
        require_writable(self.output / RUN)
        checkpoint = self.output / CHECKPOINT
        if self.resume and not checkpoint.exists():
            raise FileNotFoundError(f"nothing to resume: there is no {checkpoint}")
        if checkpoint.exists() and not self.resume:
            raise ValueError(
                f"{self.output} holds an earlier training: add --resume to go on with it, or choose"
                " another --output"
            )
        ds = self.options.open(self.archive)
        training, held_out = split_off(ds, self.held_out)
        labels = Labels.fit(training, kinds, climatology=climatology)
        sample = sample_dimension(ds)
        told, judged_by = (labels.encode(part, part.sizes[sample]) for part in (training, held_out))
        encoder = Encoder.fit(
            training,
            self.options.variables or None,
            lmax=self.lmax,
            transform=transforms,
            climatology=climatology,
            amplitude_degree=min(self.amplitude_degree, self.lmax),
            vectors=vectors,
        )
        known = Fields(encoder.encode_training(training), told)
        judged = Fields(encoder.encode(held_out), judged_by)
        network = OperatorConfig(network_lmax, len(encoder.names), **vars(self.network))
        counts = f"{len(known.x)} samples, {len(judged.x)} held out"
        say(f"training on {counts}, to lmax {network_lmax}, on {where}")
        model = Model.build(
            encoder, known, labels=labels, network=network, seed=self.seed, device=where
        )
        record = invocation.record(
            self.seed,
            archive=list(self.archive),
            training=span(training),
            held_out=span(held_out),
        )
        if not self.resume:  # one that is refused must not change what was said of the first
            write_json(self.output / RUN, record)
        try:
            result = model.train(known, judged, config, self.output, resume=self.resume)
        except KeyboardInterrupt:
            again = invocation.command.removesuffix(" --resume")
            raise KeyboardInterrupt(
                f"stopped; the checkpoint is in {self.output}. Go on with:\n  {again} --resume"
            ) from None
        model.save(self.output)
        early = ", early" if result.stopped_early else ""
        say(
            f"stopped at step {result.step}{early}; held-out loss {result.best:.4f} of the Gaussian"
            f" emulator's at step {result.best_step}"
        )
        say(f"the model is in {self.output}. Draw maps with:")
        say(f"  {_sampling(self.output, labels)}")

    def _transforms(self) -> dict:
        return parse_transforms(self.transform)

    def _kinds(self) -> dict[str, type[Scalar | Category]]:
        from spherediff.data import Category, Scalar

        known: dict[str, type[Scalar | Category]] = {"scalar": Scalar, "category": Category}
        kinds = {}
        for text in self.label:
            name, _, kind = text.partition("=")
            if not name or kind.lower() not in known:
                raise ValueError(
                    "expected --label NAME=scalar or NAME=category, as in year=scalar, got"
                    f" {text!r}"
                )
            kinds[name] = known[kind.lower()]
        return kinds

    def _vectors(self) -> list[tuple[str, str]]:
        if len(self.vectors) % 2:
            raise ValueError(
                "--vectors expects pairs of an eastward and a northward component, got"
                f" {' '.join(self.vectors)}"
            )
        return list(zip(self.vectors[::2], self.vectors[1::2], strict=True))

    def _config(self) -> TrainConfig:
        from spherediff.train import TrainConfig

        return TrainConfig(
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            evaluate_every=self.evaluate_every,
            patience=self.patience,
            checkpoint_every=self.checkpoint_every,
            seed=self.seed,
        )


def _sampling(model: Path, labels: Labels) -> str:
    """The command that draws maps, with a value of each label that it cannot do without."""
    from spherediff.data import Category, Scalar

    told = [part for part in labels.parts if isinstance(part, Category | Scalar)]
    where = ["--where", *(f"{part.name}={part.example}" for part in told)] if told else []
    command = ["sample", "--model", str(model), *where, "--count", "16", "--output", "samples.nc"]
    return shlex.join(["spherediff", *command])
