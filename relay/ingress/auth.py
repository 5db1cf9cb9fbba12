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

from relay.ingress.parameters import Refused

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
