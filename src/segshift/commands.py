"""The commands: one function each, no logic. `COMMANDS` is the table that the command line is made of."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from segshift import arguments, execution
from segshift.config import (
    CheckConfig,
    ControlConfig,
    DiffusionConfig,
    EngineConfig,
    EstimateConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    PriorConfig,
    PushConfig,
    ReportConfig,
    StudioConfig,
    TownConfig,
    TrainConfig,
    TransferConfig,
)
from segshift.execution import SlurmConfig
from segshift.runs import FREE_SPACE, Failure, InputError, disk_is_full, failures, one_line, user_path
from segshift.users_code import described

# The stages are imported where they are used: `--help` and wrong options do not wait for torch.

Out = Annotated[
    Positional[str],
    tyro.conf.arg(
        metavar="OUT", help="Folder to write to, new or empty; run the same command again to continue."
    ),
]
SHOWN = 20
"""Failed frames that are printed; files list them all."""
# --source, not --config.source; what lies deeper keeps its name: --network.encoder
Flat = tyro.conf.arg(name="")


def town(out: Out, config: Annotated[TownConfig, Flat]) -> Path:
    """Write the embedded town: street scenes with labels, in the layouts of Cityscapes, ACDC, GTA5 and
    SYNTHIA.
    """
    from segshift.town import writer

    return writer.town(config, out)


def check(
    config: Annotated[CheckConfig, Flat],
    out: Annotated[str | None, tyro.conf.arg(help="Folder to write check.json to, new or empty.")] = None,
) -> Path | list[Failure]:
    """Read a whole data set and report missing, broken and mislabelled frames, and how often each class
    occurs.
    """
    from segshift.stages import check

    report = check.check(config, out)
    return list(report.failures) if out is None else Path(out)


def transfer(out: Out, config: Annotated[TransferConfig, Flat]) -> Path:
    """Turn labelled source images into target-like ones with the same layout, from a sentence (ZoDi)."""
    from segshift.stages import transfer

    return transfer.transfer(config, out)


def train(out: Out, config: Annotated[TrainConfig, Flat]) -> Path:
    """Train a segmentation network: on source images, on pairs of source and transferred images, or with
    unlabelled target images."""
    from segshift.stages import train

    return train.train(config, out)


def predict(out: Out, config: Annotated[PredictConfig, Flat]) -> Path:
    """Write a network's predictions as label PNGs: of a data set, of pictures without labels, or of a
    video."""
    from segshift.stages import predict

    return predict.predict(config, out)


def export(
    out: Annotated[
        Positional[str],
        tyro.conf.arg(metavar="OUT", help="File to write, new: .onnx, or .pt2 of torch.export."),
    ],
    config: Annotated[ExportConfig, Flat],
) -> Path:
    """Write a trained network as one ONNX or .pt2 file, and compare it with the run on frames."""
    from segshift.stages import export

    return export.export(config, out)


def push(config: Annotated[PushConfig, Flat]) -> None:
    """Upload a training run to the Hugging Face hub, where --run hf:user/name finds it."""
    from segshift.stages import push

    push.push(config)


def evaluate(out: Out, config: Annotated[EvaluateConfig, Flat]) -> Path:
    """Compare prediction PNGs with the ground truth."""
    from segshift.stages import evaluate

    return evaluate.evaluate(config, out)


def estimate(out: Out, config: Annotated[EstimateConfig, Flat]) -> Path:
    """Predict a network's mIoU in a domain without an image of it, with intervals and the classes that will
    fail.
    """
    from segshift.stages import estimate

    return estimate.estimate(config, out)


def report(out: Out, config: Annotated[ReportConfig, Flat]) -> Path:
    """Write one self-contained HTML page that compares runs."""
    from segshift.stages import report

    return report.report(config, out) / "index.html"


def studio(config: Annotated[StudioConfig, Flat]) -> None:
    """Open a page in the browser for one photograph at a time: its transfer, and what a network makes of
    both."""
    from segshift.stages import studio

    studio.studio(config)


def run(
    experiment: Annotated[
        Positional[str],
        tyro.conf.arg(
            metavar="RECIPE|CONFIG.JSON",
            help="A recipe's name (`segshift recipes` lists them), or the config.json of a run to repeat.",
        ),
    ],
    out: Annotated[
        Positional[str | None],
        tyro.conf.arg(
            metavar="[OUT]", help="Folder to write to; default runs/RECIPE, or the folder of CONFIG.JSON."
        ),
    ] = None,
    data: Annotated[
        dict[str, str],
        tyro.conf.arg(help="Where data sets are unpacked: cityscapes /data/cityscapes acdc /data/acdc."),
    ] = {},  # noqa: B006
    seeds: Annotated[
        int | None,
        tyro.conf.arg(
            help="Trainings of every row: the table shows mean ± standard deviation. Default: the recipe's "
            "own."
        ),
    ] = None,
    where: Annotated[EngineConfig, Flat] = EngineConfig(),
) -> Path:
    """Run a named experiment, stage after stage, or repeat a run from its config.json."""
    from segshift.recipes import runner

    return runner.run(experiment, out, data, seeds, where)


def recipes() -> None:
    """List the named experiments, each with the number its paper published."""
    from segshift.recipes import RECIPES

    view = Table(
        "recipe",
        "published",
        title="recipes",
        caption="run one: segshift run NAME OUT --data cityscapes /data/cityscapes ...",
    )
    for recipe in RECIPES.values():
        view.add_row(recipe.name, recipe.published or "(embedded town)")
    Console().print(view)


def models(
    model: Annotated[
        Positional[str | None],
        tyro.conf.arg(
            metavar="[MODEL]", help="Folder or hub name of one model, to see what memory its weights take."
        ),
    ] = None,
) -> None:
    """List the families of diffusion models that can transfer images: names, layout, memory, licence."""
    from segshift import generators

    say = Console(soft_wrap=True, highlight=False)
    if model is not None:
        say.print(generators.describe(DiffusionConfig(model=model)), markup=False)
        return
    for stem in generators.FAMILIES:
        say.print(generators.describe(stem), end="\n\n", markup=False)
    say.print("Any other: --generator module:function, see docs/generators.md.", markup=False)


def demo(
    out: Annotated[
        Positional[str],
        tyro.conf.arg(metavar="[OUT]", help="Folder to write to; the same command again continues."),
    ] = "demo",
) -> Path:
    """Day to night in five minutes on two cores: town, transfer, source only against ZoDi, report page."""
    from segshift.recipes import runner

    return runner.run("demo", out, {})


def control(
    action: Annotated[Positional[Literal["train"]], tyro.conf.arg(help="What to do.")],
    out: Out,
    config: Annotated[ControlConfig, Flat],
) -> Path:
    """Train a ControlNet on your own labelled images: `segshift control train OUT --source ...`."""
    from segshift.stages import control

    return control.train(config, out) / "controlnet"


def prior(
    action: Annotated[Positional[Literal["train"]], tyro.conf.arg(help="What to do.")],
    out: Out,
    config: Annotated[PriorConfig, Flat],
) -> Path:
    """Train the embedded diffusion prior: `segshift prior train OUT` (hours on a CPU)."""
    from segshift.town import prior

    return prior.train(config, out)


def launch(
    kind: Positional[Literal["slurm"]],
    logs: Annotated[
        Positional[str],
        tyro.conf.arg(metavar="LOGS", help="Folder for the job's scripts and what its tasks print, new."),
    ],
    command: Annotated[
        Positional[tuple[str, ...]],
        tyro.conf.arg(
            metavar="-- COMMAND ...",
            help="A command of segshift with its options, as in: -- transfer OUT ...",
        ),
    ],
    config: Annotated[SlurmConfig, Flat],
) -> None:
    """Write and submit the job array of a stage: segshift launch slurm LOGS --jobs 8 -- transfer OUT ..."""
    words = _launched(command, config.jobs)
    folder = Path(user_path(logs))
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name a new folder for the logs")
    ids = execution.submit(config, folder, words)
    first = ids[0].split("_")[0]
    print(f"submitted: {len(ids)} tasks. To look: squeue --job {first}; tail -f {folder}/*.out")


def _launched(command: tuple[str, ...], jobs: int) -> list[str]:
    """The words of a command for a job array, tried out first. Raises: InputError."""
    name, *options = command or ("",)
    if name not in COMMANDS or name == "launch":
        raise InputError(f"no command '{name}' to launch: write it after --, as in -- transfer OUT ...")
    if jobs > 1 and (name != "transfer" or "--shard" in options):
        raise InputError(
            f"--jobs {jobs} is for transfer, whose frames it divides by --shard: leave --jobs out, or --shard"
        )
    arguments.parsed(f"segshift {name}", COMMANDS[name], options)  # wrong options end it here
    return [name, *options]


COMMANDS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        demo,
        town,
        check,
        transfer,
        train,
        predict,
        evaluate,
        estimate,
        export,
        push,
        report,
        studio,
        models,
        recipes,
        run,
        launch,
        control,
        prior,
    )
}


def run_command(words: list[str]) -> int:
    """Run the command that `words` say; returns the exit code (`segshift.__main__`)."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    name, *rest = words or ["--help"]
    if name in ("-h", "--help"):
        _print_help()
        return 0
    if name == "--version":
        print(f"segshift {version('segshift')}")
        return 0
    if name not in COMMANDS:
        errors.print(
            "[bold red]error[/]", escape(one_line(f"no command '{name}': there are {', '.join(COMMANDS)}"))
        )
        return 2
    _warnings_to(errors)
    debug = "--debug" in rest
    rest = [word for word in rest if word != "--debug"]
    try:
        command = arguments.parsed(f"segshift {name}", COMMANDS[name], rest)
        done = _done(command)
        failed = failures(done) if isinstance(done, Path) and done.is_dir() else done or []
    except InputError as error:
        if debug:
            traceback.print_exc()
        errors.print("[bold red]error[/]", escape(one_line(str(error))))
        return 2
    except BrokenPipeError:
        raise
    except Exception as error:
        known = _lacking(error)
        if debug or not known:
            traceback.print_exc()
        if known:
            what = one_line(f"{known[0]} ({described(error)}): {known[1]}")
            errors.print("[bold red]error[/]", escape(what))
            return 2
        errors.print(
            f"[bold red]error[/] this is a defect of segshift {version('segshift')}: report it as an issue "
            "of the repository that you have it from, with the lines above"
        )
        return 70
    if isinstance(done, Path):
        Console(soft_wrap=True, highlight=False).print("results:", escape(str(done)))
    listed = failed if isinstance(failed, list) else []
    for line in listed[:SHOWN]:
        errors.print("[yellow]failed[/]", escape(one_line(f"{line['id']}: {line['error']}")))
    if len(listed) > SHOWN:
        where = (
            f"all are in {done / 'failures.jsonl'}" if isinstance(done, Path) else "--out FOLDER lists all"
        )
        errors.print(f"[yellow]failed[/] and {len(listed) - SHOWN} more:", escape(where))
    return 1 if listed and not execution.current().ends_all else 0


_LESS = "take smaller pictures (--size, --short-side), a smaller --batch-size, or fewer --workers"
_MEMORY_ERRORS = ("MemoryError", "OutOfMemoryError", "BrokenProcessPool")
_MEMORY = re.compile(
    "can't allocate memory|insufficient memory|out of memory|killed by signal", re.IGNORECASE
)
"""What torch, OpenCV and data workers say where memory runs out."""


def _lacking(error: Exception) -> tuple[str, str] | None:
    """What the machine lacks, and what to do; None where it is something else."""
    if disk_is_full(error):
        return "disk full", FREE_SPACE
    if type(error).__name__ in _MEMORY_ERRORS or _MEMORY.search(str(error)):
        return "too little memory", _LESS
    return None


def _done(command: Callable[[], Any]) -> Any:
    """What the command returns. Raises: InputError where code of the user's ends the process."""
    try:
        return command()
    except SystemExit as stop:
        if stop.code == execution.STOPPED or isinstance(stop.__context__, BrokenPipeError):
            raise
        raise InputError(
            f"your own code ended the process ({described(stop)}): raise an error instead"
        ) from stop


def _print_help() -> None:
    say = Console(soft_wrap=True, highlight=False)
    say.print("usage: segshift COMMAND ...\n")
    say.print("Adapt semantic segmentation to a domain you have no labels for, or not even an image of.\n")
    for name, function in COMMANDS.items():
        say.print(f"  {name:<10} {' '.join((function.__doc__ or '').split())}", markup=False)
    say.print(
        "\nsegshift COMMAND --help explains a command's options; --debug shows the traceback of any error; "
        "--version."
    )


class _Once(logging.Filter):
    """Lets each message through once."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self.said
        self.said.add(message)
        return new


class _Printed(logging.Handler):
    """Prints warnings with the word before them."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console
        self.addFilter(_Once())

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print("[yellow]warning[/]", escape(one_line(record.getMessage())))


def _warnings_to(console: Console) -> None:
    """Our own warnings go to `console`, once each."""
    logger = logging.getLogger("segshift")
    logger.handlers = [_Printed(console)]
    logger.propagate = True
