"""The milters of the configuration, in their order, and what they say in an SMTP session.

A milter hears of a client when this gives MAIL, with connect and HELO. The first milter that
refuses a command answers the client, and the milters after it do not get that command. Header and
body are sent to one milter after the other; each sees the changes of those before it. After ten
minutes a message is decided, even if a milter reports progress: no client waits longer.
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
from relay.transport.milter.connection import FOR_USERS, ConfiguredMilter, MilterConnection, now_s
from relay.transport.milter.dialogue import (
    GO_ON,
    NO_PLACE,
    FilterAnswer,
    FilterStage,
    MilterDialogue,
)
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
        spare = FOR_USERS if role == "relay" else 0
        connections = [
            MilterConnection(milter, spare)
            for milter in self._milters
            if role in milter.settings.role
        ]
        return FilterSession(connections, self._hostname, self._observe) if connections else None


class FilterSession:
    """The milters of one SMTP session.

    The methods are called for the commands of the client, one at a time: first connect(), and
    always close() at the end. The connections are opened at MAIL, and kept for the next message
    while at least half of all are free. After a fault of a milter, `when_down` decides about one
    message. What a milter decides about the session at connect and HELO stays. Names of macros are
    without braces. A macro without a value is not sent.
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

    def connect(self, client: FilterClient) -> None:
        """Take note of the client, for the milters that hear a message of it."""
        name = client.name or "unknown"
        self._of_session |= {
            "client_name": name,
            "client_addr": client.address,
            "client_ptr": name,
            "client_port": str(client.port),
            "_": f"{name} [{client.address}]",
            **client.macros,
        }
        data = codec.text_of(client.name or f"[{client.address}]")
        if client.address:
            family = b"6" if ":" in client.address else b"4"
            port = client.port.to_bytes(2, "big")
            data += family + port + codec.text_of(client.address)
        else:
            data = codec.text_of(client.name or "localhost") + b"U"
        self._greeting[FilterStage.CONNECT] = data, dict(self._of_session)

    def helo(self, name: str, macros: Mapping[str, str] | None = None) -> None:
        """Take note of HELO or EHLO, which ends a message that has begun."""
        self.close()
        self._of_session |= macros or {}
        self._greeting[FilterStage.HELO] = codec.text_of(name), dict(self._of_session)

    async def mail(
        self, address: str, parameters: Sequence[str] = (), macros: Mapping[str, str] | None = None
    ) -> FilterAnswer:
        """Begin a message; a refusal at connect or HELO is the answer too. Macros: i, auth_type,
        auth_authen, auth_author, mail_host, …
        """
        self._end_message()
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

    @property
    def is_crowded(self) -> bool:
        """Whether it has a connection of which fewer than half are free."""
        return any(
            connection.is_open and connection.milter.is_crowded for connection in self._connections
        )

    def abort(self) -> None:
        """End a message that was not decided: RSET, a refused DATA, the end of a transaction."""
        self._end_message()
        self.rest()

    def rest(self) -> None:
        """Close connections of which fewer than half are free, until the next message."""
        for connection in self._connections:
            if connection.milter.is_crowded:
                connection.close()

    def close(self) -> None:
        """Close the connections, without waiting, at the end of the session or at HELO."""
        self._end_message()
        for connection in self._connections:
            connection.close()

    def _end_message(self) -> None:
        for connection in self._connections:
            connection.abort()
        self._said.clear()
        self._discarded_by = ""

    async def _ask_all(self, stage: FilterStage, data: bytes) -> FilterAnswer:
        """Send a command to each milter, until one refuses it or discards the message."""
        until = now_s() + _ALL_S
        for place in range(len(self._connections)) if not self._discarded_by else ():
            if stage is FilterStage.MAIL and not await self._is_connected(place, until):
                return NO_PLACE
            connection, began_s = self._connections[place], now_s()
            answer = await connection.ask(stage, data, self._macros, until=until)
            self._heard(connection, stage, answer, began_s=began_s)
            if answer.reply or self._discarded_by:
                return answer
        return GO_ON

    async def _is_connected(self, place: int, until: float) -> bool:
        """Greet a milter on a new connection, unless it has one or has decided about the session.

        Return False if Relay has no connection for the account or client.
        """
        old = self._connections[place]
        if old.is_open or (old.dialogue.session is not None and not old.dialogue.is_down):
            return True
        new = self._connections[place] = MilterConnection(old.milter, old.spare)
        client = self._macros.get("auth_authen") or self._of_session["client_addr"]
        if not await new.take_place(client):
            return False
        began_s = now_s()
        await new.open(until)
        for stage, (data, macros) in self._greeting.items():
            answer = await new.ask(stage, data, macros, until=until)
            self._heard(new, stage, answer, began_s=began_s)
        return True

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
