"""An MLflow server of a benchmark, which can be killed and started again over the same store."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

START_SECONDS = 600.0


class MlflowServer:
    """A server on a free port of this machine; `mlflow.db`, `mlartifacts/` and `server.log` in `folder` are its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self._folder = folder
        self.store = f"sqlite:///{folder}/mlflow.db"
        """Address of the store that needs no server."""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers; raise `RuntimeError` if it does not."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", self.uri.rpartition(":")[2]]
        command += ["--backend-store-uri", self.store, "--default-artifact-root", str(self._folder / "mlartifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            time.sleep(0.1)
        raise RuntimeError(f"the MLflow server does not answer; its output is in {self._folder}/server.log")

    def kill(self) -> None:
        """SIGKILL it with its processes, if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
