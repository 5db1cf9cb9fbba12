"""Operator commands on the queue (retry, hold, release, cancel, reroute) and their results.

The HTTP API and the command line create a QueueCommand; the spool's QueueAdmin executes it. This
module is pure: it holds the values and decides which operation is allowed in which state. Times
are queue time (Clock.queue_us). A ValueError for an invalid command has a text for the operator.

See docs/names.md (Commands) and docs/design.md 4.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct, to_builtins

from relay.base.clock import rfc3339
from relay.base.message.address import AddressError, parse_odd_mailbox
from relay.base.message.lifecycle import FINAL, TRANSITIONS, RecipientState
from relay.base.message.nexthop import Destination, NextHop
from relay.store.journeys.details import AttemptDetail, CommandDetail, Detail
from relay.store.spool.types import RESTORED_US, Key, QueueOrder, Selector

RouteLookup = Callable[[str, str], Destination | None]  # of an address and the reverse-path
WHY_CHARACTERS_MAX = 500
LISTED_MAX = 10_000  # entries of one answer
RECIPIENTS_MAX = 100_000  # recipients of these entries
COPIES_MAX = 100  # addresses to which one release sends a copy
UNKNOWN_HEADER = "x-relay-unknown"  # of a list over HTTP: percent-encoded, separated by commas
BEFORE_QUEUE_HEADER = "x-relay-before-queue"  # of a list over HTTP: scheduled=1, converting=0
DRAFT_STAYS = "its draft stays in Drafts"  # Microsoft Graph did not delete it
# why a reroute leaves a report where it is
NO_REPORTS = (
    "this route to Microsoft Graph takes no mail with the null reverse-path, except with reports ="
    " true delivery reports about mail of trusted clients"
)


class Operation(StrEnum):
    """What an operator can do with an entry."""

    RETRY = "retry"
    HOLD = "hold"
    RELEASE = "release"
    CANCEL = "cancel"
    REROUTE = "reroute"


class CommandResult(StrEnum):
    """The result for one entry."""

    DONE = "done"
    UNCHANGED = "unchanged"
    ORDERED = "ordered"  # it is done when no attempt runs, and Graph has said what became of it


class EntryRecipient(Struct, frozen=True):
    """A recipient in `queue list`, as it is stored."""

    address: str
    state: str
    status: str
    reply: str


class ListedEntry(Struct, frozen=True, omit_defaults=True):
    """An entry, or a waiting submission, in the JSON of `queue list`; times are wall time."""

    id: str  # the queue id, or that of the submission
    entry: int  # its number; 0: a submission
    sender: str | None  # the reverse-path; None: the message is missing
    subject: str | None  # None: the message is missing
    route: str  # that chose the next hop
    next_hop: str  # "pickup" for a submission
    state: str  # SCHEDULED of a submission, RecipientState
    due: str | None  # the next attempt; None: an operator must act
    attempts: int  # so far
    size: int | None  # in octets
    recipients: tuple[EntryRecipient, ...]  # the first ones
    claimed: bool  # a delivery is in progress
    priority: str  # the name of its PriorityLevel
    expires: str | None  # None: not while it is restored
    held_until: str | None  # None: not held, or by no time
    reason: str  # why it is held
    rule: str  # that holds it
    since: str  # when it was held
    restored: bool = False  # a restore holds it
    order: str = ""  # the operation that waits for an answer of Microsoft Graph
    recipients_cut: bool = False  # there are more recipients

    def as_json(self) -> dict[str, Any]:
        """Return the JSON; what has its default is left out."""
        return dict(to_builtins(self))


@dataclass(frozen=True, slots=True)
class QueueCommand:
    """An operation and its parameters."""

    operation: Operation  # what to do
    selector: Selector  # with which entries
    who: str  # recorded in the journey
    why: str = ""  # recorded in the journey
    dry_run: bool = False  # only says what would change
    until_us: int | None = None  # ends a hold, in queue time
    # with a hold: it is of restored mail, which does not expire; when it was backed up, in queue
    # time
    backed_up_us: int | None = None
    # a hold of a domain also holds new mail, until a release of the domain with `new`
    new: bool = False
    as_before: bool = False  # a release restores the state and the next retry time
    # returns the destination of an address, None if there is none; a release of captured mail too
    to: RouteLookup | None = None
    # a release of captured mail sends a copy to these addresses; its recipients stay captured
    copy_to: tuple[str, ...] = ()
    forgets: bool = True  # a reroute forgets failures of the new next hop
    to_text: str = ""  # the operator's text for `to`
    bounce: bool = False  # a cancel reports the failure to the sender
    text: str = ""  # the text of the report; "": that an operator cancelled the mail

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.selector == Selector():
            raise ValueError("select entries: an ID, a condition, or all")
        for name, text in (("reason", self.why), ("text", self.text)):
            if len(text) > WHY_CHARACTERS_MAX or not text.isprintable():
                most = f"at most {WHY_CHARACTERS_MAX} characters"
                raise ValueError(f"{name}: expected one line of {most}")
        if self.bounce and self.operation is not Operation.CANCEL:
            raise ValueError("only a cancel reports to the sender")
        if self.text and not self.bounce:
            raise ValueError("text: it is for the report; ask for one with bounce")
        if self.new and self.selector != Selector(domain=self.selector.domain):
            raise ValueError("new: it takes a domain, and no other condition")
        if self.new and self.operation is Operation.HOLD:
            _check_domain(self.selector.domain)
        is_reroute = self.operation is Operation.REROUTE
        if is_reroute != (self.to is not None) and self.operation is not Operation.RELEASE:
            raise ValueError("only a reroute takes a next hop, and it needs one")
        if len(self.copy_to) > COPIES_MAX:
            raise ValueError(
                f"to: found {len(self.copy_to):,} addresses, expected at most {COPIES_MAX}"
            )
        if self.copy_to and (self.to is None or self.operation is not Operation.RELEASE):
            raise ValueError("only a release sends copies, and it needs a next hop")

    @property
    def can_wait(self) -> bool:
        """Whether as_order() has all of it."""
        is_odd = self.copy_to or self.as_before or self.backed_up_us is not None
        return not is_odd and (self.to is None or bool(self.to_text))

    def as_order(self) -> QueueOrder:
        """Return what is noted of it until it can be carried out."""
        return QueueOrder(*[getattr(self, name) for name in QueueOrder.__struct_fields__])

    def is_rerouting(self, state: RecipientState) -> bool:
        """Whether the command gives an entry in `state` another next hop."""
        return self.operation is Operation.REROUTE or (
            self.to is not None and state is RecipientState.CAPTURED
        )

    def inapplicable_reason(self, state: RecipientState) -> str:
        """Return why the command does not apply to entries in `state`, "" if it does."""
        if self.copy_to and state is not RecipientState.CAPTURED:
            return "only captured mail is released as a copy"
        if self.operation is Operation.RELEASE and self.is_rerouting(state):
            return ""
        return _INAPPLICABLE[self.operation].get(state, "")


@dataclass(slots=True)
class CommandReport:
    """The result of a command: counts, and the first entries as `queue list` shows them.

    Each listed entry has its `result` and a `note`: why it is not done, or what is left to do.
    """

    counts: dict[CommandResult, int] = field(  # entries
        default_factory=lambda: dict.fromkeys(CommandResult, 0)
    )
    entries: list[dict[str, Any]] = field(default_factory=list)  # as `queue list` shows them
    unknown: tuple[str, ...] = ()  # ids of the selector that match no entry in the queue
    dry_run: bool = False  # nothing has changed
    reports: int | None = None  # to senders; None: the command makes none
    new: Sequence[str] = ()  # domains for which new mail is held from now on, or not any more

    def as_json(self) -> dict[str, Any]:
        """The response of /relay/v1/queue/{operation}."""
        return {
            "matched": sum(self.counts.values()),
            "done": self.counts[CommandResult.DONE],
            "unchanged": self.counts[CommandResult.UNCHANGED],
            "in_flight": 0,  # what an attempt has is ordered
            "ordered": self.counts[CommandResult.ORDERED],
            "dry_run": self.dry_run,
            "unknown": list(self.unknown),
            "entries": self.entries,
            **({"new": list(self.new)} if self.new else {}),
            **({} if self.reports is None else {"reports": self.reports}),
        }


class EntryList(list[dict[str, Any]]):
    """Entries as the JSON of `queue list`; `unknown` as in CommandReport. `before_queue` is the
    number of messages in each state before step 4, if that was counted.
    """

    def __init__(
        self,
        entries: Iterable[dict[str, Any]] = (),
        *,
        unknown: Iterable[str] = (),
        before_queue: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(entries)
        self.unknown = tuple(unknown)
        self.before_queue = before_queue


class CloudDrafts(Protocol):
    """Drafts in Microsoft Graph that no attempt sends any more; a draft is its mailbox and id."""

    async def delete_drafts(
        self, next_hop: NextHop, drafts: Collection[tuple[str, str]]
    ) -> set[tuple[str, str]]:
        """Delete drafts, within 10 s; return those that are gone. Raises nothing."""

    def look_for_lost(
        self, key: Key, next_hop: NextHop, lost_posts: Sequence[tuple[str, str]]
    ) -> None:
        """Begin to look for EntryExtra.lost_posts of an entry, and delete what is found."""


class ActiveClaims(Protocol):
    """The claims that delivery holds in memory."""

    @property
    def drafts(self) -> CloudDrafts:
        """Drafts in Microsoft Graph."""

    def waiting_among(self, keys: Collection[Key]) -> frozenset[Key]:
        """Return which of these claims wait for an attempt."""

    def withdraw(self, keys: Collection[Key]) -> frozenset[Key]:
        """Remove the claims that wait for an attempt from memory, and return them."""

    def retry_now(self, next_hops: Collection[NextHop]) -> None:
        """Scan for due entries, and forget that these next hops were unreachable."""

    def due_at(self, due_us: int) -> None:
        """Scan the queue at this queue time at the latest."""


# Why an operation does not apply to a state; everything else is allowed.
_INAPPLICABLE: Mapping[Operation, Mapping[RecipientState, str]] = {
    Operation.RETRY: {
        RecipientState.HELD: "it is held: release it",
        RecipientState.CAPTURED: "it is captured: reroute it",
    },
    Operation.HOLD: {RecipientState.CAPTURED: "it is captured, and stays here as it is"},
    Operation.RELEASE: {
        RecipientState.QUEUED: "it is not held",
        RecipientState.DEFERRED: "it is not held",
        RecipientState.CAPTURED: "it is captured: say where to with reroute, or start "
        "relay dev with --release-to smtp://HOST:PORT",
    },
    Operation.CANCEL: {},
    Operation.REROUTE: {},
}


def _check_domain(text: str) -> None:
    try:
        parse_odd_mailbox(f"x@{text.removeprefix('*.')}", smtputf8=True)
    except AddressError:
        expected = "expected a domain or *.DOMAIN for what comes"
        raise ValueError(f"domain: found {text!r}, {expected}") from None


def state_after(
    operation: Operation, state: RecipientState, *, was_deferred: bool = False
) -> RecipientState:
    """Return the state of an entry, and of its recipients, after `operation`.

    `was_deferred`: a release restores the state before the hold, and the entry had been attempted.
    """
    match operation:
        case Operation.HOLD:
            return RecipientState.HELD
        case Operation.RELEASE:
            return RecipientState.DEFERRED if was_deferred else RecipientState.QUEUED
        case Operation.CANCEL:
            return RecipientState.CANCELLED
        case Operation.REROUTE:
            return RecipientState.QUEUED if state is RecipientState.CAPTURED else state
        case Operation.RETRY:
            return state


def states_before(after: RecipientState) -> tuple[RecipientState, ...]:
    """Return the states that may change to `after`."""
    return tuple(state for state in RecipientState if after in TRANSITIONS[state])


def earliest_due_us(retry_us: int | None, *, warn_us: int | None, end_us: int | None) -> int:
    """Return when an entry that waits must be looked at: the earliest of its times."""
    return min(at_us for at_us in (retry_us, warn_us, end_us) if at_us is not None)


class ShownTimes(Struct, frozen=True):
    """Formats queue times as wall time, which is ahead by `offset_us`. Captured mail that does not
    expire is removed `captured_us` after its arrival.
    """

    offset_us: int
    captured_us: int | None = None

    def wall_time(self, queue_us: int) -> str:
        """Return a time of the queue as RFC 3339."""
        return rfc3339(queue_us + self.offset_us)

    def end(self, state: str, end_us: int | None, *, received_us: int | None) -> str | None:
        """Return when an entry ends by itself; None if it does not, or if that is not known.

        `end_us` is of types.end_us(), and `received_us` a time of its message.
        """
        if state == RecipientState.CAPTURED and received_us and self.captured_us is not None:
            end_us = received_us + self.captured_us
        if state in FINAL or not end_us or end_us >= RESTORED_US:
            return None
        return self.wall_time(end_us)


def has_been_restored(due_us: int | None) -> bool:
    """Return whether a held entry with this due time is held by a restore."""
    return due_us is not None and RESTORED_US <= due_us < 2 * RESTORED_US


def command_reason(number: int, details: Iterable[Detail], operation: Operation) -> str:
    """Return who last did this operation on an entry, and why; "" if that is not known. The relay
    itself only holds entries.

    `details` are the details of step 6, newest first.
    """
    for detail in details:
        match detail:
            case CommandDetail() if detail.operation == operation and number in detail.entries:
                return ": ".join(filter(None, (detail.who, detail.why)))
            case AttemptDetail() if operation is Operation.HOLD and detail.entry == number:
                if detail.held:
                    return f"relay: {detail.held}"
    return ""
