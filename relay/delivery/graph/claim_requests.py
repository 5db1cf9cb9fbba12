"""The requests of a claim to Microsoft Graph, as they are in the spool."""

from dataclasses import dataclass

from msgspec.structs import replace

from relay.base.clock import Clock
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.types import Claim, EntryExtra, SpoolError


@dataclass(eq=False)
class ClaimRequests:
    """The CloudRequests of a transaction (relay.delivery.smtp.transaction)."""

    spool: SpoolEngine
    claim: Claim
    clock: Clock  # for queue time
    hostname: str
    recipients: tuple[int, ...] = ()
    only_ask: bool = False
    is_sending: bool = False

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
        """CloudRequests.size."""
        return self.claim.content_size

    async def note(self, noted: EntryExtra) -> None:
        """CloudRequests.note."""
        if not await self.spool.note_requests(self.claim, noted):
            raise SpoolError("the claim has another owner")
        self.noted = noted

    async def message_id(self, own_id: str) -> str:
        """CloudRequests.message_id."""
        before = self.noted.requests_before
        if own_id and not before and await self.spool.is_first_with(self.claim, own_id):
            return own_id
        queue_id, number = self.claim.key
        return f"<{queue_id}.{number}.{before + 1}@{self.hostname}>"
