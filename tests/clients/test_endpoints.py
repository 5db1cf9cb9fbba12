"""Each endpoint that docs/graph.md calls supported, called by msgraph-sdk for Python over HTTPS."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, time, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest

from tests.clients.conftest import ServedRelay, User
from tests.support.endpoint_rows import rows

pytest.importorskip("msgraph", reason="make clients installs msgraph-sdk")

from kiota_abstractions.method import Method
from msgraph.generated.models.entity_type import EntityType
from msgraph.generated.models.exchange_id_format import ExchangeIdFormat
from msgraph.generated.models.item_body import ItemBody
from msgraph.generated.models.mail_folder import MailFolder
from msgraph.generated.models.mailbox_settings import MailboxSettings
from msgraph.generated.models.message import Message
from msgraph.generated.models.o_data_errors.o_data_error import ODataError
from msgraph.generated.models.search_query import SearchQuery
from msgraph.generated.models.search_request import SearchRequest
from msgraph.generated.models.subscription import Subscription
from msgraph.generated.search.query.query_post_request_body import QueryPostRequestBody as Search
from msgraph.generated.users.item.mail_folders.item.copy.copy_post_request_body import (
    CopyPostRequestBody as CopyFolder,
)
from msgraph.generated.users.item.mail_folders.item.move.move_post_request_body import (
    MovePostRequestBody as MoveFolder,
)
from msgraph.generated.users.item.messages.item.copy.copy_post_request_body import (
    CopyPostRequestBody as CopyMessage,
)
from msgraph.generated.users.item.messages.item.create_forward.create_forward_post_request_body import (
    CreateForwardPostRequestBody as CreateForward,
)
from msgraph.generated.users.item.messages.item.create_reply.create_reply_post_request_body import (
    CreateReplyPostRequestBody as CreateReply,
)
from msgraph.generated.users.item.messages.item.create_reply_all.create_reply_all_post_request_body import (
    CreateReplyAllPostRequestBody as CreateReplyAll,
)
from msgraph.generated.users.item.messages.item.forward.forward_post_request_body import (
    ForwardPostRequestBody as Forward,
)
from msgraph.generated.users.item.messages.item.move.move_post_request_body import (
    MovePostRequestBody as MoveMessage,
)
from msgraph.generated.users.item.messages.item.reply.reply_post_request_body import (
    ReplyPostRequestBody as Reply,
)
from msgraph.generated.users.item.messages.item.reply_all.reply_all_post_request_body import (
    ReplyAllPostRequestBody as ReplyAll,
)
from msgraph.generated.users.item.translate_exchange_ids.translate_exchange_ids_post_request_body import (
    TranslateExchangeIdsPostRequestBody as TranslateIds,
)

from tests.clients import graph_sdk as sdk


class Mailbox:
    """A new user's mailbox, by msgraph-sdk."""

    def __init__(self, served: ServedRelay, user: User) -> None:
        self.user, self.served = user, served
        self.client = sdk.client(served.url, user.name)
        self.me = self.client.me
        self.messages = self.me.messages
        self.folders = self.me.mail_folders

    async def draft(self, subject: str = "a draft") -> Any:
        """The request builder of a new draft."""
        made = await self.messages.post(sdk.message(subject, to=self.user.sink))
        return self.messages.by_message_id(made.id)

    async def folder(self, name: str = "Projects") -> Any:
        """The request builder of a new folder."""
        made = await self.folders.post(MailFolder(display_name=name))
        return self.folders.by_mail_folder_id(made.id)

    def received(self) -> tuple[Any, str]:
        """The request builder of a message to the user and two others, with Reply-To and a file, and
        its Message-ID.
        """
        sink, mail = self.user.sink, EmailMessage(policy=policy.SMTP)
        mail["From"], mail["To"] = f"sender-{sink}", f"{self.user.address}, third-{sink}"
        mail["Cc"], mail["Reply-To"] = f"fourth-{sink}", f"reply-{sink}"
        mail["Subject"], mail["Message-ID"] = "Budget", f"<{self.user.name}@sink.test>"
        mail.set_content("The text of the original.\n")
        mail.add_attachment(b"a,b\n", maintype="text", subtype="csv", filename="budget.csv")
        relay = self.served.relay
        relay.until_final(relay.submit(f"sender-{sink}", [self.user.address], mail))
        (found,) = self.user.messages("inbox")
        return self.messages.by_message_id(found["id"]), str(mail["Message-ID"])

    def arrived(self, whose: str = "") -> EmailMessage:
        """The message that has arrived at an address of the sink."""
        content = self.user.arrived(whose + self.user.sink).content
        found = message_from_bytes(content, policy=policy.default)
        assert isinstance(found, EmailMessage)
        return found

    async def raw(self, method: Method, path: str) -> bytes:
        """The body of a response that the SDK has no typed method for."""
        return await sdk.raw(self.client, method, path)


def in_an_hour() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


Exercise = Callable[[Mailbox], Awaitable[None]]
EXERCISES: dict[Exercise, list[tuple[str, str]]] = {}


def exercises(*endpoints: str) -> Callable[[Exercise], Exercise]:
    """Register a function as what exercises these rows of the table."""

    def register(exercise: Exercise) -> Exercise:
        EXERCISES[exercise] = [(method, path) for method, path in map(str.split, endpoints)]
        return exercise

    return register


async def is_missing(call: Awaitable[Any]) -> bool:
    with pytest.raises(ODataError) as caught:
        await call
    found = (caught.value.response_status_code, caught.value.error.code)
    return found == (404, "ErrorItemNotFound")


@exercises("GET /$metadata", "POST /search/query")
async def outside_mailboxes(box: Mailbox) -> None:
    assert b'Name="mailFolder"' in await box.raw(Method.GET, "/$metadata")
    wanted = SearchRequest(
        entity_types=[EntityType.Message], query=SearchQuery(query_string="nowhere")
    )
    [found] = (await box.client.search.query.post(Search(requests=[wanted]))).value
    assert found.hits_containers[0].total == 0


@exercises("GET /me", "GET /users", "GET /users/{id}", "POST /$batch", "POST /me/sendMail")
async def a_user(box: Mailbox) -> None:
    found = await box.me.get(sdk.options(box.me, select=["id", "mail", "userPrincipalName"]))
    assert (found.mail, found.user_principal_name) == (box.user.address, box.user.address)
    users = box.client.users
    listed = await users.get(sdk.options(users, filter=f"mail eq '{box.user.address}'"))
    by_address = await users.by_user_id(box.user.address).get()
    assert [one.mail for one in (*listed.value, by_address)] == [box.user.address] * 2
    assert by_address.id == found.id
    content = sdk.batch(box.me.to_get_request_information())
    (answer,) = (await box.client.batch.post(content)).responses.values()
    assert (answer.status, answer.content_type) == (200, "application/json")
    await box.me.send_mail.post(sdk.mail("sent", to=box.user.sink))
    assert box.arrived()["subject"] == "sent"


@exercises(
    "GET /me/messages",
    "POST /me/messages",
    "GET /me/messages/$count",
    "GET /me/messages/{id}",
    "PATCH /me/messages/{id}",
    "DELETE /me/messages/{id}",
    "POST /me/messages/{id}/send",
    "GET /me/messages/{id}/$value",
    "PUT /me/messages/{id}/$value",
    "POST /me/messages/{id}/permanentDelete",
)
async def drafts(box: Mailbox) -> None:
    made = await box.messages.post(sdk.message("first", to=box.user.sink))
    assert (made.subject, made.is_draft) == ("first", True)
    one, two = box.messages.by_message_id(made.id), await box.draft("second")
    found = await box.messages.get(sdk.options(box.messages, top=1, select=["subject"]))
    assert [each.subject for each in found.value] == ["second"]
    assert await box.messages.count.get() == 2
    assert (await one.patch(Message(subject="changed"))).subject == "changed"
    assert b"Subject: changed\r\n" in await one.content.get()
    mime = f"Subject: replaced\r\nTo: {box.user.sink}\r\n\r\nHello.\r\n"
    await one.content.put(mime.encode())
    await one.send.post()
    assert box.arrived()["subject"] == "replaced"
    sent = await one.get()
    assert (sent.subject, sent.is_draft) == ("replaced", False)
    await two.delete()
    deleted = await box.folders.by_mail_folder_id("deleteditems").messages.get()
    assert [each.subject for each in deleted.value] == ["second"]
    await two.delete()
    assert await is_missing(two.get())
    await one.permanent_delete.post()
    assert await is_missing(one.get())


@exercises(
    "GET /me/messages/{id}/attachments",
    "POST /me/messages/{id}/attachments",
    "GET /me/messages/{id}/attachments/$count",
    "POST /me/messages/{id}/attachments/createUploadSession",
    "GET /me/messages/{id}/attachments/{id}",
    "DELETE /me/messages/{id}/attachments/{id}",
    "GET /me/messages/{id}/attachments/{id}/$value",
)
async def attachments(box: Mailbox) -> None:
    one = await box.draft()
    made = await one.attachments.post(sdk.file("a.txt", b"content", content_type="text/plain"))
    assert (made.name, made.size, made.content_type) == ("a.txt", 7, "text/plain")
    file = one.attachments.by_attachment_id(made.id)
    listed, again = await one.attachments.get(), await file.get()
    expanded = await one.get(sdk.options(one, expand=["attachments"]))
    for each in (*listed.value, *expanded.attachments, again):
        assert (each.name, each.content_bytes) == ("a.txt", b"content")
    assert await one.attachments.count.get() == 1
    path = f"/me/messages/{expanded.id}/attachments/{again.id}/$value"
    assert await box.raw(Method.GET, path) == b"content"
    await file.delete()
    assert (await one.get()).has_attachments is False
    session = await one.attachments.create_upload_session.post(sdk.upload_of("a.bin", 5))
    assert session.upload_url.startswith(box.served.url)
    assert session.expiration_date_time.tzinfo is not None
    assert session.next_expected_ranges == ["0-"]


def addresses(recipients: list[Any]) -> set[str]:
    return {one.email_address.address for one in recipients}


@exercises(
    "POST /me/messages/{id}/createReply",
    "POST /me/messages/{id}/createReplyAll",
    "POST /me/messages/{id}/createForward",
)
async def drafts_of_replies(box: Mailbox) -> None:
    (one, _), sink = box.received(), box.user.sink
    reply = await one.create_reply.post(CreateReply(comment="mine"))
    assert (reply.subject, reply.is_draft, reply.has_attachments) == ("RE: Budget", True, False)
    assert addresses(reply.to_recipients) == {f"reply-{sink}"}
    assert reply.body.content.index("mine") < reply.body.content.index("The text of the original.")
    to_all = await one.create_reply_all.post(CreateReplyAll())
    every = addresses(to_all.to_recipients + to_all.cc_recipients)
    assert every == {f"reply-{sink}", f"third-{sink}", f"fourth-{sink}"}
    body = CreateForward(comment="mine", to_recipients=sdk.people(sink))
    forward = await one.create_forward.post(body)
    assert (forward.subject, forward.has_attachments) == ("FW: Budget", True)
    assert addresses(forward.to_recipients) == {sink}
    files = await box.messages.by_message_id(forward.id).attachments.get()
    assert [(each.name, each.content_bytes) for each in files.value] == [("budget.csv", b"a,b\n")]


@exercises(
    "POST /me/messages/{id}/reply",
    "POST /me/messages/{id}/replyAll",
    "POST /me/messages/{id}/forward",
)
async def replies(box: Mailbox) -> None:
    (one, message_id), sink = box.received(), box.user.sink
    message = Message(to_recipients=sdk.people(f"own-{sink}"))
    await one.reply.post(Reply(comment="mine", message=message))
    answer = box.arrived("own-")
    assert (answer["subject"], answer["in-reply-to"]) == ("RE: Budget", message_id)
    assert message_id in answer["references"]
    text = answer.get_body(("plain", "html")).get_content()
    for line in ("From:", "Sent:", "To:", "Subject:"):
        assert text.index("mine") < text.index(line) < text.index("The text of the original.")
    await one.reply_all.post(ReplyAll(comment="mine"))
    for whose in ("reply-", "third-", "fourth-"):
        assert box.arrived(whose)["in-reply-to"] == message_id
    await one.forward.post(Forward(comment="mine", to_recipients=sdk.people(sink)))
    forwarded = box.arrived()
    assert forwarded["subject"] == "FW: Budget"
    assert [part.get_filename() for part in forwarded.iter_attachments()] == ["budget.csv"]
    to = sdk.people(sink)
    for refused in (
        one.reply.post(Reply(comment="mine", message=Message(body=ItemBody(content="own")))),
        one.forward.post(Forward(comment="mine")),
        one.forward.post(Forward(to_recipients=to, message=Message(to_recipients=to))),
    ):
        with pytest.raises(ODataError) as caught:
            await refused
        assert caught.value.response_status_code == 400


@exercises(
    "POST /me/messages/{id}/move",
    "POST /me/messages/{id}/copy",
    "POST /me/translateExchangeIds",
    "GET /me/messages/delta",
)
async def messages_elsewhere(box: Mailbox) -> None:
    one = await box.draft("before")
    before = await one.get()
    delta = box.messages.delta
    first = await delta.get(sdk.options(delta, select=["subject"]))
    assert [found.subject for found in first.value] == ["before"]
    moved = await one.move.post(MoveMessage(destination_id="archive"))
    assert moved.id == before.id
    assert moved.parent_folder_id != before.parent_folder_id
    copied = await one.copy.post(CopyMessage(destination_id="archive"))
    assert copied.id != moved.id
    assert await box.messages.count.get() == 2
    later = await delta.with_url(first.odata_delta_link).get()
    assert copied.id in [found.id for found in later.value]
    assert later.odata_delta_link
    kinds = {"source_id_type": ExchangeIdFormat.RestId}
    kinds["target_id_type"] = ExchangeIdFormat.RestImmutableEntryId
    body = TranslateIds(input_ids=[moved.id], **kinds)
    (found,) = (await box.me.translate_exchange_ids.post(body)).value
    assert (found.source_id, found.target_id) == (moved.id, moved.id)


@exercises(
    "GET /me/mailFolders",
    "POST /me/mailFolders",
    "GET /me/mailFolders/$count",
    "GET /me/mailFolders/{id}",
    "PATCH /me/mailFolders/{id}",
    "DELETE /me/mailFolders/{id}",
    "GET /me/mailFolders/{id}/childFolders",
    "GET /me/mailFolders/{id}/childFolders/$count",
    "POST /me/mailFolders/{id}/childFolders",
    "POST /me/mailFolders/{id}/move",
    "POST /me/mailFolders/{id}/copy",
    "POST /me/mailFolders/{id}/permanentDelete",
    "GET /me/mailFolders/{id}/messageRules",
)
async def folders(box: Mailbox) -> None:
    before = await box.folders.count.get()
    listed = await box.folders.get(sdk.options(box.folders, top=100))
    assert {"Inbox", "Drafts"} <= {one.display_name for one in listed.value}
    made = await box.folders.post(MailFolder(display_name="Projects"))
    assert (made.display_name, made.child_folder_count) == ("Projects", 0)
    assert await box.folders.count.get() == before + 1
    folder = box.folders.by_mail_folder_id(made.id)
    assert (await folder.patch(MailFolder(display_name="Renamed"))).display_name == "Renamed"
    inner = await folder.child_folders.post(MailFolder(display_name="Inner"))
    assert inner.parent_folder_id == made.id
    assert [one.display_name for one in (await folder.child_folders.get()).value] == ["Inner"]
    assert await folder.child_folders.count.get() == 1
    await folder.messages.post(Message(subject="within"))
    assert (await folder.get()).total_item_count == 1
    archive = await box.folders.by_mail_folder_id("archive").get()
    copied = await folder.copy.post(CopyFolder(destination_id="archive"))
    assert (copied.display_name, copied.total_item_count) == ("Renamed", 1)
    assert (copied.id != made.id, copied.parent_folder_id) == (True, archive.id)
    other = await box.folder("Other")
    moved = await other.move.post(MoveFolder(destination_id="archive"))
    assert moved.parent_folder_id == archive.id
    await other.permanent_delete.post()
    assert await is_missing(other.get())
    await folder.delete()
    deleted = await box.folders.by_mail_folder_id("deleteditems").child_folders.get()
    assert [one.display_name for one in deleted.value] == ["Renamed"]
    inbox = box.folders.by_mail_folder_id("inbox")
    assert (await inbox.message_rules.get()).value == []


@exercises(
    "GET /me/mailboxSettings",
    "GET /me/mailboxSettings/{name}",
    "PATCH /me/mailboxSettings",
    "GET /me/inferenceClassification/overrides",
    "GET /me/outlook/supportedTimeZones",
)
async def settings(box: Mailbox) -> None:
    found = await box.me.mailbox_settings.get()
    hours = found.working_hours
    assert (found.time_zone, found.language.locale, hours.time_zone.name) == ("UTC", "en-US", "UTC")
    assert (hours.start_time, len(hours.days_of_week)) == (time(8), 5)
    replies = found.automatic_replies_setting
    enums = (found.user_purpose, replies.status, replies.external_audience, hours.days_of_week[0])
    assert [one.value for one in enums] == ["user", "disabled", "none", "monday"]
    assert b'"value":' in await box.raw(Method.GET, "/me/mailboxSettings/timeZone")
    zone = MailboxSettings(time_zone="Pacific Standard Time")
    assert (await box.me.mailbox_settings.patch(zone)).time_zone == "Pacific Standard Time"
    zones = await box.me.outlook.supported_time_zones.get()
    assert "UTC" in {each.alias for each in zones.value}
    assert (await box.me.inference_classification.overrides.get()).value == []


@exercises(
    "GET /me/outlook/masterCategories",
)
async def categories(box: Mailbox) -> None:
    assert (await box.me.outlook.master_categories.get()).value == []


@exercises(
    "GET /subscriptions",
    "POST /subscriptions",
    "GET /subscriptions/{id}",
    "PATCH /subscriptions/{id}",
    "DELETE /subscriptions/{id}",
    "POST /subscriptions/{id}/reauthorize",
)
async def subscriptions(box: Mailbox) -> None:
    every, receiver = box.client.subscriptions, box.served.receiver
    wanted = Subscription(
        change_type="created",
        resource="me/messages",
        notification_url=receiver.url(),
        expiration_date_time=in_an_hour(),
    )
    one = every.by_subscription_id((await every.post(wanted)).id)
    found = await one.get()
    assert (found.change_type, found.client_state) == ("created", None)
    assert [each.id for each in (await every.get()).value] == [found.id]
    made = await box.messages.post(sdk.message("a draft", to=box.user.sink))
    told = receiver.wait_for(
        lambda all_: any(each["resourceData"]["id"] == made.id for each in all_)
    )
    (own,) = [each for each in told if each["subscriptionId"] == found.id]
    assert (own["changeType"], own["resourceData"]["id"]) == ("created", made.id)
    until = in_an_hour()
    changed = await one.patch(Subscription(expiration_date_time=until))
    assert abs(changed.expiration_date_time - until) < timedelta(seconds=1)
    await one.reauthorize.post()
    await one.delete()
    with pytest.raises(ODataError):
        await one.get()


def test_each_supported_endpoint_is_called() -> None:
    called = [one for endpoints in EXERCISES.values() for one in endpoints]
    assert (set(called), len(called)) == (set(rows("yes")), len(set(called)))


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda one: one.__name__)
async def test_endpoints(served: ServedRelay, user: User, exercise: Exercise) -> None:
    await exercise(Mailbox(served, user))
