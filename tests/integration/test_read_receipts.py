"""Read receipts (RFC 8098) of a relay's own mailboxes: sent when a client marks the message as read."""

import email
import email.policy
import itertools

import pytest

from tests.support.graph_client import Answer
from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess, until

WANTED = {"Prefer": "relay.read-receipt=send"}
SETTINGS = ("never", "ask", "always", "auto")
_names = itertools.count(1)


@pytest.fixture(scope="module")
def relay(remotes_module, serve_module) -> RelayProcess:
    """A relay with an account for each setting, named after it."""
    people = [account(name, read_receipts=name) for name in SETTINGS]
    remotes_module.start("a.test")
    return serve_module(remotes_module, accounts=people)


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


def test_a_second_patch_sends_no_second_one(relay, subject) -> None:
    deliver(relay, "alice@example.test", "bob", asked(subject))
    for is_read in (True, False, True):
        path = f"/me/messages/{arrived(relay, subject, 'bob')}"
        relay.graph("PATCH", path, {"isRead": is_read}, token="bob", headers=WANTED)
    arrived(relay, f"Read: {subject}", "alice")
    read(relay, subject, "bob", **WANTED)
    assert len(receipts(relay, subject)) == 1


def test_the_accounts_setting_decides(relay, subject) -> None:
    for setting in SETTINGS:
        deliver(relay, "alice@example.test", setting, asked(subject))
        before = count(relay)
        assert "preference-applied" not in read(relay, subject, setting).headers
        assert count(relay) - before == (setting in ("always", "auto"))
        answer = read(relay, subject, setting, **WANTED)
        assert count(relay) - before == (setting != "never")
        applied = answer.headers["preference-applied"]
        assert applied == ("relay.read-receipt=send" if setting == "ask" else None)


def test_strangers_get_one_only_if_the_reader_wants_it(relay, subject) -> None:
    to = "ann@a.test"
    deliver(relay, to, "bob", asked(subject, to), source="127.0.0.2")
    before = count(relay)
    read(relay, subject, "bob")
    assert count(relay) == before
    assert read(relay, subject, "bob", **WANTED).headers["preference-applied"]
    assert count(relay) == before + 1
    # nor a forged sender by itself
    deliver(relay, "alice@example.test", "bob", asked(f"{subject}.2"), source="127.0.0.2")
    read(relay, f"{subject}.2", "bob")
    assert receipts(relay, f"{subject}.2") == []


def test_nobody_but_the_sender_gets_one(relay, subject) -> None:
    before, alice = count(relay), "alice@example.test"
    for number, (to, *more) in enumerate(
        (
            ["victim@a.test"],
            [f"{alice}, victim@a.test"],
            [f"group: {alice};"],
            ["carol@example.test"],
            [alice, "List-Id: <l.example.test>"],
        )
    ):
        deliver(relay, alice, "always", asked(f"{subject}.{number}", to, *more))
        read(relay, f"{subject}.{number}", "always", **WANTED)
    assert count(relay) == before


def test_the_receipt_itself_owes_none(relay, subject) -> None:
    deliver(relay, "always@example.test", "always", asked(subject, "always@example.test"))
    read(relay, subject, "always")
    read(relay, f"Read: {subject}", "always", **WANTED)
    assert found(relay, f"Read: Read: {subject}", "always") == []
