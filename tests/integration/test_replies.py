"""Replies and forwards between two mailboxes and to another host, on a running relay."""

import base64
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from tests.support.relay_process import RelayProcess, until


def only(relay: RelayProcess, person: str, folder: str, subject: str) -> dict[str, Any]:
    """Wait for the only message with a subject in a folder of a mailbox."""

    def found() -> list[dict[str, Any]]:
        every = relay.messages(folder, token=person)
        return [one for one in every if one["subject"] == subject]

    (one,) = until(f"{subject!r} in {person}'s {folder}", found)
    return one


def parsed(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def mime_of(relay: RelayProcess, person: str, identifier: str) -> EmailMessage:
    return parsed(relay.graph("GET", f"/me/messages/{identifier}/$value", token=person).body)


def test_a_reply_arrives_in_the_conversation_and_so_does_the_reply_to_it(
    relay: RelayProcess,
) -> None:
    relay.send_mail(to=["bob@example.test"], subject="Threaded", text="How about Monday?")
    first = only(relay, "bob", "inbox", "Threaded")
    path = f"/me/mailFolders/inbox/messages/{first['id']}"
    answer = relay.graph("POST", f"{path}/reply", {"comment": "Fine."}, token="bob")
    assert (answer.status, answer.body) == (202, b"")
    second = only(relay, "alice", "inbox", "RE: Threaded")
    filed = only(relay, "bob", "sentitems", "RE: Threaded")
    assert filed["id"] == answer.headers["x-relay-message-id"]
    sent = only(relay, "alice", "sentitems", "Threaded")
    assert sent["conversationId"] == first["conversationId"]
    assert second["conversationId"] == filed["conversationId"] == first["conversationId"]
    mime = mime_of(relay, "alice", second["id"])
    assert mime["in-reply-to"] == first["internetMessageId"] == mime["references"]
    assert mime["message-id"] == answer.headers["x-relay-internet-message-id"]
    assert mime.get_content().splitlines()[0] == "Fine."
    assert mime.get_content().splitlines()[-1] == "How about Monday?"
    assert base64.b64decode(mime["thread-index"])[:22] == base64.b64decode(
        sent["conversationIndex"]
    )

    path = f"/me/messages/{second['id']}"
    draft = relay.graph("POST", f"{path}/createReplyAll").json()
    assert relay.graph("POST", f"/me/messages/{draft['id']}/send").status == 202
    until("two replies", lambda: len(relay.messages("inbox", token="bob")) > 1)
    third = only(relay, "bob", "inbox", "RE: Threaded")
    assert third["conversationId"] == first["conversationId"]
    references = mime_of(relay, "bob", third["id"])["references"].split()
    assert references == [first["internetMessageId"], filed["internetMessageId"]]
    wanted = f"$filter=conversationId eq '{first['conversationId']}'&$select=subject"
    listed = relay.graph("GET", f"/me/messages?{wanted.replace(' ', '%20')}").json()["value"]
    assert len(listed) == 3
    answered = relay.graph("GET", f"/me/messages/{first['id']}", token="bob").json()
    assert answered["changeKey"] == first["changeKey"]
