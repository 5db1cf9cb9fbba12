"""Replies and forwards by msgraph-sdk for Python. Numbers are those of the checks."""

from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest

from tests.clients.conftest import ServedRelay, User
from tests.support.remotes import received

pytest.importorskip("msgraph", reason="make clients installs msgraph-sdk")

from msgraph.generated.models.item_body import ItemBody
from msgraph.generated.models.message import Message
from msgraph.generated.models.o_data_errors.o_data_error import ODataError
from msgraph.generated.users.item.messages.item.create_forward.create_forward_post_request_body import (
    CreateForwardPostRequestBody,
)
from msgraph.generated.users.item.messages.item.create_reply.create_reply_post_request_body import (
    CreateReplyPostRequestBody,
)
from msgraph.generated.users.item.messages.item.create_reply_all.create_reply_all_post_request_body import (
    CreateReplyAllPostRequestBody,
)
from msgraph.generated.users.item.messages.item.forward.forward_post_request_body import (
    ForwardPostRequestBody,
)
from msgraph.generated.users.item.messages.item.reply.reply_post_request_body import (
    ReplyPostRequestBody,
)
from msgraph.generated.users.item.messages.item.reply_all.reply_all_post_request_body import (
    ReplyAllPostRequestBody,
)

from tests.clients import graph_sdk as sdk


class Original:
    """A message in the user's Inbox: from sender, to the user and a third person, with Reply-To and a file."""

    def __init__(self, served: ServedRelay, user: User) -> None:
        self.user = user
        self.reply_to, self.third = f"reply-{user.sink}", f"third-{user.sink}"
        self.fourth = f"fourth-{user.sink}"
        mail = EmailMessage(policy=policy.SMTP)
        mail["From"], mail["To"] = f"sender-{user.sink}", f"{user.address}, {self.third}"
        mail["Cc"], mail["Reply-To"] = self.fourth, self.reply_to
        mail["Subject"], mail["Message-ID"] = "Budget", f"<{user.name}@sink.test>"
        mail.set_content("The text of the original.\n")
        mail.add_attachment(b"a,b\n", maintype="text", subtype="csv", filename="budget.csv")
        self.message_id = str(mail["Message-ID"])
        identity = served.relay.submit(f"sender-{user.sink}", [user.address], mail)
        served.relay.until_final(identity)
        (found,) = user.messages("inbox")
        client = sdk.client(served.url, user.name)
        self.request: Any = client.me.messages.by_message_id(found["id"])
        self.drafts: Any = client.me.messages

    def answer_to(self, address: str) -> EmailMessage:
        """The message that arrived for an address."""
        content = received(self.user.served.sink, address).content
        found = message_from_bytes(content, policy=policy.default)
        assert isinstance(found, EmailMessage)
        return found


@pytest.fixture
def original(served: ServedRelay, user: User) -> Original:
    return Original(served, user)


def addresses(recipients: list[Any]) -> list[str]:
    return [one.email_address.address for one in recipients]


def text_of(message: EmailMessage) -> str:
    body = message.get_body(("plain", "html"))
    assert body is not None
    return str(body.get_content())


async def test_26_create_reply(original: Original) -> None:
    draft = await original.request.create_reply.post(CreateReplyPostRequestBody(comment="Fine."))
    assert (draft.subject, draft.is_draft) == ("RE: Budget", True)
    assert addresses(draft.to_recipients) == [original.reply_to]
    assert "Fine." in draft.body.content
    assert "The text of the original." in draft.body.content
    assert draft.has_attachments is False


async def test_26_create_reply_all(original: Original) -> None:
    draft = await original.request.create_reply_all.post(CreateReplyAllPostRequestBody())
    every = addresses(draft.to_recipients + draft.cc_recipients)
    assert set(every) == {original.reply_to, original.third, original.fourth}


async def test_26_create_forward(original: Original) -> None:
    draft = await original.request.create_forward.post(
        CreateForwardPostRequestBody(comment="See", to_recipients=sdk.people(original.user.sink))
    )
    assert (draft.subject, draft.has_attachments) == ("FW: Budget", True)
    assert addresses(draft.to_recipients) == [original.user.sink]
    files = await original.drafts.by_message_id(draft.id).attachments.get()
    assert [(one.name, one.content_bytes) for one in files.value] == [("budget.csv", b"a,b\n")]


async def test_26_reply(original: Original) -> None:
    await original.request.reply.post(ReplyPostRequestBody(comment="Fine."))
    answer = original.answer_to(original.reply_to)
    assert (answer["subject"], answer["in-reply-to"]) == ("RE: Budget", original.message_id)
    assert original.message_id in answer["references"]
    text = text_of(answer)
    assert text.index("Fine.") < text.index("The text of the original.")
    for line in ("From:", "Sent:", "To:", "Subject:"):
        assert line in text


async def test_26_reply_all(original: Original) -> None:
    await original.request.reply_all.post(ReplyAllPostRequestBody(comment="To all."))
    for address in (original.reply_to, original.third, original.fourth):
        assert original.answer_to(address)["in-reply-to"] == original.message_id
    assert len(original.user.messages("inbox")) == 1


async def test_26_forward(original: Original) -> None:
    sink = original.user.sink
    await original.request.forward.post(
        ForwardPostRequestBody(comment="See", to_recipients=sdk.people(sink))
    )
    answer = original.answer_to(sink)
    assert answer["subject"] == "FW: Budget"
    assert [part.get_filename() for part in answer.iter_attachments()] == ["budget.csv"]


async def test_26_reply_with_a_message(original: Original) -> None:
    message = Message(to_recipients=sdk.people(original.user.sink))
    await original.request.reply.post(ReplyPostRequestBody(comment="Fine.", message=message))
    assert "Fine." in text_of(original.answer_to(original.user.sink))


async def test_26_comment_and_body_are_refused(original: Original) -> None:
    message = Message(body=ItemBody(content="own"))
    with pytest.raises(ODataError) as caught:
        await original.request.reply.post(ReplyPostRequestBody(comment="Fine.", message=message))
    assert caught.value.response_status_code == 400
    assert original.user.messages("sentitems") == []


@pytest.mark.parametrize("twice", [False, True], ids=["neither", "both"])
async def test_26_forward_has_recipients_in_one_place(original: Original, twice: bool) -> None:
    body = ForwardPostRequestBody(comment="See")
    if twice:
        body.to_recipients = sdk.people(original.user.sink)
        body.message = Message(to_recipients=sdk.people(original.user.sink))
    with pytest.raises(ODataError) as caught:
        await original.request.forward.post(body)
    assert caught.value.response_status_code == 400
