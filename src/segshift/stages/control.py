"""Control: a ControlNet for a diffusion model, trained on labelled source frames in their own palette.

    OUT/config.json, metrics.jsonl, checkpoints/   as of any training (`segshift.training.checkpoints`)
    OUT/pictures/00000500.png    fixed frames at a step: image, layout, and what is drawn from the layout
    OUT/controlnet/              the result in the hub's layout: config.json, weights, and segshift.json with
                                 palette and size; `segshift transfer --diffusion.controlnet` takes it

The same command continues a run where it was stopped; on one CPU the result is bitwise that of a run which
was not.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image

from segshift import execution, generators, outputs, runs
from segshift.config import ControlConfig
from segshift.data import frames, samples
from segshift.data.frames import Dataset, Frame
from segshift.data.labels import CITYSCAPES
from segshift.generators.base import working_size
from segshift.methods.zodi import transfer as zodi
from segshift.networks import adapters
from segshift.outputs import Output
from segshift.runs import InputError
from segshift.training import checkpoints, control, loop, session, sizes

FREE = ("workers", "diffusion.device", "checkpoint_every", "draw_every", "steps")
"""Fields that may change when a run is continued. More `steps` extend it."""
PROMPT = "driving by day"
"""Of data sets with Cityscapes' classes."""
DRAWN = 4
"""Frames that are drawn as it learns."""
POWER = 0.9
"""The learning rate falls as (1 - step / steps) to this power."""


def train(config: ControlConfig, out: str | Path) -> Path:
    """Train as `config` says, or continue; returns `out`.

    Raises: InputError for a model that cannot be trained for, data that is incomplete, settings that do not
    fit together, and losses that are not finite.
    """
    card = generators.family(config.diffusion).CARD
    if not card.trains:
        raise InputError(
            f"{config.diffusion.model} is a {card.title}, and ControlNets are trained for Stable Diffusion "
            "and its XL only: choose one of those"
        )
    if config.diffusion.offload != "none":
        raise InputError("--diffusion.offload is for transfers: leave it out, and take a smaller --crop")
    source = frames.load(config.source)
    drawn = frames.load(config.validation) if config.validation else source
    for dataset in (source, drawn):
        frames.require_labels(dataset)
        frames.require_sizes(dataset)
    if drawn.space.names != source.space.names:
        raise InputError(
            f"{drawn.name} has the classes of '{drawn.space.name}' and {source.name} those of "
            f"'{source.space.name}', expected the same: map one onto the other in its dataset.yaml"
        )
    control.palette_of(source.space)
    _prompt(config, source)
    output = outputs.open_output(
        out, "control", config, free=FREE, begun=lambda out: checkpoints.last_step(out) > 0
    )
    accelerator = session.accelerator(
        config.diffusion.device, config.precision, config.batch_size, config.accumulate
    )
    with outputs.alone(output.path) if accelerator.is_main_process else nullcontext():
        return _train(config, output, accelerator, source, drawn)


def _prompt(config: ControlConfig, source: Dataset) -> str:
    """As transfers have it. Raises: InputError where nobody says what the source shows."""
    if config.prompt is None and source.space.names != CITYSCAPES.names:
        raise InputError(
            f"{source.name} has classes of its own: say what its images show with --prompt, as in "
            "--prompt 'a field of beans from above'"
        )
    return (PROMPT if config.prompt is None else config.prompt) + zodi.QUALITY


def _train(
    config: ControlConfig, output: Output, accelerator: Accelerator, source: Dataset, drawn: Dataset
) -> Path:
    out, first = output.path, accelerator.is_main_process
    start = session.start(out, config.steps, accelerator.process_index)
    if start == config.steps and (out / "controlnet").is_dir():
        if first:
            output.claim()  # its steps may be fewer than before
        return out
    set_seed(config.seed)  # every process builds the same network
    anew = config.diffusion.controlnet is None
    model = generators.family(config.diffusion).load_model(config.diffusion, control=not anew)
    short_side = model.defaults.short_side if config.short_side is None else config.short_side
    size = working_size(*sizes.size_of(source), short_side)
    crop = _crop(config, size)
    palette = control.palette_of(source.space)
    method = control.ControlNetTraining(
        model, model.learn_control(anew=anew), _prompt(config, source), zodi.colours(source.space, palette)
    )
    if config.lora is not None:
        method.adapt(config.lora)
    if config.gradient_checkpointing:
        method.checkpoint_gradients()
    method.to(accelerator.device).train()
    optimizers = session.optimizers(method, accelerator, config.lr, config.weight_decay)
    digest = hashlib.sha256(repr([frame.id for frame in source.frames]).encode()).hexdigest()
    if start:
        frame_count = f"{len(source.frames)} labelled"
        state = session.resume(out, start, method, optimizers, accelerator, digest, frame_count)
        if state.get("weights") != model.hashes:
            raise InputError(f"{out} was begun with other weights of '{model.name}': name a new folder")
    data, album = (_pictures(dataset, size, config.workers) for dataset in (source, drawn))
    pairs = samples.pair_up(source, ())
    chosen = control.Samples(pairs, data, crop=crop, jitter=(0.0, 0.0, 0.0, 0.0), seed=config.seed)
    if first:  # everything that can be wrong has been looked at
        output.claim()
        checkpoints.describe(out, source.space, accelerator.device)
    keeper = _Keeper(config, out, method, accelerator, drawn.frames[:DRAWN], album, palette)
    title = f"train ControlNet on {accelerator.device.type}"
    with (
        session.micro_batches(
            chosen, start, config.steps, config.batch_size, config.accumulate, config.workers, accelerator
        ) as micro_batches,
        session.draining(accelerator) as asked,
        session.shown(title, config.steps, start, first) as tell,
        session.translate_errors(out),
        session.log(out, start) if first else nullcontext(lambda line: None) as write,
    ):

        def done(step: int, line: dict[str, Any]) -> bool:
            write(line)
            leaving, last = asked(), step == config.steps
            if first and (last or step % config.draw_every == 0):
                keeper.draw(step)
            if last or leaving or step % config.checkpoint_every == 0:
                session.require_finite(method, step)
                if first:
                    shutil.rmtree(out / "controlnet", ignore_errors=True)  # of a run that is extended
                    state = session.state(optimizers, accelerator, digest)
                    checkpoints.save(out, step, method, state | {"best": {}, "weights": model.hashes})
            tell(line)
            return leaving

        loop.fit(
            method,
            optimizers,
            micro_batches,
            accelerator,
            start=start,
            steps=config.steps,
            accumulate=config.accumulate,
            seed=config.seed,
            factor=lambda step: loop.learning_rate(step, config.steps, config.warmup, POWER),
            frames_of=lambda step: chosen.ids(
                range(step * config.batch_size, (step + 1) * config.batch_size)
            ),
            done=done,
        )
    if first:
        with session.translate_errors(out):
            keeper.save({"layout": "colours", "palette": palette, "short_side": short_side})
    accelerator.wait_for_everyone()
    return out


def _crop(config: ControlConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Raises: InputError."""
    if config.crop is None:
        return size
    if any(c % 64 or c > s for c, s in zip(config.crop, size, strict=True)):
        raise InputError(
            f"--crop {config.crop} of images of {size}: expected multiples of 64 of at most that size"
        )
    return config.crop


def _pictures(dataset: Dataset, size: tuple[int, int], workers: int) -> samples.Pictures:
    """Of a data set at a size, kept in memory where all readers together have room."""
    readers = max(1, workers) * execution.current().local_count
    keep = 4 * size[0] * size[1] * len(dataset.frames) * readers < samples.CACHE_BYTES
    return samples.Pictures(size, dataset.space, range(dataset.space.classes), keep)


@dataclass
class _Keeper:
    """What the first process writes between steps and at the end."""

    config: ControlConfig
    out: Path
    method: control.ControlNetTraining
    accelerator: Accelerator
    frames: Sequence[Frame]
    pictures: samples.Pictures
    palette: zodi.Palette

    def draw(self, step: int) -> None:
        """Write the fixed frames: image, layout, and what the model draws from the layout and the source's
        prompt alone, the same noise at every step."""
        model, rows = self.method.model, []
        text, negative = ({k: v[i : i + 1] for k, v in self.method.texts.items()} for i in (0, 1))
        default = model.defaults
        sampling = zodi.Sampling(1.0, default.steps, default.guidance, default.eta, inversion="none")
        for frame in self.frames:
            image = self.pictures.image(frame).permute(1, 2, 0).numpy()
            layout = zodi.layout(
                self.pictures.label(frame).numpy(), self.pictures.space, self.pictures.size, self.palette
            )
            given = torch.from_numpy(layout).permute(2, 0, 1)[None].float().to(model.device) / 255
            nothing = torch.zeros_like(model.encode(given))
            noises = self._noises(frame, nothing.shape[1:])
            with self.accelerator.autocast():
                made = zodi.transfer(model, nothing, text, negative, model.hint(given), sampling, noises)
            rows.append(np.concatenate([image, layout, made[0].permute(1, 2, 0).cpu().numpy()], axis=1))
        with runs.atomic(self.out / "pictures" / f"{step:08d}.png") as temporary:
            Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG")

    def _noises(self, frame: Frame, shape: Sequence[int]) -> zodi.Noise:
        seed = self.config.seed
        return lambda step: zodi.noise(seed, frame.id, "drawn", step, tuple(shape))[None]

    def save(self, settings: dict[str, Any]) -> None:
        """Write OUT/controlnet, whole or not at all. settings: its segshift.json."""
        whole, temporary = self.out / "controlnet", self.out / f"{runs.TEMPORARY}controlnet"
        shutil.rmtree(temporary, ignore_errors=True)
        adapters.merged(self.method.controlnet).save_pretrained(temporary)
        runs.write_json(temporary / "segshift.json", settings)
        shutil.rmtree(whole, ignore_errors=True)
        temporary.rename(whole)
