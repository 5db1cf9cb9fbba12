"""A remote SMTP host with scripted behaviour: replies by stage, drops, gates, TLS; it records what it got.

It is a host of the simulated internet, which is tested with it. An envelope is recorded before the
reply to its final dot can be read.
"""

import asyncio
import base64
import ssl
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from relay.base.clock import SystemClock
from relay.base.socket_address import Address
from relay.development.internet import smtp_host
from relay.development.internet.behaviour import Action, Moment, ReceivedMail
from relay.development.internet.smtp_host import HostOptions, SmtpHost

Script = str | Sequence[str]
DROP = "DROP"
STALL = "STALL"
EXTENSIONS = smtp_host.EXTENSIONS
_SCRIPTED_AS = {"BANNER": "CONNECT"}
_ANYTHING = 250_000_000


@dataclass
class Envelope:
    """One transaction that came to its final dot; `answered` is the reply's code, 0 for none."""

    mail: ReceivedMail = field(repr=False)
    answered: int = 0

    @property
    def reverse_path(self) -> str:
        return self.mail.sender

    @property
    def parameters(self) -> Mapping[str, str]:
        return self.mail.parameters

    @property
    def recipients(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(one.address, one.parameters) for one in self.mail.recipients]

    @property
    def content(self) -> bytes:
        return self.mail.content

    @property
    def session(self) -> int:
        return self.mail.session

    @property
    def tls(self) -> bool:
        return bool(self.mail.tls)

    @property
    def addresses(self) -> list[str]:
        return self.mail.addresses


class PassesFirst(asyncio.Event):
    """A gate that the first `count` pass; others wait until it is open."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self._left = count

    async def wait(self) -> bool:
        self._left -= 1
        return self._left >= 0 or await super().wait()


@dataclass
class RemoteMx:
    """`async with RemoteMx(...) as mx`: listens at mx.host, mx.port, or at `path`.

    `replies` by stage, `rcpt` and, by LMTP, `dot` by address: one reply or several, used one by one, the last one stays. Stages: CONNECT (the
    banner) EHLO HELO STARTTLS AUTH MAIL RCPT DATA CONTENT (said after the first octets of content, then closed) DOT RSET
    QUIT, and NOBODY (DATA without a recipient).
    DROP closes the connection, STALL is silence. With `lmtp` it speaks LMTP (LHLO instead of EHLO and HELO), and each
    recipient has an envelope and a reply of its own. `gates` holds a stage's reply back until the event is set, "DOT a@b" that to one
    recipient by LMTP; `reached(stage)` waits for a stage.
    `greylist` refuses each pair of sender and recipient once. With `senders` all other senders are refused.
    """

    host: str = "127.0.0.1"
    port: int = 0
    path: str = ""
    replies: Mapping[str, Script] = field(default_factory=dict)
    rcpt: Mapping[str, Script] = field(default_factory=dict)
    dot: Mapping[str, Script] = field(default_factory=dict)
    lmtp: bool = False
    gates: Mapping[str, asyncio.Event] = field(default_factory=dict)
    extensions: Sequence[str] = EXTENSIONS
    tls: ssl.SSLContext | None = None
    implicit_tls: bool = False
    users: Mapping[str, str] = field(default_factory=dict)
    greylist: bool = False
    senders: Collection[str] = ()
    name: str = "mx.remote.test"

    def __post_init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.commands: list[str] = []
        self.logins: dict[int, str] = {}  # by session
        self.origins: dict[int, str] = {}  # the client's address, by session
        self.most_open = 0
        self.reached_stages: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._used: dict[str, int] = defaultdict(int)
        self._greylisted: set[tuple[str, str]] = set()
        options = HostOptions(
            self.extensions,
            self.tls,
            implicit_tls=self.implicit_tls,
            lmtp=self.lmtp,
            users=self.users,
            size_bytes_max=_ANYTHING,
            sessions_max=500,
        )
        self._host = _GatedHost(self, options)

    async def __aenter__(self) -> Self:
        address = Address(path=self.path) if self.path else Address(self.host, self.port)
        self.port = self._host.listen(address).port
        await self._host.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._host.stop()

    @property
    def sessions(self) -> int:
        return self._host.sessions

    @property
    def clients(self) -> list[str]:
        """The address of the client of each open connection."""
        return [writer.get_extra_info("peername")[0] for writer in self._host.writers]

    @property
    def open(self) -> int:
        return self._host.open

    def received(self, address: str) -> list[Envelope]:
        """The envelopes answered 2yz that had this recipient."""
        return [
            one for one in self.envelopes if one.answered // 100 == 2 and address in one.addresses
        ]

    async def reached(self, stage: str) -> None:
        """Wait until some session has come to `stage` (its command is read, the reply not written)."""
        async with asyncio.timeout(120):
            await self.reached_stages[stage].wait()

    def hang_up(self, farewell: str = "") -> None:
        """Close every open connection, after `farewell` if there is one."""
        for writer in self._host.writers:
            if farewell:
                writer.write(farewell.encode() + b"\r\n")
            writer.close()

    def at(self, moment: Moment) -> Action:
        """Return what the host does."""
        if moment.stage == "CONNECT":
            return Action()
        stage = _SCRIPTED_AS.get(moment.stage, moment.stage)
        if stage == "DATA" and not moment.recipients:
            stage = "NOBODY"
        key, script = stage, self.replies.get(stage)
        pair = moment.sender, moment.recipient
        if stage == "RCPT" and self.greylist and pair not in self._greylisted:
            self._greylisted.add(pair)
            script = "451 4.7.1 greylisted, come again"
        elif stage == "MAIL" and self.senders and moment.sender not in self.senders:
            script = "553 5.7.1 the sender is not the login"
        elif stage == "RCPT" and moment.recipient in self.rcpt:
            key, script = f"rcpt {moment.recipient}", self.rcpt[moment.recipient]
        elif stage == "DOT" and moment.recipient in self.dot:
            key, script = f"dot {moment.recipient}", self.dot[moment.recipient]
        reply = self._next(key, script or "")
        if moment.mail and reply not in (DROP, STALL):
            envelope = next(one for one in reversed(self.envelopes) if one.mail is moment.mail)
            code = (reply or "250")[:3]
            envelope.answered = int(code) if code.isdigit() else 0
        if reply in (DROP, STALL):
            return Action(drop=reply == DROP, stall=reply == STALL)
        return Action(reply)

    def _next(self, key: str, script: Script) -> str:
        """The reply of `script` whose turn it is."""
        if isinstance(script, str):
            return script
        self._used[key] += 1
        return script[min(self._used[key], len(script)) - 1]


class _GatedHost(SmtpHost):
    """Tells a RemoteMx where its sessions are, and waits for its gates."""

    def __init__(self, mx: RemoteMx, options: HostOptions) -> None:
        super().__init__(mx.name, mx.at, clock=SystemClock(), options=options)
        self._mx = mx
        self.writers: dict[asyncio.StreamWriter, None] = {}  # in the order of their start

    async def converse(self, reader, writer):
        self.writers[writer] = None
        self._mx.origins[self.sessions + 1] = (writer.get_extra_info("peername") or [""])[0]
        try:
            await super().converse(reader, writer)
        finally:
            del self.writers[writer]

    async def act(self, moment, pause):
        mx = self._mx
        mx.most_open = max(mx.most_open, self.open)
        stage = _SCRIPTED_AS.get(moment.stage, moment.stage)
        if moment.mail:
            mx.envelopes.append(Envelope(moment.mail))
        if stage == "AUTH":
            plain = base64.b64decode(mx.commands[-1].split()[2])
            mx.logins[moment.session] = plain.split(b"\0")[1].decode()
        if moment.stage != "CONNECT":
            mx.reached_stages[stage].set()
            gate = mx.gates.get(f"{stage} {moment.recipient}") or mx.gates.get(stage)
            if gate:
                await gate.wait()
        return await super().act(moment, pause)

    def heard(self, line):
        self._mx.commands.append(line)
