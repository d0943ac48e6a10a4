"""Every command of the README and of docs/, typed in a copy of the project: as it stands, or on small stand-ins."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import DOCUMENTS, ON_SEVERAL_HOSTS, PROJECT, copy_project, documented_commands, new_environment
from raw_data import MAX_REJECTED, write_raw_folder
from s3_server import FaultyStore

from cluster.postgres import find_installation
from errors import InputError

SMALL = "--epochs 1 --batch-size 32 --network.name alexnet-small"
"""Options that shorten a training of days to seconds: the same recipe with narrow layers."""
NOT_TYPED = {"make test", "source .venv/bin/activate"}
"""Commands that the tests run under: this very one, and the activation of its environment."""


class Shell:
    """A copy of what git tracks, with the environment of the project, and a shell in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        copy_project(folder)
        for name in (".venv", ".uv"):
            (folder / name).symlink_to(PROJECT / name)
        self.typed: list[str] = []
        self.exports = ""

    @property
    def environment(self) -> dict[str, str]:
        names = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE")
        kept = {name: value for name, value in os.environ.items() if name not in names}
        path = f"{PROJECT / '.venv' / 'bin'}:{kept['PATH']}"
        return {**kept, "PATH": path, "HOME": str(self.folder / "home")}

    def type(self, command: str, stand_ins: dict[str, str] | None = None, *, extra: str = "") -> str:
        """Run a command of the README with some words replaced; return stdout and stderr."""
        assert command in documented_commands(), f"the README has no {command!r}"
        self.typed.append(command)
        for word, stand_in in (stand_ins or {}).items():
            assert word in command
            command = command.replace(word, stand_in)
        done = subprocess.run(
            ["bash", "-c", f"set -e; {self.exports} {command} {extra}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def export(self, command: str) -> None:
        """Take a line of the README that sets a variable for the lines after it."""
        assert command in documented_commands(), f"the README has no {command!r}"
        self.typed.append(command)
        self.exports += f"{command};"


def run_id(output: str) -> str:
    found = re.search(r"^run ([0-9a-f]{32})$", output, re.MULTILINE)
    assert found, output
    return found[1]


def assert_plain(output: str) -> None:
    """Assert that the log of a training has a line per epoch, and none of Ray's own lines or colours."""
    log = output.partition("MLflow run ")[2].partition("\nrun ")[0]
    assert re.search(r"^epoch 1/\d+: loss \d", log, re.MULTILINE), output
    for stray in ("pid=", "\x1b[", "Token authentication", "PreemptionWatcher", "local Ray instance", "progress {"):
        assert stray not in log, log


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("copy"))
    (shell.folder / "home").mkdir()
    yield shell
    left = set(documented_commands()) - set(shell.typed) - NOT_TYPED
    assert {command for command in left if not command.startswith(ON_SEVERAL_HOSTS)} == set(), "all are tested"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_make_demo(shell: Shell) -> None:
    output = shell.type("make demo")
    report = json.loads((shell.folder / "reports" / "demo" / "report.json").read_text())
    assert report["top1"] >= 0.85
    for where in ("shards", "reports/demo/report.html", "mlflow.db"):
        assert str(shell.folder / where) in output
        assert (shell.folder / where).exists()


@pytest.mark.slow
def test_make_imagenette(shell: Shell) -> None:
    write_raw_folder(shell.folder / "photographs")
    for odd in ("train/red-square/truncated.jpg", "train/red-square/empty.jpg", "val/blue-disc/page.jpg"):
        (shell.folder / "photographs" / odd).unlink()
    archive = shell.folder / "imagenette2-320.tgz"
    subprocess.run(["tar", "czf", archive, "photographs"], cwd=shell.folder, check=True)
    command = "make imagenette IMAGES=imagenette2-320.tgz"
    output = shell.type(command, extra=f'OPTIONS="{SMALL}"')
    assert re.search(r"precision at 6 [01]\.\d", output), output
    for name in ("imagenette", "imagenette-10crops"):
        report = json.loads((shell.folder / "reports" / name / "report.json").read_text())
        assert report["samples"] == 42
    assert report["crops"] == 10


@pytest.mark.slow
def test_a_notebook_s_environment(shell: Shell, tmp_path: Path) -> None:
    environment = new_environment(tmp_path / "environment")
    shell.type(
        ".uv/bin/uv pip install --python ~/notebooks/.venv --editable .",
        {"~/notebooks/.venv": str(environment)},
        extra="--no-deps --no-build-isolation --offline",
    )
    imported = "import pipeline.loader, training.models; print(training.models.__file__)"
    command = [environment / "bin" / "python", "-c", imported]
    output = subprocess.check_output(command, cwd=tmp_path, env=shell.environment, text=True)
    assert output.startswith(str(shell.folder))
    assert "python -m training.runs " in shell.type("python -m training")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_way_of_imagenet(shell: Shell) -> None:
    write_raw_folder(shell.folder / "imagenet")
    data = {"/data/imagenet-shards": "./imagenet-shards"}
    shell.type(
        "python -m preprocess.build_shards --input /data/imagenet --output /data/imagenet-shards",
        {**data, "/data/imagenet": "./imagenet"},
        extra=f"--max-rejected {MAX_REJECTED}",
    )
    verified = shell.type("python -m preprocess.build_shards --verify --deep --output /data/imagenet-shards", data)
    assert "samples in" in verified
    assert "--optimizer.learning-rate" in shell.type("python -m training.run cifar10 --help")
    command = "python -m training.run alexnet-paper --data /data/imagenet-shards"
    log = shell.type(command, data, extra=f"{SMALL} --register alexnet")
    assert_plain(log)
    trained = run_id(log)
    resumed = shell.type("python -m training.run --resume RUN_ID", {"RUN_ID": trained}, extra="--epochs 2")
    assert "2 epochs, not 1; optimizer.schedule plateau: the rates go on falling" in resumed
    assert "epoch 2/2" in resumed
    assert re.search(rf"{trained} +alexnet-paper +finished +2/2 ", shell.type("python -m training.runs"))
    evaluated = shell.type(
        "python -m training.evaluate --run RUN_ID --which best --data /data/imagenet-shards --crops 10",
        {**data, "RUN_ID": trained},
    )
    assert re.search(r"report \S+/report\.html", evaluated)
    photo = next((shell.folder / "imagenet" / "val" / "blue-disc").glob("*.JPEG"))
    predicted = shell.type(
        "python -m training.predict --run RUN_ID photo.jpg", {"RUN_ID": trained, "photo.jpg": str(photo)}
    )
    assert "blue-disc" in predicted
    tuned = fine_tuned_on_flowers(shell, trained)
    averaged = shell.type(
        "python -m training.evaluate --run RUN_A --run RUN_B --data /data/imagenet-shards --crops 10",
        {**data, "RUN_A": trained, "RUN_B": tuned},
    )
    assert re.search(r"^report \S+/ensemble-2-\w+-val-10crops/report\.html$", averaged, re.MULTILINE)
    compared = shell.type(
        "python -m training.evaluate --compare RUN_A RUN_B --data /data/imagenet-shards --crops 10",
        {**data, "RUN_A": trained, "RUN_B": tuned},
    )
    assert re.search(r"^comparison \S+/comparison-\w+-val-10crops/comparison\.html$", compared, re.MULTILINE)
    command = next(line for line in documented_commands() if line.startswith("python -m training.ablate"))
    study = shell.type(command, {"/data/imagenette-shards": "./imagenet-shards", "0 1 2": "0"}, extra=SMALL)
    assert re.search(r"^\| ten crops \(`ten-crop`\) \| 1 \| [01]\.\d{4} \|", study, re.MULTILINE), study
    submitted(shell, trained)
    assert trained in served_runs(shell)
    used_elsewhere(shell, trained, photo)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_data_in_an_object_store(shell: Shell, s3: FaultyStore) -> None:
    if not (shell.folder / "imagenet").exists():
        write_raw_folder(shell.folder / "imagenet")
    built = shell.type(
        "python -m preprocess.build_shards --input /data/imagenet --output s3://bucket/imagenet-shards",
        {"/data/imagenet": "./imagenet"},
        extra=f"--max-rejected {MAX_REJECTED}",
    )
    assert "files uploaded from" in built
    log = shell.type(
        "python -m training.run alexnet-paper --data s3://bucket/imagenet-shards --storage s3://bucket/runs",
        extra=SMALL,
    )
    assert f"s3://bucket/runs/{run_id(log)}/step-" in log


def submitted(shell: Shell, trained: str) -> None:
    """Type the command for a test split, with a network whose classes are called by wnids."""
    checkpoint = shutil.copytree(max((shell.folder / "runs" / trained).glob("step-*")), shell.folder / "data" / "wnids")
    page = json.loads((checkpoint / "checkpoint.json").read_text())
    for entry, wnid in zip(page["data"]["classes"], ("n01440764", "n02012849", "n02119789"), strict=True):
        entry["id"] = wnid
    (checkpoint / "checkpoint.json").write_text(json.dumps(page))
    shell.type(
        "python -m training.submit --run RUN_A --run RUN_B "
        "--images /data/imagenet/test --crops 10 --output submission.txt",
        {"--run RUN_A --run RUN_B": "--checkpoint data/wnids", "/data/imagenet/test": "imagenet/val/red-square"},
    )
    lines = (shell.folder / "submission.txt").read_text().splitlines()
    assert {tuple(sorted(map(int, line.split()))) for line in lines} == {(1, 429, 449)}


def used_elsewhere(shell: Shell, trained: str, photo: Path) -> None:
    """Type what docs/serving.md has for a trained network: its Python, a server that is asked, an export."""
    example = python_example("serving.md").replace("RUN_ID", trained).replace("photo.jpg", str(photo))
    python = [sys.executable, "-c", example]
    printed = subprocess.check_output(python, cwd=shell.folder, env=shell.environment, text=True)
    assert re.fullmatch(r"([a-z-]+) \1 [01]\.\d+\n", printed)
    assert "blue-disc" in served_answer(shell, photo)
    export = "python -m training.export --run RUN_ID --which best --format onnx --output alexnet.onnx"
    assert "logits differ by at most" in shell.type(export, {"RUN_ID": trained})
    assert (shell.folder / "alexnet.onnx").is_file()


def served_answer(shell: Shell, photo: Path) -> str:
    """Type the server of a registered model, on a port of its own, and send it an image."""
    command = "mlflow models serve -m models:/alexnet/1 --env-manager local"
    assert command in documented_commands()
    shell.typed.append(command)
    arguments = [*command.split(), "--port", "5058"]
    server = subprocess.Popen(arguments, cwd=shell.folder, env=shell.environment, start_new_session=True)
    try:
        ask("http://127.0.0.1:5058/ping", None)
        curl = next(line for line in documented_commands() if "| curl" in line)
        return shell.type(curl, {"photo.jpg": str(photo), ":5000": ":5058"})
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def fine_tuned_on_flowers(shell: Shell, source: str) -> str:
    """Type the commands of docs/finetuning.md, from a run and from a file like torchvision's; return the first run."""
    import torch
    from torchvision.models import alexnet

    data, small = {"/data/flowers-shards": "./imagenet-shards"}, "--epochs 1 --batch-size 32"
    command = "python -m training.run finetune --init RUN_ID --data /data/flowers-shards"
    tuned = shell.type(command, {**data, "RUN_ID": source}, extra=small)
    assert f"starts from the weights of {source}, step " in tuned
    torch.save(alexnet().state_dict(), shell.folder / "alexnet-owt-7be5be79.pth")
    command = "python -m training.run finetune --init alexnet-owt-7be5be79.pth --data /data/flowers-shards"
    assert "the source has 1000 classes, the data 3" in shell.type(command, data, extra=small)
    return run_id(tuned)


def served_runs(shell: Shell) -> str:
    """Type the README's `mlflow ui`, on a port of its own, and ask it for its runs."""
    command = "mlflow ui --backend-store-uri sqlite:///mlflow.db"
    assert command in documented_commands()
    shell.typed.append(command)
    arguments = [*command.split(), "--port", "5057", "--workers", "1"]
    server = subprocess.Popen(arguments, cwd=shell.folder, env=shell.environment, start_new_session=True)
    try:
        return ask("http://127.0.0.1:5057/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"]})
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def ask(url: str, question: dict[str, object] | None) -> str:
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_jobs_on_a_cluster_of_one(shell: Shell) -> None:
    up = 'eval "$(python -m cluster.local up)"'
    try:
        shell.type(up)
        shell.exports = f"{up}; "
        shutil.rmtree(shell.folder / "shards", ignore_errors=True)
        shell.type("ray job submit -- python -m preprocess.build_shards")
        built_by_all_nodes(shell)
        log = shell.type("ray job submit -- python -m training.run", extra="--epochs 2")
        assert_plain(log)
        trained = run_id(log)
        page = rf"^look at: http://127\.0\.0\.1:5000/#/experiments/\d+/runs/{trained}\?workflowType=machine_learning$"
        assert re.search(page, log, re.MULTILINE), log
        evaluated = shell.type(
            "ray job submit -- python -m training.evaluate --run RUN_ID --data shards", {"RUN_ID": trained}
        )
        assert re.search(r"top-1 0\.\d{4}", evaluated)
        assert uploaded_job(shell)
        assert "Ray" in shell.type("python -m cluster.local status")
    finally:
        shell.exports = ""
        shell.type("python -m cluster.local down")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_cluster_on_postgresql(shell: Shell) -> None:
    up = 'eval "$(python -m cluster.local up --postgres)"'
    shell.typed.append(up)
    try:
        find_installation()
    except InputError as error:
        pytest.skip(str(error))
    # The server's user cannot enter pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="twotower-test-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        elsewhere = Shell(folder)
        elsewhere.type(up)
        elsewhere.exports = f"{up}; "
        assert "psycopg" in elsewhere.type("python -m cluster.local status")
        assert not (folder / "mlflow.db").exists()
    finally:
        elsewhere.exports = ""
        elsewhere.type("python -m cluster.local down")
        shutil.rmtree(folder)


@pytest.mark.slow
def test_the_size_of_a_cluster(shell: Shell) -> None:
    for command in documented_commands():
        if command.startswith("python -m cluster.plan") and "--check" not in command:
            assert "90 epochs of ImageNet" in shell.type(command)
    assert "torchvision's alexnet" in shell.type("python -m cluster.plan --check")


def built_by_all_nodes(shell: Shell) -> None:
    """Run the README's build on the cluster, and compare its bytes with those of the same build without one."""
    raw, local = shell.folder / "raw", shell.folder / "local"
    write_raw_folder(raw)
    options = f"--max-rejected {MAX_REJECTED} --shard-samples 40"
    command = next(line for line in documented_commands() if line.endswith("--ray auto"))
    shell.type(
        command,
        {"/data/imagenet-shards": "spread", "/data/imagenet": "raw"},
        extra=options,
    )
    arguments = ["python", "-m", "preprocess.build_shards", "--input", raw, "--output", local, *options.split()]
    subprocess.run(arguments, cwd=shell.folder, env=shell.environment, check=True)
    subprocess.run(["diff", "-r", shell.folder / "spread", local], check=True)


def uploaded_job(shell: Shell) -> str:
    """Run the README's way for a head that was started elsewhere: code uploaded, data and stores absolute."""
    command = next(line for line in documented_commands() if "--working-dir" in line)
    (shell.folder / "elsewhere").mkdir()
    elsewhere = shell.folder / "elsewhere"
    stand_ins = {
        "sqlite:////data/mlflow.db": f"sqlite:///{elsewhere}/mlflow.db",
        "/data/shards": str(shell.folder / "shards"),
        "/data/runs": str(elsewhere / "runs"),
    }
    trained = run_id(shell.type(command, stand_ins, extra="--epochs 1"))
    assert list((elsewhere / "runs" / trained).glob("step-*/checkpoint.json"))
    assert (elsewhere / "mlflow.db").is_file()
    return trained


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_jobs_on_a_head_of_one_s_own(shell: Shell) -> None:
    if not (shell.folder / "shards" / "manifest.json").is_file():
        subprocess.run(["python", "-m", "preprocess.build_shards"], cwd=shell.folder, env=shell.environment, check=True)
    shell.export("export RAY_AUTH_MODE=token")
    shell.type("ray get-auth-token --generate > /dev/null")
    shell.type("ray start --head")
    try:
        trained = run_id(shell.type("ray job submit -- python -m training.run", extra="--epochs 1"))
        assert list((shell.folder / "runs" / trained).glob("step-*/checkpoint.json"))
    finally:
        end_all_of(shell)
        # Where `ray stop` did not come by, the next Ray of this machine would look for the dead one.
        Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)


def end_all_of(shell: Shell) -> None:
    """End what was started from this shell, by its home: `ray stop` would end every Ray of the machine."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == shell.environment["HOME"]:
                process.kill()


def test_the_documents_have_commands_and_pictures() -> None:
    assert len(documented_commands()) >= 20
    assert documented_commands()[:2] == ["make imagenette IMAGES=imagenette2-320.tgz", "make demo"]
    for path in DOCUMENTS:
        for picture in re.findall(r"(?:\]\(|src=\")([^)\"]+\.png)", path.read_text()):
            assert (path.parent / picture).stat().st_size < 200_000, picture


def python_example(document: str) -> str:
    (example,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / document).read_text(), re.DOTALL)
    return example


def test_the_loader_s_example_runs(sample_shards: Path, tmp_path: Path) -> None:
    example = python_example("loader.md")
    (tmp_path / "shards").symlink_to(sample_shards)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
