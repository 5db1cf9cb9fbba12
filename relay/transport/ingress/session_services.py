"""What an SMTP session asks of the owner of the mail, by plain values: SessionServices.

There is one object for each session. The owner makes it (local_services) with the address of the
client and whether its network is trusted, and it keeps the login. So the session itself says
nothing that decides who may do what. MAIL of a trusted network asks nothing, RCPT and the final dot
one question each.

ListenerDependencies is what the command handlers of a listener share, and ClientConnection their
connection.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from relay.base.crashpoints import CrashPoints
from relay.base.message.envelope import ForwardPath
from relay.base.pressure import MemoryBudget, Pressure
from relay.base.settings.tree import SmtpListener
from relay.store.spool.types import IncomingBody
from relay.transport.ingress.data import ContentCollector, DataReply, Framing, ReceivedContent
from relay.transport.ingress.esmtp_parameters import MailArgument
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
CONNECT = "CONNECT"  # in place of a command: the connection itself was refused


class SessionClaims(Struct, frozen=True):
    """What a session says of its client. It is only written into records and fields."""

    helo: str = ""
    extended: bool = True  # EHLO
    tls: str = ""  # the protocol version, or ""


class RecipientAnswer(Struct, frozen=True):
    """The answer to RCPT; `reply` is "" for a recipient that is taken."""

    reply: str = ""
    expanded: int = 0  # addresses that an alias leads to
    # the same address and sender have this answer, of whatever size and for each client that may
    # relay, until accounts, routes, rules or settings change
    may_keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCommand:
    """A command and the reply that refused it; the other fields are those of a Refusal."""

    command: str  # the verb, CONNECT, or "" for what is no command
    reply: str  # or what failed in a TLS handshake
    user: str = ""  # of AUTH
    sender: str = ""  # the reverse-path
    recipients: tuple[str, ...] = ()  # all of them
    subject: str = ""  # of a content
    rule: str = ""  # the name of the rule that refused it, or of the milter
    reason: RefusalReason | None = None  # None: the one that the reply has
    count: int = 0  # of recipients; 0: all are named
    is_logged: bool = True  # False: the caller logs it, or nobody does


class SessionServices(Protocol):
    """What one session asks."""

    @property
    def login(self) -> str:
        """The address of the account that logged in, or ""."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether the account of the login was removed, or has another password or token now."""
        ...

    async def log_in(self, user: str, secret: str, *, is_token: bool) -> bool:
        """Log in by a password or a bearer token; False if it is wrong.

        Raises LoginDelayedError, and LoginRefusedError with the text of the reply.
        """
        ...

    def forget_login(self) -> None:
        """Log out (STARTTLS)."""
        ...

    async def local_user(self) -> LocalUser | None:
        """Return the user of this machine on the socket for programs; asked once."""
        ...

    async def sender_rejection(self, reverse_path: str) -> str:
        """Return the reply if the login, the user of this machine or a stranger may not use it."""
        ...

    def recipient(
        self, address: str, reverse_path: str, *, size_bytes: int
    ) -> Awaitable[RecipientAnswer]:
        """Return whether a recipient is taken; `size_bytes` is that of MAIL."""
        ...

    def new_body(self) -> IncomingBody:
        """Return a file for the body of a large content."""
        ...

    def new_filters(self) -> "SessionFilters | None":
        """Return the milters that hear the session, also accept(); None: none does."""
        ...

    def accept(
        self, mail: MailArgument, paths: Sequence[ForwardPath], received: ReceivedContent, *,
        claims: SessionClaims,
    ) -> Awaitable[DataReply]:  # fmt: skip
        """Take the responsibility for a message, or return the reply that rejects it. What was
        received is released in any case.
        """
        ...

    def refused(self, refused: RefusedCommand, claims: SessionClaims) -> None:
        """Record a refusal."""
        ...

    def end(self) -> None:
        """The connection has ended, and nothing more is asked."""
        ...


class ClientConnection(Protocol):
    """The connection, as the command handler uses it: SmtpSession."""

    async def send(self, reply: str) -> None:
        """Write a reply now, after the buffered ones."""
        ...

    async def ask(self, reply: str) -> str:
        """Write a reply and return the client's next line. Raises SmtpRejection if malformed."""
        ...

    async def read_content(self, framing: Framing, content: ContentCollector | None) -> bool:
        """Collect a content or a chunk, or discard it; False if the client disconnects."""
        ...

    async def start_tls(self) -> str:
        """Reply 220, discard pipelined input, do the handshake; return the TLS version."""
        ...

    def fact(self, name: str) -> Any:
        """Return a fact of the transport, as its get_extra_info() does."""
        ...

    async def pause(self, seconds: float) -> None:
        """Wait, or until the client disconnects."""
        ...


class ListenerDependencies(Struct, frozen=True):
    """What the command handlers of a listener share."""

    settings: SmtpListener  # its configuration
    hostname: str  # of the greeting
    limits: SessionLimits  # of each session
    budget: MemoryBudget  # the memory for messages that all sessions receive
    crash: CrashPoints  # for crash tests
    pressure: Pressure  # whether new mail is taken
    rates: RateLimits  # messages of strangers, by address
    offers_tls: bool = False  # STARTTLS, or TLS from the first octet
    requires_tls: bool = False  # 530 without TLS
    offers_auth_in_clear: bool = False  # AUTH without TLS, on loopback
    # where a client finds the TLS that it expects here, or does without it, for the log; None: the
    # log does not say
    tls_hint: Callable[[], str] | None = None
    pickup: bool = False  # the listener is pickup's own socket
    # of addresses without one; then any EHLO is taken, and underscores in domains. "": neither is
    odd_domain: str = ""

    @property
    def rejects_untrusted(self) -> bool:
        """Whether untrusted clients are rejected now because of pressure.

        Only on a listener of role relay: on the others, every client authenticates.
        """
        return self.settings.role == "relay" and self.pressure.rejects_untrusted

    def new_content(self, new_body: Callable[[], IncomingBody]) -> ContentCollector:
        """Return a collector for a content."""
        return ContentCollector(
            size_max_bytes=self.settings.max_message_size, limits=self.limits, budget=self.budget,
            arrival=new_body,
        )  # fmt: skip
