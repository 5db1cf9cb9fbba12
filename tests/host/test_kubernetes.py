"""The examples for Kubernetes, run by Docker or Podman with the flags that a kubelet means.

tests/support/kubelet.py has what differs from a kubelet.
"""

import os
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.host.test_container import (
    IMAGE,
    PROBE,
    SEND,
    Container,
    container,  # noqa: F401 - a fixture
    program,  # noqa: F401 - a fixture
)
from tests.support.containers import BASE
from tests.support.kubelet import Pod
from tests.support.long_tests import long
from tests.support.postgres import running_server
from tests.support.relay_config import to_toml
from tests.support.relay_process import ROOT, until

GATE = True
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a kubelet is root")
TEXT = (ROOT / "docs/examples/kubernetes.yaml").read_text()
CLOUD = (ROOT / "docs/examples/kubernetes-cloud.yaml").read_text()
ACCOUNTS = to_toml({"account": [{"address": "ann@example.org", "password": "plain:s3cret"}]})
SECRETS = {
    "relay-dev": {"token": "a-token-of-a-good-length"},
    "relay-m365": {"client-secret": "s3cret"},
    "relay-serve": {"accounts.toml": ACCOUNTS, "smarthost.password": "s3cret"},
    "relay-nodes": {"accounts.toml": ACCOUNTS, "srs-key": "k" * 64},
}
LOCAL = [*SEND[:-4], "--to", "ann@example.org", "--body", "x"]


def started(at: Container, pod: Pod, *first: str) -> None:
    """Start the relay of a pod, after an init container with these words; ask as the probes do."""
    [relay] = pod.spec.get("initContainers", pod.spec["containers"])
    pod.mount()
    options = [*pod.options(relay), IMAGE]
    if first:
        at.do("run", "--rm", "--network=none", *options, *first)
    at.do("run", *at.options, *options, *relay["args"])
    at.until_ready()
    for probe in {"startupProbe", "livenessProbe", "readinessProbe"} & relay.keys():
        path = relay[probe]["httpGet"]["path"]
        assert at.inside("python", "-c", PROBE, path) == "200\n"


def again(at: Container, pod: Pod, *first: str) -> None:
    """Let a new pod have the volumes, as after a drain."""
    at.stop()
    at.do("rm", at.name)
    started(at, pod, *first)


@long
def test_the_job_finds_its_mail(container: Container, tmp_path: Path) -> None:  # noqa: F811
    """By TLS, with the certificate that the sidecar shares, and not its key."""
    pod = Pod(TEXT, "mail-test", tmp_path, SECRETS)
    started(container, pod)
    [test] = pod.spec["containers"]
    options = ["--rm", f"--network=container:{container.name}", *pod.options(test), BASE]
    found = "ann@customer.example has it: captured\n"
    assert container.do("run", *options, *test["command"]) == found
    errors = container.do("run", *options, "cat", "/data/relay/ca/ca.key", code=1)
    assert "Permission denied" in errors


@pytest.mark.parametrize(("name", "text"), [("relay", CLOUD), ("relay-dev", TEXT)])
def test_a_pod_starts_again(container: Container, name: str, text: str, tmp_path: Path) -> None:  # noqa: F811
    pod = Pod(text, name, tmp_path, SECRETS)
    started(container, pod)
    container.inside(*SEND)
    again(container, pod)


@long
def test_the_service_of_a_cluster(container: Container, tmp_path: Path) -> None:  # noqa: F811
    """With a backup, and a pause before the start on a volume that was put back."""
    pod = Pod(TEXT, "relay-serve", tmp_path, SECRETS)
    started(container, pod)
    container.inside(*LOCAL)
    until("it is there", lambda: "delivered" in container.inside("relay", "trace", "last"))
    assert "/var/backups/first: " in container.inside("relay", "backup", "/var/backups/first")
    container.inside("relay", "pause", "delivery", "--until", "2030-01-01T00:00:00Z")
    container.inside(*SEND)
    again(container, pod, "pause", "delivery")
    stats = container.inside("relay", "queue", "stats")
    assert re.search(r"(?s) 0 held.*delivery is paused by .* since \S*Z\n", stats)


@long
def test_three_nodes_have_one_queue(program: str, tmp_path: Path) -> None:  # noqa: F811
    """Their server is at a socket, because pods without a network cannot reach another one."""
    with running_server() as server, ExitStack() as stack:
        text = re.sub(r'url = ".*"', f'url = "{server.create_spool()}"', TEXT)
        nodes, pods = [], []
        for name in ("relay-mailboxes-0", "relay-transport-0", "relay-transport-1"):
            pods.append(Pod(text, name, tmp_path / name, SECRETS))
            nodes.append(Container(program))
            stack.callback(nodes[-1].do, "rm", "--force", nodes[-1].name)
            nodes[-1].options.append(f"--volume={server.folder}:{server.folder}")
            started(nodes[-1], pods[-1])
        again(nodes[1], pods[1])
        assert nodes[2].inside("relay", "queue", "stats").count(" alive ") == 3
        sent = nodes[2].inside(*LOCAL).strip()
        until("it is there", lambda: "delivered" in nodes[0].inside("relay", "trace", sent))
