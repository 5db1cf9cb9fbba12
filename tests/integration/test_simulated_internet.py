"""`relay dev` and its simulated internet: each test recipient ends as it says, by Graph and by SMTP."""

from collections.abc import Sequence

import pytest

from tests.support.dev_process import DevProcess
from tests.support.recipients_by_client import EXPECTED, Expected, SentToAll, subject_for
from tests.support.tables import each_row


def by_graph(relay: DevProcess, sender: str, recipients: Sequence[str]) -> None:
    for recipient in recipients:
        token = sender.partition("@")[0]
        relay.send_mail(token=token, to=[recipient], subject=subject_for(recipient))


def by_smtp(relay: DevProcess, sender: str, recipients: Sequence[str]) -> None:
    for recipient in recipients:
        text = f"From: {sender}\r\nSubject: {subject_for(recipient)}\r\n\r\nHello.\r\n"
        relay.submit(sender, [recipient], text.encode())


CLIENTS = {"alice": by_graph, "bob": by_smtp}


@pytest.fixture(scope="module")
def sent(dev_module) -> SentToAll:
    return SentToAll(dev_module("--no-demo"), CLIENTS)


@pytest.mark.parametrize("client", CLIENTS)
@each_row("expected", EXPECTED)
def test_recipients_end_as_they_say(sent: SentToAll, client: str, expected: Expected) -> None:
    """Those that bounce are reported to the sender; what others accept can be read."""
    sent.check(client, expected)
