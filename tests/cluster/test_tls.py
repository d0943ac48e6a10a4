"""Hosts that talk over TLS: the same training, and nobody without the certificate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hosts
import pytest
from hosts import Hosts
from trainings import ACROSS, Outcome, assert_same, outcome, training

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]
PLAIN = {"RAY_USE_TLS": "0"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if reason := hosts.missing():
        pytest.skip(reason)
    cluster = Hosts(tmp_path_factory.mktemp("shared"), encrypted=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


def test_hosts_with_the_certificate_train_together(cluster: Hosts, four_classes: Path, undisturbed: Outcome) -> None:
    log = cluster.submit(*training(four_classes, cluster.shared, *ACROSS)).result()
    assert_same(outcome(log, cluster.shared), undisturbed)


def test_the_key_is_readable_by_its_owner_only(cluster: Hosts) -> None:
    assert (cluster.shared / "tls.key").stat().st_mode & 0o077 == 0


def test_a_client_without_the_certificate_is_refused(cluster: Hosts) -> None:
    listing = "import ray; ray.init(address='10.77.0.2:6379'); print('joined', len(ray.nodes()))"
    asked = cluster.one.start("timeout", "60", "python", "-c", listing, **PLAIN)
    said, _ = asked.communicate()
    assert asked.returncode != 0
    assert "joined" not in said


def test_mlflow_answers_by_https_only(cluster: Hosts) -> None:
    fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1] + '://10.77.0.2:5000/health').read())"
    trusted = {"SSL_CERT_FILE": str(cluster.shared / "tls.crt")}
    assert "OK" in cluster.one.run("python", "-c", fetch, "https", **trusted)
    plain = cluster.one.start("python", "-c", fetch, "http")
    plain.communicate(timeout=60)
    assert plain.returncode != 0
