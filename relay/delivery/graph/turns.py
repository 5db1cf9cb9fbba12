"""Which message with files of a mailbox is sent to Microsoft Graph now: one at a time.

Graph takes 150 MB for a mailbox in five minutes: of two drafts that are filled at once none is
complete before its limit. Those without a turn wait here, without a connection; other mail of the
mailbox passes them. Claims of all routes meet here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from relay.base.message.address import own_mailbox
from relay.delivery.active_queue import ClaimsInMemory
from relay.delivery.fair_queue import ClaimQueue
from relay.store.spool.types import Claim, Key
from relay.transport.routing.routes import HopOptions

Mailbox = tuple[str, str]  # at a host


@dataclass(eq=False)
class FillingTurns:
    """The turns of the claims that are too large for one request."""

    claims: ClaimsInMemory
    push: Callable[[Claim], None]  # takes those whose turn may have come

    def __post_init__(self) -> None:
        self._waiting: dict[Mailbox, ClaimQueue] = {}  # while one has its turn
        self._mailboxes: dict[Key, Mailbox] = {}  # of those that have their turn

    def begin(self, claim: Claim, via: HopOptions) -> bool:
        """Return whether a claim may be attempted now; else it waits here."""
        graph, size = via.graph, claim.content_size
        is_large = graph is not None and graph.confirm and graph.mime_max < size
        if not is_large or via.login is None or claim.extra.order is not None:  # nearly always
            return True
        mailbox = claim.next_hop.host, own_mailbox(via.login.user)
        if mailbox in self._waiting:
            self.claims.track(claim, self._waiting[mailbox])
            self._waiting[mailbox].push(claim)
            return False
        self._waiting[mailbox], self._mailboxes[claim.key] = ClaimQueue(), mailbox
        return True

    def end(self, claim: Claim) -> None:
        """End the turn of a claim, if it has one. Any of those that wait may be the next: others
        may have taken the first, or its next hop.
        """
        if (mailbox := self._mailboxes.pop(claim.key, None)) is not None:
            for waiting in self._waiting.pop(mailbox).drain():
                self.push(waiting)

    def drain(self) -> list[Claim]:
        """Take all claims that wait."""
        return [claim for waiting in self._waiting.values() for claim in waiting.drain()]
