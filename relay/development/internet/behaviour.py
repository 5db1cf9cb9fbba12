"""What a simulated mail host is asked at each stage of a session, and what it answers.

The stages are CONNECT (the connection is accepted), BANNER (its greeting), EHLO, HELO, LHLO,
STARTTLS, AUTH, MAIL, RCPT, DATA, CONTENT (before the content is read), DOT (after the final dot; by
LMTP once for each recipient), RSET, QUIT.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_HEADER_BYTES_MAX = 16 * 1024
_queue_id = re.compile(rb"\bid ([0-9a-z]{16})\b")


@dataclass(frozen=True, slots=True)
class ForwardedTo:
    """A recipient of a transaction, with the parameters of its RCPT."""

    address: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReceivedMail:
    """A transaction that came to its final dot."""

    host: str  # that received it
    helo: str  # the name that the client gave
    sender: str  # the reverse-path; "" for the null one
    parameters: Mapping[str, str]  # of MAIL, by keyword
    recipients: tuple[ForwardedTo, ...]  # those that the host accepted
    content: bytes = field(repr=False)  # without dot stuffing
    session: int  # a number among the sessions of the host
    tls: str  # the version; "" without TLS
    received_us: int  # wall clock time

    @property
    def addresses(self) -> list[str]:
        """The recipients without parameters."""
        return [recipient.address for recipient in self.recipients]

    @property
    def queue_id(self) -> str:
        """The queue id that Relay wrote into the first Received field, "" without one."""
        match = _queue_id.search(self.content, 0, _HEADER_BYTES_MAX)
        return match[1].decode() if match else ""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a session is."""

    stage: str  # one of those above
    host: str  # of the session
    tls: bool = False  # whether the session is encrypted
    sender: str = ""  # "" before MAIL and for the null reverse-path
    recipient: str = ""  # at RCPT, and at DOT by LMTP: its address
    recipients: tuple[str, ...] = ()  # those that the host has accepted so far
    mail: ReceivedMail | None = None  # at DOT: the message
    session: int = 0  # a number among the sessions of the host


@dataclass(frozen=True, slots=True)
class Action:
    """What the host does: after the delay it drops the connection, is silent for ever, or replies.

    `reply` is the whole reply with its code, lines separated by a line feed; "" is the ordinary
    reply. A 421 closes the session. `bad_certificate` counts at STARTTLS.
    """

    reply: str = ""
    drop: bool = False
    stall: bool = False
    delay_s: float = 0.0
    bad_certificate: bool = False
