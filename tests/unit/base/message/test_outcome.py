"""The table from replies to outcomes, row by row (RFC 5321 4.2, RFC 3463)."""

from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Failed,
    Indeterminate,
    Peer,
    Relayed,
    Reply,
    SessionFailure,
    SmtpStage,
    classify,
    classify_session_failure,
    closes_connection,
    is_recipient_limit,
)
from tests.support.tables import each_row

PEER = Peer("mx.test", tls="TLSv1.3")
SITE, RECIPIENT = DeferralClass.SITE, DeferralClass.RECIPIENT
TLS, AUTH, PROTOCOL = DeferralClass.TLS, DeferralClass.AUTH, DeferralClass.PROTOCOL


def result(stage, line):
    code, _, text = line.partition(" ")
    outcome = classify(stage, Reply(int(code), text), PEER)
    match outcome:
        case None:
            return "go on"
        case Deferred(evidence, kind):
            return ("deferred", kind, evidence.status)
        case Failed(evidence):
            return ("failed", evidence.status)
        case Relayed(evidence):
            return ("relayed", evidence.status)
        case Indeterminate(evidence):
            return ("indeterminate", evidence.status)


@each_row(
    "stage, line, expected",
    [
        (SmtpStage.BANNER, "220 hello", "go on"),
        (SmtpStage.BANNER, "421 busy", ("deferred", SITE, "4.3.2")),
        (SmtpStage.BANNER, "450 4.7.1 later", ("deferred", SITE, "4.7.1")),
        (SmtpStage.BANNER, "556 never", ("failed", "5.1.10")),
        (SmtpStage.BANNER, "354 go ahead", ("deferred", PROTOCOL, "4.5.0")),
        (SmtpStage.EHLO, "250 hello", "go on"),
        (SmtpStage.EHLO, "421 busy", ("deferred", SITE, "4.3.2")),
        (SmtpStage.STARTTLS, "220 go", "go on"),
        (SmtpStage.STARTTLS, "454 4.7.0 no", ("deferred", TLS, "4.7.5")),
        (SmtpStage.STARTTLS, "502 what", ("deferred", TLS, "4.7.5")),
        (SmtpStage.AUTH, "235 welcome", "go on"),
        (SmtpStage.AUTH, "535 5.7.8 wrong", ("deferred", AUTH, "4.7.8")),
        (SmtpStage.AUTH, "454 4.7.0 later", ("deferred", AUTH, "4.7.8")),
        (SmtpStage.MAIL, "250 ok", "go on"),
        (SmtpStage.MAIL, "451 4.3.0 later", ("deferred", SITE, "4.3.0")),
        (SmtpStage.MAIL, "452 full", ("deferred", SITE, "4.3.1")),
        (SmtpStage.MAIL, "550 5.7.1 not you", ("failed", "5.7.1")),
        (SmtpStage.MAIL, "530 log in", ("failed", "5.7.0")),
        (SmtpStage.RCPT, "250 ok", "go on"),
        (SmtpStage.RCPT, "251 will forward", "go on"),
        (SmtpStage.RCPT, "450 4.7.1 greylisted", ("deferred", RECIPIENT, "4.7.1")),
        (SmtpStage.RCPT, "450 busy", ("deferred", RECIPIENT, "4.2.0")),
        (SmtpStage.RCPT, "451 oops", ("deferred", RECIPIENT, "4.3.0")),
        (SmtpStage.RCPT, "452 many", ("deferred", RECIPIENT, "4.5.3")),
        (SmtpStage.RCPT, "421 going", ("deferred", SITE, "4.3.2")),
        (SmtpStage.RCPT, "551 moved", ("failed", "5.1.6")),
        (SmtpStage.RCPT, "552 quota", ("failed", "5.2.2")),
        (SmtpStage.RCPT, "552 5.5.3 many", ("deferred", RECIPIENT, "4.5.3")),
        (SmtpStage.RCPT, "501 syntax", ("failed", "5.1.3")),
        (SmtpStage.RCPT, "553 name", ("failed", "5.1.3")),
        (SmtpStage.RCPT, "554 5.7.1 no", ("failed", "5.7.1")),
        (SmtpStage.RCPT, "556 null mx", ("failed", "5.1.10")),
        (SmtpStage.DATA, "354 go", "go on"),
        (SmtpStage.DOT, "250 ok", ("relayed", "2.0.0")),
        (SmtpStage.DOT, "421 going", ("deferred", SITE, "4.3.2")),
        (SmtpStage.DOT, "552 too big", ("failed", "5.3.4")),
    ],
)
def test_a_4yz_or_5yz_reply_is_deferred_or_failed_by_the_table(stage, line, expected):
    assert result(stage, line) == expected


@each_row(
    "line, status",
    [
        ("550 5.2.1 disabled", "5.2.1"),
        ("550 4.2.1 class differs from the code", "5.1.1"),
        ("550 2.1.5 class differs from the code", "5.1.1"),
        ("550 5.1.1000 is no status", "5.1.1"),
        ("550 5.1 is no status", "5.1.1"),
        ("599 what", "5.0.0"),
    ],
)
def test_the_enhanced_status_of_the_peer_is_used_if_its_class_fits(line, status):
    assert result(SmtpStage.RCPT, line) == ("failed", status)


def test_evidence_has_the_reply_and_the_host():
    outcome = classify(SmtpStage.RCPT, Reply(550, "5.1.1 nobody"), PEER)
    assert isinstance(outcome, Failed)
    assert outcome.evidence.reply == "550 5.1.1 nobody"
    assert (outcome.evidence.host, outcome.evidence.remote) == ("mx.test", True)
    assert outcome.evidence.tls == "TLSv1.3"


@each_row(
    "stage, trouble, kind, status",
    [
        (SmtpStage.CONNECT, SessionFailure.LOST, DeferralClass.CONNECT, "4.4.1"),
        (SmtpStage.CONNECT, SessionFailure.TIMEOUT, DeferralClass.CONNECT, "4.4.1"),
        (SmtpStage.BANNER, SessionFailure.LOST, DeferralClass.CONNECT, "4.4.2"),
        (SmtpStage.EHLO, SessionFailure.TIMEOUT, DeferralClass.CONNECT, "4.4.2"),
        (SmtpStage.STARTTLS, SessionFailure.LOST, TLS, "4.7.5"),
        (SmtpStage.AUTH, SessionFailure.PROTOCOL, AUTH, "4.7.8"),
        (SmtpStage.MAIL, SessionFailure.LOST, DeferralClass.CONNECT, "4.4.2"),
        (SmtpStage.RCPT, SessionFailure.TIMEOUT, DeferralClass.CONNECT, "4.4.2"),
        (SmtpStage.DATA, SessionFailure.PROTOCOL, PROTOCOL, "4.5.0"),
    ],
)
def test_a_session_failure_before_the_final_dot_defers(stage, trouble, kind, status):
    outcome = classify_session_failure(stage, trouble, "words", peer=PEER)
    assert isinstance(outcome, Deferred)
    assert (outcome.kind, outcome.evidence.status) == (kind, status)
    assert not outcome.evidence.remote


@each_row("trouble", list(SessionFailure))
def test_a_session_failure_after_the_final_dot_is_indeterminate(trouble):
    assert isinstance(
        classify_session_failure(SmtpStage.DOT, trouble, "gone", peer=PEER), Indeterminate
    )


@each_row(
    "line, expected",
    [
        ("452 too many", True),
        ("452 4.5.3 too many", True),
        ("552 too many", True),
        ("552 5.5.3 too many", True),
        ("452 4.2.2 mailbox full", False),
        ("452 4.3.1 disk", False),
        ("552 5.2.2 quota", False),
        ("450 4.5.3 other code", False),
    ],
)
def test_replies_that_say_too_many_recipients(line, expected):
    code, _, text = line.partition(" ")
    assert is_recipient_limit(Reply(int(code), text)) is expected


def test_only_421_closes_the_connection():
    assert [code for code in range(200, 600) if closes_connection(Reply(code, ""))] == [421]
