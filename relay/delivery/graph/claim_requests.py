"""The requests of a claim to Microsoft Graph, as they are in the spool."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from relay.base.clock import Clock
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.types import Claim, CloudRequest, SpoolError


@dataclass(eq=False)
class ClaimRequests:
    """The CloudRequests of a transaction (relay.delivery.smtp.transaction)."""

    spool: SpoolEngine
    claim: Claim
    clock: Clock  # for queue time
    hostname: str
    recipients: tuple[int, ...] = ()
    only_ask: bool = False
    ended: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        extra, live = self.claim.extra, {recipient.id for recipient in self.claim.recipients}
        self.requests = tuple(
            request for request in extra.requests if live.intersection(request.recipients)
        )
        self._before = extra.requests_before

    async def note(self, requests: Sequence[CloudRequest], *, new: int = 0) -> None:
        """CloudRequests.note."""
        before = self._before + new
        if not await self.spool.note_requests(self.claim, requests, before=before):
            raise SpoolError("the claim has another owner")
        self.requests, self._before = tuple(requests), before

    async def message_id(self, own_id: str) -> str:
        """CloudRequests.message_id."""
        if own_id and not self._before and await self.spool.is_first_with(self.claim, own_id):
            return own_id
        queue_id, number = self.claim.key
        return f"<{queue_id}.{number}.{self._before + 1}@{self.hostname}>"
