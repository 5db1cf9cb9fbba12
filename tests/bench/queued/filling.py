"""Make spools that are full already, by the spool's own accept() and settle().

Times are relative to `NOW_US`; copied() moves them to the time of the copy. Raises SpoolError.
"""

import asyncio
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import apsw
import uvloop

from relay.base.clock import Ids, SystemClock
from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, Source
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import DeferralClass, Deferred, Evidence
from relay.store.journeys.details import AttemptDetail, AttemptedRecipient, RoutedDetail
from relay.store.journeys.events import Event
from relay.store.spool.types import (
    Claim,
    ClaimResult,
    EntrySchedule,
    NewEntry,
    NewMessage,
    NewRecipient,
    PriorityLevel,
)
from tests.support.spools import new_spool

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
_AT_ONCE = 2000
_TEXT = b"The quick brown fox jumps over the lazy dog, and the lazy dog lies where it lay.\r\n"
_REFUSED = Evidence("4.4.1", "connection refused", host="mx.elsewhere.test")


@dataclass(frozen=True)
class Queued:
    """One message with one entry. Without `due_in_us` it was never tried, and is due.

    `stamp` is the X-Stamp by which a sink tells it.
    """

    stamp: str
    sender: str
    next_hop: str
    recipients: tuple[str, ...]
    due_in_us: int | None = None
    level: PriorityLevel = PriorityLevel.NORMAL


def fill(path: Path, queue: Iterable[Queued]) -> float:
    """Make a spool at `path` with this queue in it; return the steady time its times are from."""
    return uvloop.run(_fill(path, iter(queue)))


def copied(path: Path, target: Path, *, made_us: float, later_us: int = 0) -> None:
    """Copy a filled spool, with its times moved on by what passed since it was made, or more."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    passed_us = int(SystemClock().queue_us() - made_us) + later_us
    connection = apsw.Connection(str(target))
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -400000")
    connection.execute("PRAGMA journal_mode = WAL")
    with connection:
        connection.execute(
            "UPDATE entry SET due_us = due_us + ?1, retry_us = retry_us + ?1, warn_us = warn_us + ?1"
            " WHERE due_us IS NOT NULL",
            (passed_us,),
        )
    connection.close()


async def _fill(path: Path, queue: Iterator[Queued]) -> float:
    clock = SystemClock()
    now_us = clock.queue_us()
    spool = new_spool(path, clock)
    await spool.start()
    ids = Ids(clock)
    while some := list(islice(queue, _AT_ONCE)):
        messages = [_message(one, ids.new(), now_us) for one in some]
        accepted = await asyncio.gather(
            *(
                spool.accept(message, claim=one.due_in_us is not None)
                for message, one in zip(messages, some, strict=True)
            )
        )
        await asyncio.gather(
            *(
                spool.record(_deferred(answer.claims[0], one, now_us))
                for answer, one in zip(accepted, some, strict=True)
                if one.due_in_us is not None
            )
        )
    await spool.stop()
    return now_us


def _message(queued: Queued, queue_id: str, now_us: int) -> NewMessage:
    content = (
        f"X-Stamp: {queued.stamp}\r\nFrom: <{queued.sender}>\r\nSubject: queued\r\n"
        f"Message-ID: <{queue_id}@bench.test>\r\n\r\n"
    ).encode() + _TEXT * 5
    recipients = tuple(NewRecipient(ForwardPath(address)) for address in queued.recipients)
    facts = MessageFacts(
        queue_id,
        Envelope(queued.sender),
        Source.SMTP,
        trusted=False,
        received_us=now_us,
        expires_us=now_us + 5 * DAY_US,
        size=len(content),
        client="bench [127.0.0.1]",
        message_id=f"<{queue_id}@bench.test>",
        subject="queued",
    )
    return NewMessage(
        facts,
        contents=(content,),
        entries=(NewEntry(NextHop.parse(queued.next_hop), recipients),),
        events=(Event(now_us, RoutedDetail()),),
        warn_us=now_us + 5 * DAY_US,
    )


def _deferred(claim: Claim, queued: Queued, now_us: int) -> ClaimResult:
    due_us = now_us + (queued.due_in_us or 0)
    reported = [
        AttemptedRecipient(one.id, one.path.address, "deferred", _REFUSED.status, _REFUSED.reply)
        for one in claim.recipients
    ]
    detail = AttemptDetail(
        entry=claim.entry_id,
        next_hop=queued.next_hop,
        attempt=1,
        host=_REFUSED.host,
        recipients=reported,
    )
    outcome = Deferred(_REFUSED, DeferralClass.CONNECT)
    return ClaimResult(
        claim=claim,
        at_us=now_us,
        outcomes={one.id: outcome for one in claim.recipients},
        waiting=EntrySchedule(
            retry_us=due_us,
            due_us=due_us,
            level=queued.level,
            cause=DeferralClass.CONNECT,
            cause_attempts=1,
            warn_us=claim.warn_us,
        ),
        events=(Event(now_us, detail),),
    )
