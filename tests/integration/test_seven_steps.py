"""A message from sendMail through all seven steps to three remote domains, a mailbox and a report."""

import base64
import email
import email.policy
import re
from email.message import EmailMessage

from tests.integration.conftest import SharedRelay
from tests.support.relay_process import until
from tests.support.remotes import received
from tests.support.reports import report_about

GATE = True

FILE = "Übersicht ✓ 概要.txt"
FILE_CONTENT = "first\n.\nFrom here\r\nno end of line ü".encode()
MIME = (
    b"from:  Alice\r\n\t<alice@example.test>\r\nTo: mime@a.test (a comment)\r\nBCC: mime-hidden@a.test\r\n"
    b"subject: =?utf-8?q?Sch=C3=B6n?=\r\nDate: Mon, 2 Jan 2006 15:04:05 -0700 (MST)\r\n"
    b'Message-ID: <odd."quoted"@a.test>\r\nMIME-Version: 1.0\r\n'
    b'Content-type: Multipart/Mixed; boundary="=_ b"\r\n\r\npreamble \t\r\n--=_ b\r\n\r\n'
    b".\r\n..\r\ntrailing blanks   \r\n--=_ b--\r\nepilogue\r\n\r\n"
)


def test_json_through_all_seven_steps(shared: SharedRelay) -> None:
    relay = shared.relay
    identity = relay.send_mail(
        to=["carol@a.test", "slow@c.test"],
        cc=["bob@example.test", "nobody@b.test"],
        bcc=["dave@a.test"],
        subject="Grüße ✓ seven steps " * 8,
        text="Größe\n.\n..dots",
        attachments=[
            {
                "@odata.type": "#microsoft.graph.fileAttachment",
                "name": FILE,
                "contentType": "text/plain",
                "contentBytes": base64.b64encode(FILE_CONTENT).decode(),
            }
        ],
    )
    journey = relay.until_final(identity)
    assert {one["address"]: one["state"] for one in journey["recipients"]} == {
        "carol@a.test": "relayed",
        "dave@a.test": "relayed",
        "slow@c.test": "relayed",
        "bob@example.test": "delivered",
        "nobody@b.test": "failed",
    }
    assert_right_content(received(shared.a, "carol@a.test").content)
    assert received(shared.a, "carol@a.test") is received(shared.a, "dave@a.test")
    received(shared.c, "slow@c.test")
    assert_report(shared, journey["message_id"])
    assert_filed_with_bcc(shared, identity)
    (copy,) = relay.maildir("bob")
    assert copy["bcc"] is None
    assert b"dave@a.test" not in bytes(copy)


def test_the_journey_has_seven_steps_in_order(shared: SharedRelay) -> None:
    identity = shared.relay.send_mail(to=["again@c.test", "nobody@b.test"], subject="journey")
    until("step 4 is recorded", lambda: 4 in steps(shared, identity))
    journey = shared.relay.until_final(identity)
    names = {one["step"]: one["name"] for one in journey["steps"]}
    assert names == {
        1: "created",
        2: "notified",
        3: "converted",
        4: "accepted",
        5: "policy and routing",
        6: "delivery",
        7: "report",
    }
    assert steps(shared, identity) == sorted(steps(shared, identity))
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}Z", one["at"]) for one in journey["steps"]
    )
    again = next(one for one in journey["recipients"] if one["address"] == "again@c.test")
    assert [one["outcome"] for one in again["attempts"]] == ["deferred", "relayed"]
    assert again["attempts"][0]["reply"].startswith("451 4.7.1")


def steps(shared: SharedRelay, identity: str) -> list[int]:
    return [one["step"] for one in shared.relay.journey(identity)["steps"]]


def assert_right_content(content: bytes) -> None:
    head = content.partition(b"\r\n\r\n")[0]
    assert head.isascii()
    assert b"dave@" not in head
    assert not re.search(rb"(?im)^(bcc|x-relay-)", head)
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", content)
    assert max(map(len, content.split(b"\r\n"))) <= 998
    parsed = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    assert not parsed.defects
    assert str(parsed["subject"]).strip() == ("Grüße ✓ seven steps " * 8).strip()
    assert parsed["date"]
    assert parsed["message-id"]
    body = parsed.get_body(("plain",))
    assert body is not None
    assert body.get_content().replace("\r\n", "\n").strip() == "Größe\n.\n..dots"
    files = {one.get_filename(): one.get_payload(decode=True) for one in parsed.iter_attachments()}
    assert files == {FILE: FILE_CONTENT}


def assert_report(shared: SharedRelay, message_id: str) -> None:
    report = report_about(shared.relay, "nobody@b.test")
    assert report.recipients.keys() == {"nobody@b.test"}
    reported = report.recipients["nobody@b.test"]
    assert (reported["action"], reported["status"]) == ("failed", "5.1.1")
    assert reported["diagnostic-code"] == "smtp; 550 5.1.1 No such user here"
    assert reported["remote-mta"] == "dns; mx.b.test"
    assert report.about["reporting-mta"] == "dns; relay.example.test"
    assert report.message["auto-submitted"] == "auto-replied"
    assert report.message["in-reply-to"] == message_id
    assert message_id in report.message["references"]
    assert report.returned["message-id"] == message_id
    assert report.failed_addresses == {"nobody@b.test"}


def assert_filed_with_bcc(shared: SharedRelay, identity: str) -> None:
    relay = shared.relay
    until("Drafts is empty", lambda: not relay.messages("drafts"))
    assert relay.maildir("alice", "Drafts") == []
    assert [one["id"] for one in relay.messages("sentitems")] == [identity]
    sent = relay.graph("GET", f"/me/messages/{identity}").json()
    assert [one["emailAddress"]["address"] for one in sent["bccRecipients"]] == ["dave@a.test"]
    assert (sent["isDraft"], sent["hasAttachments"]) == (False, True)


def test_mime_is_relayed_unchanged(shared: SharedRelay) -> None:
    headers = {"Content-Type": "text/plain"}
    answer = shared.relay.graph("POST", "/me/sendMail", base64.b64encode(MIME), headers=headers)
    assert (answer.status, answer.body) == (202, b"")
    envelope = received(shared.a, "mime-hidden@a.test")
    assert sorted(envelope.addresses) == ["mime-hidden@a.test", "mime@a.test"]
    sent_head, _, sent_body = MIME.partition(b"\r\n\r\n")
    head, _, body = envelope.content.partition(b"\r\n\r\n")
    assert body == sent_body
    without_bcc = sent_head.replace(b"BCC: mime-hidden@a.test\r\n", b"")
    assert head.endswith(without_bcc)
    added = head.removesuffix(without_bcc)
    trace = rb"Received: from HOST\r\n\tby HOST with ESMTP id \w+;\r\n\t[^\r\n]+ \+0000\r\n"
    assert re.fullmatch(trace.replace(b"HOST", rb"relay\.example\.test"), added), added
    until("filed", lambda: "=?utf-8?q?Sch=C3=B6n?=" in shared.relay.subjects("alice", "Sent"))


def test_no_message_is_unaccounted_for(shared: SharedRelay) -> None:
    until("the queue is empty", lambda: not shared.relay.queue())
    until("counted", lambda: shared.relay.metric("relay_queue_unaccounted") == 0)
    assert shared.relay.faults() == []
