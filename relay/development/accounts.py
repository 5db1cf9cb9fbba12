"""The accounts of a development relay: any token, login and client works and names an account.

An account is named by its address. Addresses of other domains are accounts too: mail for them is
captured in their mailboxes, which every account may open. A bare name is in the first local domain.
If it cannot be a local part, a short hash replaces it. In an SMTP login (login_address), `_`
replaces each character that does not fit. Nothing is secret, and the relay is for loopback only,
unless there is a token that all requests need. Clients that guess the token are delayed.

Few accounts are remembered: almost everything is in the address, and a mailbox on the disk shows
that its account was used.
"""

import base64
import dataclasses
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hmac import compare_digest
from math import ceil
from typing import Any

import msgspec

from relay.base.accounts.account import (
    LOGIN_OCTETS_MAX,
    Account,
    Expansion,
    LoginDelayedError,
    LoginRefusedError,
    RegisteredClient,
    Role,
    UnknownUserError,
)
from relay.base.accounts.passwords import GuessDelays, digest_of
from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock, SystemClock
from relay.base.message.address import LOCAL_PART_OCTETS_MAX, own_mailbox, parse_odd_mailbox
from relay.base.settings.values import is_atom_character, parse_domain, parse_mailbox
from relay.front_door.http.errors import ApiError
from relay.front_door.http.http_request import HttpRequest
from relay.store.mailbox.mailbox_list import MailboxList

DOMAIN = "example.test"
NAMES = ("alice", "bob")  # they always exist; the password of each is its name
ACCOUNTS_MAX = 1000  # accounts remembered without a mailbox, and accounts listed
TOKEN_LENGTH_MAX = 16 * 1024
_OPERATOR = "operator"
_HASH_LENGTH = 10


class DevelopmentAccounts:
    """The accounts of a development relay (an AccountDirectory)."""

    def __init__(
        self,
        mailboxes: MailboxList | None = None,
        *,
        domains: Sequence[str] = (DOMAIN,),
        operator_token: str = "",
        token: str = "",
        strict: bool = False,
        clock: Clock | None = None,
        arrival: Callable[[Callable[[], bool]], Awaitable[None]] | None = None,
    ) -> None:
        """`mailboxes` are those that exist, None for none; `domains` are the local ones.

        `operator_token` is a token with the role operate, "" for none. If there is a `token`, it
        has that role, and no other token, password or client secret is accepted. `clock` delays
        clients that guess it. Mail creates a local account, unless `strict`. `arrival` waits while
        mail is on its way, until its argument returns True.
        """
        self._mailboxes = mailboxes
        self._domains = tuple(domain.lower() for domain in domains)
        self._operator_token = (token or operator_token).encode()
        self._token = token.encode()
        self._guesses = GuessDelays(clock or SystemClock())
        self._strict = strict
        self._arrival = arrival
        self._always = [f"{name}@{self._domains[0]}" for name in NAMES]
        self._used = BoundedDict[str, None](ACCOUNTS_MAX)  # the most recently used last

    def forget(self) -> None:
        """Forget the accounts that were used. An account with a mailbox exists as long as that."""
        self._used.clear()

    def by_token(self, token: str, *, client: str = "") -> Account | None:
        """Return the account that the token names.

        A JWT names it by its claims, whatever its signature. If the JWT names a client and no user,
        it may open all mailboxes, as the operator may. Any other token is a name or an address.
        """
        if len(token) > TOKEN_LENGTH_MAX or not self._is_secret(token, client):
            return None
        if self._operator_token and compare_digest(_octets(token), self._operator_token):
            operator = self._of_client(_OPERATOR)
            return dataclasses.replace(operator, role=Role.OPERATE) if operator else None
        claims = _claims_of(token)
        if claims is None:
            return self._named(token)
        if user := _first_text(claims, ("upn", "preferred_username")):
            return self._named(user)
        return self._of_client(_first_text(claims, ("appid", "azp", "sub")) or token)

    def check_operator(self, request: HttpRequest) -> None:
        """Raise ApiError unless a request has the operator's token.

        It is the password of HTTP Basic (RFC 7617), with any user name, or a bearer token. The
        error is 401 without it, 429 after guesses.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            with suppress(ValueError):
                token = base64.b64decode(token).decode().partition(":")[2]
        try:
            is_secret = bool(token) and self._is_secret(token, request.counted_address)
        except LoginDelayedError as error:
            after = {"retry-after": str(max(1, ceil(error.retry_after_s)))}
            message = f"{error}; try again later."
            raise ApiError(429, "TooManyRequests", message, headers=after) from None
        if not is_secret or not compare_digest(_octets(token), self._operator_token):
            asks = {"www-authenticate": 'Basic realm="relay", charset="UTF-8"'}
            message = "Expected HTTP Basic with the token of this relay as the password."
            raise ApiError(401, "InvalidAuthenticationToken", message, headers=asks)

    def by_address(self, address: str) -> Account | None:
        """Return the account of `address`. With `strict`, a local account must have been used."""
        mailbox = self._mailbox_of(address)
        if not mailbox or (self._strict and self._is_local(mailbox) and not self._exists(mailbox)):
            return None
        return self._account_of(mailbox)

    def expand(self, address: str) -> Expansion | None:  # noqa: ARG002 -- there are no aliases
        """See AccountDirectory."""
        return None

    def opened(self, address: str, caller: Account) -> Account | None:
        """Return the account that `caller` opens.

        A client and the operator open every mailbox, which creates it. A user opens the user's
        mailbox, and those of captured recipients.
        """
        mailbox = self.address_named(address)
        if mailbox and caller.acts_for:
            return self._account(mailbox)
        is_captured = not self._is_local(mailbox) and self._exists(mailbox)
        return Account(mailbox) if mailbox == caller.address or is_captured else None

    async def in_path(self, text: str, caller: Account) -> Account | None:
        """See AccountDirectory. A client and the operator create local accounts, unless `strict`.

        For them, a text that is no address and no name is no account, except their own. An account
        of another domain exists if it has mail, or if mail that is on its way arrives.
        """
        named = self.address_named(text)
        if named == caller.address or (not caller.acts_for and self._is_local(named)):
            return self.opened(text, caller)
        try:
            mailbox = self._read_name(text.strip())
        except ValueError:
            raise UnknownUserError("Expected an address, or a local part.") from None
        exists, is_local = partial(self._exists, mailbox), self._is_local(mailbox)
        if self._arrival and not is_local:
            await self._arrival(exists)
        if not (exists() or (is_local and not self._strict)):
            no_mail = f"This address has no mail.{self._remedy(mailbox)}"
            raise UnknownUserError("--strict-users makes no account." if is_local else no_mail)
        return self.opened(mailbox, caller)

    def _remedy(self, mailbox: str) -> str:
        """Return how to make the domain of a mailbox local, "" where that makes no account."""
        try:
            domains = (*self._domains, parse_domain(mailbox.rpartition("@")[2]))
        except ValueError:
            return ""
        options = " ".join(f"--domain {domain}" for domain in domains)
        return "" if self._strict else f" With {options}, their addresses are accounts."

    def every(self) -> Sequence[Account]:
        """Return accounts that exist, at most 2 * ACCOUNTS_MAX."""
        stored = self._mailboxes.first(ACCOUNTS_MAX) if self._mailboxes else ()
        addresses = dict.fromkeys((*self._always, *self._used, *stored))
        return [Account(address) for address in addresses]

    async def by_password(self, user: str, password: str, *, client: str = "") -> Account | None:
        """Return the account `user` for any password, or for the token if there is one.

        The password of an account that always exists is its name.
        """
        mailbox = self.address_named(user)
        if not mailbox or not self._is_password(mailbox, password, client):
            return None
        return self._account(mailbox)

    async def by_smtp_login(self, user: str, password: str, *, client: str) -> Account | None:
        """Return the account of a login by SMTP. The password is checked as in by_password().

        A user name that is not an address is a local part, see login_address(). Raises
        LoginRefusedError; with `strict`, also for an account that does not exist.
        """
        mailbox = self.login_address(user)
        if not self._is_password(mailbox, password, client):
            return None
        return self._logged_in(mailbox)

    def of_login(self, login: str) -> Account | None:
        """See AccountDirectory."""
        account = self.by_address(login)
        return account if account is not None and account.address == login else None

    def keeps(self, mailbox: str) -> bool:
        """Whether an account exists without its mailbox, or only by it with `strict`."""
        is_strict = self._strict and self._is_local(mailbox)
        return is_strict or mailbox in self._always or mailbox in self._used

    def is_in_use(self, mailbox: str) -> bool:  # noqa: ARG002
        """See AccountDirectory."""
        return True

    async def by_user_name(
        self,
        user: str,
        password: str,  # noqa: ARG002 -- a CheckLogin
        *,
        client: str,  # noqa: ARG002
    ) -> Account | None:
        """Return the account of a login by SMTP with any password, which proves nothing.

        Raises what by_smtp_login() raises.
        """
        return dataclasses.replace(self._logged_in(self.login_address(user)), role=Role.USER)

    def _logged_in(self, mailbox: str) -> Account:
        if self._strict and not self._exists(mailbox):
            raise LoginRefusedError(f"{mailbox} is no account, and --strict-users makes none")
        return self._account(mailbox)

    def _is_password(self, mailbox: str, password: str, client: str) -> bool:
        """Whether a password is the token.

        Without a token, it is the password of an account that always exists.
        """
        if not self._is_secret(password, client):
            return False
        known = (mailbox.partition("@")[0], mailbox)
        return bool(self._token) or mailbox not in self._always or own_mailbox(password) in known

    def by_client_id(self, client_id: str) -> RegisteredClient | None:
        """Return the client, and note that its account is used."""
        client = self.client_named(client_id)
        if client is not None:
            self._account(client.account.address)
        return client

    def client_named(self, client_id: str) -> RegisteredClient | None:
        """Return the client, without creating an account."""
        mailbox = self.address_named(client_id)
        secret = digest_of(self._token.decode()) if self._token else b""
        account = self._acting(self._account_of(mailbox))
        return RegisteredClient(client_id, account, secret) if mailbox else None

    async def by_client_secret(
        self, client_id: str, secret: str, *, client: str = ""
    ) -> RegisteredClient | None:
        """Return the client for any secret that is not empty, or for the token if there is one."""
        return self.by_client_id(client_id) if secret and self._is_secret(secret, client) else None

    def unlock(self, address: str) -> int:  # noqa: ARG002 -- no login of an account is delayed
        """See AccountDirectory."""
        return 0

    def address_named(self, name: str) -> str:
        """Return the address that a user name, address or client id names, "" for an empty one."""
        name = name.strip()
        if not name or name.rfind("@") == 0:
            return ""
        try:
            return self._read_name(name)
        except ValueError:
            return f"{_short_hash(name)}@{self._domains[0]}"

    def _read_name(self, name: str) -> str:
        """Return the address that an address or a bare name names. Raises ValueError."""
        if "@" in name:
            return self._mailbox_of(parse_odd_mailbox(name, smtputf8=True))
        return self._mailbox_of(parse_mailbox(f"{name}@{self._domains[0]}"))

    def login_address(self, user: str) -> str:
        """Return the address of a user name by SMTP.

        It is the name itself, or the name as a local part in the first local domain. There, "_"
        stands for each character that a local part cannot have, and a hash for the end of a long
        name. Raises LoginRefusedError.
        """
        name = user.strip()
        octets = name.encode("utf-8", "surrogatepass")
        if not name or len(octets) > LOGIN_OCTETS_MAX:
            actual = f"{len(octets)} octets" if name else "nothing"
            expected = f"1 to {LOGIN_OCTETS_MAX} octets"
            raise LoginRefusedError(f"Found {actual} as the user name, expected {expected}")
        if "@" in name:
            with suppress(ValueError):
                return self._mailbox_of(parse_odd_mailbox(name, smtputf8=True))
        fit = "".join(
            letter if letter == "." or is_atom_character(letter) else "_" for letter in name
        )
        local_part = ".".join(atom or "_" for atom in fit.split("."))
        if len(local_part.encode()) > LOCAL_PART_OCTETS_MAX:
            begin = local_part.encode()[: LOCAL_PART_OCTETS_MAX - _HASH_LENGTH - 1]
            local_part = f"{begin.decode('utf-8', 'ignore')}-{_short_hash(name)}"
        return self._mailbox_of(f"{local_part}@{self._domains[0]}")

    def _mailbox_of(self, address: str) -> str:
        """Return the mailbox of an address, "" for none. A tag is kept in other domains only."""
        mailbox = own_mailbox(address)
        local_part, _, domain = mailbox.rpartition("@")
        if self._is_local(mailbox) and not local_part.startswith('"'):
            local_part = local_part.partition("+")[0] or local_part
        return f"{local_part}@{domain}" if local_part and domain else ""

    def _is_local(self, mailbox: str) -> bool:
        return mailbox.rpartition("@")[2] in self._domains

    def _exists(self, mailbox: str) -> bool:
        if mailbox in self._always or mailbox in self._used:
            return True
        return self._mailboxes is not None and self._mailboxes.has(mailbox)

    def _is_secret(self, text: str, client: str) -> bool:
        """Whether a text is the token, if there is one. Raises LoginDelayedError."""
        if not self._token:
            return True
        self._guesses.raise_if_delayed(client)
        is_right = compare_digest(_octets(text), self._token)
        if is_right:
            self._guesses.remove(client)
        else:
            self._guesses.add(client, text)
        return is_right

    def _of_client(self, client_id: str) -> Account | None:
        account = self._named(client_id)
        return self._acting(account) if account else None

    def _acting(self, account: Account) -> Account:
        every = tuple(f"*@{domain}" for domain in self._domains)
        return dataclasses.replace(account, acts_for=every)

    def _named(self, name: str) -> Account | None:
        """Return the account of a name, None for an empty name."""
        mailbox = self.address_named(name)
        return self._account(mailbox) if mailbox else None

    def _account(self, mailbox: str) -> Account:
        """Return the account, and note that it is used."""
        self._used[mailbox] = None
        return self._account_of(mailbox)

    def _account_of(self, mailbox: str) -> Account:
        """Return an account. A login gets the role operate only if logins need a secret."""
        is_operator = bool(self._token) and mailbox == f"{_OPERATOR}@{self._domains[0]}"
        return Account(mailbox, role=Role.OPERATE if is_operator else Role.USER)


def _octets(token: str) -> bytes:
    return token.encode("utf-8", "surrogatepass")


def _short_hash(name: str) -> str:
    digest = hashlib.sha256(own_mailbox(name).encode("utf-8", "surrogatepass")).digest()
    return base64.b32encode(digest).decode().lower()[:_HASH_LENGTH]


def _claims_of(token: str) -> Mapping[str, Any] | None:
    """Return the claims of a JWT in compact form (RFC 7519 3.1), None for another token."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    header, claims = (_json_object(part) for part in parts[:2])
    return claims if header and "alg" in header else None


def _json_object(part: str) -> Mapping[str, Any] | None:
    try:
        decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        return msgspec.json.decode(decoded, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None


def _first_text(claims: Mapping[str, Any], names: tuple[str, ...]) -> str:
    texts = (claims.get(name) for name in names)
    return next((text for text in texts if isinstance(text, str) and text), "")
