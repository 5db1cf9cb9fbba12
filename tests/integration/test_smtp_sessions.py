"""Submission over SMTP in a real relay: who may, and what is told of the client; tests/dialogue has each reply."""

import json
import smtplib
import ssl

from tests.support.relay_process import until
from tests.support.tls import Certificate, certificate

GATE = True

__all__ = ["certificate"]


def test_the_journey_and_the_log_name_the_client(certificate: Certificate, serve) -> None:
    """By STARTTLS, which the first listener requires; the second one speaks TLS at once."""
    tls = {"certificate": str(certificate.certificate), "key": str(certificate.key)}
    listeners = [
        {
            "listen": "127.0.0.1:0",
            "role": "submission",
            "tls": tls | {"require": True},
            "hide_client": True,
        },
        {"listen": "127.0.0.1:0", "role": "submissions", "tls": tls},
    ]
    trust = ssl._create_unverified_context()
    relay = serve(config={"smtp": listeners})
    with relay.smtp() as session:
        session.ehlo()
        assert session.docmd("MAIL FROM:<alice@example.test>")[0] == 530
        assert session.docmd("AUTH", "PLAIN AGFsaWNlAGFsaWNl")[0] in (530, 538)
        session.starttls(context=trust)
        session.ehlo("laptop.example.test")
        assert session.docmd("MAIL FROM:<alice@example.test>")[0] == 530
        session.login("alice@example.test", "alice")
        session.mail("alice@example.test")
        session.rcpt("bob@example.test", ["NOTIFY=SUCCESS"])
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
    shown = "from 127.0.0.1, EHLO laptop.example.test, login alice@example.test, TLSv1.3"
    assert shown in reported
    until("reported", lambda: relay.maildir("alice"))
    [mail], [report] = relay.maildir("bob"), relay.maildir("alice")
    [received] = mail.get_all("Received")
    by = f"by relay.example.test with ESMTPSA id {queue_id} for <bob@example.test>"
    assert received.partition(";")[0].split() == f"from relay.example.test {by}".split()
    assert not any(one in str(mail) + str(report) for one in ("laptop", "127.0.0.1"))
    host, port = relay.smtp_address(1)
    with smtplib.SMTP_SSL(host, port, timeout=120, context=trust) as session:
        session.login("alice@example.test", "alice")
        assert session.mail("alice@example.test")[0] == 250
    assert relay.faults() == []
