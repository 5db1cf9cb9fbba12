"""The requests of a claim to Microsoft Graph, as they are in the spool."""

from dataclasses import dataclass

from msgspec.structs import replace

from relay.base.clock import Clock
from relay.delivery.smtp.transaction import Transaction
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.types import Claim, EntryExtra, SpoolError


@dataclass(eq=False)
class ClaimRequests:
    """The requests of a claim that have no known result. Of `noted`, `requests`, `requests_before`,
    `lost_posts` and `uploads` are as they are in the spool.

    With `only_ask` nothing is made or sent, because an order waits: what became of the requests is
    asked, and drafts are deleted. Recipients in no request that may have been sent have no outcome
    then.
    """

    spool: SpoolEngine
    claim: Claim
    clock: Clock  # for queue time
    hostname: str
    recipients: tuple[int, ...] = ()  # the numbers of Transaction.recipients, in their order
    only_ask: bool = False
    is_sending: bool = False  # what may send the message is asked for, and has no answer

    def __post_init__(self) -> None:
        extra, live = self.claim.extra, {recipient.id for recipient in self.claim.recipients}
        known = [
            request
            for request in extra.requests
            if request.draft and live.intersection(request.recipients)
        ]
        lost_posts = extra.without_requests.lost_posts
        self.noted = replace(extra, requests=tuple(known), lost_posts=lost_posts)

    @property
    def size(self) -> int:
        """Octets of the content, as the routes count them."""
        return self.claim.content_size

    async def note(self, noted: EntryExtra) -> None:
        """Make what is noted durable. Raises SpoolError."""
        if not await self.spool.note_requests(self.claim, noted):
            raise SpoolError("the claim has another owner")
        self.noted = noted

    async def message_id(self, own_id: str) -> str:
        """Return the internetMessageId of a new request. It is `own_id`, the Message-ID of the
        content ("" for none or several), if no other request has it; else another one.
        """
        before = self.noted.requests_before
        if own_id and not before and await self.spool.is_first_with(self.claim, own_id):
            return own_id
        queue_id, number = self.claim.key
        return f"<{queue_id}.{number}.{before + 1}@{self.hostname}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTransaction(Transaction):
    """A transaction by Microsoft Graph."""

    requests: ClaimRequests
