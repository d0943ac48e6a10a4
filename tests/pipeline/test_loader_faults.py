"""Bad arguments and damaged files: one clear error, and never a hang."""

import io
import os
import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from shard_folders import cut, texture_jpegs, write_shards

from errors import InputError
from pipeline.augment import Augmentation
from pipeline.images import load_images
from pipeline.loader import make_loader
from pipeline.reading.samples import SampleError, jpeg_size
from preprocess.manifest import read_manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"split": "test"}, "split is 'test': data set 'textures' has no such split; use train, val"),
        ({"batch_size": 0}, "batch_size is 0; use a whole number from 1"),
        ({"batch_size": 104}, r"103 training samples are too few for one batch of 104 on each of 1 ranks \(104\)"),
        ({"batch_size": 40, "world_size": 3}, r"103 training .* batch of 40 on each of 3 ranks \(120\)"),
        ({"world_size": 0}, "world_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2; use 0 to 1"),
        ({"rank": -1}, "rank is -1"),
        ({"crop": 33}, "crop is 33: it is out of range; use 1 to 32"),
        ({"crop": 0}, "crop is 0"),
        ({"crops": 10}, "crops is 10; use 1"),
        ({"mode": "eval", "crops": 5}, "crops is 5; use 1, 10"),
        ({"mode": "test"}, "mode is 'test'; use train, eval"),
        ({"mode": "eval", "augmentation": Augmentation()}, "augmentation is .*; use None"),
        ({"seed": -1}, "seed is -1"),
        ({"units": "byte"}, "units is 'byte'; use grey, unit, unit-std, torchvision"),
        ({"units": "torchvision", "mean": "image"}, "units 'torchvision' have a mean .*; use mean 'channel'"),
        ({"mean": "median"}, "mean is 'median'; use channel, image"),
        ({"on_error": "hope"}, "on_error is 'hope'; use raise, skip"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"device": "tpu9"}, "device is 'tpu9'"),
        ({"device": "meta"}, "device is 'meta': .*; use cpu"),
        ({"device": f"cuda:{torch.cuda.device_count()}"}, "device is 'cuda:.*: .*; use cpu"),
    ],
)
def test_wrong_arguments_are_named_with_what_would_be_valid(numbered, change, message):
    arguments = {"data": numbered, "split": "train", "batch_size": 10, **change}
    with pytest.raises(InputError, match=message):
        make_loader(**arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"crop_position": "left"},
        {"crop_region": "left half"},
        {"crop_size": "large"},
        {"smallest_area": 0.0},
        {"smallest_area": 0.5, "crop_size": "fixed"},
        {"flip": "no"},
        {"granularity": "batch"},
        {"lighting": "paper2"},
        {"lighting_off_epoch": -1},
        {"lighting_off_epoch": 3, "lighting": "off"},
        {"crop_position": "centre", "crop_size": "random"},
        {"granularity": "chunk", "crop_size": "random"},
    ],
)
def test_wrong_augmentations_are_refused_when_they_are_made(change):
    name = next(iter(change))
    with pytest.raises(InputError, match=f"{name} is .*; use"):
        Augmentation(**change)


def test_prediction_refuses_no_image_and_a_wrong_crop(numbered):
    color_stats = read_manifest(numbered).color_stats
    with pytest.raises(InputError, match="jpegs is empty"):
        load_images([], short_side=32, color_stats=color_stats)
    with pytest.raises(InputError, match=r"crop is 40: .*; use 1 to 32"):
        load_images(texture_jpegs(0, 1), short_side=32, color_stats=color_stats, crop=40)


@pytest.fixture
def four(make_shards):
    """Two shards of two val samples each."""
    return make_shards({"train": [texture_jpegs(1, 1)], "val": cut(texture_jpegs(2, 4), [2, 2])}, classes=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v1.2 1\n", "val-000001.idx lists 1 samples where the manifest says 2"),
        ("", "val-000001.idx begins with ''"),
        ("v0.9 2\n", "val-000001.idx begins with 'v0.9 2'"),
    ],
)
def test_an_index_that_does_not_fit_is_refused_at_once(four, text, message):
    (four / "val-000001.idx").write_text(text)
    with pytest.raises(InputError, match=message):
        make_loader(four, "val", 2)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["jpg 512 9 a.jpg cls 2048 3 a.cls"], "val-000001.idx lists 1 samples where the manifest says 2"),
        (["jpg 512 9 a.jpg", "jpg 512 9 b.jpg"], "val-000001.idx is not an index of jpg and cls"),
        (["jpg 512 many a.jpg", "jpg 512 9 b.jpg"], "val-000001.idx is not an index of jpg and cls"),
    ],
)
def test_an_index_whose_lines_are_wrong_is_refused_where_they_are_needed(four, lines, message):
    (four / "val-000001.idx").write_text("\n".join(["v1.2 2", *lines, ""]))
    batches = iter(make_loader(four, "val", 1))
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(InputError, match=message):
        next(batches)


def outcome(loader):
    """The batches that came before the error, and the error."""
    labels = []
    try:
        for _, batch in loader:
            labels += batch.tolist()
    except SampleError as error:
        return labels, str(error)
    pytest.fail(f"no error, but {labels}")


def test_a_tar_that_was_cut_names_shard_and_key(four):
    loader = make_loader(four, "val", 1)
    os.truncate(four / "val-000001.tar", 1000)
    labels, message = outcome(loader)
    assert labels == [0, 1]
    assert re.search(r"val-000001.tar: sample val/sample-2 is cut off: the tar ends \d+ bytes early", message)


def test_a_tar_that_vanished_names_shard_and_key(four):
    loader = make_loader(four, "val", 3)
    (four / "val-000001.tar").unlink()
    labels, message = outcome(loader)
    assert labels == []
    assert re.search(r"val-000001.tar: sample val/sample-2 cannot be read: .*No such file", message)


def test_a_label_outside_the_classes_names_shard_and_key(make_shards):
    data = make_shards({"train": [texture_jpegs(1, 1)], "val": [texture_jpegs(2, 4)]}, classes=4)
    manifest = data / "manifest.json"
    manifest.write_text(re.sub(r",\s*{\s*\"id\": \"c003\"[^}]*}", "", manifest.read_text()))
    labels, message = outcome(make_loader(data, "val", 1))
    assert labels == [0, 1, 2]
    assert "val-000000.tar: sample val/sample-3 has label b'003'; use 0 to 2" in message


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", ["truncated", "text", "too small"])
def test_a_sample_that_does_not_decode_names_shard_and_key(make_shards, device, split, damage):
    good = texture_jpegs(2, 12)
    bad = {"truncated": good[7][: len(good[7]) // 3], "text": b"no image", "too small": texture_jpegs(3, 1, 24)[0]}
    files = cut([*good[:7], bad[damage], *good[8:]], [5, 7])
    data = make_shards({"train": files, "val": files}, classes=12)
    loader = make_loader(data, split, 4, device=device)
    labels, message = outcome(loader)
    if split == "val":
        assert labels == [0, 1, 2, 3]
    assert re.search(rf"{split}-000001.tar: sample {split}/sample-7 (does not decode: \S|has 24 x 24 pixels)", message)
    assert "\n" not in message
    # The loader is not stuck: another epoch runs into the same sample.
    assert f"sample {split}/sample-7 " in outcome(loader)[1]


def test_a_bad_sample_in_a_batch_that_nobody_asked_for_is_no_error(make_shards):
    files = texture_jpegs(2, 12)
    files[2] = files[2][:300]
    data = make_shards({"train": [files], "val": [files]}, classes=12)
    loader = make_loader(data, "val", 1)
    for _ in range(3):
        batches = iter(loader)
        assert [int(next(batches)[1]) for _ in range(2)] == [0, 1]


def test_closing_and_forgetting_a_loader_ends_its_threads(numbered):
    others = set(threading.enumerate())

    def own_threads():
        return set(threading.enumerate()) - others

    loader = make_loader(numbered, "train", 10)
    batches = iter(loader)
    next(batches)
    running = own_threads()
    assert running
    loader.close()
    for thread in running:
        thread.join(timeout=60)
    assert not own_threads()
    with pytest.raises(RuntimeError, match="abandoned"):
        next(batches)
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)
    del batches

    forgotten = make_loader(numbered, "train", 10)
    next(iter(forgotten))
    running = own_threads()
    assert running
    del forgotten
    for thread in running:
        thread.join(timeout=60)
    assert not own_threads()


def test_stored_samples_are_found_by_number(numbered):
    loader = make_loader(numbered, "val", 10)
    example = loader.example(25)
    assert (example.key, example.label, example.jpeg) == ("val/sample-25", 25, texture_jpegs(2, 53)[25])
    for index in (-1, 53):
        with pytest.raises(IndexError):
            loader.example(index)
    assert np.all([loader.example(index).label == index for index in range(53)])


def pixels(loader):
    """Images and labels of an epoch, batch by batch."""
    return [(images.clone(), labels.tolist()) for images, labels in loader]


def test_skipped_samples_are_left_out_of_their_batches_and_counted(make_shards, device, caplog):
    good = texture_jpegs(2, 40)
    files = list(good)
    files[3], files[17], files[30] = good[3][: len(good[3]) // 3], b"no image", texture_jpegs(3, 1, 24)[0]
    bad = {3, 17, 30}
    data = make_shards({"train": cut(files, [20, 20]), "val": cut(files, [20, 20])}, classes=40)
    for split in ("train", "val"):
        loader = make_loader(data, split, 8, device=device, on_error="skip")
        epochs = [pixels(loader) for _ in range(2)]
        assert all(len(epoch) == len(loader) == 5 for epoch in epochs)
        for epoch in epochs:
            assert sorted(label for _, labels in epoch for label in labels) == sorted(set(range(40)) - bad)
            assert all(len(images) == len(labels) for images, labels in epoch)
        assert loader.skipped == 6
        again = make_loader(data, split, 8, device=device, on_error="skip")
        again.load_state_dict({**again.state_dict(), "epoch": 1, "batch": 2})
        rest = pixels(again)
        assert [labels for _, labels in rest] == [labels for _, labels in epochs[1][2:]]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, epochs[1][2:], strict=True))
    named = "".join(record.getMessage() for record in caplog.records)
    every = [(split, number) for split in ("train", "val") for number in range(40)]
    warned = {number for split, number in every if f"{split}/sample-{number} " in named}
    assert warned == bad
    whole = make_loader(make_shards_of(data.parent / "whole", good), "val", 8, device=device)
    for (images, labels), (expected, _) in zip(epochs[0], whole, strict=True):
        assert torch.equal(images, expected[[label % 8 for label in labels]])


def make_shards_of(folder, files):
    return write_shards(folder, {"train": [files], "val": cut(files, [20, 20])}, classes=40)


def test_a_batch_without_any_usable_sample_is_an_error_even_when_skipping(four):
    loader = make_loader(four, "val", 2, on_error="skip")
    (four / "val-000001.tar").unlink()
    labels, message = outcome(loader)
    assert labels == [0, 1]
    assert "val-000001.tar: sample val/sample-3 cannot be read" in message


def test_samples_left_out_before_that_come_together_are_that_error_again(make_shards):
    files = texture_jpegs(2, 4)
    files[1] = files[2] = b"no image"
    loader = make_loader(
        make_shards({"train": [files], "val": [files]}, classes=4), "train", 2, seed=2, on_error="skip"
    )
    epochs = []

    def go_on():
        while True:
            epochs.append(sorted(label for _, labels in pixels(loader) for label in labels))

    with pytest.raises(SampleError, match=r"train/sample-[12] "):
        go_on()
    assert epochs
    assert all(labels == [0, 3] for labels in epochs)
    assert loader.skipped == 2 * len(epochs)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\xff\xd8\x00\x00"])
def test_sizes_of_what_is_no_jpeg_are_refused(content):
    with pytest.raises(ValueError, match="JPEG"):
        jpeg_size(content)


def test_sizes_are_read_after_fill_bytes():
    (file,) = texture_jpegs(2, 1, 20)
    assert jpeg_size(file) == jpeg_size(file[:2] + b"\xff\xff" + file[2:]) == Image.open(io.BytesIO(file)).size[::-1]
