"""The report and the comparison, for everybody: without seeing pictures, without a mouse, on a telephone, offline."""

import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from comparisons import make_report, make_sides
from PIL import Image
from report_pages import NAMES, SUBJECT, Page, predict, summary

from pipeline.reading.samples import StoredSample
from training.report import page as report_page
from training.report.comparison import write_comparison
from training.report.folder import write_report

STYLE = Path(report_page.__file__).with_name("style.css").read_text()
TEXT_COLOURS = ("ink", "muted", "true", "wrong")


def read_photo(position: int) -> StoredSample:
    """Return a smooth picture with noise, whose JPEG has the size of a photograph's."""
    rng = np.random.default_rng(position)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, float) + rng.normal(scale=8, size=(256, 256, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return StoredSample(f"key-{position}", buffer.getvalue(), 0)


def report_of(folder: Path, names: list[str], samples: int) -> Page:
    predictions = predict(len(names), samples)
    write_report(folder, summary(predictions, names), predictions, SUBJECT, read_photo)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def comparison_of(folder: Path, names: list[str], samples: int) -> Page:
    sides = make_sides(len(names), samples)
    write_comparison(folder, make_report(sides, names), sides, "pets", read_photo)
    return Page((folder / "comparison.html").read_text(encoding="utf-8"))


PAGES = [report_of, comparison_of]
MakePage = Callable[[Path, list[str], int], Page]


@pytest.fixture(scope="module", params=PAGES, ids=["report", "comparison"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return request.param(tmp_path_factory.mktemp("page"), NAMES, 120)


def test_a_page_loads_nothing_from_elsewhere(page: Page) -> None:
    sources = [value for _, attributes in page.tags for key in ("src", "href") if (value := attributes.get(key))]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not page.of("link")
    assert not re.search(r"https?://|@import|url\(", page.text)
    policy = next(meta["content"] for meta in page.of("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy


def test_a_page_can_be_used_without_seeing_pictures_and_without_a_mouse(page: Page) -> None:
    assert page.of("html") == [{"lang": "en"}]
    assert all(image.get("alt") for image in page.of("img"))
    assert page.of("svg")
    assert all(drawing["role"] == "img" and ": " in drawing["aria-label"] for drawing in page.of("svg"))
    scrolling = [division for division in page.of("div") if division.get("class") == "scroll"]
    assert len(scrolling) >= 2
    assert all(
        division["tabindex"] == "0" and division["role"] == "region" and division["aria-label"]
        for division in scrolling
    )
    assert not [tag for tag, attributes in page.tags if "onclick" in attributes or tag == "a"]
    assert not [tabindex for _, one in page.tags if (tabindex := one.get("tabindex", "0")) != "0"]


def test_the_headings_of_a_page_skip_no_level(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(then <= now + 1 for now, then in itertools.pairwise(levels))


@pytest.mark.parametrize("make_page", PAGES)
@pytest.mark.parametrize(("classes", "samples"), [(10, 5_000), (1000, 50_000)])
def test_a_page_stays_small(tmp_path: Path, make_page: MakePage, classes: int, samples: int) -> None:
    names = [f"class number {i} with a name of a usual length" for i in range(classes)]
    page = make_page(tmp_path, names, samples)
    assert len(page.text.encode()) < 3_000_000
    assert set(names) <= set(page.cells)
    assert ("All 1,000 classes" in page.text) == (classes == 1000)


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2."""
    levels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_in_light_and_in_dark() -> None:
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    ]
    assert len(schemes) == 2
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colours in schemes:
        pairs = [(text, behind) for text in TEXT_COLOURS for behind in ("paper", "card")]
        pairs += [("ink", "true-bar"), ("ink", "other-bar"), ("true", "other-bar"), ("wrong", "other-bar")]
        for text, behind in pairs:
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    coloured = set(re.findall(r"[{;\s](?:color|fill): var\(--([\w-]+)\)", STYLE))
    assert coloured <= set(TEXT_COLOURS), "text of another colour"


def test_what_has_the_keyboard_is_seen() -> None:
    assert ":focus-visible { outline: 2px solid" in STYLE
    assert not re.search(r"outline: (0|none)", STYLE)
