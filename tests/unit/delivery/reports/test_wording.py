"""Which class of failure a recipient has, and which language a reader."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.envelope import ForwardPath
from relay.base.message.header import Header
from relay.base.message.outcome import Evidence
from relay.delivery.reports.wording import FailureClass, accepted_language, failure_of
from relay.formats.dsn import ReportedRecipient, ReportKind
from relay.formats.headers import decoded
from tests.support.tables import each_row

KNOWN = ("de", "en")


def failure(status, reply="", *, remote=True, rule="", kind=ReportKind.FAILED):
    evidence = Evidence(status, reply, "mx.example.net" if remote else "", remote=remote)
    return failure_of(kind, ReportedRecipient(ForwardPath("bob@example.net"), evidence, rule=rule))


@each_row(
    "status, reply, expected",
    [
        ("5.1.1", "550 5.1.1 no", FailureClass.UNKNOWN_ADDRESS),
        ("5.1.99", "550 5.1.99 no", FailureClass.UNKNOWN_ADDRESS),
        ("5.1.2", "no such domain", FailureClass.NO_SUCH_DOMAIN),
        ("5.1.10", "null MX", FailureClass.NO_SUCH_DOMAIN),
        ("5.4.4", "no MX", FailureClass.NO_SUCH_DOMAIN),
        ("5.1.6", "", FailureClass.MOVED),
        ("5.1.7", "", FailureClass.SENDER_REFUSED),
        ("5.2.2", "552 full", FailureClass.MAILBOX_FULL),
        ("5.2.1", "", FailureClass.MAILBOX),
        ("5.2.3", "", FailureClass.TOO_LARGE),
        ("5.3.4", "", FailureClass.TOO_LARGE),
        ("5.3.4", "552 5.3.4 HTTP 413", FailureClass.TOO_LARGE),
        ("5.7.1", "HTTP 403 ErrorSendAsDenied: spam", FailureClass.OWN_WAY),
        ("5.7.1", "550 5.7.1 relay access denied", FailureClass.REFUSED),
        ("5.7.1", "550 5.7.1 listed at zen.example.test DNSBL", FailureClass.SPAM),
        ("5.7.0", "554 5.7.0 poor reputation", FailureClass.SPAM),
        ("5.1.1", "550 5.1.1 spam@example.net unknown", FailureClass.UNKNOWN_ADDRESS),
        ("5.7.10", "", FailureClass.TLS_REQUIRED),
        ("5.4.6", "", FailureClass.LOOP),
        ("5.4.7", "delivery time expired; last: no attempt succeeded", FailureClass.TIME_OUT),
        ("4.4.1", "no answer", FailureClass.UNREACHABLE),
        ("5.6.3", "", FailureClass.CONTENT),
        ("5.0.0", "550 no", FailureClass.OTHER),
        ("", "", FailureClass.OTHER),
        ("nonsense", "", FailureClass.OTHER),
    ],
)
def test_the_class_of_a_status_and_reply(status, reply, expected):
    assert failure(status, reply).kind is expected


@pytest.mark.parametrize(
    ("rule", "remote", "expected"),
    [
        ("no exe", False, FailureClass.RULE),
        ("", False, FailureClass.RULE),
        ("", True, FailureClass.REFUSED),
    ],
)
def test_a_rule_of_this_relay_is_told_from_one_of_a_host(rule, remote, expected):
    assert failure("5.7.1", "550 5.7.1 no", remote=remote, rule=rule).kind is expected


def test_what_expired_is_explained_by_its_last_reply():
    found = failure("5.4.7", "delivery time expired; last: 452 4.2.2 full")
    assert (found.kind, found.detail, found.gave_up) == (FailureClass.MAILBOX_FULL, "2.2", True)


def test_what_expired_without_a_reply_of_a_host_is_explained_by_the_last_status():
    expired = ReportedRecipient(
        ForwardPath("bob@example.net"),
        Evidence("5.4.7", "delivery time expired; last: mx.example.net: no TLS"),
        last_status="4.7.5",
    )
    found = failure_of(ReportKind.FAILED, expired)
    assert (found.kind, found.gave_up) == (FailureClass.TLS_REQUIRED, True)


def test_what_an_operator_cancels_is_told_from_a_reply_of_a_host():
    text = "cancelled by an operator of this relay"
    assert failure("5.0.0", text, remote=False).kind is FailureClass.CANCELLED
    assert failure("5.0.0", text).kind is FailureClass.OTHER


def test_what_graph_is_not_asked_to_take_is_told_from_the_size_of_a_host():
    shape = "5.3.4 a calendar is not converted for Graph; a fallback takes it as it is"
    assert failure("5.3.4", shape, remote=False).kind is FailureClass.OWN_WAY
    size = "the message has 9 bytes, the host accepts at most 5"
    assert failure("5.3.4", size, remote=False).kind is FailureClass.TOO_LARGE


@each_row(
    "value, found",
    [
        ("de-AT, en;q=0.5", "de"),
        ("fr, en;q=0.3, de;q=0.2", "en"),
        ("DE-at", "de"),
        ("de-CH-x-private", "de"),
        ("en;q=0.5, de;q=0.5", "en"),
        ("fr, de;q=high, en;q=0.1", "de"),
        ("fr, *", ""),
        (", ;q=, -", ""),
        ("x" * 100_000, ""),
        ("grün", ""),
    ],
)
def test_accept_language(value, found):
    header = Header.parse(f"Accept-Language: {value}\r\n".encode())
    assert accepted_language(decoded(header, "accept-language"), KNOWN) == found


@given(st.binary(max_size=200))
def test_no_accept_language_raises(value):
    header = Header.parse(b"Accept-Language: " + value.replace(b"\n", b"") + b"\r\n")
    assert accepted_language(decoded(header, "accept-language"), KNOWN) in ("", *KNOWN)
