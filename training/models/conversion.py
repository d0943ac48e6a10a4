"""The same weights as dense layers and as convolutions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def to_convolutions(state: Mapping[str, Tensor], side: int = 6) -> dict[str, Tensor]:
    """Return the state of `alexnet-single` for `alexnet-conv`, or of `alexnet-owt` for `alexnet-owt-conv`.

    The first dense weight (units, channels * side²) becomes (units, channels, side, side), the others
    (units, inputs, 1, 1). All else is unchanged; tensors share their memory with those of `state`.
    """
    dense = [name for name, tensor in state.items() if tensor.dim() == 2]
    kernels = {name: (side if name == dense[0] else 1) for name in dense}
    return {
        name: tensor.reshape(len(tensor), -1, kernels[name], kernels[name]) if name in kernels else tensor
        for name, tensor in state.items()
    }


def to_dense(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `to_convolutions`: the weights of fc6 to fc8 (`classifier.N` in torchvision's names) become matrices."""
    return {
        name: tensor.flatten(1) if tensor.dim() == 4 and name.startswith(("fc", "classifier")) else tensor
        for name, tensor in state.items()
    }
