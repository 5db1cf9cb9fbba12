"""sendMail, and send of a draft: steps 1 and 2.

The response is 202 with an empty body. It is sent when the draft and its pending submission are on
disk. An error response means that nothing was submitted.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from msgspec import Struct
from msgspec.structs import replace
from starlette.background import BackgroundTask
from starlette.responses import Response

from relay.base.crashpoints import CrashPoint
from relay.base.message.envelope import Client
from relay.base.message.extended_properties import SENT_MAIL_ENTRY_ID, requested_send_options
from relay.base.message.properties import ExtendedProperty, MessageProperties
from relay.formats.draft import DraftAttachment
from relay.front_door.graph import strict_profile
from relay.front_door.graph.graph_request import GraphRequest, await_submission
from relay.front_door.graph.message_parser import parse_send_mail
from relay.front_door.graph.messages import find_message
from relay.front_door.graph.mime_body import (
    MimeConsumer,
    MimeMessage,
    check_mime_content,
    header_block,
    receive_mime,
)
from relay.front_door.graph.recipients import (
    author_on_behalf,
    check_has_recipients,
    check_originators,
)
from relay.front_door.http.errors import ApiError, quoted
from relay.store.mailbox.folders import ROOT_ID
from relay.store.mailbox.types import (
    Folder,
    NoSuchItemError,
    NotADraftError,
    PendingSubmission,
    SendOptions,
    WellKnown,
)
from relay.submission.outbox.on_disk import draft_of

_OURS = "relay."
_SAVE = "relay.save-to-sent-items"
_FOLDER = "relay.sent-folder"
_BOOLEANS = {"true": True, "false": False}


async def send_mail(request: GraphRequest) -> Response:
    """POST sendMail: create a draft and submit it."""
    if request.is_mime():
        return await send_mime(request)
    # no variable for the body or its JSON, so that a large one is freed as soon as it is parsed
    given = parse_send_mail(await request.json_object(), request.account)
    return await submit(request, given.message.properties, save=given.save_to_sent_items)


async def submit(
    request: GraphRequest,
    properties: MessageProperties,
    *,
    save: bool = True,
    kept: Sequence[DraftAttachment] = (),
) -> Response:
    """Create a draft and submit it; `save` as in send_options(), `kept` as in submit_new()."""
    needed, message_id = request.dependencies, properties.internet_message_id
    message_id = message_id or f"<{needed.ids.new()}@{needed.hostname}>"
    properties = replace(properties, internet_message_id=message_id)
    check_originators(properties, request.account, prefix="message.")
    check_has_recipients(properties)
    options = await send_options(request, properties.extended, save=save)
    submission = await await_submission(
        request.store.submissions.submit_new(request.mailbox, properties, options, kept=kept)
    )
    return _accepted(request, submission, internet_message_id=message_id)


async def send_mime(
    request: GraphRequest, amend: Callable[[MimeMessage], bytes] | None = None
) -> Response:
    """Create a draft from MIME and submit it; `amend` may add fields to its header."""
    options = await send_options(request, ())
    mailbox = request.mailbox

    def options_for(message: MimeMessage) -> SendOptions:
        return dataclasses.replace(options, on_behalf_of=message.on_behalf_of)

    consumer = MimeConsumer(
        lambda message: await_submission(
            request.store.submissions.submit_new(mailbox, message.content, options_for(message))
        ),
        lambda message, size: request.store.arrivals.submission(
            mailbox, options_for(message), expected_bytes=size
        ),
    )
    received = await receive_mime(request, consumer, to_send=True, amend=amend)
    message_id = received.message.internet_message_id
    return _accepted(request, received.result, internet_message_id=message_id)


async def send_draft(request: GraphRequest) -> Response:
    """POST {message}/send: submit a draft. A body is ignored."""
    await request.http.body()  # it counts when the request is repeated
    draft = await find_message(request)
    if not draft.is_draft:
        raise NotADraftError("The message is not a draft and cannot be sent.")
    on_behalf_of = author_on_behalf(draft.properties, request.account)
    if draft.is_mime:  # an IMAP client may have written it
        content = await request.store.messages.mime(request.mailbox, draft.id)
        mime = await check_mime_content(
            await asyncio.to_thread(header_block, content), request.account
        )
        on_behalf_of = mime.on_behalf_of
    check_has_recipients(draft.properties)
    check_originators(draft.properties, request.account)
    options = await send_options(request, draft.properties.extended)
    options = dataclasses.replace(options, on_behalf_of=on_behalf_of)
    submission = await await_submission(
        request.store.submissions.submit_draft(
            request.mailbox, draft.id, options, condition=request.condition
        )
    )
    return _accepted(request, submission, internet_message_id=draft.properties.internet_message_id)


def _accepted(
    request: GraphRequest, submission: PendingSubmission, *, internet_message_id: str
) -> Response:
    """Return the 202 for a submission."""
    internet_message_id = submission.internet_message_id or internet_message_id
    return accepted_response(
        request, submission.submission_id, internet_message_id=internet_message_id
    )


def accepted_response(
    request: GraphRequest, submission_id: str, *, internet_message_id: str
) -> Response:
    """Return the 202 for a submission that is durable, or was before."""

    async def answered() -> None:
        request.dependencies.crash.reached(CrashPoint.REQUEST_ANSWERED)

    headers = {
        "x-relay-message-id": draft_of(submission_id),
        "x-relay-submission-id": submission_id,
    }
    # MIME may have none: the conversion adds one
    if internet_message_id and internet_message_id.isascii() and internet_message_id.isprintable():
        headers["x-relay-internet-message-id"] = internet_message_id
    return Response(status_code=202, headers=headers, background=BackgroundTask(answered))


class SendPreferences(Struct, frozen=True):
    """Relay's preferences in the Prefer header (RFC 7240); `applied` is for Preference-Applied."""

    save: bool | None = None
    folder: str = ""
    applied: tuple[str, ...] = ()


async def send_options(
    request: GraphRequest, extended: Sequence[ExtendedProperty], *, save: bool = True
) -> SendOptions:
    """Return the options of a submission.

    `save` is saveToSentItems. The Prefer header overrides it, and the extended properties of the
    message (MS-OXOMSG 2.2.3: PidTagDeleteAfterSubmit, PidTagSentMailEntryId). Raises ApiError 400.
    """
    given = request.preferences
    preferred = read_send_preferences(given) if given else SendPreferences()
    wishes = (
        requested_send_options(extended, now_us=request.dependencies.clock.time_us())
        if extended
        else None
    )
    folder = ""
    if preferred.folder:
        folder = await _sent_folder(request, (preferred.folder,), where=f"Prefer: {_FOLDER}")
    elif wishes and wishes.sent_folders:
        folder = await _sent_folder(request, wishes.sent_folders, where=SENT_MAIL_ENTRY_ID)
    if preferred.folder or preferred.save:
        save = True
    elif preferred.save is False or (wishes and wishes.delete_after_submit):
        save = False
    request.applied.extend(preferred.applied)
    return SendOptions(
        save_to_sent_items=save,
        sent_folder=folder if save else "",
        scheduled_us=wishes.scheduled_us if wishes else 0,
        client=Client(request.http.client_address, account=request.caller.address),
        key=request.key,
    )


def read_send_preferences(given: Mapping[str, str]) -> SendPreferences:
    """Read the preferences that begin with "relay.". Raises ApiError 400 for an unknown one."""
    for name in given:
        if name.startswith(_OURS) and name not in (_SAVE, _FOLDER, strict_profile.PREFERENCE):
            raise _bad(
                f"{quoted(name)} is not a preference of this relay; they are {_SAVE} and {_FOLDER}."
            )
    save_text, folder = given.get(_SAVE), given.get(_FOLDER)
    save = None if save_text is None else _BOOLEANS.get(save_text.lower())
    if save_text is not None and save is None:
        raise _bad(f"{_SAVE}: found {quoted(save_text)}, expected true or false.")
    if folder == "":
        raise _bad(f"{_FOLDER}: expected a folder's id or well-known name.")
    if folder and save is False:
        raise _bad(f"{_FOLDER} contradicts {_SAVE}=false.")
    applied = [] if save is None else [f"{_SAVE}={str(save).lower()}"]
    if folder:
        applied.append(f'{_FOLDER}="{folder}"' if not folder.isalnum() else f"{_FOLDER}={folder}")
    return SendPreferences(save, folder or "", tuple(applied))


async def _sent_folder(request: GraphRequest, identifiers: Sequence[str], *, where: str) -> str:
    """Return the id of the first folder found, "" for Sent Items. Raises ApiError 400."""
    folder: Folder | None = None
    for one in identifiers:
        with suppress(NoSuchItemError):
            folder = await request.store.folders.get(request.mailbox, one)
            break
    if folder is None:
        raise _bad_folder(where, f"there is no folder {quoted(identifiers[0])} in this mailbox.")
    if not folder.may_keep_sent or folder.id == ROOT_ID:
        raise _bad_folder(where, f"{folder.display_name} cannot keep sent messages.")
    return "" if folder.well_known is WellKnown.SENT_ITEMS else folder.id


def _bad(message: str) -> ApiError:
    return ApiError(400, "ErrorInvalidRequest", f"Prefer: {message}")


def _bad_folder(where: str, message: str) -> ApiError:
    return ApiError(400, "ErrorInvalidRequest", f"{where}: {message}")
