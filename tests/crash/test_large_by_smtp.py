"""kill -9 around the acceptance of a large message by SMTP: the content file is synced before the commit.

What got a 250 is delivered once; no file is left that no message needs. See docs/design.md 4, 7.1,
7.10; RFC 5321 4.5.4.
"""

import hashlib
import smtplib

import pytest

from relay.base.crashpoints import CrashPoint
from relay.base.message.content import LARGE_BYTES
from tests.crash.conftest import HeldRemote
from tests.support.relay_process import RelayProcess, until

GATE = True

pytestmark = pytest.mark.crash

BODY = b"0123456789abcdef" * 4 + b"\r\n"
CONTENT = b"Subject: large\r\nMessage-ID: <m@c.test>\r\n\r\n" + BODY * (
    2 * LARGE_BYTES // len(BODY)
)
RECIPIENTS = ["bob@example.test", "x@a.test"]


def stored(relay: RelayProcess) -> list[str]:
    """The names of the spool's content files."""
    return sorted(path.name for path in (relay.folder / "state/spool.sqlite-content").iterdir())


def submit(relay: RelayProcess) -> bool:
    """Whether the client heard 250."""
    try:
        relay.submit("alice@example.test", RECIPIENTS, CONTENT)
    except (OSError, smtplib.SMTPException):
        return False
    return True


def body_of(content: bytes) -> str:
    return hashlib.sha256(content.partition(b"\r\n\r\n")[2]).hexdigest()


@pytest.mark.parametrize(
    ("point", "accepted"),
    [
        (CrashPoint.SPOOL_BODY_SYNCED, False),
        (CrashPoint.SPOOL_BEFORE_COMMIT, False),
        (CrashPoint.SPOOL_COMMITTED, True),
        (CrashPoint.SMTP_REPLIED, True),
    ],
)
def test_a_kill_around_the_commit(held: HeldRemote, point: CrashPoint, accepted: bool) -> None:
    relay, remote = held.relay.start(crash_at=point), held.remote
    heard_250 = submit(relay)
    assert accepted or not heard_250
    relay.wait_crash()
    assert stored(relay), "it died too early to leave anything"
    relay.start()
    if not accepted:
        until("stale files are removed", lambda: stored(relay) == [])
        assert submit(relay)
    (name,) = until("unneeded files are removed", lambda: len(stored(relay)) == 1 and stored(relay))
    assert not name.startswith("arriving")
    held.open()
    until("all is delivered", lambda: not relay.queue() and relay.subjects("bob") == ["large"])
    (copy,) = remote.envelopes
    (path,) = (relay.folder / "mail/example.test/bob/new").iterdir()
    assert {body_of(copy.content), body_of(path.read_bytes())} == {body_of(CONTENT)}
    until("its file is removed", lambda: stored(relay) == [])
    assert relay.metric("relay_queue_unaccounted") == 0
    assert relay.faults(but="of the SMTP sessions ended") == []
