import io

import numpy as np
import pytest
from PIL import Image

from pipeline.reading.samples import StoredSample
from training.report.examples import (
    THUMBNAIL,
    Card,
    Guess,
    choose_examples,
    make_card,
    make_thumbnail,
    random_samples,
    surest,
)
from training.report.kernels import GAP, kernel_levels
from training.report.metrics import Predictions
from training.report.pictures import (
    KERNEL_HEADING,
    KERNEL_MARGIN,
    TRUE_BAR,
    cards_png,
    confusion_png,
    kernels_png,
)


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def open_png(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def pixels_of(picture, colour):
    return int((picture == rgb(colour)).all(axis=2).sum())


def test_second_tower_begins_in_a_block_of_its_own():
    """Each kernel is filled with its own number, so its place in the picture can be read back."""
    filters, size = 40, 11
    weights = np.arange(filters, dtype=np.float64)[:, None, None, None] * np.ones((1, 3, size, size))
    expected = kernel_levels(weights)[:, 0, 0, 0]
    picture = open_png(kernels_png(weights, towers=2))
    step = 66 + GAP
    block = 2 * step - GAP  # 20 kernels a tower: a row of 16, a row of 4
    for tower, top in ((0, KERNEL_HEADING), (1, 2 * KERNEL_HEADING + block)):
        for i in range(filters // 2):
            y, x = top + i // 16 * step, KERNEL_MARGIN + i % 16 * step
            tile = picture[y : y + 66, x : x + 66]
            assert (tile == expected[tower * 20 + i]).all(), (tower, i)
            assert (picture[y : y + 66, x + 66 : x + 66 + GAP] == 255).all()


def test_tower_headings_are_drawn():
    weights = np.ones((4, 3, 11, 11))
    picture = open_png(kernels_png(weights, towers=2))
    heading = picture[KERNEL_HEADING + 66 : 2 * KERNEL_HEADING + 66]
    assert (heading < 100).any()


def test_thumbnail_is_the_central_square_and_never_enlarged():
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (30, 0, 60, 30))
    small = make_thumbnail(jpeg(image))
    assert small.size == (30, 30)
    red, _, blue = small.getpixel((15, 15))
    assert blue > 240 > 15 > red
    assert make_thumbnail(jpeg(Image.new("L", (500, 400), 90))).size == (THUMBNAIL, THUMBNAIL)
    assert make_thumbnail(jpeg(Image.new("L", (500, 400), 90))).mode == "RGB"


NAMES = [f"class {i}" for i in range(6)]


@pytest.fixture
def predictions():
    """Twenty samples of class i % 6; every third first guess is wrong, the later the surer."""
    labels = np.arange(20) % 6
    offset = np.where(np.arange(20) % 3 == 0, 1, 0)
    guesses = (labels[:, None] + offset[:, None] + np.arange(5)) % 6
    first = 0.5 + np.arange(20) / 50
    rest = np.repeat((1 - first)[:, None] / 5, 4, axis=1)
    return Predictions(labels, guesses, np.column_stack([first, rest]).astype(np.float32), np.ones(20))


def test_random_samples_follow_the_seed_alone(predictions):
    chosen = random_samples(predictions, 8, seed=3)
    assert chosen == random_samples(predictions, 8, seed=3) != random_samples(predictions, 8, seed=4)
    assert len(set(chosen)) == 8
    assert sorted(random_samples(predictions, 99, seed=0)) == list(range(20))


def test_surest_errors_come_first_and_right_guesses_never(predictions):
    assert surest(predictions, ~predictions.correct, 3) == [18, 15, 12]
    assert len(surest(predictions, ~predictions.correct, 99)) == 7


def test_card_tells_the_rank_of_the_true_class(predictions):
    example = StoredSample("key", jpeg(Image.new("RGB", (20, 20))), 0)
    right, wrong = (make_card(predictions, NAMES, i, example) for i in (1, 3))
    assert (right.rank, right.true_name, right.guesses[0].is_true) == (1, "class 1", True)
    assert (wrong.rank, wrong.guesses[0].name, wrong.guesses[0].is_true) == (None, "class 4", False)


def test_examples_read_each_sample_once_and_its_own_image(predictions):
    read = []

    def read_example(position):
        read.append(position)
        return StoredSample(f"sample-{position}", jpeg(Image.new("L", (8, 8), 10 * position)), 0)

    examples = choose_examples(predictions, NAMES, read_example, seed=0)
    assert len(read) == len(set(read))
    assert [card.key for card in examples.errors[:2]] == ["sample-18", "sample-15"]
    for pair, cards in examples.pairs:
        for card in cards:
            position = int(card.key.split("-")[1])
            assert (predictions.labels[position], predictions.top_classes[position, 0]) == (
                pair.true,
                pair.predicted,
            )
            assert abs(card.thumbnail.getpixel((4, 4))[0] - 10 * position) <= 2


def card_of(*guesses, true_name="yes"):
    return Card("k", true_name, Image.new("RGB", (32, 32), "black"), guesses, None)


def test_bar_of_the_true_class_is_drawn_in_its_colour_and_length():
    long, short, none = (
        pixels_of(open_png(cards_png([card_of(Guess("a", 1 - p, False), *true)], "t")), TRUE_BAR)
        for p, true in ((0.8, [Guess("yes", 0.8, True)]), (0.4, [Guess("yes", 0.4, True)]), (0.4, []))
    )
    assert none == 0
    # The same letters cover a part of both bars.
    assert 1.8 < long / short < 2.4


def test_any_class_name_can_be_drawn():
    """Dollar signs are no formula, and a script that the font lacks is no failure."""
    names = ["$\\frac{$", "大白鲨", "a\nb", "x" * 200, "سمكة", "<b>"]
    cards = [card_of(Guess(name, 0.5, False), true_name=name) for name in names]
    assert open_png(cards_png(cards, "$\\nothing$")).shape[0] > 300
    assert open_png(confusion_png(np.eye(6, dtype=np.int64), names)).shape[0] > 300


def test_confusion_colours_right_blue_and_wrong_rust():
    matrix = np.array([[4, 0], [4, 0]])
    picture = open_png(confusion_png(matrix, ["a", "b"])).astype(int)
    blue = (picture[..., 2] - picture[..., 0] > 60).sum()
    rust = (picture[..., 0] - picture[..., 2] > 60).sum()
    assert blue > 1000
    assert 0.8 < blue / rust < 1.25


def test_a_class_without_samples_is_an_empty_row():
    with np.errstate(all="raise"):
        picture = open_png(confusion_png(np.zeros((3, 3), np.int64), ["a", "b", "c"])).astype(int)
    assert (picture[..., 2] - picture[..., 0]).max() < 60
