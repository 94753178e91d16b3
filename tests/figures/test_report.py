"""The report in a real browser: what is shown, and that clicking, hovering and the keyboard change it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ibvit.analysis.records import Records
from ibvit.analysis.similarity import Similarity, similarity
from ibvit.figures.report import render, write_report
from ibvit.figures.report_data import data_url, pack, pack_rows, report_data
from tests.figures.browser import CHROMIUM, Browser

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def page(varied_runs: list[Records], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(varied_runs, tmp_path_factory.mktemp("report") / "report.html", images=6)


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def report(page: Path, browser: Browser) -> Iterator[Browser]:
    """The page, freshly opened; at the end it must have been silent and have fetched nothing."""
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page, "typeof data === 'object' && document.querySelectorAll('#spectrum .point').length > 0")
    yield browser
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


def text(browser: Browser, selector: str) -> str:
    return browser.evaluate(f"document.querySelector('{selector}').textContent")


def drawn(browser: Browser, selector: str) -> str:
    """A digest of a canvas's pixels."""
    return browser.evaluate(f"document.querySelector('{selector}').toDataURL()")


@in_browser
def test_spectrum_shows_every_run(report: Browser) -> None:
    assert report.evaluate("document.querySelectorAll('#spectrum .point').length") == 6
    assert "Head 1.0 of β = 10 (seed 0)" in text(report, "#head")
    assert report.evaluate("document.querySelectorAll('#survival polyline').length") == 1


@in_browser
def test_clicking_a_run_changes_heads_and_facts(report: Browser) -> None:
    before = text(report, "#run-facts")
    report.click("#spectrum .point:nth-of-type(5)")
    assert "β = 0.1" in report.evaluate("document.querySelector('#run').selectedOptions[0].textContent")
    assert text(report, "#run-facts") != before
    assert report.evaluate("document.querySelectorAll('#survival polyline').length") == 3
    assert report.evaluate("document.querySelectorAll('#cells button.active').length") == 3


@in_browser
def test_clicking_a_head_shows_its_patches_response_and_neighbours(report: Browser) -> None:
    report.click("#spectrum .point:nth-of-type(4)")
    report.click('#cells button[data-head="0.1"]')
    assert "Head 0.1 of β = 1" in text(report, "#head h2")
    assert report.evaluate("document.querySelectorAll('#patches-negative .pair').length") == 4
    assert report.evaluate("document.querySelectorAll('#nearest .bar').length") == 6
    assert "8 copies" in text(report, "#head")
    first = text(report, "#patches-negative")
    report.click('#cells button[data-head="1.0"]')
    assert text(report, "#patches-negative") != first


@in_browser
def test_an_idle_head_cannot_be_chosen_and_ends_say_why(report: Browser) -> None:
    assert report.evaluate("document.querySelector('#cells button[data-head=\"0.0\"]').disabled")
    report.click("#spectrum .point:nth-of-type(6)")
    assert "no bottlenecks" in text(report, "#head")


@in_browser
def test_image_view_follows_image_head_and_patch(report: Browser) -> None:
    report.click("#tab-image")
    assert report.evaluate("getComputedStyle(document.querySelector('#view-heads')).display") == "none"
    report.evaluate("chooseRun(3)")
    report.click("#images [role=option]:nth-child(2)")
    other = drawn(report, "#pictures figure:nth-child(3) canvas")
    report.click("#images [role=option]:nth-child(4)")
    assert drawn(report, "#pictures figure:nth-child(3) canvas") != other
    report.hover("#pictures .picture", at=(0.4, 0.4))
    assert "Patch 5" in text(report, "#votes")
    looking = drawn(report, "#pictures figure:nth-child(4) canvas")
    report.hover("#pictures .picture", at=(0.9, 0.1))
    assert "Patch 3" in text(report, "#votes")
    assert drawn(report, "#pictures figure:nth-child(4) canvas") != looking
    assert report.evaluate("document.querySelectorAll('#votes .bar').length") == 5
    assert "head" in text(report, "#spent")


@in_browser
def test_summed_and_single_heads(report: Browser) -> None:
    report.click("#tab-image")
    report.evaluate("chooseRun(3)")
    paying = report.evaluate("data.images.findIndex((image) => image.index % 2 === 0)")
    report.evaluate(f"chooseImage({paying})")
    scale = text(report, "#pictures figure:nth-child(2) .scale")
    assert "3 nats" in scale
    report.evaluate("find('layer').value = '0.1'; find('layer').dispatchEvent(new Event('change'))")
    assert "1 nats" in text(report, "#pictures figure:nth-child(2) .scale")


@in_browser
def test_keyboard_alone(report: Browser) -> None:
    report.evaluate("find('spectrum').querySelectorAll('.point')[3].focus()")
    report.press("Enter")
    assert "β = 1 " in report.evaluate("document.querySelector('#run').selectedOptions[0].textContent")
    assert report.evaluate("document.activeElement.classList.contains('point')")
    report.evaluate("find('cells').querySelector('[data-head=\"1.0\"]').focus()")
    report.evaluate("find('tab-heads').focus()")
    report.press("ArrowRight")
    assert report.evaluate("document.activeElement.id") == "tab-image"
    assert not report.evaluate("find('view-image').hidden")
    report.evaluate("find('images').focus()")
    report.press("ArrowRight")
    assert report.evaluate("find('images').children[1].getAttribute('aria-selected')") == "true"
    report.evaluate("document.querySelector('#pictures .picture').focus()")
    report.press("ArrowDown")
    report.press("ArrowRight")
    assert "Patch 5" in text(report, "#votes")


@in_browser
@pytest.mark.parametrize("view", ["heads", "image"])
def test_fits_a_laptop_screen(report: Browser, view: str) -> None:
    report.click(f"#tab-{view}")
    assert report.evaluate("document.documentElement.scrollWidth") <= 1366
    assert report.evaluate("document.documentElement.scrollHeight") <= 1.35 * 768


def test_data_is_small_and_whole(varied_runs: list[Records], page: Path) -> None:
    data = report_data(varied_runs, images=6)
    assert [run["name"] for run in data["runs"]] == [run.run.name for run in varied_runs]
    assert len(data["images"]) == 6
    assert {str(image["index"]) for image in data["images"]} <= set(data["pictures"])
    assert page.stat().st_size < 200_000
    assert "http" not in page.read_text().replace("http://www.w3.org/2000/svg", "")


def test_a_head_that_says_nothing_has_no_neighbours(
    varied_runs: list[Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    def undefined(runs: list[Records], **options: object) -> Similarity:
        result = similarity(runs, **options)
        nmi = result.nmi.copy()
        nmi[0, :] = nmi[:, 0] = np.nan
        return replace(result, nmi=nmi)

    monkeypatch.setattr("ibvit.figures.report_data.similarity", undefined)
    data = report_data(varied_runs, images=2)
    assert data["runs"][1]["details"]["1.0"]["nearest"] == []
    assert all(
        entry["head"] != "1.0" or entry["run"] != "beta10" for entry in data["runs"][2]["details"]["1.1"]["nearest"]
    )
    render(data)  # raises where a number is not one


def test_packing_keeps_values_to_its_step() -> None:
    values = np.random.default_rng(0).random((3, 7)) * 4
    packed = pack(values, 4.0)
    import base64

    back = np.frombuffer(base64.b64decode(packed["u16"]), "<u2").reshape(packed["shape"]) * packed["scale"]
    np.testing.assert_allclose(back, values, atol=4 / 65535)
    rows = pack_rows(values)
    bytes_ = np.frombuffer(base64.b64decode(rows["u8"]), np.uint8).reshape(3, 7)
    assert (bytes_.max(axis=1) == 255).all()
    assert pack(np.zeros(4), 0.0)["scale"] == 0.0


def test_small_images_stay_exact() -> None:
    import base64
    import io

    from PIL import Image

    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    url = data_url(image)
    assert url.startswith("data:image/png;base64,")
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
    np.testing.assert_array_equal(decoded, image)
    large = data_url(np.zeros((224, 224, 3), np.uint8))
    assert large.startswith("data:image/jpeg")
