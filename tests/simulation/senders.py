"""The senders: SMTP clients that retry until they get a reply, and a pickup with submission keys.

Each SMTP attempt has its own token; attempts of pickup share one. A reply is recorded in the ledger
when it is read. A letter without a reply is given up after `patience_s`. See RFC 5321 4.5.4.1 (a
client's queue); RFC 3461 4.4 (ENVID).
"""

import asyncio
import re
from dataclasses import dataclass

from relay.base.message.envelope import Envelope, ForwardPath
from relay.base.message.outcome import Failed, Relayed
from relay.base.message.tls_policy import TlsPolicy
from relay.delivery.smtp.connect import ConnectError, Target, connect
from relay.delivery.smtp.transaction import Transaction
from tests.simulation.ledger import Ledger, Try
from tests.simulation.node import RELAY_IP, SMTP_PORT, TIMEOUTS
from tests.simulation.scenario import Letter, submission_key
from tests.simulation.world import World

_TRIES_MAX = 60
_PATIENCE_S = 400.0  # for a reply
_QUEUED_AS = re.compile(r"queued as ([0-9a-z]{16})")


class Gone(Exception):  # noqa: N818 - it happens
    """The relay closed, or said that it does."""


@dataclass
class Senders:
    """Sends letters; `pickup_path` is where the relay's own socket is now."""

    world: World
    ledger: Ledger
    patience_s: float  # how long a letter is retried
    submission_keep_s: float  # how long pickup may repeat a submission, but for _PATIENCE_S
    pickup_path: str = ""

    async def send(self, letter: Letter) -> None:
        """Return when the letter was answered for good."""
        await asyncio.sleep(letter.at_s)
        for number in range(_TRIES_MAX):
            if self.world.time() > self._ends_s(letter):
                break
            if letter.via == "pickup":
                done = await self._submit(letter)
            else:
                done = await self._try(letter, f"T{letter.number}.{number}")
            if done:
                return
            pause_s = self.world.rng.uniform(20, 60) * min(1 + number, 20)
            if letter.leaves and number == 0:
                pause_s += letter.comes_back_s
            await asyncio.sleep(pause_s)
        self.world.note("given up", letter.number)

    def _ends_s(self, letter: Letter) -> float:
        if letter.via != "pickup":
            return self.patience_s
        return min(self.patience_s, letter.at_s + self.submission_keep_s - 2 * _PATIENCE_S)

    async def _try(self, letter: Letter, token: str) -> bool:
        attempt = Try(token, letter)
        self.ledger.tries.append(attempt)
        own_ip = "192.0.2.66" if letter.via == "stranger" else "127.0.0.1"
        writer = None
        try:
            socket = await self.world.call((RELAY_IP, SMTP_PORT), own_ip=own_ip)
            reader = asyncio.StreamReader(loop=self.world)
            protocol = asyncio.StreamReaderProtocol(reader, loop=self.world)
            transport, _ = await self.world._connected(socket, lambda: protocol)
            writer = asyncio.StreamWriter(transport, protocol, reader, self.world)
            async with asyncio.timeout(_PATIENCE_S):
                return await _Dialogue(reader, writer).send(attempt)
        except (OSError, Gone, asyncio.IncompleteReadError):
            return False
        finally:
            self._note(attempt)
            if writer is not None:
                writer.close()

    def _note(self, attempt: Try) -> None:
        attempt.ended_s = self.world.time()
        self.world.note("answer", attempt.token, attempt.code, attempt.queue_id)

    async def _submit(self, letter: Letter) -> bool:
        token = f"T{letter.number}"
        attempt = Try(token, letter)
        self.ledger.tries.append(attempt)
        paths = tuple(ForwardPath(address) for address, _ in letter.recipients)
        envelope = Envelope(letter.reverse_path, envid=submission_key(letter))
        transaction = Transaction(envelope, paths, content(letter, token), whole=True)
        target = Target("relay.test", path=self.pickup_path, tls=TlsPolicy("none"))
        connection = None
        try:
            connection = await connect(target, ehlo_name="relay.test", timeouts=TIMEOUTS)
            leaves = letter.leaves and not self._has_tried(letter)
            result = await connection.transact(
                transaction, after_dot=_leave if leaves else lambda: None
            )
        except (ConnectError, Gone):
            return False
        finally:
            if connection is not None:
                connection.close()
        outcomes = list(result.outcomes.values())
        if all(isinstance(one, Relayed) for one in outcomes):
            found = _QUEUED_AS.search(outcomes[0].evidence.reply)
            assert found is not None, outcomes[0]
            attempt.recipients = [address for address, _ in letter.recipients]
            attempt.code, attempt.queue_id = 250, found[1]
        elif any(isinstance(one, Failed) for one in outcomes):
            attempt.code = 550
        self._note(attempt)
        return bool(attempt.code)

    def _has_tried(self, letter: Letter) -> bool:
        return sum(one.letter is letter for one in self.ledger.tries) > 1


def _leave() -> None:
    raise Gone


class _Dialogue:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, attempt: Try) -> bool:
        """Return whether the letter is done with. Raises Gone."""
        letter = attempt.letter
        if (await self._reply())[0] != 220:
            return False
        await self._ask("EHLO client.test")
        code, _ = await self._ask(f"MAIL FROM:<{letter.reverse_path}>")
        if code != 250:
            return code // 100 == 5
        refused = 0
        for address, notify in letter.recipients:
            more = " NOTIFY=" + ",".join(sorted(notify)) if notify else ""
            code, _ = await self._ask(f"RCPT TO:<{address}>{more}")
            if code // 100 == 4:
                return False
            if code == 250:
                attempt.recipients.append(address)
            refused += code // 100 == 5
        if not attempt.recipients:
            attempt.code = 550 if refused else 0
            return bool(refused)
        if (await self._ask("DATA"))[0] != 354:
            return False
        octets = content(letter, attempt.token).replace(b"\r\n.", b"\r\n..")
        self._writer.write(octets + b".\r\n")
        if letter.leaves and attempt.token.endswith(".0"):
            raise Gone
        attempt.code, text = await self._reply()
        if found := _QUEUED_AS.search(text):
            attempt.queue_id = found[1]
        return attempt.code // 100 in (2, 5)

    async def _ask(self, command: str) -> tuple[int, str]:
        self._writer.write(command.encode() + b"\r\n")
        return await self._reply()

    async def _reply(self) -> tuple[int, str]:
        while True:
            line = (await self._reader.readuntil(b"\r\n")).decode()
            if line[3:4] != "-":
                break
        if line.startswith("421"):
            raise Gone
        return int(line[:3]), line


def content(letter: Letter, token: str) -> bytes:
    """A message of about the letter's size; its lines name it, and its first begins with a dot."""
    head = [
        f"From: {letter.reverse_path or 'nobody@home.test'}",
        f"Subject: {letter.words} {token}",
        f"Message-ID: <{token}@client.test>",
        *letter.fields,
    ]
    lines = letter.size_bytes // 64 + 1
    body = [f".{token:x<61}", *([f"{token:x<62}"] * (lines - 1))]
    return "\r\n".join([*head, "", *body, ""]).encode()
