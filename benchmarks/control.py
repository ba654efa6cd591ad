"""ZoDi by night on the town, with a ControlNet that was trained on the town's own source frames.

    python benchmarks/control.py runs/control

The embedded prior's ControlNet has seen six thousand scenes of another town; this one has seen the 160 source
frames under the prompt of their own weather. ZoDi with the prior's own is a row of benchmarks/zodi.py.

Writes OUT/control.md and OUT/control.json. Running it again continues.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import tyro
from settings import Trainings, protocol, scores_of, write_results
from zodi import table

from segshift.config import ControlConfig, DiffusionConfig, TownConfig
from segshift.recipes.experiment import Experiment, Target
from segshift.recipes.runner import run_experiment
from segshift.recipes.town import town_target, town_training, town_transfer
from segshift.recipes.zodi import town_rows
from segshift.runs import read_json
from segshift.stages import control
from segshift.town import writer

TOWN = TownConfig(target_train=1)


@dataclass(frozen=True)
class Benchmark(Trainings):
    """What is run."""

    domains: tuple[str, ...] = ("night",)
    control_steps: int = 640
    """Optimizer steps of the ControlNet."""
    control_images: int = 4
    """Crops of half a frame per step of the ControlNet."""
    control_lr: float = 1e-3
    """Learning rate of the ControlNet."""


def main(b: Benchmark) -> None:
    writer.town(replace(TOWN, target_train=0, target_val=0), b.out / "source")
    trained = ControlConfig(
        source=f"cityscapes:{b.out}/source/cityscapes:train",
        validation=f"cityscapes:{b.out}/source/cityscapes:val",
        steps=b.control_steps,
        batch_size=b.control_images,
        lr=b.control_lr,
        warmup=20,
        crop=(128, 128),
        checkpoint_every=50,
        draw_every=200,
        precision=b.precision,
        workers=0,
    )
    made = control.train(trained, b.out / "control") / "controlnet"
    base = replace(town_training(steps=b.steps, images=b.images), precision=b.precision)
    transfer = replace(town_transfer(*b.domains), diffusion=DiffusionConfig(controlnet=str(made)))
    experiment = Experiment(
        name="control benchmark",
        town=TOWN,
        transfers={"transferred": transfer},
        rows=tuple(
            replace(row, targets=(domain,))
            for domain, row in zip(b.domains, town_rows(base, b.domains)[2:], strict=True)
        ),
        targets=tuple(Target(domain, town_target(domain)) for domain in b.domains),
        seeds=b.seeds,
    )
    run_experiment(experiment, b.out / "zodi")
    lines = read_json(b.out / "zodi" / "scores.json", list)
    told = {"scores": lines, "control": trained, "steps": b.steps, "images": b.images, "seeds": b.seeds}
    write_results(
        b.out,
        "control",
        table(scores_of(lines)),
        told | {"precision": b.precision, "protocol": protocol(TOWN)},
    )


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
