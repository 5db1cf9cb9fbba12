"""The role of a listener: what its clients must do, and which checks their mail skips.

RELAY, SUBMISSION and SUBMISSIONS are the values of `role` in [[smtp]]. SENDMAIL is the role of the
socket of [sendmail], PICKUP that of pickup's socket. Neither a configuration nor the child of the
gate can name these two. RFC 6409 (587), RFC 8314 3.3 (465).
"""

from msgspec import Struct

from relay.base.message.envelope import Source
from relay.base.settings.tree import MilterRole


class ListenerRole(Struct, frozen=True):
    """The differences between listeners that are not in their configuration."""

    name: MilterRole  # in metrics; which milters see its mail
    source: Source = Source.SMTP  # of its mail
    must_log_in: bool = False  # 530 to MAIL of a client that is not in a trusted network
    has_tls_first: bool = False  # before the greeting
    # its clients are programs of this machine: they are trusted and cannot log in, and milters see
    # their messages after the final dot instead of the session
    is_local: bool = False
    # the API has answered 202 for its mail, so a rejection becomes a report to the sender: RCPT
    # takes every address, pressure and the number of header fields do not count, and sessions and
    # refusals are not in metrics and records
    is_promised: bool = False


RELAY = ListenerRole("relay")
SUBMISSION = ListenerRole("submission", must_log_in=True)
SUBMISSIONS = ListenerRole("submissions", must_log_in=True, has_tls_first=True)
SENDMAIL = ListenerRole("local", Source.SENDMAIL, is_local=True)
PICKUP = ListenerRole("local", Source.GRAPH, is_local=True, is_promised=True)
# by the value of `role` of [[smtp]]
CONFIGURED = {role.name: role for role in (RELAY, SUBMISSION, SUBMISSIONS)}
