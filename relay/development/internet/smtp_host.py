"""A remote mail host: an SMTP server on loopback whose replies are decided elsewhere.

Whatever the decision leaves open, the host does as a usual MX: it accepts. Sessions, recipients,
lines, content and the time of a silent client are bounded; delays end by the Clock. A session ends
without a word when its client is gone. See RFC 5321, RFC 2920 (pipelining), RFC 3207 (STARTTLS),
RFC 4954 (AUTH, PLAIN only), RFC 2033 (LMTP).
"""

import asyncio
import base64
import binascii
import dataclasses
import socket
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from relay.base.clock import Clock
from relay.base.observe.logs import get_logger
from relay.base.shares import Shares
from relay.base.socket_address import Address
from relay.base.sockets import Listener, open_listener
from relay.base.task_set import TaskSet
from relay.development.internet.behaviour import Action, ForwardedTo, Moment, ReceivedMail

_log = get_logger("internet")

SIZE_BYTES_MAX = 157_286_400  # of one message; what Gmail's hosts announce
EXTENSIONS = (
    "PIPELINING",
    "8BITMIME",
    "SMTPUTF8",
    f"SIZE {SIZE_BYTES_MAX}",
    "ENHANCEDSTATUSCODES",
    "DSN",
)
_LINE_BYTES_MAX = 16_384  # AUTH has the longest lines (RFC 4954 4)
_READ_BYTES = 65_536
_CLOSE_S = 1.0
GIVEN_MAX = 20  # replies of a host that are remembered
_GIVEN_CHARACTERS_MAX = 500
_NOTABLE_S = 1.0  # a shorter delay alone, such as a latency, is not remembered
_DOT = b"\r\n.\r\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What a host offers, and its limits."""

    extensions: Sequence[str] = EXTENSIONS  # the keywords after EHLO
    tls: ssl.SSLContext | None = None  # with it, STARTTLS is offered
    bad_tls: ssl.SSLContext | None = None  # for a certificate that clients must reject
    implicit_tls: bool = False  # sessions begin with the handshake
    lmtp: bool = False  # LHLO, and a reply for each recipient after the final dot
    # passwords by name; with them AUTH is offered
    users: Mapping[str, str] = field(default_factory=dict)
    size_bytes_max: int = SIZE_BYTES_MAX  # of a message; then 552
    recipients_max: int = 1000  # of a message; then 452
    sessions_max: int = 100  # at once; then 421
    idle_s: float | None = 300.0  # how long a client may be silent; None: for ever
    memory: Shares | None = None  # for messages that all hosts receive


@dataclass(frozen=True, slots=True)
class GivenReply:
    """What a host did at one moment; `at_us` is wall time.

    `recipient` is that of RCPT, or the first one. A long reply is cut off.
    """

    at_us: int
    stage: str
    sender: str
    recipient: str
    action: Action


@dataclass(eq=False, repr=False)
class SmtpHost:
    """One mail host. `decide` returns what it does at a moment, and is called once for each.

    `on_mail` is awaited before a message is accepted; if it raises OSError, the host replies 451.
    `sessions` counts the sessions so far, `open` those that are not over, `delayed` those that wait
    for the Clock, or without end. `given` are the latest of what was decided for it, and of its
    replies to messages.
    """

    name: str
    decide: Callable[[Moment], Action]
    clock: Clock
    options: HostOptions = HostOptions()
    on_mail: Callable[[ReceivedMail], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        self.sessions = self.open = self.delayed = 0
        self.given: deque[GivenReply] = deque(maxlen=GIVEN_MAX)
        self._listener: Listener | None = None
        self._server: asyncio.Server | None = None
        self._tasks = TaskSet()

    def listen(self, address: Address) -> Address:
        """Listen; connections wait for start(). Return the address with the actual port.

        Raises OSError.
        """
        self._listener = open_listener(address, backlog=self.options.sessions_max)
        return self._listener.address

    async def start(self) -> None:
        """Serve the connections."""
        assert self._listener is not None
        [sock] = self._listener.sockets
        opened = asyncio.start_unix_server if self._listener.address.path else asyncio.start_server
        tls = self.options.tls if self.options.implicit_tls else None
        self._server = await opened(self.converse, sock=sock, limit=_READ_BYTES, ssl=tls)

    async def stop(self) -> None:
        """Stop listening and end all sessions."""
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            self._listener.close()
        await self.end_sessions()

    async def end_sessions(self) -> None:
        """Close every connection, and wait until nothing more is done for it."""
        await self._tasks.end()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Run a session with a client that has connected."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = None
        self.sessions += 1
        self.open += 1
        gone = (OSError, EOFError, ValueError, asyncio.CancelledError)
        try:
            await _Session(self, reader, writer, number=self.sessions).run()
        except gone:  # a cancelled handler would be logged
            pass
        finally:
            self.open -= 1
            del self._tasks[task]
            writer.close()
            # asyncio does not tell the writer that a connection has ended in a failed handshake
            with suppress(*gone):
                async with asyncio.timeout(_CLOSE_S):  # real time: a client
                    await writer.wait_closed()

    async def act(self, moment: Moment, pause: Callable[[float | None], Awaitable[None]]) -> Action:
        """Return what to do at this moment, when it is time to do it.

        `pause` waits for so many seconds, or for ever, and raises EOFError if the client leaves.
        """
        action = self.decide(moment)
        if _is_notable(action, moment.stage):
            self.remember(moment, action)
        if action.delay_s <= 0 and not action.stall:
            return action
        self.delayed += 1
        try:
            if action.delay_s > 0:
                await pause(action.delay_s)
            if action.stall:
                await pause(None)
        finally:
            self.delayed -= 1
        return action

    def remember(self, moment: Moment, action: Action) -> None:
        """Keep what is done at this moment among the latest."""
        recipient = moment.recipient or next(iter(moment.recipients), "")
        cut = dataclasses.replace(action, reply=action.reply[:_GIVEN_CHARACTERS_MAX])
        self.given.append(
            GivenReply(self.clock.time_us(), moment.stage, moment.sender, recipient, cut)
        )

    def heard(self, line: str) -> None:
        """Called with each command."""


class _Session:
    def __init__(
        self,
        host: SmtpHost,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        number: int,
    ) -> None:
        self._host, self._options, self._number = host, host.options, number
        self._writer = writer
        self._input = _Input(reader, host.clock, idle_s=self._options.idle_s)
        self._helo = ""
        self._mail: tuple[str, dict[str, str]] | None = None
        self._recipients: list[ForwardedTo] = []
        self._handlers: dict[str, Callable[[str], Awaitable[None]]] = {
            "STARTTLS": self._starttls,
            "AUTH": self._auth,
            "MAIL": self._mail_from,
            "RCPT": self._rcpt_to,
            "DATA": self._data,
            "RSET": self._rset,
            "NOOP": self._noop,
        }
        greetings = {"EHLO": self._ehlo, "HELO": self._hello}
        self._handlers |= {"LHLO": self._ehlo} if self._options.lmtp else greetings

    async def run(self) -> None:
        await self._at("CONNECT")
        if self._host.open > self._options.sessions_max:
            await self._write("421 4.7.0 too many connections")
            return
        if await self._reply("BANNER", f"220 {self._host.name} ESMTP") // 100 != 2:
            return
        while True:
            line = (await self._input.line()).decode("utf-8", "replace")
            self._host.heard(line)
            verb = line.partition(" ")[0].upper()
            if verb == "QUIT":
                await self._reply("QUIT", "221 2.0.0 Bye")
                return
            handler = self._handlers.get(verb)
            if handler is None:
                await self._write("500 5.5.2 unknown command")
            else:
                await handler(line)

    # -- commands

    async def _ehlo(self, line: str) -> None:
        self._begin(line)
        words = [self._host.name, *self._options.extensions]
        if self._options.tls is not None and not self._tls:
            words.append("STARTTLS")
        if self._options.users:
            words.append("AUTH PLAIN")
        lines = [*(f"250-{word}" for word in words[:-1]), f"250 {words[-1]}"]
        await self._reply("LHLO" if self._options.lmtp else "EHLO", "\n".join(lines))

    async def _hello(self, line: str) -> None:
        self._begin(line)
        await self._reply("HELO", f"250 {self._host.name}")

    async def _starttls(self, _line: str) -> None:
        if self._options.tls is None or self._tls:
            await self._write("503 5.5.1 STARTTLS is not possible here")
            return
        action = await self._at("STARTTLS")
        if await self._write(action.reply or "220 2.0.0 go") != 220:
            return
        self._input.clear()  # RFC 3207 4.2
        bad = self._options.bad_tls if action.bad_certificate else None
        await self._writer.start_tls(bad or self._options.tls)
        self._begin("")

    async def _auth(self, line: str) -> None:
        try:
            _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
        except (IndexError, ValueError, binascii.Error):
            await self._write("501 5.5.2 expected AUTH PLAIN with an initial response")
            return
        known = self._options.users.get(user) == password
        await self._reply("AUTH", "235 2.7.0 welcome" if known else "535 5.7.8 wrong credentials")

    async def _mail_from(self, line: str) -> None:
        if self._mail:
            await self._write("503 5.5.1 nested MAIL")
            return
        self._mail = _path(line)
        if await self._reply("MAIL", "250 2.1.0 Ok") // 100 != 2:
            self._mail = None

    async def _rcpt_to(self, line: str) -> None:
        if not self._mail:
            await self._write("503 5.5.1 MAIL first")
            return
        if len(self._recipients) >= self._options.recipients_max:
            await self._write("452 4.5.3 too many recipients")
            return
        recipient = ForwardedTo(*_path(line))
        if await self._reply("RCPT", "250 2.1.5 Ok", recipient=recipient.address) // 100 == 2:
            self._recipients.append(recipient)

    async def _data(self, _line: str) -> None:
        usual = "354 go ahead" if self._recipients else "503 5.5.1 no valid recipients"
        if await self._reply("DATA", usual) != 354:
            return
        action = await self._at("CONTENT")
        if action.drop or action.reply:
            await self._input.some()
            await self._write(action.reply)
            raise EOFError
        content = await self._content()
        if isinstance(content, str):
            await self._write(content)
        elif not self._mail or not self._recipients:
            await self._write("554 5.5.1 no valid recipients")
        else:
            await self._dot(content)
        self._clear()

    async def _rset(self, _line: str) -> None:
        self._clear()
        await self._reply("RSET", "250 2.0.0 Ok")

    async def _noop(self, _line: str) -> None:
        await self._write("250 2.0.0 Ok")

    # -- content

    async def _content(self) -> bytes | str:
        """Return the content without dot stuffing, or the reply of a host that cannot hold it."""
        memory, taken, reply = self._options.memory, 0, ""
        content = bytearray(b"\r\n")
        try:
            while True:
                start = max(0, len(content) - len(_DOT) + 1)
                more = await self._input.some()
                if memory is not None and not reply:
                    if memory.take(None, len(more)):
                        taken += len(more)
                    else:
                        reply = "452 4.3.1 insufficient storage"
                content += more
                end = content.find(_DOT, start)
                if end >= 0:
                    self._input.put_back(bytes(content[end + len(_DOT) :]))
                    return reply or _unstuffed(content, end)
                if len(content) > self._options.size_bytes_max:
                    reply = reply or "552 5.3.4 the message is too large"
                if reply:
                    del content[: 1 - len(_DOT)]
        finally:
            if memory is not None:
                memory.give_back(None, taken)

    async def _dot(self, content: bytes) -> None:
        assert self._mail
        sender, parameters = self._mail
        mail = ReceivedMail(
            self._host.name,
            self._helo,
            sender,
            parameters,
            tuple(self._recipients),
            content,
            self._number,
            self._tls,
            self._host.clock.time_us(),
        )
        if not self._options.lmtp:
            await self._dot_of(mail)
            return
        for recipient in mail.recipients:
            await self._dot_of(dataclasses.replace(mail, recipients=(recipient,)))

    async def _dot_of(self, mail: ReceivedMail) -> None:
        """Reply to the final dot; `mail` has the recipients that the reply is for."""
        recipient = mail.addresses[0] if self._options.lmtp else ""
        action = await self._at("DOT", recipient=recipient, mail=mail)
        reply = action.reply or f"250 2.0.0 Ok: queued as {self._number}"
        if reply.startswith("2") and self._host.on_mail is not None:
            try:
                await self._host.on_mail(mail)
            except OSError as error:
                _log.warning("a simulated host could not keep a message", error=error)
                reply = "451 4.3.0 the message could not be kept"
        moment = Moment("DOT", mail.host, sender=mail.sender, recipients=tuple(mail.addresses))
        self._host.remember(moment, dataclasses.replace(action, reply=reply))
        await self._write(reply)

    # -- replies

    async def _at(
        self, stage: str, *, recipient: str = "", mail: ReceivedMail | None = None
    ) -> Action:
        """Ask what to do; return what to reply. Drops the connection here."""
        moment = Moment(
            stage,
            self._host.name,
            tls=bool(self._tls),
            sender=self._mail[0] if self._mail else "",
            recipient=recipient,
            recipients=tuple(recipient.address for recipient in self._recipients),
            mail=mail,
            session=self._number,
        )
        action = await self._host.act(moment, self._input.pause)
        if action.drop and stage != "CONTENT":
            self._drop(reset=stage == "CONNECT")
            raise EOFError
        return action

    async def _reply(self, stage: str, usual: str, *, recipient: str = "") -> int:
        """Ask what to do, and write its reply, or the usual one; return its code."""
        action = await self._at(stage, recipient=recipient)
        return await self._write(action.reply or usual)

    async def _write(self, reply: str) -> int:
        lines = reply.replace("\r\n", "\n").replace("\n", "\r\n")
        data = f"{lines}\r\n".encode("utf-8", "replace") if reply else b""
        if self._writer.is_closing():
            raise EOFError
        self._writer.write(data)
        await self._writer.drain()
        code = int(reply[:3]) if reply[:3].isdecimal() else 0
        if code == 421:
            raise EOFError
        return code

    def _drop(self, *, reset: bool) -> None:
        if reset:
            sock = self._writer.get_extra_info("socket")
            with suppress(OSError, AttributeError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._writer.transport.abort()

    @property
    def _tls(self) -> str:
        tls = self._writer.get_extra_info("ssl_object")
        return (tls.version() or "TLS") if tls is not None else ""

    def _begin(self, line: str) -> None:
        self._helo = line.partition(" ")[2]
        self._clear()

    def _clear(self) -> None:
        self._mail = None
        self._recipients = []


class _Input:
    """What the client sent. Raises EOFError when it is gone, and ValueError for a long line."""

    def __init__(self, reader: asyncio.StreamReader, clock: Clock, *, idle_s: float | None) -> None:
        self._reader = reader
        self._clock = clock
        self._idle_s = idle_s
        self._data = b""

    async def line(self) -> bytes:
        """Return the next line, without its end."""
        while b"\r\n" not in self._data:
            if len(self._data) > _LINE_BYTES_MAX:
                raise ValueError("the line is too long")
            self._data += await self._read()
        line, _, self._data = self._data.partition(b"\r\n")
        return line

    async def some(self) -> bytes:
        """Return what there is, at least one octet."""
        data, self._data = self._data, b""
        return data or await self._read()

    def put_back(self, data: bytes) -> None:
        """Put back the last part of what some() returned."""
        self._data = data

    def clear(self) -> None:
        """Discard what is buffered."""
        self._data = b""

    async def pause(self, seconds: float | None) -> None:
        """Wait; None is for ever. What the client sends is kept up to a limit."""
        timer = None
        if seconds is not None:  # sleeps: the host is slow
            timer = asyncio.ensure_future(self._clock.sleep(seconds))  # sleeps: as above
        try:
            while timer is None or not timer.done():
                await self._wait_for_input(timer)
        finally:
            if timer is not None:
                timer.cancel()

    async def _wait_for_input(self, timer: asyncio.Future[None] | None) -> None:
        """Return when `timer` has ended or the client has sent something."""
        if timer is not None and len(self._data) > _LINE_BYTES_MAX:
            await timer
            return
        reading = asyncio.ensure_future(self._reader.read(_READ_BYTES))
        try:
            waited: set[asyncio.Future[Any]] = {reading} if timer is None else {reading, timer}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
        if not reading.cancelled():
            if not (data := reading.result()):
                raise EOFError
            self._data = data if timer is None else self._data + data

    async def _read(self) -> bytes:
        async with asyncio.timeout(self._idle_s):  # real time: a client
            data = await self._reader.read(_READ_BYTES)
        if not data:
            raise EOFError
        return data


def _is_notable(action: Action, stage: str) -> bool:
    """Return whether this is remembered before it is done; the reply to a message is afterwards."""
    if action.drop or action.stall or stage == "DOT":
        return action.drop or action.stall
    return bool(action.reply or action.bad_certificate or action.delay_s >= _NOTABLE_S)


def _unstuffed(content: bytearray, end: int) -> bytes:
    del content[end + 2 :]
    return bytes(content.replace(b"\r\n..", b"\r\n.")[2:])


def _path(line: str) -> tuple[str, dict[str, str]]:
    """Read "MAIL FROM:<a@b> X=y": the address and the parameters."""
    address, _, rest = line.partition("<")[2].partition(">")
    words = (word.partition("=") for word in rest.split())
    return address, {name.upper(): value for name, _, value in words}
