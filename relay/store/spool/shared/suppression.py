"""The list of dead addresses: which replies count, when an address enters, who is on it.

The only witness is the host of the recipient's own domain, in its reply to RCPT (heard()). The
transaction of a result also counts these replies, and the transaction of an acceptance looks its
recipients up: there is no copy of the list in memory. The table belongs to no schema: a start
creates it, and an older Relay leaves it alone.

Times are Clock.confirmed_us(): a gap in time that may be an error of the clock ends nothing. Only
`since_us` is wall time: it is shown. Addresses are own_mailbox(). RFC 3463 3.2, RFC 5321 4.2.3.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from relay.base.clock import Clock, rfc3339, wall_offset_us
from relay.base.message.address import own_mailbox
from relay.base.message.envelope import Source, domain_of
from relay.base.message.nexthop import HopKind
from relay.base.message.outcome import Failed, Outcome, Relayed
from relay.base.message.status import find_statuses, split_reply
from relay.base.observe.logs import get_logger
from relay.base.phrases import counted, words_in
from relay.base.settings.tree import SuppressionSettings
from relay.store.spool.shared.columns import in_chunks
from relay.store.spool.shared.tables import OpenTransaction, QueueEngine, Tables
from relay.store.spool.types import ClaimResult, SpoolError

# limit: addresses on the list of dead addresses, with those that may enter; then the oldest goes
LISTED_MAX = 100_000
WINDOW_US, BETWEEN_US = 30 * 86_400_000_000, 86_400_000_000
RELAY = "relay"  # who put an address on the list, where no operator did
# `times`: JSON, when replies counted; `who`: the operator, "" for Relay; `since_us` 0: not entered
TABLE = (
    "CREATE TABLE IF NOT EXISTS suppressed (address TEXT PRIMARY KEY, since_us BIGINT NOT NULL,"
    " last_us BIGINT NOT NULL, times TEXT NOT NULL, reply TEXT NOT NULL, who TEXT NOT NULL,"
    " reason TEXT NOT NULL, message_id TEXT NOT NULL)"
)
FORGET = "DELETE FROM suppressed WHERE address = ? AND who = ''"
_ROW = "SELECT since_us, last_us, times, who, message_id FROM suppressed WHERE address = ?"
_WRITE = (
    "INSERT INTO suppressed (address, since_us, last_us, times, reply, who, reason, message_id)"
    " VALUES (?, ?, ?, ?, ?, '', '', ?) ON CONFLICT (address) DO UPDATE SET"
    " since_us = excluded.since_us, last_us = excluded.last_us, times = excluded.times,"
    " reply = excluded.reply, message_id = excluded.message_id"
)
_ADD = (
    "INSERT INTO suppressed (address, since_us, last_us, times, reply, who, reason, message_id)"
    " VALUES (?, ?, ?, '[]', '', ?, ?, '') ON CONFLICT (address) DO UPDATE SET"
    " since_us = CASE WHEN suppressed.since_us > 0 THEN suppressed.since_us"
    " ELSE excluded.since_us END, who = excluded.who, reason = excluded.reason"
    " WHERE suppressed.who = ''"
)
_IS_LISTED = "since_us > 0 AND (who <> '' OR last_us > ?)"
_LIST = (
    "SELECT address, since_us, last_us, times, reply, who, reason FROM suppressed"
    f" WHERE {_IS_LISTED} AND since_us >= ? AND address LIKE ? ESCAPE '\\'"
)
_REMOVE = "DELETE FROM suppressed WHERE address = ? RETURNING address"
_PRUNE = (
    "DELETE FROM suppressed WHERE who = '' AND last_us <= CASE WHEN since_us > 0"
    " THEN CAST(? AS BIGINT) ELSE CAST(? AS BIGINT) END"
)
_PUSH_OUT = (
    "DELETE FROM suppressed WHERE address IN (SELECT address FROM suppressed WHERE who = ''"
    " ORDER BY CASE WHEN since_us > 0 THEN 1 ELSE 0 END, last_us, address LIMIT ?)"
)
_FULL = f"the list has at most {LISTED_MAX:,} addresses"
COUNT = "SELECT count(*) FROM suppressed"
_ADDED = f"{COUNT} WHERE who <> ''"
_TIMES_MAX = 10  # as many as `after` may ask for
_REPLY_MAX = 400
_AT_ONCE = 1000  # addresses that one transaction adds
_MARGIN = 1000  # more addresses that go when the list is full
_NAMED = 10  # in the log
_DEAD = frozenset({"5.1.1", "5.1.6", "5.1.10"})
# Without an enhanced status, one of these texts in a reply with one of these codes.
_DEAD_CODES = frozenset({550, 551, 553})
_DEAD_TEXTS = (
    "no such user",
    "no such recipient",
    "no such mailbox",
    "user unknown",
    "unknown user",
    "user not found",
    "user does not exist",
    "recipient not found",
    "mailbox not found",
    "no mailbox here by that name",
)
# Words of a reply that has another reason than the address; `suppressed`: another host has a list.
_OTHER_REASONS = frozenset(
    words_in(
        "rate quickly quota full reputation spam policy block list sender spf dkim dmarc suppressed"
    )
)
_word = re.compile(r"[a-z0-9]++")
_times = msgspec.json.Decoder(list[int])
_log = get_logger("spool")


class Heard(Struct, frozen=True):
    """What the hosts of the recipients' own domains said in an attempt, by address."""

    dead: Mapping[str, str]  # the reply that says that there is no such address
    alive: Sequence[str]  # they took the message
    message_id: str
    settings: SuppressionSettings
    now_us: int
    at_us: int  # wall time


class ListedAddress(Struct, frozen=True):
    """An address on the list, as in GET /suppressed. Times are RFC 3339."""

    address: str  # own_mailbox()
    since: str  # when it came on the list
    last: str  # when its host last said so, or when it was added
    count: int  # how many replies counted
    reply: str  # the last of them
    by: str  # who added it: RELAY, or an operator
    reason: str  # why the operator did


def says_dead(outcome: Outcome) -> bool:
    """Return whether a host has said, in its reply to RCPT, that there is no such address."""
    evidence = outcome.evidence
    is_own_word = isinstance(outcome, Failed) and outcome.at_rcpt and evidence.remote
    if not is_own_word or evidence.provider:
        return False
    code, status, _ = split_reply(evidence.reply)
    text = " ".join(word for word in evidence.reply.lower().split() if "@" not in word)
    if code // 100 != 5 or not _OTHER_REASONS.isdisjoint(_word.findall(text)):
        return False
    if status:
        return status in _DEAD
    is_dead = code in _DEAD_CODES and any(known in text for known in _DEAD_TEXTS)
    return is_dead and _DEAD.issuperset(find_statuses(evidence.reply))


def heard(claim_result: ClaimResult) -> tuple[Mapping[str, str], Sequence[str]]:
    """Return Heard.dead and Heard.alive of the recipients whose mail went to the MX hosts of their
    own domain. Mail of Relay itself says nothing.
    """
    claim, dead, alive = claim_result.claim, dict[str, str](), []
    if claim.next_hop.kind is not HopKind.MX or claim.message.source is Source.REPORT:
        return {}, ()
    for recipient in claim.recipients:
        outcome, address = claim_result.outcomes.get(recipient.id), recipient.path.address
        if outcome is None or domain_of(address) != claim.next_hop.host:
            continue
        if isinstance(outcome, Relayed):
            alive.append(own_mailbox(address))
        elif says_dead(outcome):
            dead[own_mailbox(address)] = outcome.evidence.reply[:_REPLY_MAX]
    return dead, alive


class SuppressionList:
    """The list of one spool. Without `settings` there is none: nothing is asked, read or written.

    Coroutines raise SpoolError.
    """

    def __init__(self, engine: QueueEngine, clock: Clock) -> None:
        self.settings: SuppressionSettings | None = None
        self._engine, self._clock = engine, clock
        self._adding = asyncio.Lock()

    def heard(self, claim_result: ClaimResult) -> Heard | None:
        """Return what is to be recorded with a result, None for nothing."""
        if self.settings is None:
            return None
        dead, alive = heard(claim_result)
        if not (dead or alive):
            return None
        now_us, message_id = self._clock.confirmed_us(), claim_result.claim.message.id
        return Heard(dead, alive, message_id, self.settings, now_us, claim_result.at_us)

    @property
    def ended_us(self) -> int:
        """What Relay found ends if its last reply is not later than this."""
        keep_s = self.settings.keep if self.settings is not None else 0.0
        return self._clock.confirmed_us() - int(keep_s * 1_000_000)

    async def listed(self, *, domain: str = "", since_s: float = 0.0) -> list[ListedAddress]:
        """Return the addresses on the list, in their order: those of a domain, and with `since_s`
        those that came on it in the last seconds.
        """
        if self.settings is None:
            return []
        pattern = "%" if not domain else "%@" + re.sub(r"([\\%_])", r"\\\1", domain)
        since_us = self._clock.time_us() - int(since_s * 1_000_000) if since_s else 0
        values = (self.ended_us, since_us, pattern)
        offset_us = wall_offset_us(self._clock)
        rows = await self._engine.read(lambda tables: tables.fetch(_LIST, values))
        return [_listed(row, offset_us) for row in sorted(map(tuple, rows))]

    async def add(self, addresses: Iterable[str], *, who: str, reason: str) -> int:
        """Put addresses on the list, until they are removed; return how many an operator had not
        added before. They are read in a thread, and may raise ValueError, which they also do where
        they are too many. The error says how many it has added: nothing, unless another node adds
        at once.
        """
        now_us, at_us = self._clock.confirmed_us(), self._clock.time_us()
        names, count = list[str](), 0

        def check_room(tables: Tables) -> None:
            known = sum(
                _known(tables, chunk, "who <> ''") for chunk in in_chunks(iter(names), _AT_ONCE)
            )
            if int(tables.fetch_one(_ADDED)[0]) + len(names) - known > LISTED_MAX:
                raise ValueError(_FULL)

        def write(transaction: OpenTransaction, chunk: Sequence[str]) -> int:
            transaction.lock_dead()
            new = len(chunk) - _known(transaction, chunk, "who <> ''")
            transaction.execute_each(_ADD, [(name, at_us, now_us, who, reason) for name in chunk])
            if _make_room(transaction, 0) < 0:
                raise ValueError(_FULL)
            return new

        try:
            names = await asyncio.to_thread(lambda: sorted(set(map(own_mailbox, addresses))))
            async with self._adding:
                await self._engine.read(check_room)
                for chunk in in_chunks(iter(names), _AT_ONCE):
                    count += await self._engine.change(partial(write, chunk=chunk))
        except (SpoolError, ValueError) as error:
            added = counted(count, "address") if count else "nothing"
            raise type(error)(f"Added {added}: {error}") from error
        finally:
            if count:
                to = names[:_NAMED]
                _log.info("addresses suppressed", who=who, to=to, added=count, reason=reason)
        return count

    async def remove(self, address: str) -> bool:
        """Remove all that is known of an address; return False if that is nothing."""
        values = [(own_mailbox(address),)]
        rows = await self._engine.change(
            lambda transaction: transaction.fetch_each(_REMOVE, values)
        )
        return bool(rows)

    async def prune(self) -> None:
        """Remove what has ended."""
        if self.settings is not None:
            values = (self.ended_us, self._clock.confirmed_us() - WINDOW_US)
            await self._engine.change(lambda transaction: transaction.execute(_PRUNE, values))

    async def since_us(self, addresses: Sequence[str]) -> Mapping[str, int]:
        """Return since when those of the addresses that are on the list are there, in wall time."""
        if self.settings is None or not addresses:
            return {}
        ended_us = self.ended_us
        return await self._engine.read(lambda tables: since_of(tables, addresses, ended_us))

    async def count(self) -> int:
        """Return how many addresses are on the list."""
        if self.settings is None:
            return 0
        sql, values = f"{COUNT} WHERE {_IS_LISTED}", (self.ended_us,)
        row = await self._engine.count(lambda tables: tables.fetch_one(sql, values))
        return int(row[0])


def since_of(tables: Tables, addresses: Sequence[str], ended_us: int) -> dict[str, int]:
    """Return since when those of the addresses that are on the list are there, in wall time.
    `ended_us` is SuppressionList.ended_us.
    """
    where, values = tables.among("address", addresses)
    sql = f"SELECT address, since_us FROM suppressed WHERE {where} AND {_IS_LISTED}"
    return dict(map(tuple, tables.fetch(sql, (*values, ended_us))))


def note_dead(transaction: OpenTransaction, said: Heard) -> dict[str, str]:
    """Count the replies that say that an address is dead. Return the replies to those that have
    entered.
    """
    entered = dict[str, str]()
    known_rows, new_rows = list[tuple[Any, ...]](), list[tuple[Any, ...]]()
    if said.dead:
        transaction.lock_dead()
    for address, reply in said.dead.items():
        row = transaction.fetch_one(_ROW, (address,))
        since_us, last_us, times, who, message_id = row or (0, 0, "[]", "", "")
        if since_us and last_us <= said.now_us - int(said.settings.keep * 1_000_000):
            since_us, times = 0, "[]"  # it has ended
        known = [time_us for time_us in _times.decode(times) if said.now_us - time_us <= WINDOW_US]
        is_early = bool(known) and said.now_us - known[-1] < BETWEEN_US
        if who or is_early or message_id == said.message_id:
            continue
        known = [*known, said.now_us][-_TIMES_MAX:]
        if not since_us and len(known) >= said.settings.after:
            since_us, entered[address] = said.at_us, reply
        text = msgspec.json.encode(known).decode()
        change = (address, since_us, said.now_us, text, reply, said.message_id)
        (new_rows if row is None else known_rows).append(change)
    transaction.execute_each(_WRITE, known_rows)  # first: what has entered goes last
    room = _make_room(transaction, len(new_rows)) if new_rows else 0
    transaction.execute_each(_WRITE, new_rows[:room])
    for address, *_ in new_rows[room:]:
        entered.pop(address, None)
    return entered


def _make_room(transaction: OpenTransaction, new: int) -> int:
    """Push out what must go for new rows that follow: first addresses that have not entered, then
    the oldest that Relay found. Return how many fit, below 0 if the list is too long already:
    operators have added the others.

    The rows are counted once a transaction, and more go than must: all mail waits meanwhile.
    """
    excess = int(transaction.fetch_one(COUNT)[0]) + new - LISTED_MAX
    if excess <= 0:
        return new
    removed = transaction.execute(_PUSH_OUT, (excess + _MARGIN,))
    _log.repeated("warning", "the list of dead addresses is full: the oldest go", addresses=removed)
    return new - max(0, excess - removed)


def _known(tables: Tables, addresses: Sequence[str], condition: str = "1 = 1") -> int:
    where, values = tables.among("address", addresses)
    return int(tables.fetch_one(f"{COUNT} WHERE {where} AND {condition}", values)[0])


def _listed(row: Sequence[Any], offset_us: int) -> ListedAddress:
    address, since_us, last_us, times, reply, who, reason = row
    since, last = rfc3339(since_us), rfc3339(last_us + offset_us)
    count = len(_times.decode(times))
    return ListedAddress(address, since, last, count, reply, who or RELAY, reason)
