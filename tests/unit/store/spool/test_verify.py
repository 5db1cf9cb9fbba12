"""Verification of a spool: findings; mail is never dropped."""

import os
import re
from pathlib import Path
from zlib import crc32

import apsw
import pytest

from relay.store.spool.engine import SpoolFinding, VerifyRequest
from relay.store.spool.sqlite.content_files import INLINE_BYTES_MAX
from relay.store.spool.sqlite.spool_files import damage_mark_of
from relay.store.spool.sqlite.verify import SpoolVerifier
from relay.store.spool.types import ClaimResult, EntrySchedule
from tests.support.operator import LATER, OK

LARGE = b"Subject: large\r\n\r\n" + b"x" * INLINE_BYTES_MAX


@pytest.fixture
async def filled(path: Path, make, running, clock) -> str:
    """A spool that was stopped; the queue id of what waits in it, with a content in a file."""
    async with running(path) as spool:
        (done,) = (await spool.accept(make(), submission_key="draft.1")).claims
        await spool.record(ClaimResult(done, 5, {1: OK}))
        await spool.accept(make())
        due_us = clock.queue_us() + 1000
        (claim,) = (await spool.accept(make(content=LARGE))).claims
        await spool.record(ClaimResult(claim, 5, {1: LATER}, EntrySchedule(due_us, due_us)))
    return claim.message.id


def verify(path: Path, **more: bool) -> list[SpoolFinding]:
    findings: list[SpoolFinding] = []
    request = VerifyRequest(findings.append, **{"is_owner": True, **more})
    SpoolVerifier(path, request).run()
    return findings


def by_hand(path: Path, sql: str, *values: object) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(sql, values)
    connection.close()


@pytest.mark.parametrize("is_owner", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_a_sound_spool_has_no_findings(path: Path, filled, is_owner, full) -> None:
    request = VerifyRequest(pytest.fail, is_owner=is_owner, full=full)
    counts = SpoolVerifier(path, request).run()
    assert counts == {
        "messages": 3,
        "entries": 2,
        "contents": 2,
        "submissions": 1,
        "unaccounted": 0,
    }


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("DELETE FROM message WHERE id = ?", {"a message that it belongs to"}),
        (
            "DELETE FROM entry WHERE message_id = ?",
            {"an entry that it belongs to", "no entry that needs it"},
        ),
        ("DELETE FROM recipient WHERE message_id = ?", {"a recipient that is not final"}),
        (
            "UPDATE entry SET state = 'final', due_us = NULL WHERE message_id = ?",
            {"an entry that is still in the queue"},
        ),
        (
            "DELETE FROM content WHERE id = (SELECT content_id FROM entry WHERE message_id = ?)",
            {"a content"},
        ),
        (
            "UPDATE entry SET extra = '{' WHERE message_id = ?",
            {"a readable text of its other fields"},
        ),
        (
            "UPDATE entry SET due_us = NULL, retry_us = NULL WHERE message_id = ?",
            {"no time to look at it"},
        ),
        ("UPDATE message SET extra = '{' WHERE id = ?", {"a readable text of its other fields"}),
    ],
)
def test_lost_rows_are_reported_by_every_verification(path, filled, sql, expected) -> None:
    by_hand(path, sql, filled)
    for _ in range(2):
        found = verify(path)
        assert expected <= {text for one in found for text in (one.expected, one.found)}
        assert not any(one.repaired for one in found)


def test_counters_are_corrected_only_with_recount(path: Path, filled) -> None:
    def counters(**more: bool) -> list[tuple[str, bool, str]]:
        found = [one for one in verify(path, **more) if one.kind == "counters"]
        return [(one.found, one.repaired, one.action) for one in found]

    by_hand(path, "DELETE FROM recipient WHERE message_id = ?", filled)
    lost = "1 recipients unaccounted for"
    advice = "once the cause is known, --recount corrects it while no relay runs"
    assert counters() == counters(is_owner=False) == [(lost, False, advice)]
    assert counters(recount=True, is_owner=False) == [
        (lost, False, "a relay may run: stop it first")
    ]
    assert counters(recount=True) == [(lost, True, "corrected")]
    assert counters(recount=True) == []
    by_hand(path, "INSERT INTO counter VALUES ('held_by_rules', 3)")
    wrong = "3 entries held by rules"
    assert counters() == [(wrong, False, advice)]
    assert counters(recount=True) == [(wrong, True, "corrected")]
    assert counters(recount=True) == []


def lost(content: Path) -> None:
    content.unlink()


def cut_short(content: Path) -> None:
    os.truncate(content, 5)


@pytest.mark.parametrize(
    ("harm", "found"), [(lost, "no such file or directory"), (cut_short, "5 bytes")]
)
def test_a_lost_content_is_reported(path: Path, filled, harm, found) -> None:
    content = path.with_name(path.name + "-content") / f"{filled}-0"
    harm(content)
    (finding,) = verify(path)
    assert finding == SpoolFinding(
        "lost-content", str(content), found, f"{len(LARGE)} bytes", repaired=False, action=""
    )


def test_changed_bytes_are_reported_by_a_full_verification(path, filled) -> None:
    content = path.with_name(path.name + "-content") / f"{filled}-0"
    content.write_bytes(LARGE.replace(b"large", b"lar9e"))
    by_hand(path, "UPDATE content SET data = zeroblob(size) WHERE data IS NOT NULL")
    assert verify(path) == []
    in_file, inline = verify(path, full=True)
    assert (in_file.kind, in_file.where) == ("lost-content", str(content))
    assert in_file.expected == f"octets with CRC-32 {crc32(LARGE):08x}"
    assert in_file.found == f"octets with CRC-32 {crc32(content.read_bytes()):08x}"
    assert (inline.kind, inline.repaired, inline.action) == ("lost-content", False, "")
    assert re.fullmatch(r"content \d+ of [0-9A-Za-z]+-1", inline.where)
    content.write_bytes(LARGE)
    assert verify(path, full=True) == [inline]


def test_an_inconsistent_index_is_found_by_a_full_verification(path: Path, filled) -> None:
    connection = apsw.Connection(str(path))
    root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'entry_due'").get
    connection.close()
    with path.open("r+b") as file:  # an empty leaf in place of the index
        file.seek((root - 1) * 4096)
        file.write(b"\x0a\0\0\0\0\x10\0\0" + bytes(4088))
    assert {one.kind for one in verify(path, full=True)} == {"damaged-spool"}


def test_damage_is_reported(path: Path, filled) -> None:
    octets = path.read_bytes()
    path.write_bytes(octets[:4096] + b"\xff" * (len(octets) - 4096))
    found = verify(path)
    assert {one.kind for one in found} == {"damaged-spool"}
    assert not any(one.repaired for one in found)


def test_the_damage_mark_is_removed_when_every_page_can_be_read(path: Path, filled) -> None:
    damage_mark_of(path).write_text("the disk was loose\n")
    assert verify(path, is_owner=False) == []
    assert damage_mark_of(path).exists()
    assert verify(path) == []
    assert not damage_mark_of(path).exists()
