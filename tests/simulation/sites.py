"""Remote sites: good, slow, dead, greylisting, lying; each keeps a durable record of what it took.

`taken` is what a site's mailboxes have, whatever it answered and whoever heard it. Never; a
session that breaks off ends quietly. See RFC 5321, 2920; RFC 3461 by keyword only.
"""

import asyncio
import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.simulation.network import Host
from tests.simulation.world import World

TOKEN = re.compile(rb"^Subject: .*?\b(T\d+(?:\.\d+)?)\b", re.MULTILINE)
_QUEUE_ID = re.compile(rb"^Received:[^;]*\bid ([0-9a-z]{16})\b", re.MULTILINE)
_MESSAGE_ID = re.compile(rb"^Message-ID: *(\S+)", re.MULTILINE | re.IGNORECASE)
_HEADER_BYTES = 4000
NEVER = float("inf")


@dataclass(frozen=True)
class Taken:
    """One copy for one recipient."""

    token: str  # "" for a report
    name: str  # as name_of()
    address: str
    reverse_path: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class ConnectFailure:
    """One 5yz reply; `address` and `name` (as name_of()) are "" where the reply was to no RCPT and
    to no content.
    """

    reply: str
    reverse_path: str = ""
    address: str = ""
    name: str = ""


@dataclass(frozen=True)
class Manner:
    """How a host behaves; chances are from 0 to 1, times in seconds."""

    name: str = "healthy"
    delay_s: float = 0.0  # before each reply, at most
    refuses_calls: float = 0.0
    ignores_calls: float = 0.0
    period_s: float = 0.0  # down for each second half of it
    banner: str = ""
    hello: str = ""
    extensions: tuple[str, ...] = ("PIPELINING", "8BITMIME", "DSN", "ENHANCEDSTATUSCODES")
    closes_after: tuple[str, ...] = ()  # these stages close the connection, by chance
    closes: float = 0.0
    greylists_s: float = 0.0
    rejects: float = 0.0  # of the recipients, always the same
    defers: float = 0.0  # of the recipients, by chance
    recipients_max: int = 1000
    data_reply: str = ""
    dot_reply: str = ""
    busy_after: int = 0  # transactions on a connection, then 421
    connections_max: int = 1000  # above: 421 in the banner
    drops_dot: float = 0.0  # closes instead of a reply to the final dot
    keeps_dropped: float = 0.5  # and has the message all the same
    late_s: float = 0.0  # this long after the final dot
    nonsense: float = 0.0  # a reply nobody can read


MANNERS = (
    Manner(),
    Manner(),
    Manner("plain", extensions=()),
    Manner("slow", delay_s=15.0),
    Manner("dead", refuses_calls=1.0),
    Manner("silent", ignores_calls=1.0),
    Manner("mute", delay_s=2000.0),
    Manner("flapping", period_s=900.0),
    Manner("unreliable", refuses_calls=0.3, ignores_calls=0.1, closes=0.1,
           closes_after=("EHLO", "MAIL", "RCPT", "DATA", "CONTENT")),
    Manner("greylisting", greylists_s=200.0),
    Manner("rejecting some", rejects=0.4),
    Manner("rejecting all", rejects=1.0),
    Manner("rejecting content", dot_reply="554 5.7.1 not this"),
    Manner("refusing sessions", banner="554 5.3.2 no mail here"),
    Manner("full", dot_reply="452 4.3.1 later"),
    Manner("deferring some", defers=0.5),
    Manner("few at once", recipients_max=2),
    Manner("busy", busy_after=1, connections_max=1),
    Manner("dropping", drops_dot=0.4),
    Manner("dropping all it has", drops_dot=0.5, keeps_dropped=1.0),
    Manner("cutting content", closes=0.5, closes_after=("CONTENT",)),
    Manner("late", late_s=700.0),
    Manner("wrong codes", nonsense=0.2),
    Manner("wrong answer to DATA", data_reply="250 2.0.0 fine"),
    Manner("closing", closes=1.0, closes_after=("CONNECT",)),
    Manner("hello refused", hello="421 4.3.2 not now"),
)  # fmt: skip

# Where nobody waits between a message's turn and its MAIL, and no MAIL is repeated.
AT_ONCE = frozenset(
    ("healthy", "plain", "greylisting", "rejecting some", "rejecting all", "rejecting content",
     "full", "deferring some", "dropping", "dropping all it has")
)  # fmt: skip


def name_of(content: bytes) -> str:
    """The queue id of a message, or of a report its Message-ID."""
    head = content.partition(b"\r\n\r\n")[0]
    found = _QUEUE_ID.search(head) or _MESSAGE_ID.search(head)
    return found[1].decode() if found else ""


class Broken(Exception):  # noqa: N818 - what a site does, and no error
    """The site closes the connection now."""


class Site:
    """One host. `on_dot(connection, queue_id, addresses)` hears of every final dot at once, and
    `on_mail(name)` of every transaction that begins.
    """

    def __init__(
        self,
        world: World,
        name: str,
        manner: Manner,
        *,
        on_dot: Callable[[str, str, list[str]], None],
        on_mail: Callable[[str], None],
    ) -> None:
        self.name = name
        self.manner = manner
        self.taken: list[Taken] = []
        self.refusals: list[ConnectFailure] = []
        self.open = 0
        self._world = world
        self._rng: Random = world.rng
        self._on_dot = on_dot
        self.on_mail = on_mail
        self._first_seen: dict[tuple[str, str], float] = {}
        self._sessions = 0

    def host(self) -> Host:
        """Where calls to it go."""
        context = self._world.outside
        return Host(self.name, self._protocol, context, self._rings)

    def _protocol(self) -> asyncio.BaseProtocol:
        loop = self._world
        reader = asyncio.StreamReader(loop=loop)
        return asyncio.StreamReaderProtocol(reader, self._session, loop=loop)

    def _rings(self) -> float:
        manner, chance = self.manner, self._rng.random
        self._world.reached[f"site: {manner.name}"] += 1
        if manner.period_s and self._world.time() % manner.period_s > manner.period_s / 2:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        if chance() < manner.refuses_calls:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        return NEVER if chance() < manner.ignores_calls else manner.delay_s * chance()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self._sessions += 1
        try:
            await _Session(self, self._sessions, reader, writer).run()
        except (OSError, Broken, asyncio.IncompleteReadError):
            pass  # it went away, or is sent away
        finally:
            self.open -= 1
            writer.close()

    def take(self, session: "_Session", content: bytes) -> None:
        """Make a copy for each recipient durable."""
        token = TOKEN.search(content[:_HEADER_BYTES])
        for address in session.recipients:
            self.taken.append(
                Taken(
                    token[1].decode() if token and session.reverse_path else "",
                    name_of(content),
                    address,
                    session.reverse_path,
                    content,
                )
            )

    def verdict(self, reverse_path: str, address: str) -> str:
        """The reply to a RCPT."""
        manner = self.manner
        if manner.rejects and sum(address.encode()) % 10 < 10 * manner.rejects:
            return "550 5.1.1 no such user"
        if manner.greylists_s:
            first = self._first_seen.setdefault((reverse_path, address), self._world.time())
            if self._world.time() - first < manner.greylists_s:
                return "450 4.7.1 greylisted"
        if self._rng.random() < manner.defers:
            return "451 4.2.1 not now"
        return "250 2.1.5 ok"


class _Session:
    def __init__(
        self, site: Site, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.site = site
        self.number = number
        self.recipients: list[str] = []
        self.reverse_path = ""
        self._reader = reader
        self._writer = writer
        self._transactions = 0

    async def run(self) -> None:
        manner = self.site.manner
        self._may_close("CONNECT")
        if self.site.open > manner.connections_max:
            await self._say("421 4.7.0 too many connections")
            return
        self._note_refusal(manner.banner)
        await self._say(manner.banner or f"220 {self.site.name} ESMTP")
        while True:
            line = (await self._reader.readuntil(b"\r\n")).decode("utf-8", "replace").strip()
            self.site._world.note(self.site.name, self.number, "<", line[:80])
            verb = line.split(" ")[0].partition(":")[0].upper()
            self._may_close(verb)
            if verb == "MAIL":
                self.site.on_mail(self.site.name)
            if verb == "QUIT":
                await self._say("221 2.0.0 bye")
                return
            await self._say(await self._answer(verb, line))
            if verb == "DATA" and self._goes_on:
                await self._content()

    _goes_on = False

    async def _answer(self, verb: str, line: str) -> str:
        manner = self.site.manner
        self._goes_on = False
        if self.site._rng.random() < manner.nonsense:
            return "9x9 what?"
        match verb:
            case "EHLO":
                words = (self.site.name, *manner.extensions)
                said = [f"250-{word}" for word in words[:-1]] + [f"250 {words[-1]}"]
                return manner.hello or "\r\n".join(said)
            case "HELO" | "RSET":
                self.recipients = []
                return "250 2.0.0 ok"
            case "MAIL":
                if manner.busy_after and self._transactions >= manner.busy_after:
                    await self._say("421 4.7.0 enough for now")
                    raise Broken
                self.recipients = []
                self.reverse_path = line.partition("<")[2].partition(">")[0]
                return "250 2.1.0 ok"
            case "RCPT":
                address = line.partition("<")[2].partition(">")[0]
                if len(self.recipients) >= manner.recipients_max:
                    return "452 4.5.3 too many recipients"
                said = self.site.verdict(self.reverse_path, address)
                if said.startswith("250"):
                    self.recipients.append(address)
                self._note_refusal(said, address)
                return said
            case "DATA":
                if not self.recipients:
                    return "503 5.5.1 no recipients"
                self._goes_on = not manner.data_reply
                return manner.data_reply or "354 go on"
        return "500 5.5.2 what?"

    async def _content(self) -> None:
        site, manner = self.site, self.site.manner
        self._may_close("CONTENT")
        content = await self._reader.readuntil(b"\r\n.\r\n")
        content = content[:-3].replace(b"\r\n..", b"\r\n.")
        site._on_dot(f"{site.name}/{self.number}", name_of(content), self.recipients)
        self._transactions += 1
        if site._rng.random() < manner.drops_dot:
            if site._rng.random() < manner.keeps_dropped:
                site.take(self, content)
            raise Broken
        if manner.dot_reply:
            for address in self.recipients:
                self._note_refusal(manner.dot_reply, address, name_of(content))
            await self._say(manner.dot_reply)
            return
        if manner.late_s and site._rng.random() < 0.6:
            await asyncio.sleep(manner.late_s)
        site.take(self, content)
        self.recipients = []
        await self._say("250 2.0.0 taken")

    def _note_refusal(self, reply: str, address: str = "", name: str = "") -> None:
        """Keep a reply that is about to be said, if it is a 5yz."""
        if reply.startswith("5"):
            self.site.refusals.append(ConnectFailure(reply, self.reverse_path, address, name))

    def _may_close(self, stage: str) -> None:
        manner = self.site.manner
        if stage in manner.closes_after and self.site._rng.random() < manner.closes:
            raise Broken

    async def _say(self, reply: str) -> None:
        if delay_s := self.site.manner.delay_s:
            await asyncio.sleep(delay_s * self.site._rng.random())
        self.site._world.note(self.site.name, self.number, ">", reply[:60])
        self._writer.write(reply.encode() + b"\r\n")
        await self._writer.drain()
