"""Networks as files for other runtimes, each read as its users read it."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors
import torch
from PIL import Image

from errors import InputError
from training import export
from training.checkpoint import read_model
from training.config import Network
from training.load_model import LoadedModel, load_checkpoint
from training.models import NETWORKS
from training.predict import predict, read_sample
from training.recipes import RECIPES
from training.serving.formats import ExportError, metadata
from training.serving.formats import export as export_to

SHORT_SIDES = {"alexnet-conv": 256, "alexnet-owt-conv": 256, "alexnet-owt": 72, "alexnet-tf": 72, "lenet5": 36}
"""Of images that are large enough for a network; 64 is for all others."""


def run(checkpoint: Path, form: str, output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    export.main(["--checkpoint", str(checkpoint), "--format", form, "--output", str(output)])
    return capsys.readouterr().out


def test_an_onnx_file_is_all_that_a_reader_needs(
    checkpoint: Path, raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(checkpoint, "onnx", tmp_path / "network.onnx", capsys)
    assert "logits differ by at most" in out
    assert list(tmp_path.iterdir()) == [tmp_path / "network.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    assert [(node.name, node.shape) for node in session.get_inputs()] == [("images", ["batch", 3, 56, 56])]
    facts = session.get_modelmeta().custom_metadata_map
    side, mean, divisor, classes = (json.loads(facts[name]) for name in ("crop", "mean", "divisor", "classes"))
    trained = load_checkpoint(checkpoint, torch.device("cpu"), "checkpoint")
    for path in sorted(raw_folder.glob("val/*/*_000.JPEG")):
        jpeg = read_sample(path, trained)
        pixels = np.asarray(Image.open(io.BytesIO(jpeg)), np.float32)
        top, left = (round((length - side) / 2) for length in pixels.shape[:2])
        image = (pixels[top : top + side, left : left + side] - mean) / divisor
        (logits,) = session.run(["logits"], {"images": image.transpose(2, 0, 1)[None].astype(np.float32)})
        assert classes[logits.argmax()]["name"] == predict(trained, [jpeg])[0][0][0]


def test_state_dicts_are_files_of_weights_again(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form, name in (("safetensors", "network.safetensors"), ("state-dict", "network.pth")):
        run(checkpoint, form, tmp_path / name, capsys)
        saved, wanted = read_model(tmp_path / name), read_model(checkpoint / "model.safetensors")
        assert saved.keys() == wanted.keys()
        assert all(torch.equal(saved[key], wanted[key]) for key in wanted)
    with safetensors.safe_open(tmp_path / "network.safetensors", "pt") as file:
        assert json.loads(file.metadata()["crop"]) == 56


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
def test_a_torchscript_file_needs_torch_only(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(checkpoint, "torchscript", tmp_path / "network.pt", capsys)
    files = {"twotower.json": ""}
    network = torch.jit.load(tmp_path / "network.pt", _extra_files=files)
    assert network(torch.zeros(5, 3, 56, 56)).shape == (5, 3)
    assert len(json.loads(json.loads(files["twotower.json"])["classes"])) == 3


@pytest.mark.parametrize("form", ["onnx", pytest.param("torchscript", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", ["lenet5", *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name != "lenet5")]
)
def test_every_network_can_be_exported(name: str, form: str, untrained: Callable[..., LoadedModel]) -> None:
    content, difference = export_to(untrained(name, short_side=SHORT_SIDES.get(name, 64)), form)
    assert len(content) > 0
    assert difference <= 1e-4


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_the_layers_of_run_145_can_be_exported(form: str, untrained: Callable[..., LoadedModel]) -> None:
    switches = {
        "lrn": "code-2012",
        "order1": "lrn-pool-act",
        "spatial_norm": True,
        "dropout_form": "2012",
        "init": "he",
    }
    _, difference = export_to(untrained(network=Network("alexnet-small", **switches)), form)
    assert difference <= 1e-4


def test_the_mean_image_is_in_the_metadata(untrained: Callable[..., LoadedModel]) -> None:
    with_image, without = (metadata(untrained("lenet5", mean=mean)) for mean in ("image", "channel"))
    assert json.loads(with_image["mean"]) == [0, 0, 0]
    assert len(np.frombuffer(base64.b64decode(with_image["mean_image"]), "<f4")) == 3 * 56 * 56
    assert "mean_image" not in without


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_other_logits_are_refused(form: str, untrained: Callable[..., LoadedModel]) -> None:
    trained = untrained()
    trained.network.train()  # dropout: no two passes are the same
    with pytest.raises(ExportError, match=f"the logits of untrained alexnet-small as {form} differ by"):
        export_to(trained, form)


def test_a_network_that_diverged_is_refused_and_the_file_before_stays(
    tiny_shards: Path, tmp_path: Path, untrained: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = untrained("lenet5")
    monkeypatch.setitem(RECIPES, "own", lambda: trained.config)
    torch.nn.init.constant_(trained.network.get_parameter("fc5.bias"), float("nan"))
    torch.save(trained.network.state_dict(), tmp_path / "diverged.pth")
    (tmp_path / "out.pt").write_text("before")
    arguments = ["--weights", tmp_path / "diverged.pth", "--recipe", "own", "--data", tiny_shards]
    with pytest.raises(SystemExit, match=r"the logits of .*diverged.pth are not finite: its training has diverged"):
        export.main([*map(str, arguments), "--format", "state-dict", "--output", str(tmp_path / "out.pt")])
    assert (tmp_path / "out.pt").read_text() == "before"


@pytest.mark.parametrize(
    ("form", "output", "message"),
    [
        ("onnx", "network.pt", "readers know onnx by its name; use one that ends in .onnx"),
        ("safetensors", "network", "readers know safetensors by its name; use one that ends in .safetensors"),
        ("onnx", "nowhere/network.onnx", "there is no folder .*nowhere; use one that exists"),
        ("onnx", "folder.onnx", "it is a folder; use the name of a file"),
        ("state-dict", "/proc/network.pt", "it cannot be written: No such file or directory; use another place"),
    ],
)
def test_an_output_that_cannot_be_is_refused(
    form: str, output: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match=f"--output is .*{output}: {message}"):
        run(checkpoint, form, tmp_path / output, capsys)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder.onnx"]
