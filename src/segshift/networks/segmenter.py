"""The interface of every segmentation network.

B, C, H, W   batch, classes, height, width
images       [B, 3, H, W] in [0, 1]; the ImageNet normalisation is inside the segmenter
logits       [B, C, H, W] at the images' own size, whatever the network's stride
features     output of the named layer: [B, D, h, w], or [B, tokens, D] of a transformer
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segshift.networks.weights import EncoderTensors, Tensors, own_names
from segshift.runs import InputError
from segshift.users_code import users_code

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRIDE = 32
"""Images are padded to multiples of it: every common encoder's coarsest stride divides it."""


class Segmenter(nn.Module):
    """A network with its normalisation, padding and feature layer."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        feature_layer: str | None,
        stride: int = STRIDE,
        *,
        encoder: str = "encoder",
        encoder_tensors: EncoderTensors = own_names,
        head_lr: float = 1.0,
    ):
        """`feature_layer`, `encoder`: dotted names of submodules of `network`. `feature_layer` is None where
        no layer is known; a network may do without an encoder. `encoder_tensors` finds the encoder's tensors
        in a file of weights.
        `head_lr`: factor on the learning rate outside the encoder, unless --head-lr says another.

        Raises: InputError when there is no such layer or the network does not give `classes` channels.
        """
        super().__init__()
        self.network = network
        self.classes = classes
        self.stride = stride
        self.feature_layer = feature_layer
        self.encoder_name, self.encoder_tensors, self.head_lr = encoder, encoder_tensors, head_lr
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        if feature_layer is not None and feature_layer not in dict(network.named_modules()):
            layers = ", ".join(name for name, _ in network.named_modules() if name and name.count(".") < 2)
            raise InputError(
                f"no layer '{feature_layer}' in the network: name one of its own in --network.feature-layer, "
                f"such as {layers[:120]}"
            )
        self._probe()

    @property
    def encoder(self) -> nn.Module | None:
        """The part that is pretrained; None where the network has none."""
        return dict(self.network.named_modules()).get(self.encoder_name)

    def from_file(self, tensors: Tensors) -> Tensors:
        """The tensors of a file by the network's own names."""
        return tensors

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass. Raises: InputError where the network cannot."""
        recompute = getattr(self.network, "checkpoint_gradients", None)
        if recompute is None:
            raise InputError(
                f"--gradient-checkpointing needs a network that can recompute its activations, and "
                f"{type(self.network).__name__} cannot: leave it out, or take --network.name iccld or vit"
            )
        recompute()

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
                "segshift knows no feature layer of this network: name one in --network.feature-layer"
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
        with self._watch() as outputs, torch.enable_grad(), users_code(failed, expected):
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
    """The logits in what a network returns: a tensor, transformers' output object, or torchvision's {"out":
    ...}.
    """
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
    """The features in what a layer returns: a tensor, the last of several stages, or transformers' output
    objects.
    """
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
