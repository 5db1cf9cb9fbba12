"""Published libraries whose hosts are Microsoft's: a message by each, from sending to filing.

Each sends from alice's mailbox to an address of its own, whose mailbox it then works through.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import INSTALLED, node
from tests.clients.test_unmodified import run_with
from tests.support.dev_process import DevProcess
from tests.support.relay_process import until

OFFICE365 = """
import io, sys
from office365.graph_client import GraphClient
client = GraphClient(tenant="contoso").with_client_secret("shop@example.test", "any secret")
address = sys.argv[2]

def send():
    messages = client.users["alice@example.test"].messages
    draft = messages.add(subject="Report", body="See the file.", to_recipients=[address])
    draft.add_file_attachment("report.txt", "hello", "text/plain").execute_query()
    draft.send().execute_query()

def work():
    mailbox = client.users[address]
    unread = mailbox.mail_folders["inbox"].messages.filter("isRead eq false and subject eq 'Report'")
    [message] = unread.top(5).get().execute_query()
    message.set_property("isRead", True).update().execute_query()  # sends all that it has read
    message.set_property("categories", ["done"]).update().execute_query()
    [file] = message.attachments.get().execute_query()
    assert (file.name, file.get_property("contentBytes")) == ("report.txt", "aGVsbG8=")
    message.reply("Thanks.").execute_query()
    moved = message.move("archive").execute_query()
    content = io.BytesIO()
    mailbox.messages[moved.id].download(content).execute_query()
    assert b"Subject: Report" in content.getvalue()

{"send": send, "work": work}[sys.argv[1]]()
"""
DJANGO = """
import sys
from django.conf import settings
settings.configure(
    EMAIL_BACKEND="msgraphbackend.MSGraphBackend", MSGRAPH_TENANT_ID="contoso",
    MSGRAPH_CLIENT_ID="shop@example.test", MSGRAPH_CLIENT_SECRET="any secret")
from django.core.mail import EmailMultiAlternatives
message = EmailMultiAlternatives(
    "Report", "See the file.", "alice@example.test", [sys.argv[1]], cc=["cc-" + sys.argv[1]])
message.attach_alternative("<b>See the file.</b>", "text/html")
message.attach("report.txt", "hello", "text/plain")
assert message.send() == 1
"""
APPRISE = """
import pathlib, sys
import apprise
pathlib.Path("report.txt").write_text("hello")
target = "o365://alice@example.test/contoso/shop/secret/" + sys.argv[1]
sender = apprise.Apprise()
assert sender.add(f"{target}?cc=cc-{sys.argv[1]}")
assert sender.notify(title="Report", body="See <b>the file</b>", attach=["report.txt"])
"""
MAILSUITE = """
import sys
from mailsuite.mailbox.graph import MSGraphConnection

def connect(mailbox):
    return MSGraphConnection(
        "ClientSecret", mailbox, "shop@example.test", "any secret", None, None, "contoso", "token",
        True)

def send(address):
    sender = connect("alice@example.test")
    sender.send_message(
        "alice@example.test", [address], subject="Report", plain_message="See the file.",
        attachments=[("report.txt", b"hello")])

def work(address):
    mailbox = connect(address)
    [message] = mailbox.fetch_messages("INBOX", since="2020-01-01T00:00:00Z")
    assert "Subject: Report" in mailbox.fetch_message(message, mark_read=True)
    mailbox.create_folder("Archive/Reports")
    mailbox.move_message(message, "Archive/Reports")
    mailbox.rename_folder("Archive/Reports", "Archive/Done")
    assert mailbox.folder_exists("Archive/Done") and not mailbox.folder_exists("Archive/Reports")
    [message] = mailbox.fetch_messages("Archive/Done")
    mailbox.move_message(message, "Archive")
    mailbox.delete_folder("Archive/Done")

{"send": send, "work": work}[sys.argv[1]](sys.argv[2])
"""
PNP = """
import { ClientSecretCredential } from '@azure/identity';
import { graphfi, GraphBrowser } from '@pnp/graph';
import { InjectHeaders } from '@pnp/queryable';
import '@pnp/graph/attachments/index.js';
import '@pnp/graph/mail/index.js';
import '@pnp/graph/users/index.js';

const [url, step, address] = process.argv.slice(-3);
const credential = new ClientSecretCredential('contoso', 'shop@example.test', 'any secret');
const { token } = await credential.getToken('https://graph.microsoft.com/.default');
const graph = graphfi().using(
  GraphBrowser({ baseUrl: `${url}/v1.0` }), InjectHeaders({ Authorization: `Bearer ${token}` }));

if (step === 'send') {
  await graph.users.getById('alice@example.test').sendMail({
    subject: 'Report',
    body: { contentType: 'html', content: '<b>See the file.</b>' },
    toRecipients: [{ emailAddress: { address } }],
    attachments: [{
      '@odata.type': '#microsoft.graph.fileAttachment', name: 'report.txt', contentBytes: 'aGVsbG8=',
    }],
  });
} else {
  const mailbox = graph.users.getById(address);
  const [{ id }] = await mailbox.mailFolders.getById('inbox').messages
    .filter("isRead eq false and subject eq 'Report'").top(5).select('id')();
  const message = mailbox.messages.getById(id);
  const [file] = await message.attachments();
  if (file.contentBytes !== 'aGVsbG8=') throw new Error('another file');
  await message.update({ isRead: true, categories: ['done'] });
  await message.reply({ comment: 'Thanks.' });
  await message.move('archive');
}
"""


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    return dev_module("--no-demo")


def python(dev: DevProcess, name: str, program: str, folder: Path, *words: str) -> None:
    """Run a program of a Python library that may not be installed."""
    pytest.importorskip(name, reason=f"make clients installs {name}")
    run_with(dev, [sys.executable, "-c", program, *words], folder)


def mailbox(dev: DevProcess, address: str, folder: str) -> list[dict[str, Any]]:
    """The messages in a folder of an address, with their attachments."""
    path = f"/users/{address}/mailFolders/{folder}/messages?$expand=attachments"
    answer = dev.graph("GET", path)
    assert answer.status == 200, answer.body
    return list(answer.json()["value"])


def arrived(dev: DevProcess, address: str) -> dict[str, Any]:
    """Wait for the only message to an address."""
    dev.until_messages(address, 1)
    [message] = mailbox(dev, address, "inbox")
    return message


def check_attachment(message: dict[str, Any]) -> None:
    [file] = message["attachments"]
    assert (file["name"], file["contentBytes"]) == ("report.txt", "aGVsbG8=")


def check_filed(dev: DevProcess, address: str, *, folder: str = "archive") -> dict[str, Any]:
    """The only message of an address is read, and no longer in the inbox."""
    assert mailbox(dev, address, "inbox") == []
    [message] = mailbox(dev, address, folder)
    assert message["isRead"]
    return message


def test_office365_rest_python_client(dev: DevProcess, tmp_path: Path) -> None:
    address = "office365@customer.example"
    python(dev, "office365", OFFICE365, tmp_path, "send", address)
    check_attachment(arrived(dev, address))
    python(dev, "office365", OFFICE365, tmp_path, "work", address)
    assert check_filed(dev, address)["categories"] == ["done"]
    [reply] = dev.until_messages("alice@example.test", 1)
    assert reply["subject"] == "RE: Report"


def test_django_msgraphbackend(dev: DevProcess, tmp_path: Path) -> None:
    """It finds the user by proxyAddresses, and sends MIME."""
    address = "django@customer.example"
    python(dev, "msgraphbackend", DJANGO, tmp_path, address)
    message = arrived(dev, address)
    check_attachment(message)
    assert message["body"]["content"].strip() == "<b>See the file.</b>"
    assert arrived(dev, f"cc-{address}")["toRecipients"] == message["toRecipients"]


def test_apprise(dev: DevProcess, tmp_path: Path) -> None:
    address = "apprise@customer.example"
    python(dev, "apprise", APPRISE, tmp_path, address)
    message = arrived(dev, address)
    check_attachment(message)
    assert message["subject"] == "Report"
    assert message["from"]["emailAddress"] == {"name": "Apprise", "address": "alice@example.test"}
    [copy] = arrived(dev, f"cc-{address}")["ccRecipients"]
    assert copy["emailAddress"]["address"] == f"cc-{address}"


def test_mailsuite(dev: DevProcess, tmp_path: Path) -> None:
    """What parsedmarc reads mailboxes with."""
    address = "mailsuite@customer.example"
    python(dev, "mailsuite", MAILSUITE, tmp_path, "send", address)
    check_attachment(arrived(dev, address))
    python(dev, "mailsuite", MAILSUITE, tmp_path, "work", address)
    check_attachment(check_filed(dev, address))


def test_pnp_graph(dev: DevProcess, tmp_path: Path) -> None:
    """Node 20's fetch follows no HTTPS_PROXY, so the library is given the relay's URL."""
    found = node("@pnp/graph")
    (tmp_path / "node_modules").symlink_to(INSTALLED / "node_modules")
    program, address = tmp_path / "program.mjs", "pnp@customer.example"
    program.write_text(PNP)
    url = f"https://localhost:{dev.ready['https'][0].rpartition(':')[2]}"
    run_with(dev, [found, str(program), url, "send", address], tmp_path)
    check_attachment(arrived(dev, address))
    run_with(dev, [found, str(program), url, "work", address], tmp_path)
    assert check_filed(dev, address)["categories"] == ["done"]
    path = "/users/alice@example.test/messages?$search=%22Thanks%22"
    until("the reply", lambda: dev.graph("GET", path).json()["value"])
