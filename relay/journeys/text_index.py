"""A search in the text of all messages as values, and what answers it: an index of `relay dev`.

A term is found as a part of a field, without regard to case and accents; nothing in it has a
meaning of its own. Messages are those that were accepted, without reports.
"""

from collections.abc import Sequence
from typing import Protocol

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


class TextSearch(Struct, frozen=True):
    """Conditions, all of which must hold; without any, all messages match."""

    terms: tuple[SearchTerm, ...] = ()
    from_us: int | None = None  # accepted then or later
    to_us: int | None = None  # accepted then or earlier
    larger_than_bytes: int | None = None
    smaller_than_bytes: int | None = None
    has_attachment: bool | None = None  # one that is not shown in the text
    has_inline: bool | None = None  # one that is


class TextMatch(Struct, frozen=True):
    """A message that was found; `attachments` without the `inline` ones."""

    queue_id: str
    accepted_us: int
    size_bytes: int
    attachments: int
    inline: int


class TextAnswer(Struct, frozen=True):
    """What was found, newest first, and how many match in all. Without `is_complete` some messages
    were not read in time.
    """

    messages: Sequence[TextMatch]
    total: int
    is_complete: bool


class IndexFailedError(Exception):
    """The index cannot be used any more, or the search takes too long."""


class TextIndex(Protocol):
    """Finds messages by their text."""

    @property
    def count(self) -> int:
        """How many messages it has."""
        ...

    async def search(
        self, wanted: TextSearch, *, limit: int | None = None, offset: int = 0
    ) -> TextAnswer:
        """Return what matches; it waits some seconds for what was accepted before.

        Raises IndexFailedError and SpoolError.
        """
        ...
