"""deploy/kubernetes: rendered, valid for Kubernetes and KubeRay, consistent in itself, and as locked up as it says."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from manifests import (
    KUBERNETES,
    ROOTS,
    VERSIONS,
    Manifest,
    containers,
    pod_templates,
    render,
    rendered,
    validate,
    written,
)

from cluster.sizing.constants import load_constants
from cluster.sizing.estimate import Estimate, Job, choose_layout, estimate
from cluster.sizing.networks import NETWORKS

FREE = {"labels", "matchLabels", "annotations", "data", "limits", "requests", "rayStartParams", "clusterSelector"}
"""Mappings whose keys are the user's."""
USED_SECRETS = {"postgres": {"password"}, "ray-token": {"auth_token"}}
BUCKET_SECRET = {"object-store": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}}
UNITS = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}


def templates(root: str) -> list[Manifest]:
    return [template for manifest in rendered(root) for template in pod_templates(manifest)]


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\D*)", text).groups()
    return float(number) * UNITS[unit]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", written())
def test_a_manifest_is_valid_as_it_is_written(name: str, version: str) -> None:
    validate(written()[name], version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("root", ROOTS)
def test_all_that_is_rendered_is_valid(root: str, version: str) -> None:
    manifests = rendered(root)
    assert len(manifests) == (3 if root.endswith("jobs") else 16)
    for manifest in manifests:
        validate(manifest, version)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "twotower"


def is_service_selector(key: str, value: Any) -> bool:
    return key == "selector" and "matchLabels" not in value


def mutations(value: Any, root: Any) -> Iterator[Manifest]:
    """Yield copies of `root`, each with a field that does not exist in another of its mappings."""
    if isinstance(value, dict):
        value["wrongField"] = "x"
        yield copy.deepcopy(root)
        del value["wrongField"]
        parts = [part for key, part in value.items() if key not in FREE and not is_service_selector(key, part)]
    else:
        parts = value if isinstance(value, list) else []
    for part in parts:
        yield from mutations(part, root)


@pytest.mark.parametrize("root", ["overlays/gpu", "overlays/gpu/jobs"])
def test_a_wrong_field_anywhere_is_found(root: str) -> None:
    count = 0
    for manifest in rendered(root):
        for wrong in mutations(manifest, manifest):
            count += 1
            with pytest.raises(jsonschema.ValidationError, match="wrongField"):
                validate(wrong, VERSIONS[-1])
    assert count > 50


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "replicas"), "two"),
        ("RayCluster", ("spec", "authOptions", "mode"), "password"),
        ("RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("StatefulSet", ("spec", "template", "spec", "containers", 0, "ports", 0, "containerPort"), "5432"),
        ("NetworkPolicy", ("spec", "policyTypes"), "Ingress"),
    ],
)
def test_a_value_of_another_type_is_found(kind: str, path: tuple[str | int, ...], value: object) -> None:
    manifest = next(manifest for manifest in rendered("overlays/gpu") if manifest["kind"] == kind)
    *parents, last = path
    place: Any = manifest
    for part in parents:
        place = place[part]
    assert last in place or isinstance(last, int)
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest, VERSIONS[-1])


@pytest.mark.parametrize("root", ROOTS)
def test_every_pod_has_no_rights_that_it_does_not_need(root: str) -> None:
    assert templates(root)
    for template in templates(root):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in containers(template):
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
            assert re.search(r":\d[\w.-]+$|@sha256:[0-9a-f]{64}$", one["image"]), "an exact version"
            requests, limits = one["resources"]["requests"], one["resources"]["limits"]
            assert {"cpu", "memory"} <= set(requests)
            assert limits["memory"] == requests["memory"]


@pytest.mark.parametrize("root", ROOTS)
def test_no_secret_is_in_a_manifest(root: str) -> None:
    manifests = rendered(root)
    assert "Secret" not in {manifest["kind"] for manifest in manifests}
    used: dict[str, set[str]] = {}
    for template in templates(root):
        for variable in (variable for one in containers(template) for variable in one.get("env", [])):
            if re.search(r"TOKEN|PASSWORD(?!_FILE)|SECRET|ACCESS_KEY", variable["name"]):
                reference = variable["valueFrom"]["secretKeyRef"]
                used.setdefault(reference["name"], set()).add(reference["key"])
    used |= {
        volume["secret"]["secretName"]: {item["key"] for item in volume["secret"]["items"]}
        for template in templates(root)
        for volume in template["spec"].get("volumes", [])
        if "secret" in volume
    }
    clusters = [manifest["spec"]["authOptions"] for manifest in manifests if manifest["kind"] == "RayCluster"]
    assert clusters == ([] if root.endswith("jobs") else [{"mode": "token", "secretName": "ray-token"}])
    expected = {"ray-token": {"auth_token"}} if root.endswith("jobs") else {**BUCKET_SECRET, "postgres": {"password"}}
    assert used == expected
    assert not re.search(r"://[^/\s]*:[^/@\s]+@", render(root)), "no address has a password"


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_all_that_is_referred_to_exists(device: str) -> None:
    manifests = rendered(f"overlays/{device}") + rendered(f"overlays/{device}/jobs")
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    pods = [template for manifest in manifests for template in pod_templates(manifest)]
    labels = [template["metadata"]["labels"] for template in pods]
    for template in pods:
        spec = template["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        volumes = {volume["name"] for volume in spec["volumes"]}
        for one in containers(template):
            mounted = {mount["name"] for mount in one["volumeMounts"]}
            assert mounted <= volumes | {"data"}
            assert "/tmp" in {mount["mountPath"] for mount in one["volumeMounts"]}, "the root is not writable"
            for source in one.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in names
    for manifest in manifests:
        if manifest["kind"] == "Service":
            assert any(manifest["spec"]["selector"].items() <= label.items() for label in labels)
        if manifest["kind"] == "NetworkPolicy":
            for selector in pod_selectors(manifest["spec"]):
                assert any(selector.items() <= label.items() for label in labels), manifest["metadata"]["name"]
        if manifest["kind"] == "RayJob":
            assert ("RayCluster", manifest["spec"]["clusterSelector"]["ray.io/cluster"]) in names


def pod_selectors(spec: Manifest) -> Iterator[dict[str, str]]:
    """Yield the labels of all pods of this namespace that a policy speaks of."""
    peers = [peer for rule in spec.get("ingress", []) for peer in rule["from"]]
    peers += [peer for rule in spec.get("egress", []) for peer in rule["to"]]
    for peer in [spec, *(peer for peer in peers if "namespaceSelector" not in peer and "podSelector" in peer)]:
        selector = peer["podSelector"]
        yield selector.get("matchLabels", {})
        for expression in selector.get("matchExpressions", []):
            yield from ({expression["key"]: value} for value in expression["values"])


def test_what_is_not_listed_is_cut_off() -> None:
    policies = {
        manifest["metadata"]["name"]: manifest["spec"]
        for manifest in rendered("overlays/gpu")
        if manifest["kind"] == "NetworkPolicy"
    }
    assert policies["nothing-else"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    open_to = {
        name: sorted(
            str(port["port"]) for rule in spec.get("ingress", []) for port in rule.get("ports", [{"port": "*"}])
        )
        for name, spec in policies.items()
        if "ingress" in spec
    }
    assert open_to == {"ray": ["*"], "ray-dashboard": ["8265"], "mlflow": ["5000"], "postgres": ["5432"]}
    assert policies["ray"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": {"app": "ray"}}}]}]


def planned(device: str, batch: int, **numbers: int) -> list[Estimate]:
    constants = load_constants()
    job = Job(
        network=NETWORKS["alexnet-owt"],
        device=constants.devices[device],
        batch=batch,
        precision="bfloat16",
        compiled=False,
        nodes=1,
        network_gbps=None,
        **numbers,
    )
    return [estimate(job, choose_layout(job, "data"), constants)]


def worker(device: str) -> Manifest:
    (cluster,) = (manifest for manifest in rendered(f"overlays/{device}") if manifest["kind"] == "RayCluster")
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    return container["resources"]["requests"]


def test_the_workers_have_what_the_planner_asks_for() -> None:
    gpu, cpu = worker("gpu"), worker("cpu")
    gpus = int(gpu["nvidia.com/gpu"])
    (on_gpus,) = planned("h100", 1024, gpus=gpus, cores=192)
    # Beside decoding, each of the processes computes on a core of its own.
    assert on_gpus.decode_cores + gpus <= quantity(gpu["cpu"]) <= 1.2 * (on_gpus.decode_cores + gpus)
    (on_cpus,) = planned("epyc", 512, gpus=1, cores=int(cpu["cpu"]))
    assert on_cpus.memory_bytes < quantity(cpu["memory"])
    constants = load_constants()
    imagenet = constants.image_bytes.value * constants.train_images.value
    for requests in (gpu, cpu):
        assert imagenet < quantity(requests["ephemeral-storage"]) <= 1.6 * imagenet, "all shards, and what Ray spills"


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_jobs_are_commands_of_this_project(device: str) -> None:
    from preprocess import build_shards
    from training import evaluate, run

    jobs = {job["metadata"]["name"]: job["spec"] for job in rendered(f"overlays/{device}/jobs")}
    settings = next(manifest for manifest in written().values() if manifest["kind"] == "ConfigMap")["data"]
    assert list(jobs) == ["build", "evaluate", "train"]
    for name, module in (("build", build_shards), ("evaluate", evaluate), ("train", run)):
        line = re.sub(r"\$(\w+)", lambda variable: settings[variable[1]], jobs[name]["entrypoint"])
        python, flag, program, *arguments = shlex.split(line)
        assert (python, flag, program) == ("python", "-m", module.__name__)
        assert jobs[name]["shutdownAfterJobFinishes"] is False, "the cluster is not the job's"
        if name == "build":
            assert build_shards._parser().parse_args(arguments).ray == "auto"
        if name == "evaluate":
            assert evaluate.parse(arguments).which == "best"
        if name == "train":
            config = run.parse(arguments)
            gpus = int(worker(device).get("nvidia.com/gpu", 0))
            assert (config.device, config.parallel.data) == (("cuda", gpus) if device == "gpu" else ("cpu", 2))
            assert config.compile == "off" or device == "cpu", "the image has no compiler"


def test_the_readme_s_commands_are_about_what_there_is() -> None:
    text = (KUBERNETES / "README.md").read_text()
    for root, label in re.findall(
        r"kubectl (?:apply|kustomize) -k? ?(?:deploy/kubernetes/)?(overlays/\S+)(?: -l (\S+))?", text
    ):
        found = rendered(root)
        if label:
            key, _, value = label.partition("=")
            found = [one for one in found if one["metadata"].get("labels", {}).get(key) == value]
        assert found, (root, label)
    for secret, keys in (USED_SECRETS | BUCKET_SECRET).items():
        assert f"create secret generic {secret}" in text
        for key in keys:
            assert key in text
    for setting in yaml.safe_load((KUBERNETES / "base" / "settings.yaml").read_text())["data"]:
        assert f"`{setting}`" in text
