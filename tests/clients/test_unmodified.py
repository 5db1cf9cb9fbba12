"""Programs that say graph.microsoft.com, as they are: they reach `relay dev` by HTTPS_PROXY."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import INSTALLED
from tests.support.dev_process import DevProcess

SDK = """
import asyncio
from azure.identity import ClientSecretCredential
from msgraph import GraphServiceClient
from tests.clients import graph_sdk

async def main():
    credential = ClientSecretCredential("contoso", "shop@example.test", "any secret")
    mailbox = GraphServiceClient(credential).users.by_user_id("alice@example.test")
    assert (await mailbox.get()).mail == "alice@example.test"
    await mailbox.send_mail.post(graph_sdk.mail("unmodified", to="ann@customer.example"))
    page = await mailbox.messages.get()
    found = page.additional_data["@odata.context"]
    assert found.startswith("https://graph.microsoft.com/v1.0/")

asyncio.run(main())
"""
JAVASCRIPT = """
const { ClientSecretCredential } = require('@azure/identity');
const credential = new ClientSecretCredential('contoso', 'shop@example.test', 'any secret');
credential.getToken('https://graph.microsoft.com/.default').then(
  (found) => process.exit(found.token ? 0 : 1),
  (error) => { console.error(error); process.exit(1); },
);
"""


@pytest.fixture(scope="module")
def dev() -> Iterator[DevProcess]:
    with DevProcess() as started:
        yield started


def run(dev: DevProcess, words: list[str], folder: Path) -> None:
    """Run a program with what `relay dev` prints; it must end with 0."""
    bundle = dev.ready["bundle"]
    variables = {
        "HTTPS_PROXY": f"http://{dev.ready['http'][0]}",
        "NO_PROXY": "localhost,127.0.0.1",
        "SSL_CERT_FILE": bundle,
        "REQUESTS_CA_BUNDLE": bundle,
        "NODE_EXTRA_CA_CERTS": bundle,
        "NODE_PATH": str(INSTALLED / "node_modules"),
        "PYTHONPATH": str(INSTALLED.parent),
    }
    done = subprocess.run(
        words, env={"PATH": os.environ["PATH"], "HOME": str(folder)} | variables, cwd=folder,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_msgraph_sdk_with_azure_identity(dev: DevProcess, tmp_path: Path) -> None:
    for name in ("azure.identity", "msgraph"):
        pytest.importorskip(name, reason=f"make clients installs {name}")
    run(dev, [sys.executable, "-c", SDK], tmp_path)
    (arrived,) = dev.until_messages("ann@customer.example", 1)
    assert arrived["subject"] == "unmodified"


def test_azure_identity_for_javascript(dev: DevProcess, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (INSTALLED / "node_modules").is_dir():
        pytest.skip("node and its packages are not installed: make clients")
    run(dev, [node, "-e", JAVASCRIPT], tmp_path)
