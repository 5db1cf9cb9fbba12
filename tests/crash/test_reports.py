"""kill -9 between the parts of an attempt, and between a report and its copy.

The sender gets one report with all recipients, and no recipient the message twice. See docs/design.md 6 and 7,
invariants 1, 2 and 5.
"""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from signal import SIGKILL

import pytest

from relay.base.crashpoints import CrashPoint
from tests.crash.conftest import make_too_old_to_send
from tests.support.relay_process import until
from tests.support.remote_mx import EXTENSIONS, PassesFirst, RemoteMx
from tests.support.remotes import Remotes
from tests.support.reports import report_about, reports_of

pytestmark = pytest.mark.crash

ALICE = "alice@example.test"
PEOPLE = ("alice", "bob")
FIRST, LAST = ["x@a.test", "y@a.test"], "z@a.test"


@pytest.fixture
def remotes() -> Iterator[Remotes]:
    with Remotes() as remotes:
        yield remotes


def host_of_two(remotes: Remotes, gate: asyncio.Event) -> RemoteMx:
    """A host without DSN that takes two recipients of a transaction."""
    extensions = [one for one in EXTENSIONS if one != "DSN"]
    rcpt = {LAST: ["452 4.5.3 too many recipients", "250 2.1.5 ok"]}
    return remotes.start("a.test", gates={"MAIL": gate}, rcpt=rcpt, extensions=extensions)


@pytest.mark.parametrize("then", ["delivered", "cancelled"])
def test_a_kill_between_two_transactions_leaves_one_report(
    remotes: Remotes, then: str, serve
) -> None:
    gate = PassesFirst()
    remote = host_of_two(remotes, gate)
    relay = serve(remotes)
    queue_id = relay.submit(ALICE, [*FIRST, LAST], rcpt_options=["NOTIFY=SUCCESS"])
    relayed = dict.fromkeys(FIRST, "relayed")
    until("two are recorded", lambda: relay.states(queue_id) == relayed | {LAST: "queued"})
    assert reports_of(relay) == []
    relay.kill()
    remotes.open_gate(gate)
    if then == "cancelled":
        assert relay.cli("pause", "delivery").returncode == 0
    relay.start()
    if then == "cancelled":
        entries = relay.cli_json("queue", "cancel", "--all")
        assert [one["result"] for one in entries] == ["done"]
        assert relay.cli("resume").returncode == 0
    relay.until_final(queue_id)
    report = report_about(relay, "x@a.test")
    until("nothing is left", lambda: not relay.queue())
    named = FIRST if then == "cancelled" else [*FIRST, LAST]
    assert list(report.recipients) == named
    assert {one["action"] for one in report.recipients.values()} == {"relayed"}
    assert len(reports_of(relay)) == 1
    assert relay.states(queue_id) == relayed | {LAST: "relayed" if LAST in named else then}
    assert [one.addresses for one in remote.envelopes] == [FIRST, [LAST]][: len(named) - 1]
    assert relay.metric("relay_queue_unaccounted") == 0
    assert relay.faults() == []


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
