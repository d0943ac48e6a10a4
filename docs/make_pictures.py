"""Make the pictures of README.md: `python -m docs.make_pictures`, after `make demo`.

It needs Chromium (`apt-get install chromium`), which nothing else in this project needs.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from mlflow.tracking import MlflowClient
from PIL import Image

from cluster.services import free_ports
from command_line import CommandParser
from docs.data_path import draw_data_path
from training.cli import run_command

TIDY_METRICS = """
document.querySelectorAll('button[aria-label*=lose]').forEach(button => button.click());
[...document.querySelectorAll('*')].filter(one => one.textContent.startsWith('train (')).at(-1)?.scrollIntoView();
document.head.insertAdjacentHTML('beforeend', '<style>.modebar { display: none !important }</style>');
"""
"""Script that closes MLflow's assistant, shows the curves and hides their tools."""
CHART = ".js-plotly-plot"


def screenshot(address: str, picture: Path, width: int, height: int, ready: str = "body", script: str = "") -> None:
    """Save the page at `address`, after it has an element `ready` and `script` has run in it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("error: Chromium is missing; use `apt-get install chromium`")
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}"]
        options += [f"--remote-debugging-port={port}", f"--user-data-dir={profile}", "about:blank"]
        browser = subprocess.Popen([chromium, *options], stderr=subprocess.DEVNULL)
        try:
            wait_for(f"http://127.0.0.1:{port}/json/version", browser)
            picture.write_bytes(asyncio.run(_capture(port, address, ready, script)))
        finally:
            browser.terminate()
            browser.wait()


async def _capture(port: int, address: str, ready: str, script: str) -> bytes:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            tab = next(target for target in await answer.json(content_type=None) if target["type"] == "page")
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as chromium:

            async def call(method: str, **parameters: object) -> dict[str, Any]:
                await chromium.send_json({"id": 1, "method": method, "params": parameters})
                while (reply := await chromium.receive_json()).get("id") != 1:
                    pass
                return reply["result"]

            await call("Page.navigate", url=address)
            found: dict[str, Any] = {}
            while not found.get("value"):
                await asyncio.sleep(1)
                found = (await call("Runtime.evaluate", expression=f"!!document.querySelector('{ready}')"))["result"]
            await call("Runtime.evaluate", expression=script)
            await asyncio.sleep(5)  # for what the script has changed
            return base64.b64decode((await call("Page.captureScreenshot"))["data"])


def mlflow_page(store: str, run: str, picture: Path) -> None:
    """Serve `store` for as long as it takes to save the metrics page of `run`."""
    experiment = MlflowClient(store).get_run(run).info.experiment_id
    (port,) = free_ports(1)
    server = subprocess.Popen(["mlflow", "ui", "--backend-store-uri", store, "--port", str(port), "--workers", "1"])
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/health", server)
        page = f"{address}/#/experiments/{experiment}/runs/{run}/model-metrics?workflowType=machine_learning"
        screenshot(page, picture, 1300, 1160, CHART, TIDY_METRICS)
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    """Return once `address` answers; exit if `server` has ended before."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"error: {address} does not answer: its server has ended")


def main(arguments: Sequence[str]) -> None:
    """Write the four pictures, each with at most 256 colours."""
    parser = CommandParser(prog="python -m docs.make_pictures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="data set of the run (default: shards)")
    parser.add_argument("--report", type=Path, default=Path("reports/demo"), help="its report (default: reports/demo)")
    parser.add_argument("--kernels", type=Path, help="report that the kernels are taken from (default: --report)")
    parser.add_argument("--store", default="sqlite:///mlflow.db", help="MLflow store (default: sqlite:///mlflow.db)")
    parser.add_argument("--run", required=True, help="id of the run whose metrics are shown")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images", help="folder of the pictures")
    options = parser.parse_args(arguments)
    output: Path = options.output
    shutil.copy((options.kernels or options.report) / "pictures" / "conv1-kernels.png", output)
    screenshot((options.report / "report.html").resolve().as_uri(), output / "report.png", 1200, 1000)
    draw_data_path(options.shards, output / "report.png", output / "data-path.png")
    mlflow_page(options.store, options.run, output / "mlflow.png")
    for picture in output.glob("*.png"):
        Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
