"""The records of keys that Relay 0.2.0 left are read over once: none is forgotten, and none lives longer."""

import errno
import hashlib
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from relay.store.mailbox.types import SendOptions, StoreUnavailableError, SubmissionKey
from relay.submission.outbox.idempotency import KeyedSubmission, slot_of
from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on

ALICE = "alice@example.test"
DAY_US = 86_400_000_000
# As 0.2.0 made it.
SCHEMA = """
CREATE TABLE submission (
    slot BLOB PRIMARY KEY, account TEXT NOT NULL, fingerprint BLOB NOT NULL,
    submission_id TEXT NOT NULL, place TEXT NOT NULL, internet_message_id TEXT NOT NULL,
    preference_applied TEXT NOT NULL, at_us INTEGER NOT NULL,
    is_removed INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
"""


def slot(key: str) -> str:
    return slot_of(ALICE, ALICE, key)


class OldKeys:
    """A mail root with `.submissions/keys.sqlite`."""

    def __init__(self, root: Path, draft) -> None:
        self.submissions = root / ".submissions"
        self.clock = ManualClock()
        self._root, self._draft = root, draft
        with self.store():
            pass
        self.file = self.submissions / "keys.sqlite"
        with closing(apsw.Connection(str(self.file))) as connection:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            connection.execute(SCHEMA)

    def store(self):
        return store_on(self._root, self.clock)

    async def used(self, key: str, *, ago_us: int = 0, is_removed: bool = False) -> KeyedSubmission:
        """Submit a message, and record its key as 0.2.0 did."""
        with self.store() as store:
            made = await store.submissions.submit_new(ALICE, self._draft(), SendOptions())
        record = KeyedSubmission(
            b"request", made.submission_id, f"ready/{made.path.name}", f"<{key}@a>", "x"
        )
        owned = hashlib.sha256(f"{ALICE}\0{ALICE}\0{key}".encode()).digest()
        at_us = self.clock.queue_us() - ago_us
        with closing(apsw.Connection(str(self.file))) as connection:
            row = (owned, ALICE, record.fingerprint, record.submission_id, record.place)
            more = (record.internet_message_id, record.preference_applied, at_us, is_removed)
            connection.execute("INSERT INTO submission VALUES (?,?,?,?,?,?,?,?,?)", (*row, *more))
        return record

    def cut_off(self, record: KeyedSubmission) -> None:
        """Leave what a crash left after the record, before the submission had its place."""
        (self.submissions / record.place).rename(
            self.submissions / "preparing" / record.submission_id
        )

    def names(self, folder: str) -> list[str]:
        return sorted(one.name.partition("@")[0] for one in (self.submissions / folder).iterdir())


@pytest.fixture
def old(tmp_path: Path, draft) -> OldKeys:
    return OldKeys(tmp_path / "mail", draft)


async def test_keys_that_may_be_used_again_are_known_and_the_old_file_is_gone(old) -> None:
    known = {
        "now": await old.used("now"),
        "yesterday": await old.used("yesterday", ago_us=DAY_US - 1),
    }
    await old.used("before", ago_us=DAY_US)
    known["cut off"] = cut_off = await old.used("cut off")
    old.cut_off(cut_off)
    for _ in range(2):  # the second start reads what the first one wrote
        with old.store() as store:
            await store.submissions.remove_unfinished()
            found = {key: await store.submissions.find_keyed(ALICE, slot(key)) for key in known}
            assert found == known
            assert await store.submissions.find_keyed(ALICE, slot("before")) is None
        assert list(old.submissions.glob("keys.sqlite*")) == []
        assert old.names("preparing") == []
        assert cut_off.submission_id in old.names("ready")


async def test_a_submission_that_was_being_removed_has_a_key_only_if_it_is_sent(old) -> None:
    removed = await old.used("removed", is_removed=True)
    old.cut_off(removed)
    sent = await old.used("sent", is_removed=True)
    with old.store() as store:
        await store.submissions.remove_unfinished()
        assert await store.submissions.find_keyed(ALICE, slot("removed")) is None
        assert await store.submissions.find_keyed(ALICE, slot("sent")) == sent
    assert (old.names("preparing"), old.names("ready")) == ([], [sent.submission_id])


async def test_no_key_is_used_before_all_are_durable(old, monkeypatch) -> None:
    record = await old.used("a")

    def failing(_path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with old.store() as store, monkeypatch.context() as patched:
        patched.setattr("relay.submission.outbox.unfinished.sync_disk", failing)
        with pytest.raises(StoreUnavailableError):
            await store.submissions.remove_unfinished()
        with pytest.raises(StoreUnavailableError):
            await store.submissions.find_keyed(ALICE, slot("b"))
        assert old.file.exists()
        patched.undo()
        await store.attend_root()
        assert await store.submissions.find_keyed(ALICE, slot("a")) == record


async def test_a_file_that_cannot_be_read_is_named_until_somebody_moves_it_away(old) -> None:
    old.file.write_bytes(b"no database" * 100)
    with old.store() as store:
        with pytest.raises(
            StoreUnavailableError, match=r"keys\.sqlite of Relay 0\.2\.0 cannot be read"
        ):
            await store.submissions.remove_unfinished()
        with pytest.raises(StoreUnavailableError):
            await store.submissions.find_keyed(ALICE, slot("a"))
        old.file.rename(old.file.with_name("aside"))
        await store.attend_root()
        key = SendOptions(key=SubmissionKey(slot("a"), lambda: b"request", lambda: ""))
        assert await store.submissions.find_keyed(ALICE, slot("a")) is None
        await store.submissions.submit_new(ALICE, old._draft(), key)
