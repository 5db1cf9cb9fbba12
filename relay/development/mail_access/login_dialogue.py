"""What a client of IMAP or POP3 sends before its login, within limits.

A web page of any site can send a request to a port of this machine: a line of HTTP ends the session
unanswered.
"""

import asyncio
import re

LINE_BYTES_MAX = 8192
_UNKNOWN_MAX = 3
_HTTP = re.compile(rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE|CONNECT|PRI) |(?i:Host:)")


class SessionOverError(Exception):
    """The session ends. The text is the reason that the client gets, "" for none."""


class LoginDialogue:
    """The part that both protocols have."""

    _unknown = 0

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """`reader` has the limit LINE_BYTES_MAX."""
        self.reader, self.writer = reader, writer

    async def line(self) -> str:
        """Return the next line without its end. Raises SessionOverError, OSError, EOFError,
        UnicodeDecodeError.
        """
        try:
            await self.writer.drain()
            line = await self.reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            raise SessionOverError(f"A line is longer than {LINE_BYTES_MAX} octets") from None
        if _HTTP.match(line):
            raise SessionOverError
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()

    def say(self, *lines: str) -> None:
        """Send lines; nothing if the client is gone."""
        if not self.writer.is_closing():
            self.writer.write("".join(f"{line}\r\n" for line in lines).encode())

    def refuse_unknown(self, reply: str) -> None:
        """Answer a command that is not known. Raises SessionOverError for the third."""
        self.say(reply)
        self._unknown += 1
        if self._unknown == _UNKNOWN_MAX:
            raise SessionOverError("Too many unknown commands")
