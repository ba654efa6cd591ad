"""How quick the report page is with thousands of frames: time to build it, its size, and how it loads and
scrolls.

    python benchmarks/report_page.py runs/report-page --frames 3000

The frames are streets of the town, shifted sideways; transferred images are its rendered nights, the
predictions of two made-up runs are the labels with patches of a neighbour, and every number on the page is
made up with them. Loading and scrolling are measured in Chromium through Playwright, from the file, as a
reader opens it; without them the rest is printed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import cv2
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from segshift import outputs, runs
from segshift.config import EstimateConfig, EvaluateConfig, PredictConfig, ReportConfig, TransferConfig
from segshift.data import frames
from segshift.data.labels import CITYSCAPES
from segshift.scoring import predictions
from segshift.stages.evaluate import evaluate
from segshift.stages.report import report
from segshift.town import scenes, weather

RUNS = {"source-only": 0.45, "zodi": 0.25}
"""Share of the patches that a made-up run gets wrong."""


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    out: tyro.conf.Positional[Path]
    frames: int = 3000
    """Frames that are evaluated, and as many that are transferred."""
    scenes: int = 100
    """Streets that are drawn; the frames are these, shifted."""
    maps: bool = False
    """Also make up maps of confidence and entropy, for the diagrams."""


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture[..., ::-1] if picture.ndim == 3 else picture)


def write_data(b: Benchmark) -> None:
    """The same streets by day (Cityscapes), by night (ACDC), and a transferred tree of the days with a gate's
    verdicts.
    """
    runs.write_json(
        b.out / "transferred/config.json",
        {
            "stage": "transfer",
            "config": runs.to_plain(
                TransferConfig(source=f"cityscapes:{b.out}/day:val", to=("night", "fog"))
            ),
        },
    )
    lines: dict[str, list[dict]] = {"night": [], "fog": []}
    drawn = []
    for seed in range(min(b.scenes, b.frames)):
        layers = scenes.draw(scenes.BENCHMARK, seed)
        images = {name: weather.render(layers, (name,), seed) for name in ("clear", "night", "fog")}
        drawn.append((images, CITYSCAPES.to_file(layers.label_at_size())))
    for i in range(b.frames):
        rng = np.random.default_rng(i)
        images, label = drawn[i % len(drawn)]
        images = {name: np.roll(image, 7 * (i // len(drawn)), 1) for name, image in images.items()}
        label = np.roll(label, 7 * (i // len(drawn)), 1)
        id = f"ulm_{i:06d}_000019"
        tails = f"val/ulm/{id}_leftImg8bit.png", f"val/ulm/{id}_gtFine_labelIds.png"
        save(b.out / "day/leftImg8bit" / tails[0], images["clear"])
        save(b.out / "day/gtFine" / tails[1], label)
        save(b.out / f"night/rgb_anon/night/val/GP01/GP01_frame_{i:06d}_rgb_anon.png", images["night"])
        save(b.out / f"night/gt/night/val/GP01/GP01_frame_{i:06d}_gt_labelIds.png", label)
        for domain, told in lines.items():
            save(b.out / f"transferred/{domain}/leftImg8bit" / tails[0], images[domain])
            save(b.out / f"transferred/{domain}/gtFine" / tails[1], label)
            score, there = (
                float(rng.beta(6, 2)),
                [
                    name
                    for name, id in zip(CITYSCAPES.names, CITYSCAPES.ids, strict=True)
                    if (label == id).any()
                ],
            )
            gate = {
                "decision": "kept" if score > 0.4 else "ignored",
                "passed": score > 0.4,
                "tries": 1 if score > 0.55 else 3,
                "score": score,
                "agreement": {name: [0.9, float(rng.random())] for name in there},
            }
            made = {"model": "town", "weights": {}, "sha256": None}
            told.append(
                {
                    "id": id,
                    "domain": domain,
                    "prompt": f"driving at {domain}",
                    "strength": 0.9,
                    **made,
                    "gate": gate,
                }
            )
    for domain, told in lines.items():
        runs.write_lines(b.out / f"transferred/{domain}/manifest.jsonl", told)


def predict(b: Benchmark, run: str, spec: str, out: Path) -> None:
    """Labels with wrong patches, and maps that know most of them."""
    data = frames.load(spec)
    outputs.begin(out, "predict", PredictConfig(run=str(b.out / run), data=spec))
    runs.write_json(
        out / "model.json",
        {"run": str(b.out / run), "rules": ["last"], "selection": "checkpoint: last", "weights": run},
    )
    for i, frame in enumerate(data.frames):
        rng = np.random.default_rng([i, len(run)])
        label = frames.read_label(frame, data.space)
        size = label.shape[::-1]
        doubt = cv2.resize(rng.random((8, 16)).astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
        wrong = doubt > 1 - RUNS[run] * (0.5 + rng.random())
        predictions.write(
            frames.place(data, frame, out), np.where(wrong, np.roll(label, 25, 1), label), data.space
        )
        for name, value in {"confidence": 1.15 - doubt, "entropy": doubt}.items() if b.maps else ():
            file = frames.place(data, frame, out / "uncertainty" / name)
            save(
                file,
                (65535 * np.clip(value + 0.1 * rng.standard_normal(label.shape), 0, 1)).astype(np.uint16),
            )


def estimated(b: Benchmark, run: str, true: float, evaluation: dict) -> Path:
    """An estimate beside the truth, in the form that `segshift estimate` writes."""

    def between(value: float) -> dict:
        return {"value": value, "low": value - 0.05, "high": value + 0.04}

    def scored(miou: float) -> dict:
        return {"miou": between(miou), "iou": {name: between(miou) for name in evaluation["classes"]}}

    out = b.out / run / "estimate"
    domains = {
        name: {
            "name": name,
            "corrected": scored(true + off),
            "source": scored(true + 0.2),
            "drop": between(0.2 - off),
            "transfer_cost": between(0.06),
            "failing": ["rider", "pole"] if name == "night" else [],
        }
        for name, off in (("night", 0.02), ("fog", 0.1))
    }
    outputs.begin(
        out,
        "estimate",
        EstimateConfig(run=str(b.out / run), source=f"cityscapes:{b.out}/day:val", to=("night", "fog")),
    )
    runs.write_json(
        out / "estimate.json",
        {
            "protocol": "made up",
            "level": 0.9,
            "model": evaluation["model"],
            "generator": {"model": "made up", "weights": {}},
            "classes": evaluation["classes"],
            "domains": domains,
        },
    )
    return out


def measure(page: Path) -> list[tuple[str, str]]:
    """Loading and scrolling in Chromium; the reason where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return [("browser", "no Playwright: pip install playwright")]
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as player:
        if browser is None and not Path(player.chromium.executable_path).exists():
            return [("browser", "no Chromium: playwright install chromium")]
        chromium = player.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1280, "height": 800})
        start = perf_counter()
        tab.goto(page.resolve().as_uri(), wait_until="load")
        loaded = perf_counter() - start
        paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000")
        tab.locator("#frames .more button").click()
        waits = tab.evaluate("""async () => {
          const list = document.querySelector('#frames .rows'), waits = [];
          const frame = () => new Promise((done) => requestAnimationFrame(done));
          document.documentElement.style.scrollBehavior = 'auto';
          const from = scrollY + list.getBoundingClientRect().top;
          for (let i = 0; i < 100; i++) {
            const start = performance.now();
            scrollTo(0, from + i / 100 * list.clientHeight);
            await frame();
            await frame();
            waits.push(performance.now() - start);
          }
          return waits.sort((a, b) => a - b);
        }""")
        took = tab.evaluate("""() => {
          const field = document.querySelector('#frames [name=class]'), start = performance.now();
          field.value = 13;
          field.dispatchEvent(new Event('input', { bubbles: true }));
          return performance.now() - start;
        }""")
        tab.wait_for_selector("#frames .strip")  # drawn with the next frame
        nodes = tab.evaluate("document.querySelectorAll('.strip').length")
        chromium.close()
    return [
        ("first paint", f"{paint:.2f} s"),
        ("all of the file loaded", f"{loaded:.2f} s"),
        ("a jump in the list, median", f"{waits[50]:.0f} ms"),
        ("a jump in the list, slowest of 100", f"{waits[-1]:.0f} ms"),
        ("choosing a class: filter and sort", f"{took:.0f} ms"),
        ("rows in the document then", str(nodes)),
    ]


def main(b: Benchmark) -> None:
    if not (b.out / "transferred/night/manifest.jsonl").exists():
        write_data(b)
    shown = [b.out / "transferred"]
    for run in RUNS:
        for name, spec in (
            ("night", f"acdc:{b.out}/night:night/val"),
            ("fog, transferred", f"cityscapes:{b.out}/transferred/fog:val"),
        ):
            if name != "night" and b.frames > 500:
                continue
            out = b.out / run / "predictions" / name
            if not (out / "model.json").exists():
                predict(b, run, spec, out)
            shown.append(evaluate(EvaluateConfig(str(out), spec), b.out / run / "evaluation" / name))
        found = runs.read_json(b.out / run / "evaluation/night/metrics.json")
        shown.append(estimated(b, run, found["miou"], found))
    start, cpu = perf_counter(), process_time()
    report(ReportConfig(tuple(str(folder) for folder in shown), title="report page"), b.out)
    built, cpu, page = perf_counter() - start, process_time() - cpu, b.out / "index.html"
    view = Table(
        "what",
        "value",
        title=f"report over {b.frames} frames, {len(RUNS)} runs, and {b.frames} transferred to 2 domains",
    )
    rows = [
        ("built in", f"{built:.1f} s ({cpu:.1f} s of one core)"),
        ("file", f"{page.stat().st_size / 2**20:.1f} MiB"),
        *measure(page),
    ]
    for row in rows:
        view.add_row(*row)
    Console().print(view)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
