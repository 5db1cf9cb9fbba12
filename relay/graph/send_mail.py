"""sendMail, and send of a draft: the answers that promise a message will go out.

On the path: steps 1 and 2: the store has draft and note on disk before anything is answered.
Holds: 202 comes after the store's promise, with an empty body, as Graph's clients expect; no
    message is sent whose client was refused.
Fails: ApiError before anything is written; the store's refusals.
Standards: Graph's user: sendMail, message: send; RFC 5322 3.6.4.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from starlette.background import BackgroundTask
from starlette.responses import Response

from relay.crashpoints import CrashPoint
from relay.graph.graph_request import Visit
from relay.graph.json_values import json_object
from relay.graph.message_parser import parse_send_mail
from relay.graph.mime_body import MimeMessage, Ways, checked, head_of, submitted, take_mime
from relay.graph.query_options import preferences
from relay.graph.recipients import author_on_behalf, check_has_recipients, check_own
from relay.http.errors import ApiError, shown
from relay.mailbox.folders import ROOT_ID
from relay.mailbox.types import (
    Folder,
    NoSuchItemError,
    NotADraftError,
    PendingSubmission,
    SendOptions,
    WellKnown,
)
from relay.message.envelope import Client
from relay.message.extended import SENT_MAIL_ENTRY_ID, send_wishes
from relay.message.properties import ExtendedProperty, MessageProperties

_OURS = "relay."
_SAVE = "relay.save-to-sent-items"
_FOLDER = "relay.sent-folder"
_WORDS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Preferred:
    """What the Prefer header asks for; None and "" where it does not. `applied` repeats it."""

    save: bool | None
    folder: str
    applied: str


async def send_options(
    visit: Visit, extended: Sequence[ExtendedProperty], *, save: bool = True
) -> tuple[SendOptions, dict[str, str]]:
    """Return the options and the answer's header fields; `save` is saveToSentItems.

    Raises ApiError 400.
    """
    lines = visit.call.headers.getlist("prefer")
    preferred = read_preferred(preferences(lines)) if lines else Preferred(None, "", "")
    wishes = send_wishes(extended, now_us=visit.door.clock.time_us()) if extended else None
    folder = ""
    if preferred.folder:
        folder = await _sent_folder(visit, (preferred.folder,), where=f"Prefer: {_FOLDER}")
    elif wishes and wishes.sent_folders:
        folder = await _sent_folder(visit, wishes.sent_folders, where=SENT_MAIL_ENTRY_ID)
    if preferred.folder or preferred.save:
        save = True
    elif preferred.save is False or (wishes and wishes.delete_after_submit):
        save = False
    options = SendOptions(
        save_to_sent_items=save,
        sent_folder=folder if save else "",
        deferred_us=wishes.deferred_us if wishes else 0,
        client=Client(visit.call.client_address, account=visit.account.address),
    )
    return options, {"preference-applied": preferred.applied} if preferred.applied else {}


def read_preferred(given: Mapping[str, str]) -> Preferred:
    """Read this relay's own preferences; a name that is none of them is a mistake worth telling.

    Raises ApiError 400.
    """
    for name in given:
        if name.startswith(_OURS) and name not in (_SAVE, _FOLDER):
            raise _bad(f"{shown(name)} is no preference of this relay: {_SAVE} and {_FOLDER} are.")
    said, folder = given.get(_SAVE), given.get(_FOLDER)
    save = None if said is None else _WORDS.get(said.lower())
    if said is not None and save is None:
        raise _bad(f"{_SAVE}: found {shown(said)}, expected true or false.")
    if folder == "":
        raise _bad(f"{_FOLDER}: expected a folder's id or well-known name.")
    if folder and save is False:
        raise _bad(f"{_FOLDER} asks for what {_SAVE}=false forbids.")
    told = [] if save is None else [f"{_SAVE}={str(save).lower()}"]
    if folder:
        told.append(f'{_FOLDER}="{folder}"' if not folder.isalnum() else f"{_FOLDER}={folder}")
    return Preferred(save, folder or "", ", ".join(told))


async def _sent_folder(visit: Visit, spellings: Sequence[str], *, where: str) -> str:
    """Return the id of the folder, as Sent Items' "" for itself."""
    folder: Folder | None = None
    for one in spellings:
        with suppress(NoSuchItemError):
            folder = await visit.door.store.get_folder(visit.mailbox, one)
            break
    if folder is None:
        raise _bad_folder(where, f"there is no folder {shown(spellings[0])} in this mailbox.")
    if not folder.may_keep_sent or folder.id == ROOT_ID:
        raise _bad_folder(where, f"{folder.display_name} cannot hold what has been sent.")
    return "" if folder.well_known is WellKnown.SENT_ITEMS else folder.id


def _bad(message: str) -> ApiError:
    return ApiError(400, "ErrorInvalidRequest", f"Prefer: {message}")


def _bad_folder(where: str, message: str) -> ApiError:
    return ApiError(400, "ErrorInvalidRequest", f"{where}: {message}")


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
