"""What a spool remembers of its messages: the reading side of a spool engine.

The spool's part of a journey is steps 5 to 7. Nothing here changes the queue, and delivery does
not wait for these queries.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from relay.base.message.content import Content
from relay.store.journeys.document import Journey
from relay.store.journeys.events import RecordedEvent
from relay.store.journeys.message_list import FoundPage, ListPosition, MessageSearch, MessageSummary

CONTENTS_MAX = 50  # contents that one call reads: each may have a file open


class KeptMessage(Struct, frozen=True):
    """What is left of a message.

    The content is kept until no entry needs it. `recipients` are number, address and state; they
    may have copies in mailboxes.
    """

    content: Content | None
    recipients: Sequence[tuple[int, str, str]]


class SpoolEvents(Struct, frozen=True):
    """Events with their sequences; None for an event that is not shown.

    `removed_to` is the sequence of the last removed event. `is_complete`: there were no more.
    """

    events: Sequence[tuple[int, RecordedEvent | None]]
    removed_to: int
    is_complete: bool


class SpoolHistory(Protocol):
    """The messages that the spool has, until their history is pruned.

    With `account`, only messages of that account are found; with None, all.
    """

    async def journey(self, queue_id: str, *, added: bool = False) -> Journey | None:
        """Return the spool's part of the journey of a message: no graph_id, client or reports.

        With `added`, for operators, it includes copies that rules and milters added.
        """

    async def read_message(self, queue_id: str) -> KeptMessage:
        """Return what is left of a message. A large content stays readable after its removal.

        If there are several contents, it is that of the first entry. Recipients are some of the
        first. Raises SpoolError when the content is missing or damaged.
        """

    async def read_contents(self, queue_ids: Sequence[str]) -> Mapping[str, Content]:
        """Return the contents of messages that an entry still needs, as read_message() does.

        Only the first CONTENTS_MAX messages are read. Contents that cannot be read are left out.
        """

    async def find_queue_ids(self, key: str, *, account: str | None, limit: int) -> list[str]:
        """Return the queue ids, newest first, that a key names.

        It is a queue id, submission id, draft id, Message-ID, an address, or "last".
        """

    async def find_page(
        self, search: MessageSearch, *, account: str | None, before: ListPosition | None, limit: int
    ) -> FoundPage:
        """Return messages that match, apart from `after` and `key`, in the order of the list."""

    async def summaries(
        self, queue_ids: Sequence[str], *, account: str | None, added: bool = False
    ) -> Sequence[MessageSummary]:
        """Return the rows of messages that exist. `added`: see journey()."""

    async def accepted_submissions(self, submission_ids: Sequence[str]) -> Sequence[str]:
        """Return the submissions that the spool has."""

    async def count_states(
        self, *, account: str | None, limit: int
    ) -> tuple[int, Mapping[str, int]]:
        """Return the number of messages, at most `limit`, and how many of them are in each state.

        A message counts for each state in which it has a recipient. REPORT is the number of
        reports.
        """

    async def recent_addresses(self, *, account: str | None, limit: int) -> Sequence[str]:
        """Return senders and recipients of the newest messages, the last used first.

        First come those that have received mail here or have an account.
        """

    async def events_after(self, after: int, *, limit: int) -> SpoolEvents:
        """Return the first events after the sequence `after`, in their order.

        If they are large, there may be fewer than `limit` although more exist.
        """

    async def accepted_after(
        self, after: int, *, limit: int, is_settled: bool, own: bool = False
    ) -> SpoolEvents:
        """Return step 5 of messages, as events_after() does, without details. Unless `own`, the
        submissions of this node are left out.

        Unless `is_settled`, include events that may be after last_event().
        """

    async def last_event(self, *, is_settled: bool = True) -> int:
        """Return a sequence after which all later events are.

        Unless `is_settled`, return the greatest sequence of any event, including an event that
        another node is still recording.
        """
