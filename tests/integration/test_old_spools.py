"""A relay opens what each release left on the disk, and loses no message of it, nor sends one twice.

tests/spools/README.md says what is in the archives and how they are made.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.spools.make_spools import CONFIG, LAST, OWED, SEND_AT, TABLES, WITHOUT_DSN
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received
from tests.support.reports import report_about

RELEASES = ("0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0")


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine() -> str:
    return "sqlite"


@pytest.fixture(scope="module")
def load_tables() -> Callable[[str, Path], None]:
    """Return a function that loads the tables of an archive: a file has its own."""
    return lambda url, script: None


@pytest.fixture(scope="module")
def opened(
    release: str, engine: str, load_tables: Callable[[str, Path], None]
) -> Iterator[tuple[RelayProcess, dict[str, Any], Remotes]]:
    """The present relay on the old state; the next hops that were down are up."""
    with Remotes() as remotes:
        for domain in ("other.test", "third.test"):
            remotes.start(domain)
        remotes.start("a.test", extensions=WITHOUT_DSN)
        relay = remotes.relay(config=CONFIG)
        file = Path(__file__).parents[1] / f"spools/{release}.{engine}.tar.gz"
        subprocess.run(["tar", "-xzf", file, "-C", relay.folder], check=True)
        load_tables(relay.config["spool"].get("url", ""), relay.folder / TABLES)
        expected = json.loads((relay.folder / "expected.json").read_text())
        with relay:
            for one in ("ready", "owed"):
                relay.until_final(expected[one])
            yield relay, expected, remotes


def test_nothing_is_found_to_be_wrong(opened, engine) -> None:
    relay, expected, _ = opened
    assert relay.request("GET", "/readyz").body == b"ready\n"
    if engine == "sqlite":  # PostgreSQL's own tools verify its tables
        found = relay.cli_json("storage", "verify", "--full")
        assert (found["findings"], found["submissions"]["scheduled"]) == (
            [],
            len(expected["scheduled"]),
        )


def test_a_report_that_is_owed_names_all_recipients(opened) -> None:
    relay, _, remotes = opened
    assert received(remotes.servers[2], LAST).addresses == [LAST]
    report = report_about(relay, OWED[0])
    assert list(report.recipients) == [*OWED, LAST]
    assert {one["action"] for one in report.recipients.values()} == {"relayed"}


def test_final_messages_have_their_journeys(opened) -> None:
    relay, expected, _ = opened
    for state in ("delivered", "failed"):
        assert relay.journey(expected[state])["state"] == state
        sent = relay.graph("GET", f"/me/messages/{expected[state]}").json()
        assert (sent["subject"], sent["isDraft"]) == (state, False)
    assert "delivered" in relay.subjects("bob")
    reports = [one["subject"] for one in relay.messages("inbox")]
    assert sum("failed" in one for one in reports) == 1  # the bounce


def test_a_submission_in_ready_is_delivered_once(opened) -> None:
    relay, expected, _ = opened
    assert relay.states(expected["ready"]) == {"bob@example.test": "delivered"}
    until("it is in Sent Items", lambda: "ready" in relay.subjects("alice", "Sent"))
    assert relay.subjects("bob").count("ready") == 1


def test_deferred_and_held_messages_are_delivered_when_the_next_hop_is_up(opened) -> None:
    relay, expected, remotes = opened
    queued = {one["id"] for one in relay.queue()}
    deferred, held = expected["deferred"], expected["held"]
    assert queued == {*deferred.values(), *held.values()}
    (held_id, held_queue_id) = next(iter(held.items()))
    assert relay.states(held_id) == {"grace@other.test": "held"}
    relay.cli_json("queue", "retry", *deferred.values())
    relay.cli_json("queue", "release", held_queue_id)
    for identity in (*deferred, held_id):
        relay.until_final(identity)
        assert set(relay.states(identity).values()) == {"relayed"}
    other, third, _ = remotes.servers
    for name in ("carol", "erin", "frank", "grace"):
        assert received(other, f"{name}@other.test").content
    assert len(received(third, "dave@third.test").content) > 200_000
    assert relay.queue() == []


def test_scheduled_sends_can_be_changed_sent_and_cancelled(opened) -> None:
    relay, expected, _ = opened
    sent, cancelled = expected["scheduled"]
    for identity in (sent, cancelled):
        assert relay.journey(identity)["state"] == "scheduled"
        assert relay.journey(identity)["recipients"][0]["next_attempt"].startswith("209")
        assert relay.graph("GET", f"/me/messages/{identity}").json()["isDraft"]
    now = {"singleValueExtendedProperties": [{"id": SEND_AT, "value": "2026-01-01T00:00:00Z"}]}
    assert relay.graph("PATCH", f"/me/messages/{sent}", now).status == 200
    assert relay.graph("DELETE", f"/me/messages/{cancelled}").status == 204
    relay.until_final(sent)
    assert relay.states(sent) == {"bob@example.test": "delivered"}
    assert relay.journey(cancelled)["state"] == "cancelled"


def test_drafts_are_as_they_were(opened) -> None:
    relay, expected, _ = opened
    for identity, subject in expected["drafts"].items():
        draft = relay.graph("GET", f"/me/messages/{identity}").json()
        assert (draft["subject"], draft["isDraft"]) == (subject, True)
        attachments = relay.graph("GET", f"/me/messages/{identity}/attachments").json()["value"]
        names = ["a.txt"] if subject == "with attachment" else []
        assert [one["name"] for one in attachments] == names


def test_an_upload_session_goes_on_where_it_stood(opened) -> None:
    relay, expected, _ = opened
    upload = expected["upload"]
    start, size = upload["received"], upload["size"]
    told = relay.request("GET", upload["path"]).json()["nextExpectedRanges"]
    assert told == [f"{start}-{size - 1}"]
    headers = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
    assert relay.request("PUT", upload["path"], bytes(size - start), headers).status == 201
    shown = relay.graph("GET", f"/me/messages/{upload['draft']}/attachments").json()["value"]
    assert [one["name"] for one in shown] == ["large.bin"]


def test_no_error_is_logged(opened) -> None:
    relay, _, _ = opened
    assert relay.faults() == []
