"""How much a mailbox has, how much it may have, and whether a message fits."""

from enum import Enum

from msgspec import Struct


class Usage(Struct, frozen=True):
    """A number of messages, and their total size."""

    size_bytes: int
    messages: int


class CountedUsage(Struct, frozen=True):
    """The usage of a mailbox. `counted` has the requested base names that it includes."""

    usage: Usage
    counted: frozenset[str]


class QuotaLimits(Struct, frozen=True):
    """The quota of a mailbox; None is no limit."""

    size_bytes: int | None = None
    messages: int | None = None


class Room(Enum):
    """The result of a quota check for a message."""

    FITS = "fits"
    FULL = "full"  # not now
    NEVER = "never"  # the message is larger than the quota
