"""Programs that say graph.microsoft.com, as they are: they reach `relay dev` by HTTPS_PROXY."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import INSTALLED, node, run
from tests.support.dev_process import DevProcess

AIOHTTP = """
import aiohttp, asyncio

async def main():
    fields = {"Authorization": "Bearer alice"}
    message = {"subject": "SUBJECT", "toRecipients": [{"emailAddress": {"address": "TO"}}]}
    async with aiohttp.ClientSession(trust_env=True, headers=fields) as session:
        url = "https://graph.microsoft.com/v1.0/me/sendMail"
        async with session.post(url, json={"message": message}) as answer:
            assert answer.status == 202

asyncio.run(main())
"""
SDK = """
import asyncio
from azure.identity import ClientSecretCredential
from msgraph import GraphServiceClient
from tests.clients import graph_sdk

async def main():
    credential = ClientSecretCredential("contoso", "shop@example.test", "any secret")
    mailbox = GraphServiceClient(credential).users.by_user_id("alice@example.test")
    assert (await mailbox.get()).mail == "alice@example.test"
    await mailbox.send_mail.post(graph_sdk.mail("SUBJECT", to="TO"))
    page = await mailbox.messages.get()
    found = page.additional_data["@odata.context"]
    assert found.startswith("https://graph.microsoft.com/v1.0/")

asyncio.run(main())
"""
# By the module that a program imports. Each sends SUBJECT to TO, in the name of alice.
PROGRAMS = {"aiohttp": AIOHTTP, "msgraph": SDK}
JAVASCRIPT = """
const { ClientSecretCredential } = require('@azure/identity');
const credential = new ClientSecretCredential('contoso', 'shop@example.test', 'any secret');
credential.getToken('https://graph.microsoft.com/.default').then(
  (found) => process.exit(found.token ? 0 : 1),
  (error) => { console.error(error); process.exit(1); },
);
"""


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    return dev_module("--no-demo")


def run_with(dev: DevProcess, words: list[str], folder: Path) -> None:
    """Run a program with what `relay dev` prints."""
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
    variables = {
        "HTTPS_PROXY": f"http://{dev.ready['http'][0]}",
        "NO_PROXY": "localhost,127.0.0.1",
        "PYTHONPATH": str(INSTALLED.parent),
        **dict.fromkeys(names, dev.ready["bundle"]),
    }
    run(words, folder, **variables)


@pytest.mark.parametrize("module", PROGRAMS)
def test_python(dev: DevProcess, tmp_path: Path, module: str) -> None:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"make clients installs {module}")
    to = f"{module.replace('.', '-')}@customer.example"
    program = PROGRAMS[module].replace("SUBJECT", f"from {module}").replace("TO", to)
    run_with(dev, [sys.executable, "-c", program], tmp_path)
    (arrived,) = dev.until_messages(to, 1)
    assert arrived["subject"] == f"from {module}"


def test_azure_identity_for_javascript(dev: DevProcess, tmp_path: Path) -> None:
    run_with(dev, [node(), "-e", JAVASCRIPT], tmp_path)
