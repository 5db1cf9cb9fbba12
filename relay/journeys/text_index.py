"""A search in the text of all messages as values, and what answers it: an index of `relay dev`.

A term is found as a part of a field, without regard to case and accents; nothing in it has a
meaning of its own. Messages are those that were accepted, without reports.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

# Of addresses, names too. `bcc` has recipients of the envelope that no field names.
TEXT_FIELDS = (
    "sender", "recipient", "cc", "bcc", "reply_to", "return_path", "subject", "attachment", "body",
)  # fmt: skip
FIELDS = ("message_id", *TEXT_FIELDS)


class SearchTerm(Struct, frozen=True):
    """A text that must be in one of these FIELDS, or in none of them."""

    text: str
    fields: tuple[str, ...] = TEXT_FIELDS
    is_excluded: bool = False


class SearchedNumber(Struct, frozen=True):
    """A number that must be from `low` to `high`, or must not. `attachments`: not inline."""

    name: Literal["accepted_us", "size_bytes", "attachments", "inline"]
    low: int = 0
    high: int = 1 << 62
    is_excluded: bool = False


class TextSearch(Struct, frozen=True):
    """Conditions, all of which must hold; without any, all messages match."""

    terms: tuple[SearchTerm, ...] = ()
    numbers: tuple[SearchedNumber, ...] = ()


class TextAnswer(Struct, frozen=True):
    """The queue ids that were found, newest first. Without `is_complete` some messages were not
    read in time.
    """

    queue_ids: Sequence[str]
    is_complete: bool


class IndexFailedError(Exception):
    """The index cannot be used any more, or the search takes too long."""


class TextIndex(Protocol):
    """Finds messages by their text."""

    @property
    def count(self) -> int:
        """How many messages it has."""
        ...

    async def search(self, wanted: TextSearch) -> TextAnswer:
        """Return what matches; it waits some seconds for what was accepted before.

        Raises IndexFailedError and SpoolError.
        """
        ...
