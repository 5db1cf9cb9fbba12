"""Loops of reports: between relays, and with a program that answers reports."""

import email
import mailbox

from tests.integration.test_dev_cloud import Cloud, through_cloud
from tests.support.ports import free_port
from tests.support.relay_process import RelayProcess, until
from tests.support.reports import reports_of

ANSWER = b"From: alice@example.test\r\nSubject: Out of office\r\n\r\nI am away.\r\n"


def dead_letters(relay: RelayProcess) -> list[mailbox.MaildirMessage]:
    home = relay.folder / "state" / "dead-letter"
    is_there = all((home / part).is_dir() for part in ("cur", "new"))
    return list(mailbox.Maildir(home, create=False)) if is_there else []


def test_what_answers_a_report_becomes_a_dead_letter_within_limits(serve) -> None:
    relay = serve(config={"reports": {"copy_to": "bob@example.test"}})
    relay.send_mail(to=["nobody@example.test"])
    (report,) = until("a report", lambda: reports_of(relay))
    daemon = str(report.message["from"]).partition("<")[2].rstrip(">")
    assert daemon == "MAILER-DAEMON@relay.example.test"
    options = ["NOTIFY=SUCCESS,FAILURE"]
    for sender, content in (
        ("alice@example.test", ANSWER),
        ("", ANSWER),  # as it must be
        ("alice@example.test", ANSWER + b"x" * 998 + b"\r\n" + b"y\r\n" * 333_333),
    ):
        relay.until_final(relay.submit(sender, [daemon], content, rcpt_options=options))
    # a stranger's program, too; and where nobody is postmaster
    relay.until_final(
        relay.submit("x@far.test", ["postmaster@example.test"], ANSWER, source="127.0.0.2")
    )
    assert [one["subject"] for one in dead_letters(relay)] == ["Out of office"] * 2
    assert relay.metric("relay_answers_discarded_total", reason="null-sender") == 1
    assert relay.metric("relay_answers_discarded_total", reason="size") == 1
    assert len(reports_of(relay)) == 1
    (copy,) = reports_of(relay, "bob")
    assert copy.recipients.keys() == report.recipients.keys()
    assert relay.queue() == []
    assert relay.faults() == []


def test_what_a_rule_sends_of_a_report_on_causes_no_report(serve, dev) -> None:
    """The rule is in the Inbox where the report arrived by Graph: it redirects, or forwards."""
    beside = dev("--cloud", "--no-demo")
    config = through_cloud(beside, "alice@example.test")
    gone = {"domain": "gone.test", "next_hop": f"smtp://127.0.0.1:{free_port()}"}
    config |= {"delivery": {"expire_after": "2s", "retry": [0.2]}}
    config["route"].insert(0, gone)
    cloud, printer = Cloud(beside), "printer@contoso.example"
    first, second = serve(config=config), serve(config=config)
    with cloud.client:

        def arrived() -> list[bytes]:
            return cloud.mime(printer, "inbox") if len(first.queue()) == 0 else []

        scan = first.submit(printer, ["x@gone.test"], b"Subject: scan\r\n\r\nx\r\n")
        first.until_final(scan)
        [report] = until("its report", arrived)
        told = f"The report was sent to {printer} by Graph as alice@example.test."
        assert told in first.cli("trace", scan).stdout
        assert b"\r\nX-Relay-Report: relay.example.test\r\n" in report
        own_id = email.message_from_bytes(report)["Message-ID"]
        by_rule = f"X-MS-Exchange-Inbox-Rules-Loop: {printer}\r\n\r\nx\r\n"  # as an attachment
        by_person = f"References: {own_id}\r\n\r\nplease have a look\r\n"
        for relay, content in (
            (first, report),
            (second, report.replace(b"Report: relay.example.test", b"Report:")),
            (second, by_rule.encode()),
        ):
            key = relay.submit(printer, ["y@gone.test"], content)
            assert relay.until_final(key)["state"] == "expired"
            assert not [one for one in relay.journey(key)["steps"] if one["step"] == 7]
        assert [first.metric("relay_reports_total", kind="failure"), len(arrived())] == [1, 1]
        assert second.metric("relay_reports_total", kind="failure") == 0
        second.until_final(second.submit(printer, ["z@gone.test"], by_person.encode()))
        until("a report on mail of a person", lambda: len(arrived()) == 2)
    assert first.faults() == second.faults() == []
