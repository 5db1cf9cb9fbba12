"""The values that go into the spool and come out of it.

Nothing here depends on the database. The SMTP server and the reports create NewMessage. Delivery
claims entries (Claim), records results (ClaimResult) and decides when an entry is due next
(EntrySchedule). Queue ids are Ids of the clock. Times are microseconds since 1970 UTC in queue
time (Clock.queue_us). Errors are SpoolError and its subclasses.

See RFC 3461 (the envelope), RFC 3464 (what a report needs) and RFC 5321 4.5.4.1 (retries).
"""

import errno
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from relay.base.message.address import own_mailbox
from relay.base.message.content import Content, Octets
from relay.base.message.envelope import NO_MESSAGE_EXTRA, ForwardPath, MessageExtra, MessageFacts
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import HopKind, NextHop
from relay.base.message.outcome import Outcome
from relay.base.message.receipt import ReceiptKey
from relay.base.message.verdict import RuleMail
from relay.base.phrases import words_in
from relay.formats.dsn import ReportedRecipient, ReportKind
from relay.formats.read_report import RemoteReport
from relay.store.journeys.events import Event

ContentKey = Any  # of a content: hashable, of a type that only the engine knows
Key = tuple[str, int]  # of an entry: the id of its message, and its number there
FIRST_KEY: Key = ("", 0)  # before every entry
# In the order in which the entries of a level are due: due time, and key.
Position = tuple[int, str, int]
FIRST_POSITION: Position = (-1, "", 0)
FIRST_EPOCH = 1
Unanswered = tuple[tuple[int, int], ...]  # recipients by number, and attempts
# A restored entry is due, and its message expires, at RESTORED_US plus the time that was left until
# its expiry: never, and later than any entry that was not restored.
RESTORED_US = 1 << 57
UPLOADS_MAX = 5  # in EntryExtra.uploads: the last ones
NEVER_US = 1 << 58  # the due time of an entry that does not expire: later than RESTORED_US
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def end_us(state: str, *, due_us: int | None, expires_us: int | None) -> int | None:
    """Return when an entry that waits ends by itself. Captured mail and what a restore holds are
    kept for another time than `expires_us`.
    """
    is_kept = state == RecipientState.CAPTURED or (due_us or 0) >= RESTORED_US
    return due_us if is_kept else expires_us


class PriorityLevel(IntEnum):
    """The order of due entries: lower levels first, but each level gets a share."""

    HIGH = 0
    NORMAL = 1
    LOW = 2
    UNREACHABLE = 3  # the last attempt reached no host


@lru_cache(maxsize=4096)  # called several times for each message
def sender_key(name: str) -> int:
    """Return the number that rows and indexes store in place of a sender's name."""
    return int.from_bytes(blake2b(own_mailbox(name).encode(), digest_size=8).digest(), "big") >> 1


class EntrySchedule(Struct, frozen=True):
    """When and how an entry is attempted next, as columns of its row. Times as in Claim."""

    retry_us: int | None
    due_us: int
    level: PriorityLevel = PriorityLevel.NORMAL
    cause: str = ""
    cause_attempts: int = 0
    warn_us: int | None = None


class DueQuery(Struct, frozen=True):
    """Selects due entries of a priority level.

    Without `next_hop` and `sender`: all, oldest due first. With `sender`: of this sender. With
    `next_hop`: for this next hop, round robin among its senders. `without_senders` does not skip
    entries of `sender`, nor `without_hops` entries for `next_hop`.
    """

    level: PriorityLevel = PriorityLevel.NORMAL  # the priority level
    after: Position | None = None  # where the scan continues; None: from the beginning
    next_hop: NextHop | None = None  # None: any
    after_sender: int = -1  # with `next_hop`: the sender after which the round continues
    sender: int | None = None  # None: any
    without_hops: Collection[NextHop] = ()  # entries for these are skipped
    without_senders: Collection[int] = ()  # entries of these are skipped
    # entries of this sender for this next hop are skipped
    without_pairs: Collection[tuple[NextHop, int]] = ()
    # only entries of the level that have expired, whose hold ends, or whose delay is to be reported
    only_ended: bool = False


class SpoolError(Exception):
    """The operation failed and changed nothing."""


class SpoolFormatError(SpoolError):
    """The file is not a spool, or a newer Relay made it. A retry does not help."""


class SpoolDamagedError(SpoolFormatError):
    """The file, or a page of it, cannot be read. Nothing was changed."""


class SpoolFullError(SpoolError):
    """There is no room on the disk: 452 4.3.1."""


class SpoolUnsupportedError(SpoolError):
    """The tools of the database do this, not the engine; the text names them."""


class SpoolUnavailableError(SpoolError):
    """The spool cannot be written now: 451 4.3.0."""


class SpoolInUseError(SpoolError):
    """Another node owns the spool."""


class SpoolNotEmptyError(SpoolError):
    """A spool cannot be restored where there is already something."""


class OrderedError(SpoolError):
    """A queue command waits for the end of the attempt, which sends nothing any more."""


class NodeNameError(SpoolError):
    """Another node uses the name of this one."""


class HoldsFullError(SpoolError):
    """The rules of a tenant ("": of the operator) hold as many entries as they may: 452 4.3.1."""

    def __init__(self, tenant: str) -> None:
        super().__init__(f"rules hold as many entries as they may {tenant}".rstrip())
        self.tenant = tenant


class SuppressedError(SpoolError):
    """Recipients are on the list of dead addresses: nothing was accepted."""

    def __init__(self, since_us: Mapping[str, int]) -> None:
        super().__init__("recipients are on the list of dead addresses")
        self.since_us = since_us  # own_mailbox() of each, and the wall time


@contextmanager
def translate_os_errors(place: Path) -> Iterator[None]:
    """Turn an OSError into a SpoolError that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise SpoolFullError(f"{place}: the disk is full") from error
        raise SpoolUnavailableError(f"{place}: {error.strerror or error}") from error


class NewRecipient(Struct, frozen=True):
    """A recipient when it is accepted. With a final `state` (rejected, invalid, discarded,
    redirected, expanded; delivered, if its copy is quarantined elsewhere) it has no entry.

    `successors` are the addresses that replace a redirected or expanded one. `position` is its
    place in the envelope, from 1; a recipient without one is numbered after those that have one.
    `added_by` names the rule that added the recipient: it then has NOTIFY=NEVER and is not in the
    sender's journey.
    """

    path: ForwardPath
    state: RecipientState = RecipientState.QUEUED
    status: str = ""
    reply: str = ""
    added_by: str = ""
    successors: tuple[str, ...] = ()
    position: int = 0


class CloudRequest(Struct, frozen=True, omit_defaults=True):
    """A draft in a mailbox of Microsoft Graph, whose end is not known. Times are queue time. The
    names of the fields are stored: see EntryExtra.
    """

    mailbox: str  # from which it is sent
    message_id: str  # its internetMessageId, with <>
    recipients: tuple[int, ...]  # by number
    posted_us: int  # when the draft was made
    draft: str = ""  # its id; "": the answer was lost, by 0.4.0 or older
    sent_us: int = 0  # when the last /send without a known answer was made; 0: there is none
    # its createdDateTime, to the second, by Graph's own 201, "never" where that has none; "": a
    # release up to 0.4.0 made it
    created: str = ""
    lost_us: int = 0  # when it was noted that the answer to this /send is lost; 0: not yet


class QueueOrder(Struct, frozen=True, omit_defaults=True):
    """A queue command that waits for the end of an attempt, or until Microsoft Graph has said
    whether it sent the message. Fields as in QueueCommand. Their names are stored: see EntryExtra.
    """

    operation: str
    who: str
    why: str = ""
    until_us: int | None = None
    bounce: bool = False
    text: str = ""
    to_text: str = msgspec.field(default="", name="to")

    @property
    def restarts(self) -> bool:
        """Whether it lets attempts go on: then it does not wait for Microsoft Graph."""
        return self.operation in ("retry", "release")


class EntryExtra(Struct, frozen=True, omit_defaults=True):
    """Fields of an entry that no query selects by: a JSON text in its row, "" for the defaults.

    A new field needs a default, and no migration. A stored field keeps its name and its meaning. A
    Relay ignores unknown fields, and keeps them when it changes others.
    """

    # An operator or a rule chose its next hop: no route has to match.
    chosen: bool = False
    # Why it is held: "route NAME", or who holds it and why. "": it is not held.
    reason: str = ""
    # The rule that holds it.
    rule: str = ""
    # Since when it is held, in wall clock time; 0: since the acceptance of its message.
    since_us: int = 0
    # It was held and was released: no route holds it again.
    released: bool = False
    # When it expires, in queue time; 0: when its message does. An entry that a rule holds has
    # another expiry, and after its release it is attempted for as long as new mail.
    expires_us: int = 0
    # When the hold with which it was accepted ends by itself, in queue time; 0: it does not.
    until_us: int = 0
    # No report is written when it expires while it is held.
    silent: bool = False
    # If a rule holds it: how long it is attempted after its release.
    lifetime_us: int = 0
    # The reverse-path in MAIL, if it differs from that of the message (SRS, quarantine). Reports
    # still go to the sender of the message.
    sender: str = ""
    # The alias that led to this next hop: the Delivered-To field of a copy that leaves.
    delivered_to: str = ""
    # The well-known folder of the local mailbox. "": the Inbox.
    folder: str = ""
    # By number of the recipient: how many attempts had no answer to the final dot.
    unanswered: Unanswered = ()
    # When the fallback may be used, in queue time: if no host of the next hop answers an attempt
    # after it, the next attempt is at the fallback. NEXT_ATTEMPT: the next attempt is there. 0: a
    # host answered, or there is no fallback.
    fallback_us: int = 0
    # A permanent failure is retried until it expires. The quota of a mailbox applies, also to
    # reports.
    keep: bool = False
    # Drafts in Microsoft Graph without a known end.
    requests: tuple[CloudRequest, ...] = ()
    # How many drafts have been posted.
    requests_before: int = 0
    # The last drafts whose POST had no 201: mailbox and internetMessageId of each.
    lost_posts: tuple[tuple[str, str], ...] = ()
    # Drafts that are being filled with files, or were: they are never sent, but deleted. The
    # internetMessageId of each is made here; one without an id counts as lost.
    uploads: tuple[CloudRequest, ...] = ()
    # The command that is carried out when no attempt runs, and the answer to each /send is known.
    order: QueueOrder | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether Microsoft Graph may have sent it: the answer to a /send is not known."""
        return any(request.sent_us for request in self.requests)

    @property
    def unsent(self) -> list[tuple[str, str]]:
        """The drafts that were not asked to be sent: the mailbox and id of each."""
        return [
            (request.mailbox, request.draft)
            for request in (*self.requests, *self.uploads)
            if request.draft and not request.sent_us
        ]

    def left_in_drafts(self, *, in_doubt: bool = False) -> list[str]:
        """Return what may be left in Drafts, for the journey: the mailbox, and the id or
        Message-ID; with `in_doubt` also drafts that Graph may have sent.
        """
        doubted = [(request.mailbox, request.draft) for request in self.requests if request.sent_us]
        return [*map(" ".join, [*self.unsent, *(in_doubt * doubted), *self.all_lost_posts])]

    @property
    def without_requests(self) -> "EntryExtra":
        """It, where no attempt sends what is in `requests`, but deletes it."""
        drafts = [request for request in self.requests if request.draft]
        lost_posts = replace(self, uploads=()).all_lost_posts
        return replace(self, requests=(), uploads=(*self.uploads, *drafts), lost_posts=lost_posts)

    @property
    def all_lost_posts(self) -> tuple[tuple[str, str], ...]:
        """`lost_posts`, with those in `requests` and in `uploads`."""
        others = (*self.requests, *self.uploads)
        without_id = [request for request in others if not request.draft]
        return (*self.lost_posts, *[(post.mailbox, post.message_id) for post in without_id])


NO_EXTRA = EntryExtra()  # of ordinary mail
NEXT_ATTEMPT = 1  # in EntryExtra.fallback_us

_ENTRY_EXTRA = msgspec.json.Decoder(EntryExtra)
_MESSAGE_EXTRA = msgspec.json.Decoder(MessageExtra)


def extra_text(extra: EntryExtra | MessageExtra) -> str:
    """Return the JSON text that is stored: "" for the defaults."""
    if extra in (NO_EXTRA, NO_MESSAGE_EXTRA):
        return ""
    return msgspec.json.encode(extra).decode()


def parse_entry_extra(text: str) -> EntryExtra:
    """Parse extra_text(). Raises ValueError."""
    return _ENTRY_EXTRA.decode(text) if text else NO_EXTRA


@lru_cache(maxsize=1024)  # asked several times for each entry of a queue command
def readable_extra(text: str) -> EntryExtra | None:
    """Return parse_entry_extra(), or None for a text that cannot be read."""
    try:
        return parse_entry_extra(text)
    except ValueError:
        return None


def parse_message_extra(text: str) -> MessageExtra:
    """Parse extra_text(). Raises ValueError."""
    return _MESSAGE_EXTRA.decode(text) if text else NO_MESSAGE_EXTRA


class NewEntry(Struct, frozen=True):
    """The copy of a message for one next hop; `content` is an index into NewMessage.contents.

    `level` is its first priority level, None for the message's priority. With a reason in `extra`
    it is held: it is not claimed, and waits for a release or its expiry.
    """

    next_hop: NextHop
    recipients: tuple[NewRecipient, ...]
    content: int = 0
    level: PriorityLevel | None = None
    extra: EntryExtra = NO_EXTRA
    priority: PriorityLevel | None = None  # that its content asks for; None: as the message


class NewMessage(Struct, frozen=True):
    """Everything that one transaction makes durable: a message, its contents, its entries, and
    recipients that are final already.

    The caller keeps the body of a large content; its acceptance links or copies it into the spool.
    """

    facts: MessageFacts  # what all entries share
    contents: tuple[Content, ...]  # what an entry does not use is not stored
    entries: tuple[NewEntry, ...]  # the copies to deliver or hold
    final_recipients: tuple[NewRecipient, ...] = ()  # those without an entry
    events: tuple[Event, ...] = ()  # steps of the journey
    priority: PriorityLevel = PriorityLevel.NORMAL  # the level that it asked for
    warn_us: int | None = None  # of the delay warning, in queue time; None: never
    held_max: int | None = None  # entries that rules may hold, with this message; None: no limit

    @property
    def held_by_rules(self) -> tuple[str, ...]:
        """The rule of each entry that a rule holds."""
        return tuple([entry.extra.rule for entry in self.entries if entry.extra.rule])

    @property
    def sender_key(self) -> int:
        """The key for the round robin among senders: from the account, or the reverse-path."""
        return sender_key(self.facts.account or self.facts.envelope.reverse_path)

    def level_of(self, entry: NewEntry) -> PriorityLevel:
        """Return the first priority level of one of its entries."""
        return self.priority_of(entry) if entry.level is None else entry.level

    def priority_of(self, entry: NewEntry) -> PriorityLevel:
        """Return the priority level that one of its entries asked for."""
        return self.priority if entry.priority is None else entry.priority


class ReportPlan(Struct, frozen=True):
    """What to commit with a result: report messages, and events of the message they are about."""

    messages: tuple[NewMessage, ...] = ()
    events: tuple[Event, ...] = ()


class ReportWriter(Protocol):
    """Decides what is reported, and writes the reports: relay.delivery.reports' Reporter."""

    def reports(
        self,
        kind: ReportKind,
        message: MessageFacts,
        recipients: Sequence[ReportedRecipient],
        *,
        content: Content,
    ) -> ReportPlan:
        """Return the reports about these recipients; none where none may be sent."""

    def rule_mail(
        self, mail: RuleMail, *, about: MessageFacts, write: Callable[[str], Content]
    ) -> NewMessage:
        """Return the mail that a rule sends about a message; `write` gets the id of the mail."""

    def wants(
        self, kind: ReportKind, message: MessageFacts, recipients: Sequence[ReportedRecipient]
    ) -> bool:
        """Whether the sender may get a report of this kind about any of them."""


class ClaimedRecipient(Struct, frozen=True):
    """A recipient of a claimed entry.

    `id` is its number in the message. Its file in a local mailbox is named by the queue id and this
    number. `status` and `reply` are those of the last attempt, "" before the first.
    """

    id: int
    path: ForwardPath
    added_by: str = ""
    status: str = ""
    reply: str = ""


class Claim(Struct, frozen=True):
    """The right to attempt one entry once.

    It ends with record or release, or when the epoch of the entry is raised. Times are queue time
    in microseconds.
    """

    entry_id: int  # of the entry
    epoch: int  # of the entry; after another change of the entry no result is recorded
    message: MessageFacts  # what all entries of the message share
    next_hop: NextHop  # where it goes
    recipients: tuple[ClaimedRecipient, ...]  # those that are not final
    attempts: int  # before this one
    content_id: ContentKey  # for SpoolEngine.read_content()
    content_size: int  # in octets
    # of small messages that were just accepted; otherwise it is read
    content: bytes | None = None
    # before the claim; held and captured entries are claimed when they expire
    state: RecipientState = RecipientState.QUEUED
    retry_us: int | None = 0  # when it may be tried; None: not without an operator
    due_us: int = 0  # the earliest of `retry_us`, `warn_us` and its expiry
    level: PriorityLevel = PriorityLevel.NORMAL  # may be unreachable
    sender: int = 0  # NewMessage.sender_key
    cause: str = ""  # the class of its last deferral; "": none
    cause_attempts: int = 0  # how many attempts in a row were deferred
    warn_us: int | None = None  # of the delay warning; None: none is due
    priority: PriorityLevel = PriorityLevel.NORMAL  # the level that its message asked for
    # recipients that a host accepted in this attempt or before, and whose sender is owed a report
    owed: tuple[ReportedRecipient, ...] = ()
    extra: EntryExtra = NO_EXTRA  # fields by which no query selects
    owner: int = 0  # the incarnation of the node that has claimed it, where several share a spool
    store: int = 0  # the number of the mail root for its local mail, where several share a spool

    def __repr__(self) -> str:  # without the content, which is not for a log
        return f"Claim({self.message.id}, entry_id={self.entry_id}, epoch={self.epoch})"

    @property
    def key(self) -> Key:
        """The key of the entry."""
        return self.message.id, self.entry_id

    @property
    def stays_at_graph(self) -> bool:
        """Whether it goes to no fallback: Microsoft Graph may have sent it, or it is a report."""
        is_at_graph = self.next_hop.kind is HopKind.GRAPH
        is_unanswered = bool(self.extra.unanswered) or not self.message.envelope.reverse_path
        return (is_at_graph and is_unanswered) or self.extra.in_doubt

    @property
    def expires_us(self) -> int:
        """When the entry expires: by EntryExtra, or else with its message."""
        return self.extra.expires_us or self.message.expires_us

    @property
    def end_us(self) -> int | None:
        """When the entry ends if it waits until then."""
        return end_us(self.state, due_us=self.due_us, expires_us=self.expires_us)

    @property
    def is_held_by_rule(self) -> bool:
        """Whether a rule of the policy holds it."""
        return self.state is RecipientState.HELD and bool(self.extra.rule)

    @property
    def is_fresh(self) -> bool:
        """Whether this process created it with its entry: a later claim has a higher epoch."""
        return self.epoch == FIRST_EPOCH


class ClaimResult(Struct, frozen=True):
    """The result of a claim; all of it is one transaction.

    Recipients without an outcome were not tried, and do not change. If one outcome is Captured, all
    recipients that are not final have it, and the entry becomes captured mail.
    """

    claim: Claim  # it ends, unless `goes_on`
    at_us: int  # of the attempt: wall clock time
    outcomes: Mapping[int, Outcome]  # by the number of the recipient
    # the next schedule of those that are not final; None where none is left
    waiting: EntrySchedule | None = None
    unanswered: Unanswered = ()  # for EntryExtra; (): it stays as it is
    fallback_us: int = 0  # for EntryExtra
    # by number: these end as expired, with their last evidence
    expired: Mapping[int, Outcome] = {}
    reports: tuple[NewMessage, ...] = ()  # messages that become durable with the outcomes
    events: tuple[Event, ...] = ()  # steps of the journey
    # what a report says of another message, and the addresses it goes to, without which the other
    # message may be anybody's; it is recorded in the journey of that message, if it is in the spool
    remote_report: tuple[RemoteReport, tuple[str, ...]] | None = None
    counts_as_attempt: bool = True  # False: the entry keeps its state
    held: bool = False  # the waiting recipients wait for an operator
    goes_on: bool = False  # only these recipients are recorded; the claim stays open for the others
    # with `goes_on`, by number: recipients of which the sender is owed a report at the end
    owed: Collection[int] = ()
    pays: bool = False  # `reports` has the reports that were owed
    ends_warning: bool = False  # no entry of the message has a delay warning any more


class DueBatch(Struct, frozen=True):
    """The result of a DueQuery.

    If `ended` is False, more entries are due: the next query continues after `reached`, or for a
    next hop after the sender `reached_sender` (-1: from the first sender again). `left_hops` and
    `left_senders` have due entries that were skipped; a skipped pair is in `left_hops`.
    """

    claims: tuple[Claim, ...] = ()
    ended: bool = True
    reached: Position | None = None
    reached_sender: int = -1
    left_hops: frozenset[NextHop] = frozenset()
    left_senders: frozenset[int] = frozenset()


class Accepted(Struct, frozen=True):
    """The answer of an acceptance. If it was `repeated` (with the same submission key), `queue_id`
    is the id of the first. `first_end_us` is when the first held or captured entry ends, None if
    there is no such entry.
    """

    queue_id: str
    claims: tuple[Claim, ...] = ()
    repeated: bool = False
    first_end_us: int | None = None


WAITING = "waiting"  # in place of a state: all but captured
# The conditions that is_selected() of the API asks of a submission: no submission meets another.
_OF_SUBMISSIONS = {*words_in("ids sender recipient domain state subject login older_than_s all")}
QUERY_NAMES = {"ids": "id", "older_than_s": "older_than"}  # of fields of Selector, in GET /queue


class Selector(Struct, frozen=True):
    """Which entries a queue command selects; all conditions must match."""

    ids: tuple[str, ...] = ()  # names of entries or messages; (): any
    sender: str = ""  # a pattern of the reverse-path; "": any
    recipient: str = ""  # a pattern of an address; "": any
    domain: str = ""  # a pattern of a recipient's domain; "": any
    next_hop: str = ""  # a pattern of the next hop or its domain; "": any
    state: str = ""  # "": any; "waiting": all but captured
    subject: str = ""  # a pattern of the subject; "": any
    client: str = ""  # a network, or a pattern of the client's IP address or HELO; "": any
    login: str = ""  # a pattern of the account that logged in to send it; "": any
    route: str = ""  # a pattern of the name of the route; "": any
    older_than_s: float | None = None  # since acceptance; None: any age
    restored: bool = False  # only what a restore holds
    all: bool = False  # every entry: a command without a condition must say so

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions that are set, by their names in the body of a queue command."""
        given, unset = asdict(self), asdict(Selector())
        return {name: given[name] for name in given if given[name] != unset[name]}

    @property
    def sees_submissions(self) -> bool:
        """Whether it may match a submission, which meets these conditions alone. `all`, or an age,
        means entries, unless the state is that of submissions.
        """
        if not self.conditions.keys() <= _OF_SUBMISSIONS:
            return False
        is_general = self.all or self.older_than_s is not None or self == Selector()
        return self.state == "scheduled" or (self.state in ("", "held") and not is_general)


class SentReceipt(Struct, frozen=True):
    """What the acceptance of a read receipt changes. The receipt is not owed any more; with
    `is_kept` it stays until its copy is marked. `event` goes to the journey of the message that
    asked for it.
    """

    key: ReceiptKey
    event: Event
    is_kept: bool = False


class QueueCounts(Struct, frozen=True):
    """Entries by state, the age of the oldest, and the number of unaccounted recipients."""

    entries: Mapping[str, int]
    oldest_us: int | None
    unaccounted: int


class SpoolLoad(Struct, frozen=True):
    """Load of the spool. `entries` is the most recent count; `backlog` the used part of the writes
    that may wait for a commit; `commit_s` the present duration of a commit; `is_failing`: the last
    commit failed; `kept_bytes` of its disk are free but reserved.
    """

    entries: int = 0
    backlog: float = 0.0
    commit_s: float = 0.0
    is_failing: bool = False
    kept_bytes: int = 0


class IncomingBody(Protocol):
    """A file for the body of a message that is being received. No row names it yet."""

    async def write(self, blocks: Sequence[bytes]) -> None:
        """Append blocks. Raises SpoolFullError, SpoolUnavailableError."""

    def octets(self) -> Octets:
        """Return what was written. It is synced when a message with this body is accepted."""

    def discard(self) -> None:
        """Remove the file in the background. An accepted body has another name then."""


class LendableBody(IncomingBody, Protocol):
    """An IncomingBody of the spool, which another process may write."""

    async def lend(self) -> int:
        """Return the descriptor of the file, in which another process then writes the body in place
        of write(). Raises SpoolFullError, SpoolUnavailableError.
        """

    async def take_back(self, size_bytes: int, crc32: int) -> None:
        """Take the body that the process has written. The process cannot change it any more: if it
        still has the file open, the body is copied. Raises SpoolUnavailableError, also if the file
        has another size.
        """
