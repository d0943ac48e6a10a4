"""comparison.json and comparison.html, from drawn predictions of two networks."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from comparisons import make_report, make_sides
from report_pages import NAMES, Page, read_example

from errors import InputError
from training.report import comparison
from training.report.comparison import ComparisonReport, Sides, only_one_right, write_comparison
from training.report.output import check_replaceable
from training.report.paired import wilson_interval


def write(folder: Path, sides: Sides) -> tuple[ComparisonReport, str]:
    report = make_report(sides, NAMES)
    write_comparison(folder, report, sides, "pets & <co>", read_example)
    return report, (folder / "comparison.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sides() -> Sides:
    return make_sides(len(NAMES), 120)


@pytest.fixture(scope="module")
def written(sides: Sides, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ComparisonReport, Page]:
    folder = tmp_path_factory.mktemp("comparison")
    report, text = write(folder, sides)
    return folder, report, Page(text)


def test_the_json_has_both_networks_and_where_they_differ(
    written: tuple[Path, ComparisonReport, Page], sides: Sides
) -> None:
    folder, report, _ = written
    assert json.loads((folder / "comparison.json").read_text(encoding="utf-8")) == report
    right = [side.predictions.correct for side in sides]
    assert report["samples"] == 120
    for network, side, hits in zip(report["networks"], sides, right, strict=True):
        assert (network["name"], network["run_id"]) == (side.name, side.run_id)
        assert network["top1"] == hits.mean()
        assert network["top1_interval"] == pytest.approx(wilson_interval(int(hits.sum()), 120))
        assert network["top5"] == side.predictions.hits.any(axis=1).mean()
        assert network["loss"] == pytest.approx(side.predictions.losses.mean())
    counts = [report[key] for key in ("both_right", "first_only", "second_only", "both_wrong")]
    assert sum(counts) == 120
    assert counts[1] == (right[0] & ~right[1]).sum() > 0 < counts[2]
    assert report["difference"] == pytest.approx(report["networks"][1]["top1"] - report["networks"][0]["top1"])
    labels = sides[0].predictions.labels
    for label, row in enumerate(report["per_class"][:-1]):
        expected = [hits[labels == label].mean() for hits in right]
        assert [row["first"], row["second"], row["difference"]] == pytest.approx([*expected, expected[1] - expected[0]])
    assert report["per_class"][-1]["difference"] is None
    assert report["fields"] == [
        {"field": "seed", "first": 0, "second": 1},
        {"field": "network.name", "first": "alexnet", "second": None},
        {"field": "optimizer.x", "first": None, "second": "<i>"},
    ]


def test_the_page_shows_both_runs_and_escapes_their_strings(written: tuple[Path, ComparisonReport, Page]) -> None:
    _, report, page = written
    assert "<h1>run &lt;a&gt; and run &lt;b&gt;</h1>" in page.text
    assert {"A run <a>", "B run <b>", "a" * 32, "b" * 32, *NAMES} <= set(page.cells)
    assert len(page.of("script")) == 1
    assert not [attributes for _, attributes in page.tags if "onload" in attributes]
    assert "pets &amp; &lt;co&gt;" in page.text
    assert [cell for cell in page.cells if cell in ("seed", "epochs", "optimizer.x", "<i>")] == [
        *("seed", "optimizer.x", "<i>")
    ]
    only = f"A has {report['first_only']} and B has {report['second_only']}."
    assert only in page.text
    assert "may be chance" in page.text
    assert "hardly chance" not in page.text
    labels = [drawing["aria-label"] for drawing in page.of("svg")]
    assert labels[0].startswith("Loss by step: A: train from 3 to 2, ")
    assert "B: val from 2.5 to 2.5" in labels[0]
    alts = [image["alt"] for image in page.of("img")]
    kernels = [re.sub(r"\d+ %", "N %", alt) for alt in alts if "kernels" in alt]
    said = "4 kernels, N % colour, no structure yet"
    assert kernels == [
        f"A, Tower 1: {said}",
        f"A, Tower 2: {said}",
        "B, conv1: 8 kernels, N % colour, no structure yet",
    ]


def test_a_difference_that_chance_hardly_makes_is_called_that(sides: Sides, tmp_path: Path) -> None:
    first, second = sides
    guesses = (second.predictions.labels[:, None] + np.arange(5)) % len(NAMES)
    perfect = dataclasses.replace(second.predictions, top_classes=guesses)
    _, text = write(tmp_path, (first, dataclasses.replace(second, predictions=perfect)))
    assert "B is better, and that is hardly chance" in text
    assert "There is no such image: B has right what A has right." in text
    _, text = write(tmp_path, (first, dataclasses.replace(second, predictions=first.predictions)))
    assert "Both have the same images right" in text


def test_the_images_that_only_one_has_right_are_shown_surest_first(sides: Sides) -> None:
    shown = only_one_right(sides, NAMES, read_example)
    for cards, right, wrong in zip(shown, ("first", "second"), ("second", "first"), strict=True):
        assert len(cards) == comparison.CARDS
        assert all(getattr(card, right).guesses[0].is_true for card in cards)
        assert not any(getattr(card, wrong).guesses[0].is_true for card in cards)
        sureness = [getattr(card, right).guesses[0].probability for card in cards]
        assert sureness == sorted(sureness, reverse=True)


def test_a_failing_comparison_leaves_the_older_one_whole(
    sides: Sides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, _ = write(tmp_path, sides)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(_position: int) -> None:
        raise OSError("no such shard")

    with pytest.raises(OSError, match="no such shard"):
        write_comparison(tmp_path, report, sides, "pets", broken)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def stop(_self: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, sides)
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.html"], "half of two is no comparison"


def test_another_comparison_is_not_replaced(sides: Sides, tmp_path: Path) -> None:
    report, _ = write(tmp_path, sides)
    same = {key: report[key] for key in ("split", "crops", "view", "weights_sha256", "manifest_sha256")}
    check_replaceable(tmp_path, same, "comparison.json")
    with pytest.raises(InputError, match=r"it holds the comparison of run a+, last checkpoint against run b+, last"):
        check_replaceable(tmp_path, same | {"split": "test"}, "comparison.json")
