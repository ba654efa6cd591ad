"""The report page: self-contained, right numbers, label spaces apart, and wrong input."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import trees

from segshift import drawing, frames, predictions, runs
from segshift.config import EvaluateConfig, PredictConfig, ReportConfig, TrainConfig, TransferConfig
from segshift.runs import InputError
from segshift.stages.evaluate import evaluate
from segshift.stages.report import SHOWN, report

VOID_TAGS = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Tags with their attributes, and the text of every element of a class or tag, after a check that tags match."""

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


def training(folder: Path, source: str, method: str) -> Path:
    runs.begin(folder, "train", TrainConfig(source=source, method=method))
    logged = [{"step": s, "lr": 0.1 / s, "source": 2 / s, "seconds": 0.1} for s in range(1, 400)]
    logged.append({"step": 399, "score": 0.25, "validation": {"source": {"miou": 0.25, "iou": {"road": 0.5}}}})
    runs.write_lines(folder / "metrics.jsonl", logged)
    return folder


def evaluated(run: Path, name: str, spec: str, right: float) -> Path:
    """Predictions of a run that are right on a share of the pixels, and their evaluation."""
    data, folder = frames.load(spec), run / "predictions" / name
    runs.begin(folder, "predict", PredictConfig(run=str(run), data=spec))
    runs.write_json(folder / "model.json", {"run": str(run), "selection": "checkpoint of the last step"})
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
    runs.begin(tmp_path / "transferred", "transfer", TransferConfig(source=day, to=("night",)))
    trees.cityscapes(tmp_path / "transferred/night")
    told = {"domain": "night", "prompt": "driving at night <&>", "strength": 0.9}
    runs.write_lines(tmp_path / "transferred/night/manifest.jsonl", [{"id": id} | told for id in trees.IDS[:2]])
    return found


def write(out: Path, *folders: Path | str, title: str = "demo") -> Page:
    report(ReportConfig(tuple(str(folder) for folder in folders), title=title), out)
    return Page(out / "index.html")


def whole(out: Path, world: dict) -> Page:
    return write(out, *(world[k] for k in ("moved", "source_only", "zodi", "source_only/night", "source_only/clear",
                                           "zodi/night", "zodi/clear")))  # fmt: skip


def miou(evaluation: Path) -> float:
    return 100 * runs.read_json(evaluation / "metrics.json")["miou"]


def test_the_page_fetches_nothing(tmp_path: Path, world: dict):
    page = whole(tmp_path / "out", world)
    assert not re.search(r"https?://|//\w+\.\w|@import|url\((?!data:)", page.raw)
    addresses = [a[key] for _, a in page.tags for key in ("src", "href", "srcset", "data", "poster") if key in a]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert {anchor["href"][1:] for anchor in page.of("a")} <= {a.get("id") for _, a in page.tags}
    assert all(image["loading"] == "lazy" and image["alt"] for image in page.of("img"))


def test_the_headline_shows_every_run_on_every_data_set_and_the_gain(tmp_path: Path, world: dict):
    page = whole(tmp_path / "out", world)
    table = page.raw[page.raw.index('<table class="headline">') :].partition("</table>")[0]
    text = " ".join(re.sub(r"<[^>]*>", " ", table).split())
    assert re.search("night acdc night/val clear cityscapes train Source only .* ZoDi .* Gain over Source only", text)
    first, second = (miou(world[f"{method}/night"]) for method in ("source_only", "zodi"))
    assert f"{first:.1f}" in text and f"{second:.1f}" in text and f"{second - first:+.1f}" in text
    assert table.count('class="best"') == 2


def test_pictures_curves_confusions_and_settings_are_there(tmp_path: Path, world: dict):
    page = whole(tmp_path / "out", world)
    labels = [image["alt"] for image in page.of("img")]
    assert f"night of {trees.IDS[0]}" in labels and f"night of {trees.IDS[2]}" not in labels  # not in the manifest
    assert labels.count("prediction of ZoDi") == labels.count("errors of ZoDi") == 2 + 3
    assert "driving at night <&>" in page.text
    charts = [svg["aria-label"] for svg in page.of("svg") if svg["class"] == "chart"]
    assert charts == ["loss: source", "learning rate", "mIoU on source, %"]
    assert sum(svg["class"] == "heat" for svg in page.of("svg")) == 4
    assert '"method": "zodi"' in page.text and "Where the trainings differ" in page.text


def test_the_same_folders_give_the_same_page(tmp_path: Path, world: dict):
    assert whole(tmp_path / "a", world).raw == whole(tmp_path / "b", world).raw


def test_label_spaces_are_shown_apart(tmp_path: Path, world: dict):
    mine = f"folder:{trees.folder(tmp_path / 'mine')}:train"
    other = evaluated(training(tmp_path / "mine-run", mine, "source_only"), "mine", mine, 0.5)
    page = write(tmp_path / "out", world["zodi/night"], other)
    tables = re.findall(r'<table class="headline">.*?</table>', page.raw, re.S)
    assert len(tables) == 2
    assert "acdc" in tables[0] and "folder" not in tables[0] and "folder" in tables[1] and "acdc" not in tables[1]
    assert "Gain" not in tables[0] + tables[1]


def test_runs_of_the_same_name_are_told_apart_by_their_parents(tmp_path: Path, world: dict):
    seeds = [training(tmp_path / seed / "zodi", world["day"], "zodi") for seed in ("seed0", "seed1")]
    page = write(tmp_path / "out", *(evaluated(run, "night", world["night"], 0.5) for run in seeds), *seeds)
    assert "seed0/ZoDi" in page.text and "Gain over seed0/ZoDi" in " ".join(page.text.split())


def test_several_conditions_have_a_column_each_and_one_together(tmp_path: Path, world: dict):
    trees.acdc(tmp_path / "acdc", ("GOPR0475_frame_000041",), condition="fog")
    spec = f"acdc:{tmp_path}/acdc:val"
    page = write(tmp_path / "out", evaluated(world["zodi"], "acdc", spec, 0.5))
    tabs = [a["aria-controls"] for a in page.of("button")]
    assert tabs == ["p-0-0", "p-0-1", "p-0-2"]
    assert re.findall(r'<th scope="col">(\w+)<small>acdc val', page.raw) == ["fog", "night", "all"]


def test_pictures_are_few_however_many_frames_there_are(tmp_path: Path):
    ids = [f"ulm_{i:06d}_000019" for i in range(30)]
    day = f"cityscapes:{trees.cityscapes(tmp_path / 'day', ids)}:train"
    page = write(tmp_path / "out", evaluated(training(tmp_path / "run", day, "zodi"), "day", day, 0.5))
    assert len(page.of("img")) == 4 * SHOWN


def test_numbers_stand_where_the_pictures_are_gone(tmp_path: Path, world: dict):
    (tmp_path / "acdc").rename(tmp_path / "elsewhere")
    page = write(tmp_path / "out", world["zodi/night"])
    assert f"{miou(world['zodi/night']):.1f}" in page.text and page.of("img") == []
    assert "No pictures: no folder" in page.text


def test_predictions_without_labels_are_shown_beside_their_images(tmp_path: Path, world: dict):
    page = write(tmp_path / "out", world["zodi"] / "predictions/night")
    assert len(page.of("img")) == 4 and "Predictions without labels" in page.text


def test_a_transferred_domain_can_be_named_by_itself(tmp_path: Path, world: dict):
    page = write(tmp_path / "out", world["moved"] / "night")
    assert len(page.of("img")) == 2 * 3


def test_text_of_the_user_is_text(tmp_path: Path, world: dict):
    page = write(tmp_path / "out", world["zodi"], title="<script>alert(1)</script>")
    assert "<script>alert" not in page.raw and "<script>alert(1)</script>" in page.text


def test_the_page_can_lie_in_a_folder_that_is_a_run_itself(tmp_path: Path, world: dict):
    before = (world["zodi"] / "config.json").read_bytes()
    write(world["zodi"], world["zodi"])
    assert (world["zodi"] / "config.json").read_bytes() == before


def test_folders_that_no_stage_wrote_or_finished_are_refused(tmp_path: Path, world: dict):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config.json in .*empty"):
        write(tmp_path / "out", tmp_path / "empty")
    runs.begin(tmp_path / "town", "town", {"seed": 0})
    with pytest.raises(InputError, match="stage 'town'"):
        write(tmp_path / "out", tmp_path / "town")
    (world["zodi/night"] / "metrics.json").unlink()
    with pytest.raises(InputError, match="run segshift evaluate again"):
        write(tmp_path / "out", world["zodi/night"])
    with pytest.raises(InputError, match="no folder to report on"):
        write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_errors_are_red_void_is_dark_and_the_rest_is_grey():
    label = np.array([[0, 0, 255]], np.uint8)
    picture = drawing.errors(np.full((2, 6, 3), 100, np.uint8), label, np.array([[0, 1, 1]], np.uint8))
    right, wrong, void = picture[0].astype(int)
    assert len(set(right)) == 1 and wrong[0] > wrong[1] + 80 and tuple(void) == drawing.VOID


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 0.14), (-0.1, 0), (0, 74375), (3, 3), (0, 0)])
def test_ticks_are_few_and_enclose_the_values(low: float, high: float):
    ticks = drawing.ticks(low, high)
    assert 2 <= len(ticks) <= 7 and ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9


def test_long_curves_are_thinned_to_means():
    points = [(float(x), float(x % 2)) for x in range(1600)]
    thin = drawing.thin(points)
    assert len(thin) == 160 and thin[0] == (4.5, 0.5) and drawing.thin(points[:9]) == points[:9]
