"""Segmentation networks, from libraries or the user's own, behind one interface.

    B, C, H, W   batch, classes, height, width
    images       [B, 3, H, W] in [0, 1]; the ImageNet normalisation is inside the segmenter
    logits       [B, C, H, W] at the images' own size, whatever the network's stride
    features     output of the named layer: [B, D, h, w], or [B, tokens, D] of a transformer

The names a user can give, and where the networks come from: `NetworkConfig`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import os
import pickle
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import Tensor, nn

from segshift import hub
from segshift.config import NetworkConfig
from segshift.iccld_network import LatentSegmenter
from segshift.refinenet import RefineNet
from segshift.runs import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRIDE = 32
"""Images are padded to multiples of it: every common encoder's coarsest stride divides it."""


class Segmenter(nn.Module):
    """A network with its normalisation, padding and feature layer."""

    def __init__(self, network: nn.Module, classes: int, feature_layer: str | None, stride: int = STRIDE):
        """`feature_layer`: dotted name of a submodule of `network`; None where the network has no known one.

        Raises: InputError when there is no such layer or the network does not give `classes` channels.
        """
        super().__init__()
        self.network = network
        self.classes = classes
        self.stride = stride
        self.feature_layer = feature_layer
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        if feature_layer is not None and feature_layer not in dict(network.named_modules()):
            layers = ", ".join(name for name, _ in network.named_modules() if name and name.count(".") < 2)
            raise InputError(
                f"no layer '{feature_layer}' in the network: name one of its own in --network.feature-layer, "
                f"such as {layers[:120]}"
            )
        self._probe()

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to logits [B, C, H, W]."""
        height, width = images.shape[-2:]
        x = self.prepare(images)
        logits = _logits(self.network(x))
        if logits.shape[-2:] != x.shape[-2:]:
            logits = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] as the network takes them: normalised, and padded to the stride."""
        height, width = images.shape[-2:]
        x = (images - self.mean) / self.std
        return F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")

    def forward_with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] in [0, 1] to logits [B, C, H, W] and the feature layer's output, from one pass.

        Raises: InputError when the network has no known feature layer.
        """
        self.require_features()
        with self._watch() as outputs:
            logits = self(images)
        return logits, self._last(outputs)

    @contextmanager
    def _watch(self) -> Iterator[list[object]]:
        """Collect what the feature layer returns; nothing where none is known."""
        outputs: list[object] = []
        if self.feature_layer is None:
            yield outputs
            return
        layer = self.network.get_submodule(self.feature_layer)
        handle = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            yield outputs
        finally:
            handle.remove()

    def _last(self, outputs: list[object]) -> Tensor:
        if not outputs:
            raise InputError(
                f"layer '{self.feature_layer}' takes no part in the network's forward pass: name another "
                "one in --network.feature-layer"
            )
        return _features(outputs[-1])

    def require_features(self) -> None:
        """Raises: InputError when the network has no known feature layer."""
        if self.feature_layer is None:
            raise InputError(
                "the similarity loss compares a layer's output, and segshift knows none of this network: "
                "name one in --network.feature-layer, or train with --similarity none"
            )

    def require_gradients(self) -> None:
        """Raises: InputError when no gradient can reach a parameter of the network."""
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            raise InputError(
                "the network has nothing to train, for requires_grad is False for all of its parameters: set "
                "it to True for those to be trained"
            )
        if not self._differentiable:
            raise InputError(
                "the network's logits carry no gradient to its parameters: remove detach(), torch.no_grad() "
                "and the like from its forward pass"
            )

    def _probe(self) -> None:
        """Pass one small picture through the network, and check what comes out."""
        height = math.lcm(128, self.stride)  # PAN needs 128
        width = 2 * height  # not square: swapped and fixed sizes show
        was_training = self.training
        self.eval()  # batch norm keeps its statistics, dropout draws nothing
        failed = f"the network fails on a picture of {height}x{width}"
        expected = f"expected one that takes images [B, 3, H, W] of any size in multiples of {self.stride}"
        with self._watch() as outputs, torch.enable_grad(), _users_code(failed, expected):
            output = self.network(torch.zeros(1, 3, height, width))
        self.train(was_training)
        logits = _logits(output)
        if not logits.is_floating_point():
            raise InputError(
                f"the network's logits are {logits.dtype}, expected floating-point numbers: return them "
                "before any argmax"
            )
        shape = list(logits.shape)
        if len(shape) != 4 or shape[:2] != [1, self.classes]:
            raise InputError(
                f"the network's output has shape {shape}, expected [1, {self.classes}, height, width] with "
                f"one channel for each of the {self.classes} classes: change its last layer"
            )
        if not 0.8 * shape[3] * height < shape[2] * width < 1.25 * shape[3] * height:
            raise InputError(
                f"the network's output for a picture of {height}x{width} has shape {shape}, expected logits "
                "of its size, or of another in the same ratio of height to width: change the last layer"
            )
        self._differentiable = logits.requires_grad
        features = None if self.feature_layer is None else self._last(outputs)
        self.feature_channels = None if features is None else features.shape[1 if features.ndim == 4 else 2]
        """D; None where no feature layer is known."""


def _logits(output: object) -> Tensor:
    """The logits in what a network returns: a tensor, transformers' output object, or torchvision's {"out": ...}."""
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("out")
    if not isinstance(found, Tensor):
        raise InputError(
            f"the network returned {type(output).__name__}, expected logits [B, classes, height, width], "
            "an object with .logits, or a dict with 'out'"
        )
    return found


def _features(output: object) -> Tensor:
    """The features in what a layer returns: a tensor, the last of several stages, or transformers' output objects."""
    for name in ("feature_maps", "last_hidden_state"):
        output = getattr(output, name, output)
    if isinstance(output, tuple) and output and isinstance(output[0], list):
        output = output[0]  # smp's transformers: the stages, and their class tokens
    if isinstance(output, list | tuple) and output:
        output = output[-1]
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        raise InputError(
            f"the feature layer returned {type(output).__name__}, expected a tensor [B, D, h, w] or [B, "
            "tokens, D], or a list of them: name another layer in --network.feature-layer"
        )
    return output


def build(config: NetworkConfig, classes: int, *, trained: bool = False) -> Segmenter:
    """The network that `config` names, with `classes` output channels, on the CPU in training mode.

    `trained`: for prediction. Refuse files that hold only an encoder; allow logits without a gradient.
    Raises: InputError for an unknown name, a missing download, another number of classes, a network that
    cannot be trained, or weights of another one.
    """
    pretrained = config.pretrained and config.weights is None  # the weights file replaces the download
    stride = STRIDE
    if config.name == "iccld":
        network, layer = _latent(config, pretrained, classes), "encoder"
    elif config.name.startswith("hf:"):
        network, layer = _transformers(config.name.removeprefix("hf:"), pretrained, classes)
    elif ":" in config.name:
        network = _imported(config.name, classes)
        layer = "encoder" if isinstance(getattr(network, "encoder", None), nn.Module) else None
    else:
        network, layer = _smp(config.name, config.encoder, pretrained, classes), "encoder"
        stride = math.lcm(STRIDE, network.encoder.output_stride)
    segmenter = Segmenter(network, classes, config.feature_layer or layer, stride)
    if config.weights is not None:
        load_weights(segmenter, Path(config.weights), whole=trained)
    if not trained:
        segmenter.require_gradients()
    return segmenter.train()


def _smp(name: str, encoder: str, pretrained: bool, classes: int) -> nn.Module:
    if pretrained and encoder.startswith("mit_"):
        warnings.warn(
            f"the ImageNet weights of encoder {encoder} are NVIDIA's and for non-commercial use only; "
            "--network.no-pretrained does without them",
            stacklevel=3,
        )
    weights = (encoder.startswith("tu-") or "imagenet") if pretrained else None  # timm's have one set, True
    more = {"dynamic_img_size": True} if name == "dpt" else {}  # else a transformer takes one size alone
    try:
        with hub.access() if pretrained else nullcontext():
            if name == "refinenet":
                network = RefineNet(encoder, weights, classes)
            else:
                network = smp.create_model(name, encoder, encoder_weights=weights, classes=classes, **more)
    except (OSError, HTTPError) as error:
        raise InputError(
            f"cannot download model.safetensors of {_encoder_home(encoder)} from the hub "
            f"({_first_line(error)}): start from random weights with --network.no-pretrained, or from a "
            "local copy of that file with --network.weights"
        ) from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no network '{name}' with encoder '{encoder}' ({_first_line(error)}): choose both from "
            "segmentation-models-pytorch, or refinenet, hf:<name>, or <module>:<factory>"
        ) from error
    return network.to(memory_format=torch.channels_last)  # 3 to 9 % faster on a CPU, more on a GPU


def _latent(config: NetworkConfig, pretrained: bool, classes: int) -> nn.Module:
    encoder = config.encoder.removeprefix("tu-")  # as smp marks timm's
    try:
        with hub.access() if pretrained else nullcontext():
            network = LatentSegmenter(
                encoder, classes, pretrained=pretrained,
                latent_channels=config.latent_channels, inter_coder=config.inter_coder,
            )  # fmt: skip
    except InputError:
        raise
    except (OSError, HTTPError) as error:
        raise InputError(
            f"cannot download the weights of timm's {encoder} from the hub ({_first_line(error)}): start "
            "from random weights with --network.no-pretrained, or from a local copy with --network.weights"
        ) from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"timm makes no backbone '{encoder}' ({_first_line(error)}): choose one of timm.list_models(), "
            "or take --network.no-pretrained where it has no published weights"
        ) from error
    return network.to(memory_format=torch.channels_last)


def _encoder_home(encoder: str) -> str:
    settings = smp_encoders.get(encoder, {}).get("pretrained_settings", {}).get("imagenet", {})
    return settings.get("repo_id", f"timm's {encoder.removeprefix('tu-')}")


def _transformers(name: str, pretrained: bool, classes: int) -> tuple[nn.Module, str | None]:
    from transformers import AutoConfig, AutoModelForSemanticSegmentation  # a second: only where used

    try:
        with nullcontext() if Path(name).is_dir() else hub.access():
            if pretrained:
                network = AutoModelForSemanticSegmentation.from_pretrained(
                    name, num_labels=classes, ignore_mismatched_sizes=True, use_safetensors=True
                )
            else:
                settings = AutoConfig.from_pretrained(name, num_labels=classes)
                network = AutoModelForSemanticSegmentation.from_config(settings)
    except OSError as error:
        files = "config.json and model.safetensors" if pretrained else "config.json"
        raise InputError(
            f"cannot read {files} of '{name}', neither as a local folder nor from the hub "
            f"({_first_line(error)}): download them where there is a network, and name their folder with "
            "--network.name hf:<folder>"
        ) from error
    except ValueError as error:
        raise InputError(
            f"'{name}' is no semantic segmentation network of transformers ({_first_line(error)}): name "
            "one that AutoModelForSemanticSegmentation reads"
        ) from error
    network = network.float()  # a file may hold half precision
    if isinstance(getattr(network, "backbone", None), nn.Module):
        return network, "backbone"
    return network, network.base_model_prefix if hasattr(network, network.base_model_prefix) else None


def _imported(name: str, classes: int) -> nn.Module:
    module_name, _, factory_name = name.partition(":")
    names = [*module_name.split("."), factory_name]
    if module_name.endswith(".py") or not all(part.isidentifier() for part in names):
        guess = module_name.removeprefix("./").removesuffix(".py").replace("/", ".")
        guess = guess if all(part.isidentifier() for part in guess.split(".")) else "mynet"
        factory_name = factory_name if factory_name.isidentifier() else "build"
        raise InputError(
            f"network '{name}' is no <module>:<factory>: write {guess}:{factory_name}, with dots for folders "
            "and without .py, seen from the current folder"
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # the user's file lies where the command is started
    expected = f"expected <module>:<factory>, importable from {here} or installed"
    with _users_code(f"cannot import network '{name}'", expected):
        factory = getattr(importlib.import_module(module_name), factory_name)
    try:
        inspect.signature(factory).bind(classes=classes)
    except ValueError:
        pass  # written in C, it has none to look at
    except TypeError as error:
        raise InputError(
            f"network '{name}' cannot be called as {factory_name}(classes={classes}) ({_first_line(error)}): "
            "give it an argument `classes`, and defaults for all others"
        ) from error
    expected = f"make {factory_name}(classes={classes}) return a network"
    with _users_code(f"network '{name}' fails when it is built", expected):
        network = factory(classes=classes)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"network '{name}' made a {type(network).__name__}, expected a torch.nn.Module from "
            f"{factory_name}(classes={classes})"
        )
    return network


@contextmanager
def _users_code(failed: str, expected: str) -> Iterator[None]:
    """A block of the user's own code. Raises: InputError for whatever it raises, naming its file and line."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        line = error.msg if isinstance(error, SyntaxError) else _first_line(error)
        raise InputError(f"{failed} ({type(error).__name__}: {line}{_place(error)}): {expected}") from error


_INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
_LIBRARIES = ("<", str(Path(__file__).parent), *_INSTALLED)


def _place(error: BaseException) -> str:
    """' in FILE, line N', the last line of the user's own code that led to `error`; '' for none."""
    if isinstance(error, SyntaxError):
        return f" in {error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    return f" in {own[-1].filename}, line {own[-1].lineno}" if own else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().strip("'\"").split("\n")[0][:200]


def require_finite(logits: Tensor) -> None:
    """Raises: InputError when the largest of some pixel's logits [B, C, H, W] is not finite.

    -inf is right for classes outside the class set, but not for all classes of a pixel.
    """
    if not logits.amax(1).isfinite().all():
        raise InputError(
            "the network's logits are not finite, though its weights are: predict with another checkpoint, "
            "or train again with a lower --lr"
        )


def load_weights(segmenter: Segmenter, path: Path, *, whole: bool = False) -> None:
    """Load weights of the whole network, of a run's checkpoint, or of the encoder alone (timm's names, too).

    `path`: .safetensors, or .pt/.pth read with `weights_only=True`, bare or under 'state_dict' or 'model'.
    `whole`: refuse files that hold only an encoder.
    Raises: InputError when the file is missing, unreadable, or of another network.
    """
    tensors = read_tensors(path)
    own = segmenter.network.state_dict().keys()
    for prefix in ("segmenter.network.", "module.", "network."):
        if not own <= tensors.keys() and any(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            break
    encoder = getattr(segmenter.network, "encoder", None)
    alone = None
    if not own <= tensors.keys() and isinstance(encoder, nn.Module):
        alone = _encoder_tensors(encoder, tensors)
    if alone is None:
        load_tensors(segmenter.network, tensors, path)
    elif whole:
        raise InputError(f"{path} holds weights of an encoder alone: name those of the whole trained network")
    else:
        load_tensors(encoder, alone, path)


def _encoder_tensors(encoder: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The encoder's tensors by its own names, without a classifier's; None where the file lacks some.

    smp and `iccld_network` hold timm's network as `model`; timm's extractors call `stages.0` `stages_0`.
    """
    names = {key: re.sub(r"^(model\.|body\.)+", "", key) for key in encoder.state_dict()}
    known = {key.replace(".", "_", 1): value for key, value in tensors.items()} | tensors
    known |= {key: known[name] for key, name in names.items() if key not in known and name in known}
    if names.keys() <= known.keys():
        return {key: known[key] for key in names}
    if type(encoder).load_state_dict is nn.Module.load_state_dict:
        return None
    encoder = copy.deepcopy(encoder)
    try:
        encoder.load_state_dict(dict(tensors))  # smp's encoders know older names of their files
    except RuntimeError:
        return None
    return encoder.state_dict()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name. Raises: InputError when `path` is missing or is not a file of weights alone."""
    if not path.is_file():
        raise InputError(f"no weights at {path}: expected a .safetensors, .pt or .pth file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is no readable .safetensors file ({_first_line(error)}): copy it again, or name "
                "another one"
            ) from error
    content = read_pickled(path)
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise InputError(
            f"{path} holds no state dict: expected tensors by name, bare or under 'state_dict' or 'model'"
        )
    return content


def read_pickled(path: Path) -> Any:
    """Tensors, numbers and text written by `torch.save`, on the CPU. Raises: InputError for other files."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes raise whatever they please
        reason = "it holds other objects" if isinstance(error, pickle.UnpicklingError) else _first_line(error)
        raise InputError(
            f"cannot read {path} ({reason or type(error).__name__}): expected tensors, numbers and text "
            "written by torch.save: copy the file again, or name another one"
        ) from error


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """`load_state_dict`. Raises: InputError for tensors of another network, or not finite ones."""
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    other = sorted(key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape)
    if missing or unexpected or other:
        found = [
            f"{len(keys)} {what} (such as '{keys[0]}')"
            for keys, what in ((missing, "tensors missing"), (unexpected, "unknown"), (other, "of another shape"))
            if keys
        ]
        raise InputError(
            f"{path} is a checkpoint of another network: {', '.join(found)}: name the network and encoder "
            "it was trained with"
        )
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"'{key}' in {path} is not finite: name another checkpoint, or train again with a lower --lr"
            )
    module.load_state_dict(tensors)
