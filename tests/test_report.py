"""The report page: self-contained, right numbers, label spaces apart, and wrong input."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import report_page
import trees
from PIL import Image

from segshift import outputs, runs
from segshift.config import (
    EstimateConfig,
    EvaluateConfig,
    PredictConfig,
    ReportConfig,
    TrainConfig,
    TransferConfig,
)
from segshift.data import frames
from segshift.data.labels import LabelSpace
from segshift.page import charts as drawing
from segshift.runs import InputError
from segshift.scoring import metrics, predictions
from segshift.stages.evaluate import evaluate
from segshift.stages.report import report

VOID_TAGS = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Tags with their attributes, and the text of every element of a class or tag, after a check that tags
    match.
    """

    def __init__(self, file: Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.raw = file.read_text(encoding="utf-8")
        self.feed(self.raw)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += " " + data if "script" not in self.open and "style" not in self.open else ""

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def galleries(self) -> list[dict]:
        """What the page's script reads."""
        return [json.loads(text) for text in re.findall(r'id="gallery-\d+">(.*?)</script>', self.raw, re.S)]

    def picture(self, index: int) -> np.ndarray:
        """RGB [h, w, 3]."""
        packs = re.findall(r'id="pack-\d+">(.*?)</script>', self.raw, re.S)
        return np.array(
            Image.open(io.BytesIO(base64.b64decode(" ".join(packs).split(" ")[index]))).convert("RGB")
        )


def training(folder: Path, source: str, method: str) -> Path:
    outputs.begin(folder, "train", TrainConfig(source=source, method=method))
    logged = [{"step": s, "lr": 0.1 / s, "source": 2 / s, "seconds": 0.1} for s in range(1, 400)]
    logged.append(
        {"step": 399, "score": 0.25, "validation": {"source": {"miou": 0.25, "iou": {"road": 0.5}}}}
    )
    runs.write_lines(folder / "metrics.jsonl", logged)
    return folder


def evaluated(run: Path, name: str, spec: str, right: float) -> Path:
    """Predictions of a run that are right on a share of the pixels, and their evaluation."""
    data, folder = frames.load(spec), run / "predictions" / name
    outputs.begin(folder, "predict", PredictConfig(run=str(run), data=spec))
    runs.write_json(
        folder / "model.json",
        {
            "run": str(run),
            "rules": ["last"],
            "selection": "checkpoint: last",
            "sampling": None,
            "weights": str(run),
        },
    )
    rng = np.random.default_rng(0)
    for frame in data.frames:
        label = frames.read_label(frame, data.space)
        wrong = np.where(label == 0, 1, 0).astype(np.uint8)
        pred = np.where(rng.random(label.shape) < right, label, wrong)
        predictions.write(frames.place(data, frame, folder), pred, data.space)
    return evaluate(EvaluateConfig(str(folder), spec), run / "evaluation" / name)


@pytest.fixture
def world(tmp_path: Path) -> dict[str, Path | str]:
    """Two trainings, evaluated on night and on clear, and a transferred tree."""
    day = f"cityscapes:{trees.cityscapes(tmp_path / 'day')}:train"
    night = f"acdc:{trees.acdc(tmp_path / 'acdc')}:night/val"
    found: dict[str, Path | str] = {"day": day, "night": night, "moved": tmp_path / "transferred"}
    for method, right in (("source_only", 0.5), ("zodi", 0.8)):
        run = found[method] = training(tmp_path / method, day, method)
        found[f"{method}/night"] = evaluated(run, "night", night, right)
        found[f"{method}/clear"] = evaluated(run, "clear", day, right)
    outputs.begin(tmp_path / "transferred", "transfer", TransferConfig(source=day, to=("night",)))
    trees.cityscapes(tmp_path / "transferred/night")
    told = trees.transferred_line("night", "driving at night <&>", 0.9)
    runs.write_lines(
        tmp_path / "transferred/night/manifest.jsonl", [{"id": id} | told for id in trees.IDS[:2]]
    )
    return found


def write(out: Path, *folders: Path | str, title: str = "demo") -> Page:
    report(ReportConfig(tuple(str(folder) for folder in folders), title=title), out)
    return Page(out / "index.html")


def whole(out: Path, world: dict) -> Page:
    return write(
        out,
        *(
            world[k]
            for k in (
                "moved",
                "source_only",
                "zodi",
                "source_only/night",
                "source_only/clear",
                "zodi/night",
                "zodi/clear",
            )
        ),
    )


def miou(evaluation: Path) -> float:
    return 100 * runs.read_json(evaluation / "metrics.json")["miou"]


def test_the_page_fetches_nothing(tmp_path: Path, world: dict):
    page = whole(tmp_path / "out", world)
    assert not re.search(r"https?://|//\w+\.\w|@import|url\((?!data:)", page.raw)
    addresses = [
        a[key] for _, a in page.tags for key in ("src", "href", "srcset", "data", "poster") if key in a
    ]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert {anchor["href"][1:] for anchor in page.of("a")} <= {a.get("id") for _, a in page.tags}
    [policy] = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_headline_shows_every_run_on_every_data_set_and_the_gain(tmp_path: Path, world: dict):
    page = whole(tmp_path / "out", world)
    table = page.raw[page.raw.index('<table class="headline">') :].partition("</table>")[0]
    text = " ".join(re.sub(r"<[^>]*>", " ", table).split())
    assert re.search(
        "night acdc night/val clear cityscapes train Source only .* ZoDi .* Gain over Source only", text
    )
    first, second = (miou(world[f"{method}/night"]) for method in ("source_only", "zodi"))
    assert f"{first:.1f}" in text and f"{second:.1f}" in text and f"{second - first:+.1f}" in text
    assert table.count('class="best"') == 2


def test_curves_confusions_and_settings_are_there(tmp_path: Path, world: dict):
    page = whole(tmp_path / "out", world)
    assert "driving at night <&>" in page.text
    charts = [svg["aria-label"] for svg in page.of("svg") if svg["class"] == "chart"]
    assert charts == ["loss: source", "learning rate", "mIoU on source, %"]
    assert sum(svg["class"] == "heat" for svg in page.of("svg")) == 4
    assert '"method": "zodi"' in page.text and "Where the trainings differ" in page.text


def test_every_evaluated_frame_is_there_with_its_pictures_and_scores(tmp_path: Path, world: dict):
    page = whole(tmp_path / "out", world)
    shown = page.galleries[1]
    assert shown["columns"] == ["Source only", "ZoDi"] and shown["domains"] == ["night", "clear"]
    assert [shown["domains"][row["domain"]] for row in shown["rows"]] == ["night"] * 2 + ["clear"] * 3
    data = frames.load(world["night"])
    row, frame = shown["rows"][0], data.frames[0]
    assert row["id"] == frame.id and row["has"] == list(range(19)) and row["source"] is None
    label = frames.read_label(frame, data.space)
    np.testing.assert_array_equal(
        page.picture(row["truth"]), drawing.paint(label, data.space.colours)
    )  # losslessly
    for method, cell in zip(("source_only", "zodi"), row["cells"], strict=True):
        scored = runs.read_json(world[f"{method}/night"] / "metrics.json")["frames"][0]
        assert cell["s"] == pytest.approx(scored["miou"], abs=6e-4)
        pred = predictions.read(frames.place(data, frame, world[method] / "predictions/night"), data.space)
        np.testing.assert_array_equal(page.picture(cell["p"]), drawing.paint(pred, data.space.colours))
        car = (label == 13, pred == 13)
        assert cell["c"][13] == pytest.approx(
            (car[0] & car[1]).sum() / ((car[0] | car[1]) & (label != 255)).sum(), abs=6e-4
        )


def test_transferred_frames_are_shown_with_their_source_and_the_gates_verdict(tmp_path: Path, world: dict):
    tree = world["moved"] / "night"
    gate = {
        "decision": "kept",
        "tries": 3,
        "score": 0.75,
        "agreement": {"road": [0.8, 0.6], "car": [0.0, 0.1]},
    }
    lines = runs.read_lines(tree / "manifest.jsonl")
    runs.write_lines(
        tree / "manifest.jsonl",
        [lines[0] | {"gate": gate}, lines[1] | {"gate": gate | {"decision": "dropped", "score": None}}],
    )
    (tree / f"leftImg8bit/train/aachen/{trees.IDS[1]}_leftImg8bit.png").unlink()
    page = write(tmp_path / "out", world["moved"])
    [shown] = page.galleries
    assert shown["kind"] == "transfers" and shown["score"] == "gate score" and shown["columns"] == ["night"]
    first, second = (row["cells"][0] for row in shown["rows"])  # the third is not in the manifest
    assert (
        first["s"] == 0.75
        and first["c"][:2] == [0.75, None]
        and first["c"][13] is None
        and first["note"] == "3 draws"
    )
    assert second["p"] is None and second["s"] is None and second["note"] == "3 draws, dropped"
    assert "2 frames, 2 drawn again, 1 dropped" in page.text


def test_an_evaluated_tree_of_transferred_frames_comes_with_its_sources(tmp_path: Path, world: dict):
    spec = f"cityscapes:{world['moved']}/night:train"
    page = write(tmp_path / "out", evaluated(world["zodi"], "moved", spec, 0.5))
    [shown] = page.galleries
    assert shown["domains"] == ["night, transferred"]
    assert all(row["source"] is not None for row in shown["rows"])


def test_samplings_of_one_network_are_columns_of_their_own_with_their_entropy(tmp_path: Path, world: dict):
    for steps, right in ((1, 0.9), (3, 0.7)):
        run, name = world["zodi"], f"night-{steps}"
        evaluation = evaluated(run, name, world["night"], right)
        told = runs.read_json(evaluation / "metrics.json")
        told["model"]["sampling"] = f"{steps} DDIM steps, 1 draw"
        runs.write_json(evaluation / "metrics.json", told)
        world[name] = evaluation
    data = frames.load(world["night"])
    for frame in data.frames:
        file = frames.place(data, frame, world["zodi"] / "predictions/night-1/uncertainty/entropy")
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.full((8, 16), 65535, np.uint16))
    page = write(tmp_path / "out", world["source_only/night"], world["night-1"], world["night-3"])
    assert "checkpoint: last, 1 DDIM steps, 1 draw" in page.text
    [shown] = page.galleries
    assert len(shown["columns"]) == 3
    for row in shown["rows"]:
        entropies = [cell["u"] for cell in row["cells"]]
        assert entropies[0] is entropies[2] is None
        red, green, _ = page.picture(entropies[1]).mean((0, 1))
        assert red > 200 and green > 200  # all of it as uncertain as can be: bright


def test_what_saw_labels_of_the_target_is_never_the_best(tmp_path: Path, world: dict):
    oracle = evaluated(
        training(tmp_path / "oracle", world["day"], "source_only"), "night", world["night"], 1.0
    )
    page = write(tmp_path / "out", world["source_only/night"], world["zodi/night"], oracle)
    best = [value for value in re.findall(r'<b class="best">([\d.]+)</b>', page.raw)]
    assert best == [f"{100 * runs.read_json(world['zodi/night'] / 'metrics.json')['miou']:.1f}"]


def test_calibration_and_uncertainty_are_drawn_where_they_were_evaluated(tmp_path: Path, world: dict):
    file = world["zodi/night"] / "metrics.json"
    found = runs.read_json(file)
    count, accuracy = [0] * 19 + [10], [None] * 19 + [0.5]
    told = {
        "calibration": {
            "bins": 20,
            "count": count,
            "accuracy": accuracy,
            "confidence": accuracy,
            "ece": 0.4321,
        },
        "risk_coverage": {"entropy": {"coverage": [0.5, 1.0], "risk": [0.1, 0.4], "area": 0.1234}},
    }
    found["domains"]["night"] |= told
    runs.write_json(file, found)
    page = write(tmp_path / "out", world["source_only/night"], world["zodi/night"])
    labels = [svg["aria-label"] for svg in page.of("svg")]
    assert labels.count("reliability diagram") == 1 and "errors kept by entropy" in labels
    assert "calibration error 43.2 %" in page.text and "area 0.123" in page.text
    assert "confidence 95 to 100 %: 50.0 % right, 100.0 % of the pixels" in page.text


def estimated(run: Path, evaluation: Path, weights: str) -> Path:
    """An estimate for night and for a sandstorm, which nobody has labels of."""
    found = runs.read_json(evaluation / "metrics.json")
    between = {"value": 0.4, "low": 0.35, "high": 0.5}
    domain: dict = {
        "corrected": {"miou": between},
        "source": {"miou": between},
        "transfer_cost": between,
        "drop": between,
    }
    domain["corrected"]["iou"] = domain["source"]["iou"] = dict.fromkeys(found["classes"], between)
    domains = {
        "night": {"name": "night", "failing": ["car"], **domain},
        "sandstorm": {"name": "in a sandstorm", "failing": [], **domain},
    }
    outputs.begin(run / "estimate", "estimate", EstimateConfig(run=str(run), source="cityscapes:day:val"))
    told = {
        "protocol": "as told",
        "level": 0.9,
        "model": found["model"] | {"weights": weights, "input": "size 64x64"},
        "generator": {"model": "/models/prior", "weights": {}},
        "classes": found["classes"],
    }
    runs.write_json(run / "estimate/estimate.json", told | {"domains": domains})
    return run / "estimate"


def test_the_page_benchmarks_estimates_are_in_the_form_of_estimate(tmp_path: Path, world: dict):
    found = runs.read_json(world["zodi/night"] / "metrics.json")
    folder = report_page.estimated(report_page.Benchmark(tmp_path), "zodi", 0.3, found)
    assert "Mean absolute error" in write(tmp_path / "out", world["zodi/night"], folder).text


def test_of_two_true_scores_none_is_shown(tmp_path: Path, world: dict, caplog):
    ours, other = estimated(world["zodi"], world["zodi/night"], str(world["zodi"])), tmp_path / "train"
    shutil.copytree(world["zodi/night"], other)
    found = runs.read_json(other / "metrics.json")
    confusion = np.array(found["domains"]["night"]["confusion"])
    found["data"]["subset"], found["domains"]["night"]["confusion"] = "night/train", (confusion + 1).tolist()
    found["setting"] = "another split"
    runs.write_json(other / "metrics.json", found)
    page = write(tmp_path / "out", world["zodi/night"], other, ours)
    assert "night 40.0 35.0 to 50.0 – –" in " ".join(page.text.split())
    assert "several true scores for the estimate of ZoDi, night" in caplog.text


def test_an_estimate_stands_beside_the_truth_of_the_same_network_only(tmp_path: Path, world: dict):
    ours = estimated(world["zodi"], world["zodi/night"], str(world["zodi"]))
    page = write(tmp_path / "out", world["zodi/night"], ours)
    text = " ".join(page.text.split())
    true = miou(world["zodi/night"])
    assert (
        f"night 40.0 35.0 to 50.0 {true:.1f} {40 - true:+.1f}" in text
        and "in a sandstorm 40.0 35.0 to 50.0 – –" in text
    )
    assert f"Mean absolute error {abs(40 - true):.1f} points over 1" in text and "worst first: car" in text
    other = estimated(world["source_only"], world["source_only/night"], "others")
    page = write(tmp_path / "out", world["zodi/night"], other)
    assert "Mean absolute error" not in page.text and "night 40.0 35.0 to 50.0 – –" in " ".join(
        page.text.split()
    )


def test_the_same_folders_give_the_same_page(tmp_path: Path, world: dict):
    assert whole(tmp_path / "a", world).raw == whole(tmp_path / "b", world).raw


def test_label_spaces_are_shown_apart(tmp_path: Path, world: dict):
    mine = f"folder:{trees.folder(tmp_path / 'mine')}:train"
    other = evaluated(training(tmp_path / "mine-run", mine, "source_only"), "mine", mine, 0.5)
    for run, (name, count) in {world["zodi"]: ("cityscapes", 19), tmp_path / "mine-run": ("mine", 3)}.items():
        runs.write_json(
            run / "labels.json",
            LabelSpace(name, ("road",) * count, ((0, 0, 0),) * count, tuple(range(count))),
        )
    page = write(tmp_path / "out", world["zodi/night"], other, world["zodi"], tmp_path / "mine-run")
    charts = [svg["aria-label"] for svg in page.of("svg")]
    assert {"mIoU on source, % (cityscapes, 19 classes)", "mIoU on source, % (mine, 3 classes)"} <= set(
        charts
    )
    tables = re.findall(r'<table class="headline">.*?</table>', page.raw, re.S)
    assert len(tables) == 2
    assert (
        "acdc" in tables[0]
        and "folder" not in tables[0]
        and "folder" in tables[1]
        and "acdc" not in tables[1]
    )
    assert "Gain" not in tables[0] + tables[1]


def test_runs_of_the_same_name_are_told_apart_by_their_parents(tmp_path: Path, world: dict):
    seeds = [training(tmp_path / seed / "zodi", world["day"], "zodi") for seed in ("seed0", "seed1")]
    page = write(tmp_path / "out", *(evaluated(run, "night", world["night"], 0.5) for run in seeds), *seeds)
    assert "seed0/ZoDi" in page.text and "Gain over seed0/ZoDi" in " ".join(page.text.split())


def test_experiments_are_never_pooled_and_gains_stay_within_a_seed_and_a_rule(tmp_path: Path, world: dict):
    shares = {"a": {0: (0.3, 0.5), 1: (0.6, 0.9)}, "b": {0: (0.4, 0.6)}}
    made, of = [], {}
    for name, seeds in shares.items():
        for seed, rights in seeds.items():
            for row, right in zip(("source-only", "zodi"), rights, strict=True):
                run = training(tmp_path / name / f"seed-{seed}" / row, world["day"], "zodi")
                made.append(evaluated(run, "night", world["night"], right))
                of[name, seed, row] = miou(made[-1])
    page = write(tmp_path / "out", *made)
    seeds, headline = re.findall(r'<table class="headline.*?</table>', page.raw, re.S)
    text = " ".join(re.sub(r"<[^>]*>", " ", seeds).split())
    zodi, plain = ([of["a", seed, row] for seed in (0, 1)] for row in ("zodi", "source-only"))
    gains = [z - p for z, p in zip(zodi, plain, strict=True)]
    assert f"ZoDi checkpoint: last {metrics.spread(zodi)} gain {metrics.spread(gains, '+')}" in text
    assert (
        f"Source only checkpoint: last {metrics.spread(plain)}" in text and text.count("±") == 4
    )  # b has one seed
    text = " ".join(re.sub(r"<[^>]*>", " ", headline).split())
    for (name, seed, row), value in of.items():
        shown = {"zodi": "ZoDi", "source-only": "Source only"}[row]
        gain = "" if row == "source-only" else f" {value - of[name, seed, 'source-only']:+.1f}"
        home = f"{name}/" if seed == 0 else ""  # there is but one seed-1
        assert f" {home}seed-{seed}/{shown} checkpoint: last {value:.1f}{gain}" in text


def test_a_gain_is_over_the_same_row_of_every_seed_and_missing_seeds_are_told(tmp_path: Path, world: dict):
    made, of = [], {}
    for seed, rights in enumerate(
        ((0.3, 0.5, 0.7), (0.35, 0.6, 0.8), (None, 0.5, 0.9))
    ):  # source only is not there in one
        for row, right in zip(("source-only", "step-1", "full"), rights, strict=True):
            if right is not None:
                run = training(tmp_path / "a" / f"seed-{seed}" / row, world["day"], "zodi")
                made.append(evaluated(run, "night", world["night"], right))
                of[row, seed] = made[-1]
    page = write(tmp_path / "out", *made)
    seeds, headline = (
        " ".join(re.sub(r"<[^>]*>", " ", t).split())
        for t in re.findall(r'<table class="headline.*?</table>', page.raw, re.S)
    )
    gains = metrics.spread([miou(of["full", s]) - miou(of["source-only", s]) for s in (0, 1)], "+")
    assert (
        f"full checkpoint: last {metrics.spread([miou(of['full', s]) for s in range(3)])} gain {gains} (n "
        "= 2)" in seeds
    )
    assert (
        f"Source only checkpoint: last {metrics.spread([miou(of['source-only', s]) for s in (0, 1)])} (n = 2)"
        in seeds
    )
    assert headline.endswith(f"seed-2/full checkpoint: last {miou(of['full', 2]):.1f}")  # and no gain
    assert page.galleries[0]["firsts"] == [None, 0, 0, None, 3, 3, None, None]
    classes = re.search(r"IoU, %, over seeds.*?</table>", page.raw, re.S)[0]
    road = [100 * runs.read_json(of["full", s] / "metrics.json")["iou"]["sky"] for s in range(3)]
    assert f"<td>{metrics.spread(road)}</td>" in classes


def test_columns_of_one_name_are_told_apart_and_one_data_set_is_one_column(
    tmp_path: Path, world: dict, monkeypatch
):
    predicted = str(world["zodi"] / "predictions/clear")
    published = evaluate(
        EvaluateConfig(predicted, str(world["day"]), protocol="as-published"), tmp_path / "published"
    )
    page = write(tmp_path / "out", world["zodi/clear"], published)
    heads = re.findall(r'<th scope="col">clear<small>(.*?)</small>', page.raw)
    assert heads == [
        "cityscapes train; label's native size".replace("'", "&#39;"),
        "cityscapes train; 512x1024, labels resized",
    ]
    other = trees.cityscapes(tmp_path / "other")
    elsewhere = evaluated(
        training(tmp_path / "run", world["day"], "zodi"), "clear", f"cityscapes:{other}:train", 0.4
    )
    page = write(tmp_path / "out", world["zodi/clear"], elsewhere)
    heads = re.findall(r'<th scope="col">clear<small>(.*?)</small>', page.raw)
    assert heads == [f"cityscapes train; {world['day']}", f"cityscapes train; cityscapes:{other}:train"]
    monkeypatch.chdir(tmp_path)
    relative = evaluated(
        training(tmp_path / "here", world["day"], "zodi"), "clear", "cityscapes:day:train", 0.4
    )
    page = write(tmp_path / "out", world["zodi/clear"], relative)
    assert re.findall(r'<th scope="col">clear<small>(.*?)</small>', page.raw) == ["cityscapes train"]


def test_one_missing_prediction_costs_its_own_picture_alone(tmp_path: Path, world: dict):
    next((world["zodi"] / "predictions/night").rglob("*.png")).unlink()
    page = write(tmp_path / "out", world["source_only/night"], world["zodi/night"])
    rows = page.galleries[0]["rows"]
    there = [[cell["p"] is not None for cell in row["cells"]] for row in rows]
    assert sorted(there) == [[True, False], [True, True]]
    assert [row["cells"][1]["note"] for row in rows if row["cells"][1]["p"] is None] == [
        "prediction not there"
    ]
    assert all(cell["s"] is not None for row in rows for cell in row["cells"])


def test_predictions_whose_images_are_gone_do_not_cost_the_page(tmp_path: Path, world: dict):
    spec = f"cityscapes:{trees.cityscapes(tmp_path / 'gone', labelled=False)}:train"
    outputs.begin(
        tmp_path / "run/predictions/gone", "predict", PredictConfig(run=str(tmp_path / "run"), data=spec)
    )
    shutil.rmtree(tmp_path / "gone")
    page = write(tmp_path / "out", world["zodi/night"], tmp_path / "run/predictions/gone")
    assert "No pictures:" in page.text and f"{miou(world['zodi/night']):.1f}" in page.text


def test_rules_that_choose_the_same_checkpoint_in_every_seed_share_a_line(tmp_path: Path, world: dict):
    def chosen(seed: int, row: str, right: float, *rules: str) -> Path:
        run = training(tmp_path / "a" / f"seed-{seed}" / row, world["day"], "zodi")
        made = evaluated(run, "-".join(rules), world["night"], right)
        told = runs.read_json(made / "metrics.json")
        told["model"] |= {"rules": list(rules), "selection": predictions.selection(rules)}
        runs.write_json(made / "metrics.json", told)
        return made

    every = ("last", "source", "oracle")
    made = [
        chosen(0, "source-only", 0.3, *every),
        chosen(1, "source-only", 0.3, "last", "oracle"),
        chosen(1, "source-only", 0.2, "source"),
    ]
    made += [
        chosen(0, "zodi", 0.6, *every),
        chosen(1, "zodi", 0.5, "last", "oracle"),
        chosen(1, "zodi", 0.4, "source"),
    ]
    page = write(tmp_path / "out", *made)
    seeds, headline = (
        " ".join(re.sub(r"<[^>]*>", " ", t).split())
        for t in re.findall(r'<table class="headline.*?</table>', page.raw, re.S)
    )
    plain, apart, last = ([miou(made[i]) for i in where] for where in ((0, 2), (3, 5), (0, 1)))
    assert f"Source only checkpoint: last, oracle (not attainable) {metrics.spread(last)}" in seeds
    gains = [ours - theirs for ours, theirs in zip(apart, plain, strict=True)]
    assert (
        f"ZoDi checkpoint: best on source {metrics.spread(apart)} gain {metrics.spread(gains, '+')}" in seeds
    )
    assert "ZoDi checkpoint: last, oracle (not attainable)" in seeds
    assert f"seed-1/ZoDi checkpoint: best on source {apart[1]:.1f} {gains[1]:+.1f}" in headline


def test_two_evaluations_of_the_same_predictions_are_shown_once_and_refused_where_they_differ(
    tmp_path: Path, world: dict
):
    again = evaluate(
        EvaluateConfig(str(world["zodi"] / "predictions/night"), str(world["night"])), tmp_path / "again"
    )
    assert (
        len(write(tmp_path / "out", world["zodi/night"], again).galleries[0]["columns"]) == 1
    )  # the same scores: once
    told = runs.read_json(again / "metrics.json")
    told["domains"]["night"]["miou"] += 0.01
    runs.write_json(again / "metrics.json", told)
    with pytest.raises(InputError, match="evaluate the same predictions of ZoDi on night: name one of them"):
        write(tmp_path / "out", world["zodi/night"], again)


def test_labels_outside_the_class_set_are_void_in_the_pictures_too(tmp_path: Path, world: dict):
    predicted = str(world["zodi"] / "predictions/night")
    sixteen = evaluate(EvaluateConfig(predicted, str(world["night"]), classes=16), tmp_path / "sixteen")
    page = write(tmp_path / "out", sixteen)
    [shown], data = page.galleries, frames.load(world["night"])
    left_out = [data.space.names.index(name) for name in ("terrain", "truck", "train")]
    for row, frame in zip(shown["rows"], data.frames, strict=True):
        label = frames.read_label(frame, data.space)
        assert np.isin(label, left_out).any()
        expected = drawing.paint(
            np.where(np.isin(label, left_out), 255, label).astype(np.uint8), data.space.colours
        )
        np.testing.assert_array_equal(page.picture(row["truth"]), expected)


def test_several_conditions_have_a_column_each_and_one_together(tmp_path: Path, world: dict):
    trees.acdc(tmp_path / "acdc", ("GOPR0475_frame_000041",), condition="fog")
    spec = f"acdc:{tmp_path}/acdc:val"
    page = write(tmp_path / "out", evaluated(world["zodi"], "acdc", spec, 0.5))
    tabs = [a["aria-controls"] for a in page.of("button") if "aria-controls" in a]
    assert tabs == ["p-0-0", "p-0-1", "p-0-2"]
    assert re.findall(r'<th scope="col">(\w+)<small>acdc val', page.raw) == ["fog", "night", "all"]


def test_each_picture_is_in_the_page_once(tmp_path: Path, world: dict):
    page = write(tmp_path / "out", world["source_only/night"], world["zodi/night"], world["moved"])
    packs = " ".join(re.findall(r'id="pack-\d+">(.*?)</script>', page.raw, re.S)).split(" ")
    assert len(packs) == len(set(packs))
    transfers, shown = page.galleries
    there = [row[key] for row in transfers["rows"] + shown["rows"] for key in ("image", "truth")]
    there += [cell["p"] for row in transfers["rows"] + shown["rows"] for cell in row["cells"]]
    assert set(there) == set(range(len(packs)))


def test_numbers_stand_where_the_pictures_are_gone(tmp_path: Path, world: dict):
    (tmp_path / "acdc").rename(tmp_path / "elsewhere")
    page = write(tmp_path / "out", world["zodi/night"])
    assert f"{miou(world['zodi/night']):.1f}" in page.text and page.galleries == []
    assert "No pictures: no folder" in page.text


def test_a_frame_that_cannot_be_read_costs_only_its_own_pictures(tmp_path: Path, world: dict):
    data = frames.load(world["night"])
    data.frames[0].image.write_bytes(b"none")
    page = write(tmp_path / "out", world["zodi/night"])
    assert [row["id"] for row in page.galleries[0]["rows"]] == [data.frames[1].id]
    assert "No pictures of 1 of 2 frames: cannot read" in page.text


def test_predictions_without_labels_are_shown_beside_their_images(tmp_path: Path, world: dict):
    folder = world["zodi"] / "predictions/night"
    ids = [frame.id for frame in frames.load(world["night"]).frames]
    runs.write_lines(
        folder / "predictions.jsonl",
        [
            {"id": id, "file": f"{id}.png", "confidence": 0.5, "confidences": [1], "nuclear_norm": 0.5}
            for id in ids
        ],
    )
    page = write(tmp_path / "out", folder)
    [shown] = page.galleries
    assert "Predictions without labels" in page.text and shown["score"] == "confidence"
    assert {tag["name"] for tag in page.of("select")} == {"order"}  # no class is known to be there
    assert [tag["value"] for tag in page.of("input") if tag["name"] == "view"] == []
    assert [(row["id"], row["truth"], row["cells"][0]["s"]) for row in shown["rows"]] == [
        (id, None, 0.5) for id in ids
    ]
    for frame in frames.load(world["night"]).frames:
        file = frames.place(frames.load(world["night"]), frame, folder / "uncertainty/entropy")
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.full((8, 16), 65535, np.uint16))
    page = write(tmp_path / "out", folder)
    assert [tag["value"] for tag in page.of("input") if tag["name"] == "view"] == ["classes", "uncertainty"]


def test_a_transferred_domain_can_be_named_by_itself(tmp_path: Path, world: dict):
    page = write(tmp_path / "out", world["moved"] / "night")
    assert [len(gallery["rows"]) for gallery in page.galleries] == [2]


def test_text_of_the_user_is_text(tmp_path: Path, world: dict):
    page = write(tmp_path / "out", world["zodi"], title="<script>alert(1)</script>")
    assert "<script>alert" not in page.raw and "<script>alert(1)</script>" in page.text
    named = training(
        tmp_path / "x<&y", world["day"], "zodi"
    )  # a folder can hold what an element's end is made of
    page = write(tmp_path / "named", evaluated(named, "night", world["night"], 0.5))
    assert page.galleries[0]["columns"] == ["x<&y"] and "x<&y" in page.text


def test_the_page_is_not_written_into_a_run_but_may_lie_below_it(tmp_path: Path, world: dict):
    with pytest.raises(InputError, match="lies in the input"):
        write(world["zodi"], world["zodi"])
    assert write(world["zodi"] / "report", world["zodi"])


def test_folders_that_no_stage_wrote_or_finished_are_refused(tmp_path: Path, world: dict):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config.json in .*empty"):
        write(tmp_path / "out", tmp_path / "empty")
    outputs.begin(tmp_path / "town", "town", {"seed": 0})
    with pytest.raises(InputError, match="stage 'town'"):
        write(tmp_path / "out", tmp_path / "town")
    (world["zodi/night"] / "metrics.json").unlink()
    with pytest.raises(InputError, match="run segshift evaluate again"):
        write(tmp_path / "out", world["zodi/night"])
    with pytest.raises(InputError, match="no folder to report on"):
        write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 0.14), (-0.1, 0), (0, 74375), (3, 3), (0, 0)])
def test_ticks_are_few_and_enclose_the_values(low: float, high: float):
    ticks = drawing.ticks(low, high)
    assert 2 <= len(ticks) <= 7 and ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9


def test_long_curves_are_thinned_to_means():
    points = [(float(x), float(x % 2)) for x in range(1600)]
    thin = drawing.thin(points)
    assert len(thin) == 160 and thin[0] == (4.5, 0.5) and drawing.thin(points[:9]) == points[:9]
