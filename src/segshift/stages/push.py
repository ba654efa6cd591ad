"""Push: a training run to a repository on the Hugging Face hub, with its model card (`training.sharing`).

Everything goes there in one commit, so a push that breaks off leaves nothing half done. The hub keeps what
the repository held before, and takes no file twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from rich.console import Console

from segshift import execution, hub, outputs, predictor, records, runs
from segshift.config import PredictConfig, PushConfig, TrainConfig
from segshift.runs import InputError, Saved
from segshift.settings import option
from segshift.training import checkpoints, sharing
from segshift.training.card import card
from segshift.users_code import first_line

MADE_BY_THE_HUB = {".gitattributes", "README.md"}
"""What a new repository may hold."""


def push(config: PushConfig) -> str:
    """Upload `config.run` to `config.name`; returns the address of the repository.

    Raises: InputError for a run that is none or that others could not load, evaluations of other weights, a
    repository that holds something else, and whatever the hub refuses.
    """
    execution.one_process("push")
    run = Path(config.run)
    trained = runs.read_config(run / "config.json", TrainConfig, "train")
    space = checkpoints.read_space(run)
    plain = sharing.portable(trained)
    scores = _scores(config, trained)
    files = {
        "config.json": _json({"stage": "train", "config": plain}),
        "labels.json": _json(runs.to_plain(space)),
        "environment.json": _json(runs.read_json(run / "environment.json", records.Versions)),
        "scores.json": _json(scores),
    }
    with _asking(config.name):
        api = HfApi()
        api.whoami()
        address = api.create_repo(config.name, private=not config.public, exist_ok=True)
        there = api.model_info(config.name)
        names = {sibling.rfilename for sibling in there.siblings or ()}

        def remote(name: str) -> bytes | None:
            """A file of the repository."""
            if name not in names:
                return None
            return Path(api.hf_hub_download(config.name, name, revision=there.sha)).read_bytes()

        _require_same(config.name, names, remote("config.json"), plain)
        readme = remote("README.md")
        before = None if readme is None else readme.decode(errors="replace")
        text = card(config.name, trained, plain, space, scores, config.license, before)
        contents: dict[str, Any] = {**files, "README.md": text.encode()}
        contents |= {f"checkpoints/{file}": run / "checkpoints" / file for file in scores["checkpoints"]}
        api.create_commit(
            config.name,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message="Upload a run of segshift",
            parent_commit=there.sha,
        )
    Console(soft_wrap=True, highlight=False).print(
        f"{address}, {'private' if there.private else 'public'}: predict with --run hf:{config.name}",
        markup=False,
    )
    return str(address)


def _scores(config: PushConfig, trained: TrainConfig) -> dict[str, Any]:
    """What scores.json holds: every best checkpoint with its step, rules and validation, and every
    evaluation, whose weights have to be one of them."""
    run = Path(config.run)
    lines = runs.read_lines(run / "metrics.jsonl", records.LOGGED)
    validated = {line["step"]: line["validation"] for line in lines if "validation" in line}
    chosen: dict[str, dict[str, Any]] = {}
    hashes = {}
    for rule in checkpoints.rules(trained):
        path = checkpoints.best_file(run, rule, trained.select)
        file = path.name
        if not path.exists():
            continue
        # Loading it shows that others can
        record = predictor.of(
            PredictConfig(config.run, checkpoint="best" if rule == trained.select else rule)
        ).record
        hashes[record["weights"]] = file
        step = checkpoints.best_record(run, rule)["step"]
        scores = {name: found["miou"] for name, found in validated.get(step, {}).items()}
        chosen[file] = {"step": step, "rule": rule, "validation": scores}
    if "best.safetensors" not in chosen:
        raise InputError(
            f"{run} has no checkpoint best.safetensors: continue the training until it has written one"
        )
    evaluations = []
    for folder in config.evaluations:
        found = runs.read_json(Path(folder) / "metrics.json", records.METRICS)
        model = found["model"] or {"weights": None, "run": "unknown weights"}
        if model["weights"] not in hashes:
            raise InputError(
                f"{folder} is an evaluation of {model['run']} with other weights than the best checkpoints "
                f"of {run}: predict and evaluate with one of these ({', '.join(chosen)})"
            )
        told = {name: found[name] for name in ("protocol", "setting", "miou", "pixel_accuracy", "iou")}
        evaluations.append(told | {"checkpoint": hashes[model["weights"]]})
    return {"checkpoints": chosen, "evaluations": evaluations}


def _require_same(name: str, names: set[str], saved: bytes | None, plain: dict[str, Any]) -> None:
    """Raises: InputError when a repository holds something else than this run."""
    if saved is None:
        if others := sorted(names - MADE_BY_THE_HUB):
            raise InputError(f"{name} holds other files ({', '.join(others)[:80]}): name a new repository")
        return
    try:
        theirs: Saved = runs.parsed(saved, Saved, "config.json")
    except InputError:
        raise InputError(f"{name} holds a model that is no run of segshift: name a new repository") from None
    differ = [
        told for told in outputs.differences("", theirs["config"], plain) if told[0] not in checkpoints.FREE
    ]
    if differ or theirs["stage"] != "train":
        why = f" ({option(differ[0][0])} {differ[0][1]} there, {differ[0][2]} here)" if differ else ""
        raise InputError(f"{name} holds another run{why[:120]}: name a new repository")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """A block that writes to the hub. Raises: InputError for what the hub refuses, and where there is
    none."""
    login = "run `hf auth login`, or set HF_TOKEN to a token that may write"
    try:
        with hub.access():
            yield
    except LocalTokenNotFoundError as error:
        raise InputError(f"nobody is logged in at {constants.ENDPOINT}: {login}") from error
    except HFValidationError as error:
        raise InputError(f"'{name}' is no name on the hub ({first_line(error)}): correct it") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code == 401 and not isinstance(error, RepositoryNotFoundError):
            raise InputError(
                f"{constants.ENDPOINT} does not know the token of this login: {login}"
            ) from error
        if code in (401, 403, 404):
            raise InputError(
                f"this login may not write to {name} ({_reason(error)}): name a repository of yours, or "
                f"{login}"
            ) from error
        if code in (409, 412):
            raise InputError(f"{name} was written to meanwhile: run the same command again") from error
        raise InputError(
            f"the hub refuses {name} ({_reason(error)}): correct what it names, or try again later"
        ) from error
    except (OSError, HTTPError) as error:
        raise InputError(
            f"cannot upload to {name} ({first_line(error)}): go online and run the same command again"
        ) from error
    except ValueError as error:
        if "README.md" not in str(error):
            raise
        what = runs.one_line(str(error), 160)
        raise InputError(f"the hub refuses the model card ({what}): correct --license") from error


def _reason(error: HfHubHTTPError) -> str:
    return error.server_message or first_line(error)
