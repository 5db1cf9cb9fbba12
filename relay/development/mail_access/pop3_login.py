"""The commands of POP3 before the login, and the replies to them.

RFC 1939 7 (USER, PASS); RFC 2449 (CAPA, response codes); RFC 3206 (SYS/TEMP, AUTH).
"""

from relay.development.mail_access.client_lines import ClientLines, ClientLogin

_CAPABILITIES = ("USER", "TOP", "UIDL", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE")
_CODES = {"AUTHENTICATIONFAILED": "AUTH"}  # of RFC 5530 and of RFC 3206


class Pop3Login:
    """The dialogue with a client by POP3 until it logs in."""

    prompt = b"NOOP\r\n"  # the child greets with nothing
    child_greeting = b"+OK"

    def __init__(self, client: ClientLines) -> None:
        self._client = client
        self._user = ""

    def greet(self) -> None:
        """Send the greeting."""
        self._client.say("+OK Relay")

    async def credentials(self) -> ClientLogin | None:
        """Answer commands until a login; None: the client has ended the session.

        Raises SessionOverError, OSError.
        """
        while True:
            verb, _, words = (await self._client.line()).partition(" ")
            match verb.upper():
                case "CAPA":
                    self._client.say("+OK", *_CAPABILITIES, ".")
                case "QUIT":
                    self._client.say("+OK Logging out")
                    return None
                case "USER" if words:
                    self._user = words
                    self._client.say("+OK")
                case "PASS" if self._user:
                    return ClientLogin(self._user, words)
                case _:
                    self._client.say("-ERR Expected USER, then PASS")
                    self._client.note_unknown()

    def log_in(self, greeting: bytes) -> None:  # noqa: ARG002 - as ImapLogin
        """Reply that the client is logged in."""
        self._client.say("+OK Logged in")

    def refuse(self, code: str, text: str) -> None:
        """Reply that it is not logged in; `code` is one of RFC 5530."""
        self._user = ""
        self._client.say(f"-ERR [{_CODES.get(code, 'SYS/TEMP')}] {text}")

    def end(self, reason: str) -> None:
        """Say why the session ends."""
        self._client.say(f"-ERR {reason}")
