"""The README's pictures.

python benchmarks/picture.py docs/transfer.jpg                  # what the prior makes of three streets
python benchmarks/picture.py docs/iccld.jpg runs/iccld-town-game  # what its networks see in the target
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from segshift.config import TransferConfig
from segshift.data import frames
from segshift.data.labels import CITYSCAPES
from segshift.page import charts as drawing
from segshift.recipes.runner import fill
from segshift.recipes.town import TOWN_DOMAINS, town_target
from segshift.stages.transfer import transfer_images
from segshift.town import scenes, weather

SCENES = (900_001, 900_002, 900_003)  # of the benchmark's town, beyond those that the writer uses
ROWS = {"source only": "source-only", "step 1": "step-1", "full": "full"}
LAST = "predictions/last/clear"


def transferred() -> dict[str, Sequence[np.ndarray]]:
    """Source, layout, and the picture of every domain."""
    layers = [scenes.draw(scenes.BENCHMARK, seed) for seed in SCENES]
    images = [weather.render(layer, ("clear",), seed) for layer, seed in zip(layers, SCENES, strict=True)]
    labels = [layer.label_at_size() for layer in layers]
    made = transfer_images(TransferConfig(source="", to=TOWN_DOMAINS), images, labels)
    return {"source": images, "layout": [CITYSCAPES.paint(label) for label in labels]} | made


def adapted(run: Path) -> dict[str, Sequence[np.ndarray]]:
    """Three of the target's frames, their truth, every network's prediction, and the entropy of the
    last one."""
    data = frames.load(fill(town_target("clear"), {"out": str(run)}))
    chosen = data.frames[:: len(data.frames) // 3][:3]

    def written(folder: Path) -> list[Path]:
        return [frames.place(data, frame, folder) for frame in chosen]

    def painted(files: Sequence[Path]) -> list[np.ndarray]:
        labels = (
            frames.read_label(replace(frame, label=file), data.space)
            for frame, file in zip(chosen, files, strict=True)
        )
        return [CITYSCAPES.paint(label) for label in labels]

    predictions = {name: painted(written(run / "seed-0" / row / LAST)) for name, row in ROWS.items()}
    entropy = [
        drawing.heat(file) for file in written(run / "seed-0" / "full" / LAST / "uncertainty" / "entropy")
    ]
    images = [frames.read_image(frame.image) for frame in chosen]
    return (
        {"target": images, "truth": painted([frame.label for frame in chosen])}
        | predictions
        | {"full: entropy": entropy}
    )


def draw(columns: Mapping[str, Sequence[np.ndarray]], path: Path) -> None:
    """One picture, a column of each name."""
    rows = len(next(iter(columns.values())))
    figure, axes = plt.subplots(rows, len(columns), figsize=(2.56 * len(columns), 1.28 * rows + 0.2))
    for j, (name, pictures) in enumerate(columns.items()):
        axes[0, j].set_title(name, fontsize=9)
        for i, picture in enumerate(pictures):
            axes[i, j].imshow(picture)
            axes[i, j].axis("off")
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.94, wspace=0.01, hspace=0.01)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    draw(adapted(Path(sys.argv[2])) if len(sys.argv) > 2 else transferred(), Path(sys.argv[1]))
