"""What goes into the spool and what comes out: the values of its Protocol.

On the path: ingress and reports make NewMessage, delivery settles Claims, web and journal read.
Holds: queue ids are Ids of the clock; times are microseconds since 1970 UTC.
Fails: SpoolError and its children.
Standards: RFC 3461 (what is kept of the envelope), RFC 3464 (what a report will need).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from relay.journeys.events import Event
from relay.message.content import Content, Octets
from relay.message.envelope import Notify
from relay.message.lifecycle import State
from relay.message.nexthop import NextHop
from relay.message.outcome import Outcome
from relay.message.verdict import Source
from relay.spool.waiting import Lane, Look, Position, Waiting, sender_key

Key = tuple[str, int]  # an entry: its message's id, and its number in it
FIRST_EPOCH = 1


class SpoolError(Exception):
    """The spool did not do it; nothing was changed."""


class SpoolFormatError(SpoolError):
    """The file is no spool, or one of a newer Relay: no use in trying again."""


class SpoolDamagedError(SpoolFormatError):
    """SQLite cannot read the file, or some page of it; nothing was changed."""


class SpoolFullError(SpoolError):
    """No room on the disk: 452 4.3.1."""


class SpoolUnavailableError(SpoolError):
    """It cannot be written now: 451 4.3.0."""


@dataclass(frozen=True, slots=True)
class NewRecipient:
    """A recipient as accepted. With a final `state` it has no entry: rejected, invalid, discarded,
    redirected.

    `successors` are the addresses that stand for a redirected one. `position` is its place in the
    envelope, from 1; without one it comes behind those that have one.
    `added_by` names the rule that added it: such a one has NOTIFY=NEVER and is not in the sender's
    journey.
    """

    address: str
    notify: frozenset[Notify] = frozenset()
    orcpt: str = ""
    state: State = State.QUEUED
    status: str = ""
    reply: str = ""
    added_by: str = ""
    successors: tuple[str, ...] = ()
    position: int = 0


@dataclass(frozen=True, slots=True)
class NewEntry:
    """The copy for one next hop; `content` is an index into NewMessage.contents.

    `lane` is where it begins to wait, None for its message's priority.
    """

    next_hop: NextHop
    recipients: tuple[NewRecipient, ...]
    content: int = 0
    lane: Lane | None = None


@dataclass(frozen=True, slots=True)
class NewMessage:
    """Everything one transaction makes durable: message, contents, entries, and recipients that
    are final already.

    `account` owns the message's trace: the authenticated account or the sender's; "" for strangers.
    `submission_id` is set for pickup's submissions; `client` is "name [address]" for
    Received-From-MTA. `warn_us` is when its sender would hear that it is late, None for never;
    times are steady time (Clock.steady_us). The body of a large content stays its maker's;
    accepting it makes a name of the spool's own for it, or a copy.
    """

    id: str
    reverse_path: str
    source: Source
    trusted: bool
    received_us: int
    expires_us: int
    contents: tuple[Content, ...]
    entries: tuple[NewEntry, ...]
    final_recipients: tuple[NewRecipient, ...] = ()
    account: str = ""
    submission_id: str = ""
    envid: str = ""
    ret: str = ""
    smtputf8: bool = False
    eight_bit: bool = False
    client: str = ""
    message_id: str = ""
    subject: str = ""
    events: tuple[Event, ...] = ()
    priority: Lane = Lane.NORMAL
    warn_us: int | None = None

    @property
    def sender_key(self) -> int:
        """Who takes turns with others: the account's number, or the reverse-path's."""
        return sender_key(self.account or self.reverse_path)

    def lane_of(self, entry: NewEntry) -> Lane:
        """Where one of its entries begins to wait."""
        return self.priority if entry.lane is None else entry.lane


@dataclass(frozen=True, slots=True)
class MessageFacts:
    """A message's row, without its contents; fields as in NewMessage."""

    id: str
    reverse_path: str
    source: Source
    trusted: bool
    received_us: int
    expires_us: int
    size: int
    account: str
    submission_id: str
    envid: str
    ret: str
    smtputf8: bool
    eight_bit: bool
    client: str
    message_id: str
    subject: str


@dataclass(frozen=True, slots=True)
class ClaimedRecipient:
    """A recipient of a claimed entry.

    `id` is its number in the message: with the queue id it names its file in a local mailbox.
    `status` and `reply` are those of the last attempt, "" before the first.
    """

    id: int
    address: str
    notify: frozenset[Notify]
    orcpt: str
    added_by: str
    status: str = ""
    reply: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to try one entry once: it ends with settle or release, or when another raises the
    epoch.

    `attempts` counts those before this one. `content` is there for small messages that were just
    accepted;
    else None: read it with Spool.read_content(content_id).

    `state` is what the entry was before it was claimed: a held or captured one comes to expire.
    `due_us` is when it was to be looked at: the earliest of `retry_us` (when it may be tried; None:
    not by itself), `warn_us` and its expiry. `cause` is the class of its last deferral,
    `cause_attempts` how many in a row had it. `sender` is NewMessage.sender_key, `priority` the
    lane that its message asked for.
    """

    entry_id: int
    epoch: int
    message: MessageFacts
    next_hop: NextHop
    recipients: tuple[ClaimedRecipient, ...]
    attempts: int
    content_id: int
    content_size: int
    content: bytes | None = field(default=None, repr=False)
    state: State = State.QUEUED
    retry_us: int | None = 0
    due_us: int = 0
    lane: Lane = Lane.NORMAL
    sender: int = 0
    cause: str = ""
    cause_attempts: int = 0
    warn_us: int | None = None
    priority: Lane = Lane.NORMAL

    @property
    def key(self) -> Key:
        """Which entry it is."""
        return self.message.id, self.entry_id

    @property
    def is_fresh(self) -> bool:
        """Whether it was made with its entry, by this process: every later one raises the epoch."""
        return self.epoch == FIRST_EPOCH


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a claim came to. Recipients without an outcome (never tried) stay as they are.

    `waiting` is how those deferred or untried go on; None where nothing is left. With `held` they
    wait for an operator. One that does not count as an attempt leaves the entry's state as it was.
    `expired` recipients end as State.EXPIRED with their last evidence. `reports` become durable
    with it. One that `goes_on` tells of recipients that are done, and the claim stays with the
    others.
    """

    claim: Claim
    at_us: int
    outcomes: Mapping[int, Outcome]
    waiting: Waiting | None = None
    expired: Mapping[int, Outcome] = field(default_factory=dict)
    reports: tuple[NewMessage, ...] = ()
    events: tuple[Event, ...] = ()
    counts_as_attempt: bool = True
    held: bool = False
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look found. `ended` is False where more is due, and the next look goes on: behind
    `reached`; for a next hop behind the sender `reached_sender`, with the first again where it is
    -1.

    `left_hops` and `left_senders` had something due that was passed over on their account; for a
    pair it is its next hop.
    """

    claims: tuple[Claim, ...] = ()
    ended: bool = True
    reached: Position | None = None
    reached_sender: int = -1
    left_hops: frozenset[NextHop] = frozenset()
    left_senders: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Accepted:
    """`queue_id` is the id of the first acceptance when `repeated` (same submission key)."""

    queue_id: str
    claims: tuple[Claim, ...] = ()
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Selector:
    """Which entries a queue command means (docs/names.md, Commands);
    all given conditions must hold.
    """

    ids: tuple[str, ...] = ()
    sender: str = ""
    recipient: str = ""
    domain: str = ""
    next_hop: str = ""
    state: str = ""
    older_than_s: float | None = None
    all: bool = False


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """How many entries by state, the age of the oldest, and recipients that are nowhere."""

    entries: Mapping[str, int]
    oldest_us: int | None
    unaccounted: int


@dataclass(frozen=True, slots=True)
class SpoolStrain:
    """How much a spool has to do. `entries` is as it was counted last; `backlog` is how much of
    what may wait for a commit does; `commit_s` how long commits take now; `is_failing`: the last
    one did not succeed.
    """

    entries: int = 0
    backlog: float = 0.0
    commit_s: float = 0.0
    is_failing: bool = False


class Arrival(Protocol):
    """A file for the body of a message that is coming in and that no row names yet."""

    async def write(self, blocks: Sequence[bytes]) -> None:
        """Put blocks behind what is there. Raises SpoolFullError, SpoolUnavailableError."""
        ...

    def octets(self) -> Octets:
        """What was written; it is synced when a message is accepted that has it as its body."""
        ...

    def discard(self) -> None:
        """Remove the file soon, without waiting; what was accepted has another name by then."""
        ...


class Spool(Protocol):
    """The durable queue. Every coroutine returns only after the commit (and fsync) that covers
    it.
    """

    async def accept(
        self,
        message: NewMessage,
        *,
        reports: Sequence[NewMessage] = (),
        submission_key: str = "",
        claim: bool = True,
    ) -> Accepted:
        """Make a message and the reports already due durable; with `claim`, its entries come back
        claimed.

        The same `submission_key` again changes nothing and returns the first queue id.
        Raises SpoolFullError, SpoolUnavailableError.
        """
        ...

    async def settle(
        self, settlement: Settlement, *, claim_reports: bool = True
    ) -> tuple[bool, tuple[Claim, ...]]:
        """Record what a claim came to; (False, ()) if its epoch is over.
        Claims of its reports come back.
        """
        ...

    async def claim_due(self, now_us: int, limit: int, look: Look) -> Seen:
        """Claim up to `limit` entries that are due and that nobody has claimed.

        It reads so much of the queue only as one look may cost: Seen tells where to go on.
        """
        ...

    async def next_due_us(self, after_us: int) -> int | None:
        """When the first unclaimed entry is due behind `after_us`, None if there is none."""
        ...

    async def release(self, claims: Sequence[Claim]) -> None:
        """Give claims back untried; they are due as they were."""
        ...

    def arrival(self) -> Arrival:
        """A place for the body of a large message, which accept() then takes as it is."""
        ...

    async def read_content(self, content_id: int, *, check: bool = True) -> Content:
        """A content, a large one as its header and the file of its body, which is there until the
        claim is settled. Raises SpoolError when it is gone or damaged; `check` compares each octet
        with its checksum.
        """
        ...

    async def journey(self, queue_id: str) -> dict[str, Any] | None:
        """What the spool knows of one message: its half of `/relay/v1/messages/{id}`."""
        ...

    async def find_queue_ids(self, key: str, *, account: str | None, limit: int) -> list[str]:
        """Queue ids for a queue id, submission id, draft id, Message-ID or address; "last";
        newest first.
        """
        ...

    async def counts(self) -> QueueCounts:
        """Queue figures for the metrics."""
        ...
