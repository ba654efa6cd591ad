"""Weights from files: what each family of networks reads, and what is refused. Nothing is unpickled."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from segshift import hub
from segshift.networks.adapters import merged_tensors
from segshift.runs import InputError
from segshift.users_code import first_line

if TYPE_CHECKING:
    from segshift.networks.segmenter import Segmenter

Tensors = dict[str, Tensor]
EncoderTensors = Callable[[nn.Module, Tensors], Tensors | None]
"""Finds an encoder's tensors in a file's, by the encoder's own names; None where the file lacks some."""


def own_names(encoder: nn.Module, tensors: Tensors) -> Tensors | None:
    """The encoder's tensors where the file names them as the encoder does; others, as a classifier's, are
    left out.
    """
    own = encoder.state_dict()
    known = _counters(own) | tensors
    return {key: known[key] for key in own} if own.keys() <= known.keys() else None


def _counters(own: Tensors) -> Tensors:
    """Batch norm's counts of batches, which files of other programs may lack: ours stay as they are."""
    return {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}


def timm_names(encoder: nn.Module, tensors: Tensors) -> Tensors | None:
    """The same for an encoder around a network of timm, from that network's own file.

    smp and `networks.iccld` hold timm's network as `model`; timm's extractors call `stages.0` `stages_0`.
    """
    names = {key: re.sub(r"^(model\.|body\.)+", "", key) for key in encoder.state_dict()}
    known = {key.replace(".", "_", 1): value for key, value in tensors.items()} | tensors
    known |= {key: known[name] for key, name in names.items() if key not in known and name in known}
    return own_names(encoder, known)


@contextmanager
def making_timm(encoder: str, pretrained: bool) -> Iterator[None]:
    """A block that makes a backbone of timm. Raises: InputError for an unknown name or a failed download."""
    try:
        with hub.access() if pretrained else nullcontext():
            yield
    except InputError:
        raise
    except (OSError, HTTPError) as error:
        raise InputError(
            f"cannot download the weights of timm's {encoder} from the hub ({first_line(error)}): start "
            "from random weights with --network.no-pretrained, or from a local copy with --network.weights"
        ) from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"timm makes no backbone '{encoder}' ({first_line(error)}): choose one of timm.list_models(), "
            "or take --network.no-pretrained where it has no published weights"
        ) from error


def load_weights(segmenter: Segmenter, path: Path, *, whole: bool = False) -> None:
    """Load weights of the whole network, of a run's checkpoint, or of the encoder alone.

    `path`: .safetensors, or .pt/.pth read with `weights_only=True`, bare or under 'state_dict' or 'model'.
    `whole`: refuse files that hold only an encoder. Adapters in the file are merged.
    Raises: InputError when the file is missing, unreadable, or of another network.
    """
    tensors = segmenter.from_file(merged_tensors(read_tensors(path)))
    state = segmenter.network.state_dict()
    own = state.keys() - _counters(state).keys()
    for prefix in ("segmenter.network.", "module.", "network."):
        if not own <= tensors.keys() and any(key.startswith(prefix) for key in tensors):
            tensors = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }
            break
    encoder = segmenter.encoder
    alone = None if encoder is None or own <= tensors.keys() else segmenter.encoder_tensors(encoder, tensors)
    if encoder is None or alone is None:
        load_tensors(segmenter.network, tensors, path)
    elif whole:
        raise InputError(f"{path} holds weights of an encoder alone: name those of the whole trained network")
    else:
        load_tensors(encoder, alone, path)


def read_tensors(path: Path) -> Tensors:
    """Tensors by name. Raises: InputError when `path` is missing or is not a file of weights alone."""
    if not path.is_file():
        raise InputError(f"no weights at {path}: expected a .safetensors, .pt or .pth file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is no readable .safetensors file ({first_line(error)}): copy it again, or name "
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
        with warnings.catch_warnings(action="ignore"):  # about the pickle protocol: what matters is an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes raise whatever they please
        reason = "it holds other objects" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        reason = "it is a file of another kind" if isinstance(error, LookupError) else reason
        raise InputError(
            f"cannot read {path} ({reason or type(error).__name__}): expected tensors, numbers and text "
            "written by torch.save: copy the file again, or name another one"
        ) from error


def load_tensors(module: nn.Module, tensors: Tensors, path: Path) -> None:
    """`load_state_dict`. Raises: InputError for tensors of another network, or not finite ones."""
    own = module.state_dict()
    tensors = _counters(own) | tensors
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    other = sorted(key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape)
    if missing or unexpected or other:
        counts = {"tensors missing": missing, "unknown": unexpected, "of another shape": other}
        found = ", ".join(f"{len(keys)} {what}" for what, keys in counts.items() if keys)
        raise InputError(
            f"{path} is a checkpoint of another network: {found}, such as "
            f"'{(missing or unexpected or other)[0]}': name the network and encoder it was trained with"
        )
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"'{key}' in {path} is not finite: name another checkpoint, or train again with a lower --lr"
            )
    module.load_state_dict(tensors)
