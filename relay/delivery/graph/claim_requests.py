"""The requests of a claim to Microsoft Graph, as they are in the spool."""

from collections.abc import Callable, Sequence

from relay.store.spool.engine import SpoolEngine
from relay.store.spool.types import Claim, CloudRequest, SpoolError


class ClaimRequests:
    """The CloudRequests of a transaction (relay.delivery.smtp.transaction)."""

    def __init__(
        self,
        spool: SpoolEngine,
        claim: Claim,
        *,
        now_us: Callable[[], int],
        hostname: str,
    ) -> None:
        self.now_us = now_us
        live = {recipient.id for recipient in claim.recipients}
        self.requests = tuple(
            request for request in claim.extra.requests if live.intersection(request.recipients)
        )
        self.recipients: tuple[int, ...] = ()
        self.ended: set[str] = set()
        self._spool = spool
        self._claim = claim
        self._before = claim.extra.requests_before
        self._hostname = hostname

    async def note(self, requests: Sequence[CloudRequest], *, new: int = 0) -> None:
        """CloudRequests.note."""
        before = self._before + new
        if not await self._spool.note_requests(self._claim, requests, before=before):
            raise SpoolError("the claim has another owner")
        self.requests, self._before = tuple(requests), before

    async def message_id(self, own_id: str) -> str:
        """CloudRequests.message_id."""
        if own_id and not self._before and await self._spool.is_first_with(self._claim, own_id):
            return own_id
        queue_id, number = self._claim.key
        return f"<{queue_id}.{number}.{self._before + 1}@{self._hostname}>"
