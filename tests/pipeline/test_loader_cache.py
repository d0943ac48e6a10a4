"""The decoded cache: which samples come when, that nothing is decoded twice, and where a state takes it up."""

import hashlib
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from shard_folders import cut, texture_jpegs
from test_loader_exactness import MANY, epoch_of_ranks, flat, labels_of, many  # noqa: F401
from test_loader_faults import outcome, pixels
from test_loader_resume import fingerprint, stream

import pipeline.cache.store
from errors import InputError
from pipeline.augment import Augmentation
from pipeline.loader import make_loader
from pipeline.reading.samples import Samples

TRAIN, VAL = 103, 53


pytestmark = pytest.mark.usefixtures("uncompiled")


def cached(data, split, batch_size, **options):
    return make_loader(data, split, batch_size, cache="host", num_threads=1, **options)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 64), (2, 7), (3, 125), (5, 33), (8, 125)])
def test_rules_hold_for_any_number_of_ranks_and_awkward_batches(many, world_size, batch_size):  # noqa: F811
    val = epoch_of_ranks(many, "val", batch_size, world_size, cache="host")
    assert [label for rank in val for label in flat(rank)] == list(range(MANY))
    whole = MANY // (batch_size * world_size)
    ranks = [cached(many, "train", batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [set() for _ in ranks]
    for _ in range(2):
        epoch = [labels_of(loader) for loader in ranks]
        assert all([len(batch) for batch in rank] == [batch_size] * whole for rank in epoch)
        seen = [label for rank in epoch for label in flat(rank)]
        assert len(set(seen)) == len(seen) == whole * batch_size * world_size
        for part, rank in zip(parts, epoch, strict=True):
            part.update(flat(rank))
    assert sum(map(len, parts)) == len(set().union(*parts))  # what a rank keeps no other does


def test_every_epoch_is_another_permutation_and_leaves_out_others(numbered):
    loader = cached(numbered, "train", 20, seed=3)
    epochs = [flat(labels_of(loader)) for _ in range(8)]
    assert all(len(set(epoch)) == len(epoch) == 100 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert set().union(*epochs) == set(range(TRAIN))
    again = cached(numbered, "train", 20, seed=3)
    assert [flat(labels_of(again)) for _ in range(2)] == epochs[:2]
    assert flat(labels_of(cached(numbered, "train", 20, seed=4))) != epochs[0]


def test_an_order_is_a_permutation_of_the_whole_and_not_of_groups_of_shards():
    from pipeline.sampler import SHUFFLE_GROUP_SHARDS, Partition, draw_epoch

    shards, each = 5 * SHUFFLE_GROUP_SHARDS, 10
    partition = Partition(shards * each, batch_size=7, world_size=1, seed=0)
    orders = [draw_epoch([each] * shards, 0, epoch, 0, partition).order for epoch in range(2)]
    for order in orders:
        assert sorted(order) == list(range(shards * each))
        window = order[: SHUFFLE_GROUP_SHARDS * each] // each
        assert len(set(window.tolist())) > 4 * SHUFFLE_GROUP_SHARDS
    assert (orders[0] == orders[1]).mean() < 0.01


def test_no_image_is_decoded_or_read_after_the_first_pass(numbered, make_shards, monkeypatch):
    reads, read = [], Samples.read

    def counted(samples, indices):
        reads.extend(indices.tolist())
        return read(samples, indices)

    monkeypatch.setattr(Samples, "read", counted)
    files = texture_jpegs(1, 60)
    data = make_shards({"train": cut(files, [25, 35]), "val": [files]}, classes=60)
    for split in ("train", "val"):
        loader = cached(data, split, 20)
        first = pixels(loader)
        assert sorted(reads) == list(range(60))
        for tar in data.glob(f"{split}-*.tar"):
            tar.write_bytes(bytes(tar.stat().st_size))
        later = [pixels(loader) for _ in range(2)]
        assert sorted(reads) == list(range(60))
        if split == "val":
            assert all(torch.equal(a[0], b[0]) for epoch in later for a, b in zip(epoch, first, strict=True))
        assert all(sorted(flat([labels for _, labels in epoch])) == list(range(60)) for epoch in later)
        reads.clear()


def test_a_sample_that_an_epoch_left_out_is_decoded_when_it_is_first_needed(numbered, monkeypatch):
    reads, read = [], Samples.read

    def counted(samples, indices):
        reads.extend(indices.tolist())
        return read(samples, indices)

    monkeypatch.setattr(Samples, "read", counted)
    loader = cached(numbered, "train", 40)
    for _ in range(12):
        labels_of(loader)
    assert sorted(reads) == list(range(TRAIN))


# Takes up a loader at each of the states on stdin and prints what the next batches hold.
RESUME = """
import itertools, json, sys
sys.path[:0] = {path!r}
import torch
from test_loader_resume import fingerprint, stream
from pipeline.loader import make_loader
torch.compiler.set_stance("force_eager")
found = []
for state, count in json.load(sys.stdin):
    loader = make_loader({data!r}, "train", 4, rank=1, world_size=2, seed=9, cache="host")
    loader.load_state_dict(state)
    found.append([fingerprint(batch) for batch in itertools.islice(stream(loader), count)])
json.dump(found, sys.stdout)
"""


def test_a_fresh_process_goes_on_with_the_same_pixels_in_the_first_epoch_and_later(numbered):
    loader = cached(numbered, "train", 4, rank=1, world_size=2, seed=9)
    states, prints = [loader.state_dict()], []
    for batch in itertools.islice(stream(loader), 40):
        prints.append(fingerprint(batch))
        states.append(loader.state_dict())
    assert len(set(prints)) == len(prints)
    places = [0, 1, 5, 11, 12, 13, 20, 30]
    ask = json.dumps([(states[place], 9) for place in places])
    script = RESUME.format(path=sys.path, data=str(numbered))
    answer = subprocess.run([sys.executable, "-c", script], input=ask, capture_output=True, text=True, timeout=300)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert json.loads(answer.stdout) == [prints[place : place + 9] for place in places]


def test_a_loader_may_move_while_its_cache_is_half_full(numbered):
    straight = cached(numbered, "train", 10)
    epochs = [[fingerprint(batch) for batch in straight] for _ in range(3)]
    loader = cached(numbered, "train", 10)
    batches = iter(loader)
    assert [fingerprint(next(batches)) for _ in range(2)] == epochs[0][:2]
    loader.load_state_dict({**loader.state_dict(), "epoch": 2, "batch": 7})
    assert [fingerprint(batch) for batch in loader] == epochs[2][7:]
    loader.epoch = 0
    assert [fingerprint(batch) for batch in loader] == epochs[0]
    assert [fingerprint(batch) for batch in loader] == epochs[1]


def test_a_state_says_by_which_rule_the_order_was_drawn(numbered):
    with pytest.raises(InputError, match="order 'permutation' where this loader has 'shards'"):
        make_loader(numbered, "train", 10).load_state_dict(cached(numbered, "train", 10).state_dict())
    state = make_loader(numbered, "val", 10).state_dict()
    cached(numbered, "val", 10).load_state_dict(state)  # evaluation is the same with and without


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"crop_region": "whole-image"}, "crop_region is 'whole-image': the cache keeps .*; use central-square"),
        ({"crop_size": "random"}, "crop_size is 'random': the cache does not resize crops; use fixed"),
    ],
)
def test_what_needs_more_than_the_central_square_is_refused(numbered, switches, message):
    with pytest.raises(InputError, match=message):
        cached(numbered, "train", 10, augmentation=Augmentation(**switches))


def test_an_unknown_cache_is_refused(numbered):
    with pytest.raises(InputError, match="cache is 'disk'; use none, host, device"):
        make_loader(numbered, "train", 10, cache="disk")


@pytest.mark.parametrize(("kind", "split", "each"), [("host", "train", 1536), ("device", "val", 28 * 28 * 3)])
def test_a_cache_that_does_not_fit_is_refused_with_the_numbers(numbered, monkeypatch, kind, split, each):
    samples = {"train": TRAIN, "val": VAL}[split]
    monkeypatch.setattr(pipeline.cache.store, "available_bytes", lambda _: samples * each - 1)
    with pytest.raises(
        InputError, match=rf"needs 0.\d+ GB for {samples} images of {each} bytes: only 0.\d+ GB of memory"
    ):
        make_loader(numbered, split, 10, cache=kind)
    monkeypatch.setattr(pipeline.cache.store, "available_bytes", lambda _: samples * each)
    make_loader(numbered, split, 10, cache=kind).close()
    if split == "train":
        make_loader(numbered, split, 10, cache=kind, world_size=2, rank=1).close()


def test_caches_and_processes_on_one_machine_count_together(numbered, monkeypatch):
    train = TRAIN * 1536
    monkeypatch.setattr(pipeline.cache.store, "available_bytes", lambda _: train + 1000)
    first = cached(numbered, "train", 10)
    with pytest.raises(InputError, match=r"in addition to 0.\d+ GB of other caches on this machine"):
        cached(numbered, "val", 10)
    first.close()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="of other caches on this machine"):
        cached(numbered, "train", 10)
    cached(numbered, "train", 10, world_size=2, rank=1).close()


def test_skipped_samples_are_left_out_and_counted(make_shards):
    files = texture_jpegs(2, 40)
    files[3], files[17], files[30] = files[3][: len(files[3]) // 3], b"no image", texture_jpegs(3, 1, 24)[0]
    data = make_shards({"train": cut(files, [20, 20]), "val": cut(files, [20, 20])}, classes=40)
    good = sorted(set(range(40)) - {3, 17, 30})
    for split in ("train", "val"):
        for batch_size in (8, 2):
            loader = cached(data, split, batch_size, on_error="skip")
            epochs = [pixels(loader) for _ in range(3)]
            assert all(sorted(flat([labels for _, labels in epoch])) == good for epoch in epochs)
            assert all(len(images) == len(labels) > 0 for epoch in epochs for images, labels in epoch)
            assert loader.skipped == 9
            again = cached(data, split, batch_size, on_error="skip")
            again.load_state_dict({**again.state_dict(), "epoch": 2, "batch": 3})
            rest = pixels(again)
            assert [labels for _, labels in rest] == [labels for _, labels in epochs[2][3:]]
            assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, epochs[2][3:], strict=True))


def test_errors_name_the_sample_and_come_in_its_batch(make_shards):
    files = texture_jpegs(2, 12)
    files[7] = files[7][: len(files[7]) // 3]
    data = make_shards({"train": cut(files, [5, 7]), "val": cut(files, [5, 7])}, classes=12)
    for on_error, batch_size in (("raise", 4), ("skip", 1)):
        loader = cached(data, "val", batch_size, on_error=on_error)
        for _ in range(2):
            labels, message = outcome(loader)
            assert labels == list(range(7 // batch_size * batch_size))
            assert "val-000001.tar: sample val/sample-7 does not decode" in message
    loader = cached(data, "train", 4)
    assert "sample train/sample-7 does not decode" in outcome(loader)[1]


def test_batches_are_the_caller_s_as_long_as_anything_of_them_is_held(numbered):
    loader = cached(numbered, "train", 10)
    views, arrays, digests = [], [], []
    for images, _ in itertools.islice(stream(loader), 25):
        views.append(images[3:, 1].flip(-1)[2:])
        arrays.append(images.numpy()[::2])
        digests.append(hashlib.sha256(np.ascontiguousarray(arrays[-1])).hexdigest())
    assert [hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for array in arrays] == digests
    del images, views, arrays
    places = {images.data_ptr() for images, _ in loader}
    assert len(places) <= 4  # and what nobody holds is used again
