"""The requests of a claim to Microsoft Graph, as they are in the spool."""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

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

    def __post_init__(self) -> None:
        extra, live = self.claim.extra, {recipient.id for recipient in self.claim.recipients}
        self.requests = tuple(
            request
            for request in extra.requests
            if request.draft and live.intersection(request.recipients)
        )
        self.lost_posts, self._before = extra.all_lost_posts, extra.requests_before

    async def note(
        self,
        requests: Sequence[CloudRequest],
        lost_posts: Sequence[tuple[str, str]],
        *,
        new: int = 0,
    ) -> None:
        """CloudRequests.note."""
        extra = replace(
            self.claim.extra,
            requests=tuple(requests),
            requests_before=self._before + new,
            lost_posts=tuple(lost_posts),
        )
        if not await self.spool.note_requests(self.claim, extra):
            raise SpoolError("the claim has another owner")
        self.requests, self._before = extra.requests, extra.requests_before
        self.lost_posts = extra.lost_posts

    async def message_id(self, own_id: str) -> str:
        """CloudRequests.message_id."""
        if own_id and not self._before and await self.spool.is_first_with(self.claim, own_id):
            return own_id
        queue_id, number = self.claim.key
        return f"<{queue_id}.{number}.{self._before + 1}@{self.hostname}>"
