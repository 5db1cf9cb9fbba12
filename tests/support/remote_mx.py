"""A remote SMTP server with scripted behaviour: replies by stage, drops, stalls, TLS; it records what it got.

An envelope is recorded before the reply to its final dot can be read. A session ends quietly when
its client is gone or talks nonsense. See RFC 5321, 2920, 3207, 4954 (PLAIN), as far as the tests
need them.
"""

import asyncio
import base64
import ssl
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

Script = str | Sequence[str]
DROP = "DROP"
EXTENSIONS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 250000000", "ENHANCEDSTATUSCODES", "DSN")


@dataclass
class Envelope:
    """One transaction that came to its final dot; `answered` is the reply's code, 0 for none."""

    reverse_path: str
    parameters: dict[str, str]
    recipients: list[tuple[str, dict[str, str]]]
    content: bytes = field(repr=False)
    session: int
    tls: bool
    answered: int = 0

    @property
    def addresses(self) -> list[str]:
        return [address for address, _ in self.recipients]


@dataclass
class RemoteMx:
    """`async with RemoteMx(...) as mx`: listens at mx.host, mx.port, or at `path`.

    `replies` by stage, `rcpt` by address: one reply or several, used one by one, the last one stays. Stages: CONNECT EHLO
    HELO STARTTLS AUTH MAIL RCPT DATA CONTENT (said after the first byte of content, then closed) DOT RSET QUIT,
    and NOBODY (DATA without a recipient).
    DROP closes the connection. `gates` holds a stage's reply back until the event is set; `reached(stage)` waits for a stage.
    `greylist` refuses each pair of sender and recipient once. `fragment` writes replies that many bytes at a time.
    """

    host: str = "127.0.0.1"
    port: int = 0
    path: str = ""
    replies: Mapping[str, Script] = field(default_factory=dict)
    rcpt: Mapping[str, Script] = field(default_factory=dict)
    gates: Mapping[str, asyncio.Event] = field(default_factory=dict)
    extensions: Sequence[str] = EXTENSIONS
    tls: ssl.SSLContext | None = None
    implicit_tls: bool = False
    users: Mapping[str, str] = field(default_factory=dict)
    greylist: bool = False
    fragment: int = 0
    read_limit: int = 2**26
    name: str = "mx.remote.test"

    def __post_init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.commands: list[str] = []
        self.sessions = self.open = self.most_open = 0
        self._used: dict[str, int] = defaultdict(int)
        self._reached: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._greylisted: set[tuple[str, str]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        limit = self.read_limit
        if self.path:
            self._server = await asyncio.start_unix_server(self._session, self.path, limit=limit)
            return self
        tls = self.tls if self.implicit_tls else None
        self._server = await asyncio.start_server(
            self._session, self.host, self.port, limit=limit, ssl=tls, backlog=500
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def received(self, address: str) -> list[Envelope]:
        """The envelopes answered 2yz that had this recipient."""
        return [
            one for one in self.envelopes if one.answered // 100 == 2 and address in one.addresses
        ]

    async def reached(self, stage: str) -> None:
        """Wait until some session has come to `stage` (its command is read, the reply not written)."""
        async with asyncio.timeout(10):
            await self._reached[stage].wait()

    def hang_up(self, farewell: str = "") -> None:
        """Close every open connection, after `farewell` if there is one."""
        for writer in list(self._writers):
            if farewell:
                writer.write(farewell.encode() + b"\r\n")
            writer.close()

    def script_for(self, key: str, script: Script) -> str:
        """The reply of `script` whose turn it is."""
        if isinstance(script, str):
            return script
        self._used[key] += 1
        return script[min(self._used[key], len(script)) - 1]

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self._writers.add(writer)
        self.sessions += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        gone = (OSError, EOFError, ValueError, asyncio.LimitOverrunError)
        try:
            await _Session(self, reader, writer, number=self.sessions).talk()
        except asyncio.CancelledError:  # the test is over: a cancelled handler would be logged
            pass
        except gone:
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()
            # asyncio does not tell the writer that a connection has ended in a failed handshake.
            with suppress(*gone, TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()


class _Session:
    def __init__(
        self,
        mx: RemoteMx,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        number: int,
    ) -> None:
        self._mx, self._reader, self._writer, self._number = mx, reader, writer, number
        self._secure = mx.implicit_tls
        self._mail: tuple[str, dict[str, str]] | None = None
        self._rcpt: list[tuple[str, dict[str, str]]] = []

    async def talk(self) -> None:
        if await self._say("CONNECT", f"220 {self._mx.name} ESMTP") // 100 != 2:
            return
        verb = ""
        while verb != "QUIT":
            line = (await self._reader.readuntil(b"\r\n"))[:-2].decode()
            self._mx.commands.append(line)
            verb = line.partition(" ")[0].upper()
            handler = getattr(self, f"_on_{verb.lower()}", None)
            if handler is None:
                await self._say("OTHER", "500 5.5.2 What?")
            else:
                await handler(line)

    async def _say(
        self,
        stage: str,
        default: str,
        *,
        script: Script | None = None,
        envelope: Envelope | None = None,
    ) -> int:
        self._mx._reached[stage].set()
        if gate := self._mx.gates.get(stage):
            await gate.wait()
        reply = (
            self._mx.script_for(stage, self._mx.replies.get(stage, default))
            if script is None
            else script
        )
        assert isinstance(reply, str)
        if reply == DROP:
            raise EOFError
        last = reply.rpartition("\r\n")[2][:3]
        code = int(last) if last.isdigit() else 0
        if envelope:
            envelope.answered = code
        data = reply.encode() + b"\r\n"
        step = self._mx.fragment or len(data)
        for start in range(0, len(data), step):
            self._writer.write(data[start : start + step])
            await self._writer.drain()
            if self._mx.fragment:
                await asyncio.sleep(0.001)  # lets the fragment leave as a segment of its own
        return code

    async def _on_ehlo(self, _line: str) -> None:
        self._mail, self._rcpt = None, []
        words = [self._mx.name, *self._mx.extensions]
        if self._mx.tls and not self._secure:
            words.append("STARTTLS")
        if self._mx.users:
            words.append("AUTH PLAIN")
        await self._say(
            "EHLO", "\r\n".join([*(f"250-{word}" for word in words[:-1]), f"250 {words[-1]}"])
        )

    async def _on_helo(self, _line: str) -> None:
        await self._say("HELO", f"250 {self._mx.name}")

    async def _on_starttls(self, _line: str) -> None:
        assert self._mx.tls
        if await self._say("STARTTLS", "220 2.0.0 go") == 220:
            await self._writer.start_tls(self._mx.tls)
            self._secure, self._mail = True, None

    async def _on_auth(self, line: str) -> None:
        _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
        known = self._mx.users.get(user) == password
        await self._say(
            "AUTH", "235 2.7.0 welcome" if known else "535 5.7.8 no such user or password"
        )

    async def _on_mail(self, line: str) -> None:
        if self._mail:
            await self._say("SEQUENCE", "503 5.5.1 nested MAIL")
        elif await self._say("MAIL", "250 2.1.0 Ok") // 100 == 2:
            self._mail, self._rcpt = _path(line), []

    async def _on_rcpt(self, line: str) -> None:
        if not self._mail:
            await self._say("SEQUENCE", "503 5.5.1 MAIL first")
            return
        address, parameters = _path(line)
        pair, script = (self._mail[0], address), None
        if self._mx.greylist and pair not in self._mx._greylisted:
            self._mx._greylisted.add(pair)
            script = "451 4.7.1 greylisted, come again"
        elif address in self._mx.rcpt:
            script = self._mx.script_for(f"rcpt {address}", self._mx.rcpt[address])
        if await self._say("RCPT", "250 2.1.5 Ok", script=script) // 100 == 2:
            self._rcpt.append((address, parameters))

    async def _on_data(self, _line: str) -> None:
        if not (self._mail and self._rcpt):
            if await self._say("NOBODY", "503 5.5.1 no valid recipients") == 354:
                await self._reader.readuntil(b".\r\n")
                await self._say("DOT", "554 5.5.1 no valid recipients")
            return
        if await self._say("DATA", "354 go ahead") // 100 not in (2, 3):
            return
        await self._take_content()

    async def _take_content(self) -> None:
        assert self._mail
        if "CONTENT" in self._mx.replies:
            await self._reader.readexactly(1)
            await self._say("CONTENT", DROP)
            raise EOFError
        if gate := self._mx.gates.get("CONTENT"):
            await gate.wait()
        content = bytearray()
        while not (content == b".\r\n" or content.endswith(b"\r\n.\r\n")):
            content += await self._reader.readuntil(b".\r\n")
        unstuffed = (b"\r\n" + bytes(content[:-3])).replace(b"\r\n..", b"\r\n.")[2:]
        envelope = Envelope(
            *self._mail, list(self._rcpt), unstuffed, session=self._number, tls=self._secure
        )
        self._mx.envelopes.append(envelope)
        self._mail = None
        await self._say(
            "DOT", f"250 2.0.0 Ok: queued as {len(self._mx.envelopes)}", envelope=envelope
        )

    async def _on_rset(self, _line: str) -> None:
        self._mail, self._rcpt = None, []
        await self._say("RSET", "250 2.0.0 Ok")

    async def _on_quit(self, _line: str) -> None:
        await self._say("QUIT", "221 2.0.0 Bye")


def _path(line: str) -> tuple[str, dict[str, str]]:
    """Read "MAIL FROM:<a@b> X=y": the address and the parameters."""
    address, _, rest = line.partition("<")[2].partition(">")
    words = (word.partition("=") for word in rest.split())
    return address, {name.upper(): value for name, _, value in words}
