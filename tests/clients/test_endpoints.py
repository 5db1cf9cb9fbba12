"""Each endpoint that docs/graph.md calls supported, called by msgraph-sdk for Python over HTTPS."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest

from tests.clients.conftest import ServedRelay, User
from tests.support.endpoint_rows import rows

pytest.importorskip("msgraph", reason="make clients installs msgraph-sdk")

from kiota_abstractions.method import Method
from msgraph.generated.models.category_color import CategoryColor
from msgraph.generated.models.exchange_id_format import ExchangeIdFormat
from msgraph.generated.models.mail_folder import MailFolder
from msgraph.generated.models.mailbox_settings import MailboxSettings
from msgraph.generated.models.message import Message
from msgraph.generated.models.o_data_errors.o_data_error import ODataError
from msgraph.generated.models.outlook_category import OutlookCategory
from msgraph.generated.models.subscription import Subscription
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
        self.user = user
        self.client = sdk.client(served.url, user.name)
        self.me = self.client.me
        self.messages = self.me.messages
        self.folders = self.me.mail_folders

    async def draft(self, subject: str = "a draft") -> Any:
        """The request builder of a new draft."""
        made = await self.messages.post(sdk.message(subject, to=self.user.sink))
        return self.messages.by_message_id(made.id)

    async def with_file(self) -> tuple[Any, Any]:
        """The request builders of a new draft and of its attachment."""
        one = await self.draft()
        made = await one.attachments.post(sdk.file("a.txt", b"content"))
        return one, one.attachments.by_attachment_id(made.id)

    async def folder(self, name: str = "Projects") -> Any:
        """The request builder of a new folder."""
        made = await self.folders.post(MailFolder(display_name=name))
        return self.folders.by_mail_folder_id(made.id)

    async def subscription(self) -> Any:
        """The request builder of a new subscription."""
        made = await self.client.subscriptions.post(
            Subscription(
                change_type="created", resource="me/messages",
                notification_url=self.user.served.receiver.url(), expiration_date_time=in_an_hour(),
            )
        )  # fmt: skip
        return self.client.subscriptions.by_subscription_id(made.id)

    async def raw(self, method: Method, path: str) -> bytes:
        """The body of a response that the SDK has no typed method for."""
        return await sdk.raw(self.client, method, path)


def in_an_hour() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


Exercise = Callable[[Mailbox], Awaitable[None]]
EXERCISES: dict[tuple[str, str], Exercise] = {}


def endpoint(method: str, path: str) -> Callable[[Exercise], Exercise]:
    """Register a function as what exercises a row of the table."""

    def register(exercise: Exercise) -> Exercise:
        EXERCISES[method, path] = exercise
        return exercise

    return register


async def is_missing(call: Awaitable[Any]) -> bool:
    with pytest.raises(ODataError) as caught:
        await call
    return (caught.value.response_status_code, caught.value.error.code) == (
        404,
        "ErrorItemNotFound",
    )


@endpoint("GET", "/me")
async def _(box: Mailbox) -> None:
    found = await box.me.get(sdk.options(box.me, select=["mail", "userPrincipalName"]))
    assert (found.mail, found.user_principal_name) == (box.user.address, box.user.address)


@endpoint("POST", "/me/sendMail")
async def _(box: Mailbox) -> None:
    await box.me.send_mail.post(sdk.mail("sent", to=box.user.sink))
    box.user.arrived()


@endpoint("GET", "/me/messages")
async def _(box: Mailbox) -> None:
    await box.draft("first")
    await box.draft("second")
    found = await box.messages.get(sdk.options(box.messages, top=1, select=["subject"]))
    assert [one.subject for one in found.value] == ["second"]


@endpoint("POST", "/me/messages")
async def _(box: Mailbox) -> None:
    made = await box.messages.post(sdk.message("new", to=box.user.sink))
    assert (made.subject, made.is_draft) == ("new", True)


@endpoint("GET", "/me/messages/$count")
async def _(box: Mailbox) -> None:
    await box.draft()
    assert await box.messages.count.get() == 1


@endpoint("GET", "/me/messages/{id}")
async def _(box: Mailbox) -> None:
    one, _ = await box.with_file()
    found = await one.get(sdk.options(one, expand=["attachments"]))
    assert (found.subject, found.attachments[0].content_bytes) == ("a draft", b"content")


@endpoint("PATCH", "/me/messages/{id}")
async def _(box: Mailbox) -> None:
    one = await box.draft()
    assert (await one.patch(Message(subject="changed"))).subject == "changed"


@endpoint("DELETE", "/me/messages/{id}")
async def _(box: Mailbox) -> None:
    one = await box.draft()
    await one.delete()
    deleted = await box.folders.by_mail_folder_id("deleteditems").messages.get()
    assert [found.subject for found in deleted.value] == ["a draft"]
    await one.delete()
    assert await is_missing(one.get())


@endpoint("POST", "/me/messages/{id}/send")
async def _(box: Mailbox) -> None:
    one = await box.draft()
    await one.send.post()
    box.user.arrived()
    assert (await one.get()).is_draft is False


@endpoint("GET", "/me/messages/{id}/$value")
async def _(box: Mailbox) -> None:
    one = await box.draft()
    assert b"Subject: a draft\r\n" in await one.content.get()


@endpoint("PUT", "/me/messages/{id}/$value")
async def _(box: Mailbox) -> None:
    one = await box.draft()
    await one.content.put(b"Subject: replaced\r\n\r\nHello.\r\n")
    assert (await one.get()).subject == "replaced"


@endpoint("GET", "/me/messages/{id}/attachments")
async def _(box: Mailbox) -> None:
    one, _ = await box.with_file()
    found = await one.attachments.get()
    assert [(file.name, file.content_bytes) for file in found.value] == [("a.txt", b"content")]


@endpoint("POST", "/me/messages/{id}/attachments")
async def _(box: Mailbox) -> None:
    one = await box.draft()
    made = await one.attachments.post(sdk.file("a.txt", b"content", content_type="text/plain"))
    assert (made.name, made.size, made.content_type) == ("a.txt", 7, "text/plain")


@endpoint("GET", "/me/messages/{id}/attachments/$count")
async def _(box: Mailbox) -> None:
    one, _ = await box.with_file()
    assert await one.attachments.count.get() == 1


@endpoint("POST", "/me/messages/{id}/attachments/createUploadSession")
async def _(box: Mailbox) -> None:
    one = await box.draft()
    made = await one.attachments.create_upload_session.post(sdk.upload_of("a.bin", 5))
    assert made.upload_url.startswith(box.user.served.url)
    assert made.expiration_date_time.tzinfo is not None
    assert made.next_expected_ranges == ["0-"]


@endpoint("GET", "/me/messages/{id}/attachments/{id}")
async def _(box: Mailbox) -> None:
    _, file = await box.with_file()
    found = await file.get()
    assert (found.name, found.content_bytes) == ("a.txt", b"content")


@endpoint("DELETE", "/me/messages/{id}/attachments/{id}")
async def _(box: Mailbox) -> None:
    one, file = await box.with_file()
    await file.delete()
    assert (await one.get()).has_attachments is False


@endpoint("GET", "/me/messages/{id}/attachments/{id}/$value")
async def _(box: Mailbox) -> None:
    one, file = await box.with_file()
    path = f"/me/messages/{(await one.get()).id}/attachments/{(await file.get()).id}/$value"
    assert await box.raw(Method.GET, path) == b"content"


@endpoint("POST", "/me/messages/{id}/reply")
async def _(box: Mailbox) -> None:
    await (await box.draft("Plans")).reply.post(Reply(comment="mine"))
    assert b"Subject: RE: Plans" in box.user.arrived().content


@endpoint("POST", "/me/messages/{id}/replyAll")
async def _(box: Mailbox) -> None:
    await (await box.draft("Plans")).reply_all.post(ReplyAll(comment="mine"))
    assert b"Subject: RE: Plans" in box.user.arrived().content


@endpoint("POST", "/me/messages/{id}/forward")
async def _(box: Mailbox) -> None:
    await (await box.draft("Plans")).forward.post(
        Forward(comment="mine", to_recipients=sdk.people(box.user.sink))
    )
    assert b"Subject: FW: Plans" in box.user.arrived().content


@endpoint("POST", "/me/messages/{id}/createReply")
async def _(box: Mailbox) -> None:
    made = await (await box.draft("Plans")).create_reply.post(CreateReply(comment="mine"))
    assert (made.subject, made.is_draft) == ("RE: Plans", True)
    assert made.body.content.startswith("mine")


@endpoint("POST", "/me/messages/{id}/createReplyAll")
async def _(box: Mailbox) -> None:
    made = await (await box.draft("Plans")).create_reply_all.post(CreateReplyAll(comment="mine"))
    assert (made.subject, made.is_draft) == ("RE: Plans", True)
    assert made.body.content.startswith("mine")


@endpoint("POST", "/me/messages/{id}/createForward")
async def _(box: Mailbox) -> None:
    made = await (await box.draft("Plans")).create_forward.post(CreateForward(comment="mine"))
    assert (made.subject, made.is_draft) == ("FW: Plans", True)
    assert made.body.content.startswith("mine")


@endpoint("POST", "/me/messages/{id}/move")
async def _(box: Mailbox) -> None:
    one = await box.draft()
    before = await one.get()
    moved = await one.move.post(MoveMessage(destination_id="archive"))
    assert moved.id == before.id
    assert moved.parent_folder_id != before.parent_folder_id


@endpoint("POST", "/me/messages/{id}/copy")
async def _(box: Mailbox) -> None:
    one = await box.draft()
    copied = await one.copy.post(CopyMessage(destination_id="archive"))
    assert copied.id != (await one.get()).id
    assert await box.messages.count.get() == 2


@endpoint("POST", "/me/messages/{id}/permanentDelete")
async def _(box: Mailbox) -> None:
    one = await box.draft()
    await one.permanent_delete.post()
    assert await is_missing(one.get())


@endpoint("GET", "/me/messages/delta")
async def _(box: Mailbox) -> None:
    one = await box.draft("before")
    delta = box.messages.delta
    first = await delta.get(sdk.options(delta, select=["subject"]))
    assert [found.subject for found in first.value] == ["before"]
    await one.delete()
    made = await box.messages.post(sdk.message("after"))
    later = await delta.with_url(first.odata_delta_link).get()
    assert made.id in [found.id for found in later.value]
    assert later.odata_delta_link


@endpoint("GET", "/me/mailFolders")
async def _(box: Mailbox) -> None:
    found = await box.folders.get(sdk.options(box.folders, top=100))
    assert {"Inbox", "Drafts"} <= {one.display_name for one in found.value}


@endpoint("POST", "/me/mailFolders")
async def _(box: Mailbox) -> None:
    made = await box.folders.post(MailFolder(display_name="Projects"))
    assert (made.display_name, made.child_folder_count) == ("Projects", 0)


@endpoint("GET", "/me/mailFolders/$count")
async def _(box: Mailbox) -> None:
    await box.folder()
    assert await box.folders.count.get() == 8


@endpoint("GET", "/me/mailFolders/delta")
async def _(box: Mailbox) -> None:
    delta = box.folders.delta
    first = await delta.get(sdk.options(delta, top=100))
    assert {"Inbox", "Drafts"} <= {one.display_name for one in first.value}
    made = await box.folders.post(MailFolder(display_name="Projects"))
    later = await delta.with_url(first.odata_delta_link).get()
    assert [one.id for one in later.value] == [made.id]
    assert later.odata_delta_link


@endpoint("GET", "/me/mailFolders/{id}")
async def _(box: Mailbox) -> None:
    await box.draft()
    found = await box.folders.by_mail_folder_id("Drafts").get()
    assert (found.display_name, found.total_item_count) == ("Drafts", 1)


@endpoint("PATCH", "/me/mailFolders/{id}")
async def _(box: Mailbox) -> None:
    folder = await box.folder()
    assert (await folder.patch(MailFolder(display_name="Renamed"))).display_name == "Renamed"


@endpoint("DELETE", "/me/mailFolders/{id}")
async def _(box: Mailbox) -> None:
    folder = await box.folder()
    await folder.delete()
    deleted = await box.folders.by_mail_folder_id("deleteditems").child_folders.get()
    assert [one.display_name for one in deleted.value] == ["Projects"]


@endpoint("GET", "/me/mailFolders/{id}/childFolders")
async def _(box: Mailbox) -> None:
    folder = await box.folder()
    await folder.child_folders.post(MailFolder(display_name="Inner"))
    assert [one.display_name for one in (await folder.child_folders.get()).value] == ["Inner"]


@endpoint("GET", "/me/mailFolders/{id}/childFolders/$count")
async def _(box: Mailbox) -> None:
    folder = await box.folder()
    await folder.child_folders.post(MailFolder(display_name="Inner"))
    assert await folder.child_folders.count.get() == 1


@endpoint("POST", "/me/mailFolders/{id}/childFolders")
async def _(box: Mailbox) -> None:
    folder = await box.folder()
    made = await folder.child_folders.post(MailFolder(display_name="Inner"))
    assert made.parent_folder_id == (await folder.get()).id


@endpoint("POST", "/me/mailFolders/{id}/move")
async def _(box: Mailbox) -> None:
    folder = await box.folder()
    moved = await folder.move.post(MoveFolder(destination_id="archive"))
    archive = await box.folders.by_mail_folder_id("archive").get()
    assert moved.parent_folder_id == archive.id


@endpoint("POST", "/me/mailFolders/{id}/copy")
async def _(box: Mailbox) -> None:
    folder = await box.folder()
    await folder.messages.post(Message(subject="within"))
    copied = await folder.copy.post(CopyFolder(destination_id="archive"))
    assert (copied.display_name, copied.total_item_count) == ("Projects", 1)
    assert copied.id != (await folder.get()).id


@endpoint("POST", "/me/mailFolders/{id}/permanentDelete")
async def _(box: Mailbox) -> None:
    folder = await box.folder()
    await folder.permanent_delete.post()
    assert await is_missing(folder.get())


@endpoint("POST", "/me/translateExchangeIds")
async def _(box: Mailbox) -> None:
    made = await box.messages.post(sdk.message("one"))
    body = TranslateIds(
        input_ids=[made.id],
        source_id_type=ExchangeIdFormat.RestId,
        target_id_type=ExchangeIdFormat.RestImmutableEntryId,
    )
    (found,) = (await box.me.translate_exchange_ids.post(body)).value
    assert (found.source_id, found.target_id) == (made.id, made.id)


@endpoint("GET", "/me/mailFolders/{id}/messageRules")
async def _(box: Mailbox) -> None:
    inbox = box.me.mail_folders.by_mail_folder_id("inbox")
    assert (await inbox.message_rules.get()).value == []


@endpoint("GET", "/me/mailboxSettings")
async def _(box: Mailbox) -> None:
    found = await box.me.mailbox_settings.get()
    hours = found.working_hours
    assert (found.time_zone, found.language.locale, hours.time_zone.name) == ("UTC", "en-US", "UTC")
    assert (hours.start_time, len(hours.days_of_week)) == (time(8), 5)
    replies = found.automatic_replies_setting
    enums = (found.user_purpose, replies.status, replies.external_audience, hours.days_of_week[0])
    assert [one.value for one in enums] == ["user", "disabled", "none", "monday"]


@endpoint("GET", "/me/mailboxSettings/{name}")
async def _(box: Mailbox) -> None:
    assert b'"value":' in await box.raw(Method.GET, "/me/mailboxSettings/timeZone")


@endpoint("PATCH", "/me/mailboxSettings")
async def _(box: Mailbox) -> None:
    settings = MailboxSettings(time_zone="Pacific Standard Time")
    assert (await box.me.mailbox_settings.patch(settings)).time_zone == "Pacific Standard Time"


@endpoint("GET", "/me/inferenceClassification/overrides")
async def _(box: Mailbox) -> None:
    assert (await box.me.inference_classification.overrides.get()).value == []


@endpoint("GET", "/me/outlook/masterCategories")
async def _(box: Mailbox) -> None:
    assert (await box.me.outlook.master_categories.get()).value == []


@endpoint("POST", "/me/outlook/masterCategories")
async def _(box: Mailbox) -> None:
    made = await new_category(box)
    assert (made.display_name, made.color) == ("Done", CategoryColor.Preset4)


@endpoint("GET", "/me/outlook/masterCategories/{id}")
async def _(box: Mailbox) -> None:
    made = await new_category(box)
    one = box.me.outlook.master_categories.by_outlook_category_id(made.id)
    assert (await one.get()).display_name == "Done"


@endpoint("PATCH", "/me/outlook/masterCategories/{id}")
async def _(box: Mailbox) -> None:
    made = await new_category(box)
    one = box.me.outlook.master_categories.by_outlook_category_id(made.id)
    changed = await one.patch(OutlookCategory(color=CategoryColor.Preset0))
    assert (changed.display_name, changed.color) == ("Done", CategoryColor.Preset0)


@endpoint("DELETE", "/me/outlook/masterCategories/{id}")
async def _(box: Mailbox) -> None:
    categories = box.me.outlook.master_categories
    await categories.by_outlook_category_id((await new_category(box)).id).delete()
    assert (await categories.get()).value == []


async def new_category(box: Mailbox) -> Any:
    category = OutlookCategory(display_name="Done", color=CategoryColor.Preset4)
    return await box.me.outlook.master_categories.post(category)


@endpoint("GET", "/me/outlook/supportedTimeZones")
async def _(box: Mailbox) -> None:
    found = await box.me.outlook.supported_time_zones.get()
    assert "UTC" in {zone.alias for zone in found.value}


@endpoint("GET", "/users")
async def _(box: Mailbox) -> None:
    users = box.client.users
    found = await users.get(sdk.options(users, filter=f"mail eq '{box.user.address}'"))
    assert [one.mail for one in found.value] == [box.user.address]


@endpoint("GET", "/users/{id}")
async def _(box: Mailbox) -> None:
    found = await box.client.users.by_user_id(box.user.address).get()
    assert (found.mail, found.id) == (box.user.address, (await box.me.get()).id)


@endpoint("GET", "/me/mailFolders/delta")
async def _(box: Mailbox) -> None:
    first = await box.folders.delta.get()
    assert {"Inbox", "Drafts"} <= {one.display_name for one in first.value}
    made = await box.folders.post(MailFolder(display_name="Projects"))
    later = await box.folders.delta.with_url(first.odata_delta_link).get()
    assert [one.id for one in later.value] == [made.id]


@endpoint("GET", "/me/messages/{id}/attachments/$count")
async def _(box: Mailbox) -> None:
    one, _ = await box.with_file()
    assert await one.attachments.count.get() == 1


@endpoint("GET", "/me/mailFolders/$count")
async def _(box: Mailbox) -> None:
    before = await box.folders.count.get()
    await box.folder()
    assert await box.folders.count.get() == before + 1


@endpoint("GET", "/me/mailFolders/{id}/childFolders/$count")
async def _(box: Mailbox) -> None:
    folder = await box.folder()
    await folder.child_folders.post(MailFolder(display_name="Inner"))
    assert await folder.child_folders.count.get() == 1


@endpoint("POST", "/me/mailFolders/{id}/copy")
async def _(box: Mailbox) -> None:
    folder = await box.folder()
    copied = await folder.copy.post(CopyFolder(destination_id="archive"))
    assert (copied.display_name, copied.id != (await folder.get()).id) == ("Projects", True)


@endpoint("GET", "/subscriptions")
async def _(box: Mailbox) -> None:
    one = await (await box.subscription()).get()
    assert [each.id for each in (await box.client.subscriptions.get()).value] == [one.id]


@endpoint("POST", "/subscriptions")
async def _(box: Mailbox) -> None:
    one = await (await box.subscription()).get()
    made = await box.messages.post(sdk.message("a draft", to=box.user.sink))
    found = box.user.served.receiver.wait_for(
        lambda all_: any(each["resourceData"]["id"] == made.id for each in all_)
    )
    (own,) = [each for each in found if each["subscriptionId"] == one.id]
    assert (own["changeType"], own["resourceData"]["id"]) == ("created", made.id)


@endpoint("GET", "/subscriptions/{id}")
async def _(box: Mailbox) -> None:
    found = await (await box.subscription()).get()
    assert (found.change_type, found.client_state) == ("created", None)


@endpoint("PATCH", "/subscriptions/{id}")
async def _(box: Mailbox) -> None:
    one, until = await box.subscription(), in_an_hour()
    changed = await one.patch(Subscription(expiration_date_time=until))
    assert abs(changed.expiration_date_time - until) < timedelta(seconds=1)


@endpoint("DELETE", "/subscriptions/{id}")
async def _(box: Mailbox) -> None:
    one = await box.subscription()
    await one.delete()
    with pytest.raises(ODataError):
        await one.get()


@endpoint("POST", "/subscriptions/{id}/reauthorize")
async def _(box: Mailbox) -> None:
    one = await box.subscription()
    await one.reauthorize.post()
    assert (await one.get()).change_type == "created"


@endpoint("POST", "/$batch")
async def _(box: Mailbox) -> None:
    content = sdk.batch(box.me.to_get_request_information())
    (found,) = (await box.client.batch.post(content)).responses.values()
    assert (found.status, found.content_type) == (200, "application/json")


@pytest.mark.parametrize(("method", "path"), rows("yes"))
async def test_endpoint(served: ServedRelay, user: User, method: str, path: str) -> None:
    assert (method, path) in EXERCISES, "a supported endpoint that no client has called"
    await EXERCISES[method, path](Mailbox(served, user))
