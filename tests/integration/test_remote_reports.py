"""Reports of other hosts on mail that a program sent by SMTP."""

from tests.integration.conftest import SharedRelay
from tests.support.remotes import received

DSN = """Subject: Undelivered mail
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary=b

--b

It could not be delivered.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx2.a.test
Original-Envelope-Id: {envid}

Final-Recipient: rfc822; {recipient}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user

--b--
"""


def test_a_report_that_has_the_clients_envid_alone_is_joined(shared: SharedRelay) -> None:
    relay = shared.relay
    sent = relay.submit(
        "alice@example.test", ["envid@a.test"], mail_options=["ENVID=QQ+20314+2B159", "RET=HDRS"]
    )
    relay.until_final(sent)
    assert received(shared.a, "envid@a.test").parameters["ENVID"] == "QQ+20314+2B159"
    for envid, recipient in (  # the last one is joined
        ("qq 314+159", "envid@a.test"),
        ("QQ 314+159", "stranger@a.test"),
        ("QQ 314+159", "envid@a.test"),
    ):
        text = DSN.format(envid=envid, recipient=recipient)
        content = text.replace("\n", "\r\n").encode()
        report = relay.submit("", ["alice@example.test"], content, source="127.0.0.2")
        relay.until_final(report)
    journey = relay.journey(sent)
    [claim] = [one["detail"] for one in journey["steps"] if one["step"] == 7]
    assert (claim["by"], claim["kind"], claim["received"]) == ("remote", "failure", report)
    [told] = journey["recipients"]
    assert (told["state"], told["reported"]["by"]) == ("relayed", "remote")


TEXT = b"""Subject: failure notice\r
\r
<text@a.test>:\r
Remote host said: 550 no such user\r
--- Below this line is a copy of the message.\r
\r
Message-ID: <text-1@example.test>\r
"""


def test_a_report_that_is_a_text_is_joined_if_its_reverse_path_is_null(shared: SharedRelay) -> None:
    relay = shared.relay
    sent = relay.submit(
        "alice@example.test", ["text@a.test"], TEXT.splitlines(keepends=True)[-1] + b"\r\nx\r\n"
    )
    relay.until_final(sent)
    for reverse_path in ("bob@a.test", ""):
        report = relay.submit(reverse_path, ["alice@example.test"], TEXT, source="127.0.0.2")
        relay.until_final(report)
    [claim] = [step["detail"] for step in relay.journey(sent)["steps"] if step["step"] == 7]
    assert (claim["received"], claim["reply"]) == (report, "550 no such user")
