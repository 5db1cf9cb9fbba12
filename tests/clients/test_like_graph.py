"""The usual ways of Graph's clients work with `relay dev --like-graph`, and mistakes are shown."""

import io
import os
from collections.abc import Iterator

import pytest

from relay.testing import Relay
from tests.clients.conftest import JavaScript, User

pytest.importorskip("msgraph", reason="make clients installs msgraph-sdk")

from msgraph.generated.models.message import Message
from msgraph.generated.models.o_data_errors.o_data_error import ODataError
from msgraph_core.tasks.large_file_upload import LargeFileUploadTask

from tests.clients import graph_sdk as sdk

BOB = "bob@example.test"


@pytest.fixture(scope="module")
def strict() -> Iterator[Relay]:
    with Relay(config={"http": {"profile": "strict"}}) as relay:
        yield relay


async def test_msgraph_sdk_sends_a_draft_with_small_and_large_files(strict: Relay) -> None:
    client = sdk.client(strict.http_url, "alice")
    draft = await client.me.messages.post(sdk.message(subject="draft", to=BOB))
    one = client.me.messages.by_message_id(draft.id)
    await one.patch(Message(subject="files"))
    await one.attachments.post(sdk.file("a.txt", b"content"))
    data = os.urandom(3_500_000)
    session = await one.attachments.create_upload_session.post(sdk.upload_of("film", len(data)))
    task = LargeFileUploadTask(
        upload_session=session, request_adapter=client.request_adapter, stream=io.BytesIO(data)
    )
    await task.upload()
    await one.send.post()
    arrived = strict.mailbox(BOB).wait_for(subject="files")
    assert [found.content for found in arrived.attachments] == [b"content", data]


async def test_msgraph_sdk_sends_lists_and_answers_in_a_batch(strict: Relay) -> None:
    client = sdk.client(strict.http_url, "bob")
    names = [f"x-{number}" for number in range(5)]
    body = sdk.mail("batched", to=BOB, headers=names)
    body.message.attachments = [sdk.file("b.txt", b"content")]
    send = client.me.send_mail.to_post_request_information(body)
    gets = [client.me.to_get_request_information()] * 2
    found = (await client.batch.post(sdk.batch(send, *gets))).responses
    assert sorted(one.status for one in found.values()) == [200, 200, 202]
    strict.mailbox(BOB).wait_for(subject="batched")
    every = client.me.messages
    wanted = "receivedDateTime ge 2020-01-01 and subject eq 'batched'"
    order = ["receivedDateTime desc"]
    first = await every.get(sdk.options(every, top=1, filter=wanted, orderby=order))
    assert {one.subject for one in await sdk.iterate(first, client)} == {"batched"}
    await every.get(sdk.options(every, filter="isRead eq false", orderby=order))
    with pytest.raises(ODataError) as caught:
        await every.get(sdk.options(every, filter="importance eq 'high'", orderby=order))
    assert caught.value.error.code == "InefficientFilter"


async def test_msgraph_sdk_shows_what_is_missing_in_an_attachment(strict: Relay) -> None:
    client = sdk.client(strict.http_url, "alice")
    body = sdk.mail("untyped", to=BOB)
    body.message.attachments = [sdk.file("a.txt", b"content")]
    body.message.attachments[0].odata_type = None
    with pytest.raises(ODataError, match="'contentBytes' does not exist on type"):
        await client.me.send_mail.post(body)


def test_javascript_sends_in_a_batch(javascript: JavaScript, user: User) -> None:
    program = """
      const file = { '@odata.type': '#microsoft.graph.fileAttachment', name: 'a', contentBytes: 'eA==' };
      const message = (attachment) => ({ message: {
        subject: 'js', toRecipients: [{ emailAddress: { address: 'TO' } }], attachments: [attachment],
      } });
      const post = (body, id) => ({ id, request: new Request('https://localhost/me/sendMail', {
        method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body),
      }) });
      const { '@odata.type': type, ...untyped } = file;
      const steps = [post(message(file), '1'), post(message(untyped), '2')];
      const content = await new graph.BatchRequestContent(steps).getContent();
      const answer = await client.api('/$batch').header('Prefer', 'relay.strict').post(content);
      return answer.responses.map((one) => [one.id, one.status, one.body?.error.code]);
    """.replace("TO", user.sink)
    answer = javascript.run(program, token=user.name)
    assert answer == [["1", 202, None], ["2", 400, "RequestBodyRead"]]
    assert user.arrived().content.count(b"Subject: js") == 1
