"""Where mail for one recipient goes: into a mailbox, to a next hop, or nowhere.

RouteTable.examine() returns these values. The replies to invalid recipients are made here, such as
550 5.1.1 for an unknown user.
"""

from msgspec import Struct

from relay.base.clock import rfc3339
from relay.base.message.nexthop import NextHop
from relay.base.message.status import SUPPRESSED, own_reply

UNKNOWN = "5.1.1"  # RFC 3463 3.2
REJECT_STATUS = "5.7.1"  # X.7.1: delivery not authorised


class LocalRecipient(Struct, frozen=True):
    """Mail for the recipient goes into `mailbox`: the address of an account, or DEAD_LETTER.
    `is_answer`: no account has the address, and mail to it answers a report.
    """

    mailbox: str
    is_answer: bool = False
    route: str = ""  # the route that decided; "": none did
    held: str = ""  # the reason, "route NAME": it waits for a release; "": it does not
    is_local: bool = True  # False: of this host's name, which is no own domain


class RemoteRecipient(Struct, frozen=True):
    """Mail for the recipient leaves by `next_hop`, or is captured there."""

    next_hop: NextHop  # where it leaves, or CAPTURE
    route: str = ""  # the route that decided; "": none did
    held: str = ""  # as in LocalRecipient
    chosen: bool = False  # by a mail-flow rule: no route has to match
    is_local: bool = False  # valid in a local domain, whose mail leaves for this address
    is_asked: bool = False  # the next hop says whether it takes the address of a local domain
    is_answer: bool = False  # as in LocalRecipient


class InvalidRecipient(Struct, frozen=True):
    """The recipient is rejected: `text` is a whole SMTP reply, `status` its enhanced code."""

    status: str
    text: str
    route: str = ""  # the route that rejects it; "": the address or domain is unknown
    is_late: bool = False  # the rules have decided about it as a valid one


RoutingResult = LocalRecipient | RemoteRecipient | InvalidRecipient


def unknown_user(address: str) -> InvalidRecipient:
    # RFC 3463 3.2
    """Return the rejection of an unknown user."""
    return rejected(UNKNOWN, address, "no such user here; check the spelling")


def suppressed(since_us: int) -> InvalidRecipient:
    """Return the rejection of an address that is on the list of dead addresses since a wall time.
    The reply has the day alone: the reply of the host and the reason come from other senders.
    """
    return InvalidRecipient(UNKNOWN, f"{SUPPRESSED}{rfc3339(since_us)[:10]}", is_late=True)


def rejected(status: str, address: str, text: str, *, route: str = "") -> InvalidRecipient:
    """Return a rejection with this enhanced status and text; `route` made it, if it is not ""."""
    return InvalidRecipient(status, own_reply(status, f"<{address}>: {text}"), route)
