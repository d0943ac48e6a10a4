"""Terminal output of a training: a line per epoch, and one every 30 seconds within a long one."""

from __future__ import annotations

import time

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Prints the progress of a training from its metrics."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._started = time.monotonic()
        self._last_line = self._started
        self._first_epoch: int | None = None
        self._train: dict[str, float] = {}
        self._val: dict[str, float] = {}

    def show(self, metrics: dict[str, float], step: int) -> None:
        """Keep the metrics; print them if there was no line for `SECONDS_BETWEEN_LINES`."""
        if "val/loss" in metrics:
            self._val = metrics
            return
        self._train = metrics
        if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._print(f"step {step}: {self._training()}")

    def epoch_done(self, epoch: int) -> None:
        """Print the line of a completed epoch; `epoch` counts from 1."""
        if not self._val:
            return  # not the worker that logs
        if self._first_epoch is None:
            self._first_epoch = epoch - 1
        per_epoch = (time.monotonic() - self._started) / (epoch - self._first_epoch)
        left = per_epoch * (self._epochs - epoch)
        accuracy = "  ".join(f"{key} {value:.4f}" for key, value in self._val.items())
        self._print(f"epoch {epoch}/{self._epochs}: {self._training()}  {accuracy}  {left:.0f} s left")

    def _training(self) -> str:
        names = {"train/loss": "loss {:.4f}", "train/images_per_second": "{:.0f} images/s"}
        return "  ".join(form.format(self._train[key]) for key, form in names.items() if key in self._train)

    def _print(self, line: str) -> None:
        self._last_line = time.monotonic()
        print(line, flush=True)
