"""The client of an SMTP session, as the owner of the mail gives it to the session: SessionClient.

The owner of the mail makes one for each session (session_owner), with the address of the client and
whether its network is trusted. The owner also keeps the login. So nothing that the session says
decides about rights. MAIL from a trusted network makes no call to the owner; RCPT and the final dot
make one call each.

ListenerDependencies has what the sessions of a listener share.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol

from msgspec import Meta, Struct

from relay.base.crashpoints import CrashPoints
from relay.base.message.envelope import ForwardPath
from relay.base.pressure import Pressure
from relay.base.settings.tree import SmtpListener
from relay.base.shares import Shares
from relay.base.socket_address import client_of
from relay.store.spool.types import IncomingBody
from relay.transport.ingress.data import DataReply, ReceivedContent
from relay.transport.ingress.esmtp_parameters import MailArgument
from relay.transport.ingress.listener_role import ListenerRole
from relay.transport.ingress.local_users import LocalUser
from relay.transport.ingress.message_limits import RateLimits
from relay.transport.ingress.session_limits import SessionLimits
from relay.transport.refusals.refusal import RefusalReason

if TYPE_CHECKING:  # the room of milters
    from relay.transport.ingress.filtering import SessionFilters

LOGIN_ENDED = (
    # RFC 5321 3.8
    "421 4.7.0 The account or its password was changed; log in again, closing the connection"
)
STRANGERS, TRUSTED, LOGINS = "strangers", "trusted", "logins"  # the kinds of places of a listener
CONNECT = "CONNECT"  # in place of a command: the connection itself was refused


class SessionClaims(Struct, frozen=True):
    """What a session says about its client. It is only used in records and header fields."""

    helo: str = ""
    extended: bool = True  # EHLO
    tls: str = ""  # the protocol version, or ""
    has_bare_lf: bool = False  # a bare LF of its message became CRLF


class RecipientAnswer(Struct, frozen=True):
    """The answer to RCPT; `reply` is "" for a recipient that is taken."""

    reply: str = ""
    expanded: int = 0  # addresses that an alias leads to
    # the answer holds for this address and sender, for each size and each client that may relay,
    # until accounts, routes, rules or settings change
    may_keep: bool = False
    reason: RefusalReason | None = None  # None: the one that the reply has


class CheckAddress(Protocol):
    """Checks the address of RCPT."""

    def __call__(
        self, address: str, reverse_path: str, size_bytes: int, *, helo: str
    ) -> Awaitable[RecipientAnswer]:
        """Return whether an address is taken: `size_bytes` is SIZE of MAIL, `helo` the name in EHLO
        or HELO.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCommand:
    """A command and the reply that refused it; the other fields are as in Refusal."""

    command: str  # the verb, CONNECT, or "" for what is no command
    reply: str  # or what failed in a TLS handshake
    user: str = ""  # of AUTH
    sender: str = ""  # the reverse-path
    recipients: tuple[str, ...] = ()  # all of them
    subject: str = ""  # of a content
    rule: str = ""  # the name of the rule that refused it, or of the milter
    reason: RefusalReason | None = None  # None: the one that the reply has
    count: int = 0  # of recipients; 0: all are named
    is_logged: bool = True  # False: if it is logged, then by the caller


class OfferedMail(Struct, frozen=True, array_like=True):
    """The envelope of a complete content, and what its session says about the client."""

    mail: MailArgument
    paths: Annotated[Sequence[ForwardPath], Meta(min_length=1)]
    claims: SessionClaims


class SessionPlace(Struct, frozen=True):
    """For whom a session is counted."""

    kind: str  # STRANGERS, TRUSTED or LOGINS
    key: str | None  # in Shares: the address or network, the user of this machine, the account
    clients: tuple[str, ...] = ()  # the user or address, then the network: each has a limit


class SessionClient(Struct, frozen=True):
    """The client of a session, and the functions by which the session asks the owner of the mail.

    The functions are those of SessionOwner, or calls of the gate to the process of the owner.
    """

    ip: str  # "" on a Unix socket
    is_trusted: bool  # its network, or it is a program of this machine
    # a user and a password, or a bearer token if the third argument is true: the address of the
    # account that is logged in, "" if it is wrong; raises LoginDelayedError, and LoginRefusedError
    # with the text of the reply
    log_in: Callable[[str, str, bool], Awaitable[str]]
    # the reply if the login, the user of this machine or a stranger may not use a reverse-path
    sender_rejection: Callable[[str], Awaitable[str]]
    check_recipient: CheckAddress  # RCPT
    new_body: Callable[[], IncomingBody]  # a file for the body of a large content
    # the final dot: takes the responsibility for a message, or returns the reply that rejects it;
    # releases what was received in any case
    accept: Callable[[OfferedMail, ReceivedContent], Awaitable[DataReply]]
    refused: Callable[[RefusedCommand, SessionClaims], None]  # records a refusal
    uid: int | None = None  # on the socket for programs
    find_user: Callable[[], Awaitable[LocalUser | None]] | None = None  # the user with this uid
    new_filters: "Callable[[], SessionFilters | None]" = lambda: None  # milters that hear it
    ended: Callable[[], None] = lambda: None  # is called at the end: nothing more is asked

    @property
    def place(self) -> SessionPlace:
        """The place of a session of the client before a login."""
        if self.uid is not None:
            user = f"uid {self.uid}"
            return SessionPlace(TRUSTED, user, (user,) if self.uid else ())
        address = client_of(self.ip) or None  # None: pickup, or by a Unix socket
        if self.is_trusted:
            return SessionPlace(TRUSTED, address)
        site = client_of(self.ip, bits=48) or None  # RFC 6177 2
        return SessionPlace(STRANGERS, site, tuple(dict.fromkeys(filter(None, (address, site)))))


class ListenerDependencies(Struct, frozen=True):
    """What the commands of a listener's sessions share."""

    settings: SmtpListener  # its configuration
    role: ListenerRole  # what its clients must do
    hostname: str  # of the greeting
    limits: SessionLimits  # of each session
    budget: Shares  # the memory for messages that all sessions receive
    crash: CrashPoints  # for crash tests
    pressure: Pressure  # whether new mail is taken
    rates: RateLimits  # messages of strangers, by address
    offers_tls: bool = False  # STARTTLS, or TLS from the first octet
    requires_tls: bool = False  # 530 without TLS
    offers_auth_in_clear: bool = False  # AUTH without TLS, on loopback
    # for the log: where a client finds the TLS that it expects here; None: no hint
    tls_hint: Callable[[], str] | None = None
    # of addresses without a domain; then any EHLO and underscores in domains are accepted; "": not
    odd_domain: str = ""
