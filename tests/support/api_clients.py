"""The API in one process: its clients, and the journeys and queue that they ask."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from msgspec.structs import astuple

from relay.base.accounts.account import Account, Role, Scope, UnknownUserError
from relay.base.accounts.usage import AccountUsage
from relay.base.clock import SystemClock
from relay.base.message.nexthop import NextHop
from relay.base.observe.metric_samples import MetricSamples
from relay.base.observe.metrics import Metrics
from relay.base.pauses import Pauses
from relay.base.pressure import Pressure
from relay.front_door.api import ApiDependencies, create_app, create_control_app
from relay.front_door.api.dependencies import Question
from relay.store.journeys.document import Journey
from relay.store.journeys.event_feed import ChangeNotifier
from relay.store.journeys.events import EventCursor
from relay.store.journeys.journey import ListPage, MessageList
from relay.store.journeys.message_list import ListPosition, MessageSearch
from relay.store.spool.queue_commands import CommandReport, CommandResult, EntryList, QueueCommand
from relay.store.spool.types import Selector
from relay.transport.refusals.day_files import RefusalFiles
from tests.support.accounts import TokenAccounts, authentication_of
from tests.support.journeys import made_journey
from tests.support.operator import all_to

ACCOUNTS = {
    "alice": Account("alice@example.test"),
    "bob": Account("bob@example.test"),
    "sender": Account("sender@example.test", scopes=frozenset({Scope.MAIL_SEND})),
    "reader": Account("reader@example.test", scopes=frozenset({Scope.MAIL_READ})),
    "writer": Account("writer@example.test", scopes=frozenset({Scope.MAIL_READ_WRITE})),
    "auditor": Account("auditor@example.test", role=Role.READ, scopes=frozenset()),
    "watcher": Account("watcher@example.test", role=Role.READ),
    "operator": Account("operator@example.test", role=Role.OPERATE),
}


def a_journey(*states: str, name: str = "q1") -> Journey:
    recipients = [{"address": f"{n}@a.test", "state": state} for n, state in enumerate(states)]
    state = states[0] if states else "queued"
    return made_journey(id=name, message_id="<m@a.test>", state=state, recipients=recipients)


@dataclass
class Records:
    """Journeys by key with their owner; `looks` records each query."""

    known: dict[str, tuple[str, Journey]] = field(default_factory=dict)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    looks: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    source: bytes | None = b""
    fault: Exception | None = None
    allowed: asyncio.Event = field(default_factory=asyncio.Event)
    places: Any = None

    async def journey(
        self, key: str, *, account: str | None, added: bool = False
    ) -> Journey | None:
        self.looks.put_nowait(key)
        owner, journey = self.known.get(key, ("", None))
        return journey if account in (None, owner) else None

    async def place_of(self, cursor: EventCursor) -> EventCursor:
        return cursor

    async def search(
        self,
        wanted: MessageSearch,
        *,
        account: str | None,
        limit: int,
        before: ListPosition | None = None,
        lookup_s: float | None = None,
    ) -> MessageList:
        if before is not None:
            return MessageList([], EventCursor(5), older=before)
        self.asked.append((account, wanted, limit))
        self.looks.put_nowait("list")
        found = [
            journey
            for owner, journey in self.known.values()
            if account in (None, owner) and wanted.matches(journey)
        ]
        return MessageList(found, EventCursor(5))

    async def page(self, wanted: MessageSearch, *, account: str | None, limit: int) -> ListPage:
        return ListPage((), None)

    async def near(self, wanted: MessageSearch, *, account: str | None, limit: int) -> Any:
        return (), ()

    async def list(self, selector: Selector, *, limit: int, **_: Any) -> EntryList:
        if self.fault:
            raise self.fault
        self.asked.append((selector, limit))
        return EntryList(
            [{"id": "q1", "entry": 1}], unknown=(one for one in selector.ids if one[0] != "q")
        )

    async def execute(self, order: QueueCommand) -> CommandReport:
        self.asked.append((order,))
        try:
            await self.allowed.wait()
        except asyncio.CancelledError:
            self.asked.append(("given up",))
            raise
        return CommandReport(
            {**dict.fromkeys(CommandResult, 0), CommandResult.DONE: 3}, [{"id": "q1", "entry": 1}]
        )

    async def find(self, journey: Journey, *, reader: str | None) -> bytes | None:
        self.asked.append((journey.id, reader))
        return self.source

    def unlock(self, address: str) -> int:
        if address != "alice@example.test":
            raise UnknownUserError(address)
        self.asked.append(("unlock", address))
        return 2

    async def explain(self, question: Question) -> dict[str, Any]:
        self.asked.append(("explain", *astuple(question)))
        self.looks.put_nowait("explain")
        await self.allowed.wait()
        if self.fault:
            raise self.fault
        return {"address": question.address}

    async def prune(self, older_than_s: float | None, dry_run: bool) -> dict[str, Any]:
        self.asked.append((older_than_s, dry_run))
        return {"ended": True}

    async def count_before_queue(self) -> dict[str, int]:
        return {"scheduled": 1, "converting": 0}

    async def traffic(self, by: str, since_s: float) -> dict[str, Any]:
        return {"by": by, "since_s": since_s}

    async def stats(self) -> dict[str, Any]:
        return {"entries": {"queued": 1}}


@dataclass
class ApiClients:
    http: httpx.AsyncClient
    control: httpx.AsyncClient
    records: Records
    changes: ChangeNotifier
    dependencies: ApiDependencies
    not_ready: str = ""
    pressure: Pressure = field(default_factory=Pressure)

    async def get(self, path: str, token: str = "alice") -> httpx.Response:
        return await self.http.get(path, headers={"authorization": f"Bearer {token}"})


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiClients]:
    records, changes = Records(), ChangeNotifier()
    records.allowed.set()
    dependencies = ApiDependencies(
        journeys=records,
        queue_admin=records,
        stats=records.stats,
        traffic=records.traffic,
        way_to=lambda text: all_to(NextHop.parse(text)),
        target_of=str,
        changes=changes,
        metrics=(metrics := Metrics()),
        samples=MetricSamples(metrics, SystemClock()),
        ready=lambda: made.not_ready,
        clock=SystemClock(),
        pressure=(pressure := Pressure()),
        prune=records.prune,
        sources=records,
        unlock=records.unlock,
        usage=lambda *_account: [AccountUsage("alice@example.test", 3, 3, ())],
        explain=records.explain,
        restored=SimpleNamespace(
            count=lambda: 0,
            count_held=lambda: 0,
            clock=SystemClock(),
            waiting=lambda _drafts: iter(()),
        ),
        submissions=None,
        events=None,
        refusals=RefusalFiles(tmp_path / "refused"),
        impaired=lambda: "",
        pauses=Pauses(tmp_path / "paused.json", SystemClock()),
        webhooks=None,
        suppression=None,
        is_own=None,
    )
    app = create_app(dependencies, authentication_of(TokenAccounts(ACCOUNTS)))
    outside, inside = (
        httpx.ASGITransport(app),
        httpx.ASGITransport(create_control_app(dependencies)),
    )
    async with (
        httpx.AsyncClient(transport=outside, base_url="http://relay.test") as http,
        httpx.AsyncClient(transport=inside, base_url="http://localhost") as control,
    ):
        made = ApiClients(http, control, records, changes, dependencies, pressure=pressure)
        yield made


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]
