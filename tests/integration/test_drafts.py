"""Drafts that are being sent cannot be changed; those of mail clients are sent as well."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.integration.conftest import SharedRelay
from tests.support.graph_client import message
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import received


def create(relay: RelayProcess, **properties: Any) -> str:
    answer = relay.graph("POST", "/me/messages", message(**properties))
    assert answer.status == 201, answer.body
    return str(answer.json()["id"])


@contextmanager
def pickup_stalled(relay: RelayProcess) -> Iterator[None]:
    """While the pickup socket is moved away, submissions stay in ready/."""
    socket = relay.folder / "state/run/pickup.sock"
    away = socket.with_name("away.sock")
    socket.rename(away)
    try:
        yield
    finally:
        away.rename(socket)


def test_a_draft_being_sent_cannot_be_changed(shared: SharedRelay) -> None:
    relay = shared.relay  # its pickup has no connection yet
    draft = create(relay, to=["stalled@a.test"], subject="as it was")
    with pickup_stalled(relay):
        assert relay.graph("POST", f"/me/messages/{draft}/send").status == 202
        for method, path, body in (
            ("PATCH", "", {"subject": "changed"}),
            ("DELETE", "", None),
            ("POST", "/send", None),
        ):
            answer = relay.graph(method, f"/me/messages/{draft}{path}", body)
            assert answer.status == 409, f"{method} {path}: {answer.status}"
            assert "being sent" in answer.message
        assert len(relay.pending_submissions()) == 1
        assert shared.a.received("stalled@a.test") == []
    assert b"Subject: as it was" in received(shared.a, "stalled@a.test").content
    until("filed", lambda: "as it was" in relay.subjects("alice", "Sent"))


def test_a_draft_of_a_mail_client_is_sent(shared: SharedRelay) -> None:
    relay = shared.relay
    relay.messages("drafts")  # makes the folders
    drafts = relay.folder / "mail/example.test/alice/.Drafts"
    (drafts / "cur/1700000000.P1Q1.laptop:2,DS").write_bytes(
        b"From: alice@example.test\nTo: client@a.test\nSubject: by a client\n\nHello.\n"
    )
    (draft,) = [one for one in relay.messages("drafts") if one["subject"] == "by a client"]
    assert relay.graph("POST", f"/me/messages/{draft['id']}/send").status == 202
    assert b"Subject: by a client\r\n" in received(shared.a, "client@a.test").content
    until("filed", lambda: "by a client" in relay.subjects("alice", "Sent"))
    assert "by a client" not in relay.subjects("alice", "Drafts")


def test_ids_of_another_mailbox_do_not_exist(shared: SharedRelay) -> None:
    draft = create(shared.relay, to=["foreign@a.test"], subject="foreign")
    for asked in ("GET ", "GET /$value", "PATCH ", "DELETE ", "POST /send"):
        method, path = asked.split(" ")
        body = {"subject": "taken"} if method == "PATCH" else None
        answer = shared.relay.graph(method, f"/me/messages/{draft}{path}", body, token="bob")
        assert (answer.status, answer.code) == (404, "ErrorItemNotFound"), f"{method} {path}"
    assert shared.relay.graph("GET", f"/me/messages/{draft}").json()["subject"] == "foreign"
