"""Builds from images of more than 8 bits: none becomes black without a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_reading import read_json, read_samples

from preprocess.build_shards import main
from preprocess.manifest import read_manifest


def build(source: Path, output: Path, *options: object) -> int:
    fixed = ("--short-side", 16, "--workers", 1, "--val-fraction", 0.5)
    return main([str(part) for part in ("--input", source, "--output", output, *fixed, *options)])


def write(root: Path, kind: str) -> Path:
    """Write two classes of grey ramps, as 12 bits in 16 or as floating point."""
    ramp = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    values = (ramp * 4095).astype(np.uint16) if kind == "12 bits" else ramp
    for name in ("cell", "tissue"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(values).save(root / name / f"{number}.tif")
    return root


def test_floating_point_images_are_rejected_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(write(tmp_path / "in", "float"), tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert " floating-point values, whose range nothing tells; use --value-range LOW HIGH)" in error
    assert build(tmp_path / "in", tmp_path / "scaled", "--value-range", 0, 1) == 0
    page = read_json(tmp_path / "scaled")
    assert page["value_range"] == [0, 1]
    assert page["rgb"]["mean"][0] == pytest.approx(127.5, abs=3)
    assert read_manifest(tmp_path / "scaled").value_range == (0, 1)
    assert build(tmp_path / "in", tmp_path / "scaled", "--value-range", 0, 2) == 2
    assert "--value-range (0.0, 1.0), not (0.0, 2.0)" in capsys.readouterr().err
    assert build(tmp_path / "in", tmp_path / "new", "--value-range", 1, 0) == 2
    assert capsys.readouterr().err.endswith("--value-range is 1 0; use two finite numbers, the smaller one first\n")


def test_the_way_out_goes_into_the_same_output(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert build(write(tmp_path / "in", "float"), output, "--max-rejected", 1) == 2
    assert list((output / ".unfinished").glob("*-*.json")), "the rejections of the shards were recorded"
    assert build(tmp_path / "in", output, "--value-range", 0, 1) == 0
    assert read_manifest(output).value_range == (0, 1)
    assert not (output / ".unfinished").exists()


def test_12_bits_in_16_bit_files_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(write(tmp_path / "in", "12 bits"), tmp_path / "out") == 0
    warning = "8 of 8 images of 16 bits a channel hold no value above 4095, and at most 16 grey levels of them are left"
    assert capsys.readouterr().err == f"build_shards: {warning}; if their data has 12 bits, use --value-range 0 4095\n"
    assert build(tmp_path / "in", tmp_path / "scaled", "--value-range", 0, 4095) == 0
    assert capsys.readouterr().err == ""
    means = [
        json.loads((tmp_path / name / "manifest.json").read_text())["rgb"]["mean"][0] for name in ("out", "scaled")
    ]
    assert means == pytest.approx([7.5, 127.5], abs=3)
    assert len(list(read_samples(tmp_path / "scaled", "train"))) == 4


@pytest.mark.parametrize(
    ("kind", "high", "warning"),
    [
        ("float", 255, "use little of --value-range 0 255, and at most 16 grey levels of them are left: {} 0 to 1;"),
        (
            "12 bits",
            1,
            "have most of their pixels outside of --value-range 0 1, and these are black or white: {} 0 to 4095;",
        ),
    ],
)
def test_a_value_range_that_does_not_suit_most_images_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, high: int, warning: str
) -> None:
    source = write(tmp_path / "in", kind)
    assert build(source, tmp_path / "out", "--value-range", 0, high) == 0
    expected = f"build_shards: 8 of 8 images {warning.format('their values are')} use the range of their data\n"
    assert capsys.readouterr().err == expected


def test_a_few_dark_images_are_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in", "float")
    Image.fromarray(np.full((20, 20), 0.01, np.float32)).save(tmp_path / "in" / "cell" / "0.tif")
    assert build(tmp_path / "in", tmp_path / "out", "--value-range", 0, 1) == 0
    assert capsys.readouterr().err == ""
