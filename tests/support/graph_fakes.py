"""Fakes of the graph tests: a mail store in memory, accounts, and a client with alice's token."""

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from msgspec import structs

from relay.base.accounts.account import Account
from relay.base.clock import Clock, Ids
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.message.properties import MessageProperties
from relay.base.pressure import Pressure
from relay.formats.read_mime import AttachmentFacts
from relay.front_door.graph import create_app
from relay.front_door.graph.dependencies import GraphDependencies
from relay.front_door.http.gateway import Gateway
from relay.front_door.notifications.subscription_file import Subscription
from relay.front_door.notifications.subscriptions import NoSubscriptionError
from relay.front_door.sign_in.authentication import HttpAuthentication
from relay.store.mailbox.errors import NoSuchItemError, StalePositionError
from relay.store.mailbox.message_state import MessageState, flag_of, with_state
from relay.store.mailbox.pending_submission import PendingSubmission, SendOptions
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.settings_file import UserSettings
from relay.store.mailbox.stored_message import (
    NO_PRECONDITION,
    Folder,
    MessageChange,
    Page,
    StoredMessage,
    WellKnown,
)
from relay.store.mailbox.usage import QuotaLimits
from tests.support.accounts import HOSTNAME, TokenAccounts, authentication_of
from tests.support.conditions import facts_of, matches, order_key
from tests.support.limits import usage_of
from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on

MAX_BODY = 64 * 1024
AS_ALICE = {"authorization": "Bearer alice"}
QUOTA_BYTES = 60_000  # alice's, on disk
ACCOUNTS = TokenAccounts(
    {
        "alice": Account("alice@example.test", aliases=("alias@example.test",)),
        "bob": Account("bob@example.test"),
    }
)


class MemoryStore:
    """A mail store in memory. `refuse` is raised instead of a change; `written` counts changes."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock, self.ids = clock, Ids(clock)
        self.stored: dict[str, list[StoredMessage]] = {}
        self.submitted: list[tuple[PendingSubmission, MessageProperties | bytes]] = []
        self.refuse: Exception | None = None
        self.written = 0
        self.known = [Folder(name.value, name.name.title(), Path(), name) for name in WellKnown]
        self.user = UserSettings()
        self.messages = SimpleNamespace(
            create=self._create,
            get=self._get,
            update=self._update,
            delete=self._delete,
            mime=self._mime,
        )
        self.lists = SimpleNamespace(query=self._query)
        self.folders = SimpleNamespace(every=self._folders, get=self._folder)
        self.submissions = SimpleNamespace(submit_new=self._send, submit_draft=self._send_draft)
        self.settings = SimpleNamespace(read=self._settings, write=self._write_settings)

    async def _create(self, account, content, *, folder_id="drafts", kept=()):
        assert not kept, "no message has attachments that could be read"
        if self.refuse:
            raise self.refuse
        self.written += 1
        properties = content if isinstance(content, MessageProperties) else MessageProperties()
        attachments = tuple(
            AttachmentFacts(one.name, one.content_type, one.size, inline=one.inline, id=one.name)
            for one in properties.attachments
        )
        now = self.clock.time_us()
        stored = StoredMessage(
            id=self.ids.new(),
            folder=await self._folder(account, folder_id),
            path=Path(),
            properties=structs.replace(properties, attachments=()),
            attachments=attachments,
            is_draft=True,
            is_read=True,
            size=100,
            created_us=now,
            modified_us=now,
            sent_us=now,
            received_us=now,
            change_key="key1",
        )
        self.stored.setdefault(account, []).insert(0, stored)
        return stored

    async def _send(self, account, content, options, *, kept=()):
        draft = await self._create(account, content, kept=kept)
        return self._submit(draft, content, account, options)

    async def _send_draft(self, account, message_id, options, *, condition=NO_PRECONDITION):
        if self.refuse:
            raise self.refuse
        draft = await self._get(account, message_id)
        return self._submit(draft, draft.properties, account, options)

    def _submit(self, draft, content, account, options: SendOptions) -> PendingSubmission:
        submission_id = f"{draft.id}.1"
        now = self.clock.time_us()
        pending = PendingSubmission(submission_id, account, "base", Path(), now, options)
        self.submitted.append((pending, content))
        return pending

    async def _get(self, account, message_id, *, folder_id=""):
        for one in self.stored.get(account, []):
            if one.id == message_id and folder_id.lower() in ("", one.folder.id):
                return one
        raise NoSuchItemError("The specified object was not found in the store.")

    async def _query(self, account, query: MessageQuery):
        every = self.stored.get(account, [])
        if query.folder_id:
            folder = await self._folder(account, query.folder_id)
            every = [one for one in every if one.folder == folder]
        facts = {one.id: facts_of(one) for one in every}
        found = [one for one in every if matches(query.condition, facts[one.id])]
        found.sort(key=lambda one: order_key(query.order, facts[one.id]))
        if query.after and not query.after.isdecimal():
            raise StalePositionError
        begin = int(query.after or 0) + query.skip
        end = begin + query.top
        total = len(found) if query.count else None
        page = tuple(found[begin:end])
        positions = tuple(str(begin + number) for number in range(1, len(page) + 1))
        return Page(page, total, str(end) if end < len(found) else "", positions)

    async def _update(
        self, account, message_id, change: MessageChange, *, condition=NO_PRECONDITION
    ):
        if self.refuse:
            raise self.refuse
        self.written += 1
        before = await self._get(account, message_id, folder_id=condition.folder_id)
        flag = before.flag
        dates = {"start_us": flag.start_us, "due_us": flag.due_us}
        state = MessageState(
            is_complete=flag.status == "complete", completed_us=flag.completed_us, **dates
        )
        state = structs.replace(state, **change.state)
        is_flagged = flag.status == "flagged" if change.flagged is None else change.flagged
        after = structs.replace(
            before,
            properties=with_state(change.properties or before.properties, state),
            is_read=before.is_read if change.is_read is None else change.is_read,
            flag=flag_of(state, is_flagged=is_flagged),
            is_other=before.is_other if state.is_other is None else state.is_other,
            change_key=before.change_key + "+",
        )
        mailbox = self.stored[account]
        mailbox[mailbox.index(before)] = after
        return after

    async def _delete(self, account, message_id, *, condition=NO_PRECONDITION):
        if self.refuse:
            raise self.refuse
        found = await self._get(account, message_id, folder_id=condition.folder_id)
        self.written += 1
        self.stored[account].remove(found)

    async def _mime(self, account, message_id):
        await self._get(account, message_id)
        return b"Subject: as MIME\r\n\r\n"

    async def _settings(self, account):
        return self.user

    async def _write_settings(self, account, settings):
        if self.refuse:
            raise self.refuse
        self.written += 1
        self.user = settings

    async def _folders(self, account):
        return self.known

    async def _folder(self, account, folder_id):
        for one in self.known:
            if one.id == folder_id.lower():
                return one
        raise NoSuchItemError("There is no such folder.")


class NoSubscriptions:
    """Those of an application that runs none."""

    def of(self, _creator: str) -> list[Subscription]:
        return []

    def get(self, _subscription_id: str, _creator: str) -> Subscription:
        raise NoSubscriptionError


def graph_app(
    store: Any,
    clock: Clock,
    *,
    accounts: Any = ACCOUNTS,
    authentication: HttpAuthentication | None = None,
    crash: Any = None,
    ready: Callable[[], str] = lambda: "",
    pressure: Pressure | None = None,
    **http: Any,
) -> Gateway:
    """Graph's application; `http` are settings other than these."""
    http = {
        "public_url": "",
        "max_body": 1 << 20,
        "max_upload": 8 << 20,
        "profile": "relaxed",
    } | http
    authentication = authentication or authentication_of(accounts, clock)
    nobody: Any = NoSubscriptions()
    dependencies = GraphDependencies(
        store=store,
        accounts=authentication.accounts,
        clock=clock,
        ids=Ids(clock),
        hostname=HOSTNAME,
        public_url=http["public_url"],
        crash=crash or CrashPoints(),
        max_upload=http["max_upload"],
        profile=http["profile"],
        pressure=pressure or Pressure(),
        subscriptions=nobody,
        usage=usage_of(clock),
    )
    return create_app(dependencies, authentication, max_body=http["max_body"], ready=ready)


@asynccontextmanager
async def graph_on_disk(
    root: Path,
    *,
    limits_of: Callable[[str], QuotaLimits] = lambda _: QuotaLimits(),
    **options: Any,
) -> AsyncIterator["OnDisk"]:
    """Graph's application on a mail store, and alice's client; `options` are those of graph_app()."""
    clock = ManualClock()
    with store_on(root, clock, limits_of=limits_of) as store:
        transport = httpx.ASGITransport(graph_app(store, clock, **options))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://h/v1.0/me", headers=AS_ALICE
        ) as http:
            yield OnDisk(http, root)


@dataclass
class OnDisk:
    """Graph's application with a mail store on disk, and a client with alice's token."""

    http: httpx.AsyncClient
    root: Path

    def files(self) -> list[Path]:
        """Return all files of alice's mailbox and next to it, except those that describe folders."""
        return [
            path
            for path in self.root.rglob("*")
            if path.is_file() and path.parent.name in ("cur", "new", "tmp", "ready", "preparing")
        ]


@dataclass
class Crash:
    """Records the crash points."""

    points: list[CrashPoint] = field(default_factory=list)

    def reached(self, point: CrashPoint) -> None:
        self.points.append(point)


@dataclass
class GraphInMemory:
    """Graph's application, its dependencies, and a client with alice's token."""

    http: httpx.AsyncClient
    store: MemoryStore
    crash: Crash
    pressure: Pressure
    not_ready: str = ""

    @property
    def sent(self) -> MessageProperties | bytes:
        """Return the content of the only submission."""
        assert len(self.store.submitted) == 1
        return self.store.submitted[0][1]

    async def send(self, message: object, **parameters: object) -> httpx.Response:
        body = {"message": message, **parameters}
        return await self.http.post("/v1.0/me/sendMail", json=body)

    async def send_mime(self, content: bytes) -> httpx.Response:
        headers = {"content-type": "text/plain"}
        body = base64.encodebytes(content)
        return await self.http.post("/v1.0/me/sendMail", content=body, headers=headers)


def to(*addresses: str) -> list[dict[str, dict[str, str]]]:
    """Return recipients as Graph's JSON."""
    return [{"emailAddress": {"address": address}} for address in addresses]


async def post_mime(http: httpx.AsyncClient, path: str, content: bytes) -> httpx.Response:
    """Send MIME as Graph takes it: in base64, as text."""
    headers = {"content-type": "text/plain"}
    return await http.post(path, content=base64.b64encode(content), headers=headers)


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """Check an error response, its envelope and headers; return its message and its detail."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    inner = answer.json()["error"]["innerError"]
    assert inner["request-id"] == answer.headers["request-id"]
    assert inner["client-request-id"] == answer.headers["client-request-id"]
    return f"{answer.json()['error']['message']} {inner.get('detail', '')}".rstrip()
