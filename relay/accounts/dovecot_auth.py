"""Ask Dovecot whether a password is right, by the socket for its auth clients (version 1 of their
protocol: https://doc.dovecot.org/2.3/developer_manual/design/auth_protocol/).

Each question has a connection of its own; how many there are is decided by PasswordChecker. Of the
failures, those that Dovecot calls temporary say nothing of the password.
"""

import asyncio
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator

from msgspec import Struct

from relay.message.address import own_mailbox
from relay.observe.logs import get_logger

_ANSWER_S = 30.0  # of which 2 s are Dovecot's own pause after a wrong password
_LINES_MAX = 100
_LINE_BYTES_MAX = 8192
_log = get_logger("accounts")


class DovecotPassword(Struct, frozen=True):
    """The password that Dovecot has for a user."""

    path: str  # of the socket
    user: str  # an address, as the client wrote it
    client: str  # its IP address; "": none
    hashed: str = ""  # not known here

    async def matches(self, given: str) -> bool:
        """Whether `given` is the password. Raises OSError if Dovecot does not say."""
        if "\0" in given:  # which separates the parts of PLAIN: RFC 4616 2
            return False
        try:
            async with asyncio.timeout(_ANSWER_S):  # real time: a peer
                return await self._ask(given.encode("utf-8", "surrogatepass"))
        except TimeoutError:
            raise OSError(f"{self.path}: no answer of Dovecot in {_ANSWER_S:g} s") from None
        except (OSError, ValueError) as error:  # ValueError: a line without an end, no UTF-8
            reason = getattr(error, "strerror", "") or error
            raise OSError(f"{self.path}: {reason}") from None

    async def _ask(self, given: bytes) -> bool:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=_LINE_BYTES_MAX)
        try:
            # the number of a process, which must not be that of another open connection
            writer.write(f"VERSION\t1\t1\nCPID\t{1 + secrets.randbelow(2**31 - 1)}\n".encode())
            lines = _lines(reader)
            offers_plain = False
            async for name, *values in lines:
                if name == "VERSION" and values[:1] != ["1"]:
                    raise OSError(f"found version {values[:1]} of the protocol, expected 1")
                offers_plain = offers_plain or [name, *values[:1]] == ["MECH", "PLAIN"]
                if name == "DONE":
                    break
            else:
                raise OSError("Dovecot closed the connection at once")
            if not offers_plain:
                raise OSError("Dovecot does not offer PLAIN, expected it in auth_mechanisms")
            response = b64encode(b"\0".join((b"", self.user.encode(), given))).decode()
            client = f"rip={self.client.partition('%')[0]}\t" if self.client else ""
            # no-penalty: who guesses waits here, and others at the same address do not
            options = f"service=smtp\tsecured\tnologin\tno-penalty\t{client}resp={response}"
            writer.write(f"AUTH\t1\tPLAIN\t{options}\n".encode())
            async for name, *values in lines:
                if name == "OK":
                    return self._is_user(dict(one.partition("=")[::2] for one in values))
                if name == "FAIL":
                    if {"temp", "code=temp_fail"} & set(values):
                        raise OSError("Dovecot has a temporary failure, see its log")
                    return False
            raise OSError("Dovecot closed the connection without an answer")
        finally:
            writer.close()

    def _is_user(self, found: dict[str, str]) -> bool:
        """Whether Dovecot knows the user by the address with which it logs in: what it may send as
        depends on that.
        """
        name = found.get("user", "")
        if own_mailbox(name) == own_mailbox(self.user):
            return True
        _log.warning("login of another name in Dovecot", user=self.user, dovecot_user=name[:320])
        return False


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[list[str]]:
    """Yield the fields of each line. Raises OSError and ValueError."""
    for _ in range(_LINES_MAX):
        line = await reader.readline()
        if not line.endswith(b"\n"):
            return
        yield line.decode().removesuffix("\n").split("\t")
    raise OSError(f"found more than {_LINES_MAX} lines, expected an answer of Dovecot")
