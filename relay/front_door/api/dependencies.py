"""What the API needs: journeys, queue administration, change notification, readiness, metrics.

Also Principal: the role of the account or operator that makes a request, and the log line of what
it does.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from relay.base.accounts.account import ALL_SCOPES, Account, Role, Scope
from relay.base.accounts.usage import AccountUsage
from relay.base.advanceable_clock import AdvanceableClock
from relay.base.clock import Clock
from relay.base.message.nexthop import NextHop
from relay.base.message.status import one_line
from relay.base.observe.logs import get_logger
from relay.base.observe.metric_samples import MetricSamples
from relay.base.observe.metrics import Metrics
from relay.base.pauses import Pauses
from relay.base.pressure import Pressure
from relay.front_door.api.event_streams import EventStreams
from relay.front_door.api.message_source import MessageCopies, MessageSources
from relay.front_door.http.errors import ApiError
from relay.front_door.http.http_request import PEER_UID, HttpRequest
from relay.front_door.notifications.webhooks import Webhooks
from relay.store.journeys.document import Journey
from relay.store.journeys.event_feed import ChangeNotifier
from relay.store.journeys.journey import Journeys
from relay.store.spool.queue_commands import RouteLookup
from relay.store.spool.shared.queue_admin import QueueAdmin
from relay.store.spool.shared.suppression import SuppressionList
from relay.submission.outbox.ready_submissions import ReadySubmissions
from relay.submission.outbox.restored import RestoredSubmissions
from relay.transport.ingress.local_users import LocalUsers
from relay.transport.refusals.day_files import RefusalFiles


class ClientSettings(Struct, frozen=True):
    """How programs on this machine send to a development relay."""

    smtp_host: str  # for all ports
    smtp_port: int  # without TLS
    submission_port: int  # with STARTTLS; 0: none
    submissions_port: int  # with TLS from the first octet; 0: none
    http_port: int  # of the Graph API
    https_port: int  # of the same with TLS; 0: none
    sender: str  # has an account
    recipient: str  # has an account
    needs_token: bool  # HTTP requests need the relay's token, not the sender's name
    host_names: tuple[str, ...] = ()  # other host names for which it answers HTTP requests
    mailboxes: tuple[str, ...] = ()  # URLs where mail programs log in
    no_mailboxes: tuple[str, ...] = ()  # why there is no IMAP, no POP3


class DevelopmentControls(Protocol):
    """What clients can ask of a development relay in addition to a service."""

    @property
    def respond_to_agent(self) -> Callable[[HttpRequest, "Principal"], Awaitable[Response]]:
        """The function that returns the response to a request of /mcp, or raises ApiError."""

    @property
    def release_to(self) -> NextHop | None:
        """Where a release sends captured mail; None if nothing leaves this machine."""

    def may_release(self, address: str) -> bool:
        """Return whether a release may send captured mail to this recipient of it."""

    @property
    def clock(self) -> AdvanceableClock:
        """The clock of the relay."""

    async def advance_clock(self, seconds: float) -> None:
        """Advance the clock from timer to timer; after each, wait until nothing is in progress.

        A caller that is cancelled does not stop it. Raises ValueError for an invalid number, and
        AdvanceError if the clock stops earlier.
        """

    async def is_quiet(self, timeout_s: float) -> bool:
        """Wait until nothing is due in the queue or in progress; False if that takes longer."""

    @property
    def is_advancing(self) -> bool:
        """Whether an advance of the clock is in progress."""

    @property
    def last_advance(self) -> Mapping[str, Any] | None:
        """The last advance that ended: `seconds`, `attempts`, `reports`, `error`; None: none."""

    async def next_retry_s(self) -> float | None:
        """Return in how many seconds the next deferred entry is due, None if there is none."""

    @property
    def scenario_toml(self) -> str:
        """The scenario of the simulated internet, as TOML."""

    def used_replies(self) -> Sequence[Mapping[str, Any]]:
        """Return `entry`, `used` and `left` (None: no limit) for each reply of the scenario."""

    async def use_scenario(self, content: str | Mapping[str, Any]) -> None:
        """Replace the scenario by a TOML text or a table. Raises SettingsError: nothing changed."""

    async def use_shipped_scenario(self, name: str) -> None:
        """Replace the scenario by a shipped one: NAME, or NAME:REPLY. Raises SettingsError."""

    async def add_reply(self, domain: str, reply: Mapping[str, Any]) -> None:
        """Add a reply to the scenario, before the others of a domain, with the keys of the file.

        Counts are kept. Raises SettingsError: nothing changed.
        """

    async def remove_reply(self, domain: int, reply: int) -> None:
        """Remove a reply by the numbers in internet_overview(). Raises IndexError."""

    def internet_overview(self) -> Mapping[str, Any]:
        """Return `domains`, `graph` and `hosts` of the simulated internet, see docs/internet.md;
        `shipped`, the shipped scenarios with the names of their replies; and `recipients`, the
        addresses of test recipients, and what their hosts do.
        """

    def received_content(self, queue_id: str) -> bytes | None:
        """Return the content that a simulated host received, None if it is not remembered."""

    async def remove_message(self, journey: Journey, copies: MessageCopies) -> bool:
        """Remove a message: from the queue, from the history, and its copies in mailboxes.

        Return False, and remove nothing, while the message is being delivered or converted (step
        3).
        """

    async def reset(self) -> int:
        """Delete everything that is stored; return the number of messages."""

    @property
    def clients(self) -> ClientSettings:
        """How programs send to it."""

    async def send_example(self, key: str) -> str:
        """Send an example message; return "", or why it was not sent.

        A second message with the same key is not sent.
        """


class Question(Struct, frozen=True):
    """A question about mail: where it would go, and why.

    `sender` is the reverse-path, "" for the null reverse-path; `ip` is the client's address, "" for
    a client that has logged in; `content` is the message, with CRLF, None for none.
    """

    address: str
    sender: str = ""
    ip: str = ""
    content: bytes | None = None
    probe: bool = False  # connect to the hosts, and stop before MAIL

    @property
    def is_report(self) -> bool:
        """Whether the mail is a delivery report about mail of a trusted client."""
        return not (self.sender or self.ip or self.content is not None)


Explain = Callable[[Question], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class ApiDependencies:
    """What the handlers need."""

    journeys: Journeys  # messages and their events
    queue_admin: QueueAdmin  # executes queue commands
    stats: Callable[[], Awaitable[Mapping[str, Any]]]  # the counts of the queue
    traffic: Callable[[str, float], Coroutine[Any, Any, Mapping[str, Any]]]  # by, since_s
    way_to: Callable[[str], RouteLookup]  # parses the target of a reroute, or raises ValueError
    target_of: Callable[[str], str]  # RouteTable.target_of
    changes: ChangeNotifier  # wakes requests that wait for an event
    metrics: Metrics  # of this process
    samples: MetricSamples  # the metrics of the last hour
    ready: Callable[[], str]  # "", or the reason why the relay is not ready
    clock: Clock  # for time-outs and ages
    pressure: Pressure  # the level and its reasons
    # removes, or with True only counts, history older than seconds (None: spool.keep)
    prune: Callable[[float | None, bool], Awaitable[Mapping[str, Any]]]
    sources: MessageSources  # the content of messages
    unlock: Callable[[str], int]  # AccountDirectory.unlock
    # what an account has sent today, "": the busiest accounts; True: reset the account first;
    # raises UnknownUserError
    usage: Callable[[str, bool], Sequence[AccountUsage]]
    restored: RestoredSubmissions  # the submissions that a restore holds
    submissions: ReadySubmissions  # sends and cancels scheduled ones
    events: EventStreams  # the streams of GET /events
    refusals: RefusalFiles  # of SMTP sessions
    impaired: Callable[[], str]  # problems of a relay that is ready; "": none
    explain: Explain  # where mail for an address goes
    pauses: Pauses  # what an operator has paused
    webhooks: Webhooks  # where events are posted
    suppression: SuppressionList  # the list of dead addresses
    is_own: Callable[[str], bool]  # RouteTable.is_own_anywhere
    development: DevelopmentControls | None = None  # None in a service
    # reads the configuration again, returns the outcome; None in a development relay
    reload: Callable[[], Awaitable[Any]] | None = None
    # returns relay.toml as it was read; {}: not a service
    configuration: Callable[[], Mapping[str, Any]] = dict


_users = LocalUsers("localhost", "localhost")
_log = get_logger("api")


class Principal(Struct, frozen=True):
    """Who makes a request; `name` is recorded in the events of queue commands."""

    name: str
    role: Role
    scopes: frozenset[Scope] = ALL_SCOPES
    is_at_socket: bool = False  # of run/control.sock

    def log(self, act: str, **fields: Any) -> None:
        """Log an act. The line stays when the act has removed the history of the mail."""
        _log.info(act, who=self.name, **fields)

    @property
    def account(self) -> str | None:
        """The account whose messages are visible; None for all."""
        return self.name if self.role is Role.USER else None

    @property
    def may_read_content(self) -> bool:
        """Whether the account's tokens may read messages."""
        return not self.scopes.isdisjoint((Scope.MAIL_READ, Scope.MAIL_READ_WRITE))

    def check_may_read_content(self) -> None:
        """Raise ApiError 403 unless the account's tokens may read messages."""
        if not self.may_read_content:
            message = f"Access is denied: this needs the permission {Scope.MAIL_READ}."
            raise ApiError(403, "ErrorAccessDenied", message)

    def check_may_change_content(self) -> None:
        """Raise ApiError 403 unless the account's tokens may change messages in its mailbox."""
        if Scope.MAIL_READ_WRITE not in self.scopes:
            message = f"Access is denied: this needs the permission {Scope.MAIL_READ_WRITE}."
            raise ApiError(403, "ErrorAccessDenied", message)

    def check_may_read(self) -> None:
        """Raise ApiError 403 unless the role may see the whole queue."""
        if self.role is Role.USER:
            raise _denied("read or operate")

    def check_may_operate(self) -> None:
        """Raise ApiError 403 unless the role may change the queue."""
        if self.role is not Role.OPERATE:
            raise _denied("operate")


OPERATOR = Principal(name="control socket", role=Role.OPERATE, is_at_socket=True)


def operator_at_socket(request: HttpRequest) -> Principal:
    """Return the principal of a request over the control socket: the user that the kernel names,
    and the SUDO_USER that the client names.
    """
    uid = request.scope.get(PEER_UID)
    name = request.account = OPERATOR.name if uid is None else _users.find(uid).name
    sudo_user = one_line(unquote(request.headers.get("x-relay-sudo-user", ""))[:100])
    return replace(OPERATOR, name=f"{name} (SUDO_USER {sudo_user})" if sudo_user else name)


def principal_of(account: Account) -> Principal:
    """Return the principal of an account."""
    return Principal(name=account.address, role=account.role, scopes=account.scopes)


def _denied(role: str) -> ApiError:
    message = f"Access is denied: this needs an account of the role {role}."
    return ApiError(403, "ErrorAccessDenied", message)
