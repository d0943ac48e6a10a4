"""Predictions to report, and the tags of a page."""

import io
from collections.abc import Sequence
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from pipeline.reading.samples import StoredSample
from preprocess.manifest import ClassEntry
from training.report.html import Subject
from training.report.metrics import Evaluated, Predictions, Report, summarise

NAMES = ["plain", "<script>alert(1)</script>", 'quote" onload="x', "大白鲨", "a & b", "empty class"]
SUBJECT = Subject("alexnet", 1234567, "pets & <co>", np.random.default_rng(0).normal(size=(8, 3, 5, 5)), 2)


def predict(classes: int, samples: int, seed: int = 0, accuracy: float = 0.6) -> Predictions:
    """Draw predictions; the last class has no samples, and a wrong first guess leaves the true class second."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes - 1, samples)
    k = min(5, classes)
    order = (labels[:, None] + np.arange(k)) % classes
    swap = rng.random(samples) >= accuracy
    order[swap, :2] = order[swap, 1::-1]
    probabilities = -np.sort(-rng.dirichlet(np.ones(k + 1), samples)[:, :k], axis=1)
    return Predictions(labels, order, probabilities.astype(np.float32), rng.exponential(size=samples))


def read_example(position: int) -> StoredSample:
    """Return a sample of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (position % 256, 90, 120)).save(buffer, "JPEG")
    return StoredSample(f"key<{position}>", buffer.getvalue(), 0)


def summary(predictions: Predictions, names: Sequence[str]) -> Report:
    """Return the report of predictions for classes of these names."""
    classes = [ClassEntry(f"n{i}", name) for i, name in enumerate(names)]
    return summarise(
        predictions,
        classes,
        Evaluated(split="val", crops=1, view="1crop", weights_sha256="cd" * 32, manifest_sha256="ab" * 32),
        checkpoint="a<b.pt",
        images_per_second=10.0,
    )


class Page(HTMLParser):
    """Collects tags with their attributes, and the text of every table cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.cells: list[str] = []
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag in ("td", "th"):
            self.cells.append("")
            self._open = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open:
            self.cells[-1] += data

    def of(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of each tag of this name."""
        return [attributes for name, attributes in self.tags if name == tag]
