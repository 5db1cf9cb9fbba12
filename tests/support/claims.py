"""Claims for tests of pure code."""

from typing import Any

from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, Source
from relay.base.message.nexthop import NextHop
from relay.store.spool.types import Claim, ClaimedRecipient

SECOND_US = 1_000_000


def a_claim(*, count: int = 1, expires_us: int = 3600 * SECOND_US, **changes: Any) -> Claim:
    """A claim for `count` recipients, received at 0."""
    facts = MessageFacts(
        "q1",
        Envelope("a@x.test"),
        Source.SMTP,
        trusted=True,
        received_us=0,
        expires_us=expires_us,
        size=10,
    )
    people = tuple(ClaimedRecipient(n, ForwardPath(f"{n}@a.test")) for n in range(1, count + 1))
    values = {
        "entry_id": 1,
        "epoch": 1,
        "message": facts,
        "next_hop": NextHop.parse("mx:a.test"),
        "recipients": people,
        "attempts": 0,
        "content_id": 1,
        "content_size": 10,
    }
    return Claim(**(values | changes))
