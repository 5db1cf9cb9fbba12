"""The commands of POP3 before the login, and the replies to them.

RFC 1939 7 (USER, PASS); RFC 2449 (CAPA, response codes); RFC 3206 (SYS/TEMP, AUTH).
"""

from relay.base.phrases import words_in
from relay.development.mail_access.login_dialogue import LoginDialogue

_CAPABILITIES = words_in("USER TOP UIDL PIPELINING RESP-CODES AUTH-RESP-CODE")


class Pop3Login(LoginDialogue):
    """The dialogue with a client by POP3 until it logs in."""

    greeting, bye = "+OK Relay", "-ERR"
    prompt, child_greeting = b"NOOP\r\n", b"+OK"  # the child greets with nothing
    _user = ""

    async def credentials(self) -> tuple[str, str] | None:
        """See ImapLogin."""
        while True:
            verb, _, words = (await self.line()).partition(" ")
            match verb.upper():
                case "CAPA":
                    self.say("+OK", *_CAPABILITIES, ".")
                case "QUIT":
                    self.say("+OK Logging out")
                    return None
                case "USER" if words:
                    self._user = words
                    self.say("+OK")
                case "PASS" if self._user:
                    return self._user, words
                case _:
                    self.refuse_unknown("-ERR Expected USER, then PASS")

    def accept(self, greeting: bytes) -> None:  # noqa: ARG002 - as ImapLogin
        """Reply that the client is logged in."""
        self.say("+OK Logged in")

    def refuse(self, code: str, text: str) -> None:
        """Reply that it is not logged in; `code` is one of RFC 5530."""
        self._user = ""
        self.say(f"-ERR [{'AUTH' if code == 'AUTHENTICATIONFAILED' else 'SYS/TEMP'}] {text}")
