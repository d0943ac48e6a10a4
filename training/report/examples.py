"""The samples that a report shows, each with its image, the true class and the five guesses."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torchvision.transforms.v2.functional import center_crop

from pipeline.reading.samples import StoredSample
from training.report.metrics import ConfusedPair, Predictions, confused_pairs

THUMBNAIL = 192
CARDS = 12
PAIRS = 12
CARDS_PER_PAIR = 4


ReadExample = Callable[[int], StoredSample]
"""Returns the sample at a position of the split, in the order of `Predictions`."""


@dataclass(frozen=True)
class Guess:
    """One of the network's best guesses; `probability` in 0-1."""

    name: str
    probability: float
    is_true: bool


@dataclass(frozen=True)
class Card:
    """One sample with its guesses, best first; `rank` counts from 1, None where no guess is the true class."""

    key: str
    true_name: str
    thumbnail: Image.Image
    guesses: tuple[Guess, ...]
    rank: int | None


def random_samples(predictions: Predictions, count: int, seed: int) -> list[int]:
    """Return `count` positions drawn without replacement, or all where there are fewer."""
    samples = len(predictions.labels)
    return np.random.default_rng(seed).choice(samples, min(count, samples), replace=False).tolist()


def surest(predictions: Predictions, chosen: np.ndarray, count: int) -> list[int]:
    """Return up to `count` of the positions where `chosen` (N,) is true, the most probable first guess first."""
    positions = np.flatnonzero(chosen)
    order = np.argsort(-predictions.top_probabilities[positions, 0], kind="stable")
    return positions[order[:count]].tolist()


def make_card(predictions: Predictions, names: Sequence[str], position: int, example: StoredSample) -> Card:
    """Return the card of the sample at `position`; `names` are those of the classes."""
    label = int(predictions.labels[position])
    guesses = tuple(
        Guess(names[guess], float(probability), guess == label)
        for guess, probability in zip(
            predictions.top_classes[position].tolist(), predictions.top_probabilities[position], strict=True
        )
    )
    rank = next((place for place, guess in enumerate(guesses, start=1) if guess.is_true), None)
    return Card(example.key, names[label], make_thumbnail(example.jpeg), guesses, rank)


def make_thumbnail(jpeg: bytes) -> Image.Image:
    """Return the central square of an image, RGB, at most `THUMBNAIL` pixels wide and never enlarged."""
    with Image.open(io.BytesIO(jpeg)) as opened:
        image = opened.convert("RGB")
    square: Image.Image = center_crop(image, [min(image.size)])
    square.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=None)
    return square


@dataclass(frozen=True)
class ReportExamples:
    """The samples that a report shows: some at random, the surest errors, and each confused pair's surest errors."""

    random: list[Card]
    errors: list[Card]
    pairs: list[tuple[ConfusedPair, list[Card]]]


def choose_examples(
    predictions: Predictions, names: Sequence[str], read_example: ReadExample, seed: int
) -> ReportExamples:
    """Choose the samples to show and read each of them once; the random ones depend only on `seed`."""

    @functools.cache
    def card(position: int) -> Card:
        return make_card(predictions, names, position, read_example(position))

    def errors_of(pair: ConfusedPair) -> np.ndarray:
        return (predictions.labels == pair.true) & (predictions.top_classes[:, 0] == pair.predicted)

    return ReportExamples(
        random=[card(i) for i in random_samples(predictions, CARDS, seed)],
        errors=[card(i) for i in surest(predictions, ~predictions.correct, CARDS)],
        pairs=[
            (pair, [card(i) for i in surest(predictions, errors_of(pair), CARDS_PER_PAIR)])
            for pair in confused_pairs(predictions, PAIRS)
        ],
    )
