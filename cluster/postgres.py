"""The PostgreSQL server of a local cluster, which keeps MLflow's runs: its own data folder, password and Unix socket.

It listens on no port. Its data outlive `down`: they are in `.cluster/postgres`, the password in `.cluster/pgpass`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomic_files import atomic_write
from errors import InputError

NAME = "mlflow"
"""The database and its role, the only ones that may connect."""
PORT = 5432
"""Part of the socket's name, and of nothing else."""
DEBIAN_BINARIES = "/usr/lib/postgresql"
PROBE_SECONDS = 10.0
HBA = f"local {NAME} {NAME} scram-sha-256\n"
"""pg_hba.conf: other users of the machine reach the socket's folder, so it asks for the password."""


@dataclass(frozen=True)
class Installation:
    """PostgreSQL as it is installed here."""

    binaries: Path
    """Folder with postgres, initdb and pg_isready."""
    user: str | None
    """User that the server runs as; None: the one who runs this. PostgreSQL refuses to run as root."""


def find_installation() -> Installation:
    """Find the newest server and the user for it.

    Raises:
        InputError: the server or the Python driver is not installed.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise InputError("--postgres needs the package psycopg, which is not installed; use: pip install '.[postgres]'")
    folders = sorted(Path(DEBIAN_BINARIES).glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    if on_path is not None:
        folders.append(Path(on_path).resolve().parent)
    for folder in folders:
        if all((folder / name).is_file() for name in ("postgres", "initdb", "pg_isready")):
            return Installation(folder, _server_user())
    raise InputError("--postgres needs PostgreSQL's server, which is not installed; use: apt-get install -y postgresql")


def _server_user() -> str | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


def data_folder(state_folder: Path) -> Path:
    """Return the folder of the server's data."""
    return state_folder / "postgres"


def password_file(state_folder: Path) -> Path:
    """Return the file from which libpq reads the password (PGPASSFILE): it is in no address and no process list."""
    return state_folder / "pgpass"


def prepare_data(installation: Installation, state_folder: Path) -> None:
    """Make the data folder, with its password, unless there is one.

    Raises:
        InputError: the server's user cannot enter the folder, or the password of existing data is missing.
        OSError: PostgreSQL could not make it; the message ends with its last line.
    """
    if installation.user is not None and _run(installation, "test", "-x", str(state_folder)).returncode != 0:
        raise InputError(
            f"--postgres: user {installation.user}, as whom the server runs, cannot enter {state_folder}; use a "
            "project folder that others may enter (chmod o+x), or do not run this as root"
        )
    data, passwords = data_folder(state_folder), password_file(state_folder)
    if data.exists():
        if not passwords.exists():
            raise InputError(f"{passwords} is missing: it has the password of {data}; restore it, or remove both")
        return
    new = state_folder / "postgres.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    _give(new, installation.user)
    password = secrets.token_hex(32)
    _create_database(installation, new, password)
    atomic_write(passwords, f"*:*:{NAME}:{NAME}:{password}\n".encode(), mode=0o600)
    new.rename(data)


def _create_database(installation: Installation, data: Path, password: str) -> None:
    _checked(
        installation,
        *("initdb", "--pgdata", str(data), "--username", NAME, "--auth", "reject"),
        *("--encoding", "UTF8", "--locale", "C", "--data-checksums"),
    )
    (data / "pg_hba.conf").write_text(HBA)
    # Without a server there is nobody else to connect, and the password is on stdin only.
    statements = f"ALTER ROLE {NAME} PASSWORD '{password}'\nCREATE DATABASE {NAME}\n"
    output = _checked(installation, "postgres", "--single", "-D", str(data), "postgres", stdin=statements)
    if "ERROR" in output:  # its exit code is 0 all the same
        raise OSError(f"postgres could not make the database: {output.strip().splitlines()[-1]}")


def _checked(installation: Installation, program: str, *arguments: str, stdin: str = "") -> str:
    done = _run(installation, str(installation.binaries / program), *arguments, stdin=stdin)
    if done.returncode != 0:
        last = (done.stdout.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"{program} failed with exit code {done.returncode}: {last}")
    return done.stdout


def _run(installation: Installation, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command as the server's user, in a folder that it can enter; return it with stderr in stdout."""
    return subprocess.run(
        command,
        cwd="/",
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **as_user(installation.user),
    )


def as_user(user: str | None) -> dict[str, Any]:
    """Return the arguments with which `subprocess` runs a command as `user`, with no other rights; None: none."""
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def make_socket_folder(installation: Installation, parent: str) -> str:
    """Make a folder for the socket in `parent`, which the path of a socket has to be short for; return its path."""
    folder = tempfile.mkdtemp(prefix="twotower-postgres-", dir=parent)
    _give(folder, installation.user)
    return folder


def _give(folder: str | Path, user: str | None) -> None:
    if user is not None:
        shutil.chown(folder, user)


def server_command(installation: Installation, state_folder: Path, socket_folder: str) -> tuple[str, ...]:
    """Return the command of the server."""
    settings = {"listen_addresses": "", "unix_socket_directories": socket_folder, "port": str(PORT)}
    return (
        *(str(installation.binaries / "postgres"), "-D", str(data_folder(state_folder))),
        *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
    )


def database_uri(socket_folder: str) -> str:
    """Return the address of MLflow's database, without its password."""
    return f"postgresql+psycopg://{NAME}@/{NAME}?host={socket_folder}&port={PORT}"


def is_ready(installation: Installation, socket_folder: str) -> bool:
    """Return True if the server takes connections."""
    # User and database only keep complaints about others out of the log: it asks for no password.
    options = {"--host": socket_folder, "--port": str(PORT), "--username": NAME, "--dbname": NAME}
    command = [
        str(installation.binaries / "pg_isready"),
        "--quiet",
        *(part for item in options.items() for part in item),
    ]
    try:
        return subprocess.run(command, check=False, timeout=PROBE_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False
