"""The file relay-properties on a disk that fails and forgets: what was answered is there."""

import random
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest
from msgspec.structs import replace

from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.message_state import MessageState, decode_state
from relay.store.mailbox.state_file import FILE_NAME, StateFile, StatePosition
from tests.support.vfs import FaultyDisk

LIVES, WRITES, MESSAGES = 6, 25, 5


def categories_in(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT message_id, value FROM state").fetchall()
    return {message_id: (decode_state(value).categories or ("",))[0] for message_id, value in rows}


def numbered(states: StateFile, message_id: str, stay: int = 0) -> int:
    return states.number([("inbox", (message_id,), stay)])[0][0]


def articles_in(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT message_id, number FROM article"))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a close
def test_what_was_answered_survives_failures_kills_and_losses_of_power(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    home = tmp_path / "home"
    home.mkdir()
    may_be: dict[str, set[str]] = {}  # the last answered value, and those tried since
    refused = 0
    given: dict[str, int] = {}  # the last article numbers that were answered
    order: list[int] = []  # all of them
    with FaultyDisk(rng=rng) as disk:
        for life in range(LIVES):
            states = StateFile(home)
            for number in range(WRITES):
                match rng.randrange(6):
                    case 0:
                        disk.refuses("sync", suffix=rng.choice(["-wal", FILE_NAME]))
                    case 1:
                        disk.refuses("write", suffix=rng.choice(["-wal", FILE_NAME]))
                    case 2 | 3:
                        disk.is_well()
                name, value = f"m{rng.randrange(MESSAGES)}", f"{life}.{number}"
                may_be.setdefault(name, {""}).add(value)
                try:
                    states.write({name: MessageState(categories=(value,))})
                    may_be[name] = {value}
                    given.pop(name, 0)  # until the next one is answered
                    given[name] = numbered(states, name, life * WRITES + number + 1)
                    order.append(given[name])
                except StoreUnavailableError:
                    refused += 1
            left = tmp_path / f"left {life}"
            left.mkdir()
            disk.after_loss_of_power(left, rng)
            found = categories_in(left / FILE_NAME) if any(may_be.values()) else {}
            assert given.items() <= (articles_in(left / FILE_NAME) if given else {}).items()
            assert [one for one in may_be if found.get(one, "") not in may_be[one]] == []
            for one in (states._reader, states._writer):  # killed: nothing is copied out of the log
                if one._connection is not None:
                    one._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            with suppress(StoreUnavailableError):
                states.close()
            disk.is_well()
    assert refused > LIVES
    assert order == sorted(set(order))


def test_a_file_that_could_not_be_given_its_log_is_not_used(tmp_path: Path) -> None:
    with FaultyDisk() as disk:
        disk.refuses("sync", suffix="-journal")
        disk.on_sync = lambda _suffix: disk.is_well() if disk.refusals["sync"] else None  # once
        states = StateFile(tmp_path)
        with pytest.raises(StoreUnavailableError):
            states.write({"m1": MessageState(importance="high")})
        states.write({"m1": MessageState(importance="low")})
        assert states._writer._connection.execute("PRAGMA journal_mode").get == "wal"
        states.close()


def test_a_reader_waits_while_the_file_is_set_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    writer, reader = StateFile(tmp_path), StateFile(tmp_path)
    reads: list[Future[StatePosition]] = []
    with FaultyDisk() as disk, ThreadPoolExecutor(1) as thread:

        def read(suffix: str) -> None:
            if suffix == "-properties" and not reads:  # which the writer has locked then
                reads.append(thread.submit(reader.position))
                wait(reads, timeout=0.2)

        disk.on_sync = read
        writer.write({"m1": MessageState(importance="high")})
        assert reads[0].result().version in (0, writer.position().version)
        writer.close(), reader.close()
    assert "unusable" not in capfd.readouterr().err


def test_several_processes_create_and_write_it(tmp_path: Path) -> None:
    first, second = StateFile(tmp_path), StateFile(tmp_path)
    assert first.position() == second.position() == StatePosition()
    first.write({"m1": MessageState(importance="low")})
    before = second.position()
    first.write({"m2": MessageState(importance="high")})
    assert second.position() != before
    assert second.position() == first.position()
    assert [one[:2] for one in second.since(2)] == [(2, "m2")]
    assert second.since(2, "m2") == []
    second.write({"m1": MessageState()})
    assert (first.find("m1"), first.find("m3")) == (b"", b"")
    first.close()
    assert second.find("m2") == b'{"importance":"high"}'
    second.close()
    assert [one.name for one in tmp_path.iterdir()] == [FILE_NAME]


def test_two_processes_keep_each_others_values(tmp_path: Path) -> None:
    first, second = StateFile(tmp_path), StateFile(tmp_path)
    first.change(("m", "o"), lambda one: replace(one, importance="high"), base=b"")
    state, before = second.change(("m",), lambda one: replace(one, is_other=True), base=b"")
    assert state == MessageState(importance="high", is_other=True)
    second.restore(before)
    assert decode_state(first.find("m")) == decode_state(first.find("o"))
    for one in (first, second):
        one.close()


def test_many_states_are_read_in_parts(tmp_path: Path) -> None:
    states = StateFile(tmp_path)
    states.write({f"m{number:04}": MessageState(modified_us=1) for number in range(1001)})
    large = MessageState(categories=("x" * 60_000,))
    states.write({f"n{number:04}": large for number in range(100)})
    found, parts, at = [], 0, (0, "")
    while some := states.since(*at):
        assert sum(len(one[2]) for one in some) < 5_000_000
        found += [one[1] for one in some]
        at, parts = some[-1][:2], parts + 1
    assert found == sorted(found)
    assert (len(found), parts) == (1101, 3)
    states.close()


def test_states_of_vanished_messages_have_a_bound(tmp_path: Path) -> None:
    states = StateFile(tmp_path)
    large = MessageState(categories=("x" * 60_000,))
    states.write({f"m{number:03}": large for number in range(300)})
    vanished = [one for one in states.ids() if one != "m000"]
    states.expire(vanished, now_us=1)
    assert [numbered(states, one) for one in ("m000", "gone", "m000")] == [1, 2, 1]
    states.expire({*vanished, "gone"}, now_us=1)
    left = states.ids()
    assert "m000" in left
    assert "gone" not in left
    assert [numbered(states, one) for one in ("gone", "m000")] == [3, 1]
    assert 250 < len(left) < 290
    states.close()
