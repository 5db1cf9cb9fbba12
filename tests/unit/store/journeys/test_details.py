"""What is recorded of events: the JSON, rows of other versions, and rows that no version writes."""

import copy
import json
import re
import subprocess
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from msgspec import convert, to_builtins

from relay.base.message.envelope import ForwardPath
from relay.front_door.api.event_streams import _text_of
from relay.front_door.notifications.webhooks import event_names
from relay.front_door.pages.journey_view import journey_view
from relay.operation.cli.output import journey_lines
from relay.operation.cli.trace import diagnosis
from relay.store.journeys.details import read_detail
from relay.store.journeys.document import Journey
from relay.store.journeys.event_feed import event_data
from relay.store.journeys.events import Event, EventCursor, journey_step
from relay.store.journeys.journey import join
from relay.store.journeys.sender_view import sender_journey
from relay.store.journeys.sentences import answer, needed_reports
from relay.store.journeys.submission_log import SubmissionFacts, SubmissionRecord
from relay.store.spool.types import NewRecipient
from tests.support.journeys import made_journey
from tests.support.spools import new_message, spool_on

SPOOLS = Path(__file__).parents[3] / "spools"
BOB = "bob@b.test"
# with all keys, in the order in which they are stored
ROWS: list[tuple[int, dict[str, Any]]] = [
    (int(row[0]), json.loads(row[1:].replace("\n  ", " ")))
    for row in re.split(
        r"\n(?=\d)",
        r"""
1 {"folder": "drafts"}
2 {"deferred_until": "2026-11-27T12:00:00.000000Z", "client": {"address": "192.0.2.7", "helo": "h", "account": "a@b.test", "tls": "TLSv1.3"}}
2 {"waits": "451 4.7.1 later"}
2 {"sent_now": "2026-11-27T12:00:00.000000Z", "who": "root"}
2 {"cancelled": "2026-11-27T12:00:00.000000Z", "reason": "by root"}
2 {"not_answered": true}
3 {"size": 9, "recipients": 1, "draft": "MIME", "draft_size": 8, "changes": ["c"], "defects": ["d"]}
3 {"failed": "5.6.3 no"}
3 {"unknown": "451 4.7.1 later"}
4 {"folder": null, "queue_id": "q"}
4 {"folder": "sentitems", "queue_id": "q", "folder_gone": "f"}
5 {"rules": [], "next_hops": {}}
5 {"rules": [{"rule": "acme/r", "mode": "enforce", "outcome": "hold,journal", "recipients": ["bob@b.test"], "because": [{"condition": "c", "value":
  "v"}], "count": 101}], "next_hops": {"mx:b.test": ["bob@b.test"], "capture": ["bob@b.test"]}, "dkim": [{"domain": "b.test", "selector": "s",
  "algorithm": "rsa-sha256"}], "unsigned": "the client is not trusted", "set": {"hash": "h", "loaded": "2026-11-27T12:00:00.000000Z", "tenants":
  {"acme": "1", "globex": "2"}, "own": "acme"}, "routes": {"mx:b.test": ["r"]}, "sender": {"from": "a@b.test", "to": "c@b.test"}, "held": {"rule
  \"acme/r\": x": ["bob@b.test"]}, "quarantined": {"rule \"q\" (in Junk Email)": ["bob@b.test"]}, "client": {"address": "192.0.2.7", "helo": "h",
  "account": "a@b.test", "tls": "TLSv1.3"}, "aliases": ["all@b.test"], "senders": {"all@b.test": "srs@b.test"}, "refused": [{"address": "bob@b.test",
  "reply": "550 no"}], "counts": {"aliases": 101}, "milters": [{"name": "m", "stage": "", "answer": "continue", "reason": "", "changes": ["add X"]}],
  "checks": {"spf": null}, "tls": "requiretls", "mails": [{"kind": "journal", "queue_id": "j", "to": "j@b.test", "rules": ["acme/r"]}]}
5 {"rules": [{"rule": "acme/r", "mode": "enforce", "outcome": "hold,journal", "recipients": ["bob@b.test"], "error": "broken"}], "next_hops": {},
  "about": "q0"}
6 {"entry": 1, "attempt": 2, "next_hop": "mx:b.test", "route": "r", "host": "mx.b.test", "tls": "TLSv1.3", "recipients": [{"number": 1, "address":
  "bob@b.test", "outcome": "deferred", "status": "4.2.0", "reply": "450 4.2.0", "graph_id": "l1", "provider": "p"}], "address": "192.0.2.9:25",
  "cipher": "AES", "hosts": ["10 mx.b.test: connected"], "encoded": "8 bit", "policy": "mta-sts: verify", "verified": "name", "durations": {"dns": 1.5,
  "connect": 2.5, "tls": 3.5, "total": 8.0}, "mx": ["10 mx.b.test", "20 mx2.b.test: no address"], "mx_more": 1, "held": "it cannot be read", "retry":
  "2026-11-27T12:00:00.000000Z"}
6 {"entry": 1, "attempt": 1, "next_hop": "local", "host": "", "tls": "", "recipients": [{"number": 1, "address": "bob@b.test", "outcome": "deferred",
  "status": "4.2.0", "reply": "450 4.2.0"}]}
6 {"entry": 1, "next_hop": "local", "expired": 1, "recipients": [{"number": 1, "address": "bob@b.test", "outcome": "deferred", "status": "4.2.0",
  "reply": "450 4.2.0"}], "rule": "q", "silent": true}
6 {"operation": "hold", "entries": [1], "holds": {"1": "route r"}, "who": "root", "why": "w", "restored": true, "until":
  "2026-11-27T12:00:00.000000Z", "due": {"1": "2026-11-27T12:00:00.000000Z"}, "deferred": [1], "from": {"1": "mx:b.test"}, "to": ["local"], "copies":
  ["bob@b.test"], "bounce": true, "text": "t"}
7 {"report_id": "q1", "to": "a@b.test", "kind": "delayed", "recipients": ["bob@b.test"], "since": "2026-11-27T12:00:00.000000Z", "until":
  "2026-11-27T12:00:00.000000Z", "entry": 1}
7 {"kind": "relayed", "recipients": ["bob@b.test"], "left_out": "rate"}
7 {"by": "remote", "kind": "failure", "recipients": ["bob@b.test"], "status": "5.1.1", "reply": "550 no", "host": "h.test", "source": {"client":
  "192.0.2.7", "reporting_mta": "h.test"}, "received": "q2", "more": 2}
""".strip(),
    )
]
SUBMISSION_FAILED = {"kind": "failure", "to": "a@b.test", "reply": "5.6.3 no", "reason": "full"}
_EVENTS = "SELECT step, detail FROM event"
ODD: list[Any] = [7, "x", [7], [{}], {"x": 7}, None]


class Foreign(dict[str, Any]):
    """A row as another program has stored it."""

    def __init__(self, step: int, row: dict[str, Any]) -> None:
        super().__init__(row)
        self.step = step


def rows_of(release: str, folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield what a release has recorded: in the spool, and in the submission log."""
    file = SPOOLS / f"{release}.sqlite.tar.gz"
    subprocess.run(["tar", "-xzf", file, "-C", folder], check=True)
    events = apsw.Connection(str(folder / "state/spool.sqlite")).execute(_EVENTS).fetchall()
    yield from ((step, json.loads(text)) for step, text in events)
    for path in (folder / "mail/.submissions/log").iterdir():
        lines = map(json.loads, path.read_text().splitlines())
        yield from ((one["step"], one["detail"]) for one in lines)


def test_what_is_read_of_a_row_is_written_again_as_it_was() -> None:
    for step, row in ROWS:
        assert msgspec.json.encode(read_detail(step, row)) == msgspec.json.encode(row)


@pytest.mark.parametrize("release", ["0.2.0", "0.3.0"])
def test_rows_of_a_release_are_written_again_as_they_were(tmp_path: Path, release: str) -> None:
    rows = [*rows_of(release, tmp_path)]
    assert {step for step, _ in rows} == {1, 2, 3, 4, 5, 6, 7}
    for step, row in rows:
        assert msgspec.json.decode(msgspec.json.encode(read_detail(step, row))) == row


def newer(value: Any) -> Any:
    """Return a value with keys that this Relay does not know, in each object."""
    if isinstance(value, dict):
        return {key: newer(one) for key, one in value.items()} | {"later": {"x": [1]}}
    return [newer(one) for one in value] if isinstance(value, list) else value


def odd(row: Any) -> Iterator[Any]:
    """Yield a value with another one in each place, of another type or empty."""
    places = row.items() if isinstance(row, dict) else enumerate(row)
    for place, value in [*places]:
        inner = odd(value) if isinstance(value, dict | list) else ()
        for other in chain(ODD, inner):
            changed = copy.copy(row)
            changed[place] = other
            yield changed


async def recorded(tmp_path: Path, rows: list[tuple[int, dict[str, Any]]], *, added: bool = False):
    """Return the journey of a message with these rows in the spool, and its events."""
    message = new_message([("mx:b.test", BOB)])
    events = tuple(Event(number, Foreign(step, row)) for number, (step, row) in enumerate(rows))
    if added:
        [entry] = message.entries
        path = ForwardPath("added@b.test")
        people = (*entry.recipients, NewRecipient(path, added_by="r"))
        entries = (msgspec.structs.replace(entry, recipients=people),)
        message = msgspec.structs.replace(message, entries=entries)
    async with spool_on(tmp_path / "spool.sqlite") as spool:
        await spool.accept(msgspec.structs.replace(message, events=events))
        found = await spool.events_after(0, limit=len(rows))
        events = [*found.events]
        while not found.is_complete and len(events) < len(rows):
            found = await spool.events_after(events[-1][0], limit=len(rows))
            events += found.events
        return await spool.journey(message.facts.id), events


async def test_what_a_newer_relay_has_recorded_is_shown_as_it_is(tmp_path: Path) -> None:
    rows = [(step, newer(row)) for step, row in ROWS if step >= 5]
    journey, events = await recorded(tmp_path, rows)
    shown = [one["detail"] for one in json.loads(msgspec.json.encode(journey))["steps"]]
    assert shown == [row for _, row in rows]
    sent = [json.loads(msgspec.json.encode(event_data("1", one)))["detail"] for _, one in events]
    assert sent == [{key: one for key, one in row.items() if key != "client"} for _, row in rows]


def read_everywhere(journey: Journey) -> None:
    """Read a journey as the API, the pages and the commands do."""
    for seen in (journey, sender_journey(journey)):
        shown = convert(json.loads(msgspec.json.encode(seen)), Journey)
        answer(shown, now_us=1)
        needed_reports(shown)
        journey_view(shown)
        journey_lines(shown)
        diagnosis(shown, [])


@pytest.mark.parametrize(("step", "row"), [*ROWS, (7, SUBMISSION_FAILED)])
def test_no_row_crashes_who_reads_it(step: int, row: dict[str, Any]) -> None:
    recipients = [{"address": BOB, "state": "failed", "attempts": [{"host": "h"}]}]
    facts = SubmissionFacts("a.1", "a", "a@b.test", "a@b.test", recipients=(BOB,))
    for changed in (newer(row), {}, *odd(row)):
        steps = [journey_step(step, 1, copy.deepcopy(changed))]
        if step >= 5:
            transport = made_journey(id="q", recipients=recipients, steps=to_builtins(steps))
            read_everywhere(join(None, transport))
        if step not in {5, 6}:
            read_everywhere(join(SubmissionRecord(facts, steps), None))


async def test_no_row_crashes_who_reads_the_spool(tmp_path: Path) -> None:
    rows = [(step, one) for step, row in ROWS if step >= 5 for one in ({}, *odd(row))]
    journey, events = await recorded(tmp_path, rows, added=True)
    read_everywhere(join(None, journey))
    assert len(events) == len(rows)
    for _, one in events:
        event_names(one)
        _text_of("", EventCursor(), one)
