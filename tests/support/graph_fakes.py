"""Fakes of the graph tests: a mail store in memory, accounts, and a client with alice's token."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from relay.base.accounts.account import Account
from relay.base.clock import Clock, Ids
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.message.properties import MessageProperties
from relay.base.pressure import Pressure
from relay.front_door.graph import create_app
from relay.front_door.graph.dependencies import GraphDependencies
from relay.front_door.http.gateway import Gateway
from relay.front_door.notifications.subscription_file import Subscription
from relay.front_door.notifications.subscriptions import NoSubscriptionError
from relay.front_door.sign_in.authentication import HttpAuthentication
from relay.store.mailbox.pending_submission import PendingSubmission
from relay.store.mailbox.usage import QuotaLimits
from relay.submission.outbox.store import FileStore
from tests.support.accounts import HOSTNAME, TokenAccounts, authentication_of
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


class WatchedStore:
    """A mail store on files. `submitted` are the submissions with their contents, `written` counts
    changes, and `refuse` is raised instead of one.
    """

    def __init__(self, store: FileStore, clock: ManualClock) -> None:
        self.store, self.clock = store, clock
        self.submitted: list[tuple[PendingSubmission, Any]] = []
        self.refuse: Exception | None = None
        self.written = 0
        for part, names in (
            (store.messages, ("create", "update", "delete")),
            (store.submissions, ("submit_new", "submit_draft")),
            (store.settings, ("write",)),
        ):
            for name in names:
                setattr(part, name, self._watched(getattr(part, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def _watched(self, change: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def watched(account: str, *args: Any, **options: Any) -> Any:
            if self.refuse:
                raise self.refuse
            self.written += 1
            made = await change(account, *args, **options)
            if isinstance(made, PendingSubmission):
                self.submitted.append((made, args[0]))
            return made

        return watched


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
        "memory_bytes": 400_000_000,
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
    memory = {"memory_bytes": http["memory_bytes"]}
    return create_app(
        dependencies, authentication, max_body=http["max_body"], ready=ready, **memory
    )


@asynccontextmanager
async def graph_on_disk(
    root: Path, *, limits_of: Callable[[str], QuotaLimits] = lambda _: QuotaLimits(), **options: Any
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
class WatchedGraph:
    """Graph's application, its dependencies, and a client with alice's token."""

    http: httpx.AsyncClient
    store: WatchedStore
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
