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


def test_a_report_to_an_unknown_sender_is_one_dead_letter(serve) -> None:
    routes = [{"domain": "gone.test", "next_hop": f"smtp://127.0.0.1:{free_port()}"}]
    delivery = {"expire_after": "2s", "retry": [0.2]}
    relay = serve(config={"route": routes, "delivery": delivery})
    queue_id = relay.submit("ghost@example.test", ["x@gone.test"])
    relay.until_final(queue_id)
    (letter,) = until("a dead letter", lambda: dead_letters(relay))
    assert letter.get_content_type() == "multipart/report"
    assert relay.metric("relay_reports_total", kind="dead-letter") == 1
    until("the queue is empty", lambda: not relay.queue())
    assert relay.faults() == []
