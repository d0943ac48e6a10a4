"""Class-balanced sampling: how often classes and samples come, with and without a cache, and where a state resumes."""

import itertools

import numpy as np
import pytest
import torch
from shard_folders import cut, texture_jpegs, write_shards
from test_loader_exactness import flat, labels_of
from test_loader_resume import fingerprint, stream

from errors import InputError
from pipeline.balanced import BalancedPartition
from pipeline.loader import make_loader
from pipeline.reading.samples import SampleError, Samples

COUNTS = (70, 20, 1, 8, 4)
"""Samples of each class; a sixth class of the manifest has none."""
LABELS = np.repeat(np.arange(5), COUNTS)[np.random.default_rng(0).permutation(103)]


@pytest.fixture(scope="module")
def skewed(tmp_path_factory):
    """103 training samples of classes of very different size; 10 val samples."""
    return write_shards(
        tmp_path_factory.mktemp("balanced") / "skewed",
        {"train": cut(texture_jpegs(1, 103), [30, 1, 25, 40, 7]), "val": cut(texture_jpegs(2, 10), [10])},
        classes=6,
        label_of=lambda index: int(LABELS[index]),
    )


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("cache", ["none", "host"])
def test_every_epoch_has_all_classes_equally_often(skewed, cache, device):
    loader = make_loader(skewed, "train", 16, sampling="balanced", cache=cache, num_threads=1, device=device)
    assert len(loader) == len(make_loader(skewed, "train", 16)) == 6
    epochs = [flat(labels_of(loader)) for _ in range(4)]
    for epoch in epochs:
        counts = np.bincount(epoch, minlength=6)
        assert len(epoch) == 96
        assert set(counts[:5].tolist()) == {19, 20}
        assert counts[5] == 0
    assert np.ptp(np.bincount(flat(epochs))) <= 1, "what a class lacks in one epoch it gets in another"
    assert len({tuple(epoch) for epoch in epochs}) == 4
    mixed = [len(set(epochs[0][start : start + 16])) for start in range(0, 96, 16)]
    assert min(mixed) >= 3, "classes are mixed within batches"


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_samples_of_a_class_come_equally_often(world_size):
    partition = BalancedPartition(LABELS, 96 // world_size // 4, world_size, seed=5)
    drawn = np.zeros(103, np.int64)
    for epoch in range(150):
        order = partition.order(epoch)
        drawn += np.bincount(order, minlength=103)
        for label in range(5):
            assert np.ptp(drawn[label == LABELS]) <= world_size, (epoch, label)
    assert drawn[LABELS == 0].min() >= 39, "frequent classes are gone through, too"
    assert len({tuple(partition.order(epoch)) for epoch in (0, 1, 2, 149)}) == 4
    same, other = (BalancedPartition(LABELS, 96 // world_size // 4, world_size, seed) for seed in (5, 6))
    assert same.order(7).tolist() == partition.order(7).tolist() != other.order(7).tolist()


def test_a_rank_keeps_its_part_and_the_samples_that_cannot_be_divided():
    ranks = [BalancedPartition(LABELS, 5, 3, seed=2).members(rank) for rank in range(3)]
    kept = np.bincount(np.concatenate(ranks), minlength=103)
    for label, count in enumerate(COUNTS):
        times, samples = np.unique(kept[label == LABELS], return_counts=True)
        expected = {1: count - count % 3, 3: count % 3}
        assert dict(zip(times.tolist(), samples.tolist(), strict=True)) == {k: v for k, v in expected.items() if v}
    orders = [BalancedPartition(LABELS, 5, 3, seed=2).order(epoch).reshape(-1, 3, 5) for epoch in range(30)]
    for rank in range(3):
        assert set(np.concatenate(orders)[:, rank].reshape(-1).tolist()) == set(ranks[rank].tolist())


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_global_batch_does_not_depend_on_the_number_of_ranks(skewed, world_size):
    options = {"seed": 5, "sampling": "balanced"}
    whole = list(make_loader(skewed, "train", 16, **options))
    ranks = [
        list(make_loader(skewed, "train", 16 // world_size, rank=rank, world_size=world_size, **options))
        for rank in range(world_size)
    ]
    assert len(whole) == 6
    for number, (images, labels) in enumerate(whole):
        assert torch.equal(torch.cat([rank[number][0] for rank in ranks]), images)
        assert torch.equal(torch.cat([rank[number][1] for rank in ranks]), labels)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("cache", ["none", "host"])
def test_another_process_goes_on_with_the_same_pixels(skewed, cache):
    options = {"rank": 1, "world_size": 2, "seed": 9, "sampling": "balanced", "cache": cache}
    loader = make_loader(skewed, "train", 8, **options)
    states, prints = [loader.state_dict()], []
    for batch in itertools.islice(stream(loader), 20):
        prints.append(fingerprint(batch))
        states.append(loader.state_dict())
    assert len(set(prints)) == 20
    for place in (1, 6, 13):
        resumed = make_loader(skewed, "train", 8, **options)
        resumed.load_state_dict(states[place])
        assert [fingerprint(batch) for batch in itertools.islice(stream(resumed), 4)] == prints[place : place + 4]
    uniform = make_loader(skewed, "train", 8, rank=1, world_size=2, seed=9, cache=cache)
    with pytest.raises(InputError, match="it was taken with order 'balanced"):
        uniform.load_state_dict(states[3])


@pytest.mark.usefixtures("uncompiled")
def test_a_cache_reads_no_image_twice(skewed, monkeypatch):
    reads, read = [], Samples.read
    monkeypatch.setattr(Samples, "read", lambda self, indices: (reads.extend(indices.tolist()), read(self, indices))[1])
    loader = make_loader(skewed, "train", 16, sampling="balanced", cache="host")
    for _ in range(5):
        assert len(labels_of(loader)) == 6
    assert sorted(reads) == sorted(set(reads)), "a batch that holds a sample twice reads it once"
    assert set(reads) == set(range(103))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("cache", ["none", "host"])
def test_a_bad_sample_is_left_out_of_all_its_draws(tmp_path, cache):
    jpegs = texture_jpegs(1, 103)
    jpegs[int(np.flatnonzero(LABELS == 2)[0])] = b"no image"
    splits = {"train": [jpegs], "val": []}
    data = write_shards(tmp_path / "bad", splits, classes=6, label_of=lambda index: int(LABELS[index]))
    loader = make_loader(data, "train", 48, sampling="balanced", on_error="skip", cache=cache, num_threads=1)
    counts = np.bincount(flat(labels_of(loader)), minlength=5)
    assert counts[2] == 0
    assert loader.skipped == 96 - counts.sum() >= 19
    assert set(np.delete(counts, 2).tolist()) <= {19, 20}


def test_labels_are_counted_and_one_that_cannot_be_read_is_named(skewed, tmp_path):
    assert make_loader(skewed, "train", 16).class_counts().tolist() == [*COUNTS, 0]
    jpegs = texture_jpegs(3, 4)
    wrong = write_shards(tmp_path / "w", {"train": [jpegs], "val": []}, classes=2, label_of=lambda index: index)
    with pytest.raises(SampleError, match=r"train-000000\.tar: sample .* has label b'002'; use 0 to 1"):
        make_loader(wrong, "train", 2, sampling="balanced")


def test_evaluation_has_no_sampling(skewed):
    with pytest.raises(InputError, match="sampling is 'balanced'; use uniform"):
        make_loader(skewed, "val", 4, sampling="balanced")
    with pytest.raises(InputError, match="sampling is 'rare'; use uniform, balanced"):
        make_loader(skewed, "train", 4, sampling="rare")
