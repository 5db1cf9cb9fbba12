"""SMTP sessions: unknown user, relaying denied, submission with TLS and AUTH, and errors within a session."""

import base64
import json
import smtplib
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.conftest import SharedRelay
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received
from tests.support.tls import Certificate, certificate

__all__ = ["certificate"]

STRANGER = "127.0.0.2"


@pytest.mark.parametrize(
    ("source", "recipient", "code", "status"),
    [
        ("127.0.0.1", "nobody@example.test", 550, b"5.1.1"),
        (STRANGER, "nobody@example.test", 550, b"5.1.1"),
        (STRANGER, "x@a.test", 550, b"5.7.1"),
        (STRANGER, "bob@example.test", 250, b"2.1.5"),
        (STRANGER, "postmaster", 250, b"2.1.5"),
        ("127.0.0.1", "x@a.test", 250, b"2.1.5"),
        ("127.0.0.1", "x@@a.test", 501, b"5.1.3"),
    ],
)
def test_unknown_user_and_relaying_denied(
    relay: RelayProcess, source: str, recipient: str, code: int, status: bytes
) -> None:
    with relay.smtp(source=source) as session:
        session.ehlo()
        assert session.mail("somebody@c.test")[0] == 250
        found = session.docmd(f"RCPT TO:<{recipient}>")
        assert (found[0], found[1][: len(status)]) == (code, status)
        assert session.noop()[0] == 250


def test_spellings_of_one_mailbox_get_one_copy(relay: RelayProcess) -> None:
    spellings = ["alice@example.test", "ALICE@example.test", "alice+tag@Example.TEST"]
    queue_id = relay.submit("alice@example.test", spellings, b"Subject: one copy\r\n\r\nx\r\n")
    journey = relay.until_final(queue_id)
    assert [one["state"] for one in journey["recipients"]] == ["delivered"] * 3
    assert relay.subjects("alice").count("one copy") == 1


def test_bcc_fields_are_removed(shared: SharedRelay) -> None:
    content = (
        b"Return-Path: <forged@a.test>\r\n"
        b"From:  alice@example.test \r\n"
        b"BCC: hidden@a.test,\r\n\tother@a.test\r\n"
        b"Resent-Bcc: again@a.test\r\n"
        b"Content-Length: 5\r\n"
        b"X-Odd:\tkept  as it is \r\n"
        b"Subject: =?utf-8?q?kept?=\r\n"
        b"\r\n"
        b"Bcc: text of the body\r\n"
    )
    with shared.relay.smtp() as session:
        session.sendmail("alice@example.test", ["dropped@a.test"], content)
    _, _, sent = received(shared.a, "dropped@a.test").content.partition(b"\r\nFrom:")
    head, _, body = sent.partition(b"\r\n\r\n")
    kept = b"  alice@example.test \r\nX-Odd:\tkept  as it is \r\nSubject: =?utf-8?q?kept?="
    assert head == kept
    assert body == b"Bcc: text of the body\r\n"


def test_a_session_continues_after_errors(shared: SharedRelay) -> None:
    with shared.relay.smtp() as session:
        for command, code in (
            ("MAIL FROM:<a@b.test>", 503),  # no EHLO yet
            ("EHLO client.test", 250),
            ("RCPT TO:<x@a.test>", 503),
            ("DATA", 503),
            ("NONSENSE", 500),
            ("MAIL FROM:a@b.test", 501),
            ("MAIL FROM:<a@b.test> SIZE=999999999999", 552),
            ("MAIL FROM:<a@b.test> COLOUR=blue", 555),
            ("MAIL FROM:<a@b.test>", 250),
            ("MAIL FROM:<a@b.test>", 503),
            ("RCPT TO:<nobody@example.test>", 550),
            ("DATA", 554),
        ):
            assert session.docmd(command)[0] == code, command
        session.rset()
        session.sendmail(
            "alice@example.test", ["alive@a.test"], b"Subject: alive\r\n\r\n.\r\n..\r\n"
        )
    assert received(shared.a, "alive@a.test").content.endswith(b"\r\n\r\n.\r\n..\r\n")


def test_recipients_over_the_limit_are_deferred(remotes: Remotes) -> None:
    listener = {"listen": "127.0.0.1:0", "max_recipients": 3, "max_message_size": "64 KiB"}
    a = remotes.start("a.test")
    with remotes.relay(config={"smtp": [listener]}) as relay, relay.smtp() as session:
        session.ehlo()
        session.mail("alice@example.test")
        replies = [session.rcpt(f"r{number}@a.test") for number in range(5)]
        assert [code for code, _ in replies] == [250, 250, 250, 452, 452]
        assert replies[3][1].startswith(b"4.5.3")
        code, text = session.data(b"Subject: big\r\n\r\n" + b"x" * 70 + b"\r\n" * 65536)
        assert (code, text[:5]) == (552, b"5.3.4")
        session.mail("alice@example.test")
        session.rcpt("r0@a.test")
        assert session.data(b"Subject: small\r\n\r\n")[0] == 250
        received(a, "r0@a.test")


@pytest.mark.parametrize(
    "bad", [b"a\nb", b"a\rb", b"a\0b", b"a\n.\nb", b"a\n.\r\nMAIL FROM:<x@b.test>"]
)
def test_bare_line_ends_are_rejected(relay: RelayProcess, bad: bytes) -> None:
    with relay.smtp() as session:
        session.ehlo()
        session.mail("alice@example.test")
        session.rcpt("bob@example.test")
        session.docmd("DATA")
        session.send(b"Subject: x\r\n\r\n" + bad + b"\r\n.\r\n")
        code, text = session.getreply()
        assert (code // 100, text[:2]) == (5, b"5.")
        assert session.noop()[0] == 250
    assert relay.subjects("bob") == []


@pytest.fixture(scope="module")
def submission(certificate: Certificate) -> Iterator[tuple[Remotes, RelayProcess]]:
    """A relay whose first listener wants TLS and AUTH of strangers, and whose second speaks TLS at once."""
    tls: dict[str, Any] = {
        "certificate": str(certificate.certificate),
        "key": str(certificate.key),
    }
    listeners = [
        {"listen": "127.0.0.1:0", "role": "submission", "tls": tls | {"require": True}},
        {"listen": "127.0.0.1:0", "role": "submissions", "tls": tls},
    ]
    with Remotes() as remotes:
        remotes.start("a.test")
        with remotes.relay(config={"smtp": listeners}) as relay:
            yield remotes, relay


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_submission_requires_tls_and_login(submission: tuple[Remotes, RelayProcess]) -> None:
    with submission[1].smtp() as session:
        session.ehlo()
        assert "auth" not in session.esmtp_features
        assert session.docmd("MAIL FROM:<alice@example.test>")[0] == 530
        assert session.docmd("AUTH", "PLAIN AGFsaWNlAGFsaWNl")[0] in (530, 538)
        session.starttls(context=client_context())
        session.ehlo()
        assert "starttls" not in session.esmtp_features
        assert session.docmd("MAIL FROM:<alice@example.test>")[0] == 530


def test_the_journey_and_the_log_name_the_client(
    submission: tuple[Remotes, RelayProcess],
) -> None:
    relay = submission[1]
    with relay.smtp() as session:
        session.starttls(context=client_context())
        session.ehlo("laptop.example.test")
        log_in(session, "PLAIN", "alice@example.test", "alice")
        session.mail("alice@example.test")
        session.rcpt("bob@example.test")
        queue_id = session.data(b"Subject: by SMTP\r\n\r\nx\r\n")[1].split()[-1].decode()
    client = {
        "address": "127.0.0.1",
        "helo": "laptop.example.test",
        "account": "alice@example.test",
        "tls": "TLSv1.3",
    }
    assert relay.journey(queue_id)["client"] == client
    lines = [json.loads(line) for line in relay.log.splitlines()]
    (logged,) = (one for one in lines if one["event"] == "accepted" and one["qid"] == queue_id)
    names = ("client", "helo", "login", "tls")
    assert [logged[name] for name in names] == list(client.values())
    reported = relay.cli("trace", queue_id).stdout
    assert "from 127.0.0.1, EHLO laptop.example.test, login alice@example.test, TLSv1.3" in reported


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("user", ["alice@example.test", "ALICE@Example.Test"])
def test_authenticated_submission(
    submission: tuple[Remotes, RelayProcess], mechanism: str, user: str
) -> None:
    remotes, relay = submission
    address = f"{mechanism}-{user[:5]}@a.test".lower()
    with relay.smtp() as session:
        session.starttls(context=client_context())
        session.ehlo()
        log_in(session, mechanism, user, "alice")
        session.sendmail("alice@example.test", [address], b"Subject: submitted\r\n\r\n")
    content = until("it came", lambda: remotes.servers[0].received(address))[0].content
    assert b" with ESMTPSA id " in content


def log_in(session: smtplib.SMTP, mechanism: str, user: str, password: str) -> None:
    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    if mechanism == "PLAIN":
        reply = session.docmd("AUTH", "PLAIN " + encoded(f"\0{user}\0{password}"))
    else:
        assert session.docmd("AUTH", "LOGIN")[0] == 334
        assert session.docmd(encoded(user))[0] == 334
        reply = session.docmd(encoded(password))
    if reply[0] != 235:
        raise smtplib.SMTPAuthenticationError(*reply)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_wrong_password_is_rejected(
    submission: tuple[Remotes, RelayProcess], mechanism: str
) -> None:
    with submission[1].smtp() as session:
        session.starttls(context=client_context())
        session.ehlo()
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            log_in(session, mechanism, "alice@example.test", "wrong")
        assert refused.value.smtp_code == 535
        log_in(session, mechanism, "alice@example.test", "alice")


def test_implicit_tls_submission(submission: tuple[Remotes, RelayProcess]) -> None:
    host, port = submission[1].smtp_address(1)
    with smtplib.SMTP_SSL(host, port, timeout=20, context=client_context()) as session:
        session.login("alice@example.test", "alice")
        assert session.mail("alice@example.test")[0] == 250


def test_the_relay_logged_no_fault(
    shared: SharedRelay, submission: tuple[Remotes, RelayProcess]
) -> None:
    assert shared.relay.faults() == []
    assert submission[1].faults() == []
