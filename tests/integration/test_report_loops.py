"""Loops of reports: between relays, with a program that answers reports, and to unknown senders."""

import mailbox

from tests.support.ports import free_port
from tests.support.relay_process import RelayProcess, until
from tests.support.reports import reports_of

ANSWER = b"From: alice@example.test\r\nSubject: Out of office\r\n\r\nI am away.\r\n"


def dead_letters(relay: RelayProcess) -> list[mailbox.MaildirMessage]:
    home = relay.folder / "state" / "dead-letter"
    is_there = all((home / part).is_dir() for part in ("cur", "new"))
    return list(mailbox.Maildir(home, create=False)) if is_there else []


def test_what_answers_a_report_becomes_a_dead_letter_within_limits() -> None:
    with RelayProcess(config={"reports": {"copy_to": "bob@example.test"}}) as relay:
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


def test_two_relays_that_send_a_message_to_each_other_make_one_report() -> None:
    ports = [free_port(), free_port()]
    trusted = ["127.0.0.1/32"]

    def config(number: int) -> dict[str, object]:
        far = {"domain": "far.test", "next_hop": f"smtp://127.0.0.1:{ports[1 - number]}"}
        home = {"domain": "example.test", "next_hop": f"smtp://127.0.0.1:{ports[0]}"}
        return {
            "hostname": f"relay{number}.example.test",
            "smtp": [{"listen": f"127.0.0.1:{ports[number]}", "trusted_networks": trusted}],
            "route": [far, home][: number + 1],
        }

    with RelayProcess(config=config(0)) as one, RelayProcess(config=config(1)) as other:
        queue_id = one.submit("alice@example.test", ["x@far.test"])
        one.until_final(queue_id)
        (report,) = until("a report", lambda: reports_of(one))
        (about,) = report.recipients.values()
        assert about["status"] == "5.4.6"
        for relay in (one, other):
            until("nothing waits", lambda relay=relay: relay.queue() == [])
        # who answers the report writes to the relay that wrote it
        writer = other if "relay1" in report.about["reporting-mta"] else one
        daemon = str(report.message["from"]).partition("<")[2].rstrip(">")
        writer.until_final(writer.submit("alice@example.test", [daemon], ANSWER))
        assert len(dead_letters(writer)) == 1
        assert len(reports_of(one)) == 1
        assert one.queue() == other.queue() == []
