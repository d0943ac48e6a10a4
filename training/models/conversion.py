"""The same weights as fully connected layers and as convolutions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def to_fully_convolutional(state: Mapping[str, Tensor], side: int = 6) -> dict[str, Tensor]:
    """Return the state of `alexnet-single` for `alexnet-conv`, or of `alexnet-owt` for `alexnet-owt-conv`.

    The first matrix (units, channels * side²) becomes (units, channels, side, side), the others
    (units, inputs, 1, 1). All else is unchanged; tensors share their memory with those of `state`.
    """
    matrices = [name for name, tensor in state.items() if tensor.dim() == 2]
    kernels = {name: (side if name == matrices[0] else 1) for name in matrices}
    return {
        name: tensor.reshape(len(tensor), -1, kernels[name], kernels[name]) if name in kernels else tensor
        for name, tensor in state.items()
    }


def to_fully_connected(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `to_fully_convolutional`: fc6 to fc8 (`classifier.N` in torchvision's names) become matrices."""
    return {
        name: tensor.flatten(1) if tensor.dim() == 4 and name.startswith(("fc", "classifier")) else tensor
        for name, tensor in state.items()
    }
