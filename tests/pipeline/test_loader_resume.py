"""Where the loader is can be kept, and taken up by another process."""

import hashlib
import itertools
import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from shard_folders import texture_jpegs

from errors import InputError
from pipeline.augment import Augmentation
from pipeline.loader import make_loader
from pipeline.reading.dali_stream import BATCHES_DECODING
from pipeline.reading.read_ahead import BATCHES_AHEAD
from pipeline.reading.samples import Samples

BATCH = 20
TRAIN = 103
BATCHES = 5
SMALL = 4  # of each of two ranks: 12 batches an epoch

# Takes up a loader at each of the states on stdin, prints what the next batches hold, and leaves with all of them in
# the middle of an epoch.
RESUME = """
import itertools, json, sys
sys.path[:0] = {path!r}
from test_loader_resume import fingerprint, stream
from pipeline.loader import make_loader
found, left = [], []
for state, count in json.load(sys.stdin):
    loader = make_loader({data!r}, "train", {batch}, rank=1, world_size=2, seed=9)
    loader.load_state_dict(state)
    batches = stream(loader)
    found.append([fingerprint(batch) for batch in itertools.islice(batches, count)])
    left.append(batches)
json.dump(found, sys.stdout)
"""


def fingerprint(batch):
    images, labels = batch
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


def stream(loader):
    """Batches of epoch after epoch."""
    while True:
        yield from loader


def test_a_fresh_process_goes_on_with_the_same_pixels_from_any_of_30_batches_and_ends(numbered):
    options = {"rank": 1, "world_size": 2, "seed": 9}
    loader = make_loader(numbered, "train", SMALL, **options)
    states, prints = [loader.state_dict()], []
    for batch in itertools.islice(stream(loader), 60):
        prints.append(fingerprint(batch))
        states.append(loader.state_dict())
    assert len(set(prints)) == len(prints)
    ends = [0, TRAIN // (2 * SMALL) - 1, TRAIN // (2 * SMALL), TRAIN // (2 * SMALL) + 1]
    places = [*ends, *random.Random(1).sample(range(ends[-1] + 1, 57), 26)]
    script = RESUME.format(path=sys.path, data=str(numbered), batch=SMALL)
    ask = json.dumps([(states[place], 3) for place in places])
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, input=ask, capture_output=True, text=True, timeout=300)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert json.loads(answer.stdout) == [prints[place : place + 3] for place in places]


# Goes on from the last state that was written, or from the beginning: after each batch it appends what that held to
# one file and then puts the state that comes after it into another, whole.
KILLED = """
import json, os, sys
sys.path[:0] = {path!r}
import torch
from test_loader_resume import fingerprint, stream
from pipeline.loader import make_loader
torch.compiler.set_stance("force_eager")
states, prints, cache = sys.argv[1:]
loader = make_loader({data!r}, "train", {batch}, rank=1, world_size=2, seed=9, cache=cache)
if os.path.exists(states):
    with open(states) as file:
        done, state = json.load(file)
    loader.load_state_dict(state)
else:
    done = 0
print("ready", flush=True)
for batch in stream(loader):
    with open(prints, "a") as file:
        file.write(json.dumps([done, fingerprint(batch)]) + "\\n")
    done += 1
    with open(states + ".part", "w") as file:
        json.dump([done, loader.state_dict()], file)
    os.replace(states + ".part", states)
"""
KILLS = 15


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "host"])
def test_killed_15_times_at_random_moments_it_gives_the_pixels_of_an_undisturbed_run(
    numbered, tmp_path, cache, uncompiled
):
    rng = random.Random(2)
    script = KILLED.format(path=sys.path, data=str(numbered), batch=SMALL)
    states, prints = tmp_path / "state.json", tmp_path / "prints"
    taken_up = []
    for _ in range(KILLS + 1):
        taken_up.append(json.loads(states.read_text())[0] if states.exists() else 0)
        command = [sys.executable, "-c", script, str(states), str(prints), cache]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            try:
                assert child.stdout.readline() == "ready\n"
                wait_for(rng.randint(1, 9), prints, child)
                time.sleep(rng.uniform(0, 0.02))
            finally:
                child.kill()
        assert child.returncode == -signal.SIGKILL
    assert len(set(taken_up)) == KILLS + 1
    found = [json.loads(line) for line in prints.read_text().splitlines()]
    loader = make_loader(numbered, "train", SMALL, rank=1, world_size=2, seed=9, cache=cache)
    straight = list(map(fingerprint, itertools.islice(stream(loader), max(number for number, _ in found) + 1)))
    assert len(set(straight)) == len(straight)
    assert all(straight[number] == print_ for number, print_ in found)
    assert {number for number, _ in found} == set(range(len(straight)))


def wait_for(batches, prints, child):
    """Wait until the child has given some more batches."""
    before = prints.stat().st_size if prints.exists() else 0
    line = 80  # bytes, about
    while child.poll() is None and (prints.stat().st_size if prints.exists() else 0) < before + batches * line:
        time.sleep(0.001)


def test_state_is_small_and_the_same_for_every_rank(numbered):
    ranks = [make_loader(numbered, "train", 10, rank=rank, world_size=2) for rank in range(2)]
    for loader in ranks:
        next(iter(loader))
    states = [loader.state_dict() for loader in ranks]
    assert states[0] == states[1]
    assert len(json.dumps(states[0])) < 1000


def test_state_and_epoch_say_where_the_next_batch_comes_from(numbered):
    def place():
        state = loader.state_dict()
        return state["epoch"], state["batch"]

    loader = make_loader(numbered, "train", BATCH)
    assert place() == (0, 0)
    first, places = [], []
    for batch in loader:
        first.append(fingerprint(batch))
        places.append(place())
    assert places == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]
    assert (loader.epoch, *place()) == (1, 1, 0)
    second = [fingerprint(batch) for batch in loader]
    loader.epoch = 0
    assert [fingerprint(batch) for batch in loader] == first
    assert [fingerprint(batch) for batch in loader] == second
    abandoned = iter(loader)
    loader.epoch = 1
    with pytest.raises(RuntimeError, match="abandoned"):
        next(abandoned)
    assert [fingerprint(batch) for batch in loader] == second


def test_a_resumed_epoch_gives_its_rest_and_then_whole_epochs(numbered):
    loader = make_loader(numbered, "train", BATCH)
    assert len(loader) == BATCHES
    loader.load_state_dict({**loader.state_dict(), "epoch": 4, "batch": 3})
    assert loader.epoch == 4
    assert len(list(loader)) == BATCHES - 3
    assert loader.epoch == 5
    assert len(list(loader)) == BATCHES


def test_going_from_epoch_to_epoch_throws_nothing_away(numbered, monkeypatch):
    reads, read = [], Samples.read

    def counted(samples, indices):
        reads.append(len(indices))
        return read(samples, indices)

    monkeypatch.setattr(Samples, "read", counted)
    loader = make_loader(numbered, "train", BATCH)
    for _ in range(3):
        assert len(list(loader)) == BATCHES
    given = 3 * BATCHES * BATCH
    assert given <= sum(reads) <= given + (BATCHES_AHEAD + BATCHES_DECODING) * BATCH


@pytest.mark.parametrize("taken", [0, 1, 3, BATCHES])
def test_iter_in_the_middle_of_an_epoch_begins_the_next(numbered, taken):
    reference = make_loader(numbered, "train", BATCH)
    second = [[fingerprint(batch) for batch in reference] for _ in range(2)][1]
    loader = make_loader(numbered, "train", BATCH)
    abandoned = iter(loader)
    for _ in range(taken):
        next(abandoned)
    assert [fingerprint(batch) for batch in loader] == second
    if taken < BATCHES:
        with pytest.raises(RuntimeError, match="abandoned"):
            next(abandoned)


def test_val_begins_anew_every_time(numbered):
    loader = make_loader(numbered, "val", BATCH)
    first = [fingerprint(batch) for batch in loader]
    next(iter(loader))
    assert [fingerprint(batch) for batch in loader] == first
    loader.load_state_dict({**loader.state_dict(), "epoch": 7, "batch": 1})
    assert [fingerprint(batch) for batch in loader] == first[1:]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"seed": 1}, "seed 1 where this loader has 0"),
        ({"batch_size": 10}, "global_batch_size 10 where this loader has 20"),
        ({"world_size": 2}, "global_batch_size 40 where this loader has 20"),
        ({"mode": "eval"}, "mode 'eval' where this loader has 'train'"),
        ({"crop": 20}, "crop 20 where this loader has 28"),
        ({"units": "unit"}, "units 'unit' where this loader has 'grey'"),
        ({"mean": "image"}, "mean 'image' where this loader has 'channel'"),
        ({"augmentation": Augmentation(flip=False)}, "augmentation {.*'flip': False.*} where this loader has {"),
    ],
)
def test_a_state_of_another_loader_is_refused(numbered, change, names):
    arguments = {"batch_size": BATCH, "seed": 0, **change}
    state = make_loader(numbered, "train", **arguments).state_dict()
    with pytest.raises(InputError, match=names):
        make_loader(numbered, "train", BATCH).load_state_dict(state)


@pytest.mark.parametrize("ranks", [1, 4])
def test_another_number_of_ranks_goes_on_with_the_same_global_batches(numbered, ranks):
    def share(rank, world_size):
        return make_loader(numbered, "train", BATCH // world_size, rank=rank, world_size=world_size, seed=3)

    whole = list(share(0, 1))
    pair = [share(rank, 2) for rank in range(2)]
    for batches in map(iter, pair):
        next(batches), next(batches)
    rest = [share(rank, ranks) for rank in range(ranks)]
    for loader in rest:
        loader.load_state_dict(pair[0].state_dict())
    for parts, (images, labels) in zip(zip(*rest, strict=True), whole[2:], strict=True):
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


@pytest.mark.parametrize(("split", "options"), [("train", {"cache": "host"}), ("val", {})])
def test_another_number_of_ranks_is_refused_where_the_order_depends_on_it(numbered, split, options):
    state = make_loader(numbered, split, 10, world_size=2, **options).state_dict()
    with pytest.raises(InputError, match="taken with world_size 2 where this loader has 1"):
        make_loader(numbered, split, 20, **options).load_state_dict(state)


def test_when_lighting_ends_may_be_changed_for_the_epochs_to_come(numbered):
    def loader_until(epoch):
        return make_loader(numbered, "train", BATCH, augmentation=Augmentation(lighting_off_epoch=epoch))

    always, ending = loader_until(None), loader_until(3)
    for epoch in (0, 2):
        ending.load_state_dict({**always.state_dict(), "epoch": epoch, "batch": 2})
    later = ending.state_dict()
    ending.epoch = 3
    assert later["augmentation"]["lighting"] == "paper"
    with pytest.raises(InputError, match=r"'lighting': 'off'.* where this loader has .*'lighting': 'paper'"):
        always.load_state_dict(ending.state_dict())


def test_a_state_of_another_data_set_or_split_is_refused(numbered, make_shards):
    other = make_shards({"train": [texture_jpegs(3, 103)], "val": []}, classes=103)
    loader = make_loader(numbered, "train", BATCH)
    with pytest.raises(InputError, match="data "):
        loader.load_state_dict(make_loader(other, "train", BATCH).state_dict())
    with pytest.raises(InputError, match="split 'val' where this loader has 'train'"):
        loader.load_state_dict(make_loader(numbered, "val", BATCH).state_dict())
    with pytest.raises(InputError, match="crops 10 where this loader has 1"):
        make_loader(numbered, "val", BATCH).load_state_dict(make_loader(numbered, "val", BATCH, crops=10).state_dict())


@pytest.mark.parametrize("change", [{"epoch": -1}, {"batch": 6}, {"batch": -1}, {"batch": "1"}, {"epoch": None}])
def test_a_state_that_points_nowhere_is_refused(numbered, change):
    loader = make_loader(numbered, "train", BATCH)
    (name,) = change
    with pytest.raises(InputError, match=name):
        loader.load_state_dict({**loader.state_dict(), **change})
    with pytest.raises(InputError, match="lacks batch"):
        loader.load_state_dict({k: v for k, v in loader.state_dict().items() if k != "batch"})
