"""The connection of one SMTP session: aiosmtpd's protocol with a command loop of our own.

On the path: server makes one per connection; conversation decides, this reads, writes, times.
Holds: replies of a pipelined batch leave in one write; input is bounded; one timer per session.
Fails: an internal error is a fixed 451 and a log line; a lost connection ends the session quietly.
Standards: RFC 5321 3.8 (421), 4.5.3.2.7 (time-out); RFC 2920 3.2; RFC 3207 4.
"""

import asyncio
import contextlib
import fcntl
import ssl
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from aiosmtpd.smtp import SMTP

from relay.ingress.data import ContentReader, Refusal
from relay.ingress.esmtp_parameters import Refused
from relay.ingress.session_limits import SessionCount
from relay.ingress.smtp_commands import SHUTTING_DOWN, Conversation, LineFault, Service
from relay.observe.logs import get_logger
from relay.spool.types import SpoolFullError, SpoolUnavailableError

_TEXT = frozenset((*b"\t\r\n", *range(0x20, 0x7F)))


class Input:
    """A buffer with one reader.

    `pause` and `resume` act on the transport: reading stops while more than `limit_bytes` wait.
    """

    def __init__(
        self, *, limit_bytes: int, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self._limit_bytes = limit_bytes
        self._pause = pause
        self._resume = resume
        self._data = b""
        self._at = 0
        self._paused = False
        self._ended = False
        self._began = False
        self._is_binary = False  # the first octet of all
        self._fresh = False  # something came since the reader last found nothing
        self._in_long_line = False
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        """Add what the transport read."""
        if data and not self._began:
            self._began = True
            self._is_binary = data[0] not in _TEXT
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0
        self._fresh = True
        if len(self._data) > self._limit_bytes and not self._paused:
            self._paused = True
            self._pause()
        self._wake()

    def feed_end(self) -> None:
        """Say that nothing more will come."""
        self._ended = True
        self._wake()

    def take_line(self, limit_bytes: int) -> bytes | LineFault | None:
        """Take one line without its CRLF; None while it has not all come.

        Behind a bare LF everything up to the next CRLF that has come goes with it: a peer for whom
        LF ends no line sent it as one, and no part of it may become a command (RFC 5321 2.3.8).
        Nothing is a command either of a client whose first octet is no text.
        """
        if self._is_binary:
            self.clear()
            return LineFault.BINARY
        end = self._data.find(b"\n", self._at)
        if end < 0:
            self._fresh = False
            if len(self._data) - self._at > limit_bytes:
                self._in_long_line = True
                self.clear()
            return None
        start, self._at = self._at, end + 1
        line = self._data[start : end - 1] if end > start else b""
        if self._in_long_line:
            self._in_long_line = False
            return LineFault.TOO_LONG
        if end == start or self._data[end - 1] != 0x0D:
            crlf = self._data.find(b"\r\n", self._at)
            self._at = crlf + 2 if crlf >= 0 else len(self._data)
            return LineFault.BARE
        if len(line) + 2 > limit_bytes:
            return LineFault.TOO_LONG
        if b"\r" in line or b"\0" in line:
            return LineFault.BARE
        return line

    def take_all(self) -> bytes:
        """Take everything that has come."""
        self._fresh = False
        data = self._data[self._at :] if self._at else self._data
        self.clear()
        return data

    def give_back(self, rest: bytes) -> None:
        """Put back the end of what take_all() returned."""
        self._data = rest + self._data[self._at :]
        self._at = 0

    def clear(self) -> None:
        """Throw away what has come."""
        self._data = b""
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether everything that came has been taken."""
        return self._at >= len(self._data)

    async def more(self) -> bool:
        """Wait until something has come since the last look; False when nothing will."""
        if self._paused:
            self._paused = False
            self._resume()
        if not self._ended and not self._fresh:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._fresh

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


_log = get_logger("ingress")
_LOCAL_ERROR = "451 4.3.0 Local error, try again later"
_BUSY = "421 4.3.2 This server has too much to do, try again later"
TLS_HANDSHAKE_S = 30.0
_BATCH_REPLIES = 100
_AUTH_VERB = b"AUTH "


class ClientGone(Exception):  # noqa: N818 -- what happened, and no error of anybody's
    """The client closed, or its TLS handshake failed: nothing more can be said to it."""


@dataclass(frozen=True, slots=True)
class Door:
    """What sessions of a listener share: the service, its counters, and whom it trusts.

    `turns_strangers_away` says whether only those whom it trusts may begin a session now.
    """

    service: Service
    count: SessionCount
    sessions: set["SmtpSession"]
    timeout_s: float
    tls_context: ssl.SSLContext | None
    is_trusted: Callable[[str], bool]
    turns_strangers_away: Callable[[], bool]


class _Bare:
    """An object without anything to find in it.

    For each connection aiosmtpd looks through its handler and itself for methods by name: a tenth
    of the work of a short session. None is used here.
    """

    def __dir__(self) -> tuple[str, ...]:
        return ()


_NO_HANDLER = _Bare()


class SmtpSession(_Bare, SMTP):
    """One connection. From aiosmtpd come the protocol, the stream writer and the task."""

    def __init__(self, door: Door) -> None:
        super().__init__(
            _NO_HANDLER,
            hostname=door.service.hostname,
            timeout=door.timeout_s,
            loop=asyncio.get_running_loop(),
        )
        self._door = door
        self._ip = ""
        self._input = Input(
            limit_bytes=door.service.limits.input_bytes,
            pause=lambda: self._transport_of().pause_reading(),
            resume=lambda: self._transport_of().resume_reading(),
        )
        self._replies: list[bytes] = []
        self._conversation: Conversation | None = None
        self._waits_since: float | None = None  # loop time; None while we work
        self._began_s = self.loop.time()
        self._counted = False
        self.gone = self.loop.create_future()

    # -- the protocol: what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Turn the client away, or begin the session."""
        self._ip = _ip_of(transport)
        trusted = self._door.is_trusted(self._ip)
        if not trusted and self._door.turns_strangers_away():
            refusal = _BUSY
        else:
            refusal = self._door.count.enter(self._ip, exempt=trusted)
        if refusal:
            refused = cast("asyncio.Transport", transport)
            refused.write(refusal.encode("ascii") + b"\r\n")
            refused.close()
            return
        self._counted = True
        self._door.sessions.add(self)
        self._conversation = Conversation(
            self,
            self._door.service,
            ip=self._ip,
            trusted=trusted,
            tls=_tls_version(transport),
        )
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Keep what the client sent."""
        self._input.feed(data)

    def eof_received(self) -> bool:
        """Let the commands that have come be answered; True keeps our half open."""
        self._input.feed_end()
        return self.transport is not None and not self._is_tls()

    def connection_lost(self, error: Exception | None) -> None:
        """End the session; a message that is being committed goes on without it."""
        self._input.feed_end()
        if not self.gone.done():
            self.gone.set_result(None)
        if self._counted:
            self._counted = False
            self._door.count.leave(self._ip)
            self._door.sessions.discard(self)
            super().connection_lost(None if isinstance(error, OSError) else error)

    def _timeout_cb(self) -> None:
        """End the session if the client was silent for too long; else look again later."""
        now = self.loop.time()
        too_old = now - self._began_s >= self._door.service.limits.session_s
        silent_s = 0.0 if self._waits_since is None else now - self._waits_since
        if self.transport is None:
            return
        if self._waits_since is None or (silent_s < self._timeout_duration and not too_old):
            self._reset_timeout(max(self._timeout_duration - silent_s, 0.001))
            return
        self.leave("421 4.4.2 Time is up, closing the connection")

    def leave(self, reply: str) -> None:
        """Say a last reply and close, whatever the client is doing."""
        if self.transport is None or self._transport_of().is_closing():
            return
        self._put(reply)
        self._write()
        self._close()

    def drain_down(self) -> None:
        """Finish: at once between transactions, else behind the one that is going on."""
        if self._conversation is None or self._conversation.draining:
            return
        self._conversation.draining = True
        if self._waits_since is not None and self._conversation.may_leave:
            self.leave(SHUTTING_DOWN)

    # -- the command loop

    async def _handle_client(self) -> None:
        conversation = self._conversation
        assert conversation is not None
        try:
            self._put(conversation.greet(client_spoke=self._has_spoken()))
            while not conversation.closing:
                if conversation.may_leave and self._input.is_empty:
                    self._put(SHUTTING_DOWN)
                    break
                line = await self._next_line()
                if line is None:
                    break
                self._put(await self._reply_to(conversation, line))
            await self._flush()
        except ClientGone:
            pass  # it hears no more
        finally:
            if self.transport is not None:
                self._close()

    async def _reply_to(self, conversation: Conversation, line: bytes | LineFault) -> str:
        if isinstance(line, LineFault):
            return conversation.malformed(line)
        limits = self._door.service.limits
        if len(line) + 2 > limits.command_bytes and line[: len(_AUTH_VERB)].upper() != _AUTH_VERB:
            return conversation.count(LineFault.TOO_LONG)
        try:
            return await conversation.handle(line)
        except ClientGone:
            raise
        except Exception:  # noqa: BLE001 -- a fault of ours costs a command, not the session
            _log.exception("command failed", client=self._ip, verb=_verb(line))
            return _LOCAL_ERROR

    async def _next_line(self) -> bytes | LineFault | None:
        """Return the next command line; None when the client is gone."""
        while True:
            line = self._input.take_line(self._door.service.limits.auth_line_bytes)
            if line is not None:
                if len(self._replies) >= _BATCH_REPLIES:  # a long batch: others have their turn
                    await self._flush()
                    await asyncio.sleep(0)
                return line
            if not await self._more():
                return None

    async def _more(self) -> bool:
        """Write what is due, then wait for input."""
        await self._flush()
        self._waits_since = self.loop.time()
        try:
            return await self._input.more()
        finally:
            self._waits_since = None

    async def _flush(self) -> None:
        self._write()
        self._waits_since = self.loop.time()  # a client that does not read is as silent as another
        try:
            await self._writer.drain()
        except OSError as error:
            raise ClientGone from error
        finally:
            self._waits_since = None

    def _put(self, reply: str) -> None:
        if reply:
            self._replies.append(reply.encode("ascii", "backslashreplace") + b"\r\n")

    def _write(self) -> None:
        if self._replies:
            self._writer.write(b"".join(self._replies))
            self._replies.clear()

    # -- conversation.Wire

    async def send(self, reply: str) -> None:
        """Write a reply now, with those before it."""
        self._put(reply)
        await self._flush()

    async def ask(self, reply: str) -> str:
        """Write a reply and return the client's next line. Raises Refused, ClientGone."""
        self._put(reply)
        line = await self._next_line()
        if line is None:
            raise ClientGone
        if isinstance(line, LineFault):
            raise Refused(line)
        return line.decode("utf-8", "replace")

    async def read_content(self, reader: ContentReader) -> bool:
        """Say 354 and feed `reader` to the end of data; False when the client went away before."""
        self._put("354 End data with <CR><LF>.<CR><LF>")
        while True:
            if self._input.is_empty and not await self._more():
                return False
            rest = reader.feed(self._input.take_all())
            if reader.waits:
                await self._spill(reader)
            if rest is not None:
                self._input.give_back(rest)
                return True

    async def _spill(self, reader: ContentReader) -> None:
        """Write what is large while the client waits."""
        try:
            await reader.spill()
        except SpoolFullError:
            reader.refuse(Refusal.QUEUE_FULL)
        except SpoolUnavailableError as error:
            _log.warning("spool unavailable", error=error)
            reader.refuse(Refusal.LOCAL_ERROR)

    async def start_tls(self) -> str:
        """Discard what the client sent ahead, say 220, do the handshake; return the version."""
        assert self._door.tls_context is not None
        await self.send("220 2.0.0 Ready to start TLS")
        # RFC 3207 4.2: what came in clear behind STARTTLS may be somebody else's. Only now: while
        # the client was slow to read, more of it may have come.
        self._input.clear()
        try:
            await self._writer.start_tls(
                self._door.tls_context, ssl_handshake_timeout=TLS_HANDSHAKE_S
            )
        except OSError as error:
            raise ClientGone from error
        self.transport = self._writer.transport
        return _tls_version(self._writer.transport)

    async def pause(self, seconds: float) -> None:
        """Wait, unless the client goes away."""
        await self._flush()
        await asyncio.wait({self.gone}, timeout=seconds)

    # -- the transport

    def _has_spoken(self) -> bool:
        """Return whether octets of the client are here before the greeting.

        Not where TLS begins with the first octet, since the client has to speak first there, nor on
        a Unix socket, which no browser reaches.
        """
        if not self._ip or self._is_tls():
            return False
        if not self._input.is_empty:
            return True
        descriptor = self._transport_of().get_extra_info("socket").fileno()
        try:
            waiting = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
        except (OSError, ValueError):  # the connection is closed already
            return False
        return waiting != bytes(4)

    def _transport_of(self) -> asyncio.Transport:
        return cast("asyncio.Transport", self.transport)  # uvloop's is no subclass of asyncio's

    def _close(self) -> None:
        """Close when what was said has left; the session's timer sees to it that this ends."""
        self._transport_of().close()
        assert self._timeout_handle is not None
        self._timeout_handle.cancel()  # one timer, gone with the connection: it holds the session
        goodbye_s = self._door.service.limits.goodbye_s
        self._timeout_handle = self.loop.call_later(goodbye_s, self.abort)

    def _is_tls(self) -> bool:
        return bool(_tls_version(self._transport_of()))

    def abort(self) -> None:
        """Close without waiting for the client to read."""
        if self.transport is not None:
            with contextlib.suppress(OSError):
                self._transport_of().abort()


def _tls_version(transport: asyncio.BaseTransport) -> str:
    """Return the TLS version of a connection, such as "TLSv1.3"; "" in clear."""
    tls = transport.get_extra_info("ssl_object")
    return tls.version() or "TLS" if tls is not None else ""


def _ip_of(transport: asyncio.BaseTransport) -> str:
    """Return the client's address, an IPv4 one as such; "" on a Unix socket."""
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return ""
    return str(peer[0]).removeprefix("::ffff:")


def _verb(line: bytes) -> str:
    return line.partition(b" ")[0][:16].decode("ascii", "replace")
