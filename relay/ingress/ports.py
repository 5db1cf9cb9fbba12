"""What the ingress room needs of others, and the values that pass between its own parts.

On the path: app passes real ones in; tests pass small ones.
Holds: nothing here knows aiosmtpd or the network.
Fails: never.
Standards: none.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from relay.accounts import Account
from relay.ingress.data import Received
from relay.journeys.events import Event
from relay.mailbox.types import Room
from relay.message.envelope import Client, Envelope
from relay.message.reporting import ReportedMessage, ReportedRecipient
from relay.message.verdict import Source, Subject, Verdict
from relay.routing.route_table import Examination
from relay.spool.types import NewMessage


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came from, as its session knows it.

    `ip` is "" on a Unix socket; `tls` is the protocol version or ""; `login` is the account that
    authenticated or ""; `trusted` means AUTH, a listed network or pickup; `pickup` that it came
    through pickup's own socket.
    """

    ip: str
    helo: str
    extended: bool = True
    tls: str = ""
    login: str = ""
    trusted: bool = False
    pickup: bool = False

    @property
    def client(self) -> Client:
        """What the log and the journey say of the client."""
        return Client(self.ip, self.helo, self.login, self.tls)

    @property
    def source(self) -> Source:
        """The `source` condition of rules and the `via` label of metrics."""
        return Source.GRAPH if self.pickup else Source.SMTP


@dataclass(frozen=True, slots=True)
class Decision:
    """The reply after the final dot; `queue_id` is "" where nothing was accepted."""

    reply: str
    queue_id: str = ""


Accept = Callable[[Envelope, Received, Origin], Awaitable[Decision]]


class Router(Protocol):
    """Says where an address goes: relay.routing.route_table.RouteTable."""

    def examine(self, address: str) -> Examination:
        """Local, remote or invalid."""
        ...

    def is_local_domain(self, domain: str) -> bool:
        """Whether mailboxes of `domain` are here."""
        ...


class Policy(Protocol):
    """The mail-flow rules: relay.policy's RuleSet."""

    def evaluate(self, subject: Subject) -> Verdict:
        """Decide; may raise anything, which is 451 4.7.1."""
        ...


class Passwords(Protocol):
    """Who logs in: relay.accounts.AccountDirectory."""

    def by_address(self, address: str) -> Account | None:
        """The account that gets mail for `address`."""
        ...

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        """The account that logs in so from the address `client`. Raises LoginDelayedError."""
        ...


class Quota(Protocol):
    """Whether mail fits: a part of relay.mailbox's DeliveryStore."""

    async def room(self, account: str, size: int) -> Room:
        """Whether a message of `size` bytes fits under the account's quota."""
        ...


class ReportPlan(Protocol):
    """The reports that are due already, and the events that tell of them."""

    @property
    def messages(self) -> tuple[NewMessage, ...]:
        """Each is routed and ready for the spool."""
        ...

    @property
    def events(self) -> tuple[Event, ...]:
        """They belong to the original message."""
        ...


class Reporter(Protocol):
    """Who hears of failures: relay.reports' Reporter."""

    def failures(
        self,
        message: ReportedMessage,
        *,
        trusted: bool,
        source: Source,
        account: str,
        recipients: Sequence[ReportedRecipient],
    ) -> ReportPlan:
        """Decide who gets a report, and write it."""
        ...
