"""The model card of a run: README.md of its repository on the Hugging Face hub.

What segshift writes stands between two marks. Where the repository has a README.md already, that part alone
is replaced, or added at its end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from segshift.config import CHECKPOINTS, TrainConfig
from segshift.data.labels import LabelSpace
from segshift.methods import METHODS
from segshift.networks import licences

BEGIN, END = "<!-- segshift -->", "<!-- end of segshift's part -->"
_OWN = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


def card(
    name: str,
    config: TrainConfig,
    plain: dict[str, Any],
    space: LabelSpace,
    scores: dict[str, Any],
    licence: str | None,
    before: str | None,
) -> str:
    """Markdown. plain: `sharing.portable` of the configuration. scores: SCORES of `sharing`. before: the
    README.md that is there."""
    part = f"{BEGIN}\n{_part(name, config, plain, space, scores, licence)}{END}"
    if before is None:
        return f"---\n{_metadata(name, config, scores, licence)}\n---\n\n# {name.split('/')[1]}\n\n{part}\n"
    return _OWN.sub(lambda _: part, before) if _OWN.search(before) else f"{before.rstrip()}\n\n{part}\n"


def _metadata(name: str, config: TrainConfig, scores: dict[str, Any], licence: str | None) -> str:
    """YAML, as the hub reads it."""
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=one["setting"].split(";")[0],
            dataset_name=one["setting"],
            metric_type="mean_iou",
            metric_value=one["miou"],
        )
        for one in scores["evaluations"]
        if one["miou"] is not None
    ]
    return ModelCardData(
        model_name=name.split("/")[1],
        library_name="segshift",
        pipeline_tag="image-segmentation",
        license=licence,
        tags=["segshift", "semantic-segmentation", "domain-adaptation", config.method],
        eval_results=results or None,
    ).to_yaml()


def _part(
    name: str,
    config: TrainConfig,
    plain: dict[str, Any],
    space: LabelSpace,
    scores: dict[str, Any],
    licence: str | None,
) -> str:
    method, network = METHODS[config.method], plain["network"]
    parts = [network["name"], network["encoder"] if not network["name"].startswith("hf:") else ""]
    parts += [f"head {network['head']}"] if network["name"] == "vit" else []
    parts += [] if network["adapter"] == "none" else [f"{network['adapter']} of rank {network['rank']}"]
    start = "random weights"
    if network["weights"]:
        start = f"the file {network['weights']}"
    elif config.network.pretrained:
        start = "published weights"
    data = {
        "labelled source": [plain["source"], *plain["more_sources"]],
        "transferred from it": plain["transferred"],
        "target, without labels": [plain["target"]] if plain["target"] else [],
    }
    published = licences.sentence_of(config.network) if start == "published weights" else None
    lines = [
        f"A semantic segmentation network of {space.classes} classes, trained by segshift "
        f"{version('segshift')}.",
        "",
        "## Use",
        "",
        f"    segshift predict predictions --run hf:{name} --images street.jpg",
        "",
        "```python",
        "import segshift",
        "",
        f'classes = segshift.load("hf:{name}").predict("street.jpg")  # train ids [H, W]',
        "```",
        "",
        "## Scores",
        "",
        *_scores(scores),
        "",
        "## Training",
        "",
        f"- Network: {', '.join(filter(None, parts))}; from {start}.",
        f"- Method: {method.title}, which trains on {method.summary}.",
        *([f"- Paper: {method.paper}."] if method.paper else []),
        f"- {config.steps} steps of {config.batch_size}; images at {_size(config.size)}, "
        f"crops of {_size(config.crop)}.",
        *(
            f"- Data, {what}: {', '.join(f'`{one}`' for one in names)}."
            for what, names in data.items()
            if names
        ),
        "",
        "config.json holds every option.",
        "",
        "## Classes",
        "",
        "By train id: " + ", ".join(f"{i} {_cell(one)}" for i, one in enumerate(space.names)) + ".",
        "",
        "## Licence",
        "",
        f"The weights are given under {licence}."
        if licence
        else "No licence is given for these weights: ask their author before you use them.",
        *([f"What they started from: {published.partition(';')[0]}."] if published else []),
        "The images that they were trained on have terms of their own.",
    ]
    return "\n".join(lines) + "\n"


def _scores(scores: dict[str, Any]) -> list[str]:
    """What was evaluated, each with its protocol, and what the training validated."""
    lines = []
    for one in scores["evaluations"]:
        lines += [
            f"**mIoU {_percent(one['miou'])} %**, pixel accuracy {_percent(one['pixel_accuracy'])} %: "
            f"{one['protocol']}; {one['checkpoint']}.",
            "",
            *_table(("class", "IoU %"), [(_cell(name), _percent(iou)) for name, iou in one["iou"].items()]),
            "",
        ]
    if not lines:
        lines = ["Nothing was evaluated on frames that were kept apart.", ""]
    sets = sorted({name for one in scores["checkpoints"].values() for name in one["validation"]})
    rows = [
        [
            file,
            CHECKPOINTS[one["rule"]],
            str(one["step"]),
            *(_percent(one["validation"].get(name)) for name in sets),
        ]
        for file, one in scores["checkpoints"].items()
    ]
    lines += [
        "Checkpoints, with the mIoU in the training's own validation, which chose them and is no test:",
        "",
        *_table(("checkpoint", "chosen as", "step", *(f"{_cell(name)} %" for name in sets)), rows),
    ]
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _size(size: tuple[int, int] | None) -> str:
    return "their own size" if size is None else f"{size[0]}x{size[1]}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
