"""Sent folder and time of sending: Prefer header, parameter and extended properties."""

from datetime import UTC, datetime

import pytest

from relay.base.message.extended_properties import (
    DEFERRED_SEND_TIME,
    DELETE_AFTER_SUBMIT,
    SENT_MAIL_ENTRY_ID,
)
from relay.base.message.properties import EmailAddress, ExtendedProperty, MessageProperties
from relay.store.mailbox.pending_submission import SendOptions
from tests.support.graph_fakes import WatchedGraph, refused, to
from tests.support.tables import each_row

MESSAGE = {"toRecipients": to("c@a.test")}
MIME = b"VG86IGNAYS50ZXN0DQpTdWJqZWN0OiB4DQoNCmhpDQo="  # To: c@a.test
SAVE, FORGET, ARCHIVE = (
    SendOptions(),
    SendOptions(save_to_sent_items=False),
    SendOptions(sent_folder="archive"),
)


async def post(graph: WatchedGraph, how: str, prefer: list[str], **parameters):
    headers = [("prefer", line) for line in prefer]
    if how == "mime":
        headers.append(("content-type", "text/plain"))
        return await graph.http.post("/v1.0/me/sendMail", content=MIME, headers=headers)
    if how == "json":
        body = {"message": MESSAGE, **parameters}
        return await graph.http.post("/v1.0/me/sendMail", json=body, headers=headers)
    draft = await graph.http.post("/v1.0/me/messages", json=MESSAGE)
    return await graph.http.post(f"/v1.0/me/messages/{draft.json()['id']}/send", headers=headers)


@pytest.mark.parametrize("how", ["json", "mime", "draft"])
@each_row(
    "prefer, options, applied",
    [
        ([], SAVE, None),
        (["relay.save-to-sent-items=false"], FORGET, "relay.save-to-sent-items=false"),
        (["Relay.Save-To-Sent-Items=False"], FORGET, "relay.save-to-sent-items=false"),
        (["relay.save-to-sent-items=true"], SAVE, "relay.save-to-sent-items=true"),
        (["relay.sent-folder=archive"], ARCHIVE, "relay.sent-folder=archive"),
        (['relay.sent-folder="Archive"'], ARCHIVE, "relay.sent-folder=Archive"),
        (["relay.sent-folder=sentitems"], SAVE, "relay.sent-folder=sentitems"),
        (
            ['IdType="ImmutableId", relay.sent-folder=archive; x=1', "return=minimal"],
            ARCHIVE,
            'relay.sent-folder=archive, IdType="ImmutableId"',
        ),
        (
            ["return=minimal", "relay.save-to-sent-items=true, relay.sent-folder=archive"],
            ARCHIVE,
            "relay.save-to-sent-items=true, relay.sent-folder=archive",
        ),
    ],
)
async def test_a_preference_is_honoured_and_said_to_be(graph, how, prefer, options, applied):
    answer = await post(graph, how, prefer)
    assert answer.status_code == 202, answer.text
    assert graph.store.submitted[-1][0].options == options
    assert answer.headers.get("preference-applied") == applied


@pytest.mark.parametrize("how", ["json", "mime", "draft"])
@each_row(
    "prefer, told",
    [
        (
            "relay.save-to-sent-items=no",
            "relay.save-to-sent-items: found 'no', expected true or false",
        ),
        ("relay.save-to-sent-items", "found '', expected true or false"),
        ("relay.sent-folder=", "expected a folder's id"),
        ("relay.sent-folder=nowhere", "there is no folder 'nowhere'"),
        ("relay.sent-folder=drafts", "Drafts cannot keep"),
        ("relay.save-to-sent-items=false, relay.sent-folder=archive", "contradicts"),
        ("relay.save-to-sent-item=false", "'relay.save-to-sent-item' is none of Relay's"),
    ],
)
async def test_a_wrong_preference_is_refused_before_anything_is_written(graph, how, prefer, told):
    answer = await post(graph, how, [prefer])
    assert told in refused(answer, 400, "ErrorInvalidRequest")
    assert graph.store.submitted == []


@each_row(
    "prefer, given, options",
    [
        ("relay.save-to-sent-items=true", False, SAVE),
        ("relay.save-to-sent-items=false", True, FORGET),
        ("relay.sent-folder=archive", False, ARCHIVE),
    ],
)
async def test_a_preference_beats_the_parameter(graph, prefer, given, options):
    await post(graph, "json", [prefer], saveToSentItems=given)
    assert graph.store.submitted[-1][0].options == options


DUE_US = 1_800_000_000_000_000
DUE = ExtendedProperty(DEFERRED_SEND_TIME, (datetime.fromtimestamp(DUE_US / 1e6, UTC).isoformat(),))
DELETED = ExtendedProperty(DELETE_AFTER_SUBMIT, ("true",))
NOWHERE = ExtendedProperty(SENT_MAIL_ENTRY_ID, ("nowhere",))


def sent_folder(value: str) -> ExtendedProperty:
    return ExtendedProperty(SENT_MAIL_ENTRY_ID, (value,))


@each_row(
    "properties, prefer, options",
    [
        ([DUE], [], SendOptions(scheduled_us=DUE_US)),
        ([DELETED], [], FORGET),
        ([sent_folder("archive")], [], ARCHIVE),
        ([sent_folder("YXJjaGl2ZQ==")], [], ARCHIVE),
        ([DELETED, sent_folder("archive")], [], FORGET),
        ([DELETED], ["relay.save-to-sent-items=true"], SAVE),
        (
            [sent_folder("archive")],
            ["relay.sent-folder=junkemail"],
            SendOptions(sent_folder="junkemail"),
        ),
        ([NOWHERE], ["relay.sent-folder=archive"], ARCHIVE),
    ],
)
async def test_a_draft_says_itself_how_it_is_sent(graph, properties, prefer, options):
    draft = await graph.store.messages.create(
        "alice@example.test",
        MessageProperties(to=(EmailAddress("c@a.test"),), extended=tuple(properties)),
    )
    headers = [("prefer", line) for line in prefer]
    answer = await graph.http.post(f"/v1.0/me/messages/{draft.id}/send", headers=headers)
    assert answer.status_code == 202, answer.text
    assert graph.store.submitted[-1][0].options == options


async def test_a_property_that_names_no_folder_is_refused(graph):
    properties = MessageProperties(to=(EmailAddress("c@a.test"),), extended=(NOWHERE,))
    draft = await graph.store.messages.create("alice@example.test", properties)
    answer = await graph.http.post(f"/v1.0/me/messages/{draft.id}/send")
    assert "Binary 0x0E0A: there is no folder" in refused(answer, 400, "ErrorInvalidRequest")
