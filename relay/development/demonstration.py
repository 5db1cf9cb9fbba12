"""The demonstration of `relay dev`: two messages, and the example that a button in the pages sends.

It sends by the public interfaces, as any client, and shows the journeys that result. It raises
DemonstrationError, which names the step that is missing.
"""

import asyncio
from collections.abc import Callable

from msgspec import Struct

from relay.base.running_relay import DraftToSend, send_by_graph
from relay.development.accounts import DOMAIN
from relay.operation.app.daemon import Daemon
from relay.store.journeys.document import Journey
from relay.store.journeys.events import Step
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.stored_message import WellKnown

_TIMEOUT_S = 15.0
_ALICE = f"alice@{DOMAIN}"
_TOKEN = "alice"  # noqa: S105 - a development token is the name


_EXAMPLE_HTML = """\
<html><body>
<h1>Hello</h1>
<p>Your code is <strong>481516</strong>.</p>
<p><a href="https://customer.example/confirm?code=481516">Confirm your address</a></p>
<p><img src="https://customer.example/opened.png" alt="A remote image, which is not loaded"></p>
</body></html>
"""


class DemonstrationError(Exception):
    """A step of the demonstration did not happen."""


class DemonstratedMessage(Struct, frozen=True):
    """A journey, and the subject of the report on it, "" without a report."""

    title: str
    journey: Journey
    report_subject: str = ""


async def demonstrate(daemon: Daemon, show: Callable[[DemonstratedMessage], None]) -> None:
    """Send two messages as alice and show their journeys. Raises DemonstrationError."""
    welcome = DraftToSend(
        _ALICE, (f"bob@{DOMAIN}", "friend@elsewhere.test"), "Seven steps", "Hello from Relay.\n"
    )
    delivered = await _send(daemon, welcome, until=_is_delivered)
    show(DemonstratedMessage("one message, seven steps", delivered))

    refused = DraftToSend(
        _ALICE,
        ("friend@elsewhere.test",),
        "Try this",
        "Just run it.\n",
        attachments=(("setup.exe", b"MZ not really a program"),),
    )
    bounced = await _send(daemon, refused, until=_is_reported)
    subject = await _report_subject(daemon)
    show(DemonstratedMessage("one message that bounces", bounced, subject))


def example(sender: str, recipient: str) -> DraftToSend:
    """Return the message that the button sends: it is delivered, captured and refused."""
    return DraftToSend(
        sender,
        (recipient, "ann@customer.example", "gone+550@customer.example"),
        "Welcome to Relay",
        "",
        html=_EXAMPLE_HTML,
    )


async def _send(daemon: Daemon, draft: DraftToSend, *, until: Callable[[Journey], bool]) -> Journey:
    address = daemon.http_servers[0].bound[0]
    graph_id = await asyncio.to_thread(send_by_graph, address, draft, token=_TOKEN)
    return await _wait(daemon, graph_id, until)


async def _wait(daemon: Daemon, key: str, until: Callable[[Journey], bool]) -> Journey:
    journey: Journey | None = None
    try:
        async with asyncio.timeout(_TIMEOUT_S):  # real time: a person waits
            while True:
                seen = daemon.base.changes.count
                journey = await daemon.base.journeys.journey(key, account=None)
                if journey is not None and until(journey):
                    return journey
                await daemon.base.changes.wait_beyond(seen)
    except TimeoutError:
        done = [step.name for step in journey.steps] if journey else []
        raise DemonstrationError(
            f"message {key} did not complete; its steps: {', '.join(done) or 'none'}"
        ) from None


def _is_delivered(journey: Journey) -> bool:
    states = [recipient.state for recipient in journey.recipients]
    is_done = states in (["delivered", "captured"], ["delivered", "relayed"])  # with a cloud
    return is_done and _has_steps(journey, 6)


def _is_reported(journey: Journey) -> bool:
    return _has_steps(journey, 5) and any(step.step == Step.REPORT for step in journey.steps)


def _has_steps(journey: Journey, last: int) -> bool:
    """Whether steps 1 to `last` are recorded. Step 4 is recorded after the spool's commit."""
    return {step.step for step in journey.steps} >= set(range(1, last + 1))


async def _report_subject(daemon: Daemon) -> str:
    """Wait for the newest report in alice's Inbox and return its subject."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):  # real time: a person waits
            while True:
                seen = daemon.base.changes.count
                newest = MessageQuery(folder_id=WellKnown.INBOX, top=1)
                page = await daemon.base.store.lists.query(_ALICE, newest)
                if page.messages:
                    return page.messages[0].properties.subject
                await daemon.base.changes.wait_beyond(seen)
    except TimeoutError:
        raise DemonstrationError("no report arrived in alice's Inbox") from None
