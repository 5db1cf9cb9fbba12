"""The records of refusals: pages, cursors, retention; and the limits of the files."""

import asyncio
import json
import stat
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from relay.base.clock import rfc3339, time_us_of
from relay.transport.refusals import day_files
from relay.transport.refusals.day_files import CLIENT_LINES_MAX, WAITING_MAX, RefusalFiles
from relay.transport.refusals.refusal import Refusal, RefusalReason, RefusalSearch, is_cursor

START_US = time_us_of("2026-11-22T10:00:00.000000Z")
HOUR_US = 3_600_000_000


def refusal(number: int = 0, **changes) -> Refusal:
    facts = {
        "at": rfc3339(START_US + number),
        "client": "192.0.2.1",
        "sender": "app@example.test",
        "recipients": (f"r{number}@customer.example",),
        "recipient_count": 1,
        "command": "RCPT",
        "reply": "550 5.1.1 unknown",
        "reason": RefusalReason.RECIPIENT,
    }
    return Refusal(**(facts | changes))


@pytest.fixture
async def files(tmp_path):
    made = RefusalFiles(tmp_path / "refused")
    yield made
    await made.close()


async def names(files: RefusalFiles, **wanted) -> list[str]:
    return [one.recipients[0][:-17] for one in (await files.page(RefusalSearch(**wanted))).refused]


async def everything(files: RefusalFiles) -> list[Refusal]:
    page = await files.page(RefusalSearch(limit=1000))
    found = page.refused
    while page.older:
        page = await files.page(RefusalSearch(limit=1000, before=page.older))
        found += page.refused
    return found


async def test_records_that_wait_for_a_thread_at_the_end_are_written(files):
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    go_on = threading.Event()
    busy = asyncio.ensure_future(asyncio.to_thread(go_on.wait))
    files.record(refusal())
    while files._waiting:
        await asyncio.sleep(0.001)
    closing = asyncio.ensure_future(files.close())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(busy, closing)
    assert await names(files) == ["r0"]


async def test_the_newest_record_is_first_and_pages_go_back(files):
    for number in range(7):
        files.record(refusal(number))
    page = await files.page(RefusalSearch(limit=3))
    assert [one.recipients[0][:2] for one in page.refused] == ["r6", "r5", "r4"]
    assert await names(files, limit=3, before=page.older) == ["r3", "r2", "r1"]
    last = await files.page(RefusalSearch(limit=3, before=rfc3339(START_US + 1)))
    assert ([one.at for one in last.refused], last.older) == ([rfc3339(START_US)], None)


async def test_behind_a_cursor_are_later_records_and_none_is_left_out(files):
    files.record(refusal(0))
    cursor = (await files.page(RefusalSearch())).cursor
    assert is_cursor(cursor)
    assert await names(files, after=cursor) == []
    for number in range(1, 6):
        files.record(refusal(number))
    seen = []
    while (page := await files.page(RefusalSearch(after=cursor, limit=2))).refused:
        seen += [one.recipients[0][:2] for one in reversed(page.refused)]
        cursor = page.cursor
    assert seen == ["r1", "r2", "r3", "r4", "r5"]
    assert page.cursor == cursor


async def test_records_of_one_moment_have_different_times(files):
    for _ in range(3):
        files.record(refusal(0))
    files.record(refusal(-5))  # the clock was set back
    found = [one.at for one in await everything(files)]
    assert found == [rfc3339(START_US + number) for number in (3, 2, 1, 0)]


async def test_a_time_far_in_the_future_does_not_stay(files):
    files.record(refusal(400 * 24 * HOUR_US))
    files.record(refusal(0))
    assert {one.at for one in await everything(files)} >= {rfc3339(START_US)}


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("APP@example.test", 4),
        ("r2@customer.example", 1),
        ("192.0.2.1", 3),
        ("192.0.2.9", 1),
        ("shop", 1),
        ("example.test", 0),
        ("j\u00f6rg@example.test", 1),
        ("192.0.2", 0),
    ],
)
async def test_an_address_is_that_of_client_login_sender_or_recipient(files, address, found):
    for number in range(3):
        files.record(refusal(number))
    other = {"client": "192.0.2.9", "account": "Shop", "recipients": ("J\u00d6RG@example.test",)}
    files.record(refusal(3, **other))
    assert len(await names(files, address=address)) == found


async def test_an_account_sees_only_its_own_login(files):
    for number, account in enumerate(("alice@example.test", "", "bob@example.test")):
        files.record(refusal(number, account=account))
    assert await names(files, account="Alice@example.test") == ["r0"]
    assert await names(files, account="") == ["r1"]


async def test_old_records_are_removed(files):
    for hours in (0, 1, 24, 26):
        files.record(refusal(hours * HOUR_US))
    before_us = START_US + 25 * HOUR_US
    assert await files.prune(before_us, dry_run=True) == 2
    assert len(await everything(files)) == 4
    assert await files.prune(before_us) == 2
    assert await files.prune(before_us) == 0
    files.record(refusal(50 * HOUR_US))
    assert [(time_us_of(one.at) - START_US) // HOUR_US for one in await everything(files)] == [
        *(50, 26, 24)
    ]


async def test_all_records_can_be_removed(files):
    files.record(refusal(0))
    assert len(await everything(files)) == 1
    await files.clear()
    files.record(refusal(1))
    assert len(await everything(files)) == 1


def day(tmp_path: Path) -> Path:
    return tmp_path / "refused" / "2026-11-22"


async def test_a_day_is_a_private_file_of_json_lines(files, tmp_path):
    files.record(refusal(0))
    files.record(refusal(24 * HOUR_US))
    await files.close()
    assert stat.S_IMODE(day(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(day(tmp_path).parent.stat().st_mode) == 0o700
    assert [json.loads(day(tmp_path).read_text())["at"]] == [rfc3339(START_US)]
    assert (tmp_path / "refused/2026-11-23").is_file()


async def test_records_are_written_without_a_reader(files, tmp_path):
    files.record(refusal(0))
    async with asyncio.timeout(120):
        while not day(tmp_path).exists() or not day(tmp_path).read_bytes():
            await asyncio.sleep(0.01)


async def test_further_refusals_of_one_client_are_counted(files, tmp_path):
    for number in range(1500):
        files.record(refusal(number, client=f"2001:db8::{number:x}"))
    files.record(refusal(1500, client="2001:db8:0:1::1"))
    found = await everything(files)
    assert Counter(one.times for one in found) == {1: CLIENT_LINES_MAX, 501: 1}
    assert found[0].client == "2001:db8:0:1::1"
    again = RefusalFiles(tmp_path / "refused")  # a start
    for number in range(1600, 1700):
        again.record(refusal(number, client="2001:db8::ffff"))
    assert sum(one.times for one in await everything(again)) == 1601
    await again.close()
    assert len(day(tmp_path).read_bytes().splitlines()) == CLIENT_LINES_MAX + 1


async def test_a_full_file_counts_by_reason(files, tmp_path, monkeypatch):
    monkeypatch.setattr(day_files, "FILE_BYTES_MAX", 70_000)
    monkeypatch.setattr(day_files, "_RESERVED_BYTES", 4_000)
    number = 0
    for round_ in range(2):
        for _ in range(1000):
            number += 1
            reason = RefusalReason.SYNTAX if number % 4 else RefusalReason.RULE
            files.record(
                refusal(number, client=f"10.0.{number >> 8}.{number & 255}", reason=reason)
            )
        found = await everything(files)
        assert sum(one.times for one in found) == number
        counted = {one.reason: one.times for one in found if not one.reply}
        assert set(counted) == {RefusalReason.SYNTAX, RefusalReason.RULE}
        assert 66_000 - 400 < day(tmp_path).stat().st_size < 70_000
        if not round_:
            await files.close()  # the numbers are read again


async def test_the_queue_is_bounded_and_what_does_not_fit_is_counted(files):
    for number in range(WAITING_MAX + 5):
        files.record(
            refusal(number, client=f"10.{number >> 14}.{number >> 7 & 127}.{number & 127}")
        )
    found = await everything(files)
    assert sum(one.times for one in found) == WAITING_MAX + 5
    assert [(one.times, one.reason) for one in found if not one.reply] == [(5, "recipient")]


async def test_damage_and_a_line_that_a_crash_cut_are_skipped(files, tmp_path):
    for number in range(3):
        files.record(refusal(number))
    await files.close()
    first, second, third = day(tmp_path).read_bytes().splitlines(keepends=True)
    day(tmp_path).write_bytes(first + b'{"at": 7}\nnonsense\n' + second + third[:-20])
    files.record(refusal(9))
    assert await names(files) == ["r9", "r1", "r0"]


async def test_a_disk_that_fails_loses_records_and_raises_nothing(files, tmp_path):
    day(tmp_path).mkdir(parents=True)  # cannot be opened as a file
    files.record(refusal(0))
    await files.close()
    day(tmp_path).rmdir()
    files.record(refusal(1))
    assert await names(files) == ["r1"]
