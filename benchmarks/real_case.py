"""A network of others on photographs: what the estimate predicts for bad weather, beside the truth.

    export NETWORK=deeplab_mobilenet_edgetpu_slim_cityscapes_quant.tflite
    python benchmarks/real_case.py DATA runs/real-case

DATA holds labelled frames: `cityscapes` as it is unpacked, and `acdc/<condition>/{images,labels}` with labels
in train ids, where the labels of one frame have its name. The network is a black box
(docs/extending/black_box.py, any tflite file of Cityscapes' classes). It is judged by weather filters
(weather.py) on the Cityscapes frames and ACDC's `normal` ones, all at the size of the latter; the truth comes
from ACDC's other conditions, which nothing else sees. Writes OUT/real-case.md and .json; running it again
continues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import mean
from typing import Any

import cv2
import numpy as np
import tyro
import yaml
from estimate import Pair, failures, pair, percent, plain, read
from settings import write_results

from segshift.config import EstimateConfig, EvaluateConfig, PredictConfig
from segshift.data import frames
from segshift.data.labels import CITYSCAPES
from segshift.runs import read_json
from segshift.scoring.bootstrap import shown
from segshift.stages import evaluate, predict
from segshift.stages.estimate import estimate

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """What is judged."""

    data: tyro.conf.Positional[Path]
    """Folder of labelled frames."""
    out: tyro.conf.Positional[Path]
    run: str = f"{HERE.parent}/docs/extending/black_box:build"
    """The network, `module:factory`."""
    generator: str = f"{HERE}/weather:build"
    """The judge, `module:factory`."""
    domains: tuple[str, ...] = ("fog", "rain", "snow", "night")
    draws: int = 2
    """Noise draws per frame and domain."""


def gather(b: Benchmark) -> Path:
    """All frames as one data set of the layout `folder`, with the subsets `source` and the domains."""
    root = b.out / "frames"
    normal = frames.image_size(min((b.data / "acdc/normal/images").iterdir()))

    def put(subset: str, name: str, image: np.ndarray, label: np.ndarray) -> None:
        for kind, picture in (("images", image[..., ::-1]), ("labels", label)):
            file = root / subset / kind / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), picture)

    for subset in ("normal", *b.domains):
        for file in sorted((b.data / "acdc" / subset / "images").iterdir()):
            label = cv2.imread(str(b.data / "acdc" / subset / "labels" / file.name), cv2.IMREAD_UNCHANGED)
            put("source" if subset == "normal" else subset, file.stem, frames.read_image(file), label)
    for frame in frames.load(f"cityscapes:{b.data}/cityscapes").frames:
        image = cv2.resize(frames.read_image(frame.image), normal[::-1], interpolation=cv2.INTER_AREA)
        label = frames.read_label(frame, CITYSCAPES)
        label = cv2.resize(label, normal[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        put("source", frame.image.stem, image, label)
    told = {
        "images": "{subset}/images/*.png",
        "labels": "{subset}/labels/*.png",
        "subsets": ["source", *b.domains],
        "classes": list(CITYSCAPES.names),
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump(told))
    return root


def truth(b: Benchmark, data: str, domain: str) -> dict[str, Any]:
    """metrics.json of the network on a condition's frames."""
    predictions, evaluation = (b.out / "truth" / domain / what for what in ("predictions", "evaluation"))
    predict.predict(PredictConfig(run=b.run, data=data), predictions)
    evaluate.evaluate(EvaluateConfig(predictions=str(predictions), data=data), evaluation)
    return read_json(evaluation / "metrics.json")


def same_classes(estimated: dict[str, Any], true: dict[str, Any]) -> dict[str, float]:
    """Mean IoU on the source and as predicted, over the classes that the truth's labels show too."""
    there = [
        name
        for name, value in zip(true["iou"], shown(np.array(true["confusion"])).tolist(), strict=True)
        if not isnan(value) and estimated["source"]["iou"][name]["value"] is not None
    ]
    return {
        what: mean(estimated[key]["iou"][name]["value"] for name in there)
        for what, key in (("source", "source"), ("predicted", "corrected"))
    } | {"count": len(there)}


def table(told: dict[str, Any]) -> str:
    """Markdown: predicted against true mIoU % by condition."""
    pairs = [read(one) for one in told["pairs"]]
    same = told["of_the_classes_in_the_truth"]
    heads = [f"{pair.domain} ({told['frames'][pair.domain]} frames)" for pair in pairs]

    def row(name: str, of: Callable[[Pair], float], sign: str = "") -> str:
        values = [100 * of(pair) for pair in pairs]
        return f"| {name} | {' | '.join(f'{v:{sign}.1f}' for v in (*values, mean(values)))} |"

    spans = [f"{100 * p.miou.low:.1f} to {100 * p.miou.high:.1f}" for p in pairs]
    named = ", ".join(f"{key} {percent(share)}" for key, share in failures(pairs).items())
    return "\n".join(
        [
            f"| mIoU % | {' | '.join((*heads, 'mean'))} |",
            "|---|" + "---|" * (len(pairs) + 1),
            row(f"source ({told['frames']['source']} frames)", lambda p: p.source),
            row("predicted", lambda p: p.miou.value),
            f"| 90 % interval | {' | '.join((*spans, '-'))} |",
            row("uncorrected", lambda p: p.raw),
            row("true", lambda p: p.miou.true),
            row("error", lambda p: p.miou.value - p.miou.true, "+"),
            row("error of the source score", lambda p: p.source - p.miou.true, "+"),
            row("predicted, of the classes that are in the truth", lambda p: same[p.domain]["predicted"]),
            row("source, of these classes", lambda p: same[p.domain]["source"]),
            "",
            f"Failing classes: {named}.",
            "",
        ]
    )


def main(b: Benchmark) -> None:
    root = gather(b)
    source = f"folder:{root}:source"
    config = EstimateConfig(
        run=b.run,
        source=source,
        to=b.domains,
        draws=b.draws,
        generator=b.generator,
        transferred=str(b.out / "transferred"),
    )
    estimated = read_json(estimate(config, b.out / "estimate") / "estimate.json")
    true = {domain: truth(b, f"folder:{root}:{domain}", domain) for domain in b.domains}
    pairs: Sequence[Pair] = [
        pair("network", domain, estimated["domains"][domain], true[domain]) for domain in b.domains
    ]
    told = {
        "pairs": [plain(p) for p in pairs],
        "frames": {"source": estimated["frames"]} | {d: len(t["frames"]) for d, t in true.items()},
        "of_the_classes_in_the_truth": {d: same_classes(estimated["domains"][d], true[d]) for d in b.domains},
        "true_over_its_own_classes": {domain: t["miou"] for domain, t in true.items()},
        "network": estimated["model"]["run"].rpartition("/")[2],
        "generator": estimated["generator"]["model"],
        "draws": b.draws,
    }
    write_results(b.out, "real-case", table(told), told, "albumentations")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
