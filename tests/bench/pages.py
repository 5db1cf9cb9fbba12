"""What a page of the message list costs the relay, in processor time, with 10,000 messages.

    python -m tests.bench.pages                                 all figures
    python -m tests.bench.pages --messages 1000 --rounds 5      a smaller one

Half of the messages were submitted over Graph, so that they are in the submission log as well. The
median of the rounds is printed in milliseconds of all threads; the bound is 50 ms for a page of 50.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from relay.clock import Clock, Ids, SystemClock
from relay.journeys.events import Event, Step
from relay.journeys.journey import Journeys
from relay.journeys.message_search import MessageSearch
from relay.journeys.submission_log import SubmissionFacts, SubmissionLog
from relay.spool.types import NewMessage
from tests.support.spools import message_of, spool_on

ALICE, BOB = "alice@example.test", "bob@example.test"
PAGE = 50
BOUND_MS = 50.0


def main() -> None:
    """Fill a spool, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as place:
        measured = asyncio.run(measure(Path(place), options.messages, options.rounds))
    for name, cost_ms in measured.items():
        print(f"{name:<40}{cost_ms:>10.1f} ms")


async def measure(place: Path, messages: int, rounds: int) -> dict[str, float]:
    """Return the median cost of each question in milliseconds."""
    clock = SystemClock()
    log = SubmissionLog(place / "log", role="relay", clock=clock)
    async with spool_on(place / "spool.sqlite", clock) as spool:
        await fill(spool, log, clock, messages=messages)
        journeys = Journeys(spool, log, clock=clock)

        def asks(account: str | None = None, **wanted: Any) -> Callable[[], Awaitable[Any]]:
            return lambda: journeys.search(MessageSearch(**wanted), account=account, limit=PAGE)

        def rows(account: str | None = None, **wanted: Any) -> Callable[[], Awaitable[Any]]:
            return lambda: journeys.page(MessageSearch(**wanted), account=account, limit=PAGE)

        questions = {
            "journeys": asks(),
            "journeys, state=deferred": asks(state="deferred"),
            "journeys, subject of nothing": asks(subject="*nothing*"),
            "journeys, of one account": asks(BOB),
            "rows": rows(),
            "rows, state=deferred": rows(state="deferred"),
            "rows, words of nothing": rows(words=("nothing",)),
            "rows, subject of nothing": rows(subject="*nothing*"),
            "rows, of one account": rows(account=BOB),
            "counts": lambda: journeys.counts(account=None, limit=1000),
        }
        return {name: await cost_of(ask, rounds) for name, ask in questions.items()}


async def cost_of(ask: Callable[[], Awaitable[Any]], rounds: int) -> float:
    """Return the median processor time of a question, in milliseconds."""
    costs = []
    for _ in range(rounds):
        began = time.process_time()
        await ask()
        costs.append((time.process_time() - began) * 1000)
    return statistics.median(costs)


async def fill(spool: Any, log: SubmissionLog, clock: Clock, *, messages: int) -> None:
    """Put messages into the spool: delivered ones, and one in ten that is deferred."""
    ids = Ids(clock)
    waiting = []
    for number in range(messages):
        waiting.append(spool.accept(_message(log, clock, ids, number=number)))
        if len(waiting) == 500:
            await asyncio.gather(*waiting)
            waiting.clear()
    await asyncio.gather(*waiting)


def _message(log: SubmissionLog, clock: Clock, ids: Ids, *, number: int) -> NewMessage:
    now_us = clock.time_us()
    account = (ALICE, BOB)[number % 100 == 0]
    subject, recipients = f"Invoice {number} for March", (f"customer{number % 500}@other.test",)
    name = ""
    if number % 2:
        draft_id = ids.new()
        name = f"{draft_id}.1"
        facts = SubmissionFacts(name, draft_id, account, account, f"<{number}@relay.test>",
                                subject, recipients)  # fmt: skip
        steps = [Event(Step(step), now_us, {"account": account}) for step in (1, 2, 3, 4)]
        log.append(facts, *steps)
    hops = [("local", recipients)]
    return message_of(
        hops, queue_id=ids.new(), now_us=now_us, account=account, reverse_path=account,
        submission_id=name, subject=subject, message_id=f"<{number}@relay.test>",
    )  # fmt: skip


if __name__ == "__main__":
    main()
