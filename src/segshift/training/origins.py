"""What a trained network has seen: the data of its run, and of the runs that it started from."""

from __future__ import annotations

import logging
from pathlib import Path

from segshift import records, runs
from segshift.config import TrainConfig
from segshift.data import frames
from segshift.data.frames import Dataset
from segshift.runs import InputError

_log = logging.getLogger(__name__)


def trainings(run: Path) -> list[TrainConfig]:
    """Of a run and of those that it started from; none for a file of weights. Raises: InputError where they
    go round in a circle."""
    found: dict[Path, TrainConfig] = {}
    while run.is_dir():
        if run.resolve() in found:
            raise InputError(
                f"{run}/config.json names as from_run a run that started from it: restore that file"
            )
        config = found[run.resolve()] = runs.read_config(run / "config.json", TrainConfig)
        if config.from_run is None:
            break
        run = Path(config.from_run)
    return list(found.values())


def transferred_domains(run: Path, judge: records.Judge) -> set[str]:
    """Domains whose transferred frames a network was trained on, by the names of their folders and by the
    prompts in their manifests; as far as these are still there. Only those that the generator `judge` made,
    and those that do not say what made them."""
    found = set()
    for config in trainings(run):
        for name in (config.source, *config.more_sources, *config.transferred):
            tree = frames.split(name)[1]
            lines = runs.read_lines(tree / "manifest.jsonl", records.Line)
            first: records.Line = lines[0] if lines else {"id": ""}
            if (lines or name in config.transferred) and identity(first) in (None, identity(judge)):
                found |= {tree.name, first.get("prompt", tree.name)}
    return found


def identity(made: records.Line | records.Judge) -> str | None:
    """What tells a generator from others: the hash of its denoising network; the name of a generator without
    weights."""
    weights = made.get("weights", {})
    return weights.get("unet") or weights.get("transformer") or made.get("model")


def warn_of_training_frames(run: Path, data: Dataset, who: str) -> None:
    """Warn where frames of `data` were trained on: scores there are too high. who: what the network is
    called."""
    seen: set[Path] = set()
    for name in dict.fromkeys(
        name for config in trainings(run) for name in (config.source, *config.more_sources)
    ):
        try:
            seen |= frames.images_of((frames.load(name),))
        except InputError:
            continue  # not there any more
    if known := len(frames.images_of((data,)) & seen):
        _log.warning(
            "%d of %d frames of %s were trained on by %s: its scores there, and what follows from them, are "
            "far too high; name a split that no training has seen",
            known,
            len(data.frames),
            data.name,
            who,
        )
