"""The accounts of `relay dev`: any token, login and client works, and an account is made for it.

Nothing is secret: for loopback only. A name that is no local part is replaced by a short hash.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hmac import compare_digest
from typing import Any

import msgspec

from relay.accounts.account import Account, RegisteredClient, Role, untagged
from relay.settings.values import parse_mailbox

DOMAIN = "example.test"
NAMES = ("alice", "bob")  # they always exist; the password of each is its name
ACCOUNTS_MAX = 1000
TOKEN_LENGTH_MAX = 16 * 1024
_OPERATOR = "operator"
_HASH_LENGTH = 10
_USER_CLAIMS = ("upn", "preferred_username")
_CLIENT_CLAIMS = ("appid", "azp", "sub")


class DevelopmentAccounts:
    """The accounts of `relay dev` (an AccountDirectory)."""

    def __init__(self, *, operator_token: str = "") -> None:
        """`operator_token` is the token with the role operate, "" for none."""
        self._operator_token = operator_token.encode()
        self._accounts: dict[str, Account] = {}
        for name in NAMES:
            self._named(name)

    def by_token(self, token: str) -> Account | None:
        """Return the account that the token names; create it if needed.

        A JWT names it by its claims, whatever its signature. If it names a client and no user, it
        may open all mailboxes. Any other token is a local part or an address.
        """
        if len(token) > TOKEN_LENGTH_MAX:
            return None
        if self._operator_token and compare_digest(token.encode(), self._operator_token):
            operator = self._named(_OPERATOR)
            return replace(operator, role=Role.OPERATE) if operator else None
        claims = _claims_of(token)
        if claims is None:
            return self._named(token)
        if user := _first_text(claims, _USER_CLAIMS):
            return self._named(user)
        return self._of_client(_first_text(claims, _CLIENT_CLAIMS) or token)

    def by_address(self, address: str) -> Account | None:
        """Return the existing account of `address`, or None."""
        local_part, _, domain = address.lower().rpartition("@")
        if domain != DOMAIN:
            return None
        return self._accounts.get(local_part) or self._accounts.get(local_part.partition("+")[0])

    def opened(self, address: str, caller: Account) -> Account | None:
        """Return the account that `caller` opens; a client makes it, and a user has its own one
        also by the address of another domain that names it.
        """
        owner = self.by_address(address)
        if owner is None:
            is_local = address.lower().endswith(f"@{DOMAIN}")
            name = untagged(address) if is_local else address
            owner = (
                self._named(name) if caller.acts_for else self._accounts.get(local_part_for(name))
            )
        return owner if owner is not None and caller.may_open(owner) else None

    def every(self) -> Sequence[Account]:
        """Return the accounts that exist."""
        return tuple(self._accounts.values())

    async def by_password(
        self,
        user: str,
        password: str,
        *,
        client: str = "",  # noqa: ARG002 -- no password is secret here, so guesses need no delay
    ) -> Account | None:
        """Return the account `user`; create it if needed."""
        name = user.lower().removesuffix(f"@{DOMAIN}")
        if name in NAMES and password.lower() not in (name, f"{name}@{DOMAIN}"):
            return None
        return self._named(user)

    def by_client_id(self, client_id: str) -> RegisteredClient | None:
        """Return the client; create its account if needed."""
        account = self._of_client(client_id)
        return RegisteredClient(client_id, account, b"") if account else None

    async def by_client_secret(
        self,
        client_id: str,
        secret: str,
        *,
        client: str = "",  # noqa: ARG002 -- as by_password()
    ) -> RegisteredClient | None:
        """Return the client for any secret that is not empty."""
        return self.by_client_id(client_id) if secret else None

    def _of_client(self, client_id: str) -> Account | None:
        account = self._named(client_id)
        return replace(account, acts_for=(f"*@{DOMAIN}",)) if account else None

    def _named(self, name: str) -> Account | None:
        """Return the account of a name; None for an empty one, and if there are too many."""
        local_part = local_part_for(name)
        known = self._accounts.get(local_part)
        if known or not local_part or len(self._accounts) >= ACCOUNTS_MAX:
            return known
        account = Account(f"{local_part}@{DOMAIN}", send_as=_other_address(name))
        self._accounts[local_part] = account
        return account


def local_part_for(name: str) -> str:
    """Return the local part for a user name, address or client id; "" for an empty one.

    `megan@contoso.test` becomes `megan.contoso.test`, because one domain is local. What cannot be a
    local part becomes a hash.
    """
    local_part, at, domain = name.strip().lower().rpartition("@")
    if not at:
        local_part = domain
    elif domain != DOMAIN:
        local_part = f"{local_part}.{domain}"
    if not local_part:
        return ""
    try:
        return parse_mailbox(f"{local_part}@{DOMAIN}").rpartition("@")[0]
    except ValueError:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        return base64.b32encode(digest).decode().lower()[:_HASH_LENGTH]


def _other_address(name: str) -> tuple[str, ...]:
    """Return `name` if it is an address of another domain: its account may send from it."""
    try:
        address = parse_mailbox(name.strip())
    except ValueError:
        return ()
    return () if address.endswith(f"@{DOMAIN}") else (address,)


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
    except (binascii.Error, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def _first_text(claims: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((one for name in names if isinstance(one := claims.get(name), str) and one), "")
