"""The commands of IMAP before the login, and the replies to them.

RFC 3501 6.1 and 6.2; RFC 2971 (ID); RFC 4959 (SASL-IR); RFC 4616 (PLAIN); RFC 5530 (response
codes); RFC 7888 (LITERAL+). There is no STARTTLS: another port has TLS from the first octet.
"""

import re
from base64 import b64decode
from collections.abc import Iterator

from relay.development.mail_access.client_lines import (
    LINE_BYTES_MAX,
    LITERAL_BYTES_MAX,
    ClientLines,
    ClientLogin,
    SessionOverError,
)

_CAPABILITY = "CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN"
# In a command, NUL stands for a literal.
_LITERAL = re.compile(r"\{(\d{1,9}+)(\+?+)\}\Z")
_COMMAND = re.compile(r'([^\x00-\x20(){%*"\\+\x7f]++) ([A-Za-z]++)(?: (.*+))?', re.DOTALL)
_STRING = r'"(?:[^"\\]|\\.)*+"|\0|[^ "\0]++'
_LOGIN = re.compile(rf"({_STRING}) ({_STRING})", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class ImapLogin:
    """The dialogue with a client by IMAP until it logs in."""

    prompt = b""  # what makes the child greet
    child_greeting = b"* PREAUTH"

    def __init__(self, client: ClientLines) -> None:
        self._client = client
        self._tag = "*"

    def greet(self) -> None:
        """Send the greeting."""
        self._client.say(f"* OK [{_CAPABILITY}] Relay")

    async def credentials(self) -> ClientLogin | None:
        """Answer commands until a login; None: the client has ended the session.

        Raises SessionOverError, OSError.
        """
        while True:
            text, literals = await self._command()
            command = _COMMAND.fullmatch(text)
            self._tag, verb, words = command.groups("") if command else ("*", "", "")
            match verb.upper(), words:
                case "CAPABILITY", "":
                    self._ok(f"* {_CAPABILITY}")
                case "NOOP", "":
                    self._ok()
                case "ID", _:
                    self._ok('* ID ("name" "Relay")')
                case "LOGOUT", "":
                    self._ok("* BYE Logging out")
                    return None
                case "LOGIN", _:
                    if login := login_of(words, literals):
                        return login
                    self._unknown("Expected LOGIN with a user name and a password")
                case "AUTHENTICATE", _:
                    mechanism, _, response = words.partition(" ")
                    if mechanism.upper() != "PLAIN":
                        self._unknown("Expected AUTHENTICATE PLAIN")
                        continue
                    if not response:
                        self._client.say("+ ")
                        response = await self._client.line()
                    if login := plain_login(response):
                        return login
                    self._unknown("Expected base64 of an empty text, a user name and a password")
                case _:
                    self._unknown("Log in first")

    def log_in(self, greeting: bytes) -> None:
        """Reply that the client is logged in, with what the child has greeted with."""
        words = greeting.removeprefix(self.child_greeting).decode(errors="replace").strip()
        self._client.say(f"{self._tag} OK {words}")

    def refuse(self, code: str, text: str) -> None:
        """Reply that it is not logged in, with a code of RFC 5530."""
        self._client.say(f"{self._tag} NO [{code}] {text}")

    def end(self, reason: str) -> None:
        """Say why the session ends."""
        self._client.say(f"* BYE {reason}")

    async def _command(self) -> tuple[str, Iterator[str]]:
        """Return the next command, and its literals. Raises SessionOverError, OSError."""
        text, literals, size = "", list[str](), 0
        while True:
            text += await self._client.line()
            if len(text) > LINE_BYTES_MAX or text.count("\0") > len(literals):
                raise SessionOverError("Expected a shorter command without NUL")
            literal = _LITERAL.search(text)
            if literal is None:
                return text, iter(literals)
            size += int(literal[1])
            if size > LITERAL_BYTES_MAX:
                raise SessionOverError(f"Literals are longer than {LITERAL_BYTES_MAX} octets")
            if not literal[2]:
                self._client.say("+ OK")
            literals.append(await self._client.literal(int(literal[1])))
            text = f"{text[: literal.start()]}\0"

    def _ok(self, *lines: str) -> None:
        self._client.say(*lines, f"{self._tag} OK Completed")

    def _unknown(self, text: str) -> None:
        self._client.say(f"{self._tag} BAD {text}")
        self._client.note_unknown()


def login_of(words: str, literals: Iterator[str]) -> ClientLogin | None:
    """Return the arguments of LOGIN, None for other text; NUL stands for a literal."""
    strings = _LOGIN.fullmatch(words)
    return ClientLogin(*(_value(text, literals) for text in strings.groups())) if strings else None


def plain_login(response: str) -> ClientLogin | None:
    """Return the user and the password of SASL's PLAIN, None for another response.

    No user acts for another one.
    """
    try:
        acting_for, user, password = b64decode(response, validate=True).decode().split("\0")
    except ValueError:
        return None
    is_own = not acting_for or acting_for.lower() == user.lower()
    return ClientLogin(user, password) if is_own else None


def _value(text: str, literals: Iterator[str]) -> str:
    if text == "\0":
        return next(literals)
    return _ESCAPED.sub(r"\1", text[1:-1]) if text.startswith('"') else text
