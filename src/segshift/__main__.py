"""The command line: one function a command, no logic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional

from segshift.config import (
    CheckConfig,
    EstimateConfig,
    EvaluateConfig,
    PredictConfig,
    PriorConfig,
    ReportConfig,
    TownConfig,
    TrainConfig,
    TransferConfig,
)
from segshift.runs import InputError, failures, world_size

Out = Annotated[Positional[Path], tyro.conf.arg(metavar="OUT", help="Folder to write; run the same command again to continue.")]
FLAT = tyro.conf.arg(name="")  # --source, not --config.source; what lies deeper keeps its name: --network.encoder
# The stages are imported where they are used: `--help` and wrong options should not wait for torch.


def town(out: Out, config: Annotated[TownConfig, FLAT]) -> Path:
    """Write the embedded town: street scenes with labels, in the layouts of Cityscapes, ACDC, GTA5 and SYNTHIA."""
    from segshift.town import writer

    return writer.town(config, out)


def check(
    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA", help="layout:path[:subset], for example cityscapes:/data/cityscapes:train.")],
    out: Annotated[Path | None, tyro.conf.arg(help="Folder for check.json.")] = None,
    workers: Annotated[int, tyro.conf.arg(help="Processes; 0 takes every core.")] = 0,
) -> list[dict]:
    """Walk a data set and report missing, broken and mislabelled frames, and how often each class occurs."""
    from segshift.stages import check

    return list(check.check(CheckConfig(data, workers), out).failures)


def transfer(out: Out, config: Annotated[TransferConfig, FLAT]) -> Path:
    """Turn labelled source images into target-like ones with the same layout, from a sentence (ZoDi)."""
    from segshift.stages import transfer

    return transfer.transfer(config, out)


def train(out: Out, config: Annotated[TrainConfig, FLAT]) -> Path:
    """Train a segmentation network on source images, on pairs of source and transferred images, or with unlabelled target
    images."""
    from segshift.stages import train

    return train.train(config, out)


def predict(out: Out, config: Annotated[PredictConfig, FLAT]) -> Path:
    """Write predictions as label PNGs in the data set's official ids."""
    from segshift.stages import predict

    return predict.predict(config, out)


def evaluate(out: Out, config: Annotated[EvaluateConfig, FLAT]) -> Path:
    """Compare prediction PNGs with the ground truth."""
    from segshift.stages import evaluate

    return evaluate.evaluate(config, out)


def estimate(
    config: Annotated[EstimateConfig, FLAT],
    out: Annotated[Path | None, tyro.conf.arg(help="Folder to write; default RUN/estimate, beside a weights file <its name>-estimate.")] = None,
) -> Path:
    """Predict a network's mIoU in a domain without an image of it, with intervals and the classes that will fail."""
    from segshift import estimation

    return estimation.estimate(config, out)


def report(out: Out, config: Annotated[ReportConfig, FLAT]) -> Path:
    """Write one self-contained page over runs."""
    from segshift.stages import report

    return report.report(config, out)


def run(
    experiment: Annotated[Positional[str], tyro.conf.arg(metavar="RECIPE|CONFIG.JSON", help="A recipe's name (`segshift recipes` lists them), or the config.json of a run to repeat.")],
    out: Annotated[Positional[Path | None], tyro.conf.arg(metavar="[OUT]", help="Folder to write; default runs/RECIPE, or the folder of CONFIG.JSON.")] = None,
    data: Annotated[dict[str, str], tyro.conf.arg(help="Where data sets are unpacked: cityscapes /data/cityscapes acdc /data/acdc.")] = {},  # noqa: B006
    seeds: Annotated[int | None, tyro.conf.arg(help="Trainings of every row; the table then shows mean ± standard deviation. Default: the experiment's own number.")] = None,
) -> Path:
    """Run a named experiment, stage after stage, or repeat a run from its config.json."""
    from segshift import experiments

    return experiments.run(experiment, out, data, seeds)


def recipes() -> list[dict]:
    """List the named experiments, each with the number its paper published."""
    from segshift import experiments

    Console().print(experiments.recipes())
    return []


def demo(out: Annotated[Positional[Path], tyro.conf.arg(metavar="[OUT]")] = Path("demo")) -> Path:
    """Day to night in five minutes on two cores: town, transfer, source only against ZoDi, report page."""
    from segshift import experiments

    return experiments.run("demo", out, {})


def prior(action: Positional[Literal["train"]], out: Out, config: Annotated[PriorConfig, FLAT]) -> Path:
    """Train the embedded diffusion prior from scratch: `segshift prior train OUT` (hours on a CPU)."""
    from segshift.town import prior

    return prior.train(config, out)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 finished with frames that failed (listed), 2 wrong input, 130 interrupted. Under torchrun, which
    stops all processes when one ends in another code than 0, failed frames are listed and no code tells of them."""
    commands = {"town": town, "check": check, "transfer": transfer, "train": train, "predict": predict,
                "evaluate": evaluate, "estimate": estimate, "report": report, "demo": demo, "recipes": recipes, "run": run, "prior": prior}  # fmt: skip
    errors = Console(stderr=True)
    try:
        done = tyro.extras.subcommand_cli_from_dict(
            commands,
            args=arguments, prog="segshift", description="Adapt semantic segmentation to a domain you have no labels for, or not even an image of.",
            config=(tyro.conf.CascadeSubcommandArgs,),
        )  # fmt: skip
    except InputError as error:
        errors.print("[bold red]error[/]", escape(str(error)), soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt:
        errors.print("interrupted: run the same command again to continue")
        return 130
    failed = done if isinstance(done, list) else failures(done)
    for line in failed:
        errors.print("[yellow]failed[/]", escape(f"{line['id']}: {line['error']}"), soft_wrap=True, highlight=False)
    return 1 if failed and world_size() == 1 else 0


if __name__ == "__main__":
    sys.exit(main())
