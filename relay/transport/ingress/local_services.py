"""The owner's side of a session: SessionServices by the accounts, acceptance and spool in here.

relay/operation/app makes IngressDependencies; smtp_server adds what differs between listeners.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct

from relay.base.accounts.account import Account, AccountDirectory, LoginDelayedError
from relay.base.crashpoints import CrashPoints
from relay.base.message.content import Content, size_of
from relay.base.message.envelope import ForwardPath
from relay.base.observe.logs import get_logger
from relay.base.pressure import Pressure
from relay.base.settings.tree import SmtpListener
from relay.store.mailbox.types import DeliveryStore
from relay.store.spool.types import LendableBody
from relay.transport.ingress.acceptance import Acceptance
from relay.transport.ingress.data import DataReply, Origin, ReceivedContent
from relay.transport.ingress.esmtp_parameters import MailArgument
from relay.transport.ingress.filtering import SessionFilters
from relay.transport.ingress.local_users import LocalUser, LocalUsers
from relay.transport.ingress.recipient_checks import RecipientChecks, Verify
from relay.transport.ingress.send_as import (
    IsNullMx,
    local_rejection,
    null_mx_rejection,
    sender_rejection,
)
from relay.transport.ingress.session_refusals import ListenerRefusals
from relay.transport.ingress.session_services import RecipientAnswer, RefusedCommand, SessionClaims
from relay.transport.refusals.refusal import RefusalStore

_log = get_logger("ingress")


class CheckLogin(Protocol):
    """Checks a user and a password: AccountDirectory.by_smtp_login()."""

    def __call__(self, user: str, password: str, *, client: str) -> Awaitable[Account | None]:
        """Return the account, None for a wrong password.

        Raises LoginDelayedError, and LoginRefusedError with the text of the reply.
        """
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
    refusals: RefusalStore | None = None  # keeps what is refused; None: nothing does
    verify: Verify | None = None  # whether a next hop takes an address; None: none is asked
    is_null_mx: IsNullMx | None = None  # None: no domain is asked


class ServiceDependencies(Struct, frozen=True):
    """What the services of a listener's sessions share."""

    settings: SmtpListener  # its configuration
    shared: IngressDependencies  # with the other listeners
    check_login: CheckLogin  # a user and a password
    check_token: CheckLogin  # a user and a bearer token
    refusals: ListenerRefusals  # records what is refused
    acceptances: set[asyncio.Task[DataReply]]  # messages that are being accepted
    pickup: bool = False  # the listener is pickup's own socket
    users: LocalUsers | None = None  # who the clients may be, on the socket for programs


class LocalServices:
    """The SessionServices of one session."""

    def __init__(self, owner: ServiceDependencies, ip: str, *, is_trusted: bool, uid: int) -> None:
        """`is_trusted`: the network of the client is; `uid` is for the socket for programs."""
        acceptance, shared = owner.shared.acceptance, owner.shared
        self._owner = owner
        self._ip = ip
        self._uid = uid
        self._is_trusted_network = is_trusted
        self._checks = RecipientChecks(
            acceptance.forwarding, shared.quota.room, shared.verify,
            rules=acceptance.policy, is_pickup=owner.pickup,
        )  # fmt: skip
        self._account: Account | None = None  # that logged in, as it was then
        self._user: LocalUser | None = None
        self._filters: SessionFilters | None = None

    @property
    def login(self) -> str:
        """See SessionServices."""
        return self._account.address if self._account is not None else ""

    @property
    def has_ended(self) -> bool:
        """See SessionServices."""
        if self._account is None:
            return False
        now = self._owner.shared.accounts.of_login(self._account.address)
        return now is None or now.credentials != self._account.credentials

    async def log_in(self, user: str, secret: str, *, is_token: bool) -> bool:
        """See SessionServices."""
        check = self._owner.check_token if is_token else self._owner.check_login
        try:
            self._account = await check(user, secret, client=self._ip)
        except LoginDelayedError as delayed:
            if delayed.__cause__ is not None:
                _log.error("password not checked", client=self._ip, error=delayed.__cause__)
            raise
        return self._account is not None

    def forget_login(self) -> None:
        """See SessionServices."""
        self._account = None

    async def local_user(self) -> LocalUser | None:
        """See SessionServices."""
        if self._owner.users is not None:
            self._user = await asyncio.to_thread(self._owner.users.find, self._uid)
        return self._user

    async def sender_rejection(self, reverse_path: str) -> str:
        """See SessionServices."""
        shared = self._owner.shared
        if self._user is not None:
            return local_rejection(self._user, reverse_path)
        if self._account is not None:
            if shared.acceptance.any_sender:
                return ""
            return sender_rejection(shared.accounts, self._account.address, reverse_path)
        return await null_mx_rejection(reverse_path, shared.is_null_mx, shared.acceptance.router)

    def recipient(
        self, address: str, reverse_path: str, *, size_bytes: int
    ) -> Awaitable[RecipientAnswer]:
        """See SessionServices."""
        return self._checks.answer(
            address, reverse_path, size_bytes=size_bytes, may_relay=self._may_relay
        )

    def new_body(self) -> LendableBody:
        """See SessionServices."""
        return self._owner.shared.acceptance.spool.incoming_body()

    def new_filters(self) -> SessionFilters | None:
        """See SessionServices."""
        if self._user is None and not self._owner.pickup:
            settings = self._owner.settings
            session = self._owner.shared.acceptance.milters.session(settings.role)
            if session is not None:
                self._filters = SessionFilters(session, settings.max_message_size)
        return self._filters

    async def accept(
        self, mail: MailArgument, paths: Sequence[ForwardPath], received: ReceivedContent, *,
        claims: SessionClaims,
    ) -> DataReply:  # fmt: skip
        """Run the acceptance in its own task: it continues if the client disconnects.

        The task therefore releases what was received.
        """
        if self._filters is not None:
            received = self._filters.deciding(received)
        accepting = self._accepted(mail, paths, received.content, origin=self._origin(claims))
        task = asyncio.get_running_loop().create_task(accepting)
        task.add_done_callback(lambda _: received.release())
        self._owner.acceptances.add(task)
        task.add_done_callback(self._owner.acceptances.discard)
        return await asyncio.shield(task)

    async def _accepted(
        self, mail: MailArgument, paths: Sequence[ForwardPath], content: Content, *, origin: Origin
    ) -> DataReply:
        if size_of(content) > mail.size_bytes and (
            rejection := await self._checks.rejection_of_all(
                paths, mail.envelope.reverse_path,
                size_bytes=size_of(content), may_relay=origin.trusted,
            )
        ):  # fmt: skip
            return DataReply(rejection)
        return await self._owner.shared.acceptance.accept(
            mail.envelope, paths, content, origin=origin, filters=self._filters
        )

    def refused(self, refused: RefusedCommand, claims: SessionClaims) -> None:
        """See SessionServices."""
        self._owner.refusals.record(refused, self._origin(claims))

    def end(self) -> None:
        """See SessionServices. The acceptance of messages goes on."""

    @property
    def _may_relay(self) -> bool:
        return self._is_trusted_network or self._account is not None

    def _origin(self, claims: SessionClaims) -> Origin:
        user, helo = self._user, claims.helo
        return Origin(
            self._ip, helo if user is None else user.name, claims.extended, claims.tls, self.login,
            trusted=self._may_relay, pickup=self._owner.pickup, user=user,
        )  # fmt: skip
