"""Remote sites: good, slow, dead, greylisting, lying; each keeps a durable record of what it took.

`taken` is what a site's mailboxes have, whatever it answered and who heard it. The sessions are
those of the simulated internet's hosts.
"""

import asyncio
import errno
import re
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from relay.development.internet.behaviour import Action, Moment, ReceivedMail
from relay.development.internet.smtp_host import HostOptions, SmtpHost
from tests.simulation.network import Host, TlsSession
from tests.simulation.world import World
from tests.support.manual_clock import ManualClock

TOKEN = re.compile(rb"^Subject: .*?\b(T\d+(?:\.\d+)?)\b", re.MULTILINE)
_QUEUE_ID = re.compile(rb"^Received:[^;]*\bid ([0-9a-z]{16})\b", re.MULTILINE)
_MESSAGE_ID = re.compile(rb"^Message-ID: *(\S+)", re.MULTILINE | re.IGNORECASE)
_HEADER_BYTES = 4000
LAX_FIELD = b"TLS-Required: No"
NEVER = float("inf")
NO_SUCH_USER = "550 5.1.1 no such user"
_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # which offers it; the network's is another


@dataclass(frozen=True)
class Taken:
    """One copy for one recipient."""

    token: str  # "" for a report
    name: str  # as name_of()
    address: str
    reverse_path: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Session:
    """What a host knows of a session, and of the mail that came in it."""

    is_logged_in: bool
    tls: TlsSession | None
    is_lax: bool  # the mail says that it is to go without TLS rather than not at all


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
    refuses_logins: float = 0.0
    slow_for: float = 0.0  # of the recipients, always the same: takes _SLOW_S after the final dot
    drops_every: int = 0  # so many final dots, as drops_dot
    lmtp: bool = False  # each reply to a final dot is for one recipient
    full: float = 0.0  # of the recipients, always the same: rejected after the final dot
    busy: float = 0.0  # of the recipients, by chance: deferred after the final dot
    certificate: str = ""  # of network.CERTIFICATES; "": no STARTTLS


MANNERS = (
    Manner(),
    Manner(),
    Manner("plain", extensions=()),
    Manner("slow", delay_s=15.0),
    Manner("dead", refuses_calls=1.0),
    Manner("silent", ignores_calls=1.0),
    Manner("mute", delay_s=2000.0),
    Manner("flapping", period_s=900.0),
    Manner(
        "unreliable",
        refuses_calls=0.3,
        ignores_calls=0.1,
        closes=0.1,
        closes_after=("EHLO", "MAIL", "RCPT", "DATA", "CONTENT"),
    ),
    Manner("greylisting", greylists_s=200.0),
    Manner("rejecting some", rejects=0.4),
    Manner("rejecting all", rejects=1.0),
    Manner("rejecting content", dot_reply="554 5.7.1 not this"),
    Manner("refusing sessions", banner="554 5.3.2 no mail here"),
    Manner("full", dot_reply="452 4.3.1 later"),
    Manner("deferring some", defers=0.5),
    Manner("few at once", recipients_max=2, extensions=("PIPELINING", "8BITMIME")),
    Manner("busy", busy_after=1, connections_max=1),
    Manner("dropping", drops_dot=0.4),
    Manner("dropping all it has", drops_dot=0.5, keeps_dropped=1.0),
    Manner("cutting content", closes=0.5, closes_after=("CONTENT",)),
    Manner("late", late_s=700.0),
    Manner("wrong codes", nonsense=0.2),
    Manner("wrong answer to DATA", data_reply="250 2.0.0 fine"),
    Manner("closing", closes=1.0, closes_after=("CONNECT",)),
    Manner("hello refused", hello="421 4.3.2 not now"),
)

REFUSING_LOGINS = Manner("refusing logins", refuses_logins=0.5)  # for the gate
LOGIN = ("relay", "secret")
CROWDED = (  # for mail to one host at once, some of it slow
    Manner("slow for some", slow_for=0.8),
    Manner("one connection at once", slow_for=0.5, connections_max=1),
    Manner("dropping every third", slow_for=0.5, drops_every=3),
)
BOXED = (  # for mail by LMTP
    Manner("LMTP", lmtp=True),
    Manner("LMTP, hanging up", lmtp=True, drops_dot=0.3, extensions=("PIPELINING",)),
    Manner("LMTP, full or busy", lmtp=True, full=0.2, busy=0.4, extensions=("8BITMIME",)),
    Manner("LMTP, late", lmtp=True, late_s=700.0, busy=0.2),
)
_SLOW_S = 110.0  # nearly the time-out of a reply to a final dot

# Where nobody waits between a message's turn and its MAIL, and no MAIL is repeated.
AT_ONCE = frozenset(
    (
        "healthy",
        "plain",
        "greylisting",
        "rejecting some",
        "rejecting all",
        "rejecting content",
        "full",
        "deferring some",
        "dropping",
        "dropping all it has",
    )
)


def name_of(content: bytes) -> str:
    """The queue id of a message, or of a report its Message-ID."""
    head = content.partition(b"\r\n\r\n")[0]
    found = _QUEUE_ID.search(head) or _MESSAGE_ID.search(head)
    return found[1].decode() if found else ""


class Site:
    """One host. `on_dot(connection, queue_id, addresses, session)` hears of every final dot at
    once, and `on_mail(name)` of every transaction that begins. With `has_login` it offers AUTH.
    """

    def __init__(
        self,
        world: World,
        name: str,
        manner: Manner,
        *,
        on_dot: Callable[..., None],
        on_mail: Callable[[str], None],
        has_login: bool = False,
    ) -> None:
        self.name = name
        self.manner = manner
        self.taken: list[Taken] = []
        self.refusals: list[ConnectFailure] = []
        self.on_dot = on_dot
        self.on_mail = on_mail
        self.users = dict([LOGIN]) if has_login else {}
        self._world = world
        self._rng: Random = world.rng
        self._first_seen: dict[tuple[str, str], float] = {}
        self._dots = 0
        self._smtp = _SiteHost(self)

    def host(self) -> Host:
        """Where calls to it go."""
        context = self._world.outside
        return Host(self.name, self._protocol, context, self._rings, self.manner.certificate)

    def _protocol(self) -> asyncio.BaseProtocol:
        loop = self._world
        reader = asyncio.StreamReader(loop=loop)
        return asyncio.StreamReaderProtocol(reader, self._smtp.converse, loop=loop)

    def _rings(self) -> float:
        manner, chance = self.manner, self._rng.random
        self._world.reached[f"site: {manner.name}"] += 1
        if manner.period_s and self._world.time() % manner.period_s > manner.period_s / 2:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        if chance() < manner.refuses_calls:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        return NEVER if chance() < manner.ignores_calls else manner.delay_s * chance()

    def take(self, mail: ReceivedMail) -> None:
        """Make a copy for each recipient durable."""
        content = mail.content
        token = TOKEN.search(content[:_HEADER_BYTES])
        for address in mail.addresses:
            self.taken.append(
                Taken(
                    token[1].decode() if token and mail.sender else "",
                    name_of(content),
                    address,
                    mail.sender,
                    content,
                )
            )

    def verdict(self, reverse_path: str, address: str) -> str:
        """The reply to a RCPT."""
        manner = self.manner
        if _is_among(address, manner.rejects):
            return NO_SUCH_USER
        if manner.greylists_s:
            first = self._first_seen.setdefault((reverse_path, address), self._world.time())
            if self._world.time() - first < manner.greylists_s:
                return "450 4.7.1 greylisted"
        if self._rng.random() < manner.defers:
            return "451 4.2.1 not now"
        return "250 2.1.5 ok"

    def drops_dot(self) -> bool:
        """Whether it drops this final dot."""
        self._dots += 1
        manner = self.manner
        is_turn = manner.drops_every and self._dots % manner.drops_every == 0
        return bool(is_turn) or self._rng.random() < manner.drops_dot

    def note(self, *words: object) -> None:
        """Put a line into the trace."""
        self._world.note(self.name, *words)


def _is_among(address: str, part: float) -> bool:
    return sum(address.encode()) % 10 < 10 * part


def _unasked(moment: Moment) -> Action:
    """Return nothing: act() of the host decides everything."""
    raise AssertionError(moment)


class _SiteHost(SmtpHost):
    """The sessions of a site; EOFError closes one."""

    def __init__(self, site: Site) -> None:
        manner = site.manner
        options = HostOptions(
            extensions=manner.extensions,
            sessions_max=manner.connections_max,
            idle_s=None,
            users=site.users,
            lmtp=manner.lmtp,
            tls=_TLS if manner.certificate else None,
        )
        super().__init__(site.name, _unasked, clock=ManualClock(), options=options)
        self._site = site
        self._manner = manner
        self._chance = site._rng.random
        self._transactions: Counter[int] = Counter()  # by session
        self._logged_in: set[int] = set()  # sessions
        self._writers: dict[int, asyncio.StreamWriter] = {}  # by session

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers[self.sessions + 1] = writer
        await super().converse(reader, writer)

    async def act(self, moment: Moment, pause: object) -> Action:
        manner = self._manner
        if moment.stage in manner.closes_after and self._chance() < manner.closes:
            raise EOFError
        match moment.stage:
            case "CONNECT" | "CONTENT":
                return Action()
            case "DOT":
                reply = await self._take(moment)
            case stage:
                reply = self._reply(stage, moment)
        if manner.delay_s:
            await asyncio.sleep(manner.delay_s * self._chance())
        self._site.note(moment.session, ">", moment.stage, reply[:60])
        return Action(reply)

    def heard(self, line: str) -> None:
        self._site.note("<", line[:80])

    def _reply(self, stage: str, moment: Moment) -> str:
        """The reply to a command; "" is the usual one."""
        manner = self._manner
        if stage == "MAIL":
            self._site.on_mail(self.name)
        if stage == "BANNER":
            self._note_refusal(manner.banner, moment)
            return manner.banner
        if stage == "QUIT":
            return ""
        if self._chance() < manner.nonsense:
            return "9x9 what?"
        match stage:
            case "EHLO":
                return manner.hello
            case "AUTH":
                if manner.refuses_logins and self._chance() < manner.refuses_logins:
                    return "535 5.7.8 not now"
                self._logged_in.add(moment.session)
            case "MAIL":
                is_busy = (
                    manner.busy_after and self._transactions[moment.session] >= manner.busy_after
                )
                return "421 4.7.0 enough for now" if is_busy else ""
            case "RCPT" if len(moment.recipients) >= manner.recipients_max:
                return "452 4.5.3 too many recipients"
            case "RCPT":
                said = self._site.verdict(moment.sender, moment.recipient)
                self._note_refusal(said, moment, moment.recipient)
                return said
            case "DATA" if moment.recipients:
                return manner.data_reply
        return ""

    async def _take(self, moment: Moment) -> str:
        """Take a message, or not; return the reply to the final dot."""
        site, manner, mail = self._site, self._manner, moment.mail
        assert mail
        name = name_of(mail.content)
        is_logged_in = moment.session in self._logged_in
        tls: TlsSession | None = self._writers[moment.session].get_extra_info("ssl_object")
        connection = f"{site.name}/{moment.session}"
        if not manner.lmtp or moment.recipient == moment.recipients[0]:
            said = Session(is_logged_in, tls, is_lax=LAX_FIELD in mail.content[:_HEADER_BYTES])
            site.on_dot(connection, name, moment.recipients, said)
            self._transactions[moment.session] += 1
        if any(_is_among(address, manner.slow_for) for address in mail.addresses):
            await asyncio.sleep(_SLOW_S)
        if site.drops_dot():
            if self._chance() < manner.keeps_dropped:
                site.take(mail)
            raise EOFError
        if reply := manner.dot_reply or self._reply_to_one(moment):
            for address in mail.addresses:
                self._note_refusal(reply, moment, address, name)
            return reply
        if manner.late_s and self._chance() < 0.6:
            await asyncio.sleep(manner.late_s)
        site.take(mail)
        return "250 2.0.0 taken"

    def _reply_to_one(self, moment: Moment) -> str:
        """The reply to one recipient by LMTP; "" where it takes the message."""
        manner = self._manner
        if manner.full and _is_among(moment.recipient, manner.full):
            return "552 5.2.2 full"
        return "452 4.2.2 busy" if manner.busy and self._chance() < manner.busy else ""

    def _note_refusal(self, reply: str, moment: Moment, address: str = "", name: str = "") -> None:
        """Keep a reply that is about to be said, if it is a 5yz."""
        if reply.startswith("5"):
            self._site.refusals.append(ConnectFailure(reply, moment.sender, address, name))
