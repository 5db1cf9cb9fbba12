"""The milters of the configuration, in their order, and what they say in an SMTP session.

The first milter that refuses a command answers the client, and the milters after it do not get
that command. Header and body are sent to one milter after the other; each sees the changes of those
before it. After ten minutes a message is decided, even if a milter reports progress: no client
waits longer.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from msgspec import Struct

from relay.base.blocks import next_block
from relay.base.message.header import ParsedContent
from relay.base.settings.tree import Milter, MilterRole
from relay.store.journeys.details import MilterSaid
from relay.transport.milter import codec
from relay.transport.milter.connection import (
    CONNECTIONS_MAX,
    STRANGERS_MAX,
    ConfiguredMilter,
    MilterConnection,
    now_s,
)
from relay.transport.milter.dialogue import GO_ON, FilterAnswer, FilterStage, MilterDialogue
from relay.transport.milter.filtered_message import FilterVerdict, NewBodies, NewBody

_ALL_S: Final = 600.0  # the time for which clients wait after the final dot (RFC 5321 4.5.3.2.6)
_ACCEPTED: Final = ("continue", "accept")
Observe = Callable[[str, str, float], None]  # a milter's name, its answer, after how many seconds


class FilterClient(Struct, frozen=True):
    """The client of a session."""

    name: str = ""  # its verified host name; "": unknown
    address: str = ""  # its IP address; "": it has none
    port: int = 0
    macros: Mapping[str, str] = {}  # others of the connection, such as "daemon_name"


class MilterSet:
    """The milters of a process. A reload replaces them; open sessions keep their milters.

    `observe` is called for each refusal, and for each decision about a message.
    """

    def __init__(
        self, milters: Sequence[Milter], *, hostname: str, observe: Observe = lambda *_: None
    ) -> None:
        self._hostname = hostname
        self._observe = observe
        self._milters: tuple[ConfiguredMilter, ...] = ()
        self.replace(milters)

    def replace(self, milters: Sequence[Milter]) -> None:
        """Use these milters from now on. Unchanged ones keep their number of connections."""
        kept = {milter.settings: milter for milter in self._milters}
        self._milters = tuple(
            kept.get(settings) or ConfiguredMilter(settings) for settings in milters
        )

    @property
    def down(self) -> dict[str, str]:
        """The milters whose last connection failed, by name, and why."""
        return {milter.settings.name: milter.fault for milter in self._milters if milter.fault}

    async def probe(self) -> None:
        """Find out which milters are up, also without mail; `down` has the result."""
        await asyncio.gather(*(milter.probe() for milter in self._milters))

    def session(self, role: MilterRole) -> "FilterSession | None":
        """Return a session of the milters of this role, None if there are none."""
        most = STRANGERS_MAX if role == "relay" else CONNECTIONS_MAX
        connections = [
            MilterConnection(milter, most)
            for milter in self._milters
            if role in milter.settings.role
        ]
        return FilterSession(connections, self._hostname, self._observe) if connections else None


class FilterSession:
    """The milters of one SMTP session.

    The methods are called for the commands of the client, one at a time: first connect(), and
    always close() at the end. After a fault of a milter, `when_down` decides about one message; the
    next one begins with a new connection. Names of macros are without braces. A macro without a
    value is not sent.
    """

    def __init__(
        self, connections: Sequence[MilterConnection], hostname: str, observe: Observe
    ) -> None:
        self._connections = [*connections]
        self._greeting: dict[FilterStage, tuple[bytes, Mapping[str, str]]] = {}  # connect and HELO
        self._observe = observe
        self._of_session: dict[str, str] = {"j": hostname, "v": "Relay"}
        self._macros: dict[str, str] = {}  # of the session and the message
        self._said: dict[str, MilterSaid] = {}  # about the message, by the milter's name
        self._said_of_session: dict[str, MilterSaid] = {}  # about each message of the session
        self._discarded_by = ""

    async def connect(self, client: FilterClient) -> FilterAnswer:
        """Open the connections and announce the client. A refusal is the answer to each command."""
        name = client.name or "unknown"
        self._of_session |= {
            "client_name": name,
            "client_addr": client.address,
            "client_ptr": name,
            "client_port": str(client.port),
            "_": f"{name} [{client.address}]",
            **client.macros,
        }
        self._macros = dict(self._of_session)
        data = codec.text_of(client.name or f"[{client.address}]")
        if client.address:
            family = b"6" if ":" in client.address else b"4"
            port = client.port.to_bytes(2, "big")
            data += family + port + codec.text_of(client.address)
        else:
            data = codec.text_of(client.name or "localhost") + b"U"
        return await self._ask_all(FilterStage.CONNECT, data)

    async def helo(self, name: str, macros: Mapping[str, str] | None = None) -> FilterAnswer:
        """Announce HELO or EHLO, which ends a message that has begun."""
        self.abort()
        self._of_session |= macros or {}
        self._macros = dict(self._of_session)
        return await self._ask_all(FilterStage.HELO, codec.text_of(name))

    async def mail(
        self, address: str, parameters: Sequence[str] = (), macros: Mapping[str, str] | None = None
    ) -> FilterAnswer:
        """Begin a message. Macros: i, auth_type, auth_authen, auth_author, mail_host, …"""
        self.abort()
        await self._begin_again()
        self._macros = {**self._of_session, "mail_addr": address, **(macros or {})}
        return await self._ask_all(FilterStage.MAIL, codec.text_of(f"<{address}>", *parameters))

    async def rcpt(
        self, address: str, parameters: Sequence[str] = (), macros: Mapping[str, str] | None = None
    ) -> FilterAnswer:
        """Announce a recipient; a reply refuses this recipient alone. Macros: rcpt_host, …"""
        self._macros |= {"rcpt_addr": address, **(macros or {})}
        return await self._ask_all(FilterStage.RCPT, codec.text_of(f"<{address}>", *parameters))

    async def data(self) -> FilterAnswer:
        """Announce DATA, or the first BDAT."""
        return await self._ask_all(FilterStage.DATA, b"")

    async def message(
        self, content: ParsedContent, store: NewBodies, macros: Mapping[str, str] | None = None
    ) -> FilterVerdict:
        """Ask about header and body, without fields that Relay adds, after the final dot.

        Raises UnreadableError, and what `store` raises if the disk is full. Then the files of the
        message are removed.
        """
        self._macros |= macros or {}
        verdict = FilterVerdict(content, store)
        until = now_s() + _ALL_S
        try:
            for connection in self._connections if not self._discarded_by else ():
                verdict.answer = await self._ask_about(verdict, connection, until)
                if verdict.answer.reply or self._discarded_by:
                    break
        except BaseException:
            verdict.release()
            raise
        finally:
            said = {**self._said_of_session, **self._said}
            names = (connection.dialogue.name for connection in self._connections)
            verdict.said = tuple(said[name] for name in names if name in said)
            verdict.discarded_by = self._discarded_by
            self.abort()
        return verdict

    def abort(self) -> None:
        """End a message that was not decided: RSET, a refused DATA, the end of a transaction."""
        for connection in self._connections:
            connection.abort()
        self._said.clear()
        self._discarded_by = ""

    def close(self) -> None:
        """End the session, without waiting."""
        for connection in self._connections:
            connection.close()

    async def _begin_again(self) -> None:
        """Greet the milters that had a fault on new connections: it concerns one message only."""
        until = now_s() + _ALL_S
        for place, old in enumerate(self._connections):
            if old.dialogue.is_down:
                new = self._connections[place] = MilterConnection(old.milter, old.connections_max)
                await new.open(until)
                for stage, (data, macros) in self._greeting.items():
                    await new.ask(stage, data, macros, until=until)

    async def _ask_all(self, stage: FilterStage, data: bytes) -> FilterAnswer:
        """Send a command to each milter, until one refuses it or discards the message."""
        until = now_s() + _ALL_S
        if stage in (FilterStage.CONNECT, FilterStage.HELO):
            self._greeting[stage] = data, self._macros
        for connection in self._connections if not self._discarded_by else ():
            began_s = now_s()
            if stage is FilterStage.CONNECT:
                await connection.open(until)
            answer = await connection.ask(stage, data, self._macros, until=until)
            self._heard(connection, stage, answer, began_s=began_s)
            if answer.reply or self._discarded_by:
                return answer
        return GO_ON

    async def _ask_about(
        self, verdict: FilterVerdict, connection: MilterConnection, until: float
    ) -> FilterAnswer:
        """Ask a milter about a message, and apply its changes if it accepts the message."""
        dialogue, began_s = connection.dialogue, now_s()
        if dialogue.is_done:
            return dialogue.session or GO_ON
        answer, stage = GO_ON, FilterStage.HEADER
        changes: tuple[str, ...] = ()
        body = NewBody(verdict.store)
        with connection.guarded():
            try:
                async with aclosing(_commands(verdict, dialogue)) as commands:
                    async for stage, data in commands:
                        answer = await connection.ask(
                            stage, data, self._macros, until=until, take=body.add
                        )
                        if answer.answer != GO_ON.answer:
                            break
                if stage is FilterStage.END_OF_MESSAGE and dialogue.session is None:
                    if answer.answer in _ACCEPTED:
                        changes = await verdict.change(dialogue, body)
                    connection.milter.works()
                    dialogue.end_message()
            finally:
                verdict.files += body.files
        answer = dialogue.session or answer
        self._heard(connection, stage, answer, began_s=began_s, changes=changes)
        return answer

    def _heard(
        self,
        connection: MilterConnection,
        stage: FilterStage,
        answer: FilterAnswer,
        *,
        began_s: float,
        changes: tuple[str, ...] = (),
    ) -> None:
        """Record an answer, unless it is a repetition or only lets a command pass."""
        name, session = connection.dialogue.name, connection.dialogue.session
        is_down = connection.dialogue.is_down
        answers = self._said if session is None or is_down else self._said_of_session
        is_last = stage is FilterStage.END_OF_MESSAGE or answer.answer != GO_ON.answer
        is_told = connection.is_told if is_down else session is not None and name in answers
        if is_last and not is_told:
            connection.is_told = is_down
            reason = connection.milter.fault if is_down else answer.reply
            answers[name] = MilterSaid(name, stage.value, answer.answer, reason, changes)
            self._observe(name, answer.answer, now_s() - began_s)
        if answer.answer == "discard":
            self._discarded_by = name


async def _commands(
    verdict: FilterVerdict, dialogue: MilterDialogue
) -> AsyncGenerator[tuple[FilterStage, bytes]]:
    """Yield the stages and data of a message that the milter wants."""
    for name, value in verdict.shown.fields(leading_blank=dialogue.leading_blank):
        if not dialogue.wants(FilterStage.HEADER):
            break
        yield FilterStage.HEADER, codec.text_of(name, value)
    yield FilterStage.END_OF_HEADER, b""
    chunks = verdict.chunks()
    while dialogue.wants(FilterStage.BODY) and (chunk := await next_block(chunks)):
        yield FilterStage.BODY, chunk
    yield FilterStage.END_OF_MESSAGE, b""
