"""Which samples come in which batch of which rank."""

import itertools

import numpy as np
import pytest
import torch
from shard_folders import cut, texture_jpegs, write_shards

from pipeline.loader import make_loader
from pipeline.sampler import SHUFFLE_GROUP_SHARDS, RankSlice, draw_attempts, draw_epoch

TRAIN, VAL = 103, 53


def labels_of(loader):
    """The labels of one epoch, batch by batch."""
    return [labels.tolist() for _, labels in loader]


def epoch_of_ranks(data, split, batch_size, world_size, **options):
    ranks = []
    for rank in range(world_size):
        loader = make_loader(data, split, batch_size, rank=rank, world_size=world_size, num_threads=1, **options)
        batches = labels_of(loader)
        assert len(batches) == len(loader)
        ranks.append(batches)
        loader.close()
    return ranks


def flat(batches):
    return [label for batch in batches for label in batch]


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 7), (1, 53), (1, 60), (2, 9), (3, 4), (5, 11), (60, 2)])
def test_val_gives_each_sample_once_in_order(numbered, world_size, batch_size):
    ranks = epoch_of_ranks(numbered, "val", batch_size, world_size)
    assert [label for rank in ranks for label in flat(rank)] == list(range(VAL))
    for rank in ranks:
        assert all(len(batch) == batch_size for batch in rank[:-1])
        assert all(batch for batch in rank)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 10), (1, 103), (2, 13), (3, 7), (5, 20)])
def test_train_gives_every_rank_the_same_number_of_full_batches_and_no_sample_twice(numbered, world_size, batch_size):
    ranks = epoch_of_ranks(numbered, "train", batch_size, world_size)
    batches = TRAIN // (batch_size * world_size)
    assert all([len(batch) for batch in rank] == [batch_size] * batches for rank in ranks)
    seen = [label for rank in ranks for label in flat(rank)]
    assert len(set(seen)) == len(seen) == batches * batch_size * world_size


def test_train_as_evaluation_gives_each_sample_once_in_order(numbered):
    loader = make_loader(numbered, "train", 25, mode="eval")
    assert flat(labels_of(loader)) == list(range(TRAIN))


def test_order_differs_between_epochs_and_seeds_and_repeats_for_the_same_seed(numbered):
    first = make_loader(numbered, "train", 20, seed=3)
    epochs = [flat(labels_of(first)) for _ in range(3)]
    again = make_loader(numbered, "train", 20, seed=3)
    assert [flat(labels_of(again)) for _ in range(3)] == epochs
    other = flat(labels_of(make_loader(numbered, "train", 20, seed=4)))
    orders = [*epochs, other]
    assert len({tuple(order) for order in orders}) == 4
    # A shuffle leaves about one sample of 100 in its place: neither shards nor runs of samples stay together.
    assert all(sum(label == place for place, label in enumerate(order)) < 10 for order in orders)
    assert all(sum(b - a == 1 for a, b in itertools.pairwise(order)) < 10 for order in orders)


@pytest.mark.parametrize(("samples", "ranks"), [(53, 5), (60, 7), (3, 4)])
def test_the_ranks_shares_of_an_evaluation_differ_by_one_sample_at_most(samples, ranks):
    shares = [RankSlice.of_evaluation(samples, 10, rank, ranks) for rank in range(ranks)]
    sizes = [share.end - share.first for share in shares]
    assert (sum(sizes), max(sizes) - min(sizes)) == (samples, 0 if samples % ranks == 0 else 1)


def test_every_kind_of_random_number_differs_between_epochs_and_seeds():
    epochs = [(3, 0), (3, 1), (4, 0)]
    plans = [draw_epoch([100], seed, epoch, slack=8) for seed, epoch in epochs]
    for kind in ("offsets", "flips", "normals", "crop_fractions"):
        assert len({getattr(plan, kind).tobytes() for plan in plans}) == 3, kind
    assert len({draw_attempts(seed, epoch, slice(0, 9)).tobytes() for seed, epoch in epochs}) == 3


def test_every_sample_is_left_out_of_some_epoch_only_by_chance(numbered):
    loader = make_loader(numbered, "train", 50)
    seen = set()
    for _ in range(12):
        seen |= set(flat(labels_of(loader)))
    assert seen == set(range(TRAIN))


@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batch_does_not_depend_on_the_number_of_ranks(numbered, world_size):
    whole = list(make_loader(numbered, "train", 24, seed=5))
    ranks = [
        list(make_loader(numbered, "train", 24 // world_size, rank=rank, world_size=world_size, seed=5))
        for rank in range(world_size)
    ]
    assert len(whole) == 4
    for number, (images, labels) in enumerate(whole):
        assert torch.equal(torch.cat([rank[number][0] for rank in ranks]), images)
        assert torch.equal(torch.cat([rank[number][1] for rank in ranks]), labels)


def test_shards_are_permuted_and_samples_shuffled_inside_a_window_of_shards():
    shards, each = 5 * SHUFFLE_GROUP_SHARDS, 10
    window = SHUFFLE_GROUP_SHARDS * each
    orders = [draw_epoch([each] * shards, seed=0, epoch=epoch, slack=0).order for epoch in range(2)]
    for order in orders:
        assert sorted(order) == list(range(shards * each))
        members = [sorted({sample // each for sample in order[i : i + window]}) for i in range(0, len(order), window)]
        assert all(len(window_shards) == SHUFFLE_GROUP_SHARDS for window_shards in members)
        assert members[0] != list(range(SHUFFLE_GROUP_SHARDS))
        assert len({sample // each for sample in order[:each]}) > each // 2
    assert orders[0].tolist() != orders[1].tolist()


def test_shards_of_any_size_are_all_read(make_shards):
    data = make_shards({"train": cut(texture_jpegs(4, 40), [1, 1, 37, 1]), "val": []}, classes=40)
    assert sorted(flat(labels_of(make_loader(data, "train", 8)))) == list(range(40))
    assert labels_of(make_loader(data, "val", 8)) == []


MANY = 1003


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """1,003 samples in both splits, in shards of odd sizes; the label says which it is."""
    shards = cut(texture_jpegs(7, MANY, 16), [250, 1, 333, 119, 300])
    return write_shards(
        tmp_path_factory.mktemp("many") / "shards", {"train": shards, "val": shards}, classes=MANY, short_side=16
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 125])
def test_rules_hold_for_any_number_of_ranks_and_awkward_batches(many, world_size, batch_size):
    val = epoch_of_ranks(many, "val", batch_size, world_size)
    assert [label for rank in val for label in flat(rank)] == list(range(MANY))
    train = epoch_of_ranks(many, "train", batch_size, world_size)
    global_batch = batch_size * world_size
    assert {len(rank) for rank in train} == {MANY // global_batch}
    assert {len(batch) for rank in train for batch in rank} == {batch_size}
    seen = [label for rank in train for label in flat(rank)]
    assert len(set(seen)) == len(seen) == MANY - MANY % global_batch


def met_again(orders, batch):
    """The probability that two samples of one batch share a batch of the next epoch too."""
    whole = len(orders[0]) // batch * batch
    batches = []
    for order in orders:
        number = np.empty(len(order), np.int64)
        number[order] = np.arange(len(order)) // batch
        batches.append(number)
    inside = (batches[0] < whole // batch) & (batches[1] < whole // batch)
    _, pairs = np.unique(batches[0][inside] * whole + batches[1][inside], return_counts=True)
    return (pairs * (pairs - 1)).sum() / (whole * (batch - 1))


def test_how_well_a_data_set_of_imagenet_s_size_is_shuffled():
    shards, each, batch = 1281, 1000, 128
    orders = [draw_epoch([each] * shards, seed=0, epoch=epoch, slack=0).order for epoch in range(2)]
    full = [np.random.default_rng(seed).permutation(shards * each) for seed in range(2)]
    places = [np.argsort(order) for order in orders]
    assert abs(abs(places[0] - places[1]).mean() / (shards * each) - 1 / 3) < 0.03
    assert met_again(orders, batch) == pytest.approx(5.8e-4, rel=0.15)
    assert met_again(full, batch) == pytest.approx(1.0e-4, rel=0.05)
    for order, expected in ((orders[0], 16), (full[0], 122)):
        kinds = [len(set((order[i : i + batch] // each).tolist())) for i in range(0, 200 * batch, batch)]
        assert np.mean(kinds) == pytest.approx(expected, rel=0.02)
