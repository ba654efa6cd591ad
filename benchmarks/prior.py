"""How much of a frame survives the prior's VAE: PSNR, and IoU per class of a network on decoded against
original frames.

    python benchmarks/prior.py RUN DATA [DATA ...]

RUN is a training run of the frames' own domain (an oracle), so what it loses on decoded frames is what the
VAE lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from segshift import runs
from segshift.config import DiffusionConfig
from segshift.data import frames
from segshift.generators import stable_diffusion
from segshift.scoring import metrics
from segshift.training import checkpoints


@dataclass(frozen=True)
class Measure:
    """What is measured."""

    run: tyro.conf.Positional[Path]
    data: tyro.conf.Positional[tuple[str, ...]]
    model: str = "town"
    """`town`, or a model folder."""


@torch.inference_mode()
def measure(m: Measure) -> None:
    model = stable_diffusion.load_model(DiffusionConfig(model=m.model))
    method, _, space = checkpoints.load_run(m.run, "last")
    for spec in m.data:
        data = frames.load(spec)
        matrices = np.zeros((2, space.classes, space.classes + 1), np.int64)  # the last column is void
        noise = []
        with runs.progress(spec, len(data.frames)) as bar:
            for frame in data.frames:
                x = torch.from_numpy(frames.read_image(frame.image)).permute(2, 0, 1)[None].float() / 255
                decoded = model.decode(model.encode(x)).float() / 255
                noise.append(-10 * torch.log10((decoded - x).square().mean()).item())
                label = frames.read_label(frame, data.space)
                for matrix, image in zip(matrices, (x, decoded), strict=True):
                    prediction = method.predict(image).argmax(1)[0].numpy().astype(np.uint8)
                    matrix += metrics.confusion_matrix(prediction, label, space.classes)
                bar.advance()
        original, kept = (100 * metrics.iou(matrix) for matrix in matrices)
        table = Table(
            "class", "IoU % original", "decoded", "difference", title=f"{spec}: {np.mean(noise):.1f} dB"
        )
        for name, a, b in zip(space.names, original, kept, strict=True):
            table.add_row(name, f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}")
        table.add_row(
            "mean",
            f"{np.nanmean(original):.1f}",
            f"{np.nanmean(kept):.1f}",
            f"{np.nanmean(kept - original):+.1f}",
        )
        Console().print(table)


if __name__ == "__main__":
    measure(tyro.cli(Measure))
