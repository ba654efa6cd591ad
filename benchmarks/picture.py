"""The README's picture: benchmark streets, their layout, and what the embedded prior makes of them.

python benchmarks/picture.py docs/transfer.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from segshift.config import TransferConfig
from segshift.labels import CITYSCAPES
from segshift.recipes.town import TOWN_DOMAINS
from segshift.stages.transfer import transfer_images
from segshift.town import scenes, weather

SCENES = (900_001, 900_002, 900_003)  # of the benchmark's town, beyond those that the writer uses


def main(path: Path) -> None:
    layers = [scenes.draw(scenes.BENCHMARK, seed) for seed in SCENES]
    images = [weather.render(layer, ("clear",), seed) for layer, seed in zip(layers, SCENES, strict=True)]
    labels = [layer.label_at_size() for layer in layers]
    made = transfer_images(TransferConfig(source="", to=TOWN_DOMAINS), images, labels)
    columns = {"source": images, "layout": [CITYSCAPES.paint(label) for label in labels]} | made
    figure, axes = plt.subplots(len(images), len(columns), figsize=(2.56 * len(columns), 1.28 * len(images) + 0.2))
    for j, (name, pictures) in enumerate(columns.items()):
        axes[0, j].set_title(name, fontsize=9)
        for i, picture in enumerate(pictures):
            axes[i, j].imshow(picture)
            axes[i, j].axis("off")
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.94, wspace=0.01, hspace=0.01)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
