"""kill -9 between the acceptance of a message and the delivery of its journal report.

There is one report for each accepted message, also where pickup repeats the message because the
250 was lost. See docs/design.md 7, invariants 1 and 2.
"""

from contextlib import suppress
from http.client import HTTPException
from signal import SIGKILL

import pytest

from relay.base.crashpoints import CrashPoint
from tests.support.relay_process import RelayProcess, until

pytestmark = pytest.mark.crash

RULE = {"10.toml": '[[rule]]\nname = "all"\nthen = [ { journal = "carol@example.test" } ]\n'}
POINTS = [
    f"{point}{number}"
    for point in (
        CrashPoint.SUBMISSION_SENT,
        CrashPoint.SPOOL_BODY_SYNCED,
        CrashPoint.SPOOL_BEFORE_COMMIT,
        CrashPoint.SPOOL_COMMITTED,
        CrashPoint.SMTP_REPLIED,
        CrashPoint.SUBMISSION_ACCEPTED,
        CrashPoint.DELIVERED_LOCALLY,
    )
    for number in ("", ":2")
    if number == "" or point is CrashPoint.DELIVERED_LOCALLY
]
TEXT = "0123456789abcdef" * 16_000  # the spool keeps it as a file


@pytest.mark.parametrize("point", POINTS)
def test_each_accepted_message_has_one_journal_report(point: str) -> None:
    relay = RelayProcess(policies=RULE)
    try:
        relay.start(crash_at=point)
        with suppress(OSError, HTTPException):
            relay.send_mail(to=["bob@example.test"], subject="once", text=TEXT)
        assert relay.wait_end() == -SIGKILL
        relay.start()
        until("it is delivered", lambda: relay.subjects("bob"))
        until("nothing is left", lambda: not relay.queue() and not relay.pending_submissions())
        assert relay.subjects("bob") == ["once"]
        assert relay.subjects("carol") == ["Journal report: once"]
        (report,) = relay.maildir("carol")
        assert TEXT[:64].encode() in bytes(report)
        assert relay.metric("relay_queue_unaccounted") == 0
        assert relay.faults() == []
    finally:
        relay.close()
