"""Copies of reports for an operator."""

from contextlib import nullcontext

import pytest
from msgspec import structs

from relay.base.message.envelope import Envelope, Notify, Source
from relay.base.message.nexthop import Destination
from relay.delivery.reports.bounces import Copies
from relay.formats.dsn import ReportKind
from relay.store.spool.types import SpoolUnavailableError
from tests.unit.delivery.reports.test_bounces import (
    CONTENT,
    MESSAGE,
    MX,
    CountedReporter,
    recipient,
)

OPS = "ops@example.com"
FROM_A_REPORT = structs.replace(MESSAGE, source=Source.REPORT)


@pytest.fixture
def reporter():
    counted = CountedReporter()
    counted.hops[OPS] = Destination(MX)
    counted.accepted, counted.error = {}, None

    async def accept(copy, submission_key):
        if counted.error is not None:
            raise counted.error
        counted.accepted[submission_key] = copy

    kinds = frozenset({"failure", "unknown"})
    counted.reporter.copies = Copies(OPS, kinds, accept)
    return counted


def test_a_copy_has_the_header_only_and_causes_no_report(reporter):
    report, copy = reporter.failures([recipient()]).messages
    assert b"\r\nHi\r\n" in report.contents[0]
    assert b"\r\nHi\r\n" not in copy.contents[0]
    assert b"Subject: Hello\r\n" in copy.contents[0]
    assert f"To: <{OPS}>\r\n".encode() in copy.contents[0]
    ((to,),) = [entry.recipients for entry in copy.entries]
    assert (to.path.address, to.path.notify) == (OPS, frozenset({Notify.NEVER}))
    assert (copy.facts.envelope, copy.facts.source) == (Envelope(""), Source.REPORT)
    assert copy.facts.account == ""
    assert reporter.counted() == {"failure": 1}


def test_there_is_a_copy_of_these_kinds_and_of_what_is_reported_only(reporter):
    asked = recipient(notify=frozenset({Notify.SUCCESS, Notify.DELAY}))
    for kind in (ReportKind.DELAYED, ReportKind.DELIVERED):
        assert len(reporter.reporter.reports(kind, MESSAGE, [asked], content=CONTENT).messages) == 1
    assert len(reporter.failures([recipient()], FROM_A_REPORT).messages) == 1  # a dead letter
    never = recipient(notify=frozenset({Notify.NEVER}))
    assert reporter.failures([never]).messages == ()


async def test_there_is_no_report_for_an_inbox_before_its_copy_is_accepted(reporter):
    message = structs.replace(
        MESSAGE, envelope=structs.replace(MESSAGE.envelope, envid="0abc.0def")
    )
    reporter.error = SpoolUnavailableError("no room")
    for error in (reporter.error, None, None):  # a submission that is processed again
        reporter.error = error
        with pytest.raises(SpoolUnavailableError) if error else nullcontext():
            await reporter.reporter.inbox_report(
                ReportKind.UNKNOWN, message, [recipient()], content=CONTENT
            )
    ((submission_key, copy),) = reporter.accepted.items()
    assert submission_key == "copy of 0abc.0def"
    assert copy.entries[0].recipients[0].path.address == OPS
    assert reporter.counted() == {"unknown": 2}
