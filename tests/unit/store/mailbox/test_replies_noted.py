"""A mailbox notes the senders that get automatic replies: once in a week, and a bounded number."""

from relay.base.message.receipt import OwedReceipt
from relay.store.mailbox.settings_file import PER_HOUR_MAX, REPLIED_MAX

ALICE = "alice@example.test"
START_US, HOUR_US = 1_700_000_000_000_000, 3_600_000_000


async def test_a_sender_is_noted_once_in_a_week(store) -> None:
    async def note(sender: int, hour: int, message: str = "m") -> bool:
        owed = OwedReceipt((message, -1), ALICE, "c", "", 0, f"S{sender}@a.test", True)
        return await store.settings.note_reply(owed, time_us=START_US + hour * HOUR_US)

    every = [await note(sender, 0) for sender in range(PER_HOUR_MAX + 1)]
    assert every == [True] * PER_HOUR_MAX + [False]
    assert await note(0, 1)  # what a crash repeats
    assert [await note(0, hour, "other") for hour in (1, 7 * 24 - 1, 7 * 24)] == [
        False,
        False,
        True,
    ]
    for sender in range(REPLIED_MAX):
        assert await note(1000 + sender, 200 + sender // PER_HOUR_MAX)
    assert await note(0, 211, "the oldest are forgotten")
