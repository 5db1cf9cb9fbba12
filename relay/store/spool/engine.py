"""What a spool engine does: the durable queue of acceptance and delivery, and its history.

relay.store.spool.open() returns the SpoolEngine that `spool.url` names; relay.store.spool.storage()
returns its SpoolStorage, for commands that need no running queue. No room outside relay/store/spool
knows which engine it is. Readers take the SpoolHistory (relay.store.journeys).

To write another engine, derive from SpoolEngine and SpoolMaintenance, implement SpoolStorage,
choose it by the scheme of the URL in relay/store/spool/__init__.py, and add it to the fixture of
tests/contract, which state what follows:

- A coroutine returns after its change is durable. One that raises SpoolError changed nothing.
- A claim is the right to one attempt. The epoch of an entry only increases, and a claim with an old
  epoch cannot record. Outcomes, events and reports of a result are one transaction. If the message
  is a report about another message, the same transaction adds an event to that message, and changes
  nothing else of it.
- A start records each claim of a dead owner as an indeterminate attempt that is due at once.
- A submission key is remembered for a week longer than pickup tries to submit, and expires by
  itself.
- Accepted recipients are counted, and so are those in each final state. Pruning does not change
  these counters: QueueCounts.unaccounted is 0 unless a row was lost.
- Commits store the clock anchor, at most once a second; opening resumes the clock from it.
- An entry or content that cannot be read is held or reported, never dropped. If the stored form is
  damaged, no new mail is accepted; what can be read is still delivered.

The caller holds the owner lock of the state_dir: a SQLite queue has one owner. Nodes share a
PostgreSQL queue; each entry is claimed by one of them.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Flag, auto
from pathlib import Path
from typing import Any, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock, advanced_us, rfc3339, wall_offset_us
from relay.base.message.content import Content
from relay.base.observe.logs import get_logger
from relay.base.observe.metrics import Metrics
from relay.base.pressure import Disk
from relay.store.journeys.document import Journey
from relay.store.journeys.message_list import ListedRecipient
from relay.store.journeys.spool_history import KeptMessage, SpoolEvents, SpoolHistory
from relay.store.spool import types
from relay.store.spool.queue_commands import QueueCommand, ShownTimes
from relay.store.spool.shared import (
    event_log,
    message_names,
    message_page,
    message_rows,
    recent_messages,
)
from relay.store.spool.shared.accepted import CapturedMail, NewMail, NotAccepted, accepted_as
from relay.store.spool.shared.claimed import late_recipients
from relay.store.spool.shared.group_commit import WAITING_MAX, GroupWriter
from relay.store.spool.shared.hold_counters import heaviest_client
from relay.store.spool.shared.maintenance import SpoolMaintenance
from relay.store.spool.shared.queue_admin import QueueAdmin
from relay.store.spool.shared.queue_shares import QueueShares
from relay.store.spool.shared.receipts import ReceiptLedger
from relay.store.spool.shared.results import NewResult, Recorded, is_first_with, note_requests
from relay.store.spool.shared.suppression import RELAY, SuppressionList
from relay.store.spool.shared.tables import (
    OpenTransaction,
    QueueEngine,
    StoredContents,
    Tables,
    reads,
)

_log = get_logger("spool")
T = TypeVar("T")
_WAITS_S_MAX = 10.0  # a slower commit of mail is a reason of a 503
SUBMISSION_KEEP_S = 8 * 86400.0  # a week longer than pickup tries to submit
_RENEW = "UPDATE submission SET expires_us = ? WHERE key = ? RETURNING key"
_ROOT = "SELECT id FROM mail_root WHERE store = ?"
_RECORD_ROOT = (
    "INSERT INTO mail_root (store, id) VALUES (?, ?)"
    " ON CONFLICT (store) DO UPDATE SET id = excluded.id WHERE mail_root.id IN ('', ?)"
)
_WAS_USED = "SELECT 1 FROM counter WHERE name = 'delivered' AND value > 0"


class DevelopmentSpool(Protocol):
    """What only a development relay does, whose engine is SQLite."""

    async def sizes(self, limit: int) -> Sequence[tuple[int, int]]:
        """Return when the newest messages were accepted, by the wall clock in microseconds, and the
        sizes of the contents that they still have.
        """

    async def accepted_ids(self) -> frozenset[str]:
        """Return the queue ids of all messages that are not reports."""

    async def addresses(self, queue_ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Return the addresses of all recipients of messages, but those that policy has added."""

    async def discard(self, until_us: int) -> int:
        """Remove some messages that were accepted until this time and are not to be delivered;
        captured and held messages too. Return how many, 0 when nothing is left.
        """

    async def remove(self, queue_id: str) -> Sequence[ListedRecipient] | None:
        """Remove a message in any state, with its history; return its recipients. While delivery
        has the message, nothing is removed; return None.
        """

    async def clear(self) -> int:
        """Remove every message, in any state, and every submission key; return the number of
        messages that are not reports. Claims can no longer record.
        """


LOCAL_DOMAINS = "local domains of the store {}"


def without_node_text(store: str) -> str:
    """Return what `relay check` and /readyz say of one of SpoolMaintenance.stores_without_node."""
    return f'no node has the mail root of the store "{store}": its local mail waits'


class News(Flag):
    """What other nodes that share the spool may have done."""

    RECORDED = auto()  # a step of a journey
    DUE = auto()  # entries have come due
    RELEASED = auto()  # entries that were due before may be claimed
    HOLDS = auto()  # there may be a hold rule


class SpoolEngine(QueueEngine, SpoolHistory):
    """An open spool, as its owner uses it. Call start() once, then stop() once.

    Each engine is a subclass.
    """

    maintenance: SpoolMaintenance  # its periodic work
    details_of_here = "%"  # a pattern of LIKE: the details of events that this node has recorded
    # what a development relay does with it; None for an engine that it does not use
    development: DevelopmentSpool | None = None
    _writer: GroupWriter
    find_queue_ids = reads(message_names.find_queue_ids)
    find_page = reads(message_page.find_page)
    summaries = reads(message_rows.summaries)
    accepted_submissions = reads(message_names.accepted_submissions)
    count_states = reads(recent_messages.count_states)
    recent_addresses = reads(recent_messages.recent_addresses)

    def __init__(
        self,
        *,
        clock: Clock,
        metrics: Metrics,
        submission_keep_s: float,
        captured: CapturedMail,
        store: Callable[[], int] = lambda: 0,
    ) -> None:
        """`submission_keep_s` is how long a submission key is remembered after its first use,
        `captured` what happens to captured mail. `store` is for ReceiptLedger.
        """
        self._clock = clock
        self._metrics = metrics
        self._captured = captured
        self._submission_keep_us = int(submission_keep_s * 1_000_000)
        # Called when the spool cannot be used any more: the node must end.
        self.on_lost: Callable[[types.SpoolError], None] = lambda _: None
        # Called with what other nodes may have done.
        self.on_news: Callable[[News], None] = lambda _: None
        # Returns, by name, a digest of each part that must be equal on all nodes. The part
        # LOCAL_DOMAINS has the domains as text.
        self.agreed: Callable[[], Mapping[str, str]] = dict
        self.receipts = ReceiptLedger(self, store=store)
        self.suppression = SuppressionList(self, clock)
        self.queue_shares = QueueShares(self)
        self.queue_admin = QueueAdmin(
            self, follow=self._follow, clock=clock, metrics=metrics, shown_times=self.shown_times
        )

    @abstractmethod
    async def start(self, *, may_wait: bool = False) -> int:
        """Connect, and release the claims of a dead owner; return their number.

        With `may_wait` an engine whose server does not answer returns 0, and tries again until it
        does; until then everything raises SpoolUnavailableError. Raises SpoolError.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Finish waiting writes and close; also for an engine that was not started."""

    @abstractmethod
    def close(self) -> None:
        """Close an engine that was not started."""

    async def accept(
        self,
        message: types.NewMessage,
        *,
        reports: Sequence[types.NewMessage] = (),
        submission_key: str = "",
        claim: bool = True,
        receipt: types.SentReceipt | None = None,
        sought: Sequence[str] = (),
    ) -> types.Accepted:
        """Make a message, and reports that are already due, durable; with `claim`, return its
        entries claimed. If it is a read receipt, `receipt` is recorded in the same transaction.

        The same `submission_key` again changes nothing and returns the first queue id. Raises
        HoldsFullError where rules would hold more than its `held_max` entries, together with those
        accepted at the same time; SuppressedError where addresses that are `sought` are on the list
        of dead addresses; SpoolFullError, SpoolUnavailableError.
        """
        messages = (message, *reports)
        stored = await self._store_new(messages)
        expires_us = self._clock.queue_us() + self._submission_keep_us if submission_key else 0
        try:
            accepted = await self._accept(
                NewMail(
                    messages,
                    stored,
                    self._captured,
                    submission_key,
                    expires_us,
                    claim,
                    receipt,
                    sought,
                    self.suppression.ended_us if sought else 0,
                )
            )
        except Exception:
            await self.discard(stored)
            raise
        if isinstance(accepted, types.HoldsFullError):
            await self.discard(stored)
            raise types.HoldsFullError(accepted.tenant)
        if isinstance(accepted, types.SuppressedError):
            await self.discard(stored)
            raise types.SuppressedError(accepted.since_us)
        if receipt is not None:
            self.receipts.version += 1
        if accepted.repeated:
            await self.discard(stored)
        else:
            self.committed(stored)
            self._count_accepted(messages)
        self._tell(News.RECORDED if accepted.claims else News.RECORDED | News.DUE)
        return accepted

    @abstractmethod
    async def _store_new(self, messages: Sequence[types.NewMessage]) -> StoredContents:
        """Store the contents of new messages that must be there before the transaction. Raises
        SpoolUnavailableError while no new mail is accepted.
        """

    @abstractmethod
    async def _accept(self, new: NewMail) -> types.Accepted | NotAccepted:
        """Make a message, and the reports that follow it, durable."""

    async def record(
        self, claim_result: types.ClaimResult, *, claim_reports: bool = True
    ) -> tuple[bool, tuple[types.Claim, ...]]:
        """Record the result of a claim and return claims of its reports; (False, ()) if the claim's
        epoch has ended.
        """
        stored = await self.store_contents(claim_result.reports)
        now_us = self._clock.queue_us() if self.receipts.has_room else types.NEVER_US
        said = self.suppression.heard(claim_result)
        new = NewResult(claim_result, stored, self._captured, claim_reports, now_us, heard=said)
        admin, order = self.queue_admin, None
        try:
            if admin.may_be_ordered(claim_result.claim):  # rarely
                order = await admin.order_of(claim_result)
                carry_out = order.carry_out if order is not None else None
                new = replace(new, order=carry_out, may_be_ordered=True)
            recorded = await self._record(new)
        except Exception:
            await self.discard(stored)
            await admin.end_order(order, None)
            raise
        await admin.end_order(order, recorded.ordered if recorded is not None else None)
        admin.wake_for_order(claim_result)
        if recorded is None:
            await self.discard(stored)
            return False, ()
        if recorded.owes:
            self.receipts.added()
        if recorded.complaint:
            self._metrics.complaints.labels(recorded.complaint).inc()
        for address, reply in recorded.suppressed.items():
            qid = claim_result.claim.message.id
            _log.info("address suppressed", to=address, who=RELAY, qid=qid, reply=reply)
        self.committed(stored)
        self._count_accepted(claim_result.reports)
        self._tell(News.RECORDED)
        return True, recorded.claims

    @abstractmethod
    async def _record(self, new: NewResult) -> Recorded | None:
        """Make a result durable; None if the claim's epoch has ended."""

    async def note_requests(self, claim: types.Claim, noted: types.EntryExtra) -> bool:
        """Make what `noted` says of requests of a claim to Microsoft Graph durable; False if the
        claim's epoch has ended.
        """
        return await self.change(lambda transaction: note_requests(transaction, claim, noted))

    async def is_first_with(self, claim: types.Claim, message_id: str) -> bool:
        """Return whether a request of this claim may use this Message-ID: no other request to
        Microsoft Graph uses it.
        """
        return await self.ask(lambda tables: is_first_with(tables, claim, message_id))

    @abstractmethod
    def may_finish(self, claim: types.Claim) -> bool:
        """Whether an attempt may still send the message. It may not once another node may have
        taken the claim over.
        """

    @abstractmethod
    async def claim_due(self, now_us: int, limit: int, look: types.DueQuery) -> types.DueBatch:
        """Claim up to `limit` due and unclaimed entries.

        One call reads a bounded part of the queue: DueBatch says where to continue.
        """

    @abstractmethod
    async def next_due_us(self, after_us: int) -> int | None:
        """Return when the first unclaimed entry after `after_us` is due, None if there is none."""

    @abstractmethod
    async def release(self, claims: Sequence[types.Claim]) -> None:
        """Release untried claims; the entries are due as before."""

    @abstractmethod
    def incoming_body(self) -> types.LendableBody:
        """Return a file for the body of a large message, which accept() then links."""

    def _tell(self, news: News) -> None:
        """Tell other nodes what this one has done."""

    def load(self) -> types.SpoolLoad:
        """Return the load, without a disk access. An unreachable server is no pressure: programs
        can still submit mail.
        """
        return types.SpoolLoad(
            entries=self.maintenance.entries,
            backlog=self._writer.waiting / WAITING_MAX,
            commit_s=self._writer.commit_s(),
        )

    def rounds(self) -> int | None:
        """Wake the writer, and return a number that it raises. If the number is the same seconds
        later, the writer is blocked. An error of the disk or the server does not block it. None:
        it does not run.
        """
        return self._writer.rounds()

    @abstractmethod
    def health(self) -> str:
        """Return why no new mail is accepted although there is room, or ""."""

    def unready(self) -> str:
        """Return the reason for a 503 of /readyz: health(), or mail waits; "" if there is none."""
        waits_s = self._writer.acceptance_waits_s()
        return self.health() or (
            f"mail has waited for its commit for {waits_s:.0f} s" if waits_s > _WAITS_S_MAX else ""
        )

    @abstractmethod
    def disk(self) -> Disk:
        """Return the disk that new mail fills. Before, allocate its reserve again if there is room.
        Blocks. Raises OSError.
        """

    def is_of_other_store(self, domain: str) -> bool:  # noqa: ARG002 - there is one store
        """Whether a domain is local at the node of another mail root."""
        return False

    async def _follow(self, command: QueueCommand) -> None:
        await self.receipts.follow(command)
        self._tell(News.RECORDED | News.DUE | (News.HOLDS if command.new else News(0)))

    def shown_times(self) -> ShownTimes:
        """Return how to show times now. A development relay removes captured mail after a real
        time, which an advance of the clock does not shorten.
        """
        captured_us = None
        if self._captured.is_delivered:
            captured_us = self._captured.keep_us + advanced_us(self._clock)
        return ShownTimes(wall_offset_us(self._clock), captured_us)

    @abstractmethod
    async def ask(self, query: Callable[[Tables], T]) -> T:
        """Run a short query of delivery, which waits for no long one."""

    async def journey(self, queue_id: str, *, added: bool = False) -> Journey | None:
        """SpoolHistory.journey."""
        times = self.shown_times()
        return await self.read(lambda tables: self._journey(tables, queue_id, times, added=added))

    def _journey(
        self, tables: Tables, queue_id: str, times: ShownTimes, *, added: bool
    ) -> Journey | None:
        return event_log.journey(tables, queue_id, times, added=added)

    async def read_message(self, queue_id: str) -> KeptMessage:
        """SpoolHistory.read_message."""
        return await self.read(lambda tables: event_log.read_message(self, tables, queue_id))

    async def read_contents(self, queue_ids: Sequence[str]) -> Mapping[str, Content]:
        """SpoolHistory.read_contents."""
        return await self.read(lambda tables: event_log.read_contents(self, tables, queue_ids))

    async def events_after(self, after: int, *, limit: int) -> SpoolEvents:
        """SpoolHistory.events_after."""
        captures_at_once = not self._captured.is_delivered

        def query(tables: Tables) -> SpoolEvents:
            until = self._last_event(tables)
            return event_log.events_after(
                tables, after, until, limit=limit, captures_at_once=captures_at_once
            )

        return await self.read(query)

    async def accepted_after(
        self, after: int, *, limit: int, is_settled: bool, own: bool = False
    ) -> SpoolEvents:
        """SpoolHistory.accepted_after."""

        def query(tables: Tables) -> SpoolEvents:
            until = self._last_event(tables) if is_settled else types.NEVER_US
            return event_log.accepted_after(
                tables, after, until, limit=limit, of_here="" if own else self.details_of_here
            )

        return await self.read(query)

    async def last_event(self, *, is_settled: bool = True) -> int:
        """SpoolHistory.last_event."""
        return await self.read(self._last_event if is_settled else self._greatest_event)

    def _last_event(self, tables: Tables) -> int:
        return self._greatest_event(tables)

    def _greatest_event(self, tables: Tables) -> int:
        return event_log.last_event(tables)

    @abstractmethod
    async def note_restored(self) -> None:
        """Note that the events between a backup and now are missing: readers that had a cursor
        before are told so, and no event gets a sequence of that time.
        """

    async def mail_root(self, store: str) -> tuple[str, bool]:
        """Return the recorded id of the mail root of `store`, "" for none, and whether any mail was
        ever delivered locally.
        """
        return await self.read(lambda tables: self._root(tables, store))

    def _root(self, tables: Tables, store: str) -> tuple[str, bool]:
        row = tables.fetch_one(_ROOT, (store,))
        was_used = tables.fetch_one(_WAS_USED) is not None
        return (row[0] if row is not None else ""), was_used

    async def record_mail_root(self, store: str, root_id: str, *, instead_of: str = "") -> str:
        """Record the id of the mail root of `store` if no id is recorded, or if it is `instead_of`.
        Return the id that is recorded afterwards.
        """

        def record(transaction: OpenTransaction) -> str:
            transaction.execute(_RECORD_ROOT, (store, root_id, instead_of))
            return str(transaction.fetch_one(_ROOT, (store,))[0])

        return await self.change(record)

    async def renew_submission_keys(self, keys: Sequence[str]) -> Collection[str]:
        """Return which of these submission keys are known, and remember them as long as keys that
        are used now.
        """
        until_us = self._clock.queue_us() + self._submission_keep_us
        values = [(until_us, key) for key in keys]
        rows = await self.change(lambda transaction: transaction.fetch_each(_RENEW, values))
        return frozenset(key for (key,) in rows)

    async def accepted_as(self, submission_key: str) -> str:
        """Return the queue id of the message that was accepted with this key, "" for none."""
        return await self.ask(lambda tables: accepted_as(tables, submission_key))

    async def late_recipients(
        self, key: types.Key
    ) -> Mapping[int, Sequence[types.ClaimedRecipient]]:
        """Return the recipients that a delay report about this message names, by entry: those of
        this entry, of queued and deferred entries, and of entries that the relay holds and that
        have a delay warning. Empty if the warning of this entry was reported already.
        """
        return await self.ask(lambda tables: late_recipients(tables, key))

    def _count_accepted(self, messages: Iterable[types.NewMessage]) -> None:
        for message in messages:
            self._metrics.accepted_by(message.facts.source).inc()

    async def heaviest_held(self, rule: str) -> str:
        """Return the account or address whose mail a rule holds most of, "" if that is unknown."""
        return await self.count(lambda tables: heaviest_client(tables, rule))

    async def counts(self) -> types.QueueCounts:
        """Count the queue, for the metrics."""
        return await self.maintenance.counts()

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`; `nodes` are those that share the queue, if several may."""
        times = self.shown_times()
        holds = [
            {
                "domain": rule.domain,
                "reason": rule.reason,
                "since": rfc3339(rule.since_us),
                "until": None if rule.until_us is None else times.wall_time(rule.until_us),
            }
            for rule in await self.queue_admin.hold_rules()
        ]
        return {**await self.maintenance.stats(), "holds": holds}


class SpoolFinding(Struct, frozen=True):
    """A fault, of a kind that docs/operation-backup.md explains. `action` is what was done about
    it, or what can be.
    """

    kind: str
    where: str
    found: str
    expected: str
    repaired: bool = False
    action: str = ""


class VerifyRequest(Struct, frozen=True):
    """What SpoolStorage.verify() does."""

    report: Callable[[SpoolFinding], None]  # called with each finding
    is_owner: bool  # no relay can start: the caller holds the owner's lock
    full: bool = False  # check every octet of the contents
    recount: bool = False  # correct the counters, which are evidence of a loss, if `is_owner`


class BackupResult(Struct, frozen=True):
    """What a backup contains. `missing` are contents that the spool had lost before."""

    database: Path
    contents: Path
    counts: Mapping[str, Any]
    missing: Sequence[str] = ()


class SpoolStorage(Protocol):
    """The stored form of a spool, for `relay storage` and `relay check`. str() names its place.

    All methods raise SpoolError and OSError.
    """

    def files(self) -> Sequence[Path]:
        """Return the files that the owner of the spool reads and writes; some may not exist."""
        return ()

    def exists(self) -> bool:
        """Whether there is a spool, or anything that is left of one."""

    def is_marked_damaged(self) -> bool:
        """Whether its owner has recorded that it is damaged."""
        return False

    def faults(self) -> Sequence[str]:
        """Return why a relay that has started would not work, or could lose mail."""
        return ()

    def warnings(self) -> Sequence[str]:
        """Return what keeps some mail waiting, for an operator to decide."""
        return ()

    def other_domains(self) -> Sequence[str]:
        """Return the local domains of other mail roots, also of nodes that have ended."""
        return ()

    def check(self, *, has_owner: bool) -> None:
        """Check whether a start could open it, and change nothing. Raises SpoolFormatError,
        SpoolDamagedError.
        """

    def require_tools(self) -> None:
        """Raise SpoolUnsupportedError where the tools of the database do what verify() and `relay
        storage backup` do; the error names them.
        """
        return

    def verify(self, request: VerifyRequest) -> dict[str, int]:
        """Check references, contents and counters; return how many of each were checked."""

    def back_up(self, folder: Path) -> BackupResult:
        """Copy one snapshot, with its contents, into `folder`, an empty directory, while the owner
        writes.

        The copy can replace the spool.
        """

    def restored(self, folder: Path) -> AbstractContextManager[None]:
        """Restore what back_up() wrote into `folder`, where there is no spool. Until the end of the
        block no node can join, except a node that is opened with `alone`. After an error in the
        block, the tables of a database are removed again.

        Raises SpoolNotEmptyError, SpoolInUseError while a node lives, and FileNotFoundError for the
        copy of another kind of spool.
        """

    def accepted_since(self, folder: Path | None, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield which of these submission keys were used for a message since back_up() copied into
        `folder`; None: at any time. A key is yielded with the name of each recipient that the
        history has, QUEUE-ID-NUMBER; once with "" if it has none.
        """

    def recipients(self, queue_ids: Collection[str]) -> Iterator[tuple[str, str, str]]:
        """Yield queue id, address and state of each recipient that these messages have."""

    def has_part(self, path: Path) -> bool:  # noqa: ARG002 - a database has none
        """Whether a file or directory belongs to the spool: back_up() copies what is needed."""
        return False
