"""sendMail, and send of a draft: the answers that promise a message will go out.

On the path: steps 1 and 2: the store has draft and note on disk before anything is answered.
Holds: 202 comes after the store's promise, with an empty body, as Graph's clients expect; no
    message is sent whose client was refused.
Fails: ApiError before anything is written; the store's refusals.
Standards: Graph's user: sendMail, message: send; RFC 5322 3.6.4.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from starlette.background import BackgroundTask
from starlette.responses import Response

from relay.crashpoints import CrashPoint
from relay.graph.mime import MimeMessage, checked, head_of
from relay.graph.mimestream import Ways, submitted, take_mime
from relay.graph.parse import parse_send_mail
from relay.graph.people import author_on_behalf, check_has_recipients, check_own
from relay.graph.sendoptions import send_options
from relay.graph.values import json_object
from relay.graph.visit import Visit
from relay.mailbox.types import NotADraftError, PendingSubmission, SendOptions
from relay.message.properties import MessageProperties


async def send_mail(visit: Visit) -> Response:
    """POST sendMail: a draft and its note in one go."""
    visit.options()
    if visit.is_mime():
        return await _send_mime(visit)
    # no name for the body nor for its JSON: a large one is let go of as soon as it is read
    asked = parse_send_mail(json_object(await visit.call.body()), visit.account)
    fields = dict(asked.message.fields)
    if not fields.get("internet_message_id"):  # made here, so that the 202 can tell it
        fields["internet_message_id"] = f"<{visit.door.ids.new()}@{visit.door.hostname}>"
    properties = MessageProperties(**fields)
    check_has_recipients(properties)
    options, applied = await send_options(visit, properties.extended, save=asked.save_to_sent_items)
    note = await submitted(visit.door.store.submit_new(visit.mailbox, properties, options))
    return _accepted(
        visit, note, internet_message_id=properties.internet_message_id, headers=applied
    )


async def _send_mime(visit: Visit) -> Response:
    options, applied = await send_options(visit, ())
    store, mailbox = visit.door.store, visit.mailbox

    def told_by(message: MimeMessage) -> SendOptions:
        return replace(options, on_behalf_of=message.on_behalf_of)

    ways = Ways(
        lambda message: submitted(store.submit_new(mailbox, message.content, told_by(message))),
        lambda message, size: store.arrivals.submission(
            mailbox, told_by(message), expected_bytes=size
        ),
    )
    taken = await take_mime(visit, ways, to_send=True)
    told = taken.message.internet_message_id
    return _accepted(visit, taken.result, internet_message_id=told, headers=applied)


async def send_draft(visit: Visit) -> Response:
    """POST {message}/send: a note for a draft that is there. A body has nothing to say."""
    visit.options()
    store = visit.door.store
    draft = await store.get(visit.mailbox, visit.message_id, folder_id=visit.folder_id)
    if not draft.is_draft:
        raise NotADraftError("The message is not a draft and cannot be sent.")
    on_behalf_of = author_on_behalf(draft.properties, visit.account)
    if draft.is_mime:  # a mail client may have put anything there
        content = await store.mime(visit.mailbox, draft.id)
        told = await checked(await asyncio.to_thread(head_of, content), visit.account)
        on_behalf_of = told.on_behalf_of
    check_has_recipients(draft.properties)
    check_own(draft.properties.from_, visit.account, path="from")
    check_own(draft.properties.sender, visit.account, path="sender")
    options, applied = await send_options(visit, draft.properties.extended)
    options = replace(options, on_behalf_of=on_behalf_of)
    note = await submitted(
        store.submit_draft(visit.mailbox, draft.id, options, condition=visit.condition)
    )
    return _accepted(
        visit, note, internet_message_id=draft.properties.internet_message_id, headers=applied
    )


def _accepted(
    visit: Visit, note: PendingSubmission, *, internet_message_id: str, headers: Mapping[str, str]
) -> Response:
    async def answered() -> None:
        visit.door.crash.reached(CrashPoint.REQUEST_ANSWERED)

    headers = {
        "x-relay-message-id": note.draft_id,
        "x-relay-submission-id": note.submission_id,
        **headers,
    }
    told = internet_message_id  # MIME may have none: it gets one when it is converted
    if told and told.isascii() and told.isprintable():
        headers["x-relay-internet-message-id"] = internet_message_id
    return Response(status_code=202, headers=headers, background=BackgroundTask(answered))
