"""The command of the planner."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable

import pytest
from commands import PROJECT, run_command

from cluster.plan import main
from cluster.sizing.check import compare
from cluster.sizing.constants import load_constants

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return code, *capsys.readouterr()

    return call


def test_the_command_prints_time_and_cost(run: Run) -> None:
    code, table, _ = run("--gpus", "8", "--gpu", "h100", "--network", "alexnet", "--batch", "1024")
    assert code == 0
    rate, _ = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+), by the step", table))
    (minutes, _), (cost, _) = re.findall(r"([\d.]+) min", table), re.findall(r"(\d+) USD", table)
    assert float(minutes) == pytest.approx(90 * 1_281_167 / rate / 60, abs=0.1)
    assert float(cost) == pytest.approx(8 * 4.916 * float(minutes) / 60, abs=0.6)
    assert "hybrid parallelism is for alexnet-owt" in table
    assert "price: list price" in table


def test_a_part_of_a_machine_has_its_part_of_the_cores(run: Run) -> None:
    for gpus, nodes, cores in ((8, 1, 96), (4, 1, 48), (16, 2, 192)):
        _, table, _ = run("--gpu", "a100", "--gpus", str(gpus), "--nodes", str(nodes))
        assert re.search(rf"^cores that decode +[\d.]+ of {cores}\b", table, re.MULTILINE)


@pytest.mark.parametrize(
    ("option", "line"), [("--network-gbps 10", "step"), ("--eager", "step"), ("--cores 7", "cores that decode")]
)
def test_an_option_changes_the_estimate(run: Run, option: str, line: str) -> None:
    tables = (run("--nodes", "2", *given)[1] for given in ([], option.split()))
    before, after = (re.search(rf"^{line} .*", table, re.MULTILINE) for table in tables)
    assert before is not None
    assert after is not None
    assert before[0] != after[0]


def test_json_has_the_layouts(run: Run) -> None:
    code, page, _ = run("--network", "alexnet-owt", "--epochs", "10", "--json")
    found = json.loads(page)
    assert code == 0
    assert [one["layout"] for one in found["layouts"]] == [
        {"name": "data", "width": 1},
        {"name": "hybrid", "width": 8},
    ]
    assert list(found["not_possible"]) == ["model"]
    for one in found["layouts"]:
        assert one["hours"] * 3600 * one["images_per_second"] == pytest.approx(10 * 1_281_167)


def test_the_check_prints_each_row_and_each_reason(run: Run) -> None:
    code, table, _ = run("--check")
    assert code == 0
    for one in compare(load_constants()):
        assert re.search(rf"^{re.escape(one.row.what)} .* {re.escape(f'{one.error:+.0%}')} ", table, re.MULTILINE)
        assert one.row.reason in table


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--gpus 0", "argument --gpus: '0' is not a whole number from 1"),
        ("--gpu k80", "argument --gpu: 'k80' is unknown; use h200, h100, a100, p40, gtx580, epyc"),
        (
            "--network vgg",
            "argument --network: 'vgg' is unknown; use alexnet, alexnet-single, alexnet-half, alexnet-owt",
        ),
        ("--network-gbps -1", "argument --network-gbps: '-1' is not a finite number above 0"),
        ("--gpus 3", "--batch is 1024: it does not divide by --gpus 3; use a multiple of it"),
        ("--nodes 3", "--gpus is 8: it does not divide by --nodes 3; use a multiple of it"),
        ("--gpu p40 --nodes 2", "--nodes is 2, but the network between them is unknown; give --network-gbps"),
        ("--gpu epyc", "--gpus is 8: the exchange between CPUs has not been measured; use 1"),
        (
            "--gpu p40 --precision bfloat16",
            "--precision is bfloat16: NVIDIA Tesla P40 has no units for it; use float32",
        ),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: str, complaint: str) -> None:
    code, output, line = run(*arguments.split())
    assert (code, output, line.count("\n")) == (2, "", 1)
    assert line.startswith(f"error: {complaint}")


def test_the_commands_of_the_page_run() -> None:
    page = (PROJECT / "docs" / "cluster.md").read_text()
    commands = re.findall(r"^python -m (cluster\.plan.*)$", page, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        assert run_command(*shlex.split(command)).returncode == 0, command
