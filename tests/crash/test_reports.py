"""kill -9 between a report and its copy. See docs/design.md 6 and 7, invariants 1, 2 and 5."""

from contextlib import suppress
from http.client import HTTPException
from signal import SIGKILL

import pytest

from relay.base.crashpoints import CrashPoint
from tests.crash.conftest import make_too_old_to_send
from tests.support.relay_process import until
from tests.support.reports import report_about, reports_of

pytestmark = pytest.mark.crash

PEOPLE = ("alice", "bob")
POINTS = (CrashPoint.SPOOL_BEFORE_COMMIT, CrashPoint.SPOOL_COMMITTED, CrashPoint.REPORT_WRITTEN)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_the_copy_of_a_report_in_an_inbox(point: CrashPoint, serve) -> None:
    """The report on what pickup could not submit is not committed by the spool; its copy is."""
    copies = {"reports": {"copy_to": "bob@example.test", "copy_kinds": ["unknown"]}}
    relay = serve(config=copies, start=False)
    relay.start(crash_at=CrashPoint.REQUEST_ANSWERED)
    with suppress(OSError, HTTPException):
        relay.send_mail(to=["x@a.test"])
    assert relay.wait_end() == -SIGKILL
    make_too_old_to_send(relay)
    relay.start(crash_at=point, wait=False)
    assert relay.wait_end() == -SIGKILL
    relay.start()
    report, copy = (report_about(relay, "x@a.test", person=one) for one in PEOPLE)
    assert copy.message["to"] == "bob@example.test"
    assert copy.about == report.about
    until("no submission is pending", lambda: not relay.pending_submissions())
    until("nothing is left", lambda: not relay.queue())
    assert [len(reports_of(relay, one)) for one in PEOPLE] == [1, 1]
    assert relay.metric("relay_queue_unaccounted") == 0
    assert relay.faults() == []
