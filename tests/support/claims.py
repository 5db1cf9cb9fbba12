"""Claims for tests of pure code."""

from typing import Any

from relay.message.nexthop import NextHop
from relay.message.verdict import Source
from relay.spool.types import Claim, ClaimedRecipient, MessageFacts

SECOND_US = 1_000_000


def a_claim(*, count: int = 1, expires_us: int = 3600 * SECOND_US, **changes: Any) -> Claim:
    """A claim for `count` recipients, received at 0."""
    facts = MessageFacts(
        id="q1", reverse_path="a@x.test", source=Source.SMTP, trusted=True, received_us=0,
        expires_us=expires_us, size=10, account="", submission_id="", envid="", ret="",
        smtputf8=False, eight_bit=False, client="", message_id="", subject="",
    )  # fmt: skip
    people = tuple(
        ClaimedRecipient(n, f"{n}@a.test", frozenset(), "", "") for n in range(1, count + 1)
    )
    values = {
        "entry_id": 1, "epoch": 1, "message": facts, "next_hop": NextHop.parse("mx:a.test"),
        "recipients": people, "attempts": 0, "content_id": 1, "content_size": 10,
    }  # fmt: skip
    return Claim(**(values | changes))
