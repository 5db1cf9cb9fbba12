"""msgraph-sdk for Python, as it is published, against a relay. Numbers are those of the checks."""

import base64
import hashlib
import io
import os
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest

from tests.clients.conftest import ServedRelay, User
from tests.support.faulty_proxy import Fault

pytest.importorskip("msgraph", reason="make clients installs msgraph-sdk")

from msgraph.generated.models.body_type import BodyType
from msgraph.generated.models.date_time_time_zone import DateTimeTimeZone
from msgraph.generated.models.followup_flag import FollowupFlag
from msgraph.generated.models.followup_flag_status import FollowupFlagStatus
from msgraph.generated.models.importance import Importance
from msgraph.generated.models.inference_classification_type import InferenceClassificationType
from msgraph.generated.models.message import Message
from msgraph.generated.models.o_data_errors.o_data_error import ODataError
from msgraph_core.tasks.large_file_upload import LargeFileUploadTask

from tests.clients import graph_sdk as sdk


def content_of(user: User) -> EmailMessage:
    """The message at the user's sink."""
    found = message_from_bytes(user.arrived().content, policy=policy.default)
    assert isinstance(found, EmailMessage)
    return found


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
async def test_01_send_mail(served: ServedRelay, user: User, secure: bool) -> None:
    url = served.url if secure else "http://{}:{}".format(*served.relay.http)
    client = sdk.client(url, user.name)
    body = sdk.mail(subject="Hé", to=user.sink, bcc=f"bcc-{user.sink}", html="<b>Grüße</b>")
    assert await client.me.send_mail.post(body) is None
    content = content_of(user)
    assert content["subject"] == "Hé"
    assert "bcc" not in content
    assert user.arrivals(f"bcc-{user.sink}") == 1


@pytest.mark.parametrize(
    ("size", "chunk"), [((4 << 20) + 5, 5 << 20), (12 << 20, 5 << 20), (3_500_000, 320 << 10)]
)
async def test_11_large_file_upload_task(
    served: ServedRelay, user: User, size: int, chunk: int
) -> None:
    client = sdk.client(served.url, user.name)
    data = os.urandom(size)
    draft = await client.me.messages.post(sdk.message(subject="upload", to=user.sink))
    session = await client.me.messages.by_message_id(
        draft.id
    ).attachments.create_upload_session.post(sdk.upload_of("film.mp4", size))
    task = LargeFileUploadTask(
        upload_session=session,
        request_adapter=client.request_adapter,
        stream=io.BytesIO(data),
        max_chunk_size=chunk,
    )
    await task.upload()
    await client.me.messages.by_message_id(draft.id).send.post()
    (attachment,) = content_of(user).iter_attachments()
    assert hashlib.sha256(attachment.get_content()).digest() == hashlib.sha256(data).digest()


async def test_state_of_a_message_that_was_sent(served: ServedRelay, user: User) -> None:
    """A worker marks what it has done, and sends the whole message back, as it has read it."""
    client = sdk.client(served.url, user.name)
    draft = await client.me.messages.post(sdk.message(subject="order", to=user.sink))
    one = client.me.messages.by_message_id(draft.id)
    await one.send.post()
    user.arrived()
    while (whole := await one.get()).is_draft:  # until step 4
        pass
    whole.categories = ["Done"]
    whole.flag = FollowupFlag(
        flag_status=FollowupFlagStatus.Complete,
        start_date_time=DateTimeTimeZone(date_time="2026-12-01T08:00:00", time_zone="UTC"),
    )
    changed = await one.patch(whole)
    assert (changed.categories, changed.is_draft) == (["Done"], False)
    assert changed.flag.flag_status is FollowupFlagStatus.Complete
    assert changed.flag.completed_date_time.time_zone == "UTC"
    await one.patch(Message(importance=Importance.High, categories=[]))
    again = await one.get()
    assert (again.importance, again.categories) == (Importance.High, [])
    with pytest.raises(ODataError) as caught:
        await one.patch(Message(subject="another"))
    assert caught.value.error.message == "Message is not draft."


MIME = (
    b"From: {}\r\nTo: {}\r\nSubject: mime\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; micalg=sha-256;'
    b' boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain\r\n\r\nSigned  text, with trailing spaces   \r\n"
    b"--b\r\nContent-Type: application/pkcs7-signature\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nAAAA\r\n--b--\r\n"
)


async def test_16_mime(served: ServedRelay, user: User) -> None:
    client = sdk.client(served.url, user.name)
    mime = MIME.replace(b"{}", user.address.encode(), 1).replace(b"{}", user.sink.encode(), 1)
    await sdk.send_mime(client, base64.encodebytes(mime))
    arrived = user.arrived().content
    assert arrived.partition(b"\r\n\r\n")[2] == mime.partition(b"\r\n\r\n")[2]
    with pytest.raises(ODataError) as caught:
        await sdk.send_mime(client, b"@@@")
    assert caught.value.response_status_code == 400
    assert caught.value.error.code == "ErrorMimeContentInvalidBase64String"


async def test_20_429_twice(served: ServedRelay, user: User) -> None:
    client = sdk.client(served.proxy.url, user.name)
    path = f"/users/{user.name}%40example.test/sendMail"
    fault = Fault("POST", path.lower(), 429, {"Retry-After": "1"})
    served.proxy.faults += [fault, fault]
    await client.users.by_user_id(user.address).send_mail.post(
        sdk.mail(subject="retried", to=user.sink)
    )
    assert content_of(user)["subject"] == "retried"
    tries = [one for one in served.proxy.requests if one.path.endswith(path)]
    assert [one.status for one in tries] == [429, 429, 202]
    assert [one.headers.get("Retry-Attempt") for one in tries] == [None, "1", "2"]


async def test_21_504_after_commit(served: ServedRelay, user: User) -> None:
    """The SDK sends the message again, and the relay knows it by Retry-Attempt."""
    client = sdk.client(served.proxy.url, user.name)
    path = f"/users/{user.name}%40example.test/sendMail"
    served.proxy.faults.append(Fault("POST", path.lower(), 504, after_commit=True))
    await client.users.by_user_id(user.address).send_mail.post(
        sdk.mail(subject="once", to=user.sink, save=True)
    )
    tries = [one for one in served.proxy.requests if one.path.endswith(path)]
    assert [one.status for one in tries] == [504, 202]
    assert [one["subject"] for one in user.sent()] == ["once"]
    user.arrived()


async def test_23_paging(served: ServedRelay, user: User) -> None:
    client = sdk.client(served.url, user.name)
    for number in range(25):
        await client.me.messages.post(sdk.message(subject=f"page {number:02}"))
    every = client.me.messages
    first = await every.get(
        sdk.options(every, top=10, select=["id", "subject"], orderby=["subject"], count=True)
    )
    assert (len(first.value), first.odata_count) == (10, 25)
    found = await sdk.iterate(first, client)
    assert [one.subject for one in found] == [f"page {number:02}" for number in range(25)]
    assert len({one.id for one in found}) == 25
    unread = await every.get(sdk.options(every, filter="isRead eq false", count=True))
    assert unread.odata_count == 0


async def test_25_deferred_send(served: ServedRelay, user: User) -> None:
    client = sdk.client(served.url, user.name)
    later = sdk.seconds_from_now(4)
    body = sdk.mail(subject="later", to=user.sink, send_at=later)
    await client.me.send_mail.post(body)
    (draft,) = user.messages("drafts")
    assert user.arrivals() == 0
    cancelled = sdk.mail(subject="never", to=f"never-{user.sink}", send_at=later)
    await client.me.send_mail.post(cancelled)
    (never,) = [one for one in user.messages("drafts") if one["id"] != draft["id"]]
    await client.me.messages.by_message_id(never["id"]).delete()
    assert content_of(user)["subject"] == "later"
    assert user.arrivals(f"never-{user.sink}") == 0


async def test_30_every_property_is_parsed(served: ServedRelay, user: User) -> None:
    client = sdk.client(served.url, user.name)
    draft = await client.me.messages.post(sdk.message(subject="parsed", to=user.sink))
    again = await client.me.messages.by_message_id(draft.id).get()
    (listed,) = (await client.me.messages.get()).value
    for one in (draft, again, listed):
        assert one.body.content_type in tuple(BodyType)
        assert one.importance is Importance.Normal
        assert one.flag.flag_status is FollowupFlagStatus.NotFlagged
        assert one.inference_classification is InferenceClassificationType.Focused
        for date in (
            one.created_date_time,
            one.last_modified_date_time,
            one.received_date_time,
            one.sent_date_time,
        ):
            assert date is None or date.tzinfo is not None
        assert one.created_date_time is not None
