"""The quota of a mailbox, by size and by number; concurrent writes fit together."""

from collections.abc import Collection
from pathlib import Path

import pytest

from relay.store.mailbox.errors import MailboxFullError, MailboxTooSmallError
from relay.store.mailbox.quota import Quota
from relay.store.mailbox.usage import CountedUsage, QuotaLimits, Room, Usage
from tests.support.in_thread import in_threads
from tests.support.stores import blocking
from tests.support.tables import each_row

MIB = 1024 * 1024


class Counted:
    """Counts that a test sets; `names` are the base names that are in them."""

    def __init__(self, size_bytes: int, messages: int) -> None:
        self.usage_now = Usage(size_bytes, messages)
        self.names: set[str] = set()

    def usage(self, mailbox: Path, *, base_names: Collection[str] = ()) -> CountedUsage:
        return CountedUsage(self.usage_now, frozenset(self.names.intersection(base_names)))


def made(limits: QuotaLimits, *, size_bytes: int = 0, messages: int = 0) -> tuple[Quota, Counted]:
    counted = Counted(size_bytes, messages)
    return Quota(lambda _: limits, counted), counted


@each_row(
    "limits, size_bytes, room",
    [
        (QuotaLimits(), 10**12, Room.FITS),
        (QuotaLimits(1000), 100, Room.FITS),
        (QuotaLimits(1000), 101, Room.FULL),
        (QuotaLimits(1000), 1000, Room.FULL),
        (QuotaLimits(1000), 1001, Room.NEVER),
        (QuotaLimits(None, 10), 10**12, Room.FITS),
        (QuotaLimits(None, 9), 1, Room.FULL),
        (QuotaLimits(1000, 10), 100, Room.FITS),
    ],
)
def test_what_fits(tmp_path, limits, size_bytes, room):
    quota, _ = made(limits, size_bytes=900, messages=9)
    assert quota.room("a@b", tmp_path, size_bytes) is room
    if room is Room.FITS:
        with quota.room_for("a@b", tmp_path, size_bytes, base_name="s"):
            return
    kind = MailboxTooSmallError if room is Room.NEVER else MailboxFullError
    with (
        pytest.raises(kind, match="a@b"),
        quota.room_for("a@b", tmp_path, size_bytes, base_name="s"),
    ):
        pytest.fail("there was no room")


def test_room_is_kept_until_the_file_is_counted_and_not_twice(tmp_path):
    quota, counted = made(QuotaLimits(1000), size_bytes=0)
    with quota.room_for("a@b", tmp_path, 600, base_name="one"):
        assert quota.room("a@b", tmp_path, 401) is Room.FULL
        counted.usage_now, counted.names = Usage(600, 1), {"one"}
        assert quota.room("a@b", tmp_path, 400) is Room.FITS
    assert quota.room("a@b", tmp_path, 400) is Room.FITS


def test_room_is_given_back_when_writing_fails(tmp_path):
    quota, _ = made(QuotaLimits(1000))
    with (
        pytest.raises(OSError, match="disk"),
        quota.room_for("a@b", tmp_path, 900, base_name="one"),
    ):
        raise OSError("disk")
    assert quota.room("a@b", tmp_path, 1000) is Room.FITS


def test_growth_counts_no_message(tmp_path):
    quota, _ = made(QuotaLimits(1000, 1), size_bytes=100, messages=1)
    with quota.room_for("a@b", tmp_path, 900, base_name="s", messages=0):
        pass
    with quota.room_for("a@b", tmp_path, -5, base_name="s", messages=0):
        pass


@each_row(
    "limits, used, fits",
    [
        (QuotaLimits(MIB), Usage(11 * MIB - 1, 0), True),  # 10 MiB over
        (QuotaLimits(MIB), Usage(11 * MIB, 0), False),
        (QuotaLimits(1000 * MIB), Usage(1100 * MIB - 1, 0), True),  # a tenth over
        (QuotaLimits(1000 * MIB), Usage(1100 * MIB, 0), False),
        (QuotaLimits(None, 5), Usage(0, 104), True),  # 100 messages over
        (QuotaLimits(None, 5), Usage(0, 105), False),
        (QuotaLimits(None, 5000), Usage(0, 5499), True),
        (QuotaLimits(None, 5000), Usage(0, 5500), False),
    ],
)
def test_reports_pass_within_a_bound(tmp_path, limits, used, fits):
    quota, _ = made(limits, size_bytes=used.size_bytes, messages=used.messages)
    try:
        with quota.room_for("a@b", tmp_path, 1, base_name="s", is_report=True):
            assert fits
    except MailboxFullError:
        assert not fits


async def test_threads_that_write_at_once_fill_the_mailbox_and_no_more(place, draft):
    store = place.store()
    sizes = {(await store.messages.create("alice@example.test", draft())).size for _ in range(2)}
    [size_bytes] = sizes
    place.quotas["alice@example.test"] = size_bytes * 8
    outcomes: list[str] = []

    def write() -> None:
        try:
            blocking(store.messages.create)("alice@example.test", draft())
            outcomes.append("written")
        except MailboxFullError:
            outcomes.append("full")

    with in_threads([write] * 16):
        pass
    assert sorted(outcomes) == ["full"] * 10 + ["written"] * 6
    used = store.messages.index.usage(place.root / "example.test/alice").usage
    assert used == Usage(size_bytes * 8, 8)
