"""Retrieval by the distance of features: the nearest images of another split, and how many are of the query's class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.reading.samples import StoredSample
from training.report.examples import ReadExample, make_thumbnail
from training.report.metrics import RetrievalResult

NEAREST = 6
"""Neighbours of a query, as in figure 4 of the 2012 paper."""
ROWS = 5
"""Queries that are shown: the first ones, and a split is shuffled when it is built."""


@dataclass(frozen=True)
class Retrieval:
    """The nearest images of each query, nearest first, by features and by pixels.

    `by_features` and `by_pixels` (Q, 6) int64 are positions in `split`; `labels` (G,) int64 are of that split's first
    images, `query_labels` (Q,) int64 of the evaluated split's. `read_example` reads from `split`.
    """

    split: str
    by_features: np.ndarray
    by_pixels: np.ndarray
    query_labels: np.ndarray
    labels: np.ndarray
    read_example: ReadExample

    def result(self) -> RetrievalResult:
        """Return the numbers of `report.json`."""
        return RetrievalResult(
            split=self.split,
            queries=len(self.query_labels),
            images=len(self.labels),
            precision_at_6=self._precision(self.by_features),
            pixel_precision_at_6=self._precision(self.by_pixels),
        )

    def _precision(self, nearest: np.ndarray) -> float:
        return float((self.labels[nearest] == self.query_labels[:, None]).mean())


class Neighbour(NamedTuple):
    """One image of a row: its thumbnail, the name of its class, and whether that is the query's."""

    thumbnail: Image.Image
    name: str
    is_same: bool


class Row(NamedTuple):
    """A query with its neighbours, nearest first."""

    query: Neighbour
    by_features: list[Neighbour]
    by_pixels: list[Neighbour]


def make_rows(retrieval: Retrieval, names: Sequence[str], read_query: ReadExample) -> list[Row]:
    """Return the first queries with their neighbours; `names` are those of the classes."""

    def show(sample: StoredSample, label: int) -> Neighbour:
        return Neighbour(make_thumbnail(sample.jpeg), names[sample.label], sample.label == label)

    rows = []
    for position, label in enumerate(retrieval.query_labels[:ROWS].tolist()):
        found = [
            [show(retrieval.read_example(other), label) for other in nearest[position].tolist()]
            for nearest in (retrieval.by_features, retrieval.by_pixels)
        ]
        rows.append(Row(show(read_query(position), label), *found))
    return rows
