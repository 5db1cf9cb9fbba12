"""The size of the dead-letter mailbox: answers to reports go, the oldest first."""

import os
from pathlib import Path

from relay.operation.app.maintenance import prune_answers


def put(mailbox: Path, name: str, to: str, *, at_s: int, part: str = "new") -> Path:
    path = mailbox / part / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        f"X-Relay-Id: 06h0000000000000\r\nReturn-Path: <a@b.test>\r\nDelivered-To: {to}\r\n".encode()
        + b"Subject: x\r\n\r\n".ljust(1000, b"y")
    )
    os.utime(path, (at_s, at_s))
    return path


def test_the_oldest_answers_go_and_what_is_for_the_postmaster_stays(tmp_path: Path) -> None:
    daemon = "MAILER-DAEMON@relay.test"
    own = put(tmp_path, "own", "postmaster", at_s=1)
    old = put(tmp_path, "old", daemon, at_s=2, part="cur")
    human = put(tmp_path, "human", "postmaster@example.test", at_s=3)
    new = put(tmp_path, "new", daemon, at_s=4)
    notice = put(
        tmp_path, "notice", "postmaster\r\nFrom: <d@a.test>\r\nTo: <postmaster@a.test>", at_s=5
    )
    size = old.stat().st_size + own.stat().st_size + human.stat().st_size + new.stat().st_size
    size += notice.stat().st_size
    assert prune_answers(tmp_path, kept_bytes=size) == 0
    assert prune_answers(tmp_path, kept_bytes=size - 1) == 1
    assert [one.exists() for one in (own, old, human, new)] == [True, False, True, True]
    assert prune_answers(tmp_path, kept_bytes=0) == 3
    assert [one.exists() for one in (own, human, new, notice)] == [True, False, False, False]
    assert prune_answers(tmp_path / "none", kept_bytes=0) == 0
