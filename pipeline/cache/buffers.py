"""Memory for batches on the CPU that is used again as soon as nobody holds what was in it."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch

SPARE = 3
"""Buffers kept while nobody uses them; a consumer holds one batch or two."""


class Buffers:
    """Tensors of one shape: fresh memory for a large one costs about as much as filling it (the kernel clears pages).

    Args:
        shape: of every tensor.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._spare: deque[np.ndarray] = deque(maxlen=SPARE)

    def take(self) -> torch.Tensor:
        """Return a float32 tensor of unspecified content: it is the caller's for as long as any view of it lives."""
        memory = self._spare.pop() if self._spare else np.empty(self._shape, np.float32)
        # The storage of a tensor from numpy holds this array, and lets go of it with the last tensor that uses it.
        lent = memory.view()
        weakref.finalize(lent, self._spare.append, memory).atexit = False
        return torch.from_numpy(lent)
