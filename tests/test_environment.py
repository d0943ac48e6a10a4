"""The environment is the lock's, Pillow is pillow-simd, and Ray uploads only the code."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import PIL
import PIL._imaging
import pytest
from commands import PROJECT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

LOCK = (PROJECT / "requirements.lock").read_text()


def locked() -> dict[str, str]:
    """Return name and version of all that the lock asks for on this interpreter."""
    requirements = [Requirement(line.rstrip(" \\")) for line in LOCK.splitlines() if not line.startswith(" ")]
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate()
    }


def test_the_lock_names_exact_versions_with_hashes_and_no_address() -> None:
    blocks = LOCK.replace("\\\n", "").splitlines()
    assert len(blocks) > 100
    for block in blocks:
        assert re.match(r"[\w.-]+==[\w.!+-]+ ", block), block
        assert "--hash=sha256:" in block, block
    assert not re.search(r"://|@|--\w*(index|links|host)", LOCK)


def test_the_lock_satisfies_the_project() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    versions = locked()
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_what_is_installed_is_what_the_lock_says() -> None:
    # Only its own folder: Ray puts what it carries along on the path.
    found = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    assert {canonicalize_name(distribution.name): distribution.version for distribution in found} == locked()


def test_pillow_is_pillow_simd_and_nothing_else() -> None:
    assert importlib.metadata.packages_distributions()["PIL"] == ["pillow-simd"]
    assert PIL.__version__ == importlib.metadata.version("pillow-simd")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("pillow")


@pytest.mark.skipif("avx2" not in Path("/proc/cpuinfo").read_text().split(), reason="a processor without AVX2")
def test_pillow_simd_is_built_with_avx2() -> None:
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("objdump is missing")
    code = subprocess.check_output([objdump, "-d", PIL._imaging.__file__], text=True)
    assert "%ymm" in code


def test_a_ray_job_s_upload_is_the_code_alone(tmp_path: Path) -> None:
    code = [
        ".gitignore",
        "Makefile",
        "README.md",
        "cluster/local.py",
        "pipeline/loader.py",
        "preprocess/shards.py",  # a module, not the folder of the same name
        "pyproject.toml",
        "requirements.lock",
        "training/models/alexnet.py",
        "training/run.py",
    ]
    rest = [
        ".cluster/auth_token",
        ".cluster/local.json",
        ".git/objects/pack/all.pack",
        ".mypy_cache/3.11/cache.db",
        ".pytest_cache/README.md",
        ".ruff_cache/0.1/file",
        ".uv/bin/uv",
        ".venv/bin/python",
        ".venv/lib/python3.11/site-packages/torch/__init__.py",
        "benchmarks/__pycache__/loader.pyc",
        "data/imagenet/train/n01440764/image.JPEG",
        "imagenet.tar",
        "mlartifacts/1/run/artifacts/last/model.pt",
        "mlflow.db",
        "mlflow.db-journal",
        "mlruns/1/meta.yaml",
        "reports/demo/report.html",
        "runs/id/epoch-0001/model.pt",
        "shards-tiny/manifest.json",
        "shards/manifest.json",
        "shards/mean.npy",
        "shards/train-000000.idx",
        "shards/train-000000.tar",
        "somewhere/train-000000.tar",
        "training/models/__pycache__/alexnet.pyc",
        "uv.lock",
    ]
    project, upload = tmp_path / "project", tmp_path / "upload.zip"
    for name in code + rest:
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    shutil.copy(PROJECT / ".gitignore", project / ".gitignore")

    create_package(str(project), upload, include_gitignore=True, excludes=get_runtime_env_default_excludes())

    assert sorted(zipfile.ZipFile(upload).namelist()) == sorted(code)
