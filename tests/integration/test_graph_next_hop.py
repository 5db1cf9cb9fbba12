"""Delivery by Graph to another Relay: its strict front door is a Graph of its own."""

from email import message_from_bytes
from email.policy import SMTP

import pytest
from msgspec.structs import replace

from relay.base.message.outcome import Relayed
from relay.base.socket_address import Address
from relay.store.spool.types import CloudRequest
from relay.transport.routing.routes import Credentials, GraphOptions
from tests.integration.test_dev_cloud import ANN, Cloud
from tests.support.dev_process import DevProcess
from tests.support.long_tests import long
from tests.support.manual_clock import ManualClock
from tests.support.relay_process import until
from tests.support.scans import file_of, scanned
from tests.unit.delivery.test_graph import Spooled, opened

BOB, SCANNER = "bob@example.test", "scan@contoso.example"
MESSAGE = b"Message-ID: <o'1@a.test>\r\nSubject: s\r\nTo: eve@example.test\r\n\r\nbody\r\n"


async def token(*_: object) -> str:
    return "eyJhbGciOiJub25lIn0.eyJhcHBpZCI6InNjYW5uZXIifQ."  # of the application "scanner"


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


@pytest.mark.parametrize("sizes", [(5_000_000, 2_999_999, 3_000_000), (1000,) * 60])
async def test_each_file_of_a_scan_arrives_as_it_was(dev_module, sizes) -> None:
    relay: DevProcess = dev_module("--no-demo", "--like-graph", "--domain=contoso.example")
    claim = Spooled(ManualClock(), 1, scanned(*sizes, sender=SCANNER))
    claim.live, claim.size = {0: BOB}, 10_000_000
    session = await opened(
        Address("127.0.0.1", int(relay.ready["http"][0].rpartition(":")[2])),
        token=token,
        login=Credentials(SCANNER, oauth="m365"),
    )
    [outcome] = await claim.attempt(session)
    session.close()
    assert isinstance(outcome, Relayed), outcome
    assert not claim.noted.uploads
    until("a copy is in Sent Items", lambda: relay.messages("sentitems", token=SCANNER))
    [sent, *_] = relay.messages("sentitems", token=SCANNER)
    assert sent["internetMessageId"] == "<scan@a.test>"
    path = f"/me/messages/{sent['id']}"
    mime = relay.graph("GET", f"{path}/$value", token=SCANNER).body
    files = [one.get_content() for one in message_from_bytes(mime, policy=SMTP).iter_attachments()]
    assert sorted(files) == sorted(file_of(n, size) for n, size in enumerate(sizes))
    assert not relay.messages("drafts", token=SCANNER)


@long
@pytest.mark.parametrize("size", [25_000_000, 102_000_000])  # 35 and 140 MB in base64
def test_the_memory_does_not_grow_with_a_scan(dev, size) -> None:
    relay: DevProcess = dev("--cloud", "--no-demo")
    scans = [relay.submit("alice@example.test", [ANN], scanned(size)) for _ in range(2)]
    idle_bytes = relay.memory_bytes(reset=True)
    small = relay.submit("alice@example.test", [ANN], b"Subject: small\r\n\r\nx\r\n")
    for queue_id in (small, *scans):
        journey = relay.until_final(queue_id)
        [attempt] = journey["recipients"][0]["attempts"]
        assert attempt["outcome"] == "relayed"
    assert relay.memory_bytes() - idle_bytes < 30_000_000
    cloud, user = Cloud(relay), "/v1.0/users/alice@example.test"
    with cloud.client:
        until("copies", lambda: len(cloud.messages("alice@example.test", "sentitems")) == 3)
        assert cloud.messages("alice@example.test", "drafts") == []
        for one in cloud.messages("alice@example.test", "sentitems"):
            files = cloud.client.get(f"{user}/messages/{one['id']}/attachments?$select=id").json()
            for file in files["value"]:
                path = f"{user}/messages/{one['id']}/attachments/{file['id']}/$value"
                assert cloud.client.get(path).content == file_of(0, size)
