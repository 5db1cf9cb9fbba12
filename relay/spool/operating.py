"""What an operator asks of the queue and what comes of it: values, and which change is allowed.

On the path: beside it; web and the command line make Orders, the spool's desk carries them out.
Holds: pure; a state is left only by message.lifecycle's table; times are steady time
    (Clock.steady_us).
Fails: ValueError for an order that makes no sense, in words for the operator.
Standards: docs/names.md (Commands); docs/design.md 4.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from relay.message.lifecycle import TRANSITIONS, State
from relay.message.nexthop import NextHop
from relay.spool.types import Key, Selector

Tell = Callable[[int], object]
Way = Callable[[str], NextHop | None]
WHY_CHARACTERS_MAX = 500
LISTED_MAX = 10_000  # entries of one answer, and
RECIPIENTS_MAX = 100_000  # their recipients
UNKNOWN_HEADER = "x-relay-unknown"  # of a list that is told over HTTP: percent-encoded, with commas
LIVE = tuple(state for state in State if TRANSITIONS[state])


class Operation(StrEnum):
    """What can be done by hand."""

    RETRY = "retry"
    HOLD = "hold"
    RELEASE = "release"
    CANCEL = "cancel"
    REROUTE = "reroute"


class Result(StrEnum):
    """What became of one entry."""

    DONE = "done"
    UNCHANGED = "unchanged"
    IN_FLIGHT = "in flight"


@dataclass(frozen=True, slots=True)
class Order:
    """An operation with everything that it takes; `who` and `why` are for the journey.

    `until_us` ends a hold by itself. `as_before` makes a release restore the state and the time of
    the next try. `to` names the next hop of an address for a reroute, None where it has none;
    `to_text` is how the operator said it.
    """

    operation: Operation
    selector: Selector
    who: str
    why: str = ""
    dry_run: bool = False
    until_us: int | None = None
    as_before: bool = False
    to: Way | None = None
    to_text: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.selector == Selector():
            raise ValueError("say which: an ID, a condition, or all")
        if len(self.why) > WHY_CHARACTERS_MAX or not self.why.isprintable():
            raise ValueError(f"reason: expected one line of at most {WHY_CHARACTERS_MAX} letters")
        if (self.operation is Operation.REROUTE) != (self.to is not None):
            raise ValueError("a reroute, and nothing else, needs to know where to")


@dataclass(slots=True)
class Changed:
    """What came of an order: how many entries, and the first of them as `queue list` has them.

    Each listed one has its `result` and, where that is not "done", a `note`. `unknown` are those of
    the selector's ids that no entry in the queue has.
    """

    counts: dict[Result, int] = field(default_factory=lambda: dict.fromkeys(Result, 0))
    entries: list[dict[str, Any]] = field(default_factory=list)
    unknown: tuple[str, ...] = ()
    dry_run: bool = False

    def as_json(self) -> dict[str, Any]:
        """The answer of /relay/v1/queue/{operation}."""
        return {
            "matched": sum(self.counts.values()),
            "done": self.counts[Result.DONE],
            "unchanged": self.counts[Result.UNCHANGED],
            "in_flight": self.counts[Result.IN_FLIGHT],
            "dry_run": self.dry_run,
            "unknown": list(self.unknown),
            "entries": self.entries,
        }


class Listed(list[dict[str, Any]]):
    """Entries as the JSON of `queue list`; `unknown` are as in Changed."""

    def __init__(
        self, entries: Iterable[dict[str, Any]] = (), *, unknown: Iterable[str] = ()
    ) -> None:
        super().__init__(entries)
        self.unknown = tuple(unknown)


class InDelivery(Protocol):
    """What delivery has in memory."""

    def waiting_of(self, keys: Collection[Key]) -> frozenset[Key]:
        """Return which of them only wait, and leave them where they are."""
        ...

    def withdraw(self, keys: Collection[Key]) -> frozenset[Key]:
        """Forget those claims that only wait, and return which; the others are in work."""
        ...

    def retry_now(self, next_hops: Collection[NextHop]) -> None:
        """Look at what is due, and forget that nobody was there at these next hops."""
        ...

    def due_at(self, due_us: int) -> None:
        """Look at the queue at this steady time, or before."""
        ...


class NothingInDelivery:
    """Where no delivery runs (an InDelivery)."""

    def waiting_of(self, keys: Collection[Key]) -> frozenset[Key]:  # noqa: ARG002 - the Protocol's
        """As withdraw()."""
        return frozenset()

    def withdraw(self, keys: Collection[Key]) -> frozenset[Key]:  # noqa: ARG002 - the Protocol's
        """There is none: a start has released what a dead owner had claimed."""
        return frozenset()

    def retry_now(self, next_hops: Collection[NextHop]) -> None:
        """Whoever starts next looks."""

    def due_at(self, due_us: int) -> None:
        """Whoever starts next looks."""


class Desk(Protocol):
    """The queue as operators see it and change it."""

    async def list(self, selector: Selector, *, limit: int) -> Listed:
        """Entries not yet final, oldest first."""
        ...

    async def carry_out(self, order: Order, *, tell: Tell = ...) -> Changed:
        """Do it, in slices; what is done is durable, and `tell` hears how many are, behind each.
        Raises SpoolError in between.
        """
        ...


# What stands in the way of an operation on an entry in a state; what is not here may be done.
_OBSTACLES: Mapping[Operation, Mapping[State, str]] = {
    Operation.RETRY: {
        State.HELD: "it is held: release it",
        State.CAPTURED: "it is captured: reroute it",
    },
    Operation.HOLD: {State.CAPTURED: "it is captured, and stays here as it is"},
    Operation.RELEASE: {
        State.QUEUED: "it is not held",
        State.DEFERRED: "it is not held",
        State.CAPTURED: "it is captured: say where to with reroute",
    },
    Operation.CANCEL: {},
    Operation.REROUTE: {},
}


def obstacle(operation: Operation, state: State) -> str:
    """Return why `operation` means nothing for an entry in `state`, "" when it may be done."""
    return _OBSTACLES[operation].get(state, "")


def state_after(operation: Operation, state: State, *, was_deferred: bool = False) -> State:
    """Return what an entry in `state`, and its recipients, are after `operation`.

    `was_deferred`: it is to be again what it was before it was held, and it had been tried.
    """
    match operation:
        case Operation.HOLD:
            return State.HELD
        case Operation.RELEASE:
            return State.DEFERRED if was_deferred else State.QUEUED
        case Operation.CANCEL:
            return State.CANCELLED
        case Operation.REROUTE:
            return State.QUEUED if state is State.CAPTURED else state
        case Operation.RETRY:
            return state


def leading_to(after: State) -> tuple[State, ...]:
    """Return the states that may become `after`."""
    return tuple(state for state in State if after in TRANSITIONS[state])


def look_us(retry_us: int | None, *, warn_us: int | None, end_us: int) -> int:
    """Return when an entry is to be looked at: the earliest of what is going to happen to it."""
    return min(one for one in (retry_us, warn_us, end_us) if one is not None)
