import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from relay.base.clock import Ids, SystemClock
from relay.base.message.envelope import Notify
from relay.base.message.nexthop import NextHop
from relay.base.message.tls_policy import TlsPolicy
from relay.base.observe.metrics import Metrics
from relay.delivery.active_queue import ActiveQueue
from relay.delivery.attempt_recorder import AttemptRecorder
from relay.delivery.connection_slots import ConnectionSlots
from relay.delivery.content_cache import ContentCache
from relay.delivery.local_delivery import LocalDelivery
from relay.delivery.provider_replies import ProviderReplies
from relay.delivery.retry import RetrySchedule
from relay.delivery.scheduler import DeliveryScheduler
from relay.delivery.site import Site
from relay.delivery.site_limits import SiteOptions
from relay.delivery.sites import Sites
from relay.delivery.smtp.connect import connect
from relay.delivery.smtp.connection import Timeouts
from relay.formats.dsn import ReportKind
from relay.store.journeys.document import Journey
from relay.store.journeys.events import Event, Step
from relay.store.mailbox.delivery_store import DeliveryResult
from relay.store.mailbox.stored_message import WellKnown
from relay.store.spool.shared.accepted import CapturedMail
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.types import (
    NO_EXTRA,
    Accepted,
    Claim,
    DueQuery,
    EntryExtra,
    NewMessage,
    PriorityLevel,
    Selector,
)
from relay.transport.routing.mx_hosts import Host, Hosts, Resolution
from relay.transport.routing.routes import HopOptions
from relay.transport.routing.usable_hosts import with_tls
from tests.support.events import an_event
from tests.support.remote_mx import RemoteMx
from tests.support.spools import message_of, new_spool
from tests.support.tls import authority, certificate

__all__ = ["authority", "certificate"]
KEEP_US = 86_400_000_000  # for captured mail


@dataclass
class Plan:
    messages: tuple[NewMessage, ...] = ()
    events: tuple[Event, ...] = ()


@dataclass
class RecordingReporter:
    """Returns a step 7 event for every report and records its recipients; makes no message."""

    failures_reported: list[tuple[str, str]] = field(default_factory=list)
    reported: list[tuple[str, list[str]]] = field(default_factory=list)  # of other kinds
    senders: list[str] = field(default_factory=list)  # who get a report

    def reports(self, kind, message, recipients, *, content) -> Plan:
        addresses = [one.path.address for one in recipients]
        self.senders.append(message.envelope.reverse_path)
        if kind is ReportKind.FAILED:
            statuses = [one.evidence.status for one in recipients]
            self.failures_reported += zip(addresses, statuses, strict=True)
            return Plan(events=(an_event(Step.REPORT, message.received_us, {}),))
        self.reported.append((str(kind), addresses))
        detail = {"kind": str(kind), "recipients": addresses}
        return Plan(events=(an_event(Step.REPORT, message.received_us, detail),))


@dataclass
class Table:
    """Resolves from a dict, has mailboxes from a set."""

    hosts: dict[str, Resolution] = field(default_factory=dict)
    mailboxes: set[str] = field(default_factory=set)
    captured: set[str] = field(default_factory=set)  # domains
    limits: dict[str, dict[str, Any]] = field(default_factory=dict)
    tls: dict[str, TlsPolicy] = field(default_factory=dict)
    demanded_by: dict[str, str] = field(default_factory=dict)

    async def resolve(self, next_hop: NextHop) -> Resolution:
        return self.hosts[next_hop.host]

    def at(self, domain: str, *servers) -> None:
        """Mail for `domain` goes to these, by LMTP if they speak it."""
        self.hosts[domain] = Hosts(
            tuple(
                Host(f"mx{index}.{domain}", index, (server.host,), server.port, lmtp=server.lmtp)
                for index, server in enumerate(servers)
            )
        )

    def hop(self, address: str, domain: str) -> str:
        if address in self.mailboxes:
            return "local"
        found = self.hosts.get(domain)
        is_lmtp = isinstance(found, Hosts) and found.hosts[0].lmtp
        return f"lmtp://{domain}:24" if is_lmtp else f"mx:{domain}"

    def mailbox_for(self, address: str) -> str | None:
        return address if address in self.mailboxes else None

    def is_own_anywhere(self, _domain: str) -> bool:
        return False

    def options_for(self, next_hop: NextHop) -> HopOptions:
        tls = self.tls.get(next_hop.host, TlsPolicy("none"))
        return HopOptions(tls, **self.limits.get(next_hop.host, {}))

    def decided(self, domain: str) -> Hosts:
        """The hosts of a domain, each with its TLS."""
        hop = NextHop.parse(self.hop("", domain))
        hosts = with_tls(self.hosts[domain], self.options_for(hop), self.tls_demanded_by(hop))
        assert isinstance(hosts, Hosts)
        return hosts

    def must_stay(self, _next_hop: NextHop, *, chosen: bool, is_report: bool) -> bool:
        return True

    def fallback_for(self, _next_hop: NextHop) -> None:
        return None

    def tls_demanded_by(self, next_hop: NextHop) -> str:
        return self.demanded_by.get(next_hop.host, "configuration")


@dataclass
class Store:
    """Keeps delivered messages; idempotent by `unique`, as the real store."""

    inboxes: dict[str, bytes] = field(default_factory=dict)

    async def deliver(
        self, account, *, unique, content, folder=WellKnown.INBOX, over_quota=False, is_repeat=False
    ) -> DeliveryResult:
        if unique in self.inboxes:
            return DeliveryResult.ALREADY_THERE
        self.inboxes[unique] = content
        return DeliveryResult.DELIVERED


class RunningDelivery:
    """Delivery with a real spool and real sockets, and fakes for the other rooms."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.ids = Ids(self.clock)
        self.metrics = Metrics()
        self.table, self.store, self.reporter = Table(), Store(), RecordingReporter()
        self.folder = folder
        self.spool: SqliteSpool | None = None
        self.scheduler: DeliveryScheduler | None = None
        self.retry_s: tuple[float, ...] = (0.05,)
        self.connections_max = 20
        self.connections_in_all = 200
        self.window_claims = 2000
        self.idle_s = 0.3
        self.content_bytes = 1 << 26
        self.delivers_captured = False
        self.unreachable_s = 0.02
        self.providers = ProviderReplies()
        self.connect = connect  # a test may put another one in its place
        self.timeouts = Timeouts()

    async def open(self) -> None:
        """Start only the spool, to fill the queue before delivery starts."""
        captured = CapturedMail(KEEP_US, self.delivers_captured)
        self.spool = new_spool(
            self.folder / "spool.sqlite", self.clock, metrics=self.metrics, captured=captured
        )
        await self.spool.start()

    async def start(self) -> None:
        if self.spool is None:
            await self.open()
        self.compose()
        self.run()

    @asynccontextmanager
    async def host(self, domain: str = "a.test", **script: Any) -> AsyncIterator[RemoteMx]:
        """Start delivery with a host for a domain."""
        async with RemoteMx(**script) as mx:
            self.table.at(domain, mx)
            await self.start()
            yield mx

    def compose(self) -> None:
        """Make delivery on the open spool without running it."""
        self.changed: asyncio.Queue[str] = asyncio.Queue()
        contents = ContentCache(self.spool, budget_bytes=self.content_bytes)
        recorder = AttemptRecorder(
            self.spool,
            contents,
            self.reporter,
            schedule=RetrySchedule(self.retry_s, lambda: 0.5),
            clock=self.clock,
            metrics=self.metrics,
            fallback_for=self.table.fallback_for,
            on_change=self.changed.put_nowait,
        )
        options = SiteOptions(
            connections_max=self.connections_max,
            unreachable_s=self.unreachable_s,
            idle_s=self.idle_s,
            waited_s=lambda _claim: self.retry_s[0],
            providers=self.providers,
        )
        local = LocalDelivery(
            recorder, self.store, self.table, delivers_captured=self.delivers_captured
        )
        self.slots = ConnectionSlots(self.connections_in_all, close_idle=Site.close_idle)
        self.metrics.connections.labels("outgoing").set_function(lambda: self.slots.count)
        self.active_queue = ActiveQueue(claims_max=self.window_claims)
        sites = Sites(
            recorder,
            resolve=self.table.resolve,
            table=self.table,
            options=options,
            clock=self.clock,
            slots=self.slots,
            connect=partial(
                self.connect,
                ehlo_name="relay.test",
                timeouts=self.timeouts,
                real_s=self.clock.real_s,
            ),
        )
        self.scheduler = DeliveryScheduler(
            recorder,
            sites=sites,
            local=local,
            table=self.table,
            clock=self.clock,
            active_queue=self.active_queue,
            queue_admin=self.spool.queue_admin,
        )

    def run(self) -> None:
        self.running = asyncio.create_task(self.scheduler.run())

    async def stop(self, grace_s: float = 2.0) -> None:
        await self.scheduler.drain(grace_s)
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.spool.stop()
        assert self.left() == {}

    def left(self) -> dict[str, object]:
        """What is still held for claims that have ended."""
        claims_in_memory, contents = (
            self.scheduler.recorder.claims,
            self.scheduler.recorder.contents,
        )
        held = {
            "window": self.active_queue.claims,
            "window's units": self.window_claims - self.active_queue._whole.left,
            "full": sorted(map(str, self.active_queue.full_hops(PriorityLevel.UNREACHABLE))),
            "unknown": len(self.active_queue._unreached),
            "residents": [*claims_in_memory._queues, *claims_in_memory._expiries],
            "contents": [*contents._held] or contents._room.taken or contents._room.heaviest,
            "slots": sum(self.slots._held.values()),
            "lines": [
                *self.slots._holders,
                *self.slots._first_by_holder,
                *self.slots._waiting_more,
            ],
            "searches": [*self.scheduler.sites._lookups],
            "workers": [*self.scheduler.local.workers],
        }
        return {name: what for name, what in held.items() if what}

    async def send(
        self,
        *addresses: str,
        expire_s: float = 60.0,
        claim=True,
        level: PriorityLevel | None = None,
        notify: str = "",
        extra: EntryExtra = NO_EXTRA,
        **changes,
    ) -> str:
        """Accept a message and offer it; addresses of one domain make one entry.

        `notify` is for all of them: "SUCCESS,DELAY". `extra` is that of each entry.
        """
        hops: dict[str, list[str]] = {}
        for address in addresses:
            domain = address.partition("@")[2]
            hop = self.table.hop(address, domain)
            hop = "capture" if domain in self.table.captured else hop
            hops.setdefault(hop, []).append(address)
        now_us = self.clock.queue_us()
        values = {
            "expires_us": now_us + int(expire_s * 1e6),
            "contents": (b"Subject: s\r\n\r\nbody\r\n",),
        }
        message = message_of(
            hops.items(), queue_id=self.ids.new(), now_us=now_us, **(values | changes)
        )
        asked = frozenset(map(Notify, notify.split(","))) if notify else frozenset()
        entries = tuple(
            replace(
                entry,
                level=level,
                extra=extra,
                recipients=tuple(
                    replace(one, path=replace(one.path, notify=asked)) for one in entry.recipients
                ),
            )
            for entry in message.entries
        )
        message = replace(message, entries=entries)
        accepted: Accepted = await self.spool.accept(message, claim=claim)
        if claim:
            self.scheduler.offer(accepted.claims)
        elif self.scheduler is not None:
            self.scheduler.accepted_unclaimed([message])
        return accepted.queue_id

    async def claim_due(self) -> tuple[Claim, ...]:
        """Claim what is due now, as the scheduler would."""
        return (await self.spool.claim_due(self.clock.queue_us(), 10, DueQuery())).claims

    async def done(self, queue_id: str) -> Journey:
        """The journey, once nothing of the message is queued any more."""
        async with asyncio.timeout(120):
            while await self.spool.queue_admin.list(Selector(ids=(queue_id,)), limit=1):
                await self.changed.get()
        journey = await self.spool.journey(queue_id)
        assert journey is not None
        return journey


@pytest.fixture
async def delivery(tmp_path: Path) -> AsyncIterator[RunningDelivery]:
    delivery = RunningDelivery(tmp_path)
    yield delivery
    await delivery.stop()
