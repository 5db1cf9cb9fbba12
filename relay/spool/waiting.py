"""How an entry waits: its lane, its times, its turn; and how the due ones are looked for.

On the path: delivery decides them after each attempt, the spool keeps them and finds by them.
Holds: times are steady time (Clock.steady_us), microseconds since 1970 UTC.
Fails: never.
Standards: RFC 5321 4.5.4.1; docs/design.md 5.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b

from relay.message.nexthop import NextHop


class Lane(IntEnum):
    """Whose turn it is among what is due: the lower first, and each with a share of its own."""

    HIGH = 0
    NORMAL = 1
    LOW = 2
    DOWN = 3  # the last attempt found nobody at its site


@lru_cache(maxsize=4096)  # it is asked for some times for each message, and by few
def sender_key(name: str) -> int:
    """Return the number of a sender, which rows and indexes have in place of its name."""
    return int.from_bytes(blake2b(name.lower().encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Waiting:
    """How an entry goes on waiting: the columns of its row. Times as in Claim."""

    retry_us: int | None
    due_us: int
    lane: Lane = Lane.NORMAL
    cause: str = ""
    cause_attempts: int = 0
    warn_us: int | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the order in which a lane's entries are due."""

    due_us: int
    message_id: str
    number: int


@dataclass(frozen=True, slots=True)
class Look:
    """Which of a lane's due entries are wanted: all behind `after`, oldest due first, or those of
    one `sender`; or those for one `next_hop`, in turns among its senders from the one behind
    `after_sender`.

    Those of `without_hops`, of `without_senders` and of `without_pairs` of both are passed over,
    but not the next hop or sender that was asked for.
    """

    lane: Lane = Lane.NORMAL
    after: Position | None = None
    next_hop: NextHop | None = None
    after_sender: int = -1
    sender: int | None = None
    without_hops: Collection[NextHop] = ()
    without_senders: Collection[int] = ()
    without_pairs: Collection[tuple[NextHop, int]] = ()
