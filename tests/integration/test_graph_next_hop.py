"""Delivery by Graph to another Relay: its strict front door is a Graph of its own."""

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
