"""The project as a package in an environment of its own, and the list of its commands."""

import os
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from commands import PROJECT, copy_project, new_environment, run_command

PACKAGES = ("preprocess", "pipeline", "training", "cluster")
NOT_INSTALLED = {"preprocess/images/color_sums.c"}  # bootstrap.sh compiles it
# Code of each kind of file: modules of the root, a package, its subpackages, and files that are no modules.
USED = """
from pathlib import Path
import errors, pipeline.loader, preprocess.manifest, training.models
from training.class_names import name_classes
from training.report.page import environment
network = training.models.build("alexnet-small", 3)
(named,) = name_classes([preprocess.manifest.ClassEntry("n01440764", "n01440764")])
assert named.name == "tench, Tinca tinca"
environment().get_template("report.html.j2")
environment().get_template("comparison.html.j2")
print(Path(training.models.__file__).parents[2])
"""


def python(environment: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [environment / "bin" / "python", *arguments]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("is_editable", [False, True], ids=["copied", "editable"])
def test_it_is_imported_in_a_fresh_environment(is_editable: bool, tmp_path: Path, sample_shards: Path) -> None:
    project, environment = tmp_path / "project", new_environment(tmp_path / "environment")
    copy_project(project)
    uv = (PROJECT / ".uv" / "bin" / "uv", "pip", "install", "--python", environment, "--no-deps", "--offline")
    target = ("--no-build-isolation", *(["--editable"] if is_editable else []), ".")
    done = subprocess.run([*uv, *target], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "shards").symlink_to(sample_shards)
    done = python(environment, "-c", USED, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    assert done.stdout == f"{project if is_editable else site}\n"
    done = python(environment, "-m", "training", cwd=elsewhere)
    assert "  python -m training.evaluate  " in done.stdout
    if not is_editable:
        tracked = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, text=True)
        files = {name for name in tracked.splitlines() if name.startswith(tuple(f"{name}/" for name in PACKAGES))}
        modules = {path.name for path in PROJECT.glob("*.py")}
        missing = {name for name in files | modules if not (site / name).exists()}
        assert missing == NOT_INSTALLED, "pyproject.toml names what is no module"
        names = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["py-modules"]
        assert {f"{name}.py" for name in names} == modules


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks"])
def test_a_package_prints_its_commands(package: str) -> None:
    done = run_command(package)
    assert (done.returncode, done.stderr) == (0, "")
    guard = 'if __name__ == "__main__":'
    runnable = {path.stem for path in (PROJECT / package).glob("*.py") if guard in path.read_text()}
    listed = dict(line.split(maxsplit=3)[2:] for line in done.stdout.splitlines() if line.startswith("  python -m "))
    assert set(listed) == {f"{package}.{name}" for name in runnable - {"usual_build"}}
    assert all(len(purpose) > 15 for purpose in listed.values())
    if package == "pipeline":
        assert done.stdout == "pipeline has no commands: it is a library, which docs/loader.md describes\n"


def test_a_command_after_the_package_is_corrected() -> None:
    done = run_command("training", "evaluate", "--run", "x")
    message = "error: python -m training takes no 'evaluate'; use python -m training.evaluate\n"
    assert (done.returncode, done.stderr) == (2, message)
    done = run_command("cluster", "up")
    assert (done.returncode, done.stderr) == (
        2,
        "error: python -m cluster takes no 'up'; use python -m cluster.local, python -m cluster.plan\n",
    )
    assert run_command("training", "--help").stdout == run_command("training").stdout
