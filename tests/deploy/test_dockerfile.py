"""deploy/kubernetes/Dockerfile, as far as it can be checked without Docker: it cannot be built here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import PROJECT

DOCKERFILE = PROJECT / "deploy" / "kubernetes" / "Dockerfile"
COMPILERS = re.compile(r"gcc|g\+\+|clang|build-essential|make|cmake|nvcc|devel|-dev\b")
IMAGE_LIBRARIES = {
    **{"libjpeg": "libjpeg-turbo8", "libz": "zlib1g", "libtiff": "libtiff6", "libavif": "libavif16"},
    **{"libwebp": "libwebp7", "libwebpmux": "libwebpmux3", "libwebpdemux": "libwebpdemux2"},
}
"""Shared libraries that bootstrap.sh lets pillow-simd be linked with, and Ubuntu's packages of them."""


def stages() -> list[list[str]]:
    """Return the instructions of each stage, continued lines joined, comments dropped."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[str]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            found.append([])
        found[-1].append(re.sub(r"\s+", " ", line))
    return found


def copy_as_docker_would(instructions: list[str], folder: Path) -> None:
    """Carry out the COPY instructions, those from another stage left out."""
    for instruction in instructions:
        if not instruction.startswith("COPY ") or "--from" in instruction:
            continue
        *sources, target = instruction.split()[1:]
        for source in (found for pattern in sources for found in sorted(PROJECT.glob(pattern))):
            if source.is_dir():
                shutil.copytree(source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (folder / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / target)


def test_it_starts_from_an_exact_version_and_ends_as_a_user_without_compiler() -> None:
    build, final = stages()
    assert build[0].split()[1] == final[0].split()[1]
    assert re.search(r":\d+\.\d+\.\d+-base-ubuntu\d\d\.\d\d$|@sha256:[0-9a-f]{64}$", final[0].split()[1])
    assert COMPILERS.search(" ".join(build))
    assert not COMPILERS.search(" ".join(final))
    assert [line for line in final if line.startswith("USER")] == ["USER 1000:1000"]
    assert final.index("USER 1000:1000") > max(final.index(line) for line in final if line.startswith(("RUN", "COPY")))
    assert "ENTRYPOINT []" in final


def test_the_build_stage_has_all_that_bootstrap_needs(tmp_path: Path) -> None:
    build, _ = stages()
    copy_as_docker_would(build, tmp_path)
    script = (tmp_path / "bootstrap.sh").read_text()
    contents = re.search(r"\{ cat (.*?); list_format_headers", script)
    assert contents is not None
    for name in contents[1].replace('"$COLOR_SUMS"', re.search(r"^COLOR_SUMS=(\S+)", script, re.MULTILINE)[1]).split():
        assert (tmp_path / name).is_file(), name
    assert "--require-hashes" in script
    assert [line for line in build if "./bootstrap.sh" in line]


def test_the_final_stage_has_all_that_the_commands_need(tmp_path: Path) -> None:
    _, final = stages()
    copy_as_docker_would(final, tmp_path)
    packages = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"][
        "include"
    ]
    assert all((tmp_path / name.rstrip("*")).is_dir() for name in packages)
    tracked = subprocess.check_output(
        ["git", "ls-files", *(name.rstrip("*") for name in packages)], cwd=PROJECT, text=True
    )
    assert [name for name in tracked.splitlines() if not (tmp_path / name).is_file()] == []
    importing = (
        "import training.run, training.launch.launcher, training.evaluate, preprocess.build_shards, cluster.plan"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{importing}; print(training.run.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "training" / "run.py")


def test_the_final_stage_has_the_libraries_that_pillow_is_linked_with() -> None:
    _, final = stages()
    installed = [word for line in final if line.startswith("RUN") for word in line.split()]
    import PIL

    modules = list(Path(PIL.__file__).parent.glob("*.so"))
    libraries = {name for module in modules for name in re.findall(r"NEEDED.*\[(\S+?)\.so", dynamic_section(module))}
    assert "libjpeg" in libraries
    for library in libraries & set(IMAGE_LIBRARIES):
        assert IMAGE_LIBRARIES[library] in installed, library


def dynamic_section(module: Path) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf, which is not installed: Debian's package binutils")
    return subprocess.check_output(["readelf", "--dynamic", module], text=True)


def test_nothing_but_what_is_copied_reaches_the_builder() -> None:
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source
        for stage in stages()
        for line in stage
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert {source.split("/")[0] for source in copied} == allowed
