"""What `relay dev` shows at its start: one message through the seven steps, one that bounces.

On the path: a client of the development relay, by its public interfaces, and a reader of journeys.
Holds: it shows what really happened: every line comes from the message's own journey.
Fails: DemonstrationError that says which step did not come.
Standards: none.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from relay.accounts.directory import DOMAIN
from relay.app.commands.send import DraftToSend, send_by_graph
from relay.app.daemon import Daemon
from relay.journeys.events import Step
from relay.mailbox.query import MessageQuery
from relay.mailbox.types import WellKnown
from relay.message.lifecycle import FINAL, State

LOOKED_AT_MAX = 1000
_LOOKED_AT = 50  # at first; more when all of them are new
_PAUSE_S = 0.1  # so that a burst is read once

Show = Callable[[dict[str, Any], dict[str, Any]], None]


@dataclass(slots=True)
class _ShownMessage:
    """What is known of a message: its steps by digest, since they may become known in any order."""

    steps: set[int] = field(default_factory=set)
    settled: bool = False


class Follower:
    """Remembers what was shown. `show` gets the journey and the step."""

    def __init__(self, daemon: Daemon, show: Show) -> None:
        self._daemon = daemon
        self._show = show
        self._seen: OrderedDict[str, _ShownMessage] = OrderedDict()
        self._ignored: frozenset[str] = frozenset()
        self._settled = 0

    def ignore(self, names: frozenset[str]) -> None:
        """Neither show nor count these messages; `names` are submission ids or queue ids."""
        self._ignored = names

    async def run(self, *, until_settled: int | None = None) -> None:
        """Follow until cancelled, or until so many messages have come to an end.

        A captured message has: nothing more happens to it. Reports do not count.
        """
        while True:
            count = self._daemon.changes.count
            await self.look()
            if until_settled is not None and self._settled >= until_settled:
                return
            await self._daemon.changes.beyond(count)
            await asyncio.sleep(_PAUSE_S)  # sleeps: reads a burst of events once

    async def look(self, *, quietly: bool = False) -> None:
        """Show what is new; `quietly` only remembers it."""
        for journey in reversed(await self._recent()):
            name = name_of(journey)
            if name in self._ignored:
                continue
            seen = self._seen.setdefault(name, _ShownMessage())
            self._seen.move_to_end(name)
            for step in sorted(journey["steps"], key=lambda step: str(step["at"])):
                digest = hash(msgspec.json.encode(step))
                if digest not in seen.steps and not quietly:
                    self._show(journey, step)
                seen.steps.add(digest)
            if not seen.settled and is_settled(journey):
                seen.settled = True
                self._settled += not quietly
        while len(self._seen) > 2 * LOOKED_AT_MAX:
            self._seen.popitem(last=False)

    async def _recent(self) -> list[dict[str, Any]]:
        """The newest messages, back to one that was seen before."""
        limit = _LOOKED_AT
        while True:
            found = await self._daemon.journeys.recent(account=None, state="", limit=limit)
            names = {name_of(journey) for journey in found}
            if len(found) < limit or limit >= LOOKED_AT_MAX or names & self._seen.keys():
                return found
            limit = min(4 * limit, LOOKED_AT_MAX)


def name_of(journey: dict[str, Any]) -> str:
    """Return the submission id of a message, or the queue id of one that came by SMTP."""
    return str(journey["submission_id"] or journey["id"])


def is_settled(journey: dict[str, Any]) -> bool:
    """Whether a message, if it is no report, has come to where nothing more happens by itself."""
    states = [one["state"] for one in journey["recipients"]]
    ends = FINAL | {State.CAPTURED}
    return bool(journey["sender"] and states) and all(state in ends for state in states)


_TIMEOUT_S = 15.0
_ALICE = f"alice@{DOMAIN}"
_TOKEN = "alice"  # noqa: S105 - a development token is the name


class DemonstrationError(Exception):
    """A step did not happen."""


@dataclass(frozen=True, slots=True)
class DemonstratedMessage:
    """A journey and where to look at what it left behind."""

    title: str
    journey: dict[str, Any]
    mailbox: Path
    report_subject: str = ""


async def demonstrate(
    daemon: Daemon, show: Callable[[DemonstratedMessage], None]
) -> frozenset[str]:
    """Send two messages as alice and show their journeys.

    Return the names (follow.name_of) of both messages and of the report. Raises
    DemonstrationError.
    """
    welcome = DraftToSend(
        _ALICE, (f"bob@{DOMAIN}", "friend@elsewhere.test"), "Seven steps", "Hello from Relay.\n"
    )
    delivered = await _send(daemon, welcome, until=_is_delivered)
    bobs = daemon.settings.mailboxes.root / DOMAIN / "bob"
    show(DemonstratedMessage("one message, seven steps", delivered, bobs))

    refused = DraftToSend(
        _ALICE, ("friend@elsewhere.test",), "Try this", "Just run it.\n",
        attachments=(("setup.exe", b"MZ not really a program"),),
    )  # fmt: skip
    bounced = await _send(daemon, refused, until=_is_reported)
    subject = await _report_subject(daemon)
    alices = daemon.settings.mailboxes.root / DOMAIN / "alice"
    show(DemonstratedMessage("one message that bounces", bounced, alices, report_subject=subject))
    reports = {
        str(step["detail"]["report_id"])
        for step in bounced["steps"]
        if step["step"] == Step.REPORT and "report_id" in step["detail"]
    }
    return frozenset({name_of(delivered), name_of(bounced), *reports})


async def _send(
    daemon: Daemon, draft: DraftToSend, *, until: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    address = daemon.http_servers[0].bound[0]
    graph_id = await asyncio.to_thread(send_by_graph, address, draft, token=_TOKEN)
    return await _wait(daemon, graph_id, until)


async def _wait(
    daemon: Daemon, key: str, until: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    found: dict[str, Any] | None = None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                seen = daemon.changes.count
                found = await daemon.journeys.journey(key, account=None)
                if found is not None and until(found):
                    return found
                await daemon.changes.beyond(seen)
    except TimeoutError:
        done = [step["name"] for step in found["steps"]] if found else []
        raise DemonstrationError(
            f"the message {key} came only so far: {', '.join(done) or 'nowhere'}"
        ) from None


def _is_delivered(journey: dict[str, Any]) -> bool:
    states = [one["state"] for one in journey["recipients"]]
    return states == ["delivered", "captured"] and _has_steps(journey, 6)


def _is_reported(journey: dict[str, Any]) -> bool:
    return _has_steps(journey, 5) and any(step["step"] == Step.REPORT for step in journey["steps"])


def _has_steps(journey: dict[str, Any], last: int) -> bool:
    """Whether steps 1 to `last` are all there: step 4 is written a moment after transport's."""
    return {step["step"] for step in journey["steps"]} >= set(range(1, last + 1))


async def _report_subject(daemon: Daemon) -> str:
    """The newest report in alice's Inbox, once it is there."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                seen = daemon.changes.count
                newest = MessageQuery(folder_id=WellKnown.INBOX, top=1)
                page = await daemon.store.query_messages(_ALICE, newest)
                if page.messages:
                    return page.messages[0].properties.subject
                await daemon.changes.beyond(seen)
    except TimeoutError:
        raise DemonstrationError("no report came into alice's Inbox") from None
