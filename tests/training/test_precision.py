"""The number format that a device gets, and the scale of the loss in float16."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mesh import Shape, in_group

from training.loop.precision import choose_format, make_scaler
from training.loop.state import build_state
from training.parallel.layout import Layout
from training.recipes import RECIPES

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx512f", "avx512_bf16"}, ("bfloat16", "the CPU has avx512_bf16")),
        ({"avx512f", "avx512_bf16", "amx_bf16"}, ("bfloat16", "the CPU has amx_bf16")),
        ({"avx2"}, ("float32", "the CPU has neither amx_bf16 nor avx512_bf16")),
    ],
)
def test_auto_on_a_cpu_goes_by_its_instructions(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: tuple[str, str]
) -> None:
    monkeypatch.setattr("training.loop.precision._cpu_flags", lambda: flags)
    assert choose_format("auto", CPU) == expected
    assert choose_format("bfloat16", CPU) == ("bfloat16", "")
    assert choose_format("float32", CPU) == ("float32", "")


def test_a_gpu_without_bfloat16_takes_float16_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _device: "Tesla T4")
    for supported, number_format in ((False, "float16"), (True, "bfloat16")):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda yes=supported, **_: yes)
        assert choose_format("auto", GPU)[0] == number_format
        assert choose_format("bfloat16", GPU)[0] == number_format
        assert choose_format("float32", GPU) == ("float32", "")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: False)
    assert choose_format("bfloat16", GPU)[1] == "Tesla T4 has no bfloat16 units; the loss is scaled"


def test_small_gradients_survive_in_float16(four_classes: Path) -> None:
    """Without a scale, products below 6e-8 become 0."""
    base = RECIPES["tiny-imagenet"]()
    config = dataclasses.replace(base, data=str(four_classes), batch_size=8, device="cpu", precision="float16")
    state = build_state(config, Layout(CPU), 1)
    assert state.scaler.is_enabled()
    assert not build_state(dataclasses.replace(config, precision="float32"), Layout(CPU), 1).scaler.is_enabled()
    weight, images = torch.zeros(4, 4, requires_grad=True), torch.full((2, 4), 1e-4)
    with state.autocast:
        loss = (images @ weight).float().sum() * 1e-4
    state.scaler.scale(loss).backward()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    state.scaler.step(optimizer)
    torch.testing.assert_close(weight, torch.full((4, 4), -2e-8), rtol=0.01, atol=0)


def overflow_on_the_second(rank: int, shape: Shape, meeting: Path, results: Path) -> None:
    with in_group(rank, shape, meeting, hybrid=False) as layout:
        scaler = make_scaler("float16", layout)
        weight = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=1.0)
        scaler.scale(weight.sum() * (float("inf") if rank == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        torch.save((weight.detach(), scaler.get_scale()), results / str(rank))


@pytest.mark.parametrize("shape", [(1, 2), (2, 1)], ids=["towers", "replicas"])
def test_a_step_that_overflows_on_one_device_is_left_out_on_all(shape: Shape, tmp_path: Path) -> None:
    mp.spawn(overflow_on_the_second, (shape, tmp_path / "meeting", tmp_path), nprocs=2)
    for rank in (0, 1):
        weight, scale = torch.load(tmp_path / str(rank), weights_only=True)
        assert (weight.tolist(), scale) == ([1.0] * 3, 2.0**15)
