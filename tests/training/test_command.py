"""Interrupted commands of `training`."""

import signal
import subprocess
import sys

import pytest
from commands import PROJECT

SLEEPER = """
import sys, time
from training.cli import run_command

def main(arguments):
    print("up", flush=True)
    time.sleep(60)

sys.exit(run_command(main))
"""


@pytest.mark.parametrize("trap", ["", "trap '' INT;"], ids=["foreground", "background job of a script"])
def test_sigterm_ends_it_with_143_and_a_line(trap: str) -> None:
    process = subprocess.Popen(
        ["bash", "-c", f'{trap} exec "$0" -c "$1"', sys.executable, SLEEPER],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    try:
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (143, "interrupted\n")
