"""The journey of a message: one JSON document from two halves, the store's log and the spool.

On the path: web and the command line ask; readers passed in answer.
Holds: the JSON is CONTRACT's `GET /messages/{id}`, the same everywhere; an account sees its own only.
Fails: never; unknown is None.
Standards: none.
"""

from collections.abc import Sequence
from typing import Any, Protocol


class SpoolJourneys(Protocol):
    """The spool's half."""

    async def journey(self, queue_id: str) -> dict[str, Any] | None:
        """Steps 5 to 7, recipients and facts of a message."""
        ...

    async def find_queue_ids(self, key: str, *, account: str | None, limit: int) -> list[str]:
        """Queue ids for any of a message's names, newest first."""
        ...


class StoreJourneys(Protocol):
    """The store's half: steps 1 to 4 by submission."""

    async def submission(self, submission_id: str) -> dict[str, Any] | None:
        """Facts {submission_id, graph_id, account, message_id, sender, subject, queue_id, recipients, steps} or None."""
        ...

    async def find_submission_ids(
        self, key: str, *, account: str | None, limit: int
    ) -> Sequence[str]:
        """Submission ids for a submission id, draft id, Message-ID or sender address; "last"; newest first."""
        ...
