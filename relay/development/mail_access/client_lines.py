"""The lines that a client of IMAP or POP3 sends before its login.

A web page of any site can send a request to a port of this machine: a line of HTTP ends the session
unanswered.
"""

import asyncio
import re

from msgspec import Struct

# Of a line by IMAP or POP3 before the login.
LINE_BYTES_MAX = 8192
# Of the literals of a command by IMAP before the login.
LITERAL_BYTES_MAX = 4096
# The one that ends a session by IMAP or POP3 before the login.
_UNKNOWN_MAX = 3
_HTTP = re.compile(rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE|CONNECT|PRI) |(?i:Host):")


class SessionOverError(Exception):
    """The session ends. The text is the reason that the client gets, "" for none."""


class ClientLogin(Struct, frozen=True):
    """A user name and a password, as the client sent them."""

    user: str
    password: str

    def __repr__(self) -> str:
        return f"ClientLogin({self.user!r})"


class ClientLines:
    """What one client sends, within limits, and what it gets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """`reader` has the limit LINE_BYTES_MAX."""
        self.reader, self.writer = reader, writer
        self._unknown = 0

    async def line(self) -> str:
        """Return the next line without its end. Raises SessionOverError, OSError."""
        try:
            line = await self.reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            raise SessionOverError from None
        except asyncio.LimitOverrunError:
            raise SessionOverError(f"A line is longer than {LINE_BYTES_MAX} octets") from None
        if _HTTP.match(line):
            raise SessionOverError
        return self._text(line.removesuffix(b"\n").removesuffix(b"\r"))

    async def literal(self, size: int) -> str:
        """Return that many octets. Raises SessionOverError, OSError."""
        try:
            return self._text(await self.reader.readexactly(size))
        except asyncio.IncompleteReadError:
            raise SessionOverError from None

    def say(self, *lines: str) -> None:
        """Send lines."""
        self.writer.write("".join(f"{line}\r\n" for line in lines).encode())

    def note_unknown(self) -> None:
        """Count a command that is not known. Raises SessionOverError for the third."""
        self._unknown += 1
        if self._unknown >= _UNKNOWN_MAX:
            raise SessionOverError("Too many unknown commands")

    def _text(self, octets: bytes) -> str:
        try:
            return octets.decode()
        except UnicodeDecodeError:
            raise SessionOverError("Expected UTF-8") from None
