"""What a question to a mailbox costs, at 1,000, 10,000 and 100,000 messages.

    tests/bench/mailbox.py                              all three sizes
    tests/bench/mailbox.py --sizes 1000 10000 --rounds 50 --directory /var/tmp
    tests/bench/mailbox.py --sizes 100000 --background      the index is made in the background

Each mailbox is made of small messages from 200 senders over ten years, most of them read. First the
index is made from nothing (`rebuild`: until the first page is there; `headers` and `words`: until the
first filter and the first search have read what they need). Then each question is asked several
times, each time with another value, behind a change that another program makes to the mailbox, which
the answer has to see. What is printed is the median in milliseconds, and how much it grew from the
smallest mailbox to the largest.
"""

import argparse
import asyncio
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import apsw

from relay.base.clock import Ids, SystemClock
from relay.base.crashpoints import CrashPoints
from relay.store.journeys.submission_log import SubmissionLog
from relay.store.mailbox.index.background import LARGE_MESSAGES
from relay.store.mailbox.index.database import FILE_NAME
from relay.store.mailbox.query import (
    AllOf,
    Compare,
    Condition,
    HasWords,
    MessageQuery,
    Operator,
    Property,
    SearchIn,
    SortOrder,
)
from relay.store.mailbox.threads import QueryTimeLimit
from relay.store.mailbox.types import QuotaLimits
from relay.submission.outbox.store import FileStore
from tests.support.stores import opened_root

ALICE = "alice@example.test"
SENDERS = 200
WORDS = ("account", "budget", "contract", "delivery", "estimate", "figures", "garden", "house")
START_S, YEARS_S = 1_400_000_000, 315_000_000


def main() -> None:
    """Make the mailboxes one after the other, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument(
        "--background", action="store_true", help="make the index in the background first"
    )
    parser.add_argument("--directory", type=Path, help="where the mailboxes are made")
    options = parser.parse_args()
    measured = []
    for size in options.sizes:
        place = Path(tempfile.mkdtemp(prefix="relay-bench-", dir=options.directory))
        try:
            measured.append(measure(place, size, options.rounds, in_background=options.background))
        finally:
            shutil.rmtree(place)
    header = "".join(f"{size:>12,}" for size in options.sizes)
    print(f"{'ms':<28}{header}{'growth':>10}")
    for name in measured[0]:
        row = [one[name] for one in measured]
        print(f"{name:<28}{''.join(f'{ms:>12.2f}' for ms in row)}{row[-1] / row[0]:>10.1f}")


def measure(
    place: Path, size: int, rounds: int, *, in_background: bool = False
) -> dict[str, float]:
    """Make one mailbox and ask it everything."""
    mailbox = place / "mail/example.test/alice"
    rng = random.Random(size)
    names = fill(mailbox, size, rng)
    clock = SystemClock()
    log = SubmissionLog(place / "log", role="graph", clock=clock)
    store = FileStore(
        opened_root(place / "mail"),
        clock=clock,
        ids=Ids(clock),
        crash=CrashPoints(),
        log=log,
        hostname="relay.example.test",
        limits_of=lambda _: QuotaLimits(),
        dead_letter=place / "dead",
    )
    found: dict[str, float] = {}
    try:
        if in_background and size >= LARGE_MESSAGES:
            found["background"] = asyncio.run(build(store, mailbox))
        first = {
            "rebuild, first page": MessageQuery(folder_id="inbox"),
            "headers, first filter": query(Compare(Property.SUBJECT, Operator.EQ, "none")),
            "words, first search": query(HasWords(SearchIn.ANYWHERE, "none")),
        }
        for name, one in first.items():
            while not ask(store, one, found, name):
                pass
        for name, make in QUESTIONS.items():
            took = []
            for _ in range(rounds):
                touch(mailbox, names, rng)
                one = make(rng)
                began = time.perf_counter()
                store.lists._find(ALICE, one, QueryTimeLimit(store._clock))
                took.append((time.perf_counter() - began) * 1000)
            found[name] = statistics.median(took)
    finally:
        store.close()
        log.close()
    return found


async def build(store: FileStore, mailbox: Path) -> float:
    """Have the index made as a relay does it at its start; return the time in milliseconds."""
    began = time.perf_counter()
    building = asyncio.create_task(store.build_indexes())
    index = mailbox / FILE_NAME
    while not index.exists() or not is_complete(index):
        await asyncio.sleep(0.5)
    building.cancel()
    return (time.perf_counter() - began) * 1000


def is_complete(index: Path) -> bool:
    """Return whether the index has the words of all messages."""
    connection = apsw.Connection(str(index), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        counts = "SELECT count(*), coalesce(sum(content_level = 2), 0) FROM message"
        [(total, complete)] = connection.execute(counts)
        return bool(total) and total == complete
    except apsw.Error:
        return False  # it is being made
    finally:
        connection.close()


def ask(store: FileStore, one: MessageQuery, found: dict[str, float], name: str) -> bool:
    """Ask once, and add to the time; whether there was an answer yet."""
    began = time.perf_counter()
    try:
        store.lists._find(ALICE, one, QueryTimeLimit(store._clock))
    except Exception as error:  # noqa: BLE001 - it is still reading
        print(error, file=sys.stderr)
        return False
    finally:
        found[name] = found.get(name, 0.0) + (time.perf_counter() - began) * 1000
    return True


def fill(mailbox: Path, size: int, rng: random.Random) -> list[Path]:
    """Make the messages; one in five in Archive, one in ten unread."""
    folders = [mailbox / folder / "cur" for folder in ("", ".Archive")]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in ("new", "tmp"):
            (folder.parent / name).mkdir()
    names = []
    for number in range(size):
        at_s = START_S + rng.randrange(YEARS_S)
        sender = rng.randrange(SENDERS)
        words = " ".join(rng.choices(WORDS, k=120))
        content = (
            f"Return-Path: <sender{sender}@a.test>\r\nX-Relay-Id: {number:016d}\r\n"
            f"From: Sender {sender} <sender{sender}@a.test>\r\nTo: Alice <{ALICE}>\r\n"
            f"Subject: {rng.choice(WORDS)} {number} of {rng.choice(WORDS)}\r\n"
            f"Date: Thu, 01 Jan 2015 00:00:00 +0000\r\nMessage-ID: <{number}@a.test>\r\n"
            "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
            f"{words} number{number}\r\n"
        )
        flags = "" if rng.random() < 0.1 else "S"
        folder = folders[rng.random() < 0.2]
        path = folder / f"{at_s}.M{number}P1.host,S={len(content)}:2,{flags}"
        path.write_text(content, newline="")
        os.utime(path, (at_s, at_s))
        names.append(path)
    return names


def touch(mailbox: Path, names: list[Path], rng: random.Random) -> None:
    """Let another program flag a message."""
    at = rng.randrange(len(names))
    path = names[at]
    base, _, flags = path.name.partition(":2,")
    names[at] = path.rename(
        path.with_name(f"{base}:2,{'' if 'F' in flags else 'F'}{flags.strip('F')}")
    )


def query(condition: Condition, folder_id: str = "inbox", top: int = 10) -> MessageQuery:
    return MessageQuery(folder_id=folder_id, condition=condition, top=top)


def sender(rng: random.Random) -> Condition:
    address = f"sender{rng.randrange(SENDERS)}@a.test"
    return Compare(Property.FROM_ADDRESS, Operator.EQ, address)


def some_day_us(rng: random.Random) -> int:
    return (START_S + rng.randrange(YEARS_S)) * 1_000_000


def between(rng: random.Random) -> Condition:
    day_us = some_day_us(rng)
    return AllOf(
        (
            Compare(Property.RECEIVED, Operator.GE, day_us - 10**13),
            Compare(Property.RECEIVED, Operator.LT, day_us),
        )
    )


QUESTIONS: dict[str, Callable[[random.Random], MessageQuery]] = {
    "page": lambda _: MessageQuery(folder_id="inbox"),
    "page, all folders": lambda _: MessageQuery(),
    "page in the middle": lambda c: query(Compare(Property.RECEIVED, Operator.LT, some_day_us(c))),
    "from": lambda c: query(sender(c)),
    "from, all folders": lambda c: query(sender(c), ""),
    "subject equals": lambda c: query(
        Compare(Property.SUBJECT, Operator.EQ, f"budget {c.randrange(1000)} of house")
    ),
    "subject begins": lambda c: query(
        Compare(Property.SUBJECT, Operator.STARTS_WITH, f"budget {c.randrange(1000)} ")
    ),
    "subject contains": lambda c: query(
        Compare(Property.SUBJECT, Operator.CONTAINS, f"{c.randrange(1000)} of {c.choice(WORDS)}")
    ),
    "dates": lambda c: query(between(c)),
    "unread": lambda _: query(Compare(Property.IS_READ, Operator.EQ, value=False)),
    "read": lambda _: query(Compare(Property.IS_READ, Operator.EQ, value=True)),
    "from and unread": lambda c: query(
        AllOf((sender(c), Compare(Property.IS_READ, Operator.EQ, value=False)))
    ),
    "oldest first": lambda _: MessageQuery(
        folder_id="inbox", order=(SortOrder(Property.RECEIVED),)
    ),
    "search a rare word": lambda c: query(
        HasWords(SearchIn.ANYWHERE, f"number{c.randrange(1000)}")
    ),
    "search a common word": lambda c: query(HasWords(SearchIn.BODY, c.choice(WORDS))),
    "search in subjects": lambda c: query(HasWords(SearchIn.SUBJECT, c.choice(WORDS))),
}


if __name__ == "__main__":
    main()
