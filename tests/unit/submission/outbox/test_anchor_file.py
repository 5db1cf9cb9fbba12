"""The store keeps the time that its submissions' names have."""

import pytest

from relay.base.clock import Anchor, Machine, SystemClock
from relay.store.mailbox.errors import StoreError
from relay.submission.outbox.on_disk import ClockAnchorFile
from tests.support.tables import each_row
from tests.unit.store.mailbox.conftest import Place

NOW = Anchor(1_700_000_000_000_000, 1_700_000_000_000_001, 5, "boot", 7, 8)
DAY = 86_400_000_000


def test_what_was_written_is_read(tmp_path):
    file = ClockAnchorFile(tmp_path)
    assert file.read() is None
    file.write(NOW)
    file.write(NOW)
    assert file.read() == NOW
    assert [path.name for path in tmp_path.iterdir()] == ["clock"]


@each_row("octets", [b"", b"{", b"[1]", b'{"queue_us": "x"}', b"\xff"])
def test_what_cannot_be_read_is_as_none(tmp_path, octets):
    (tmp_path / "clock").write_bytes(octets)
    assert ClockAnchorFile(tmp_path).read() is None


async def test_a_store_goes_on_with_it(tmp_path):
    machine = Machine(lambda: 1000 * (NOW.wall_us - 400 * DAY), lambda: 6000, "boot")
    place = Place(tmp_path / "mail", clock=SystemClock(machine))
    (place.root / ".submissions").mkdir(parents=True)
    ClockAnchorFile(place.root / ".submissions").write(NOW)
    store = place.store()
    assert place.clock.queue_us() == NOW.queue_us + 1
    await store.keep_anchor()
    assert ClockAnchorFile(place.root / ".submissions").read().queue_us == NOW.queue_us + 1
    store.close()


async def test_a_write_error_is_reported(place):
    store = place.store()
    (place.root / ".submissions").mkdir(parents=True, exist_ok=True)
    (place.root / ".submissions/clock.new").mkdir()
    with pytest.raises(StoreError):
        await store.keep_anchor()
