"""The subscriptions file: changed line by line, under Dovecot's lock."""

import os
import threading

from relay.store.mailbox.folder_tree import resubscribe, resubscribed
from relay.store.mailbox.maildir import list_names
from tests.support.tables import each_row

V2 = b"V\t2\n\n"


@each_row(
    "before, added, changed, after",
    [
        (b"", [".A"], {}, V2 + b"A\n"),
        (V2 + b"Sent\n", [".A.B"], {}, V2 + b"Sent\nA\tB\n"),
        (V2 + b"A\tB\n", [".A.B"], {}, V2 + b"A\tB\n"),
        (V2 + b"A\nA\tB\nAB\n", [], {".A": ".X.A", ".A.B": ".X.A.B"}, V2 + b"X\tA\nX\tA\tB\nAB\n"),
        (V2 + b"A\nB\n", [], {".A": ""}, V2 + b"B\n"),
        (V2 + b"odd\x01t line\n", [".B"], {".A": ".C"}, V2 + b"odd\x01t line\nB\n"),
        (b"A\nA.B\n", [".C.D"], {".A.B": ".A.X"}, b"A\nA.X\nC.D\n"),
        (b"A", [".B"], {}, b"A\nB\n"),
        (V2 + b"A\nB\nA\n", [], {".A": ".B"}, V2 + b"B\n"),
    ],
)
def test_a_change_touches_its_own_lines_only(before, added, changed, after):
    assert resubscribed(before, added=added, changed=changed) == after


def test_the_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    file = tmp_path / "subscriptions"
    file.write_bytes(V2 + b"A\n")
    inode = file.stat().st_ino
    with file.open("rb") as reader:
        resubscribe(tmp_path, added=[".B"])
        assert reader.read() == V2 + b"A\n"
    assert file.read_bytes() == V2 + b"A\nB\n"
    assert file.stat().st_ino != inode
    assert list_names(tmp_path) == ["subscriptions"]


def test_who_has_the_lock_is_waited_for(tmp_path):
    lock = tmp_path / "subscriptions.lock"
    lock.touch()
    waiter = threading.Thread(target=resubscribe, args=(tmp_path,), kwargs={"added": [".B"]})
    waiter.start()
    waiter.join(0.1)
    assert waiter.is_alive()
    assert not (tmp_path / "subscriptions").exists()
    lock.unlink()
    waiter.join(10)
    assert (tmp_path / "subscriptions").read_bytes() == V2 + b"B\n"


def test_a_lock_that_a_crash_left_is_taken(tmp_path):
    lock = tmp_path / "subscriptions.lock"
    lock.touch()
    os.utime(lock, (1, 1))
    resubscribe(tmp_path, added=[".B"])
    assert list_names(tmp_path) == ["subscriptions"]


def test_a_lock_that_others_keep_leaves_the_file_alone(tmp_path):
    lock = tmp_path / "subscriptions.lock"
    lock.touch()
    resubscribe(tmp_path, added=[".B"])
    assert list_names(tmp_path) == ["subscriptions.lock"]
