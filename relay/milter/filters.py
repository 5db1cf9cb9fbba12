"""The milters of the configuration, in their order, and what they say in an SMTP session.

The first one that refuses a command answers the client, and those after it do not hear that
command. Header and body go to one after the other, each sees the changes of those before it. After
ten minutes a message is decided, whatever progress a milter reports: no client waits longer.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

from msgspec import Struct

from relay.message.header import ParsedContent
from relay.milter import codec
from relay.milter.codec import MilterFaultError, PathChange
from relay.milter.connection import ConfiguredMilter, MilterConnection, now_s
from relay.milter.dialogue import GO_ON, Decision, FilterStage
from relay.milter.filtered_message import FilteredMessage, MilterSaid, NewBodies, NewBody
from relay.settings.tree import Milter, MilterRole

_ALL_S: Final = 600.0  # RFC 5321 4.5.3.2.6: so long a client waits for the final dot
_ACCEPTED: Final = ("continue", "accept")
Observe = Callable[[str, str, float], None]  # a milter's name, its answer, after how many seconds


class FilterClient(Struct, frozen=True):
    """The client of a session."""

    name: str = ""  # its verified host name; "": unknown
    address: str = ""  # its IP address; "": it has none
    port: int = 0
    macros: Mapping[str, str] = {}  # others of the connection, such as "daemon_name"


class FilterAnswer(Struct, frozen=True):
    """What the milters say to a command."""

    reply: str = ""  # for the client: lines with CRLF between them; "": go on
    milter: str = ""  # the name of the one that says it
    answer: str = ""  # reject, tempfail, reply, shutdown, down

    @property
    def closes(self) -> bool:
        """Whether the session ends with this reply."""
        return self.reply.startswith("421")


NO_OBJECTION: Final = FilterAnswer()


class FilterVerdict(Struct, frozen=True):
    """What the milters decide about a message. With a reply or `discarded_by` nothing changes.

    The caller calls release() when the message was accepted or refused.
    """

    content: ParsedContent  # with the changes
    answer: FilterAnswer = NO_OBJECTION  # with a reply the message is refused
    discarded_by: str = ""  # the milter for which it is thrown away: 250, and nobody gets it
    top: bytes = b""  # fields that go before Relay's own Received
    sender: PathChange | None = None  # another reverse-path
    added: tuple[PathChange, ...] = ()  # recipients
    removed: tuple[str, ...] = ()  # recipients that the client named, as canonical addresses
    quarantine: str | None = None  # the reason for which it is held, which may be ""
    quarantined_by: str = ""  # a milter
    said: tuple[MilterSaid, ...] = ()  # one of each milter that was asked, in their order
    release: Callable[[], None] = lambda: None  # see above


class MilterSet:
    """The milters of a process. A reload replaces them; sessions keep those with which they began.

    `observe` is told of each refusal, and of each decision about a message.
    """

    def __init__(
        self, milters: Sequence[Milter], *, hostname: str, observe: Observe = lambda *_: None
    ) -> None:
        self._hostname = hostname
        self._observe = observe
        self._milters: tuple[ConfiguredMilter, ...] = ()
        self.replace(milters)

    def replace(self, milters: Sequence[Milter]) -> None:
        """Use these milters from now on. Those that stay keep the number of their connections."""
        kept = {one.settings: one for one in self._milters}
        self._milters = tuple(kept.get(one) or ConfiguredMilter(one) for one in milters)

    @property
    def down(self) -> dict[str, str]:
        """The milters whose last session failed, by name, and why."""
        return {one.settings.name: one.fault for one in self._milters if one.fault}

    def session(self, role: MilterRole) -> "FilterSession | None":
        """Return a session of the milters of this role, None if there are none."""
        milters = [one for one in self._milters if role in one.settings.role]
        return FilterSession(milters, self._hostname, self._observe) if milters else None


class FilterSession:
    """The milters of one SMTP session. Its commands are called as the client gives them, one at a
    time, connect() first; close() always at the end.

    Names of macros are without braces. A macro without a value is not sent.
    """

    def __init__(
        self, milters: Sequence[ConfiguredMilter], hostname: str, observe: Observe
    ) -> None:
        self._connections = [MilterConnection(one) for one in milters]
        self._observe = observe
        self._of_session: dict[str, str] = {"j": hostname, "v": "Relay"}
        self._macros: dict[str, str] = {}  # of the session and the message
        self._said: dict[str, MilterSaid] = {}  # about the message, by the milter's name
        self._said_of_session: dict[str, MilterSaid] = {}  # what holds for each message
        self._discarded_by = ""

    async def connect(self, client: FilterClient) -> FilterAnswer:
        """Open the connections and announce the client. A refusal is repeated by each command."""
        shown = client.name or "unknown"
        self._of_session |= {
            "client_name": shown, "client_addr": client.address, "client_ptr": shown,
            "client_port": str(client.port), "_": f"{shown} [{client.address}]", **client.macros,
        }  # fmt: skip
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
        self._macros = {**self._of_session, "mail_addr": address, **(macros or {})}
        answer = await self._ask_all(FilterStage.MAIL, codec.text_of(f"<{address}>", *parameters))
        if answer.reply:
            self.abort()
        return answer

    async def rcpt(
        self, address: str, parameters: Sequence[str] = (), macros: Mapping[str, str] | None = None
    ) -> FilterAnswer:
        """Announce a recipient; a reply refuses this recipient alone. Macros: rcpt_host, …"""
        self._macros |= {"rcpt_addr": address, **(macros or {})}
        return await self._ask_all(FilterStage.RCPT, codec.text_of(f"<{address}>", *parameters))

    async def data(self) -> FilterAnswer:
        """Announce DATA, or the first BDAT."""
        return await self._ask_all(FilterStage.DATA, b"")

    async def unknown(self, line: str) -> FilterAnswer:
        """Announce a command that Relay does not know."""
        return await self._ask_all(FilterStage.UNKNOWN, codec.text_of(line))

    async def message(self, content: ParsedContent, store: NewBodies) -> FilterVerdict:
        """Ask about header and body, which have no fields of Relay's own, after the final dot.

        Raises UnreadableError, and what `store` raises where the disk is full; nothing is left of
        the message then.
        """
        message = FilteredMessage(content, store)
        until = now_s() + _ALL_S
        answer = NO_OBJECTION
        try:
            for one in self._connections if not self._discarded_by else ():
                answer = await self._ask_about(message, one, until)
                if answer.reply or self._discarded_by:
                    break
        except BaseException:
            message.discard_files()
            self.abort()
            raise
        heard = {**self._said_of_session, **self._said}
        said = tuple(heard[one.name] for one in self._connections if one.name in heard)
        discarded_by = self._discarded_by
        self.abort()
        if answer.reply or discarded_by:
            message.discard_files()
            return FilterVerdict(content, answer, discarded_by, said=said)
        return FilterVerdict(
            content=ParsedContent(message.shown.header, message.rest),
            top=message.shown.top_octets,
            sender=message.sender,
            added=tuple(message.added),
            removed=tuple(message.removed),
            quarantine=message.quarantine,
            quarantined_by=message.quarantined_by,
            said=said,
            release=message.discard_files,
        )

    def abort(self) -> None:
        """End a message that was not decided: RSET, a refused DATA, the end of a transaction."""
        for one in self._connections:
            one.abort()
        self._said.clear()
        self._discarded_by = ""

    def close(self) -> None:
        """End the session, without waiting."""
        for one in self._connections:
            one.close()

    async def _ask_all(self, stage: FilterStage, data: bytes) -> FilterAnswer:
        """Give a command to each milter, until one answers for all."""
        until = now_s() + _ALL_S
        for one in self._connections if not self._discarded_by else ():
            started = now_s()
            if stage is FilterStage.CONNECT:
                await one.open(until)
            decision = await one.ask(stage, data, self._macros, until=until)
            answer = self._heard(one, stage, decision, started=started)
            if answer.reply or self._discarded_by:
                return answer
        return NO_OBJECTION

    async def _ask_about(
        self, message: FilteredMessage, one: MilterConnection, until: float
    ) -> FilterAnswer:
        """Ask a milter about a message, and apply its changes if it accepts the message."""
        dialogue, started = one.dialogue, now_s()
        if dialogue.is_done:
            return self._heard(one, FilterStage.MAIL, dialogue.session or GO_ON, started=started)
        decision, stage = GO_ON, FilterStage.HEADER
        described: tuple[str, ...] = ()
        body = NewBody(message.store)
        try:
            async with aclosing(_commands(message, one)) as commands:
                async for stage, data in commands:
                    decision = await one.ask(stage, data, self._macros, until=until, take=body.add)
                    if decision.word != GO_ON.word:
                        break
            if stage is FilterStage.END_OF_MESSAGE and dialogue.session is None:
                if decision.word in _ACCEPTED:
                    described = await message.change(one, body)
                one.milter.decided()
                dialogue.end_message()
        except MilterFaultError as error:
            decision = one.failed(error)
        finally:
            message.files += body.files
        return self._heard(one, stage, decision, started=started, changes=described)

    def _heard(
        self,
        one: MilterConnection,
        stage: FilterStage,
        decision: Decision,
        *,
        started: float,
        changes: Sequence[str] = (),
    ) -> FilterAnswer:
        """Record a decision, unless it is repeated or only lets a command pass; return it."""
        name, session = one.name, one.dialogue.session
        is_final = stage is FilterStage.END_OF_MESSAGE or decision.word != GO_ON.word
        if is_final and not (session and name in self._said_of_session):
            reason = one.milter.fault if decision.word == "down" else decision.reply
            said = MilterSaid(name, stage.value, decision.word, reason, tuple(changes))
            (self._said if session is None else self._said_of_session)[name] = said
            self._observe(name, decision.word, now_s() - started)
        if decision.word == "discard":
            self._discarded_by = name
        return FilterAnswer(decision.reply, name, decision.word) if decision.reply else NO_OBJECTION


async def _commands(
    message: FilteredMessage, one: MilterConnection
) -> AsyncGenerator[tuple[FilterStage, bytes]]:
    """Yield what a milter is sent about a message, unless it wants no more of that."""
    dialogue = one.dialogue
    for name, value in message.shown.fields(leading_blank=dialogue.leading_blank):
        if not dialogue.wants(FilterStage.HEADER):
            break
        yield FilterStage.HEADER, codec.text_of(name, value)
    yield FilterStage.END_OF_HEADER, b""
    read = partial(next, message.chunks(), b"")
    while dialogue.wants(FilterStage.BODY):
        chunk = read() if isinstance(message.rest, bytes) else await asyncio.to_thread(read)
        if not chunk:
            break
        yield FilterStage.BODY, chunk
    yield FilterStage.END_OF_MESSAGE, b""
