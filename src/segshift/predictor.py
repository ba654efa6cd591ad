"""What predicts: a training run, a file of weights, or a network of the user's, ready to take pictures."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from segshift import networks
from segshift.config import NetworkConfig, PredictConfig, Select
from segshift.data import frames, transforms
from segshift.data.frames import Dataset
from segshift.data.labels import CITYSCAPES, LabelSpace
from segshift.execution.device import pick
from segshift.methods.base import Method
from segshift.methods.source_only.training import SourceOnly
from segshift.networks.custom import BlackBox
from segshift.runs import InputError
from segshift.scoring import inference, predictions
from segshift.settings import HubRun, RunFolder, option
from segshift.training import checkpoints, sharing

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""A file, a picture of Pillow, or RGB [H, W, 3] uint8."""


@dataclass(frozen=True)
class Prediction:
    """What a network sees in a picture of H x W."""

    classes: np.ndarray
    """Train ids [H, W] uint8."""
    probabilities: np.ndarray
    """[C, H, W] float32, which sum to 1."""
    uncertainty: dict[str, np.ndarray]
    """Maps [H, W] float32 in [0, 1] by name: confidence, entropy, and of several draws spread."""


@dataclass(frozen=True)
class Predictor:
    """A network that takes any picture; `segshift.load` makes one."""

    method: Method
    """In evaluation mode."""
    size: tuple[int, int] | None
    """Height and width that it sees; None for the picture's own."""
    space: LabelSpace
    """Its classes: `space.names` by train id, `space.paint(ids)` for their colours."""
    record: dict[str, Any]
    """What model.json says of it."""

    def predict(self, picture: Picture) -> np.ndarray:
        """Train ids [H, W] uint8 at the picture's own size. Raises: InputError for what is no picture."""
        image = _rgb(picture)
        logits, _ = self._infer(image, False)
        return inference.classes(logits, image.shape[:2])[0]

    def predict_with_uncertainty(self, picture: Picture) -> Prediction:
        """The same with probabilities and maps of uncertainty. Raises: InputError for what is no picture."""
        image = _rgb(picture)
        size = image.shape[:2]
        logits, maps = self._infer(image, True)
        probabilities = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0].softmax(0)
        return Prediction(
            inference.classes(logits, size)[0],
            probabilities.cpu().numpy(),
            {name: resized(one[0], size).cpu().numpy() for name, one in maps.items()},
        )

    def _infer(self, picture: np.ndarray, uncertainty: bool) -> tuple[Tensor, dict[str, Tensor]]:
        image = torch.from_numpy(picture).permute(2, 0, 1)
        image = transforms.resize_image(image, self.size) if self.size else image
        device = next((tensor.device for tensor in self.method.state_dict().values()), torch.device("cpu"))
        seeds = [transforms.key_seed(0, "predict", "")]
        return inference.infer(self.method, image[None].to(device), seeds, uncertainty=uncertainty)


def resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """A map [h, w] in [0, 1] at another size [H, W]: bilinear."""
    return F.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0].clamp(0, 1)


def _rgb(picture: Picture) -> np.ndarray:
    """[H, W, 3] uint8. Raises: InputError."""
    if isinstance(picture, str | os.PathLike):
        return frames.read_image(Path(picture).expanduser(), upright=True)
    if isinstance(picture, Image.Image):
        return np.array(picture.convert("RGB"))
    found = np.asarray(picture)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or not found.size:
        raise InputError(
            f"the picture is an array of {found.dtype} {list(found.shape)}: give RGB [H, W, 3] uint8, a "
            "picture of Pillow, or a path"
        )
    return np.ascontiguousarray(found)


def load(
    run: str | os.PathLike[str],
    *,
    network: NetworkConfig | None = None,
    checkpoint: Literal["best"] | Select = "best",
    device: str = "auto",
) -> Predictor:
    """A trained network, ready to take pictures:

        segshift.load("runs/zodi").predict("street.jpg")

    run: run folder of `segshift train`, `hf:user/name[@revision]` of a run on the hub, `module:factory` of a
    network of yours, or a file of weights together with its `network`. Other networks than a run's have
    Cityscapes' 19 classes. checkpoint, device: as in PredictConfig.
    Raises: InputError, as `segshift.predict`.
    """
    config = PredictConfig(run, network=network, checkpoint=checkpoint, device=device)  # type: ignore[arg-type]
    predictor = of(config)
    predictor.method.to(pick(config.device))
    return predictor


def of(config: PredictConfig, data: Dataset | None = None) -> Predictor:
    """What predicts, on the CPU.

    data: what it is to predict; None where that has no classes of its own. Raises: InputError when the two do
    not fit.
    """
    path = sharing.folder(config.run)
    if not isinstance(config.run, RunFolder | HubRun) or path.is_file():
        network, what = _foreign(config)
        space = CITYSCAPES if data is None else data.space
        segmenter = networks.build(network, space.classes, trained=True)
        record: dict[str, Any] = {
            "run": config.run,
            "method": None,
            "network": asdict(config.network or network),
            "step": None,
            "rules": [],
            "selection": what,
            "sampling": None,
            "input": _input(config, False),
            "weights": _hash(segmenter),
        }
        return Predictor(SourceOnly(segmenter).eval(), config.size, space, record)
    if config.network is not None:
        raise InputError(
            f"{path} is no file of weights: leave --network.name out to predict with the network of a run"
        )
    method, trained, space = checkpoints.load_run(path, config.checkpoint)
    if data is not None and space.names != data.space.names:
        raise InputError(
            f"{path} was trained on the {space.classes} classes of '{space.name}', {data.name} has the "
            f"{data.space.classes} of '{data.space.name}': map one onto the other in dataset.yaml"
        )
    given = {"sampling_steps": config.sampling_steps, "draws": config.draws}
    options = {name: value for name, value in given.items() if value is not None}
    if others := sorted(options.keys() - set(method.prediction_options)):
        raise InputError(
            f"{path} was trained by method {trained.method}, which has no {option(others[0])}: leave it out"
        )
    method.set_prediction(**options)
    steps = checkpoints.chosen_steps(path)
    step = checkpoints.best_record(path)["step"] if config.checkpoint == "best" else steps[config.checkpoint]
    # none: `best` of a training that was killed between writing it and writing the last
    rules = [rule for rule in checkpoints.rules(trained) if steps.get(rule) == step] or [trained.select]
    record = {
        "run": config.run,
        "method": trained.method,
        "network": asdict(trained.network),
        "step": step,
        "rules": rules,
        "selection": predictions.selection(rules),
        "sampling": method.sampling,
        "input": _input(config, method.sampling is not None),
        "weights": _hash(method),
    }
    return Predictor(method, config.size or trained.target_size or trained.size, space, record)


def _foreign(config: PredictConfig) -> tuple[NetworkConfig, str]:
    """The network of a file of weights or of `module:factory`, and what tables say of it. Raises:
    InputError."""
    if not isinstance(config.run, RunFolder):
        if config.network is not None:
            raise InputError(
                f"--run {config.run} names a network already: leave --network.name out, or give its file of "
                "weights as --run"
            )
        return NetworkConfig(name=config.run), f"network {config.run.rpartition('/')[2]}"
    path = Path(config.run)
    if config.network is None:
        raise InputError(
            f"{path} is a file of weights: name its network with --network.name and --network.encoder"
        )
    return replace(config.network, pretrained=False, weights=str(path)), f"weights {path.name}"


def _input(config: PredictConfig, draws: bool) -> str | None:
    """Where it is not the default: size, window, and the seed of what is drawn."""
    given = {"size": config.size, "window": config.window}
    parts = [f"{name} {value[0]}x{value[1]}" for name, value in given.items() if value]
    parts += [f"seed {config.seed}"] if draws and config.seed != PredictConfig.seed else []
    return ", ".join(parts) or None


def _hash(network: nn.Module) -> str:
    """Of the weights; of a black box, whose weights cannot be seen, of the file that its factory is in."""
    digest = hashlib.sha256()
    if isinstance(network, BlackBox) and network.file is not None:
        digest.update(network.file.read_bytes())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
