"""nodemailer and msgraph-sdk send to each test recipient of `relay dev`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.clients.conftest import node, run
from tests.support.dev_process import DevProcess
from tests.support.recipients_by_client import EXPECTED, SentToAll, subject_for

pytest.importorskip("msgraph", reason="make clients installs msgraph-sdk")

from tests.clients.graph_sdk import client, mail

NODEMAILER = """\
const [port, sender, ...recipients] = process.argv.slice(2);
const transport = require('nodemailer').createTransport({ host: '127.0.0.1', port });
(async () => {
  for (const to of recipients) {
    await transport.sendMail({ from: sender, to, subject: `For ${to}`, text: 'Hello' });
  }
})();
"""


@pytest.fixture
def trust() -> None:
    """No program here uses TLS."""


def test_recipients_have_the_outcomes_that_they_name(
    subtests: pytest.Subtests, tmp_path: Path, dev
) -> None:
    program = node("nodemailer")
    script = tmp_path / "send.js"
    script.write_text(NODEMAILER)

    def by_nodemailer(relay: DevProcess, sender: str, recipients: Sequence[str]) -> None:
        run([program, str(script), str(relay.smtp_address()[1]), sender, *recipients], tmp_path)

    def by_msgraph_sdk(relay: DevProcess, sender: str, recipients: Sequence[str]) -> None:
        async def send() -> None:
            sdk = client("http://{}:{}".format(*relay.http), sender)
            for recipient in recipients:
                await sdk.me.send_mail.post(mail(subject_for(recipient), to=recipient))

        asyncio.run(send())

    clients = {"nodemailer": by_nodemailer, "msgraph-sdk": by_msgraph_sdk}
    relay = dev("--no-demo")
    sent = SentToAll(relay, clients)
    for name in clients:
        for expected in EXPECTED:
            with subtests.test(client=name, recipient=expected.address):
                sent.check(name, expected)
