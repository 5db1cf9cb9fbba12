"""The owner's side of an SMTP session: the login, the checks of senders and recipients, acceptance.

RCPT is answered here (relaying, full mailboxes). A message is accepted in a separate task.

Elsewhere: which addresses are valid, with the reply for an unknown user or domain:
relay/transport/routing/route_table.py; what an alias or an SRS address leads to, and who may write
to an alias: `forwarding`; whether a mailbox has room: relay/store/mailbox/quota.py; how a next hop
is asked whether it takes an address: relay/delivery/recipient_verification.py; strangers that the
DNS refuses: `strangers`.

A client that may not relay may send to local domains, also to those that a route sends elsewhere.
An alias is accepted if any of its addresses is. These may be outside even if the client may not
relay: the operator has decided where the mail for an alias goes, and the key of an SRS address
proves that mail was sent from the address to which the report goes back. A rejection names the
address that the client named, never an address of an alias.

When an account is removed or its password changed, a session with its login ends at its next MAIL,
RCPT or final dot. relay/operation/app makes IngressDependencies; smtp_server adds what differs
between listeners. RFC 5321 3.9.1, 4.1.1.3, 7.9.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct, structs

from relay.base.accounts import account
from relay.base.crashpoints import CrashPoints
from relay.base.message.content import size_of
from relay.base.message.envelope import ForwardPath, domain_of
from relay.base.message.nexthop import NextHop
from relay.base.message.status import own_reply, reply_text
from relay.base.observe.logs import get_logger
from relay.base.pressure import Pressure
from relay.base.settings.tree import SmtpListener
from relay.base.task_set import TaskSet
from relay.store.mailbox.delivery_store import DeliveryStore
from relay.store.mailbox.usage import Room
from relay.store.spool.types import LendableBody
from relay.transport.ingress.acceptance import Acceptance
from relay.transport.ingress.data import DataReply, Origin, ReceivedContent, Submitter
from relay.transport.ingress.dropped_mail import submission_key
from relay.transport.ingress.filtering import SessionFilters
from relay.transport.ingress.forwarding import Forwarder
from relay.transport.ingress.listener_role import ListenerRole
from relay.transport.ingress.local_users import LocalUser, LocalUsers
from relay.transport.ingress.send_as import local_rejection, sender_rejection
from relay.transport.ingress.sender_checks import SenderChecks
from relay.transport.ingress.session_client import (
    LOGIN_ENDED,
    OfferedMail,
    RecipientAnswer,
    RefusedCommand,
    SessionClaims,
    SessionClient,
)
from relay.transport.ingress.session_refusals import ListenerRefusals
from relay.transport.ingress.strangers import Stranger, StrangerChecks
from relay.transport.policy.rule_book import RuleBook, unavailable
from relay.transport.refusals.day_files import RefusalFiles
from relay.transport.routing.routing_result import (
    InvalidRecipient,
    LocalRecipient,
    RemoteRecipient,
    RoutingResult,
)

_log = get_logger("ingress")
# RFC 5321 7.9
_DENIED = "550 5.7.1 Relaying denied: authenticate, or use your own mail server"
_TAKEN = RecipientAnswer()
_NO_CLAIMS = SessionClaims()
_KEPT = RecipientAnswer(may_keep=True)
# DeliveryStore.room(), of the mailbox of an account and a size in octets.
AskRoom = Callable[[str, int], Awaitable[Room]]


class Verify(Protocol):
    """Asks a next hop: RecipientVerifier.rejection()."""

    def __call__(self, address: str, next_hop: NextHop, *, client: str) -> Awaitable[str]:
        """Return the reply if the next hop does not take an address, else ""."""


class CheckLogin(Protocol):
    """Checks a user and a password: AccountDirectory.by_smtp_login()."""

    def __call__(
        self, user: str, password: str, *, client: str
    ) -> Awaitable[account.Account | None]:
        """Return the account, None for a wrong password.

        Raises LoginDelayedError, and LoginRefusedError with the text of the reply.
        """


@dataclass(frozen=True, slots=True)
class IngressDependencies:
    """What all listeners of a process share."""

    hostname: str  # of the greeting and of Received fields
    acceptance: Acceptance  # takes over complete messages
    accounts: account.AccountDirectory  # logins, and addresses that they may use
    check_token: CheckLogin  # a user and a bearer token
    quota: DeliveryStore  # whether a local mailbox has room
    crash: CrashPoints = field(default_factory=CrashPoints)  # for crash tests
    pressure: Pressure = field(default_factory=Pressure)  # whether new mail is taken
    refusals: RefusalFiles | None = None  # keeps what is refused; None: nothing does
    verify: Verify | None = None  # whether a next hop takes an address; None: none is asked
    strangers: StrangerChecks | None = None  # None: the DNS is not asked
    memory_bytes: int = sys.maxsize  # for the sessions of a listener


class OwnerDependencies(Struct, frozen=True):
    """What the owners of a listener's sessions share."""

    settings: SmtpListener  # its configuration
    listeners: IngressDependencies  # shared by all of them
    check_login: CheckLogin  # a user and a password
    check_token: CheckLogin  # a user and a bearer token
    refusals: ListenerRefusals  # records what is refused
    acceptances: TaskSet  # messages that are being accepted
    role: ListenerRole  # which checks its mail skips
    users: LocalUsers | None = None  # who the clients may be, on the socket for programs


class RecipientChecks(Struct, frozen=True):
    """Checks recipients for RCPT."""

    forwarding: Forwarder  # which addresses are valid, and what they lead to
    room: AskRoom  # whether a local mailbox has room
    verify: Verify | None = None  # None: no next hop is asked
    client: str = ""  # the IP address that asks
    rules: Callable[[], RuleBook] = RuleBook  # returns the rules in force

    async def answer(self, address: str, sender: Submitter, *, size_bytes: int) -> RecipientAnswer:
        """Return whether a recipient is taken."""
        reverse_path, may_relay = sender.reverse_path, sender.is_trusted
        if not reverse_path:
            if reply := self.forwarding.report_rejection(address, size_bytes):
                return RecipientAnswer(reply)
            route = self.forwarding.examine(address, "")
            if not may_relay and isinstance(route, LocalRecipient) and not route.is_local:
                return RecipientAnswer(_DENIED)  # reports of others to this host's name
        destination = self.forwarding.find(address, reverse_path)
        if not isinstance(destination, account.Expansion):
            reply = await self._rejection(
                destination,
                address,
                named=address,
                size_bytes=size_bytes,
                may_relay=may_relay,
                asks=not may_relay,
            )
            if reply:
                return RecipientAnswer(reply)
            is_kept = may_relay and reverse_path and isinstance(destination, RemoteRecipient)
            return _KEPT if is_kept else _TAKEN
        if reply := self.forwarding.writer_rejection(address, destination, sender):
            return RecipientAnswer(reply)
        rejection, expanded = "", len(destination.targets)
        for target in destination.addresses:
            reply = await self._rejection(
                self.forwarding.examine(target, reverse_path),
                target,
                named=address,
                size_bytes=size_bytes,
                may_relay=True,
                asks=not may_relay and expanded == 1,
            )
            if not reply:
                return RecipientAnswer(expanded=expanded)
            rejection = rejection or reply.replace(f"<{target}>", f"<{address}>", 1)
        return RecipientAnswer(rejection, expanded)

    async def rejection_of_all(
        self, paths: Sequence[ForwardPath], sender: Submitter, *, size_bytes: int
    ) -> str:
        """Return the reply if no recipient accepts a message of this size, else ""."""
        rejection = ""
        for path in paths:
            answer = await self.answer(path.address, sender, size_bytes=size_bytes)
            if not (rejection := answer.reply):
                break
        return rejection

    async def _rejection(
        self,
        route: RoutingResult,
        address: str,
        *,
        named: str,
        size_bytes: int,
        may_relay: bool,
        asks: bool,
    ) -> str:
        """`named` is the address that the client gave, which leads to `address`."""
        if self.rules().tenants and self._waits(address, route):
            return f"451 4.3.0 {unavailable(domain_of(named))}"  # RFC 3463 3.4
        match route:
            case RemoteRecipient(next_hop):
                if not (route.is_local or may_relay):
                    return self._denial(named)
                if asks and route.is_asked and next_hop.host and self.verify is not None:
                    return await self.verify(address, next_hop, client=self.client)
            case LocalRecipient(mailbox):
                if mailbox != account.DEAD_LETTER:
                    match await self.room(mailbox, size_bytes):
                        case Room.FULL:
                            # RFC 3463 3.3
                            text = f"<{address}>: the mailbox is full, try again later"
                            return own_reply("4.2.2", text)
                        case Room.NEVER:
                            # RFC 3463 3.3
                            text = f"<{address}>: the message is larger than the mailbox"
                            return own_reply("5.2.2", text)
            case InvalidRecipient(text=text):
                return text
        return ""

    def _denial(self, address: str) -> str:
        if not self.forwarding.router.is_of_other_store(domain_of(address)):
            return _DENIED
        text = f"<{address}>: another node has the mailboxes of its domain, try its MX"
        return f"450 4.4.4 {reply_text(text)}"  # RFC 3463 3.5

    def _waits(self, address: str, route: RoutingResult) -> bool:
        """Return whether mail for a valid address waits, because its tenant has no usable rules."""
        tenant = self.rules().tenant_of(domain_of(address))
        is_valid = not isinstance(route, InvalidRecipient)
        return is_valid and tenant is not None and tenant.rules is None


class SessionOwner:
    """The owner's side of one session."""

    def __init__(self, shared: OwnerDependencies, ip: str, *, is_trusted: bool) -> None:
        """`is_trusted`: the client is in a trusted network, or is a program of this machine."""
        acceptance, listeners = shared.listeners.acceptance, shared.listeners
        self._shared = shared
        self.acceptances = shared.acceptances
        self.ip = ip
        self.is_trusted = is_trusted
        self._checks = RecipientChecks(
            acceptance.stages.forwarding,
            listeners.quota.room,
            listeners.verify,
            client=ip,
            rules=acceptance.policy,
        )
        self._account: account.Account | None = None  # the account at the time of the login
        self._token: tuple[str, str] | None = None  # its user name and token; None: a password
        self.login = ""  # the address of the account
        self._user: LocalUser | None = None
        self._filters: SessionFilters | None = None
        self._stranger: Stranger | None = None  # once a stranger gave MAIL

    def client(self, uid: int | None = None) -> SessionClient:
        """Return the client for a session in this process, with the uid of a program."""
        return SessionClient(
            self.ip,
            self.is_trusted,
            self.log_in,
            self.sender_rejection,
            self.check_recipient,
            self.new_body,
            self.accept,
            self.refused,
            uid=uid,
            find_user=None if uid is None else lambda: self._find_user(uid),
            new_filters=self._new_filters,
        )

    async def log_in(self, user: str, secret: str, is_token: bool) -> str:
        """See SessionClient."""
        check = self._shared.check_token if is_token else self._shared.check_login
        try:
            self._account = await check(user, secret, client=self.ip)
        except account.LoginDelayedError as delayed:
            if delayed.__cause__ is not None:
                error = delayed.__cause__
                _log.repeated("error", "password not checked", client=self.ip, error=error)
            raise
        self.login = self._account.address if self._account is not None else ""
        self._token = (user, secret) if is_token else None
        return self.login

    async def sender_rejection(self, reverse_path: str) -> str:
        """See SessionClient."""
        shared = self._shared.listeners
        if self._user is not None:
            return local_rejection(self._user, reverse_path)
        if self._account is not None:
            if await self._has_ended():
                return LOGIN_ENDED
            if shared.acceptance.any_sender:
                return ""
            return sender_rejection(shared.accounts, self.login, reverse_path)
        stranger = self._as_stranger()
        return "" if stranger is None else await stranger.sender_refusal(reverse_path)

    async def check_recipient(
        self, address: str, reverse_path: str, size_bytes: int, *, helo: str = ""
    ) -> RecipientAnswer:
        """See SessionClient."""
        if await self._has_ended():
            return RecipientAnswer(LOGIN_ENDED)
        if self._shared.role.is_promised:
            return _TAKEN
        sender = self._origin(_NO_CLAIMS).sender(reverse_path)
        answer = await self._checks.answer(address, sender, size_bytes=size_bytes)
        stranger = self._as_stranger()
        if answer.reply or sender.is_trusted or stranger is None:
            return answer
        refusal = await stranger.refusal(address, reverse_path, helo=helo)
        return refusal if refusal.reply else answer

    def new_body(self) -> LendableBody:
        """See SessionClient."""
        return self._shared.listeners.acceptance.spool.incoming_body()

    async def accept(self, offered: OfferedMail, received: ReceivedContent) -> DataReply:
        """See SessionClient. The acceptance goes on if the client disconnects."""
        if self._filters is not None:
            received = self._filters.deciding(received)
        return await asyncio.shield(self.acceptances.start(self.accepted(offered, received)))

    async def accepted(self, offered: OfferedMail, received: ReceivedContent) -> DataReply:
        """Do the same in a task of `acceptances`; release what was received."""
        try:
            if await self._has_ended():
                return DataReply(LOGIN_ENDED)
            envelope, origin = offered.mail.envelope, self._origin(offered.claims)
            if offered.mail.key and origin.user is not None:
                key = submission_key(origin.user.uid, offered.mail.key)
                origin = structs.replace(origin, key=key, has_client=True)
            size_bytes = size_of(received.content)
            if size_bytes > offered.mail.size_bytes and not self._shared.role.is_promised:
                sender = origin.sender(envelope.reverse_path)
                rejection = await self._checks.rejection_of_all(
                    offered.paths, sender, size_bytes=size_bytes
                )
                if rejection:
                    return DataReply(rejection)
            return await self._shared.listeners.acceptance.accept(
                envelope, offered.paths, received.content, origin=origin, filters=self._filters
            )
        finally:
            received.release()

    def refused(self, refused: RefusedCommand, claims: SessionClaims) -> None:
        """See SessionClient."""
        self._shared.refusals.record(refused, self._origin(claims))

    async def _find_user(self, uid: int) -> LocalUser | None:
        if self._shared.users is not None:
            self._user = await asyncio.to_thread(self._shared.users.find, uid)
        return self._user

    def _as_stranger(self) -> Stranger | None:
        checks = self._shared.listeners.strangers
        if self._stranger is None and checks is not None:
            self._stranger = Stranger(checks, self._shared.settings, self.ip)
        return self._stranger

    def _new_filters(self) -> SessionFilters | None:
        if not self._shared.role.is_local:
            settings, role = self._shared.settings, self._shared.role.name
            session = self._shared.listeners.acceptance.milters.session(role)
            if session is not None:
                self._filters = SessionFilters(session, settings.max_message_size)
        return self._filters

    async def _has_ended(self) -> bool:
        """Whether the login would fail now: the account was removed, or has another password or
        token; or the token, which may be that of an application, does not open it any more.
        """
        if self._account is None:
            return False
        now = self._shared.listeners.accounts.of_login(self.login)
        if self._token is not None:
            try:
                now = await self._shared.check_token(*self._token, client=self.ip)
            except (account.LoginDelayedError, account.LoginRefusedError):
                return True
        return now is None or now.credentials != self._account.credentials

    def _origin(self, claims: SessionClaims) -> Origin:
        user, helo = self._user, claims.helo
        is_known = self.is_trusted or self._account is not None
        return Origin(
            self.ip,
            helo if user is None else user.name,
            claims.extended,
            claims.tls,
            self.login,
            trusted=is_known,
            role=self._shared.role,
            user=user,
            is_hidden=self._account is not None and self._shared.settings.hide_client,
            has_bare_lf=claims.has_bare_lf,
            checks=None if is_known else SenderChecks.of(self._shared.settings),
        )
