"""Delivery by Graph to another Relay: its strict front door is a Graph of its own."""

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from random import Random

import pytest
from msgspec.structs import replace

from relay.base.message.outcome import Relayed
from relay.base.socket_address import Address
from relay.delivery.smtp.connect import GraphOptions
from relay.store.spool.types import CloudRequest
from relay.transport.routing.routes import Credentials
from tests.support.dev_process import DevProcess
from tests.support.manual_clock import ManualClock
from tests.support.relay_process import until
from tests.unit.delivery.test_graph import Spooled, opened

BOB = "bob@example.test"
MESSAGE = b"Message-ID: <o'1@a.test>\r\nSubject: s\r\nTo: eve@example.test\r\n\r\nbody\r\n"


async def token(*_: object) -> str:
    return "alice"


async def test_a_message_is_sent_once_and_found_again(dev) -> None:
    relay: DevProcess = dev("--no-demo", "--like-graph")
    login = Credentials("alice@example.test", oauth="m365")

    async def attempt(confirm: bool, *requests: CloudRequest) -> tuple[object, Spooled]:
        claim = Spooled(ManualClock(), 1, MESSAGE)
        claim.live, claim.requests = {0: BOB}, requests
        session = await opened(
            Address("127.0.0.1", int(relay.ready["http"][0].rpartition(":")[2])),
            token=token,
            login=login,
            options=GraphOptions(confirm, 10_000),
        )
        [outcome] = await claim.attempt(session)
        session.close()
        return outcome, claim

    outcome, claim = await attempt(True)
    assert isinstance(outcome, Relayed), outcome
    until("Bob has it", lambda: relay.inbox("bob") == ["s"])
    [request] = claim.requests
    until("a copy is in Sent Items", lambda: relay.messages("sentitems"))
    gone = request.draft[:-3] + request.draft[-3:].swapcase()
    for known in (request, replace(request, draft=gone)):
        outcome, _ = await attempt(True, known)
        assert "so it was sent" in outcome.evidence.reply, outcome
    outcome, _ = await attempt(False)
    assert isinstance(outcome, Relayed), outcome
    until("Bob has two", lambda: relay.inbox("bob") == ["s", "s"])
    assert not relay.messages("drafts")
    assert not relay.inbox("eve")


def scanned(*sizes: int) -> bytes:
    """A message with files of these sizes."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "alice@example.test", BOB, "scan"
    message["Message-ID"] = "<scan@a.test>"
    message.set_content("A scan.\n")
    for number, size in enumerate(sizes):
        octets = Random(number).randbytes(size)
        message.add_attachment(octets, "application", "pdf", filename=f"scan {number}.pdf")
    return message.as_bytes(policy=SMTP)


@pytest.mark.parametrize("sizes", [(5_000_000, 2_999_999, 3_000_000), (1000,) * 60])
async def test_each_file_of_a_scan_arrives_as_it_was(dev_module, sizes) -> None:
    relay: DevProcess = dev_module("--no-demo", "--like-graph")
    claim = Spooled(ManualClock(), 1, scanned(*sizes))
    claim.live, claim.size = {0: BOB}, 10_000_000
    session = await opened(
        Address("127.0.0.1", int(relay.ready["http"][0].rpartition(":")[2])),
        token=token,
        login=Credentials("alice@example.test", oauth="m365"),
    )
    [outcome] = await claim.attempt(session)
    session.close()
    assert isinstance(outcome, Relayed), outcome
    assert not claim.noted.uploads
    until("a copy is in Sent Items", lambda: relay.messages("sentitems"))
    [sent, *_] = relay.messages("sentitems")
    assert sent["internetMessageId"] == "<scan@a.test>"
    path = f"/me/messages/{sent['id']}"
    mime = relay.graph("GET", f"{path}/$value").body
    files = [one.get_content() for one in message_from_bytes(mime, policy=SMTP).iter_attachments()]
    assert sorted(files) == sorted(Random(n).randbytes(size) for n, size in enumerate(sizes))
    assert not relay.messages("drafts")
