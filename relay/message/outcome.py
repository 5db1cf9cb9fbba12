"""What one attempt came to for one recipient.

On the path: delivery makes it, the spool settles it, reports tell it.
Holds: exactly one of five cases, matched exhaustively.
Fails: never.
Standards: RFC 3463 (status), RFC 3464 2.3 (fields), RFC 1047 (why indeterminate exists).
"""

from dataclasses import dataclass
from enum import StrEnum

INTERNAL_ERROR = "internal error in the relay; its log has the details"


class DeferralClass(StrEnum):
    """Why it was put off: the key of a retry list, and a metric label."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    AUTH = "auth"
    PROTOCOL = "protocol"
    SITE = "site"  # 4yz to the session or the transaction
    RECIPIENT = "recipient"  # 4yz to one RCPT (greylisting and the like)
    MAILBOX = "mailbox"  # a local mailbox is full or cannot be written
    CONTENT = "content"  # what the spool keeps of the message cannot be read
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was said and by whom.

    `status` is the RFC 3463 code; `reply` the remote reply as "550 5.1.1 text" or our own words;
    `host` the MTA's name ("" for this relay), `remote` whether a remote MTA said it; `tls` the
    protocol version or "".
    """

    status: str
    reply: str
    host: str = ""
    remote: bool = False
    tls: str = ""


@dataclass(frozen=True, slots=True)
class Delivered:
    """In a mailbox."""

    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Relayed:
    """A remote SMTP host took responsibility."""

    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not now: try again by the retry list of `kind`."""

    evidence: Evidence
    kind: DeferralClass


@dataclass(frozen=True, slots=True)
class Failed:
    """Never."""

    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Indeterminate:
    """Cut off after the final dot: it may or may not have arrived; it is tried again."""

    evidence: Evidence


Outcome = Delivered | Relayed | Deferred | Failed | Indeterminate
