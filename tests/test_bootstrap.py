"""`bootstrap.sh`: one line for what is missing, and an environment that is whole or not there.

Machines that lack something are made of a PATH of our own; packages are small wheels in a folder, installed by the real
uv, without a network.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import PROJECT

PYTHON = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
TOOLS = ("bash", "cat", "dirname", "flock", "grep", "head", "id", "mkdir", "mv", "readlink", "rm", "sha256sum", "uname")
COLOR_SUMS = "preprocess/images/color_sums.c"
COMPILERS = ("cc", "c++", "as", "ld")


@dataclass
class Machine:
    """A project folder with a lock, and the programs that a bootstrap finds."""

    folder: Path
    programs: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        return self.folder / ".venv" / "bin" / "python"

    def program(self, name: str, script: str) -> None:
        """Put a shell script in the place of a program."""
        path = self.programs / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!{shutil.which('bash')}\n{script}\n")
        path.chmod(0o755)

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.folder / "bootstrap.sh")],
            env={"PATH": str(self.programs), "HOME": str(self.folder), **self.variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def bootstrap(self) -> subprocess.CompletedProcess[str]:
        process = self.start()
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def lock(self, version: str) -> None:
        """Ask for this version of the package `probe`."""
        wheel = self.folder / "wheels" / f"probe-{version}-py3-none-any.whl"
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        (self.folder / "requirements.lock").write_text(f"probe=={version} \\\n    --hash=sha256:{digest}\n")

    def probe(self) -> str:
        """Return the version of `probe` that the environment imports."""
        return subprocess.check_output([self.python, "-c", "import probe; print(probe.version)"], text=True).strip()

    def whole(self) -> bool:
        return (self.folder / ".venv" / ".bootstrapped").exists()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine that has all it takes."""
    folder, programs = tmp_path / "project", tmp_path / "bin"
    (folder / ".uv").mkdir(parents=True)
    programs.mkdir()
    for name in (*TOOLS, *COMPILERS):
        found = shutil.which(name)
        assert found is not None, name
        (programs / name).symlink_to(found)
    (programs / "python3").symlink_to(PYTHON)
    (folder / ".uv" / "bin").symlink_to(PROJECT / ".uv" / "bin")
    shutil.copy(PROJECT / "bootstrap.sh", folder)
    (folder / COLOR_SUMS).parent.mkdir(parents=True)
    shutil.copy(PROJECT / COLOR_SUMS, folder / COLOR_SUMS)
    (folder / "pyproject.toml").write_text("[tool.uv]\nno-index = true\nfind-links = ['wheels']\n")
    for version in ("1.0", "2.0"):
        write_wheel(folder / "wheels", version)
    machine = Machine(folder, programs, {"UV_CACHE_DIR": str(tmp_path / "cache")})
    machine.lock("1.0")
    return machine


def write_wheel(folder: Path, version: str) -> None:
    folder.mkdir(exist_ok=True)
    info = f"probe-{version}.dist-info"
    files = {
        "probe.py": f"version = '{version}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: probe\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"probe-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def refusal(machine: Machine) -> str:
    """Return the one line with which the bootstrap refuses; nothing has been installed then."""
    done = machine.bootstrap()
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert not (machine.folder / ".venv").exists()
    return line.removeprefix("bootstrap: ")


def test_another_platform_is_refused(machine: Machine) -> None:
    machine.program("uname", '[ "$1" = -s ] && echo Linux || echo aarch64')
    assert refusal(machine).startswith("this is Linux aarch64; the wheels of DALI and torch need Linux x86_64")


def test_an_old_python_is_named_with_the_way_out(machine: Machine) -> None:
    machine.program("python3", "echo 0 3.10.13 /usr/bin/python3.10")
    line = refusal(machine)
    assert line.startswith("needs Python 3.11 to 3.14, found python3 is 3.10.13")
    assert "make PYTHON=" in line


def test_the_python_that_was_asked_for_must_run(machine: Machine) -> None:
    machine.variables["PYTHON"] = "/no/such/python"
    assert "no /no/such/python that runs" in refusal(machine)


def test_an_older_python3_gives_way_to_a_newer_one_beside_it(machine: Machine) -> None:
    machine.program("python3", "echo 0 3.10.13 /usr/bin/python3.10")
    (machine.programs / "python3.12").symlink_to(PYTHON)
    assert machine.bootstrap().returncode == 0


def test_a_python_without_pip_is_refused(machine: Machine, tmp_path: Path) -> None:
    (machine.folder / ".uv" / "bin").unlink()
    (tmp_path / "shadow" / "pip").mkdir(parents=True)
    (tmp_path / "shadow" / "pip" / "__init__.py").write_text("raise ImportError")
    machine.variables["PYTHONPATH"] = str(tmp_path / "shadow")
    assert refusal(machine).startswith(f"{PYTHON} has no pip, which fetches uv: ")


def test_a_missing_c_compiler_is_named(machine: Machine) -> None:
    (machine.programs / "cc").unlink()
    line = refusal(machine)
    assert line.startswith("needs a C compiler to build pillow-simd, 'cc' does not work: ")
    assert "apt-get install -y gcc" in line


def test_a_missing_cpp_compiler_is_one_warning(machine: Machine) -> None:
    (machine.programs / "c++").unlink()
    done = machine.bootstrap()
    assert done.returncode == 0
    assert done.stderr.count("warning: no C++ compiler") == 1
    assert "C++" not in machine.bootstrap().stderr


def test_missing_headers_are_named_with_the_command_to_type(machine: Machine, tmp_path: Path) -> None:
    hide_headers(machine, "jpeglib.h", tmp_path / "headers")
    machine.program("id", "echo 1000")
    assert refusal(machine) == (
        "pillow-simd needs libjpeg and zlib headers: sudo apt-get install -y libjpeg-dev zlib1g-dev"
    )


def test_missing_headers_are_installed_by_root_on_debian(machine: Machine, tmp_path: Path) -> None:
    headers, log = tmp_path / "headers", tmp_path / "apt.log"
    hide_headers(machine, "jpeglib.h", headers)
    machine.program("id", "echo 0")
    # A fresh image: nothing can be installed before the package lists are there.
    machine.program(
        "apt-get",
        f'echo "$1" "${{@: -2}}" >>{log}\n'
        f"if [ $1 = update ]; then >{tmp_path / 'lists'}; else [ -e {tmp_path / 'lists'} ] && >{headers}; fi",
    )
    assert machine.bootstrap().returncode == 0
    assert log.read_text().splitlines()[1].startswith("update")
    assert log.read_text().splitlines()[2] == "install libjpeg-dev zlib1g-dev"
    assert machine.probe() == "1.0"


def hide_headers(machine: Machine, header: str, until: Path) -> None:
    """Have a C compiler that finds this header only once the file `until` is there."""
    machine.program(
        "cc",
        f"program=$(cat)\n"
        f'[[ "$program" != *{header}* || -e {until} ]] || exit 1\n'
        f'exec {shutil.which("cc")} "$@" <<<"$program"',
    )


def test_missing_headers_of_formats_are_one_warning(machine: Machine, tmp_path: Path) -> None:
    hide_headers(machine, "webp", tmp_path / "never")
    machine.program("id", "echo 1000")
    done = machine.bootstrap()
    assert done.returncode == 0
    (warning,) = [line for line in done.stderr.splitlines() if "will not be readable" in line]
    assert warning.startswith("bootstrap: warning: images in WEBP")
    assert re.search(r"sudo apt-get install -y libwebp-dev.*, then \./bootstrap\.sh$", warning)
    assert " webp" not in (machine.folder / ".venv" / ".bootstrapped").read_text().splitlines()[0]
    assert machine.bootstrap().stderr == ""


def test_missing_headers_of_formats_are_installed_by_root_on_debian(machine: Machine, tmp_path: Path) -> None:
    log = tmp_path / "apt.log"
    hide_headers(machine, "webp", tmp_path / "headers")
    machine.program("id", "echo 0")
    machine.program("apt-get", f'echo "$1" "${{@: -1}}" >>{log}\n>{tmp_path / "headers"}')
    assert machine.bootstrap().returncode == 0
    assert log.read_text().splitlines()[0] == "install libwebp-dev"
    assert " with webp" in (machine.folder / ".venv" / ".bootstrapped").read_text().splitlines()[0]


def test_the_second_time_nothing_is_done(machine: Machine) -> None:
    assert machine.bootstrap().returncode == 0
    assert machine.probe() == "1.0"
    for name in COMPILERS:
        machine.program(name, "exit 1")
    (machine.folder / ".uv" / "bin").unlink()
    again = machine.bootstrap()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_a_changed_lock_is_followed_in_place(machine: Machine) -> None:
    machine.bootstrap()
    (machine.folder / ".venv" / "mine").touch()
    machine.lock("2.0")
    assert machine.bootstrap().returncode == 0
    assert machine.probe() == "2.0"
    assert (machine.folder / ".venv" / "mine").exists()


def test_the_extension_is_compiled_and_follows_its_source(machine: Machine) -> None:
    assert machine.bootstrap().returncode == 0
    location = [machine.python, "-c", "import twotower_color_sums as module; print(module.__file__)"]
    module = Path(subprocess.check_output(location, text=True).strip())
    assert module.is_relative_to(machine.folder / ".venv")
    first = module.stat().st_ino
    with (machine.folder / COLOR_SUMS).open("a") as source:
        source.write("/* changed */\n")
    assert machine.bootstrap().returncode == 0
    assert module.stat().st_ino != first


def test_an_extension_that_does_not_compile_leaves_no_finished_environment(machine: Machine) -> None:
    (machine.folder / COLOR_SUMS).write_text("#error broken\n")
    done = machine.bootstrap()
    assert done.returncode == 1
    assert f"bootstrap: cc could not compile {COLOR_SUMS}, see above" in done.stderr
    assert not machine.whole()


def test_a_moved_project_gets_its_environment_anew(machine: Machine) -> None:
    machine.bootstrap()
    machine.folder = machine.folder.rename(machine.folder.with_name("moved"))
    assert machine.bootstrap().returncode == 0
    assert str(machine.folder) in (machine.folder / ".venv" / "bin" / "activate").read_text()


def test_what_does_not_match_its_hash_is_not_installed(machine: Machine) -> None:
    good = (machine.folder / "requirements.lock").read_text()
    (machine.folder / "requirements.lock").write_text(good.replace("sha256:", "sha256:0")[:-2] + "\n")
    assert machine.bootstrap().returncode != 0
    assert not machine.whole()
    machine.lock("1.0")
    assert machine.bootstrap().returncode == 0
    assert machine.probe() == "1.0"


@pytest.mark.parametrize("first", [True, False], ids=["the first time", "bringing it up to date"])
def test_an_interrupted_bootstrap_starts_over(machine: Machine, tmp_path: Path, first: bool) -> None:
    if not first:
        assert machine.bootstrap().returncode == 0
        machine.lock("2.0")
    began = tmp_path / "began"
    uv = machine.folder / ".uv" / "bin"
    uv.unlink()
    uv.mkdir()
    stopping = Machine(machine.folder, uv)
    real = PROJECT / ".uv" / "bin" / "uv"
    stopping.program("uv", f'[ "$1" = pip ] || exec {real} "$@"\n>.venv/half\n>{began}\nread -r <>/dev/zero forever')

    process = machine.start()
    deadline = time.monotonic() + 120
    while not began.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not machine.whole()

    shutil.rmtree(uv)
    uv.symlink_to(PROJECT / ".uv" / "bin")
    assert machine.bootstrap().returncode == 0
    assert machine.probe() == ("1.0" if first else "2.0")
    assert not (machine.folder / ".venv" / "half").exists()
