"""The SASL exchanges PLAIN and LOGIN: from the client's lines to a user and a password.

On the path: the conversation's AUTH runs one and asks the accounts.
Holds: nothing of an exchange is logged or kept.
Fails: parameters.Refused, whose text is the reply.
Standards: RFC 4954 4; RFC 4616 (PLAIN); draft-murchison-sasl-login (LOGIN).
"""

import binascii
from base64 import b64decode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from relay.accounts import Account
from relay.ingress.esmtp_parameters import Refused
from relay.mime.headread import originators

Ask = Callable[[str], Awaitable[str]]
_USER_NAME = "334 VXNlcm5hbWU6"  # "Username:"
_PASSWORD = "334 UGFzc3dvcmQ6"  # noqa: S105 -- the prompt "Password:", which is no secret


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client says it is."""

    user: str
    password: str = field(repr=False)


async def exchange(argument: str, ask: Ask) -> Credentials:
    """Run the exchange that `AUTH <argument>` begins; `ask` sends a 334 and returns the answer.

    Raises Refused.
    """
    mechanism, _, initial = argument.partition(" ")
    initial = initial.strip(" ")
    match mechanism.upper():
        case "PLAIN":
            return _plain(_decoded(initial or await ask("334 ")))
        case "LOGIN":
            user = _decoded(initial or await ask(_USER_NAME))
            password = _decoded(await ask(_PASSWORD))
            return Credentials(_text(user), _text(password))
        case "":
            raise Refused("501 5.5.4 Syntax: AUTH PLAIN or AUTH LOGIN")
        case _:
            raise Refused("504 5.5.4 This mechanism is not supported, use PLAIN or LOGIN")


def _plain(response: bytes) -> Credentials:
    parts = _text(response).split("\0")
    if len(parts) != 3:
        raise Refused("501 5.5.2 AUTH PLAIN: expected authorization id NUL user NUL password")
    acting_for, user, password = parts
    if acting_for and acting_for.lower() != user.lower():
        raise Refused("535 5.7.8 No account may act for another one")
    return Credentials(user, password)


def _decoded(response: str) -> bytes:
    if response == "*":
        raise Refused("501 5.7.0 Authentication cancelled")
    if response == "=":  # RFC 4954 4: an initial response of no octets
        return b""
    try:
        return b64decode(response.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise Refused("501 5.5.2 The response is not base64") from None


def _text(response: bytes) -> str:
    try:
        return response.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("501 5.5.2 User and password must be UTF-8") from None


_SHOWN_CHARACTERS_MAX = 120
_ADVICE = "use its own address, an alias, or an address that its send_as lists"


class Passwords(Protocol):
    """Who logs in: relay.accounts.AccountDirectory."""

    def by_address(self, address: str) -> Account | None:
        """The account that gets mail for `address`."""
        ...

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        """The account that logs in so from the address `client`. Raises LoginDelayedError."""
        ...


def refused_sender(accounts: Passwords, login: str, reverse_path: str) -> str:
    """Return why the account `login` may not use this reverse-path.

    The null reverse-path is free: mail clients send notifications (RFC 8098) with it.
    """
    account = accounts.by_address(login)
    if account is None or account.address != login:  # removed since the login
        return f"530 5.7.0 The account {_shown(login)} is not there any more; log in again"
    if not reverse_path or account.may_send_as(reverse_path):
        return ""
    return _refusal(f"<{_shown(reverse_path)}>", login)


def refused_header(accounts: Passwords, login: str, header: bytes) -> str:
    """Return why the account `login` may not send a message with this header section."""
    account = accounts.by_address(login)
    if account is None or account.address != login:
        return refused_sender(accounts, login, "")
    for header_field in originators(header):
        for person in header_field.people:
            if not account.may_send_as(person.address):
                return _refusal(f"<{_shown(person.address)}> in {header_field.name}", login)
        if header_field.unread or not header_field.people:
            found = _shown(header_field.unread) if header_field.unread else "no address"
            return (
                f"553 5.7.1 Found {found} in {header_field.name}, expected only addresses of the "
                f"account {_shown(login)}; {_ADVICE}, and put a name with special characters in "
                "quotes"
            )
    return ""


def _refusal(found: str, login: str) -> str:
    return (
        f"553 5.7.1 {found}: the account {_shown(login)} may not send from this address; {_ADVICE}"
    )


def _shown(text: str) -> str:
    """Return text of the client's as printable ASCII that is not long."""
    clipped = text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."
    return clipped.encode("unicode_escape").decode("ascii")
