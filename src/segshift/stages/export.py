"""Export: a trained network as one file that runs without segshift.

    input    images [B, 3, H, W] float32, RGB in [0, 1]: the normalisation is inside
    output   logits [B, C, H, W] float32, classes outside the class set at -1e9; with `argmax` the train ids
             [B, H, W] uint8, as `classes`

A dynamic file takes any B, and any H and W in multiples of the network's stride (mostly 32). The names of the
classes, by train id, are in the file: `classes` of an ONNX file's metadata, or the extra file `classes.json`
of a .pt2. Then the file is run on frames, by onnxruntime or torch, and compared with the run.
"""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from segshift import execution, predictor, runs
from segshift.config import ExportConfig, PredictConfig, TrainConfig
from segshift.data import frames, pictures, transforms
from segshift.data.labels import CITYSCAPES
from segshift.methods.base import Method
from segshift.networks import adapters
from segshift.networks.custom import BlackBox
from segshift.networks.segmenter import Segmenter
from segshift.predictor import Predictor
from segshift.runs import InputError
from segshift.scoring import inference
from segshift.users_code import first_line

_log = logging.getLogger(__name__)

NEEDED = ("onnx", "onnxscript", "onnxruntime")
"""Packages of the extra `export`."""
EQUAL = 0.999
"""Share of equal labels below which a warning is given."""

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from the run on the same frames."""

    frames: int
    difference: float | None
    """Largest difference of logits; None of a file that gives train ids."""
    equal: float
    """Share of pixels with the same label."""
    rates: tuple[float, float]
    """Frames a second of the run and of the file, on the CPU."""


class _Exported(nn.Module):
    """What the file computes: the logits of `scoring.inference`, or their argmax."""

    def __init__(self, method: Method, argmax: bool):
        super().__init__()
        self.method, self.argmax = method, argmax

    def forward(self, images: Tensor) -> Tensor:
        logits = self.method.predict(images).float().clamp(min=-1e9)
        return logits.argmax(1).to(torch.uint8) if self.argmax else logits


def export(config: ExportConfig, out: str | Path) -> Path:
    """Write the network of `config.run` to `out`, .onnx or .pt2, and print how far it is from the run.

    Raises: InputError for a file that exists, packages that are missing, frames that are, a network that
    cannot be traced, and one that samples its prediction where images of any size are asked for.
    """
    execution.one_process("export")
    out = _file(out)
    path = PredictConfig(
        config.run, checkpoint=config.checkpoint, network=config.network, size=config.size, device="cpu"
    )
    loaded = predictor.of(path)
    method = loaded.method
    if any(isinstance(module, BlackBox) for module in method.modules()):
        raise InputError(f"{config.run} is a black box, which cannot be exported: export where it was made")
    if config.dynamic and method.sampling is not None:
        raise InputError(
            f"{config.run} samples its prediction from noise of the image's size: leave --dynamic out, and "
            "choose the size by --size"
        )
    files = _frames(config)
    height, width = loaded.size or frames.image_size(files[0])
    # Strides of NHWC, which train faster, are symbols that ONNX does not take.
    method.to(memory_format=torch.contiguous_format)
    sizes, free = [(height, width)], None
    if config.dynamic:
        stride = max(module.stride for module in method.modules() if isinstance(module, Segmenter))
        high, wide = -(-height // stride), -(-width // stride)
        sizes = [(stride * high, stride * wide), (stride * (high + 1), stride * (wide + 2))]
        free = {0: Dim("batch", min=1), 2: stride * Dim("high", min=1), 3: stride * Dim("wide", min=1)}
    example = torch.rand(2 if config.dynamic else 1, 3, *sizes[-1])  # what is 1 stays 1
    method.freeze_draws(example)
    program = _traced(_Exported(adapters.merged(method), config.argmax).eval(), example, free)
    with runs.atomic(out) as temporary:
        _write(temporary, program, config, json.dumps(loaded.space.names))
        parity = _compare(config, loaded, _reader(temporary), files, sizes)
    _print(out, parity)
    return out


def _file(out: str | Path) -> Path:
    path = Path(runs.user_path(out))
    if path.suffix not in (".onnx", ".pt2"):
        raise InputError(f"{path} ends in neither .onnx nor .pt2: name a file that does")
    if path.exists():
        raise InputError(f"{path} exists: name a new file, or delete it")
    missing = [name for name in NEEDED if path.suffix == ".onnx" and find_spec(name) is None]
    if missing:
        raise InputError(
            f"an export to .onnx needs {', '.join(missing)}: install the extra, pip install "
            "'segshift[export]', or name a .pt2 file"
        )
    return path


def _frames(config: ExportConfig) -> list[Path]:
    """Pictures to compare on. Raises: InputError."""
    if config.images is not None:
        data, video = pictures.find(config.images, CITYSCAPES)
        if video is not None:
            raise InputError(f"{config.images} is a video: name a picture, a folder or a glob in --images")
    elif Path(config.run).is_dir():
        trained = runs.read_config(Path(config.run) / "config.json", TrainConfig)
        try:
            data = frames.load(trained.validation or trained.source)
        except InputError as error:
            raise InputError(f"{error}; or name pictures to compare on in --images") from error
    else:
        raise InputError(f"{config.run} has no frames to compare on: name pictures in --images")
    return [frame.image for frame in data.frames[: config.frames]]


def _traced(network: nn.Module, example: Tensor, free: dict[int, Dim] | None) -> ExportedProgram:
    """free: dimensions of the images that may vary. Raises: InputError naming the operation that cannot be
    traced."""
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(network, (example,), dynamic_shapes=free and {"images": free})
    except Exception as error:  # the user's network may raise anything
        raise InputError(
            f"the network cannot be traced ({type(error).__name__}: {first_line(error)}) at "
            f"{_operation(error)}: make it a fixed sequence of torch's operations"
        ) from error


def _operation(error: BaseException) -> str:
    """The line outside of torch that led to an error, with its place."""
    home = str(Path(torch.__file__).parent)
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(home)
    ]
    return f"'{(own[-1].line or '')[:80]}' in {own[-1].filename}, line {own[-1].lineno}"


def _write(out: Path, program: ExportedProgram, config: ExportConfig, classes: str) -> None:
    """Raises: InputError naming the operation that ONNX does not have."""
    if out.suffix == ".pt2":
        torch.export.save(program, out, extra_files={"classes.json": classes})
        return
    name = "classes" if config.argmax else "logits"
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=config.opset,
                input_names=["images"],
                output_names=[name],
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        found = re.search(r"No ONNX function found for <OpOverload\(op='([^']*)'", str(error))
        why = f"the operation {found[1]}" if found else f"an operation ({first_line(error)})"
        raise InputError(
            f"the network uses {why}, which ONNX does not have: export to a .pt2 file, or replace it in the "
            "network"
        ) from error
    assert made is not None
    made.model.metadata_props["classes"] = classes
    made.save(out, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the exporters print about themselves is left out."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _reader(path: Path) -> Run:
    """The file as a function of images [B, 3, H, W] in [0, 1]."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@torch.inference_mode()
def _compare(
    config: ExportConfig, loaded: Predictor, run: Run, files: list[Path], sizes: list[tuple[int, int]]
) -> Parity:
    """The file against the run, frame by frame, at each of the sizes in turn."""
    differences, equal, seconds = [0.0], [], np.zeros(2)
    with runs.progress("compare", len(files)) as bar:
        for number, file in enumerate(files):
            image = torch.from_numpy(frames.read_image(file)).permute(2, 0, 1)
            image = transforms.resize_image(image, sizes[number % len(sizes)])[None]
            started = time.perf_counter()
            expected, _ = inference.infer(loaded.method, image, [0])
            between = time.perf_counter()
            found = run(image.float() / 255)
            seconds += between - started, time.perf_counter() - between
            if not config.argmax:
                differences.append((found - expected).abs().max().item())
                found = found.argmax(1)
            equal.append((found == expected.argmax(1)).float().mean().item())
            bar.advance()
    rates = len(files) / seconds
    difference = None if config.argmax else max(differences)
    return Parity(len(files), difference, float(np.mean(equal)), (float(rates[0]), float(rates[1])))


def _print(out: Path, parity: Parity) -> None:
    runner = "onnxruntime" if out.suffix == ".onnx" else "the file"
    logits = "" if parity.difference is None else f"largest difference of logits {parity.difference:.1e}, "
    Console(soft_wrap=True, highlight=False).print(
        f"{parity.frames} frames: {logits}equal labels {100 * parity.equal:.3f} %; "
        f"torch {parity.rates[0]:.1f} frames/s, {runner} {parity.rates[1]:.1f} frames/s on cpu"
    )
    if parity.equal < EQUAL:
        _log.warning(
            "%s and the run give %.2f %% of the pixels other labels: do not rely on the file",
            out,
            100 * (1 - parity.equal),
        )
