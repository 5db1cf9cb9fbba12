"""What a command handler gets from its listener, and its connection.

What it asks of the owner of the mail is in session_services.
"""

from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Struct

from relay.base.crashpoints import CrashPoints
from relay.base.pressure import MemoryBudget, Pressure
from relay.ingress.data import ContentCollector, Framing
from relay.ingress.message_limits import RateLimits
from relay.ingress.session_limits import SessionLimits
from relay.settings.tree import SmtpListener
from relay.spool.types import IncomingBody


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
