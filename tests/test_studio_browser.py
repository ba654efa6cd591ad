"""The studio in a real browser: Chromium through Playwright. Nothing may leave the loopback interface.

Skipped where there is no Gradio (`pip install 'segshift[studio]'`), no Playwright, or no Chromium.
"""

import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

import pytest
import trees
from test_predict import trained
from test_report_browser import CHROMIUM

from segshift.config import StudioConfig
from segshift.data.labels import CITYSCAPES
from segshift.stages import studio

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
NO_GRADIO = "no Gradio: pip install 'segshift[studio]'"
pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason=NO_GRADIO)


@pytest.fixture(scope="module")
def reached() -> Iterator[set[str]]:
    """Every host that this process connects to."""
    hosts: set[str] = set()
    connect = socket.socket.connect

    def noted(self, address):
        if self.family != socket.AF_UNIX:
            hosts.add(address[0])
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        yield hosts


@pytest.fixture(scope="module")
def address(tmp_path_factory, reached) -> Iterator[str]:
    """The studio at work, with a network of random weights."""
    root = tmp_path_factory.mktemp("studio")
    run = trained(root / "run", f"cityscapes:{trees.cityscapes(root / 'day')}:train")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_SHARE", "True")  # none of these may matter
        patch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
        with studio.serving(StudioConfig(run=str(run), port=port)) as address:
            yield address


@pytest.fixture(scope="module")
def tab(address: str) -> Iterator:
    """A tab that remembers requests and errors."""
    with playwright.sync_playwright() as player:
        if CHROMIUM is None and not Path(player.chromium.executable_path).exists():
            pytest.skip("no Chromium: playwright install chromium, or the system's package")
        chromium = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(reduced_motion="reduce")
        page.set_default_timeout(120_000)
        page.asked, page.wrong = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda told: page.wrong.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        yield page
        chromium.close()


@pytest.fixture
def page(tab, address: str, reached) -> Iterator:
    """The page, loaded anew; afterwards nothing was asked of another host, and no error was logged."""
    tab.set_viewport_size({"width": 1200, "height": 900})
    tab.goto(address)
    tab.get_by_role("button", name="Generate").wait_for()
    yield tab
    assert tab.wrong == []
    assert {urlparse(url).hostname for url in tab.asked if url.startswith("http")} == {"127.0.0.1"}
    assert reached <= {"127.0.0.1"}


def pictures(page) -> list[str]:
    """What the pictures are called, once all five are loaded."""
    page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('.picture img')];"
        " return all.length === 5 && all.every(image => image.complete && image.naturalWidth === 256); }"
    )
    return page.locator(".picture img").evaluate_all("images => images.map(image => image.alt)")


def test_an_example_is_one_click(page):
    page.get_by_role("button", name="to snow").click()
    alternatives = pictures(page)
    assert len(set(alternatives)) == 5 and all(alternatives)
    assert "strength 0.65" in page.locator(".block.note").inner_text()
    assert page.get_by_role("radio", name="snow").is_checked()
    assert page.get_by_role("table").get_by_role("rowheader").count() > 1
    assert page.evaluate("document.documentElement.scrollWidth") == 1200
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_a_photograph_without_label_takes_the_networks_prediction_and_a_sentence(page, tmp_path: Path):
    image, *_ = studio._examples(tmp_path, CITYSCAPES)[0]
    page.get_by_test_id("file-upload").first.set_input_files(image)
    page.get_by_label("Or a sentence").fill("<b>fog</b>")
    page.get_by_label("number input for Strength").fill("0.2")
    page.get_by_role("button", name="Generate").click()
    pictures(page)
    told = page.locator(".block.note").inner_text()
    assert "“<b>fog</b>”: strength 0.2" in told and "own prediction is the layout" in told
    assert page.locator(".block.note b").count() == 0


def test_what_is_wrong_is_said_in_a_sentence_and_markup_stays_text(page, tmp_path: Path):
    start = page.get_by_role("button", name="Generate")
    start.click()
    page.get_by_text("Drop a photograph first").wait_for()
    text = tmp_path / "photo.png"
    text.write_text("no picture")
    page.get_by_test_id("file-upload").first.set_input_files(text)
    start.click()
    page.get_by_text("cannot read photo.png (it is no picture): upload a PNG or a JPEG").wait_for()
    page.reload()
    page.get_by_test_id("file-upload").first.set_input_files(studio._examples(tmp_path, CITYSCAPES)[0][0])
    page.get_by_label("Or a sentence").fill("<img src=x onerror=alert(1)>" * 3)
    start.click()
    page.get_by_text("shorten it").wait_for()
    assert page.locator("img[src=x]").count() == 0


def test_everything_has_a_name(page):
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea')].filter(one => one.offsetParent && !("
        "one.ariaLabel || one.title || one.textContent.trim() || one.labels?.length || "
        "one.querySelector('img[alt]'))).map(one => one.outerHTML)"
    )
    assert nameless == []
