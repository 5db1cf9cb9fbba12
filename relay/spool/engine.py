"""The interface of a spool engine: Spool, SpoolHistory, and what only the owner of a queue needs.

relay.spool.open() returns the SpoolEngine that `spool.url` names; relay.spool.storage() returns its
SpoolStorage, for commands that need no running queue. No room outside relay/spool knows the engine.
Delivery and acceptance take the Spool, readers the SpoolHistory (relay.journeys), relay.app all.

To write another engine, implement both Protocols, choose it by the scheme of the URL in
relay/spool/__init__.py, and add it to the fixture of tests/contract, which state what follows:

- A coroutine returns after its change is durable. One that raises SpoolError changed nothing.
- A claim is the right to one attempt. The epoch of an entry only increases, and a claim with an old
  epoch cannot settle. Outcomes, events and reports of a settlement are one transaction, and so is
  what a report that it delivers claims of another message: an event there, and nothing else.
- A start records each claim of a dead owner as an indeterminate attempt that is due at once.
- A submission key is remembered for a week longer than pickup tries to submit, and expires by
  itself.
- Accepted recipients are counted, and so are those in each final state. Pruning does not change
  these counters: QueueCounts.unaccounted is 0 unless a row was lost.
- Commits store the clock anchor, at most once a second; opening resumes the clock from it.
- An entry or content that cannot be read is held or reported, never dropped. If the stored form is
  damaged, no new mail is accepted; what can be read is still delivered.

The caller holds the owner lock of the state_dir, so that a queue has one owner.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Flag, StrEnum, auto
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from relay.base.clock import Clock
from relay.base.pressure import Disk
from relay.journeys.message_list import ListedRecipient
from relay.journeys.spool_history import SpoolHistory
from relay.message.receipt import OwedReceipt, ReceiptKey, ReceiptRequest
from relay.spool.queue_commands import QueueAdmin
from relay.spool.types import Claim, QueueCounts, Spool, SpoolError, SpoolLoad


class RecordedRoot(Struct, frozen=True):
    """The mail root of a store as the spool knows it: its id, "" if none was recorded, and whether
    any mail was ever delivered locally.
    """

    id: str
    was_used: bool


class SpoolMaintenance(Protocol):
    """Periodic work, in small transactions, so that mail does not wait for it."""

    async def prune(self, age_s: float) -> int:
        """Remove some of the history of finished messages older than `age_s`, oldest first, and
        some expired submission keys; return how much, 0 when nothing is left.
        """
        ...

    async def prune_many(self, age_s: float, *, dry_run: bool = False) -> dict[str, Any]:
        """Remove, or with `dry_run` count, finished messages older than `age_s`, and submission
        keys: the JSON of POST /storage/prune. Repeat until it has `ended`.
        """
        ...

    async def sweep(self) -> int:
        """Remove contents without a message, such as a crash leaves; return their number. What may
        be all that is left of a message is moved aside.
        """
        ...

    @property
    def unheld_stores(self) -> Sequence[str]:
        """The stores for which local mail waits while no living node has their mail root."""
        return ()

    async def claim_unheld(self) -> Sequence[Claim]:
        """Claim some local mail of such stores that has expired, or whose delay is to be reported.

        It is not attempted: its mail root is not there. Its reports wait as it did.
        """
        return ()


class DevelopmentSpool(Protocol):
    """What only a development relay does, whose engine is SQLite."""

    async def sizes(self, limit: int) -> Sequence[tuple[int, int]]:
        """Return when the newest messages were accepted, by the wall clock in microseconds, and the
        sizes of the contents that they still have.
        """
        ...

    async def accepted_ids(self) -> frozenset[str]:
        """Return the queue ids of all messages that are not reports."""
        ...

    async def addresses(self, queue_ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Return the addresses of all recipients of messages, but those that policy has added."""
        ...

    async def discard(self, until_us: int) -> int:
        """Remove some messages that were accepted until then, captured and held ones too, but none
        that is to be delivered; return how many, 0 when nothing is left.
        """
        ...

    async def remove(self, queue_id: str) -> Sequence[ListedRecipient] | None:
        """Remove a message in whatever state, with its history; return its recipients. None, and
        nothing is removed, while delivery has it.
        """
        ...

    async def clear(self) -> int:
        """Remove every message, in whatever state, and every submission key; return the number of
        messages that are not reports. Claims can no longer settle.
        """
        ...


class ReceiptLedger(Protocol):
    """The read receipts that settlements have recorded as owed, until they are sent or end."""

    @property
    def version(self) -> int:
        """A number that changes when owed() may return others."""
        ...

    @property
    def has_any(self) -> bool:
        """Whether there may be any, without a disk access."""
        ...

    async def owed(self) -> Sequence[OwedReceipt]:
        """Return all but those that a restore holds."""
        ...

    async def find(self, mailbox: str, copy_ids: Sequence[str]) -> Sequence[OwedReceipt]:
        """Return those for these copies in a mailbox, as owed()."""
        ...

    async def request(self, key: ReceiptKey) -> ReceiptRequest | None:
        """Return what is asked for; None if it is not owed any more."""
        ...

    async def moved(self, key: ReceiptKey, folder: str) -> None:
        """Record the folder in which the copy was seen."""
        ...

    async def end(self, keys: Sequence[ReceiptKey]) -> None:
        """Forget some."""
        ...

    async def prune(self, before_us: int) -> None:
        """Forget those that have been owed since before a queue time, but not what is held."""
        ...


LOCAL_DOMAINS = "local domains of the store {}"


def unheld_text(store: str) -> str:
    """Return what `relay check` and /readyz say of one of SpoolMaintenance.unheld_stores."""
    return f'no node has the mail root of the store "{store}": its local mail waits'


class News(Flag):
    """What other nodes that share the spool may have done."""

    RECORDED = auto()  # a step of a journey
    DUE = auto()  # entries have come due
    RELEASED = auto()  # entries that were due before may be claimed
    HOLDS = auto()  # other mail is held as it comes


class SpoolEngine(Spool, SpoolHistory, Protocol):
    """An open spool, as its owner uses it. Call start() once, then stop() once."""

    @property
    def queue_admin(self) -> QueueAdmin:
        """Lists and changes the queue for operators."""
        ...

    @property
    def maintenance(self) -> SpoolMaintenance:
        """Its periodic work."""
        ...

    @property
    def development(self) -> DevelopmentSpool | None:
        """What a development relay does with it; None of an engine that it never has."""
        ...

    @property
    def receipts(self) -> ReceiptLedger:
        """The read receipts that are owed."""
        ...

    async def mail_root(self, store: str) -> RecordedRoot:
        """Return what is recorded of the mail root of `store`."""
        ...

    async def record_mail_root(self, store: str, root_id: str, *, instead_of: str = "") -> str:
        """Record the id of the mail root of `store` if none is recorded, or `instead_of`; return
        the one that is recorded then.
        """
        ...

    on_lost: Callable[[SpoolError], None]  # called when it can be used no longer: the node must end
    on_news: Callable[[News], None]  # called with what other nodes may have done
    # returns a digest of each part, by its name, that must be equal on all nodes; the part
    # LOCAL_DOMAINS has the domains themselves
    agreed: Callable[[], Mapping[str, str]]

    def is_of_other_store(self, domain: str) -> bool:
        """Whether a domain is local at the node of another mail root."""
        ...

    async def start(self, *, may_wait: bool = False) -> int:
        """Connect, and release the claims of a dead owner; return their number.

        With `may_wait` an engine whose server does not answer returns 0, and tries again until it
        does; until then everything raises SpoolUnavailableError. Raises SpoolError.
        """
        ...

    async def renew_submission_keys(self, keys: Sequence[str]) -> Collection[str]:
        """Return those of these submission keys that are known; they are remembered as long as if
        they were used now.
        """
        ...

    async def stop(self) -> None:
        """Finish waiting writes and close; also for an engine that was not started."""
        ...

    def close(self) -> None:
        """Close an engine that was not started."""
        ...

    def load(self) -> SpoolLoad:
        """Return the load, without a disk access."""
        ...

    def rounds(self) -> int | None:
        """Wake what writes, and return a number that it raises: it is blocked if the number is the
        same seconds later. An error of the disk or the server is no block. None: it does not run.
        """
        ...

    def health(self) -> str:
        """Return why no new mail is accepted although there is room, or ""."""
        ...

    def disk(self) -> Disk:
        """Return the disk that new mail fills, after its reserve was allocated again if there is
        room. Blocks. Raises OSError.
        """
        ...

    async def counts(self) -> QueueCounts:
        """Count the queue, for the metrics."""
        ...

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`; `nodes` are those that share the queue, if several may."""
        ...


class SpoolFault(StrEnum):
    """What is wrong; docs/operation-repair.md explains each."""

    DAMAGED_SPOOL = "damaged-spool"
    LOST_ROW = "lost-row"
    LOST_CONTENT = "lost-content"
    NEVER_DUE = "never-due"
    UNNEEDED_CONTENT = "unneeded-content"
    COUNTERS = "counters"


class SpoolFinding(Struct, frozen=True):
    """A fault; `action` is what was done about it, or what can be."""

    kind: str
    where: str
    found: str
    expected: str
    repaired: bool = False
    action: str = ""


class BackupSize(Struct, frozen=True):
    """How much there is to copy."""

    database_bytes: int
    contents: int
    content_bytes: int


class BackupResult(Struct, frozen=True):
    """What the copy contains; `missing` are contents that the spool had lost before."""

    database: Path
    contents: Path
    counts: Mapping[str, Any]
    missing: Sequence[str] = ()


class SpoolTools(Protocol):
    """Checks of the stored form.

    All methods raise SpoolError and OSError.
    """

    def verify(
        self,
        *,
        is_owner: bool,
        full: bool,
        recount: bool,
        clock: Clock,
        report: Callable[[SpoolFinding], None],
    ) -> dict[str, int]:
        """Check references, contents (with `full` every octet) and counters; call `report` with
        each finding; return how many of each were checked. With `recount` counters are corrected,
        if no relay can start (`is_owner`).
        """
        ...

    def backup_size(self) -> BackupSize:
        """Return what back_up() would copy."""
        ...


class SpoolStorage(Protocol):
    """The stored form of a spool: `relay storage` and `relay check` use it. Its text names it.

    All methods raise SpoolError and OSError.
    """

    def files(self) -> Sequence[Path]:
        """Return the files that the owner of the spool reads and writes; some may not exist."""
        return ()

    def exists(self) -> bool:
        """Whether there is a spool, or anything that is left of one."""
        ...

    def is_marked_damaged(self) -> bool:
        """Whether its owner has recorded that it is damaged."""
        return False

    def faults(self) -> Sequence[str]:
        """Return why a relay that has started would not work, or could lose mail."""
        return ()

    def warnings(self) -> Sequence[str]:
        """Return what keeps some mail waiting, for an operator to decide."""
        return ()

    def living_nodes(self) -> Sequence[str]:
        """Return the names of the nodes that share it and live; none of what is not shared."""
        return ()

    def other_domains(self) -> Sequence[str]:
        """Return the local domains of the nodes of other mail roots, also of those that ended."""
        return ()

    def check(self, *, has_owner: bool) -> None:
        """Check whether a start could open it, and change nothing. Raises SpoolFormatError,
        SpoolDamagedError.
        """
        ...

    def tools(self) -> SpoolTools:
        """Return its tools. Raises SpoolUnsupportedError, which names those of the database, where
        they are left to it.
        """
        ...

    def back_up(self, folder: Path, *, on_part: Callable[[int, int], None] = ...) -> BackupResult:
        """Copy one snapshot, with its contents, into `folder`, an empty directory, while the owner
        writes. `on_part` is called with the parts that are done, and their number.

        The copy can replace the spool.
        """
        ...

    def restored(self, folder: Path) -> AbstractContextManager[None]:
        """Put in place, where there is no spool, what back_up() wrote into `folder`. No node but
        one that is opened as `alone` can join before the end of the block; after an error in it the
        tables of a database are removed again.

        Raises SpoolNotEmptyError, SpoolInUseError while a node lives, and FileNotFoundError for the
        copy of another kind of spool.
        """
        ...

    def accepted_since(self, folder: Path | None, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield each of these submission keys with which a message was accepted after back_up()
        copied into `folder`, None: at any time. It comes once with the name of each recipient that
        the history has, QUEUE-ID-NUMBER, or once without.
        """
        ...

    def has_part(self, path: Path) -> bool:  # noqa: ARG002 - a database has none
        """Whether a file or directory belongs to the spool: back_up() copies what is needed."""
        return False
