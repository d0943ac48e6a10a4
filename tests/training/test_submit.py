"""The file for the test server of ILSVRC-2012, for images without labels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import other_checkpoint, reference, val_samples

from preprocess.manifest import ClassEntry
from training import submit
from training.class_names import challenge_ids

WNIDS = {"n02119789": 1, "n02012849": 429, "n01440764": 449}
"""ILSVRC2012_IDs of three classes: the order of these is not that of the wnids."""


def as_imagenet(checkpoint: Path, folder: Path) -> Path:
    """Copy a checkpoint as if its classes were of ImageNet."""
    shutil.copytree(checkpoint, folder)
    page = json.loads((folder / "checkpoint.json").read_text())
    page["data"]["classes"] = [{"id": wnid, "name": wnid} for wnid in WNIDS]
    (folder / "checkpoint.json").write_text(json.dumps(page))
    return folder


@pytest.fixture
def images(raw_folder: Path, tiny_shards: Path, tmp_path: Path) -> Path:
    """The val images side by side, named so that their order by name is that of the val split."""
    raw = {path.name: path for path in (raw_folder / "val").rglob("*") if path.is_file()}
    (tmp_path / "test").mkdir()
    for number, sample in enumerate(val_samples(tiny_shards)):
        key = sample["__key__"]
        (source,) = (path for path in raw.values() if path.stem in key and path.parent.name in key)
        shutil.copy(source, tmp_path / "test" / f"ILSVRC2012_test_{number:08d}.JPEG")
    (tmp_path / "test" / ".DS_Store").write_text("not an image")
    return tmp_path / "test"


def test_each_image_has_a_line_with_the_challenge_s_numbers_of_its_classes(
    command, checkpoint: Path, tiny_shards: Path, images: Path, tmp_path: Path
) -> None:
    second = other_checkpoint(checkpoint, tmp_path / "second", noise=0.5, units="unit")
    pair = [as_imagenet(folder, tmp_path / f"imagenet-{n}") for n, folder in enumerate((checkpoint, second))]
    networks = [argument for folder in pair for argument in ("--checkpoint", folder)]
    output = ("--images", images, "--output", tmp_path / "submission.txt", "--batch-size", 16, "--crops", 10)
    code, out, err = command(submit.main, *networks, *output)
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 'submission.txt'}: 42 images, 3 classes a line, by average of {pair[0]}; ")
    lines = [[int(word) for word in line.split(" ")] for line in (tmp_path / "submission.txt").read_text().splitlines()]
    _, first = reference(checkpoint, tiny_shards, 10)
    mean = (first + reference(second, tiny_shards, 10, divisor=255.0)[1]) / 2
    expected = np.array(list(WNIDS.values()))[np.argsort(-mean, axis=1)]
    assert [line[0] for line in lines] == expected[:, 0].tolist()
    assert (np.array(lines) == expected).all(axis=1).mean() > 0.9, "few differ by the decoder"


def test_nothing_is_written_where_an_image_or_the_folder_is_unusable(
    command, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    network, output = as_imagenet(checkpoint, tmp_path / "imagenet"), tmp_path / "submission.txt"

    def refused(folder: Path, checkpoint: Path = network, output: Path = output) -> str:
        code, out, err = command(
            submit.main, "--checkpoint", checkpoint, "--images", folder, "--output", output, "--batch-size", 16
        )
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert not output.is_file()
        return err

    assert "class 0 is 'blue-disc': not in ILSVRC-2012; use a network of its wnids" in refused(images, checkpoint)
    broken = images / "ILSVRC2012_test_00000040.JPEG"
    broken.write_text("not an image")
    assert f"image {broken} cannot be used: not an image in a known format" in refused(images)
    assert "it cannot be read: No such file or directory; use a folder of images" in refused(images / "no")
    assert "it is a folder, or in none; use the name of a file" in refused(images, output=tmp_path / "no" / "file")
    (images / "n01440764").mkdir()
    assert "it holds the folder n01440764; use the folder with the images themselves" in refused(images)
    (tmp_path / "empty").mkdir()
    assert "it is empty; use a folder of images" in refused(tmp_path / "empty")


def test_the_numbers_are_the_devkit_s_and_only_of_classes() -> None:
    assert challenge_ids([ClassEntry(wnid, "") for wnid in WNIDS]) == list(WNIDS.values())
    with pytest.raises(ValueError, match="class 0 is 'n00001740': not in ILSVRC-2012"):
        challenge_ids([ClassEntry("n00001740", "entity, an ancestor of the classes")])
