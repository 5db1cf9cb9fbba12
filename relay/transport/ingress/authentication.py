"""The AUTH command: its mechanisms, the check of the password or token, and failed logins.

smtp_commands decides whether AUTH is offered and possible now; `Authentication` does the rest. The
addresses that an account may send from are checked in send_as. Of an exchange, only the user name
is kept and logged.

RFC 4954 4 (AUTH); RFC 4616 (PLAIN); draft-murchison-sasl-login (LOGIN); RFC 7628 (OAUTHBEARER).
Google defines XOAUTH2, and Microsoft 365 uses it too: developers.google.com/workspace/gmail/imap/
xoauth2-protocol.
"""

import binascii
import math
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from relay.base.accounts.account import LoginDelayedError, LoginRefusedError
from relay.base.message.address import own_mailbox
from relay.transport.ingress.esmtp_parameters import SmtpRejection
from relay.transport.ingress.session_limits import SessionLimits

AUTH_OFFER = "AUTH PLAIN LOGIN XOAUTH2 OAUTHBEARER"  # the line of EHLO
Ask = Callable[[str], Awaitable[str]]
_USER_NAME = "334 VXNlcm5hbWU6"  # "Username:"
_PASSWORD = "334 UGFzc3dvcmQ6"  # noqa: S105 -- the prompt "Password:", which is no secret
# The answer to a refused token, which is sent as base64 before the 535: RFC 7628 3.2.2.
_TOKEN_REFUSED = {
    "XOAUTH2": '{"status":"401","schemes":"bearer","scope":"SMTP.Send"}',
    "OAUTHBEARER": '{"status":"invalid_token","scope":"SMTP.Send"}',
}
_USER_CHARACTERS_MAX = 100  # of the user name in the log and in records


@dataclass(frozen=True, slots=True)
class AuthCredentials:
    """The user and the password or token that a client sent.

    `refused` is the answer if the token is refused; "" for a password.
    """

    user: str
    password: str = field(repr=False)
    refused: str = ""


@dataclass(eq=False)
class Authentication:
    """The AUTH state of one session."""

    log_in: Callable[[str, str, bool], Awaitable[str]]  # SessionClient.log_in
    limits: SessionLimits  # of failed logins, and the pause after one
    login: str = field(default="", init=False)  # the account that is logged in
    user: str = field(default="", init=False)  # the user name of the last exchange, for the log
    mechanism: str = field(default="", init=False)  # of the last exchange
    # the reply to a refused token while its challenge waits
    unsent: str = field(default="", init=False)
    _failures: int = field(default=0, init=False)

    @property
    def is_exhausted(self) -> bool:
        """Whether too many logins failed: the session must end."""
        return self._failures >= self.limits.auth_failures

    async def authenticate(
        self, argument: str, *, ask: Ask, pause: Callable[[float], Awaitable[None]]
    ) -> str:
        """Execute `AUTH <argument>` and return the reply, after a pause if the login failed.

        `ask` sends a 334 and returns the answer. Raises SmtpRejection, which is not counted as a
        failed login.
        """
        self.mechanism = argument.partition(" ")[0].upper()
        credentials = await _exchange(argument, ask)
        self.user = credentials.user[:_USER_CHARACTERS_MAX]
        wrong = "Token is not known here" if credentials.refused else "User or password is wrong"
        rejection, has_failed = f"535 5.7.8 {wrong}", True  # RFC 4954 6
        try:
            self.login = await self.log_in(
                credentials.user, credentials.password, bool(credentials.refused)
            )
        except LoginRefusedError as refused:
            rejection = f"535 5.7.8 {refused}"  # RFC 4954 6
        except LoginDelayedError as delayed:
            rejection, has_failed = _delayed_reply(delayed), False
        if self.login:
            return "235 2.7.0 Authentication successful"  # RFC 4954 6
        self._failures += has_failed
        if credentials.refused:
            self.unsent, challenge = rejection, b64encode(credentials.refused.encode()).decode()
            with suppress(SmtpRejection):  # whatever the client answers, the login has failed
                await ask(f"334 {challenge}")  # RFC 7628 3.2.3
            self.unsent = ""
        await pause(self.limits.auth_failure_delay_s * max(1, self._failures))
        if self.is_exhausted:
            return "421 4.7.0 Too many failed logins, closing the connection"  # RFC 4954 9
        return rejection


async def _exchange(argument: str, ask: Ask) -> AuthCredentials:
    """Run the SASL exchange of `AUTH <argument>`; `ask` sends a 334 and returns the answer.

    Raises SmtpRejection.
    """
    mechanism, _, initial = argument.partition(" ")
    initial = initial.strip(" ")
    match mechanism.upper():
        case "PLAIN":
            return _plain(_decoded(initial or await ask("334 ")))  # RFC 4954 4; RFC 4616 2
        case "LOGIN":
            user = _decoded(initial or await ask(_USER_NAME))
            password = _decoded(await ask(_PASSWORD))
            return AuthCredentials(_text(user), _text(password))
        case "XOAUTH2" | "OAUTHBEARER" as name:
            return _bearer(name, _decoded(initial or await ask("334 ")))
        case "":
            raise SmtpRejection("501 5.5.4 Syntax: AUTH PLAIN or AUTH LOGIN")  # RFC 4954 4
        case _:
            text = f"This mechanism is not supported, use one of {AUTH_OFFER.partition(' ')[2]}"
            raise SmtpRejection(f"504 5.5.4 {text}")  # RFC 4954 4


def _plain(response: bytes) -> AuthCredentials:
    parts = _text(response).split("\0")
    if len(parts) != 3:
        # RFC 4616 2
        raise SmtpRejection("501 5.5.2 AUTH PLAIN: expected authorization id NUL user NUL password")
    acting_for, user, password = parts
    if acting_for and own_mailbox(acting_for) != own_mailbox(user):
        raise SmtpRejection("535 5.7.8 No account may act for another one")  # RFC 4616 2
    return AuthCredentials(user, password)


def _bearer(mechanism: str, response: bytes) -> AuthCredentials:
    """Parse the response of XOAUTH2 or OAUTHBEARER (RFC 7628 3.1): pairs of keys and values.

    The first pair of OAUTHBEARER is the GS2 header (RFC 5801 4).
    """
    begin, *pairs = _text(response).split("\x01")
    values = dict(pair.partition("=")[::2] for pair in pairs if pair)
    if mechanism == "XOAUTH2":
        key, _, user = begin.partition("=")
        is_right = key.lower() == "user"
    else:
        binding, _, name = begin.partition(",")
        key, _, user = name.removesuffix(",").partition("=")
        is_right = binding in ("n", "y") and name.endswith(",") and key in ("a", "")
        user = user.replace("=2C", ",").replace("=3D", "=")
    scheme, _, token = values.get("auth", "").partition(" ")
    if not is_right or scheme.lower() != "bearer" or not token.strip():
        expected = "a user and auth=Bearer TOKEN, each before the octet 1"
        raise SmtpRejection(f"501 5.5.2 AUTH {mechanism}: expected {expected}")  # RFC 4954 4
    return AuthCredentials(user, token.strip(), _TOKEN_REFUSED[mechanism])


def _decoded(response: str) -> bytes:
    if response == "*":
        raise SmtpRejection("501 5.7.0 Authentication cancelled")  # RFC 4954 4
    if response == "=":  # RFC 4954 4: an empty initial response
        return b""
    try:
        return b64decode(response.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise SmtpRejection("501 5.5.2 The response is not base64") from None  # RFC 4954 4


def _text(response: bytes) -> str:
    try:
        return response.decode("utf-8")
    except UnicodeDecodeError:
        raise SmtpRejection("501 5.5.2 User and password must be UTF-8") from None  # RFC 4616 2


def _delayed_reply(delayed: LoginDelayedError) -> str:
    seconds = math.ceil(delayed.retry_after_s)
    # RFC 4954 6
    return f"454 4.7.0 {delayed}, try again in {seconds} second{'' if seconds == 1 else 's'}"
