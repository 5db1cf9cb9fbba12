"""O365 (python-o365), as it is published, against a relay. Numbers are those of the checks."""

import hashlib
import os
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import pytest
from O365 import Account, MSGraphProtocol
from O365.utils.token import MemoryTokenBackend

from tests.clients.conftest import ServedRelay, User
from tests.support.relay_process import until


class FixedToken(MemoryTokenBackend):
    """An account's token, as it is in accounts.toml."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def get_access_token(self, **_: object) -> dict[str, str]:
        return {"secret": self._token}

    def token_is_expired(self, **_: object) -> bool:
        return False


def protocol_of(served: ServedRelay) -> MSGraphProtocol:
    """The protocol with a relay's URLs."""
    protocol = MSGraphProtocol()
    protocol.protocol_url, protocol.service_url = f"{served.url}/", f"{served.url}/v1.0/"
    return protocol


def log_in(served: ServedRelay, user: User) -> Account:
    return Account(
        ("id", "secret"),
        protocol=protocol_of(served),
        auth_flow_type="credentials",
        tenant_id="contoso",
        main_resource=user.address,
        token_backend=FixedToken(user.name),
        verify_ssl=str(served.ca),
    )


@pytest.fixture
def account(served: ServedRelay, user: User) -> Account:
    return log_in(served, user)


def content_of(user: User) -> EmailMessage:
    """The message at the user's sink."""
    found = message_from_bytes(user.arrived().content, policy=policy.default)
    assert isinstance(found, EmailMessage)
    return found


@pytest.mark.parametrize("save", [True, False])
def test_06_send(account: Account, user: User, save: bool) -> None:
    message = account.new_message()
    message.to.add(user.sink)
    message.subject, message.body = "from O365", "<b>Grüße</b>"
    assert message.send(save_to_sent_folder=save) is True
    content = content_of(user)
    html = content.get_body(("html",))
    assert html is not None
    assert "<b>Grüße</b>" in html.get_content()
    filed = [one["subject"] for one in user.messages("sentitems")]
    assert filed == (["from O365"] if save else [])


def test_07_attachment_of_12_mib(account: Account, user: User, tmp_path: Path) -> None:
    path = tmp_path / "film.bin"
    path.write_bytes(os.urandom(12 << 20))
    message = account.new_message()
    message.to.add(user.sink)
    message.subject = "large"
    message.attachments.add(str(path))
    assert message.save_draft()
    assert message.send()
    (attachment,) = content_of(user).iter_attachments()
    expected = hashlib.sha256(path.read_bytes()).digest()
    assert hashlib.sha256(attachment.get_content()).digest() == expected


@pytest.mark.parametrize("kind", ["html", "text"])
def test_08_reply(account: Account, user: User, kind: str) -> None:
    other = user.served.new_user()
    body = {"contentType": kind, "content": "<p>the original</p>"}
    sender = f"{other.name}@sink.test"
    original = {
        "subject": "Question",
        "body": body,
        "toRecipients": [{"emailAddress": {"address": user.address}}],
        "replyTo": [{"emailAddress": {"address": sender}}],
    }
    user.served.relay.send_mail(token=other.name, **original)
    (found,) = until("the original", lambda: list(account.mailbox().inbox_folder().get_messages()))
    reply = found.reply(to_all=False)
    assert [one.address for one in reply.to] == [sender]
    assert reply.subject == "RE: Question"
    reply.body = "<b>my answer</b>" if kind == "html" else "my answer"
    assert reply.send()
    content = message_from_bytes(user.arrived(sender).content, policy=policy.default)
    assert isinstance(content, EmailMessage)
    assert content["in-reply-to"] == content["references"] == found.internet_message_id
    shown = content.get_body(("html",) if kind == "html" else ("plain",))
    assert shown is not None
    text = shown.get_content()
    assert text.index("my answer") < text.index("Subject:") < text.index("the original")
    (sent,) = until("filed", lambda: user.messages("sentitems"))
    assert (sent["subject"], sent["conversationId"]) == ("RE: Question", found.conversation_id)


def test_26_reply_all_and_forward(account: Account, user: User) -> None:
    relay, other = user.served.relay, user.served.new_user()
    to = [{"emailAddress": {"address": one}} for one in (user.address, user.sink)]
    relay.send_mail(token=other.name, subject="Fwd: All", toRecipients=to)
    (found,) = until("the original", lambda: list(account.mailbox().inbox_folder().get_messages()))
    reply = found.reply()
    assert [one.address for one in reply.to] == [other.address, user.sink]
    assert reply.subject == "RE: All"
    forward = found.forward()
    assert (list(forward.to), forward.subject) == ([], "FW: All")
    forward.to.add(user.sink)
    assert forward.send()
    assert content_of(user)["subject"] in ("Fwd: All", "FW: All")


def test_23_paging(account: Account, user: User) -> None:
    for number in range(25):
        user.served.relay.graph(
            "POST", "/me/messages", {"subject": f"{number:02}"}, token=user.name
        )
    box = account.mailbox()
    found = list(box.get_messages(limit=25, batch=10))
    assert sorted(one.subject for one in found) == [f"{number:02}" for number in range(25)]
    assert len({one.object_id for one in found}) == 25
    query = box.new_query().equals("isRead", False)
    assert list(box.get_messages(query=query)) == []


def test_folders(account: Account, user: User) -> None:
    box = account.mailbox()
    folder = box.create_child_folder("Projects")
    assert [one.name for one in box.get_folders(limit=999) if one.name == "Projects"]
    assert box.get_folder(folder_name="Projects").folder_id == folder.folder_id
    message = account.new_message()
    message.subject = "first"
    assert message.save_draft()
    message.subject = "to be moved"
    assert message.save_draft()
    assert message.move(folder)
    assert [one.subject for one in folder.get_messages()] == ["to be moved"]
    assert box.drafts_folder().folder_id


def test_settings(account: Account) -> None:
    box = account.mailbox()
    settings = box.get_settings()
    assert settings.timezone == "UTC"
    assert settings.workinghours["startTime"].startswith("08:00")
    assert settings.automaticrepliessettings.status.value == "disabled"
    assert box.set_disable_reply()
