"""Training runs on the Hugging Face hub: what of a run goes there, and how it comes back.

    config.json                        the configuration; of folders the last name alone
    labels.json, environment.json      as in the run
    checkpoints/best*.safetensors      as in the run: of every selection rule that has chosen one
    scores.json                        SCORES
    README.md                          the model card (`training.card`)

Optimizer states and numbered checkpoints stay at home. What comes back is read as any run is.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from segshift import hub, runs
from segshift.config import TrainConfig
from segshift.data import frames
from segshift.runs import InputError, Saved
from segshift.settings import Data, HubRun, InputFolder
from segshift.users_code import first_line

CHECKPOINTS = "checkpoints/best*.safetensors"
FILES = ("config.json", "labels.json", "environment.json", CHECKPOINTS)
"""What is downloaded of a run: JSON and safetensors alone."""
_FOLDER = re.compile(r"(^|[:=])(/|~|\\\\|[A-Za-z]:[\\/])")


def folder(run: str) -> Path:
    """Where a run lies: that of a HubRun in the hub's cache, as `pulled`; any other as it is named."""
    return pulled(run) if isinstance(run, HubRun) else Path(run)


@cache  # a process sees one commit
def pulled(name: str) -> Path:
    """The run `hf:user/name[@revision]`, downloaded into the hub's cache; where the hub does not answer, what
    is there.

    Raises: InputError when it cannot be read, is no run, or names code of its own.
    """
    repository, _, revision = name.removeprefix("hf:").partition("@")
    try:
        with hub.access():
            home = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except HFValidationError as error:
        raise InputError(f"'{repository}' is no name on the hub ({first_line(error)}): correct it") from error
    except (OSError, HfHubHTTPError, HTTPError) as error:
        raise InputError(
            hub.refusal(repository, revision, error)
            or f"cannot download {name} ({first_line(error)}): go online once, or name a run folder"
        ) from error
    _require_run(home, name)
    return home


def _require_run(home: Path, name: str) -> None:
    """Raises: InputError when the download `home` is no run, or one whose network is code of its own."""
    try:
        saved: Saved | None = runs.read_json(home / "config.json", Saved)
    except InputError:
        saved = None
    if saved is None or saved["stage"] != "train" or not list(home.glob(CHECKPOINTS)):
        raise InputError(f"{name} holds no run of segshift: name what `segshift push` uploaded")
    network = runs.read_config(home / "config.json", TrainConfig, "train").network.name
    if is_own_code(network):
        raise InputError(
            f"{name} asks for the code '{network}' as its network, and code that a download asks for is "
            "never run: get a file of its weights and the code, and name both (--run FILE --network.name)"
        )


def is_own_code(network: str) -> bool:
    """Whether a network's name is `module:factory`."""
    return ":" in network and not network.startswith("hf:")


def portable(config: TrainConfig) -> dict[str, Any]:
    """The configuration as the hub gets it: of data sets, files and folders the last name alone.

    Raises: InputError for a network that is code or a folder of this machine.
    """
    network = config.network.name
    if is_own_code(network) or (network.startswith("hf:") and _FOLDER.search(network)):
        raise InputError(
            f"the network is '{network}' of this machine, which --run hf: cannot find elsewhere: publish it "
            "with its code, or train a network that segshift or the hub has"
        )
    made = runs.to_plain(_without_folders(config))
    for name, value in _texts("", made):
        if _FOLDER.search(value):
            raise InputError(
                f"{name} of the run is '{value}', a place on this machine: train with a name that others have"
            )
    return made


def _without_folders(value: Any) -> Any:
    if isinstance(value, Data):
        layout, path, subset = frames.split(value)
        return ":".join(filter(None, (layout, path.name, subset)))
    if isinstance(value, InputFolder):
        return Path(value).name
    if is_dataclass(value):
        return {field.name: _without_folders(getattr(value, field.name)) for field in fields(value)}
    return [_without_folders(item) for item in value] if isinstance(value, tuple) else value


def _texts(name: str, value: Any) -> list[tuple[str, str]]:
    """Every text in a plain value, with its dotted name."""
    if isinstance(value, str):
        return [(name, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in _texts(f"{name}.{key}".lstrip("."), item)]
