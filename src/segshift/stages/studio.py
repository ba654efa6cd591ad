"""Studio: a page for one photograph at a time: its transfer, and what a network makes of both (ours).

The page is Gradio's, at 127.0.0.1 alone: no share link, no analytics, and no font or script of another host.
What is uploaded and made lies in a temporary folder, which is deleted when the studio ends.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup, escape
from rich.console import Console

from segshift import execution, generators, predictor
from segshift.config import StudioConfig, TransferConfig
from segshift.data import frames
from segshift.data.frames import Frame
from segshift.data.labels import CITYSCAPES, LabelSpace
from segshift.engine.worker import Failed, Sample, Worker
from segshift.generators.base import SENTENCE, resize
from segshift.generators.parts import PartsOfAFolder
from segshift.methods.zodi.transfer import DOMAINS
from segshift.predictor import Predictor
from segshift.runs import InputError
from segshift.scoring import bootstrap, metrics
from segshift.town import writer

HOST = "127.0.0.1"
LARGEST = 2048
"""Pixels of a photograph's longer side; a larger one is scaled down."""
UPLOAD = "256mb"
"""Largest file."""
SMALLEST = 0.001
"""Share of the pixels below which a class is not listed."""
EXAMPLES = ("night", "snow", "driving in heavy rain at night")

Progress = Callable[[int, int, str], object]
"""Told the steps that are done, all steps, and what is done now."""


@dataclass(frozen=True)
class Asked:
    """What the page's fields say."""

    photo: Path
    label: Path | None
    domain: str
    """A known name, or a sentence."""
    strength: float
    guidance: float
    seed: int


@dataclass(frozen=True)
class Shown:
    """Pictures [H, W, 3] uint8 of one size; those of the network are None where there is none."""

    source: np.ndarray
    layout: np.ndarray | None
    generated: np.ndarray
    before: np.ndarray | None
    """What the network makes of the source."""
    after: np.ndarray | None
    """What it makes of the generated picture."""
    note: Markup
    classes: Markup


@dataclass(frozen=True)
class Studio:
    """A diffusion model and, where one is given, a network that is judged."""

    config: StudioConfig
    model: PartsOfAFolder
    network: Predictor | None

    @property
    def space(self) -> LabelSpace:
        """Of the labels and of the layouts."""
        return self.network.space if self.network else CITYSCAPES

    def show(self, asked: Asked, progress: Progress) -> Shown:
        """Raises: InputError for files that are no pictures, for a label that does not fit, and for settings
        that the model cannot follow."""
        image, label = read(asked.photo, asked.label, self.space)
        before = after = None
        if self.network is not None:
            progress(0, 1, "predict")
            before = self.network.predict(image)
        layout = before if label is None else label
        generated = self._generate(asked, image, layout, progress)
        if self.network is not None:
            progress(0, 1, "predict")
            after = self.network.predict(generated)
        told = (
            f"“{asked.domain}”: strength {asked.strength:g}, guidance {asked.guidance:g}, seed {asked.seed}"
        )
        lines = [told, *self._warnings(image, label, layout)]
        return Shown(
            source=image,
            layout=None if layout is None else self.space.paint(layout),
            generated=generated,
            before=None if before is None else self.space.paint(before),
            after=None if after is None else self.space.paint(after),
            note=Markup("<br>").join(map(escape, lines)),
            classes=Markup() if before is None or after is None else table(self.space, before, after, label),
        )

    def _generate(
        self, asked: Asked, image: np.ndarray, layout: np.ndarray | None, progress: Progress
    ) -> np.ndarray:
        """The transferred picture [H, W, 3] uint8 at the source's size, as `transfer_images` makes it."""
        config = TransferConfig(
            source="folder:studio",  # not read
            to=(asked.domain,),
            strength=asked.strength,
            guidance=asked.guidance,
            seed=asked.seed,
            control=layout is not None,
            output_size="source",
            batch_size=1,
            diffusion=self.config.diffusion,
        )
        worker = Worker(config, self.space, self.model)
        steps = 1 + int(asked.strength * self.model.defaults.steps)  # the first is the inversion's
        done = 0

        def step(*_: Any) -> None:
            nonlocal done
            done = min(done + 1, steps)
            progress(done, steps, "transfer")

        progress(0, steps, "transfer")
        hook = getattr(self.model, self.model.walks).register_forward_hook(step)
        try:
            [made] = worker.run_all([Sample("0", image, layout, wanted=[worker.targets[0].slug])])
        finally:
            hook.remove()
        if isinstance(made, Failed):
            raise made.error
        return made.picture

    def _warnings(self, image: np.ndarray, label: np.ndarray | None, layout: np.ndarray | None) -> list[str]:
        """What the user should know of these pictures."""
        told = []
        if layout is None:
            told.append(
                "Made without a layout, since there is neither a label nor a network that could draw one: "
                "streets and cars may move."
            )
        elif label is None:
            told.append(
                "The network's own prediction is the layout, since there is no label: what the network "
                "overlooks in the source is not drawn, and is not counted as lost."
            )
        if (
            self.config.diffusion.model == "town"
            and min(image.shape[:2]) > 2 * self.model.defaults.short_side
        ):
            told.append(
                "The embedded model draws streets of a small town and knows no photographs: name a real "
                "one, as in --diffusion.model stable-diffusion-v1-5/stable-diffusion-v1-5."
            )
        return told


# -------------------------------------------------------------------------------------------------- pictures


def read(photo: Path, label: Path | None, space: LabelSpace) -> tuple[np.ndarray, np.ndarray | None]:
    """RGB [H, W, 3] uint8, upright and with at most LARGEST pixels a side, and train ids [H, W] uint8.

    Raises: InputError, with the files' names alone.
    """
    try:
        image = frames.read_image(photo, "upload a PNG or a JPEG", upright=True)
        ids = None if label is None else frames.read_label(Frame("", "", label, label), space)
    except InputError as error:
        told = str(error)
        for path in filter(None, (photo, label)):
            told = told.replace(str(path), path.name)
        raise InputError(told) from error
    (height, width), scale = image.shape[:2], LARGEST / max(image.shape[:2])
    if ids is not None and ids.shape != (height, width):
        raise InputError(
            f"the photograph is {width}x{height} and its label {ids.shape[1]}x{ids.shape[0]}: give the label "
            "of this photograph, or none"
        )
    if scale < 1:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        image = resize(image, size)
        if ids is not None:
            ids = cv2.resize(ids, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return image, ids


def table(space: LabelSpace, before: np.ndarray, after: np.ndarray, label: np.ndarray | None) -> Markup:
    """The classes in a picture, those first that are lost.

    before, after: train ids [H, W] uint8 that a network predicts in the source and in what was made of it.
    label: train ids [H, W] uint8 that both are compared with; None compares them with each other.
    """
    truth = before if label is None else label
    scores = [metrics.iou(metrics.confusion_matrix(ids, truth, space.classes)) for ids in (before, after)]
    shares = [
        np.bincount(ids.ravel(), minlength=256)[: space.classes] / ids.size for ids in (truth, before, after)
    ]
    lost = [c for c in bootstrap.failing(*scores) if shares[0][c] >= SMALLEST]
    largest = np.max(shares, axis=0)
    others = [int(c) for c in np.argsort(-largest, kind="stable") if largest[c] >= SMALLEST and c not in lost]
    names = ", ".join(space.names[c] for c in lost)
    rows = [
        Markup(
            '<tr{}><th scope="row"><i style="background: rgb{}"></i>{}{}</th><td>{:.1f} → {:.1f}</td>'
            "<td>{}</td></tr>"
        ).format(
            Markup(' class="lost"') if c in lost else "",
            space.colours[c],
            space.names[c],
            Markup(" <b>lost</b>") if c in lost else "",
            100 * shares[1][c],
            100 * shares[2][c],
            _percent(scores[1][c])
            if label is None
            else f"{_percent(scores[0][c])} → {_percent(scores[1][c])}",
        )
        for c in (*lost, *others)
    ]
    against = "between the two predictions" if label is None else "with the label, source → generated"
    return Markup(
        "<h2>{}</h2><table><caption>A class is lost when it keeps less than {:.0%} of its IoU. In percent."
        '</caption><thead><tr><th scope="col">class</th><th scope="col">pixels, source → generated</th>'
        '<th scope="col">IoU {}</th></tr></thead><tbody>{}</tbody></table>'
    ).format(
        f"Lost: {names}" if lost else "No class is lost", bootstrap.FAILS_BELOW, against, Markup().join(rows)
    )


def _percent(score: float) -> str:
    return "–" if np.isnan(score) else f"{100 * score:.0f}"


# ------------------------------------------------------------------------------------------------------ page

_CSS = """
.gradio-container main { max-width: 1320px !important; margin: 0 auto; }
.html-container { padding: 0 !important; }
.studio h1 { font-size: 26px; font-weight: 650; letter-spacing: -0.02em; margin: 0 0 4px; }
.studio h2 { font-size: 18px; font-weight: 650; margin: 0 0 8px; }
.studio p, .studio caption { color: var(--body-text-color) !important; opacity: 0.8; margin: 0; }
.studio caption { text-align: left; font-size: 13px; padding-bottom: 8px; }
.studio table { border-collapse: collapse; width: 100%; max-width: 760px; border: 0 !important; }
.studio tr, .studio th, .studio td { border: 0 !important; }
.studio tbody tr { border-top: 1px solid var(--border-color-primary) !important; }
.studio th, .studio td { padding: 5px 0 5px 14px; font-weight: 400; }
.studio th:first-child { padding-left: 0; text-align: left; white-space: nowrap; }
.studio td, .studio thead th + th { text-align: right; font-variant-numeric: tabular-nums; }
.studio thead th { font-size: 13px; vertical-align: bottom; }
.studio i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
.studio b { color: #c2412d; }
.dark .studio b { color: #ff8a75; }
.picture label { position: static !important; border-width: 0 0 1px !important; box-shadow: none !important; }
.picture .top-panel { transform: translateY(-100%); }
.picture .image-frame, .picture img { width: 100% !important; object-fit: contain; }
.classes img { image-rendering: pixelated; }
@media (max-width: 700px) { .picture, .note { min-width: 100% !important; } }
"""


def studio(config: StudioConfig) -> None:
    """Serve the page until Ctrl-C. Raises: InputError, as `serving`."""
    execution.one_process("studio")
    with serving(config) as address:
        Console(soft_wrap=True, highlight=False).print(f"studio: {address} (Ctrl-C ends it)")
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)


@contextmanager
def serving(config: StudioConfig) -> Iterator[str]:
    """The page's address, which answers within the block.

    Raises: InputError without Gradio, for a port in use, and for a network or a model that cannot be loaded.
    """
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, config.port))
        except OSError as error:
            raise InputError(
                f"cannot open port {config.port} of {HOST} ({error.strerror}): name another with --port"
            ) from error
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own page whether it is there
        os.environ[name] = ",".join(filter(None, (HOST, os.environ.get(name))))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with TemporaryDirectory(prefix="segshift-studio-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/gradio"
        try:
            import gradio
        except ImportError as error:
            raise InputError("segshift studio needs Gradio: pip install 'segshift[studio]'") from error
        network = None
        if config.run is not None:
            network = predictor.load(config.run, network=config.network, device=config.device)
        model = generators.load(TransferConfig(source="folder:studio", diffusion=config.diffusion))
        assert isinstance(model, PartsOfAFolder)
        made = Studio(config, model, network)
        page = _page(gradio, made, _examples(Path(folder), made.space))
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=config.port,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=UPLOAD,
            theme=gradio.themes.Base(
                primary_hue="blue",
                neutral_hue="slate",
                font=["ui-sans-serif", "system-ui", "sans-serif"],  # the system's
                font_mono=["ui-monospace", "monospace"],
            ),
            css=_CSS,
            quiet=True,
            prevent_thread_lock=True,
        )
        try:
            yield address
        finally:
            page.close(verbose=False)


def _examples(folder: Path, space: LabelSpace) -> list[tuple[Path, Path | None, str]]:
    """Photograph, label and domain of three frames of the embedded town; no label where `space` has other
    ids than the town's files."""
    town = writer.write(folder / "town", counts={"cityscapes/val": len(EXAMPLES)}, workers=1)
    data = frames.load(f"cityscapes:{town}/cityscapes:val")
    labelled = (space.names, space.ids) == (data.space.names, data.space.ids)
    return [
        (frame.image, frame.label if labelled else None, domain)
        for frame, domain in zip(data.frames, EXAMPLES, strict=True)
    ]


def _head(network: Predictor | None) -> str:
    if network is None:
        what = Markup(
            "No network judges here. <code>segshift demo</code> trains one in five minutes; then start "
            "<code>segshift studio --run demo/seed-0/source-only</code>."
        )
    else:
        told = network.record
        what = Markup("The network is <code>{}</code> ({}).").format(
            Path(told["run"]).name,
            told["selection"] if told["method"] is None else f"{told['method']}, step {told['step']}",
        )
    return _block(
        Markup(
            "<h1>segshift studio</h1><p>What a photograph becomes in another domain, and which classes a "
            "network loses there. {} Nothing leaves this machine.</p>"
        ).format(what)
    )


def _block(content: Markup) -> str:
    return f'<div class="studio">{content}</div>'


def _page(gr: Any, studio: Studio, examples: list[tuple[Path, Path | None, str]]) -> Any:
    """gr: the module of Gradio, which is optional."""
    default, strengths = studio.model.defaults, studio.model.card.strengths

    def usual(domain: str, sentence: str, strength: float) -> float:
        """The published strength, unless the user has chosen another."""
        published = strengths.get(SENTENCE if sentence.strip() else domain, strengths[SENTENCE])
        return published if strength in strengths.values() else strength

    def run(
        photo: str | None,
        label: str | None,
        domain: str,
        sentence: str,
        strength: float,
        guidance: float,
        seed: float,
        progress: Any = gr.Progress(),
    ) -> list[Any]:
        if not photo:
            raise gr.Error("Drop a photograph first, or click an example.", print_exception=False)
        asked = Asked(
            Path(photo),
            Path(label) if label else None,
            sentence.strip() or domain,
            float(strength),
            float(guidance),
            int(seed),
        )
        try:
            made = studio.show(asked, lambda done, of, what: progress((done, of), desc=what, unit="steps"))
        except InputError as error:
            raise gr.Error(str(escape(str(error))), duration=None, print_exception=False) from error
        pictures = [made.source, made.layout, made.generated]
        if studio.network is not None:
            pictures += [made.before, made.after]
        return [*pictures, _block(made.note), _block(made.classes)]

    def picture(label: str, alt: str, look: str = "") -> Any:
        return gr.Image(
            label=label,
            alt_text=alt,
            format="png",
            interactive=False,
            buttons=["download", "fullscreen"],
            min_width=180,
            elem_classes=f"picture {look}",
        )

    with gr.Blocks(title="segshift studio", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_head(studio.network))
        fields = _fields(gr, studio.model)
        photo, label, domain, sentence, strength, *_ = fields
        gallery = gr.Examples(
            [
                [
                    str(image),
                    truth and str(truth),
                    name if name in DOMAINS else "night",
                    "" if name in DOMAINS else name,
                    strengths.get(name, strengths[SENTENCE]),
                    default.guidance,
                    42,
                ]
                for image, truth, name in examples
            ],
            fields,
            label="Click one of three frames of the embedded town, or drop a photograph",
            example_labels=[f"to {name}" if name in DOMAINS else name for *_, name in examples],
            cache_examples=False,
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                for field in fields:
                    field.render()
                start = gr.Button("Generate", variant="primary")
            with gr.Column(scale=5, min_width=300):
                with gr.Row():
                    shown = [
                        picture("Source", "The photograph"),
                        picture("Layout", "The layout, a colour a class", "classes"),
                        generated := picture("Generated", "The photograph in the domain"),
                    ]
                with gr.Row():
                    if studio.network is not None:
                        shown.append(
                            picture(
                                "Network on the source", "What the network sees in the photograph", "classes"
                            )
                        )
                    note = gr.HTML(min_width=180, elem_classes="note")
                    if studio.network is not None:
                        sees = "What the network sees in the generated picture"
                        shown.append(picture("Network on the generated", sees, "classes"))
                shown += [note, gr.HTML()]
        quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        domain.input(usual, [domain, sentence, strength], strength, **quiet)
        sentence.input(usual, [domain, sentence, strength], strength, **quiet)
        photo.upload(lambda: None, None, label, **quiet)  # which is of the photograph before
        for begin in (start.click, gallery.load_input_event.then):
            begin(
                run,
                fields,
                shown,
                show_progress_on=generated,
                scroll_to_output=True,
                concurrency_id="studio",
                concurrency_limit=1,
                api_visibility="private",
            )
    return page.queue(max_size=16)


def _fields(gr: Any, model: PartsOfAFolder) -> list[Any]:
    """What the user gives, in the order of `run`, not placed on the page yet."""
    photo = gr.Image(
        label="Photograph",
        alt_text="The photograph that is transferred",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=220,
        render=False,
    )
    photo.preprocess = lambda file: file and file.path  # `read` says what is no picture
    least, most = math.ceil(100 / model.defaults.steps) / 100, max(15, model.defaults.guidance)
    return [
        photo,
        gr.File(label="Label picture (optional)", file_types=["image"], height=150, render=False),
        gr.Radio([*DOMAINS], value="night", label="Domain", render=False),
        gr.Textbox(
            label="Or a sentence, which counts in its place",
            placeholder="driving through a sandstorm",
            max_length=500,
            render=False,
        ),
        gr.Slider(least, 1, model.card.strengths["night"], step=0.01, label="Strength", render=False),
        gr.Slider(1, most, model.defaults.guidance, step=0.5, label="Guidance", render=False),
        gr.Slider(0, 999, 42, step=1, label="Seed", render=False),
    ]
