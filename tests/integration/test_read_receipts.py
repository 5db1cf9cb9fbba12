"""Read receipts (RFC 8098) of a relay's own mailboxes: sent when a client marks the message as read."""

import email
import email.policy
import itertools
import json
import shutil
import smtplib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.testing import Relay
from tests.support.graph_client import Answer
from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

WANTED = {"Prefer": "relay.read-receipt=send"}
SETTINGS = ("never", "ask", "always", "auto")
_names = itertools.count(1)


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    """A relay with an account for each setting, named after it."""
    people = [account(name, read_receipts=name) for name in SETTINGS]
    with Remotes() as remotes:
        remotes.start("a.test")
        with remotes.relay(accounts=people) as relay:
            yield relay


@pytest.fixture
def subject() -> str:
    return f"receipt {next(_names)}"


def asked(subject: str, to: str = "alice@example.test", *more: str) -> bytes:
    lines = (f"Disposition-Notification-To: {to}", f"Subject: {subject}", *more)
    return "\r\n".join((*lines, "Message-ID: <m@example.test>", "", "Hello.", "")).encode()


def found(relay: RelayProcess, subject: str, token: str, folder: str = "inbox"):
    return [one for one in relay.messages(folder, token=token) if one["subject"] == subject]


def arrived(relay: RelayProcess, subject: str, token: str) -> str:
    """Wait for a message; return its id."""
    return until(f"{subject} for {token}", lambda: found(relay, subject, token))[0]["id"]


def deliver(relay: RelayProcess, sender: str, to: str, content: bytes, **more: str) -> None:
    """Submit a message and wait until its delivery is recorded."""
    relay.until_final(relay.submit(sender, [f"{to}@example.test"], content, **more))


def count(relay: RelayProcess) -> float:
    return relay.metric("relay_reports_total", kind="read")


def read(relay: RelayProcess, subject: str, token: str, **headers: str) -> Answer:
    path = f"/me/messages/{arrived(relay, subject, token)}"
    answer = relay.graph("PATCH", path, {"isRead": True}, token=token, headers=headers)
    assert answer.status == 200, answer.body
    return answer


def receipts(relay: RelayProcess, subject: str, token: str = "alice"):
    return found(relay, f"Read: {subject}", token)


def test_an_account_here_gets_a_receipt_at_once(relay, subject) -> None:
    before = count(relay)
    name = relay.send_mail(to=["bob@example.test"], subject=subject, isReadReceiptRequested=True)
    relay.until_final(name)
    assert "preference-applied" not in read(relay, subject, "bob").headers
    receipt = arrived(relay, f"Read: {subject}", "alice")
    assert count(relay) == before + 1
    original = relay.graph("GET", f"/me/messages/{name}").json()
    shown = relay.graph("GET", f"/me/messages/{receipt}").json()
    assert shown["conversationId"] == original["conversationId"]
    mime = relay.graph("GET", f"/me/messages/{receipt}/$value").body
    parsed = email.message_from_bytes(mime, policy=email.policy.default)
    assert (parsed["return-path"], parsed["from"]) == ("<>", "bob@example.test")
    assert parsed.get_content_type() == "multipart/report"
    status = parsed.get_payload(1).get_payload(0)
    assert status["original-message-id"] == original["internetMessageId"]
    assert status["final-recipient"] == "rfc822;bob@example.test"
    assert status["disposition"] == "manual-action/MDN-sent-automatically; displayed"
    journey = relay.until_final(name)
    [detail] = [one["detail"] for one in journey["steps"] if one["step"] == 7]
    assert (detail["kind"], detail["to"]) == ("read", "alice@example.test")
    assert detail["recipients"] == ["bob@example.test"]
    about = relay.journey(detail["report_id"])
    assert (about["sender"], about["subject"]) == ("", f"Read: {subject}")
    assert "kind read" in relay.cli("trace", name).stdout


MDN = """Subject: Read: {subject}
MIME-Version: 1.0
Content-Type: multipart/report; report-type=disposition-notification; boundary=b

--b

Your message was displayed.
--b
Content-Type: message/disposition-notification

Reporting-UA: mail.a.test; A Mailer
Original-Recipient: rfc822;{reader}
Final-Recipient: rfc822;{reader}
Original-Message-ID: {message_id}
Disposition: manual-action/MDN-sent-manually; displayed

--b--
"""


def test_a_receipt_from_outside_is_joined_to_its_message(relay, subject) -> None:
    queue_id = relay.submit(
        "alice@example.test", ["x@a.test", "y@a.test"],
        asked(subject).replace(b"Message-ID: <m@example.test>\r\n", b""),
    )  # fmt: skip
    message_id = relay.until_final(queue_id)["message_id"]
    for reader in ("x@a.test", "stranger@a.test"):  # who is no recipient has read nothing
        text = MDN.format(subject=subject, reader=reader, message_id=message_id)
        content = text.replace("\n", "\r\n").encode()
        received = relay.submit("", ["alice@example.test"], content, source="127.0.0.2")
        relay.until_final(received)
    journey = relay.journey(queue_id)
    [detail] = [one["detail"] for one in journey["steps"] if one["step"] == 7]
    assert (detail["by"], detail["kind"], detail["recipients"]) == ("remote", "read", ["x@a.test"])
    assert detail["source"]["client"] == "127.0.0.2"
    shown = {one["address"]: (one["state"], one["reported"]) for one in journey["recipients"]}
    assert shown["y@a.test"] == ("relayed", None)
    state, reported = shown["x@a.test"]
    assert (state, reported["kind"], reported["by"]) == ("relayed", "read", "remote")
    assert len(receipts(relay, subject)) == 2


def test_a_second_patch_sends_no_second_one(relay, subject) -> None:
    deliver(relay, "alice@example.test", "bob", asked(subject))
    for is_read in (True, False, True):
        path = f"/me/messages/{arrived(relay, subject, 'bob')}"
        relay.graph("PATCH", path, {"isRead": is_read}, token="bob", headers=WANTED)
    arrived(relay, f"Read: {subject}", "alice")
    read(relay, subject, "bob", **WANTED)
    assert len(receipts(relay, subject)) == 1


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_accounts_setting_decides(relay, subject, setting) -> None:
    deliver(relay, "alice@example.test", setting, asked(subject))
    before = count(relay)
    assert "preference-applied" not in read(relay, subject, setting).headers
    assert count(relay) - before == (setting in ("always", "auto"))
    answer = read(relay, subject, setting, **WANTED)
    assert count(relay) - before == (setting != "never")
    applied = answer.headers["preference-applied"]
    assert applied == ("relay.read-receipt=send" if setting == "ask" else None)


def test_a_receipt_that_the_reader_wants_says_so(relay, subject) -> None:
    german = "Accept-Language: de-AT, en;q=0.5"
    deliver(relay, "alice@example.test", "ask", asked(subject, "alice@example.test", german))
    read(relay, subject, "ask", **WANTED)
    receipt = arrived(relay, f"Read: {subject}", "alice")
    mime = relay.graph("GET", f"/me/messages/{receipt}/$value").body
    assert b"Disposition: manual-action/MDN-sent-manually; displayed\r\n" in mime
    body = relay.graph("GET", f"/me/messages/{receipt}").json()["body"]
    assert body["contentType"] == "html"
    assert "als gelesen markiert" in body["content"]


def test_strangers_get_one_only_if_the_reader_wants_it(relay, subject) -> None:
    to = "ann@a.test"
    deliver(relay, to, "bob", asked(subject, to), source="127.0.0.2")
    before = count(relay)
    read(relay, subject, "bob")
    assert count(relay) == before
    assert read(relay, subject, "bob", **WANTED).headers["preference-applied"]
    assert count(relay) == before + 1


@pytest.mark.parametrize(
    "to",
    [
        "victim@a.test", "alice@example.test, victim@a.test", "group: alice@example.test;",
        "carol@example.test",
    ],
)  # fmt: skip
def test_nobody_but_the_sender_gets_one(relay, subject, to) -> None:
    before = count(relay)
    deliver(relay, "alice@example.test", "always", asked(subject, to))
    read(relay, subject, "always", **WANTED)
    assert count(relay) == before


def test_a_forged_sender_gets_none_by_itself(relay, subject) -> None:
    deliver(relay, "alice@example.test", "bob", asked(subject), source="127.0.0.2")
    read(relay, subject, "bob")
    assert receipts(relay, subject) == []


def test_a_list_gets_none(relay, subject) -> None:
    list_id = "List-Id: <l.example.test>"
    content = asked(subject, "alice@example.test", list_id)
    deliver(relay, "alice@example.test", "always", content)
    read(relay, subject, "always", **WANTED)
    assert receipts(relay, subject) == []


def test_the_receipt_itself_owes_none(relay, subject) -> None:
    deliver(relay, "always@example.test", "always", asked(subject, "always@example.test"))
    read(relay, subject, "always")
    read(relay, f"Read: {subject}", "always", **WANTED)
    assert found(relay, f"Read: Read: {subject}", "always") == []


def answer_to(request: urllib.request.Request) -> Any:
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_a_development_relay_sends_one_to_every_sender() -> None:
    shop, ann = "shop@elsewhere.example", "ann@customer.example"
    content = email.message_from_bytes(asked("welcome", shop), policy=email.policy.default)
    with Relay() as relay:
        with smtplib.SMTP(*relay.smtp) as session:
            session.send_message(content, shop, [ann])
        message = relay.mailbox(ann).wait_for(subject="welcome")
        messages = f"{relay.http_url}/v1.0/users/{ann}/messages"
        headers = {
            "Authorization": f"Bearer {relay.token(ann)}",
            "Content-Type": "application/json",
        }
        [found] = answer_to(urllib.request.Request(messages, headers=headers))["value"]
        read_it = urllib.request.Request(
            f"{messages}/{found['id']}", b'{"isRead": true}', headers, method="PATCH"
        )
        assert answer_to(read_it)["isRead"]
        receipt = relay.mailbox(shop).wait_for(subject="Read: welcome")
        assert [one["detail"]["kind"] for one in message.journey["steps"] if one["step"] == 7] == [
            "read"
        ]
        assert b"multipart/report" in receipt.source


def test_what_a_backup_owes_waits_for_the_release(tmp_path: Path) -> None:
    with RelayProcess() as relay:
        deliver(relay, "alice@example.test", "bob", asked("restored"))
        relay.stop()
        done = relay.cli("backup", str(tmp_path / "copy"))
        assert done.returncode == 0, done.stderr
        for place in ("state", "mail"):
            shutil.rmtree(relay.folder / place)
        done = relay.cli("restore", str(tmp_path / "copy"), "--config", str(relay.config_file))
        assert done.returncode == 0, done.stderr
        relay.start()
        assert "preference-applied" not in read(relay, "restored", "bob", **WANTED).headers
        assert count(relay) == 0
        done = relay.cli("queue", "release", "--restored")
        assert done.returncode == 0, done.stderr
        read(relay, "restored", "bob", **WANTED)
        arrived(relay, "Read: restored", "alice")
        assert count(relay) == 1
        assert relay.faults() == []
