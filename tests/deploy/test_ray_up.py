"""deploy/ray-up: the cluster file is what `ray up` takes."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml
from commands import PROJECT
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.sizing.constants import load_constants

FILE = PROJECT / "deploy" / "ray-up" / "aws.yaml"

Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    return yaml.safe_load(FILE.read_text())


def validate(config: Config) -> Config:
    """Do what `ray up` does with a file before it asks the cloud for anything; return it with Ray's defaults."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_takes_the_file(config: Config) -> None:
    prepared = validate(config)
    # Ray's defaults would install another Ray than the image's.
    for name in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[name] == []


@pytest.mark.parametrize(
    "place",
    [
        lambda config: config,
        lambda config: config["auth"],
        lambda config: config["docker"],
        lambda config: config["provider"]["security_group"],
        lambda config: config["available_node_types"]["head"],
        lambda config: config["available_node_types"]["gpu"],
    ],
)
def test_a_wrong_field_is_found(config: Config, place: Callable[[Config], Config]) -> None:
    place(config)["wrong_field"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="wrong_field"):
        validate(config)


def test_a_wrong_value_is_found(config: Config) -> None:
    config["head_node_type"] = "hd"
    with pytest.raises(ValueError, match="must be one of"):
        validate(config)


@pytest.mark.parametrize("name", ["head", "gpu"])
def test_ec2_takes_the_machines(config: Config, name: str) -> None:
    session = pytest.importorskip("botocore.session", reason="EC2's own schema needs boto3, which is not installed")
    from botocore.validate import ParamValidator

    ec2 = session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape

    def problems(machine: Config) -> str:
        return ParamValidator().validate({**machine, "MinCount": 1, "MaxCount": 1}, ec2).generate_report()

    machine = config["available_node_types"][name]["node_config"]
    assert problems(machine) == ""
    assert "wrong_field" in problems({**machine, "wrong_field": 1})
    assert machine["MetadataOptions"]["HttpTokens"] == "required"
    assert machine["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True


def test_it_asks_for_a_token_and_opens_only_ssh(config: Config) -> None:
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[commands] if "ray start" in command]
        assert len(starts) == 1
        assert starts[0].startswith("RAY_AUTH_MODE=token ")
    assert config["file_mounts"] == {"/home/twotower/.ray/auth_token": "~/.ray/auth_token"}
    (permission,) = config["provider"]["security_group"]["IpPermissions"]
    assert (permission["FromPort"], permission["ToPort"]) == (22, 22)
    assert "0.0.0.0/0" not in FILE.read_text()


def test_the_readme_s_training_is_a_command_of_this_project() -> None:
    from training import run

    text = FILE.with_name("README.md").read_text().replace("\\\n", " ")
    (arguments,) = re.findall(r"-- python -m training\.run (.*)", text)
    config = run.parse(shlex.split(arguments))
    assert (config.device, config.parallel.data) == ("cuda", 8), "else it would not wait for its nodes"


def test_the_machine_is_that_of_the_planner(config: Config) -> None:
    constants, worker = load_constants(), config["available_node_types"]["gpu"]
    h100 = constants.devices["h100"]
    assert worker["resources"] == {"CPU": h100.cores, "GPU": h100.gpus_per_node}
    disk = worker["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] * 2**30
    assert disk > 2 * constants.image_bytes.value * constants.train_images.value
