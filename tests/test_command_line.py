"""Refusals of the parsers: one line on stderr and exit code 2, from every command."""

import pytest
from commands import run_command

COMMANDS = {
    "preprocess.build_shards": "build_shards",
    "training.run": "error",
    "training.evaluate": "error",
    "training.predict": "error",
    "training.export": "error",
    "training.runs": "error",
    "cluster.local": "error",
    "cluster.plan": "error",
    "benchmarks.lrn": "error",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_one_line_with_code_2(command: str) -> None:
    done = run_command(command, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{COMMANDS[command]}: ")
    assert "--help lists" in line
