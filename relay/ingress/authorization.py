"""Authenticate clients (AUTH PLAIN, AUTH LOGIN) and authorize the sender addresses of an account.

"Send as": an account that logged in may use its own addresses and those in its send_as, in the
reverse-path and in the From and Sender fields. HTTP has the same rule (Account.may_send_as). A From
or Sender that cannot be parsed is rejected, because another program might read another author
there. Nothing of an AUTH exchange is logged or kept.

RFC 4954 4 (AUTH); RFC 4616 (PLAIN); draft-murchison-sasl-login (LOGIN); RFC 6409 4.2, 6.1 (553
5.7.1); RFC 5322 3.6.2 (From, Sender).
"""

import binascii
from base64 import b64decode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from relay.accounts.account import AccountDirectory
from relay.ingress.esmtp_parameters import SmtpRejection
from relay.message.header import Header
from relay.mime.read_header import originators

Ask = Callable[[str], Awaitable[str]]
_USER_NAME = "334 VXNlcm5hbWU6"  # "Username:"
_PASSWORD = "334 UGFzc3dvcmQ6"  # noqa: S105 -- the prompt "Password:", which is no secret
_SHOWN_CHARACTERS_MAX = 120
_ADVICE = "use its own address, an alias, or an address that its send_as lists"


@dataclass(frozen=True, slots=True)
class AuthCredentials:
    """The user and the password that a client sent."""

    user: str
    password: str = field(repr=False)


async def exchange(argument: str, ask: Ask) -> AuthCredentials:
    """Run the SASL exchange of `AUTH <argument>`; `ask` sends a 334 and returns the answer.

    Raises SmtpRejection.
    """
    mechanism, _, initial = argument.partition(" ")
    initial = initial.strip(" ")
    match mechanism.upper():
        case "PLAIN":
            return _plain(_decoded(initial or await ask("334 ")))
        case "LOGIN":
            user = _decoded(initial or await ask(_USER_NAME))
            password = _decoded(await ask(_PASSWORD))
            return AuthCredentials(_text(user), _text(password))
        case "":
            raise SmtpRejection("501 5.5.4 Syntax: AUTH PLAIN or AUTH LOGIN")
        case _:
            raise SmtpRejection("504 5.5.4 This mechanism is not supported, use PLAIN or LOGIN")


def _plain(response: bytes) -> AuthCredentials:
    parts = _text(response).split("\0")
    if len(parts) != 3:
        raise SmtpRejection("501 5.5.2 AUTH PLAIN: expected authorization id NUL user NUL password")
    acting_for, user, password = parts
    if acting_for and acting_for.lower() != user.lower():
        raise SmtpRejection("535 5.7.8 No account may act for another one")
    return AuthCredentials(user, password)


def _decoded(response: str) -> bytes:
    if response == "*":
        raise SmtpRejection("501 5.7.0 Authentication cancelled")
    if response == "=":  # RFC 4954 4: an empty initial response
        return b""
    try:
        return b64decode(response.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise SmtpRejection("501 5.5.2 The response is not base64") from None


def _text(response: bytes) -> str:
    try:
        return response.decode("utf-8")
    except UnicodeDecodeError:
        raise SmtpRejection("501 5.5.2 User and password must be UTF-8") from None


def sender_rejection(accounts: AccountDirectory, login: str, reverse_path: str) -> str:
    """Return the reply if the account `login` may not use this reverse-path, else "".

    Every account may use the null reverse-path: mail clients send notifications with it (RFC 8098).
    """
    account = accounts.by_address(login)
    if account is None or account.address != login:  # removed after the login
        return f"530 5.7.0 The account {_shown(login)} does not exist any more; log in again"
    if not reverse_path or account.may_send_as(reverse_path):
        return ""
    return _rejection(f"<{_shown(reverse_path)}>", login)


def header_rejection(accounts: AccountDirectory, login: str, header: Header) -> str:
    """Return the reply if the account `login` may not use the From and Sender fields, else ""."""
    account = accounts.by_address(login)
    if account is None or account.address != login:
        return sender_rejection(accounts, login, "")
    for header_field in originators(header):
        for person in header_field.addresses:
            if not account.may_send_as(person.address):
                return _rejection(f"<{_shown(person.address)}> in {header_field.name}", login)
        if header_field.unread or not header_field.addresses:
            found = _shown(header_field.unread) if header_field.unread else "no address"
            return (
                f"553 5.7.1 Found {found} in {header_field.name}, expected only addresses of the "
                f"account {_shown(login)}; {_ADVICE}, and put a name with special characters in "
                "quotes"
            )
    return ""


def _rejection(found: str, login: str) -> str:
    return (
        f"553 5.7.1 {found}: the account {_shown(login)} may not send from this address; {_ADVICE}"
    )


def _shown(text: str) -> str:
    """Return text from the client as printable ASCII of bounded length."""
    clipped = text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."
    return clipped.encode("unicode_escape").decode("ascii")
