"""Files of weights as other programs write them."""

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from errors import InputError
from training.checkpoint import read_model
from training.models import build
from training.models.state_dict import check_fits


class TorchvisionLike(nn.Module):
    """A network whose parameters are named as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(2, 2))


class LightningLike(nn.Module):
    """A module with the network as an attribute, as a LightningModule has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def in_parallel(network: nn.Module) -> dict[str, Tensor]:
    return nn.DataParallel(network).state_dict()


def features_in_parallel(network: nn.Module) -> dict[str, Tensor]:
    """As torchvision trained AlexNet and VGG."""
    network.features = nn.DataParallel(network.features)  # type: ignore[arg-type]
    return network.state_dict()


def compiled_in_lightning(network: nn.Module) -> dict[str, Tensor]:
    return LightningLike(torch.compile(nn.DataParallel(network))).state_dict()  # type: ignore[arg-type]


TIMM_EXTRAS = {"epoch": 3, "arch": "alexnet", "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.99)), "metric": 71.5}


@pytest.mark.parametrize(
    ("wrap", "content"),
    [
        (nn.Module.state_dict, lambda state: state),
        (in_parallel, lambda state: {"state_dict": state, **TIMM_EXTRAS}),
        (features_in_parallel, lambda state: {"epoch": 90, "state_dict": state, "best_acc1": torch.tensor(56.5)}),
        (compiled_in_lightning, lambda state: {"state_dict": state, "hyper_parameters": {"lr": 0.1}, "callbacks": {}}),
        (nn.Module.state_dict, lambda state: {"model": state, "optimizer": {"state": {}}, "args": TIMM_EXTRAS["args"]}),
        (nn.Module.state_dict, lambda state: {"model_state_dict": state, "loss": 0.3}),
    ],
    ids=["bare", "timm", "torchvision in 2017", "lightning", "torchvision's references", "tutorial"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_are_found_in_the_files_of_training_scripts(
    wrap: Any, content: Any, zipped: bool, tmp_path: Path
) -> None:
    network = TorchvisionLike()
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path = tmp_path / "weights.pth"
    torch.save(content(wrap(network)), path, _use_new_zipfile_serialization=zipped)
    found = read_model(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_names_in_safetensors_are_unwrapped_too(tmp_path: Path) -> None:
    network = TorchvisionLike()
    safetensors.torch.save_file(in_parallel(network), tmp_path / "weights.safetensors")
    assert read_model(tmp_path / "weights.safetensors").keys() == network.state_dict().keys()


class RunsCode:
    """An object that runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch loaded",)


def test_no_code_of_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"weight": torch.ones(1)}, "extra": RunsCode()}, path)
    with pytest.raises(InputError, match=r"cannot be read as weights: it holds posix\.system, which can run code; use"):
        read_model(path)
    torch.save(TorchvisionLike(), path)
    with pytest.raises(InputError, match=r"it holds .*TorchvisionLike.*, which can run code"):
        read_model(path)
    assert not (tmp_path / "loaded").exists()


def test_weights_that_are_no_state_dict_are_refused(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "weights.pt"
    with pytest.raises(InputError, match="does not exist"):
        read_model(path)
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot be read as weights"):
        read_model(path)
    for content in ({"epoch": 3}, {}, [torch.ones(1)], {"state_dict": {"epoch": 3}}):
        torch.save(content, path)
        with pytest.raises(InputError, match=r"is not a state dict: .*'state_dict' or 'model_state_dict' or 'model'"):
            read_model(path)
    torch.save({"weight": torch.ones(1), "module.weight": torch.ones(1)}, path)
    with pytest.raises(InputError, match="has several tensors for weight"):
        read_model(path)
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(path)
    recwarn.clear()
    with pytest.raises(InputError, match="cannot be read as weights: RuntimeError"):
        read_model(path)
    assert not recwarn.list, "one line is all that a user sees"


def test_all_that_differs_is_named_in_one_line() -> None:
    wanted = build("lenet5", 10).state_dict()
    state = {**wanted, "fc5.weight": torch.ones(9, 84), "head.weight": torch.ones(1)}
    for name in [name for name in state if name.startswith("conv")]:
        del state[name]
    with pytest.raises(InputError) as error:
        check_fits(state, wanted, "FILE")
    assert str(error.value) == (
        "FILE is of another network: fc5.weight is (9, 84) instead of (10, 84); "
        "missing: conv1.weight, conv1.bias, conv2.weight and 1 more; unknown: head.weight"
    )
