"""The embedded sample: what it holds, that it is the same each time, and that a linear model cannot learn it."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_reading import read_json, read_samples
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from preprocess import sample
from preprocess.build_shards import main
from preprocess.images.transform import UnreadableImage, decode_rgb


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Every twelfth file of the sample, raw."""
    sources = [image.canonical_name for image in sample.catalogue().images[::12]]
    return {source: sample.draw_file(0, source) for source in sources}


def test_the_sample_is_built_without_any_input(sample_shards: Path) -> None:
    page = read_json(sample_shards)
    assert (page["name"], page["short_side"], len(page["classes"])) == ("sample", 256, 10)
    labels = {
        split: Counter(int(label) for _, _, label in read_samples(sample_shards, split)) for split in page["splits"]
    }
    for split, count in (("train", 240), ("val", 50)):
        assert set(labels[split]) == set(range(10))
        assert all(count - 3 <= number <= count for number in labels[split].values())
    reasons = Counter(entry["reason"].split(" (")[0] for entry in page["rejected"])
    assert reasons == {"image file is truncated": 2, "empty file": 2, "not an image in a known format": 2}
    assert not list(sample_shards.glob(".*"))


def test_a_second_build_has_nothing_to_do(sample_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(sample_shards)]) == 0
    assert capsys.readouterr().out == f"{sample_shards} is complete (sample): nothing to do\n"


def test_the_files_are_of_many_kinds(files: dict[str, bytes]) -> None:
    kinds, sides = Counter(), set()
    for data in files.values():
        with Image.open(io.BytesIO(data)) as image:
            kinds[image.format, image.mode, 0x0112 in image.getexif()] += 1
            sides.add(image.size)
    assert set(kinds) == {
        *(("JPEG", mode, False) for mode in ("RGB", "L", "CMYK")),
        *(("JPEG", "RGB", True), ("PNG", "RGB", False)),
    }
    assert kinds["JPEG", "RGB", False] > 0.7 * len(files)
    assert len(sides) > 0.9 * len(files)
    assert {width > height for width, height in sides} == {True, False}
    shorts = [min(size) for size in sides]
    assert min(shorts) < 130
    assert max(shorts) > 350


def test_a_file_depends_on_its_name_and_the_seed_alone(files: dict[str, bytes]) -> None:
    for source in list(files)[:20]:
        assert sample.draw_file(0, source) == files[source]
        assert sample.draw_file(1, source) != files[source]


def test_broken_files_cannot_be_read(files: dict[str, bytes]) -> None:
    for source in list(files)[:10]:
        for broken in ("truncated", "empty", "text"):
            with pytest.raises(UnreadableImage):
                decode_rgb(sample.draw_file(0, source, broken))


def test_a_linear_model_on_pixels_cannot_learn_it(sample_shards: Path) -> None:
    pixels, labels = {}, {}
    for split in ("train", "val"):
        rows = []
        labels[split] = []
        for _, jpeg, label in read_samples(sample_shards, split):
            with Image.open(io.BytesIO(jpeg)) as image:
                image.draft("RGB", (64, 64))  # decodes at a quarter of the size, four times as fast
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                square = image.crop((left, top, left + side, top + side))
                rows.append(np.asarray(square.resize((32, 32), Image.Resampling.BOX)).ravel())
            labels[split].append(int(label))
        pixels[split] = np.stack(rows).astype(np.float32)
    scaler = StandardScaler().fit(pixels["train"])
    # Strongly regularised: with the default it only learns the train split by heart.
    model = LogisticRegression(C=1e-4)
    model.fit(scaler.transform(pixels["train"]), labels["train"])
    accuracy = model.score(scaler.transform(pixels["val"]), labels["val"])
    assert accuracy <= 0.45
