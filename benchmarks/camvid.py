"""ICCLD on real photographs: CamVid by day (labelled) to CamVid at dusk (unlabelled), every row of the
ablation.

    python benchmarks/camvid.py DATA OUT

DATA holds day/train, day/val and dusk/train, each with images/*.jpg and for the day labels/*.png of eleven
class indices. Labels of the dusk are not read and nothing is chosen by them: the rows are scored on day/val,
and each one's predictions at dusk are kept in OUT/seed-<n>/<row>/dusk for whoever holds the labels. Encoder
from scratch (no download), 240x320.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from recipe import chosen, write_tables

from segshift.config import PredictConfig, TrainConfig
from segshift.experiments import run_experiment
from segshift.recipes.experiment import Experiment, Target
from segshift.recipes.iccld import ablation_rows, town_second, town_source
from segshift.runs import slug
from segshift.stages import predict

YAML = """root: {data}
images: "{{subset}}/images/*.jpg"
labels: "{{subset}}/labels/*.png"
subsets: {{day/train: day, day/val: day, dusk/train: dusk}}
classes: [sky, building, pole, road, sidewalk, tree, sign, fence, car, pedestrian, bicyclist]
ignore: [11]
"""


@dataclass(frozen=True)
class Benchmark:
    """What is run."""

    data: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    seeds: int = 3
    """Trainings of every row."""
    steps: int = 600
    """Optimizer steps of source only and of step 1; step 2 takes half as many."""
    images: int = 4
    """Images per step, of the source and of the target each."""
    rows: tuple[str, ...] = ()
    """Rows to run, by name; none takes all."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of every training."""


def experiment(b: Benchmark, data: str) -> Experiment:
    """Every row of the ablation but the oracles, which would need the dusk's labels."""
    base: TrainConfig = replace(
        town_source("clear", steps=b.steps, images=b.images),
        source=f"{data}:day/train",
        validation=None,
        size=(240, 320),
        crop=(192, 256),
        precision=b.precision,
    )
    rows = ablation_rows(base, f"{data}:dusk/train", town_second(b.steps))
    there = tuple(row for row in rows if not row.name.startswith("oracle"))
    return Experiment(
        "camvid day to dusk", chosen(there, b.rows), (Target("day", f"{data}:day/val"),), seeds=b.seeds
    )


def main(b: Benchmark) -> None:
    b.out.mkdir(parents=True, exist_ok=True)
    (b.out / "dataset.yaml").write_text(YAML.format(data=b.data.resolve()))
    data = f"folder:{b.out.resolve()}"
    e = experiment(b, data)
    run_experiment(e, b.out)
    for seed in range(b.seeds):
        for row in e.rows:
            run = b.out / f"seed-{seed}" / slug(row.name)
            settings = PredictConfig(
                run=str(run), data=f"{data}:dusk/train", checkpoint="last", uncertainty=row.uncertainty
            )
            predict.predict(settings, run / "dusk")
    write_tables(e, b.out, "camvid", seeds=b.seeds, steps=b.steps, images=b.images, precision=b.precision)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
