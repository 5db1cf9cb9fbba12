"""An account, the addresses to which an alias leads, and the Protocol to look accounts up.

Addresses are in lower case, including local parts: case is ignored when mailboxes are compared
(RFC 5321 2.3.11).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from relay.base.message.address import own_mailbox, untagged
from relay.base.settings.tree import NO_LIMITS, Limits

DEAD_LETTER = "dead-letter"  # the Maildir in state_dir if no postmaster is configured
LOGIN_OCTETS_MAX = 320  # of a user name: 64 of a local part, @, and 255 of a domain


class Scope(StrEnum):
    """A permission of an account's tokens in the Graph API, named as Graph names it."""

    MAIL_READ = "Mail.Read"
    MAIL_READ_WRITE = "Mail.ReadWrite"
    MAIL_SEND = "Mail.Send"
    SMTP_SEND = "SMTP.Send"
    MAILBOX_SETTINGS_READ = "MailboxSettings.Read"
    MAILBOX_SETTINGS_READ_WRITE = "MailboxSettings.ReadWrite"
    USER_READ = "User.Read"


ALL_SCOPES = frozenset(Scope)
_INCLUDED = {  # what each gives as well
    Scope.MAIL_READ_WRITE: Scope.MAIL_READ,
    Scope.MAIL_SEND: Scope.SMTP_SEND,
    Scope.MAILBOX_SETTINGS_READ_WRITE: Scope.MAILBOX_SETTINGS_READ,
}


def with_included(scopes: frozenset[Scope]) -> frozenset[Scope]:
    """Return the scopes with those whose rights they include, such as Mail.Read in
    Mail.ReadWrite.
    """
    return scopes.union(_INCLUDED[scope] for scope in scopes if scope in _INCLUDED)


class AccountError(Exception):
    """A change of the accounts is not possible."""


class LoginRefusedError(Exception):
    """The login is refused whatever the password is; the text says why."""


class LoginDelayedError(Exception):
    """A login is not checked now; the client may try again after `retry_after_s`."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class UnknownUserError(Exception):
    """There is no account and no mailbox of this name, and the caller may know it. The text says
    what to do, for a path.
    """


class Role(StrEnum):
    """The rights of an account's token beyond its own mailbox."""

    USER = "user"
    READ = "read"  # sees all messages
    OPERATE = "operate"  # may also change the queue


class ReceiptSetting(StrEnum):
    """When an account sends the read receipts that senders ask for."""

    NEVER = "never"
    ASK = "ask"  # only when a client requests it
    ALWAYS = "always"
    AUTO = "auto"  # to other accounts of this relay at once, else as ASK


@dataclass(frozen=True, slots=True)
class Account:
    """An account with its mailbox."""

    address: str  # of the mailbox
    aliases: tuple[str, ...] = ()  # further addresses of the mailbox
    quota: int | None = None  # bytes; None: no limit
    role: Role = Role.USER  # what it may do in /relay/v1
    # addresses of others that it may send from; `*@domain` is a whole domain
    send_as: tuple[str, ...] = ()
    quota_messages: int | None = None  # None: no limit
    # addresses with a tag (local+tag) that belong to an account by name
    reserved: frozenset[str] = frozenset()
    # addresses of disabled accounts: nobody sends from one
    barred: frozenset[str] = frozenset()
    scopes: frozenset[Scope] = ALL_SCOPES  # what its tokens may do in the Graph API
    acts_for: tuple[str, ...] = ()  # whose mailboxes its tokens may open there; form of `send_as`
    read_receipts: ReceiptSetting = ReceiptSetting.AUTO  # which it sends
    language: str = ""  # of the reports that it gets; "": not known
    limits: Limits = NO_LIMITS  # of mail to other domains
    # the request has a token that its client got for itself: no user has signed in
    is_application: bool = field(default=False, compare=False)
    # a digest that changes with the stored password and token
    credentials: bytes = field(default=b"", repr=False, compare=False)

    @property
    def display_name(self) -> str:
        """The name that programs show."""
        return self.address.rpartition("@")[0]

    @property
    def is_disabled(self) -> bool:
        """Whether it only gets mail: it cannot log in or send, and its mailbox cannot be opened."""
        return self.address in self.barred

    def owns(self, address: str) -> bool:
        """Whether `address` belongs to this account, with or without a tag."""
        return self._is_among(address, (self.address, *self.aliases))

    def may_send_as(self, address: str) -> bool:
        """Whether it may send mail from `address`, which it owns or `send_as` lists."""
        may = self.owns(address) or is_listed(address, self.send_as)
        return may and not self._is_among(address, self.barred)

    def _is_among(self, address: str, own: Collection[str]) -> bool:
        mailbox = own_mailbox(address)
        return mailbox in own or (mailbox not in self.reserved and untagged(mailbox) in own)

    def may_open(self, owner: "Account") -> bool:
        """Whether its tokens may open the mailbox of `owner`: itself, or an account in `acts_for`.

        An alias of `owner` in `acts_for` has no effect.
        """
        if owner.is_disabled:
            return False
        return owner.address == self.address or is_listed(owner.address, self.acts_for)


class DovecotUser(Account):
    """A user without an account here, whose password Dovecot knows.

    It may log in by SMTP, and send only from the address of the login.
    """

    def owns(self, address: str) -> bool:
        """Whether `address` is the address of the login; an address with a tag is not."""
        return own_mailbox(address) == self.address


class AliasTarget(Struct, frozen=True):
    """An address that gets the mail of another address.

    `through` lists the aliases and accounts on the way, as accounts.toml writes them: the first is
    the address that was expanded, the last one forwards to `address`. It is empty for the mailbox
    of an account that was expanded itself.
    """

    address: str
    through: tuple[str, ...] = ()

    @property
    def forwarded_by(self) -> str:
        """The alias or account that forwarded last, "" if none did."""
        return self.through[-1] if self.through else ""


class Writers(Struct, frozen=True):
    """Who may write to an alias with `from`."""

    named: tuple[str, ...]  # `from` in accounts.toml
    reports: bool  # reports are accepted: an account sends from the address of the alias
    own: frozenset[str] = frozenset()  # domains whose trusted senders may all write to it
    matches: Callable[[str], bool] = lambda _: False  # its globs and groups, with A-labels
    members: bool = False  # the addresses that get its mail may write to it


class Expansion(Struct, frozen=True):
    """The addresses that get the mail of another address, each once."""

    targets: tuple[AliasTarget, ...]
    writers: Writers | None = None  # of the alias that was expanded; None: everybody

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of the targets."""
        return tuple([target.address for target in self.targets])


class RegisteredClient(Struct, frozen=True):
    """A client id of the token endpoint."""

    client_id: str
    account: Account
    secret_digest: bytes  # of the client's secret


def is_listed(address: str, listed: Collection[str]) -> bool:
    """Whether a list of addresses and `*@domain` contains `address`."""
    address = own_mailbox(address)
    _, at, domain = address.rpartition("@")
    return address in listed or f"*{at}{domain}" in listed


class AccountDirectory(Protocol):
    """Looks up accounts."""

    def by_token(self, token: str, *, client: str = "") -> Account | None:
        """Return the account of a bearer token, or None; compares in constant time.

        Raises LoginDelayedError if the address `client` is guessing tokens.
        """

    def by_address(self, address: str) -> Account | None:
        """Return the account whose address, alias or `local+tag` is `address`, or None.

        Case-insensitive; never creates an account.
        """

    def expand(self, address: str) -> Expansion | None:
        """Return who gets the mail for an alias, or for an account that forwards; else None.

        Case-insensitive, with or without a tag.
        """

    def opened(self, address: str, caller: Account) -> Account | None:
        """Return the account at `address` if `caller` may open its mailbox.

        None if `caller` may not, or if there is no such account.
        """

    async def in_path(self, text: str, caller: Account) -> Account | None:
        """Return the account that a path of the Graph API names, like opened().

        Raises UnknownUserError if there is no such account, and `caller` could open it.
        """

    def every(self) -> Sequence[Account]:
        """Return all accounts."""

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        """Return the account that logs in from the address `client` ("" on a Unix socket), or None.

        Argon2 runs in a bounded thread; successes are cached briefly. Raises LoginDelayedError if
        the password is not checked now.
        """

    async def by_smtp_login(self, user: str, password: str, *, client: str) -> Account | None:
        """Return the account of a login by SMTP like by_password(), which may be a DovecotUser."""

    def of_login(self, login: str) -> Account | None:
        """Return the account that by_smtp_login() returns for the address `login` at present.

        None if it may no longer log in.
        """

    def is_in_use(self, mailbox: str) -> bool:
        """Return whether somebody may log in to a mailbox, or open it as an application."""

    def by_client_id(self, client_id: str) -> RegisteredClient | None:
        """Return the client, or None. Case-insensitive, because most client ids are GUIDs."""

    async def by_client_secret(
        self, client_id: str, secret: str, *, client: str
    ) -> RegisteredClient | None:
        """Return the client if this is its secret, or None; delayed like by_password()."""

    def unlock(self, address: str) -> int:
        """Lift the delays of an account after failed logins, also of its client id.

        Return the number of clients that were delayed. Raises UnknownUserError.
        """
