"""The rate of reports to a sender, and what else is left out; failures never are."""

import pytest
from msgspec.structs import replace

from relay.base.message.envelope import Notify
from relay.formats.dsn import ReportKind
from tests.unit.delivery.reports.test_bounces import CONTENT, MESSAGE, CountedReporter, recipient

ALL = frozenset({Notify.SUCCESS, Notify.DELAY, Notify.FAILURE})
OF_NO_FAILURE = (ReportKind.DELAYED, ReportKind.DELIVERED, ReportKind.HELD)


@pytest.fixture
def reporter():
    counted = CountedReporter()
    counted.reporter.rate = "2/3600.0"
    return counted


def left_out(reporter, kind, *, message=MESSAGE, content=CONTENT) -> str:
    """Why a report is left out, "" if it is sent."""
    plan = reporter.reporter.reports(kind, message, [recipient(notify=ALL)], content=content)
    (event,) = plan.events
    assert bool(plan.messages) != bool(event.detail.left_out)
    assert event.detail.kind == kind
    assert event.detail.recipients == ["bob@example.net"]
    return event.detail.left_out


def counted(reporter) -> dict[str, float]:
    samples = reporter.metrics.reports_left_out.collect()[0].samples
    return {one.labels["reason"]: one.value for one in samples if one.name.endswith("_total")}


def test_a_sender_gets_so_many_reports_in_a_time_and_all_failures(reporter):
    too_many = "the sender has had as many as reports.per_sender allows"
    assert [left_out(reporter, kind) for kind in OF_NO_FAILURE] == ["", "", too_many]
    assert [left_out(reporter, ReportKind.FAILED) for _ in range(9)] == [""] * 9
    assert counted(reporter) == {"rate": 1}
    assert reporter.counted() == {"delayed": 1, "delivered": 1, "failure": 9}
    reporter.clock.advance(3599)
    assert left_out(reporter, ReportKind.RELAYED) == too_many
    reporter.clock.advance(61)  # a sixtieth longer at most
    assert left_out(reporter, ReportKind.RELAYED) == ""


def test_a_sender_is_an_account_or_else_a_reverse_path(reporter):
    other = replace(MESSAGE, account="bob@example.com")
    nobody = replace(MESSAGE, account="")
    for message in (MESSAGE, other, nobody):
        found = [left_out(reporter, ReportKind.DELIVERED, message=message) for _ in range(3)]
        # an account and its own address are one
        assert [bool(one) for one in found] == (
            [True] * 3 if message is nobody else [False, False, True]
        )


@pytest.mark.parametrize(
    ("field", "is_automatic"),
    [
        ("Auto-Submitted: auto-generated", True),
        ("auto-submitted: Auto-Replied; owner-email=x@y", True),
        ("Auto-Submitted: no", False),
        ("Auto-Submitted: NO (typed)", False),
        ("Auto-Submitted:", True),
        ("Precedence: bulk", True),
        ("Precedence: list", True),
        ("Precedence: junk", True),
        ("Precedence: first-class", False),
        ("List-Id: <list.example.org>", True),
        ("LIST-Unsubscribe: <mailto:x@y>", True),
        ("X-List-Id: x", False),
        ("Listless: x", False),
    ],
)
def test_of_automatic_mail_and_lists_only_failures_are_reported(reporter, field, is_automatic):
    content = f"{field}\r\n".encode() + CONTENT
    why = "a program or a list has sent the message" if is_automatic else ""
    assert left_out(reporter, ReportKind.DELIVERED, content=content) == why
    assert left_out(reporter, ReportKind.FAILED, content=content) == ""
    assert counted(reporter) == ({"automatic": 1} if is_automatic else {})
