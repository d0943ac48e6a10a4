"""The Kubernetes manifests of deploy/, rendered and held against the schemas of Kubernetes and KubeRay."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from commands import PROJECT
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

KUBERNETES = PROJECT / "deploy" / "kubernetes"
VERSIONS = ("1.30", "1.37")
"""Oldest and newest version of Kubernetes that the manifests are valid in."""
ROOTS = ("overlays/cpu", "overlays/cpu/jobs", "overlays/gpu", "overlays/gpu/jobs")

Manifest = dict[str, Any]


@functools.cache
def render(root: str) -> str:
    """Return what `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("rendering needs kubectl, which is not installed: Debian's package kubernetes-client")
    command = ["kubectl", "kustomize", str(KUBERNETES / root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(root: str) -> list[Manifest]:
    return list(yaml.safe_load_all(render(root)))


def written() -> dict[str, Manifest]:
    """Return every manifest as it lies in its file, by file, kind and name; without kustomize's own files."""
    found = {}
    for path in sorted([*(KUBERNETES / "base").glob("*.yaml"), *(KUBERNETES / "jobs").glob("*.yaml")]):
        for manifest in yaml.safe_load_all(path.read_text()):
            if isinstance(manifest, dict) and manifest["kind"] != "Kustomization":
                name = f"{path.relative_to(KUBERNETES)} {manifest['kind']} {manifest['metadata']['name']}"
                found[name] = manifest
    return found


def validate(manifest: Manifest, version: str) -> None:
    """Raise `jsonschema.ValidationError` unless the manifest is valid, unknown fields included."""
    _validator(manifest["apiVersion"], manifest["kind"], version).validate(manifest)


@functools.cache
def _validator(api: str, kind: str, version: str) -> jsonschema.Draft202012Validator:
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    kubernetes = schema_contents(f"{folder}/_definitions.json", version)
    kuberay = json.loads((Path(__file__).parent / "kuberay.json").read_text())
    registry = Registry().with_resources(
        [(schema["$id"], Resource.from_contents(schema)) for schema in (kubernetes, kuberay)]
    )
    if api == "ray.io/v1":
        schema = {"$ref": f"{kuberay['$id']}#/$defs/{kind}"}
    else:
        group, _, number = api.rpartition("/")
        name = "-".join(part for part in (kind.lower(), group.partition(".")[0], number) if part)
        schema = schema_contents(f"{folder}/{name}.json", version)
        # Its references are relative to the definitions.
        schema = {**schema, "$id": kubernetes["$id"].replace("_definitions", name)}
    return jsonschema.Draft202012Validator(schema, registry=registry)


def pod_templates(manifest: Manifest) -> Iterator[Manifest]:
    """Yield every pod template within a manifest."""
    for value in _mappings(manifest):
        for name in ("template", "submitterPodTemplate"):
            if isinstance(value.get(name), dict) and "spec" in value[name]:
                yield value[name]


def _mappings(value: Any) -> Iterator[Manifest]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _mappings(part)


def containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]
