"""What the listeners of a process share, and what a command handler gets from its listener.

relay/app makes IngressDependencies; smtp_server adds what differs between listeners.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from msgspec import Struct

from relay.accounts.account import AccountDirectory
from relay.base.crashpoints import CrashPoints
from relay.base.pressure import MemoryBudget, Pressure
from relay.ingress.acceptance import Acceptance
from relay.ingress.authentication import CheckLogin
from relay.ingress.data import ContentCollector, DataReply, Framing, Origin, ReceivedContent
from relay.ingress.filtering import SessionFilters
from relay.ingress.message_limits import RateLimits
from relay.ingress.recipient_checks import Verify
from relay.ingress.send_as import IsNullMx
from relay.ingress.session_limits import SessionLimits
from relay.ingress.session_refusals import ListenerRefusals
from relay.mailbox.delivery_store import DeliveryStore
from relay.message.envelope import Envelope, ForwardPath
from relay.refusals.refusal import RefusalRecorder
from relay.settings.tree import SmtpListener


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


class Accept(Protocol):
    """Accepts a received message; the returned reply is for the final dot."""

    def __call__(
        self,
        envelope: Envelope,
        paths: Sequence[ForwardPath],
        received: ReceivedContent,
        *,
        origin: Origin,
        filters: SessionFilters | None,
    ) -> Awaitable[DataReply]:
        """Take the responsibility for the message, or return the reply that rejects it."""
        ...


@dataclass(frozen=True, slots=True)
class IngressDependencies:
    """What all listeners of a process share."""

    hostname: str  # of the greeting and of Received fields
    acceptance: Acceptance  # takes over complete messages
    accounts: AccountDirectory  # logins, and addresses that they may use
    check_token: CheckLogin  # a user and a bearer token
    quota: DeliveryStore  # whether a local mailbox has room
    crash: CrashPoints = field(default_factory=CrashPoints)  # for crash tests
    pressure: Pressure = field(default_factory=Pressure)  # whether new mail is taken
    refusals: RefusalRecorder | None = None  # keeps what is refused; None: nothing does
    verify: Verify | None = None  # whether a next hop takes an address; None: none is asked
    is_null_mx: IsNullMx | None = None  # None: no domain is asked


class ListenerDependencies(Struct, frozen=True):
    """What the command handlers of a listener share."""

    settings: SmtpListener  # its configuration
    shared: IngressDependencies  # with the other listeners
    limits: SessionLimits  # of each session
    budget: MemoryBudget  # the memory for messages that all sessions receive
    check_login: CheckLogin  # a user and a password
    check_token: CheckLogin  # a user and a bearer token
    accept: Accept  # takes over a complete message
    pressure_rejection: Callable[[int], str]  # the reason to reject that many bytes now, or ""
    is_paused: Callable[[], bool]  # whether an operator lets it accept nothing
    refusals: ListenerRefusals  # records what is refused
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

    def new_filters(self) -> SessionFilters | None:
        """Return the milters of a session, None if none has its role."""
        role, most_bytes = self.settings.role, self.settings.max_message_size
        session = None if self.pickup else self.shared.acceptance.milters.session(role)
        return None if session is None else SessionFilters(session, most_bytes)

    def new_content(self) -> ContentCollector:
        """Return a collector for a content."""
        return ContentCollector(
            size_max_bytes=self.settings.max_message_size, limits=self.limits, budget=self.budget,
            arrival=self.shared.acceptance.spool.incoming_body,
        )  # fmt: skip
