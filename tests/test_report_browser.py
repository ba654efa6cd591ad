"""The report page in a real browser: Chromium through Playwright, from the file, with every request refused.

Skipped where there is no Playwright (`pip install playwright`) or no Chromium (`apt-get install chromium`).
"""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import trees
from test_report import evaluated, training

from segshift import outputs, runs
from segshift.config import ReportConfig, TransferConfig
from segshift.data import frames
from segshift.scoring import predictions
from segshift.stages.report import report

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The system's; None takes the one that Playwright installs."""

COUNT = 40
IDS = [f"ulm_{i:06d}_000019" for i in range(COUNT)]
TRAIN = 16  # a class of which only every fourth frame shows anything


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Two runs on night and on transferred frames, and these frames with a gate's scores, lowest for the
    first.
    """
    root = tmp_path_factory.mktemp("page")
    day = f"cityscapes:{trees.cityscapes(root / 'day', IDS)}:train"
    data = frames.load(day)
    for i, frame in enumerate(data.frames):
        if i % 4:
            label = frames.read_label(frame, data.space)
            trees.save(frame.label, data.space.to_file(np.where(label == TRAIN, 0, label)))
    outputs.begin(root / "moved", "transfer", TransferConfig(source=day, to=("fog",)))
    trees.cityscapes(root / "moved/fog", IDS)
    gates = [
        {"decision": "kept", "tries": 1, "score": (i + 1) / COUNT, "agreement": {}} for i in range(COUNT)
    ]
    told = trees.transferred_line("fog", "driving in fog", 0.6)
    runs.write_lines(
        root / "moved/fog/manifest.jsonl",
        [{"id": id, "gate": g} | told for id, g in zip(IDS, gates, strict=True)],
    )
    night = f"acdc:{trees.acdc(root / 'acdc')}:night/val"
    shown = [root / "moved"]
    for name, right in (("source_only", 0.5), ("zodi", 0.8)):
        run = training(root / name, day, name)
        shown += [
            evaluated(run, "night", night, right),
            evaluated(run, "fog", f"cityscapes:{root}/moved/fog:train", right),
            run,
        ]
    return report(ReportConfig(tuple(map(str, shown))), root / "page") / "index.html"


@pytest.fixture(scope="module")
def tab(file: Path) -> Iterator:
    """A tab that refuses every request but for the page itself, and remembers requests and errors."""
    with playwright.sync_playwright() as player:
        if CHROMIUM is None and not Path(player.chromium.executable_path).exists():
            pytest.skip("no Chromium: playwright install chromium, or the system's package")
        chromium = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(reduced_motion="reduce")
        page.route(
            "**/*", lambda route: route.continue_() if route.request.url == file.as_uri() else route.abort()
        )
        page.asked, page.wrong = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.wrong.append(message.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        yield page
        chromium.close()


@pytest.fixture
def page(tab, file: Path) -> Iterator:
    """The page, loaded anew; afterwards nothing was fetched, and no error was thrown or logged."""
    tab.set_viewport_size({"width": 1280, "height": 800})
    tab.emulate_media(media="screen", color_scheme="light")
    tab.goto(file.as_uri())
    yield tab
    assert tab.wrong == []
    assert {url for url in tab.asked if not url.startswith("data:")} == {file.as_uri()}


def gallery(page, section: str):
    """The gallery of a section, in view."""
    page.evaluate("section => document.querySelector(section).scrollIntoView()", section)
    page.wait_for_selector(f"{section} .strip")
    return page.locator(section)


def captions(section) -> list[list[str]]:
    """Of the rows in the document, from top to bottom, the captions of their pictures."""
    return section.locator(".strip").evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('figcaption')].map(caption => caption.title))"
    )


def scores(section, column: int) -> list[float]:
    """The percentages of a column, counted from the image."""
    return [float(row[column].split(" % ")[0].split()[-1]) for row in captions(section)]


def test_pictures_are_there_and_of_a_list_only_what_is_in_view(page):
    section = gallery(page, "#frames")
    assert section.locator(".count").text_content() == f"{COUNT + 2} frames"
    page.wait_for_function(
        "() => [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    section.locator(".more button").click()
    tall = section.locator(".rows").evaluate("list => list.clientHeight")
    page.evaluate(
        "scrollTo(0, scrollY + document.querySelector('#frames .rows').getBoundingClientRect().bottom - "
        "innerHeight)"
    )
    order = sorted(row["id"] for row in page.evaluate("galleries[1].kept"))
    page.wait_for_function("() => galleries[1].drawn.has(galleries[1].kept.length - 1)")
    assert len(order) == COUNT + 2 and 0 < section.locator(".strip").count() < 20 and tall > 4000
    assert all(page.evaluate("[...document.images].map(image => image.src.startsWith('data:image/webp'))"))


def test_frames_are_sorted_by_score_and_by_gain(page):
    section = gallery(page, "#frames")
    assert len(captions(section)) > 2
    assert scores(section, 2) == sorted(scores(section, 2))
    section.locator("[name=by]").select_option(label="ZoDi")
    section.locator("[name=order]").select_option(label="highest score first")
    assert scores(section, 3) == sorted(scores(section, 3), reverse=True)
    section.locator("[name=order]").select_option(label="largest gain first")
    gains = [after - before for before, after in zip(scores(section, 2), scores(section, 3), strict=True)]
    assert all(a >= b - 0.21 for a, b in pairwise(gains))  # of rounded numbers


def test_filters_by_domain_class_and_gate_score(page):
    section = gallery(page, "#frames")
    count = section.locator(".count")
    section.locator("[name=domain]").select_option(label="night")
    assert count.text_content() == f"2 of {COUNT + 2} frames" and len(captions(section)) == 2
    section.locator("[name=domain]").select_option(label="all")
    section.locator("[name=gate]").evaluate(
        "range => { range.value = 0.25; range.dispatchEvent(new Event('input', { bubbles: true })); }"
    )
    assert count.text_content() == f"{COUNT // 4} of {COUNT + 2} frames"

    section = page.locator("#transfer")
    section.locator("[name=class]").select_option(label="train")
    assert section.locator(".count").text_content() == f"{COUNT // 4} of {COUNT} frames"
    section.locator("[name=gate]").evaluate(
        "range => { range.value = 0.5; range.dispatchEvent(new Event('input', { bubbles: true })); }"
    )
    assert section.locator(".count").text_content() == f"{COUNT // 8} of {COUNT} frames"


def test_a_class_is_sorted_by_its_own_iou(page):
    section = gallery(page, "#frames")
    section.locator("[name=class]").select_option(label="car")
    assert len(captions(section)) > 2
    assert all(row[2].endswith("% car") for row in captions(section))
    assert scores(section, 2) == sorted(scores(section, 2))


def test_the_slider_lays_the_source_over_the_transferred_image(page):
    compare = gallery(page, "#transfer").locator(".compare").first
    over = compare.locator("img.over")
    assert over.evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 100% 0px 0px)"
    compare.locator("input").focus()
    page.keyboard.press("End")
    assert over.evaluate("image => getComputedStyle(image).clipPath") in (
        "inset(0px)",
        "inset(0px 0% 0px 0px)",
    )
    box = compare.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert compare.evaluate(
        "element => parseFloat(element.style.getPropertyValue('--cut'))"
    ) == pytest.approx(50, abs=3)
    first = page.evaluate("[galleries[0].kept[0].image, galleries[0].kept[0].cells[0].p].map(picture)")
    assert [over.get_attribute("src"), compare.locator("img").first.get_attribute("src")] == first


def test_errors_are_red_void_is_dark_and_the_rest_is_grey(page, file: Path):
    section = gallery(page, "#frames")
    section.locator("[name=domain]").select_option(label="night")
    section.get_by_text("errors", exact=True).click()
    assert section.locator("canvas").count() == 4
    page.wait_for_function(
        "() => [...document.querySelectorAll('#frames canvas')].every(canvas => canvas.width === 64)"
    )
    drawn = (
        section.locator("canvas")
        .nth(1)
        .evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    )
    drawn = np.array(drawn, np.uint8).reshape(32, 64, 4)[..., :3].astype(int)
    data = frames.load(f"acdc:{file.parent.parent}/acdc:night/val")
    frame = next(frame for frame in data.frames if frame.id in captions(section)[0][0])
    label = frames.read_label(frame, data.space)
    wrong = (
        predictions.read(frames.place(data, frame, file.parent.parent / "zodi/predictions/night"), data.space)
        != label
    ) & (label != 255)
    assert 0 < wrong.sum() < label.size / 2
    assert (drawn[label == 255] == (58, 60, 66)).all()
    red = drawn[..., 0] > drawn[..., 1] + 80
    np.testing.assert_array_equal(red, wrong)
    grey = drawn[(label != 255) & ~wrong]
    assert (np.ptp(grey, axis=1) == 0).all()
    section.get_by_text("classes", exact=True).click()
    assert section.locator("canvas").count() == 0


def test_runs_can_be_left_out_of_the_rows(page):
    section = gallery(page, "#frames")
    key = section.locator("[data-column]").first
    key.focus()
    page.keyboard.press("Enter")
    assert key.get_attribute("aria-pressed") == "false"
    assert all(len(row) == 3 and row[2].startswith("ZoDi") for row in captions(section))


def test_tabs_change_by_keyboard(page):
    page.locator("[role=tab]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("[role=tabpanel]:visible").get_attribute("id") == "p-0-1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(page, scheme: str):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("() => galleries.every(gallery => gallery.cell < 200)")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert ground != ink and (ground == "rgb(19, 20, 22)") == (scheme == "dark")


def test_print_has_the_pictures_one_below_the_other(page):
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#frames .strip").count() == page.locator("#transfer .strip").count() == 6
    assert page.locator("#frames .strip").first.evaluate("row => getComputedStyle(row).position") == "static"
    assert not page.locator("#frames .filters").is_visible() and not page.locator("nav").is_visible()
