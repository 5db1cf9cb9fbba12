"""The table reply -> outcome, row by row (RFC 5321 4.2, RFC 3463)."""

import pytest

from relay.message.classify import (
    Peer,
    Reply,
    Stage,
    Trouble,
    classify,
    classify_trouble,
    closes,
    is_overflow,
)
from relay.message.outcome import DeferralClass, Deferred, Failed, Indeterminate, Relayed

PEER = Peer("mx.test", tls="TLSv1.3")
SITE, RECIPIENT = DeferralClass.SITE, DeferralClass.RECIPIENT
TLS, AUTH, PROTOCOL = DeferralClass.TLS, DeferralClass.AUTH, DeferralClass.PROTOCOL


def told(stage, line):
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


@pytest.mark.parametrize(
    ("stage", "line", "expected"),
    [
        (Stage.BANNER, "220 hello", "go on"),
        (Stage.BANNER, "421 busy", ("deferred", SITE, "4.3.2")),
        (Stage.BANNER, "450 4.7.1 later", ("deferred", SITE, "4.7.1")),
        (Stage.BANNER, "554 no mail here", ("failed", "5.3.2")),
        (Stage.BANNER, "521 never", ("failed", "5.3.2")),
        (Stage.BANNER, "556 never", ("failed", "5.1.10")),
        (Stage.BANNER, "354 go ahead", ("deferred", PROTOCOL, "4.5.0")),
        (Stage.EHLO, "250 hello", "go on"),
        (Stage.EHLO, "421 busy", ("deferred", SITE, "4.3.2")),
        (Stage.EHLO, "550 5.7.1 not you", ("deferred", SITE, "4.7.1")),
        (Stage.STARTTLS, "220 go", "go on"),
        (Stage.STARTTLS, "454 4.7.0 no", ("deferred", TLS, "4.7.5")),
        (Stage.STARTTLS, "502 what", ("deferred", TLS, "4.7.5")),
        (Stage.AUTH, "235 welcome", "go on"),
        (Stage.AUTH, "535 5.7.8 wrong", ("deferred", AUTH, "4.7.8")),
        (Stage.AUTH, "454 4.7.0 later", ("deferred", AUTH, "4.7.8")),
        (Stage.MAIL, "250 ok", "go on"),
        (Stage.MAIL, "451 4.3.0 later", ("deferred", SITE, "4.3.0")),
        (Stage.MAIL, "452 full", ("deferred", SITE, "4.3.1")),
        (Stage.MAIL, "552 too big", ("failed", "5.3.4")),
        (Stage.MAIL, "550 5.7.1 not you", ("failed", "5.7.1")),
        (Stage.MAIL, "530 log in", ("failed", "5.7.0")),
        (Stage.MAIL, "354 go ahead", ("deferred", PROTOCOL, "4.5.0")),
        (Stage.RCPT, "250 ok", "go on"),
        (Stage.RCPT, "251 will forward", "go on"),
        (Stage.RCPT, "450 4.7.1 greylisted", ("deferred", RECIPIENT, "4.7.1")),
        (Stage.RCPT, "450 busy", ("deferred", RECIPIENT, "4.2.0")),
        (Stage.RCPT, "451 oops", ("deferred", RECIPIENT, "4.3.0")),
        (Stage.RCPT, "452 many", ("deferred", RECIPIENT, "4.5.3")),
        (Stage.RCPT, "421 going", ("deferred", SITE, "4.3.2")),
        (Stage.RCPT, "550 who", ("failed", "5.1.1")),
        (Stage.RCPT, "551 moved", ("failed", "5.1.6")),
        (Stage.RCPT, "552 quota", ("failed", "5.2.2")),
        (Stage.RCPT, "552 5.5.3 many", ("deferred", RECIPIENT, "4.5.3")),
        (Stage.RCPT, "501 syntax", ("failed", "5.1.3")),
        (Stage.RCPT, "553 name", ("failed", "5.1.3")),
        (Stage.RCPT, "554 5.7.1 no", ("failed", "5.7.1")),
        (Stage.RCPT, "556 null mx", ("failed", "5.1.10")),
        (Stage.DATA, "354 go", "go on"),
        (Stage.DATA, "451 later", ("deferred", SITE, "4.3.0")),
        (Stage.DATA, "554 no", ("failed", "5.7.1")),
        (Stage.DATA, "250 ok", ("deferred", PROTOCOL, "4.5.0")),
        (Stage.DOT, "250 ok", ("relayed", "2.0.0")),
        (Stage.DOT, "250 2.6.0 queued", ("relayed", "2.6.0")),
        (Stage.DOT, "421 going", ("deferred", SITE, "4.3.2")),
        (Stage.DOT, "452 disk", ("deferred", SITE, "4.3.1")),
        (Stage.DOT, "552 too big", ("failed", "5.3.4")),
        (Stage.DOT, "550 5.7.1 spam", ("failed", "5.7.1")),
        (Stage.DOT, "354 go ahead", ("indeterminate", "4.5.0")),
    ],
)
def test_a_reply_means_what_the_table_says(stage, line, expected):
    assert told(stage, line) == expected


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("550 5.2.1 disabled", "5.2.1"),
        ("550 4.2.1 class differs from the code", "5.1.1"),
        ("550 2.1.5 class differs from the code", "5.1.1"),
        ("550 5.1.1000 is no status", "5.1.1"),
        ("550 5.1 is no status", "5.1.1"),
        ("599 what", "5.0.0"),
    ],
)
def test_the_status_is_the_peers_where_its_class_fits(line, status):
    assert told(Stage.RCPT, line) == ("failed", status)


def test_evidence_says_who_said_what():
    outcome = classify(Stage.RCPT, Reply(550, "5.1.1 nobody"), PEER)
    assert isinstance(outcome, Failed)
    assert outcome.evidence.reply == "550 5.1.1 nobody"
    assert (outcome.evidence.host, outcome.evidence.remote) == ("mx.test", True)
    assert outcome.evidence.tls == "TLSv1.3"


@pytest.mark.parametrize(
    ("stage", "trouble", "kind", "status"),
    [
        (Stage.CONNECT, Trouble.LOST, DeferralClass.CONNECT, "4.4.1"),
        (Stage.CONNECT, Trouble.TIMEOUT, DeferralClass.CONNECT, "4.4.1"),
        (Stage.BANNER, Trouble.LOST, DeferralClass.CONNECT, "4.4.2"),
        (Stage.EHLO, Trouble.TIMEOUT, DeferralClass.CONNECT, "4.4.2"),
        (Stage.STARTTLS, Trouble.LOST, TLS, "4.7.5"),
        (Stage.AUTH, Trouble.NONSENSE, AUTH, "4.7.8"),
        (Stage.MAIL, Trouble.LOST, DeferralClass.CONNECT, "4.4.2"),
        (Stage.RCPT, Trouble.TIMEOUT, DeferralClass.CONNECT, "4.4.2"),
        (Stage.DATA, Trouble.NONSENSE, PROTOCOL, "4.5.0"),
    ],
)
def test_trouble_before_the_dot_defers(stage, trouble, kind, status):
    outcome = classify_trouble(stage, trouble, "words", peer=PEER)
    assert isinstance(outcome, Deferred)
    assert (outcome.kind, outcome.evidence.status) == (kind, status)
    assert not outcome.evidence.remote


@pytest.mark.parametrize("trouble", list(Trouble))
def test_trouble_behind_the_dot_leaves_doubt(trouble):
    assert isinstance(classify_trouble(Stage.DOT, trouble, "gone", peer=PEER), Indeterminate)


@pytest.mark.parametrize(
    ("line", "expected"),
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
def test_only_a_full_transaction_is_an_overflow(line, expected):
    code, _, text = line.partition(" ")
    assert is_overflow(Reply(int(code), text)) is expected


def test_only_421_closes():
    assert [code for code in range(200, 600) if closes(Reply(code, ""))] == [421]
