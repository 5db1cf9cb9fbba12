"""Reading the submission log forward: every line once, whatever happens to the files."""

import random
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import pytest

from relay.store.journeys import log_reader
from relay.store.journeys.events import LogPosition, Step
from relay.store.journeys.log_reader import LogReader
from relay.store.journeys.submission_log import SubmissionFacts, SubmissionLog
from tests.support.events import an_event
from tests.support.manual_clock import ManualClock

DAY_S = 86_400.0
FACTS = SubmissionFacts("d1.1", "d1", "alice@example.test", "alice@example.test")


class Logs:
    """The logs of two roles and their reader."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.roles = {
            role: SubmissionLog(folder, role=role, clock=self.clock) for role in ("graph", "pickup")
        }
        self.reader = LogReader(folder)
        self.written = 0

    def write(self, role: str = "graph", *, text: str = "") -> None:
        self.written += 1
        detail = {"size": self.written, "failed": text}
        self.roles[role].append(FACTS, an_event(Step.CONVERTED, self.clock.time_us(), detail))

    def read(self, after=None, limit=1000):
        """Return the numbers in the log of graph and its LogEvents."""
        found = self.reader.read(after or {}, limit=limit)["graph"]
        return [one and one.detail["size"] for _, one in found.events], found


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path / "log")


def test_each_line_once_over_days_and_positions(logs: Logs) -> None:
    choose = random.Random(5)
    after, seen = {}, []
    for _ in range(300):
        for _ in range(choose.randrange(4)):
            logs.write(text="x" * choose.choice((1, 10, 4000)))
        if choose.random() < 0.05:
            logs.clock.advance(choose.choice((DAY_S, 3 * DAY_S)))
        numbers, found = logs.read(after, limit=choose.randrange(1, 6))
        seen += numbers
        if found.events:
            after = {"graph": found.end if found.is_complete else found.events[-1][0]}
        assert not found.is_missing
    numbers, _ = logs.read(after)
    assert seen + numbers == list(range(1, logs.written + 1))


def test_an_incomplete_line_is_read_when_it_is_complete(logs: Logs) -> None:
    logs.write()
    (path,) = logs.folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    numbers, found = logs.read()
    assert numbers == [1]
    assert logs.reader.ends()["graph"] == found.end
    path.write_bytes(whole + whole)
    assert logs.read({"graph": found.end})[0] == [1]


@pytest.mark.parametrize(
    "damage", [b"{}\n", b"\xff\n", b"\n", b'{"submission_id": 5}\n', b"x" * (1 << 20) + b"y\n"]
)
def test_a_damaged_line_is_skipped(logs: Logs, damage: bytes) -> None:
    logs.write()
    (path,) = logs.folder.iterdir()
    with path.open("ab") as file:
        file.write(damage)
    logs.write()
    numbers, found = logs.read()
    if not found.is_complete:
        more, found = logs.read({"graph": found.events[-1][0]})
        numbers += more
    assert [one for one in numbers if one] == [1, 2]
    assert logs.read({"graph": found.end})[0] == []


def test_a_log_that_was_cleared_is_read_from_its_beginning_with_a_note(logs: Logs) -> None:
    for _ in range(5):
        logs.write()
    before = logs.reader.ends()
    logs.roles["graph"].clear()
    assert logs.reader.read(before, limit=9)["relay"].events == ()
    for _ in range(9):  # the new file is longer than the old one was
        logs.write()
    numbers, found = logs.read(before)
    assert (numbers, found.is_missing) == (list(range(6, 15)), True)
    assert not logs.read({"graph": found.end})[1].is_missing


async def test_a_day_that_was_pruned(logs: Logs) -> None:
    async def kept_of(_: Sequence[str]) -> Sequence[str]:
        return ()

    logs.write()
    before = logs.reader.ends()
    logs.write()
    logs.clock.advance(3 * DAY_S)
    logs.write()
    assert await logs.roles["graph"].prune(logs.clock.time_us(), kept_of) == 1
    numbers, found = logs.read(before)
    assert (numbers, found.is_missing) == ([3], True)


def test_a_part_is_limited_by_its_size(logs: Logs) -> None:
    for _ in range(5):
        logs.write(text="x" * 500_000)
    numbers, found = logs.read()
    assert (numbers, found.is_complete) == ([1, 2, 3], False)
    assert logs.read({"graph": found.events[-1][0]})[0] == [4, 5]


def test_the_states_of_a_submission(logs: Logs) -> None:
    log = logs.roles["graph"]
    log.append(
        FACTS, an_event(Step.CREATED, 1), an_event(Step.NOTIFIED, 2, {"deferred_until": "…"})
    )
    log.remark("d1.1", {"cancelled": "now"}, account=FACTS.account)
    log.withdraw(FACTS)
    log.append(FACTS, an_event(Step.REPORT, 3, {"kind": "failure"}))
    log.append(FACTS, an_event(Step.REPORT, 3, {"kind": "unknown"}))
    log.append(FACTS, an_event(Step.ACCEPTED, 4), queue_id="q1")
    found = [one for _, one in logs.reader.read({}, limit=9)["graph"].events]
    assert [(one.step, one.state) for one in found] == [
        (1, "converting"),
        (2, "scheduled"),
        (2, "cancelled"),
        (2, None),
        (7, "failed"),
        (7, "expired"),
        (4, None),
    ]
    assert {one.account for one in found} == {FACTS.account}
    assert [one.queue_id for one in found] == [None] * 6 + ["q1"]
    assert found[3].detail == {"withdrawn": True}
    assert found[2].at_us == logs.clock.time_us()


@pytest.mark.parametrize(
    ("offset", "size"), [(10**18 - 1, 0), (10**18 - 1, 9), (5, 0), (-1, 10**9 - 1)]
)
def test_a_position_that_no_reader_has_given_is_missing_and_reads_little(
    logs: Logs, offset: int, size: int, monkeypatch
) -> None:
    for _ in range(3):
        logs.write(text="x" * 1000)
    end = logs.reader.ends()["graph"]
    monkeypatch.setattr(log_reader, "_LINE_BYTES_MAX", 2000)
    octets = (logs.folder / f"{end.day}-graph").read_bytes()
    place = len(octets) if offset < 0 else offset
    made = LogPosition(end.day, place, min(size, len(octets)), crc32(octets) if size > 9 else 0)
    numbers, found = logs.read({"graph": made})
    assert (numbers, found.is_missing) == ([1, 2, 3], True)
