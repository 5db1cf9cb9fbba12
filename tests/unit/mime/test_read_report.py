"""Delivery reports as a page shows them: those that Relay writes, those of others, and damage."""

import pytest

from relay.message.content import MemoryOctets
from relay.message.envelope import Envelope, ForwardPath, MessageFacts, Source
from relay.message.outcome import Evidence
from relay.mime.dsn import ReportedRecipient, ReportKind, write_dsn
from relay.mime.read_report import read_report


def report(status: bytes, *, kind: bytes = b"message/delivery-status"):
    return read_report(
        MemoryOctets(
            b'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
            b"--b\r\n\r\nSorry.\r\n--b\r\nContent-Type: " + kind + b"\r\n\r\n" + status
            + b"\r\n--b--\r\n"
        )
    )  # fmt: skip


def test_a_report_of_relay_is_read():
    message = MessageFacts("q1", Envelope("a@x.test", envid="d1.1"), Source.GRAPH, trusted=True,
                           received_us=0)  # fmt: skip
    gone = ReportedRecipient(
        ForwardPath("gone@y.test"),
        Evidence("5.1.1", "550 5.1.1 no such user", "mx1.y.test", remote=True),
    )
    written = write_dsn(
        ReportKind.FAILED, message, [gone], content=b"Subject: x\r\n\r\nx", hostname="relay.test",
        report_id="r1", now_us=0,
    )  # fmt: skip
    found = read_report(MemoryOctets(written))
    assert ("Reporting-MTA", "dns; relay.test") in found.fields
    assert found.envelope_id == "d1.1"
    (one,) = found.recipients
    assert one.text == ("gone@y.test was not delivered: mx1.y.test said 550 5.1.1 no such user.")
    assert ("Action", "failed") in one.fields


def test_each_recipient_has_its_sentence():
    found = report(
        b"Reporting-MTA: dns; mx.example\r\n\r\n"
        b"Final-Recipient: rfc822; b@x.test\r\nAction: delayed\r\nStatus: 4.4.1\r\n\r\n"
        b"Final-Recipient: rfc822; c@x.test\r\nAction: relayed\r\nStatus: 2.0.0\r\n"
        b"Diagnostic-Code: smtp; 250 2.0.0\r\n ok\r\n\r\n"
        b"Original-Recipient: rfc822;d@x.test\r\nFinal-Recipient: rfc822; e@x.test\r\n"
        b"Action: Delivered\r\n"
    )
    assert [one.text for one in found.recipients] == [
        "b@x.test is not delivered yet: 4.4.1.",
        "c@x.test was passed on to a host that sends no reports: 250 2.0.0 ok.",
        "d@x.test was delivered.",
    ]


@pytest.mark.parametrize(
    "status",
    [b"", b"\r\n\r\n\r\n", b"no field", b"\x00\xff: \xfe\r\n\r\n:\r\n", b": x\r\n\r\nAction\r\n",
     b"A: b\r\n\r\n" * 5000, b"A: " + b"=?utf-8?q?=00?=" * 5000],
)  # fmt: skip
def test_a_damaged_report_is_read_as_far_as_it_goes(status):
    found = report(status)
    assert found is None or len(found.recipients) < 100
    assert found is None or all(len(text) <= 500 for _, text in found.fields)


@pytest.mark.parametrize(
    "content",
    [b"", b"Subject: x\r\n\r\nx", b"Content-Type: multipart/report; boundary=b\r\n\r\n--b--\r\n"],
)
def test_other_mail_is_no_report(content):
    assert read_report(MemoryOctets(content)) is None


def test_a_status_within_other_mail_is_no_report():
    content = b"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; x\r\n"
    assert read_report(MemoryOctets(content)) is None
