"""The commands of IMAP before the login, and the replies to them.

RFC 3501 6.1 and 6.2; RFC 2971 (ID); RFC 4959 (SASL-IR); RFC 4616 (PLAIN); RFC 5530 (response
codes); RFC 7888 (LITERAL+). There is no STARTTLS: another port has TLS from the first octet.
"""

import re
from base64 import b64decode

from relay.base.message.address import own_mailbox
from relay.development.mail_access.login_dialogue import (
    LINE_BYTES_MAX,
    LoginDialogue,
    SessionOverError,
)

LITERAL_BYTES_MAX = 4096
_CAPABILITY = "CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN"
_ANSWERS = {
    "CAPABILITY": [f"* {_CAPABILITY}"],
    "ID": ['* ID ("name" "Relay")'],
    "LOGOUT": ["* BYE Logging out"],
    "NOOP": [],
}
_LITERAL = re.compile(r"\{(\d{1,9}+)(\+?+)\}\Z")
_COMMAND = re.compile(r'([^\x00-\x20(){%*"\\+\x7f]++) ([A-Za-z]++)(?: (.*+))?', re.DOTALL)
_STRING = r'"((?:[^"\\]|\\.)*+)"|([^ "]++)'
_LOGIN = re.compile(rf"(?:{_STRING}) (?:{_STRING})", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_TO_ESCAPE = re.compile(r'(["\\])')


class ImapLogin(LoginDialogue):
    """The dialogue with a client by IMAP until it logs in."""

    greeting, bye = f"* OK [{_CAPABILITY}] Relay", "* BYE"
    prompt, child_greeting = b"", b"* PREAUTH"
    _tag = "*"

    async def credentials(self) -> tuple[str, str] | None:
        """Answer commands until one has a user and a password; None: the client has said goodbye.

        Raises SessionOverError, and the errors of line().
        """
        while True:
            command = _COMMAND.fullmatch(await self._command())
            self._tag, verb, words = command.groups("") if command else ("*", "", "")
            verb, login = verb.upper(), None
            if verb in _ANSWERS:
                self.say(*_ANSWERS[verb], f"{self._tag} OK Completed")
                if verb == "LOGOUT":
                    return None
                continue
            mechanism, _, response = words.partition(" ")
            if verb == "LOGIN":
                login = login_of(words)
            elif verb == "AUTHENTICATE" and mechanism.upper() == "PLAIN":
                if not response:
                    self.say("+ ")
                    response = await self.line()
                login = plain_login(response)
            if login:
                return login
            self.refuse_unknown(f"{self._tag} BAD Expected LOGIN, or AUTHENTICATE PLAIN")

    def accept(self, greeting: bytes) -> None:
        """Reply that the client is logged in, with what the child process greets with."""
        words = greeting.removeprefix(self.child_greeting).decode(errors="replace").strip()
        self.say(f"{self._tag} OK {words}")

    def refuse(self, code: str, text: str) -> None:
        """Reply that it is not logged in, with a code of RFC 5530."""
        self.say(f"{self._tag} NO [{code}] {text}")

    async def _command(self) -> str:
        """Return the next command; its literals become quoted strings."""
        text = await self.line()
        while literal := _LITERAL.search(text):
            size = int(literal[1])
            if size > LITERAL_BYTES_MAX or len(text) > LINE_BYTES_MAX:
                raise SessionOverError(f"A literal is longer than {LITERAL_BYTES_MAX} octets")
            if not literal[2]:
                self.say("+ OK")
            octets = await self.reader.readexactly(size)
            quoted = _TO_ESCAPE.sub(r"\\\1", octets.decode())
            text = f'{text[: literal.start()]}"{quoted}"{await self.line()}'
        return text


def login_of(words: str) -> tuple[str, str] | None:
    """Return the arguments of LOGIN, None for other text."""
    if (strings := _LOGIN.fullmatch(words)) is None:
        return None
    quoted_user, user, quoted_password, password = strings.groups("")
    unescaped = (_ESCAPED.sub(r"\1", text) for text in (quoted_user, quoted_password))
    return next(unescaped) or user, next(unescaped) or password


def plain_login(response: str) -> tuple[str, str] | None:
    """Return the user and the password of SASL's PLAIN, None for another response.

    No user acts for another one.
    """
    try:
        acting_for, user, password = b64decode(response, validate=True).decode().split("\0")
    except ValueError:
        return None
    return (user, password) if own_mailbox(acting_for) in ("", own_mailbox(user)) else None
