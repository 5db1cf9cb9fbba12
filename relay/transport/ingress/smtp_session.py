"""One SMTP connection: aiosmtpd's protocol with Relay's own command loop, time-outs and STARTTLS.

smtp_server makes one SmtpSession per connection; smtp_commands has the commands. InputBuffer holds
what the client sent ahead (pipelining). The replies of a pipelined batch are written at once. Input
is bounded. There is one timer per session. An internal error is logged and answered with 451; a
lost connection ends the session without a log line.

Relay uses aiosmtpd's protocol, stream writer, task and timer, and replaces the rest for the reasons
below. Figures are CPU time of version 1.4.6 on one core, with the client in the same process:

- The loop. aiosmtpd awaits each line and writes each reply: a pipelined RCPT takes 92 us with
  nothing to check, 22 us here with all checks. It takes lines that end in LF, an internal error is
  a 500 with the text of the exception, and the lines of a message stay in memory.
- The table of commands, `handle_EHLO` and the `auth_` methods. aiosmtpd looks for them by name in
  each new connection, which takes 150 us. With a list of their names it takes 10 us for twelve
  commands, and 24 us more for the signature of the one hook. A whole session with one message takes
  660 us here.
- The replies. 40 of its 53 refusals have no status (RFC 3463), and the line of EHLO and most
  arguments are checked before a hook is asked.
- AUTH. `authenticator` is not awaited, and a password takes a thread, in another process.

RFC 5321 2.3.8 (line ends), 3.8 (421), 4.5.3.1.4, 4.5.3.2.7 (time-out); RFC 2920 (pipelining); RFC
3207 4 (STARTTLS).
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

from aiosmtpd.smtp import SMTP
from msgspec import Struct

from relay.base.observe.logs import get_logger
from relay.store.spool.types import SpoolFullError, SpoolUnavailableError
from relay.transport.ingress.data import ContentCollector, ContentRejection, Framing
from relay.transport.ingress.esmtp_parameters import SmtpRejection
from relay.transport.ingress.places import CROWDED, Places
from relay.transport.ingress.session_client import (
    CONNECT,
    STRANGERS,
    ListenerDependencies,
    RefusedCommand,
    SessionClaims,
    SessionClient,
    SessionPlace,
)
from relay.transport.ingress.session_refusals import LineError
from relay.transport.ingress.smtp_commands import PAUSED, SHUTTING_DOWN, SmtpCommands

_TEXT = frozenset((*b"\t\r\n", *range(0x20, 0x7F)))
_log = get_logger("ingress")
_LOCAL_ERROR = "451 4.3.0 Local error, try again later"  # RFC 3463 3.4
_BUSY = "421 4.3.2 This server has too much to do, try again later"  # RFC 5321 3.8
_TLS_HANDSHAKE_S = 30.0
_BATCH_REPLIES = 100
_AUTH_VERB = b"AUTH "


class InputBuffer:
    """The octets that a client has sent and no command has read yet; there is one reader.

    `pause` and `resume` act on the transport: reading pauses while more than `limit_bytes` are
    buffered.
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
        self._fault: LineError | None = None  # set when no more commands are read
        self._fresh = False  # data has arrived since the reader last found nothing
        self._in_long_line = False
        self._waiter: asyncio.Future[bool] | None = None

    def feed(self, data: bytes) -> None:
        """Append what the transport has read."""
        if data and not self._began:
            self._began = True
            if data[0] not in _TEXT:
                self._fault = LineError.BINARY
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0
        self._fresh = True
        if len(self._data) > self._limit_bytes and not self._paused:
            self._paused = True
            self._pause()
        self._wake()

    def feed_end(self) -> None:
        """Record the end of the input."""
        self._ended = True
        self._wake()

    def take_line(self, limit_bytes: int) -> bytes | LineError | None:
        """Take one line without its CRLF; return None if it is incomplete.

        After a bare LF, no further commands are read. For a client that does not end lines with LF,
        what follows is the same line, and no part of it may become a command (RFC 5321 2.3.8). If
        the first octet of a session is not text, no command is read at all.
        """
        if self._fault is not None:
            self.clear()
            return self._fault
        end = self._data.find(b"\n", self._at)
        if end < 0:
            self._fresh = False
            if len(self._data) - self._at > limit_bytes:
                self._in_long_line = True
                self._data, self._at = self._data[-1:], 0  # perhaps the CR of its end
            return None
        start, self._at = self._at, end + 1
        if end == start or self._data[end - 1] != 0x0D:
            self._fault = LineError.BARE_LF
            return self._fault
        line = self._data[start : end - 1]
        was_long, self._in_long_line = self._in_long_line, False
        if was_long or len(line) + 2 > limit_bytes:
            return LineError.TOO_LONG
        if b"\r" in line or b"\0" in line:
            return LineError.BARE
        return line

    def take_all(self, at_most: int) -> bytes:
        """Take everything that is buffered, but at most `at_most` octets."""
        self._fresh = False
        if len(self._data) - self._at > at_most:
            start, self._at = self._at, self._at + at_most
            return self._data[start : self._at]
        data = self._data[self._at :] if self._at else self._data
        self.clear()
        return data

    def put_back(self, rest: bytes) -> None:
        """Put back the last part of what take_all() returned."""
        self._data = rest + self._data[self._at :]
        self._at = 0

    def clear(self) -> None:
        """Discard everything that is buffered."""
        self._data = b""
        self._at = 0

    @property
    def is_binary(self) -> bool:
        """Whether the first octet is not text."""
        return self._fault is LineError.BINARY

    @property
    def is_empty(self) -> bool:
        """Whether nothing is buffered."""
        return self._at >= len(self._data)

    def more(self) -> "asyncio.Future[bool]":
        """Return a future that ends with new data: True; or with the end of the input: False."""
        self._fresh = self._fresh and not self.is_empty
        if self._paused:
            self._paused = False
            self._resume()
        self._waiter = asyncio.get_running_loop().create_future()
        if self._ended or self._fresh:
            self._wake()
        return self._waiter

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(self._fresh)


class ClientDisconnected(Exception):  # noqa: N818 -- an event, not an error
    """The client disconnected, its TLS handshake failed, or the right reply is unknown.

    Nothing more is sent.
    """


class SessionDependencies(Struct, frozen=True):
    """What the sessions of a listener share."""

    listener: ListenerDependencies  # what their commands share
    places: "Places[SmtpSession]"  # with the open sessions
    tls_context: ssl.SSLContext | None  # None: no TLS
    on_failed_handshake: Callable[[SessionClient, OSError], None]  # called with the reason
    begun: Callable[[], None]  # counts a connection
    # returns the client of a session that was made without one; None: all have one
    meet: Callable[[asyncio.BaseTransport], SessionClient] | None

    def handshake_s(self, *places: "Places[SmtpSession]") -> float:
        """Return how long a TLS handshake may take: less while half of any `places` is taken."""
        is_crowded = any(kept.is_full(0.5) for kept in (self.places, *places))
        return self.listener.limits.stranger_silence_s if is_crowded else _TLS_HANDSHAKE_S


class _NoHooks:
    """Hides its attributes from dir(), by which aiosmtpd looks for methods."""

    def __dir__(self) -> tuple[str, ...]:
        return ()


_NO_HANDLER = _NoHooks()


class SmtpSession(_NoHooks, SmtpCommands, SMTP):
    """One connection. aiosmtpd provides the protocol, the stream writer and the task."""

    def __init__(self, shared: SessionDependencies, client: SessionClient | None = None) -> None:
        """Without a `client`, it is found by the transport (SessionDependencies.meet)."""
        # after this time _timeout_cb() looks for the first time
        timeout_s = min(shared.listener.settings.timeout, shared.listener.limits.stranger_silence_s)
        SMTP.__init__(
            self,
            _NO_HANDLER,
            hostname=shared.listener.hostname,
            timeout=timeout_s,
            loop=asyncio.get_running_loop(),
        )
        self._shared = shared
        self._met = client
        self.place: SessionPlace | None = None  # None: another session has it
        self._may_speak_first = False
        self._input = InputBuffer(
            limit_bytes=shared.listener.limits.input_bytes,
            pause=lambda: self._transport_of().pause_reading(),
            resume=lambda: self._transport_of().resume_reading(),
        )
        self._replies: list[bytes] = []
        self._waiting_since: float | None = None  # loop time; None while a command is in progress
        self._waited_s = 0.0  # for the client, until then
        self._progress_s = self._mail_s = 0.0  # how much of it when there was progress, or mail
        self._window_s, self._window_bytes = 0.0, 0  # of a content: since when so many octets came
        self._began_s = self.loop.time()  # real time: a client
        self.closed = self.loop.create_future()

    # -- callbacks of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session, or reject the client."""
        if self._met is None and self._shared.meet is not None:
            self._met = self._shared.meet(transport)
        assert self._met is not None
        client = self._met
        trusted, tls = client.is_trusted, _tls_version(transport)
        # No browser reaches a Unix socket, and none sends commands as the first data under TLS.
        self._may_speak_first = trusted and (not client.ip or bool(tls))
        place, listener = client.place, self._shared.listener
        if listener.pressure.paused():
            rejection = PAUSED
        elif not (trusted or listener.role.must_log_in) and listener.pressure.rejects_untrusted:
            rejection = _BUSY
        else:
            rejection = self._shared.places.take(place)
        self._shared.begun()
        if rejection:
            client.refused(RefusedCommand(command=CONNECT, reply=rejection), SessionClaims())
            rejected = cast("asyncio.Transport", transport)
            rejected.write(rejection.encode("ascii") + b"\r\n")
            rejected.close()
            return
        self.place = place
        if listener.limits.reserved_bytes:
            opened = transport.get_extra_info("socket")
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, listener.limits.input_bytes)
        self._shared.places.sessions.add(self)
        SmtpCommands.__init__(self, listener, client, tls=tls, key=place.key)
        super().connection_made(transport)

    def move_to_logins(self, login: str) -> str:
        """Take the place of a login. If there is none, return the reply."""
        place = self.place and self._shared.places.of_login(self.place, login)
        if place is None:
            return "421 4.7.0 Too many sessions with a login, try again later"  # RFC 5321 7.8
        self.place, self.key = place, login
        self._note_mail()
        return ""

    def data_received(self, data: bytes) -> None:
        """Buffer what the client sent."""
        self._input.feed(data)

    def eof_received(self) -> bool:
        """Record the end of the input; True keeps the connection open for the replies."""
        self._input.feed_end()
        return self.transport is not None and not _tls_version(self._transport_of())

    def connection_lost(self, error: Exception | None) -> None:
        """End the session. A message that is being committed continues."""
        if "closed" not in vars(self) or self.closed.done():  # start_tls() calls this too
            return
        self._input.feed_end()
        self.closed.set_result(None)
        if self in self._shared.places.sessions:
            self._shared.places.sessions.remove(self)
            self.reset()
            self._leave_place()
            super().connection_lost(None if isinstance(error, OSError) else error)
        if self._met is not None:
            ended, task = self._met.ended, self._handler_coroutine
            if task is None:
                ended()
            else:  # the task may still record a refusal
                task.add_done_callback(lambda _: ended())
                # Else garbage collection frees it, a thousand sessions and 9 MB later.
                task.add_done_callback(lambda _: vars(self).clear())

    def _timeout_cb(self) -> None:
        """End the session if the client was idle for too long, else set the timer again."""
        now, limits = self.loop.time(), self._shared.listener.limits  # real time: a client
        if self.transport is None:
            return
        is_waiting, silent_s = self._waiting_since is not None, now - (self._waiting_since or now)
        left_s = self._shared.listener.settings.timeout - silent_s
        if is_waiting and (left_s <= 0 or now - self._began_s >= limits.session_s):
            self.close_with("421 4.4.2 Time is up, closing the connection")  # RFC 5321 4.5.3.2.7
            return
        is_stranger = self.place is not None and self.place.kind == STRANGERS
        if is_stranger or self.filters is not None:
            idle_s = self._waited_s + silent_s - self._progress_s
            limit_s = limits.stranger_silence_s
            if is_waiting and idle_s >= limit_s and self._is_in_the_way(is_stranger=is_stranger):
                self._leave_place()
                self.close_with(CROWDED)
                return
            left_s = min(left_s, limit_s - idle_s % limit_s)
        self._reset_timeout(max(left_s, 0.001))

    def _is_in_the_way(self, *, is_stranger: bool) -> bool:
        """Whether others may need the place of a client without progress, or the connections to
        milters of its transaction; those of another session are closed.
        """
        if self.filters is not None and self.filters.session.is_crowded:
            if self._mail is not None:
                return True
            self.filters.session.rest()
        return is_stranger and self._shared.places.is_full(0.5)

    def _leave_place(self) -> None:
        place, self.place = self.place, None
        if place is not None:
            self._shared.places.give_back(place)

    def without_mail_s(self, now_s: float) -> float:
        """Return how long the client has sent no mail, without the time in which it waited for
        replies; 0.0 while it waits for one, or leaves.
        """
        if self._waiting_since is None or self._transport_of().is_closing():
            return 0.0
        return self._waited_s + now_s - self._waiting_since - self._mail_s

    def close_with(self, reply: str) -> None:
        """Send a last reply and close, in any state."""
        if self.transport is None or self._transport_of().is_closing():
            return
        self.closing = True
        self._put(reply)
        self._write()
        self._close()

    def drain(self) -> None:
        """Close now, or after the current transaction."""
        self.draining = True
        if self._waiting_since is not None and self.may_close:
            self.close_with(SHUTTING_DOWN)

    # -- the command loop

    async def _handle_client(self) -> None:
        try:
            self._put(await self._greeting())
            while not self.closing:
                if self.may_close and self._input.is_empty:
                    self._put(SHUTTING_DOWN)
                    break
                line = await self._next_line()
                if line is None:
                    break
                self._put(await self._reply_to(line))
            await self._flush()
        except ClientDisconnected:
            pass
        finally:
            if self.filters is not None:
                self.filters.close()
            if self.has_left_unused_tls and self._shared.listener.tls_hint is not None:
                # A client that checks the certificate after the handshake, as Node does.
                self._handshake_failed(OSError("the client left after it"))
            if self.transport is not None:
                self._close()

    async def _greeting(self) -> str:
        spoke = await self._has_spoken()
        if spoke and self._shared.listener.tls_hint is not None:
            if self._input.is_empty:
                await self._more()  # it has arrived
            if self._input.is_binary:
                return self.malformed(LineError.BINARY)
        return await self.greet(client_spoke=spoke)

    async def _reply_to(self, line: bytes | LineError) -> str:
        if isinstance(line, LineError):
            return self.malformed(line)
        limits = self._shared.listener.limits
        if len(line) + 2 > limits.command_bytes and line[: len(_AUTH_VERB)].upper() != _AUTH_VERB:
            return self.fail(LineError.TOO_LONG)
        try:
            return await self.handle(line, more_follows=not self._input.is_empty)
        except ClientDisconnected:
            raise
        except Exception:  # noqa: BLE001 -- an internal error fails the command, not the session
            verb = line.partition(b" ")[0][:16].decode("ascii", "replace")
            _log.repeated("exception", "command failed", client=self._client.ip, verb=verb)
            return self.fail(_LOCAL_ERROR, verb=verb.upper())

    async def _next_line(self) -> bytes | LineError | None:
        """Return the next command line, or None if the client has disconnected."""
        while True:
            line = self._input.take_line(self._shared.listener.limits.auth_line_bytes)
            if line is not None:
                if len(self._replies) >= _BATCH_REPLIES:  # a long batch: let other sessions run
                    await self._flush()
                    await asyncio.sleep(0)
                return line
            if not await self._more():
                return None

    async def _more(self) -> bool:
        """Write the buffered replies, then wait for input."""
        if self._write():
            await self._flush()
        self._waiting_since = self.loop.time()  # real time: a client
        try:
            return await self._input.more()
        finally:
            self._waited_s += self.loop.time() - self._waiting_since  # real time: as above
            self._waiting_since = None

    async def _flush(self) -> None:
        if not self._write():
            return
        # a client that does not read counts as idle
        self._waiting_since = self.loop.time()  # real time: a client
        try:
            await self._writer.drain()
        except OSError as error:
            raise ClientDisconnected from error
        finally:
            self._waited_s += self.loop.time() - self._waiting_since  # real time: as above
            self._waiting_since = None

    def progress(self) -> None:
        """See SmtpCommands."""
        self._progress_s = self._window_s = self._waited_s
        self._window_bytes = 0

    def _note_mail(self) -> None:
        self.progress()
        self._mail_s = self._waited_s

    def _end_window(self) -> None:
        """Octets of a content that came in a short time are progress."""
        if self._waited_s - self._window_s <= self._shared.listener.limits.stranger_silence_s:
            self._note_mail()
        self._window_s, self._window_bytes = self._waited_s, 0

    def _put(self, reply: str) -> None:
        if reply:
            self._replies.append(reply.encode("ascii", "backslashreplace") + b"\r\n")

    def _write(self) -> bool:
        """Write the buffered replies; return whether they wait for the client, or it has left."""
        transport = self._writer.transport
        if self._replies:
            transport.write(b"".join(self._replies))
            self._replies.clear()
        return transport.is_closing() or transport.get_write_buffer_size() > 0

    # -- what commands ask of the connection

    async def send(self, reply: str) -> None:
        """Write a reply now, after the buffered ones."""
        self._put(reply)
        await self._flush()

    async def ask(self, reply: str) -> str:
        """Write a reply and return the client's next line.

        Raises SmtpRejection, ClientDisconnected.
        """
        self._put(reply)
        line = await self._next_line()
        if line is None:
            raise ClientDisconnected
        if line is LineError.BARE_LF:
            await self.send(self.malformed(line))
            raise ClientDisconnected
        if isinstance(line, LineError):
            raise SmtpRejection(line)
        return line.decode("utf-8", "replace")

    async def read_content(self, framing: Framing, content: ContentCollector | None) -> bool:
        """Collect a content or a chunk, or discard it; False if the client disconnects."""
        if framing.opening:
            self._put(framing.opening)
            self.progress()
        window_bytes = self._shared.listener.limits.progress_bytes
        while True:
            if self._input.is_empty and framing.wanted_bytes and not await self._more():
                return False
            octets = self._input.take_all(framing.wanted_bytes)
            self._window_bytes += len(octets)
            if self._window_bytes >= window_bytes:
                self._end_window()
            if content is None:
                _, rest = framing.take(octets)
            else:
                rest = content.take(octets, framing)
                if content.needs_spill:
                    await self._spill(content)
            if rest is not None:
                if rest:
                    self._input.put_back(rest)
                if framing.is_last:
                    self._note_mail()
                return True

    async def _spill(self, content: ContentCollector) -> None:
        """Write a part of a large body to its file; the client waits."""
        try:
            await content.spill(asyncio.to_thread)
        except SpoolFullError:
            content.reject(ContentRejection.DISK_FULL)
        except SpoolUnavailableError as error:
            _log.repeated("warning", "spool unavailable", error=error)
            content.reject(ContentRejection.LOCAL_ERROR)
        except Exception:  # noqa: BLE001 -- no part of what follows may become a command
            _log.repeated("exception", "command failed", client=self._client.ip)
            content.reject(ContentRejection.LOCAL_ERROR)

    async def start_tls(self) -> str:
        """Reply 220, discard pipelined input, do the handshake; return the TLS version."""
        context = self._shared.tls_context
        assert context is not None
        await self.send("220 2.0.0 Ready to start TLS")  # RFC 3207 4
        # RFC 3207 4.2: an attacker may have sent what follows STARTTLS in clear. It is discarded
        # after the 220, because more may arrive while the client is slow to read.
        self._input.clear()
        try:
            limit_s = self._shared.handshake_s()
            await self._writer.start_tls(context, ssl_handshake_timeout=limit_s)
        except OSError as error:
            self._handshake_failed(error)
            # uvloop does not call connection_lost() for a connection that ends in the handshake.
            self.loop.call_soon(self.connection_lost, error)
            raise ClientDisconnected from error
        self.transport = self._writer.transport
        self.progress()
        return _tls_version(self._writer.transport)

    def _handshake_failed(self, error: OSError) -> None:
        self._shared.on_failed_handshake(self._client, error)

    def fact(self, name: str) -> Any:
        """Return get_extra_info() of the transport."""
        return self._writer.transport.get_extra_info(name)

    async def pause(self, seconds: float) -> None:
        """Wait, or until the client disconnects."""
        await self._flush()
        await asyncio.wait({self.closed}, timeout=seconds)  # real time: a client

    # -- the transport

    async def _has_spoken(self) -> bool:
        """Return whether the client sent data before the greeting and may not."""
        if self._may_speak_first:
            return False
        await asyncio.sleep(0)  # the next turn has what came with the connection or its handshake
        return not self._input.is_empty

    def _transport_of(self) -> asyncio.Transport:
        # uvloop's transport is not a subclass of asyncio's
        return cast("asyncio.Transport", self.transport)

    def _close(self) -> None:
        """Close after the last reply is written; the timer bounds the wait."""
        self._transport_of().close()
        assert self._timeout_handle is not None
        self._timeout_handle.cancel()  # a timer keeps the session alive: cancel it
        last_reply_s = self._shared.listener.limits.last_reply_s
        self._timeout_handle = self.loop.call_later(  # real time: a client
            last_reply_s, self.abort
        )

    def abort(self) -> None:
        """Close without waiting for the client to read."""
        if self.transport is not None:
            with contextlib.suppress(OSError):
                self._transport_of().abort()


def _tls_version(transport: asyncio.BaseTransport) -> str:
    """Return the TLS version of a connection, such as "TLSv1.3", or ""."""
    tls = transport.get_extra_info("ssl_object")
    return tls.version() or "TLS" if tls is not None else ""
