"""Send messages: sendMail, send of a draft, and reply and forward: steps 1 and 2.

A request is parsed into a SendRequest, and submit() decides whether its account may send it. The
response is 202 with an empty body, when the draft and its pending submission are on disk. An error
response means that nothing was submitted. RFC 5322 3.6.2, 3.6.6.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from msgspec import Struct
from msgspec.structs import replace
from starlette.background import BackgroundTask
from starlette.responses import Response

from relay.base.accounts.account import Account
from relay.base.crashpoints import CrashPoint
from relay.base.message.address import own_mailbox
from relay.base.message.envelope import Client
from relay.base.message.extended_properties import SENT_MAIL_ENTRY_ID, requested_send_options
from relay.base.message.properties import MessageProperties
from relay.base.sliding_window import Reservation
from relay.formats.draft import DraftAttachment
from relay.front_door.graph import errors, strict_profile
from relay.front_door.graph.action_parameters import parse_send_mail
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.json_values import check_recipients_count
from relay.front_door.graph.mime_body import (
    Amend,
    MimeMessage,
    check_mime_content,
    header_block,
    receive_mime,
)
from relay.front_door.http.errors import UnansweredError, quoted
from relay.store.mailbox.errors import NoSuchItemError, NotADraftError, OutcomeUnknownError
from relay.store.mailbox.folders import ROOT_ID
from relay.store.mailbox.pending_submission import PendingSubmission, SendOptions
from relay.store.mailbox.stored_message import Folder, StoredMessage, WellKnown
from relay.submission.outbox.on_disk import draft_of

_SAVE = "relay.save-to-sent-items"
_FOLDER = "relay.sent-folder"
_invalid = errors.INVALID_REQUEST
_BOOLEANS = {"true": True, "false": False}


class SendRequest(Struct, frozen=True):
    """A message to send, in any form that a request can have: content, originators and
    recipients.
    """

    # a new message from JSON or from MIME, whole or still arriving; or a draft
    content: MessageProperties | bytes | MimeMessage | StoredMessage
    properties: MessageProperties  # To, Cc, Bcc, Message-ID and extended ones
    # place in the request, and address, of From and Sender and their Resent- fields
    originators: tuple[tuple[str, str], ...]
    authors: tuple[str, ...]  # the addresses in From, if there is no Sender
    save: bool = True  # saveToSentItems
    kept: Sequence[DraftAttachment] = ()  # attachments of another message


async def send_mail(request: GraphRequest) -> Response:
    """POST sendMail: create a draft and submit it."""
    if request.is_mime():
        return await send_mime(request)
    # no variable for the body or its JSON, so that a large one is freed as soon as it is parsed
    message, save = parse_send_mail(await request.json_object(or_mime=True), request.account)
    return await submit(request, new_message(request, message, save=save))


async def send_mime(request: GraphRequest, amend: Amend | None = None) -> Response:
    """Create a draft from MIME and submit it; `amend` may add fields to its header."""
    async with receive_mime(request, to_send=True, amend=amend) as mime:
        content = mime.content if mime.rest is None else mime
        return await submit(request, _of_mime(content, mime, mime.header.properties))


async def send_draft(request: GraphRequest) -> Response:
    """POST {message}/send: submit a draft. A body is ignored."""
    await request.http.body()  # a repeat of the request must have the same body
    if request.before_submission is not None:
        await request.before_submission()
    async with request.draft_lock:
        return await _send_draft(request, await request.find_message())


async def _send_draft(request: GraphRequest, draft: StoredMessage) -> Response:
    if not draft.is_draft:
        raise NotADraftError("The message is not a draft and cannot be sent.")
    if not draft.is_mime:
        return await submit(request, _of_properties(draft, draft.properties))
    content = await request.store.messages.mime(request.mailbox, draft.id)
    # an IMAP client may have written it
    mime = await check_mime_content(await asyncio.to_thread(header_block, content))
    properties = replace(
        mime.header.properties,
        extended=draft.properties.extended,
        internet_message_id=draft.properties.internet_message_id,
    )
    return await submit(request, _of_mime(draft, mime, properties))


def new_message(
    request: GraphRequest,
    properties: MessageProperties,
    *,
    save: bool = True,
    kept: Sequence[DraftAttachment] = (),
) -> SendRequest:
    """Return the request to send a message with these properties."""
    needed, message_id = request.dependencies, properties.internet_message_id
    message_id = message_id or f"<{needed.ids.new()}@{needed.hostname}>"
    properties = replace(request.named(properties), internet_message_id=message_id)
    outgoing = _of_properties(properties, properties, prefix="message.")
    return replace(outgoing, save=save, kept=kept)


def _of_properties(
    content: MessageProperties | StoredMessage, properties: MessageProperties, *, prefix: str = ""
) -> SendRequest:
    author = properties.from_ if properties.sender is None else None
    authors = () if author is None else (author.address,)
    return SendRequest(content, properties, originators_of(properties, prefix=prefix), authors)


def _of_mime(
    content: bytes | MimeMessage | StoredMessage, mime: MimeMessage, properties: MessageProperties
) -> SendRequest:
    originators = tuple(
        [
            (field.name, author.address)
            for field in mime.header.originators
            for author in field.addresses
        ]
    )
    has_sender = any(name == "Sender" for name, _ in originators)
    authors = [address for name, address in originators if name == "From" and not has_sender]
    return SendRequest(content, properties, originators, tuple(authors))


def originators_of(
    properties: MessageProperties, *, prefix: str = ""
) -> tuple[tuple[str, str], ...]:
    """Return From and Sender as SendRequest has them; `prefix` is the path of the message."""
    fields = (("from", properties.from_), ("sender", properties.sender))
    return tuple([(prefix + name, author.address) for name, author in fields if author is not None])


async def submit(request: GraphRequest, outgoing: SendRequest) -> Response:
    """Submit a message and return the 202 when it is durable: every request that sends ends here.

    Raises ApiError and StoreError; then nothing was submitted.
    """
    properties = outgoing.properties
    check_rights(outgoing.originators, request.account)
    if not (properties.to or properties.cc or properties.bcc):
        raise errors.NO_RECIPIENTS("toRecipients, ccRecipients and bccRecipients are empty.")
    check_recipients_count(properties)
    options = await _send_options(request, outgoing)
    submission = await _submitted(request, outgoing, options)
    return accepted_response(
        request,
        submission.submission_id,
        internet_message_id=submission.internet_message_id or properties.internet_message_id,
    )


def check_rights(originators: Sequence[tuple[str, str]], account: Account) -> None:
    """Raise ErrorSendAsDenied unless the account may send mail from all `originators`: its own
    addresses and those in its `send_as`. RFC 5322 3.6.2.
    """
    for path, address in originators:
        if not account.may_send_as(address):
            reason = f"it is neither an address of {account.address} nor in the account's send_as"
            raise errors.SEND_AS_DENIED(f"{path}: found {quoted(address)}: {reason}.")


async def _submitted(
    request: GraphRequest, outgoing: SendRequest, options: SendOptions
) -> PendingSubmission:
    """Submit the message to the store: steps 1 and 2."""
    store, mailbox, content = request.store, request.mailbox, outgoing.content
    if isinstance(content, MimeMessage):
        size = content.expected_bytes
        begun = await store.arrivals.submission(mailbox, options, expected_bytes=size)
        async with begun as arrival:
            await content.write_to(arrival)
            if request.before_submission is not None:
                await request.before_submission()
            return await _within_limits(request, outgoing, arrival.finish)
    submissions = store.submissions
    return await _within_limits(
        request,
        outgoing,
        partial(submissions.submit_draft, mailbox, content.id, options, condition=request.condition)
        if isinstance(content, StoredMessage)
        else partial(submissions.submit_new, mailbox, content, options, kept=outgoing.kept),
    )


async def _within_limits(
    request: GraphRequest, outgoing: SendRequest, submit: Callable[[], Awaitable[PendingSubmission]]
) -> PendingSubmission:
    """Submit a message if it is within the limits of the caller.

    Raises ApiError 429, 400; UnansweredError if this is cancelled.
    """
    usage, content = request.dependencies.usage, outgoing.content
    named = named_in(outgoing.properties)
    draft = content.id if isinstance(content, StoredMessage) else ""
    with reserve(request, named, draft=draft) as counted:
        try:
            submission = await submit()
        except asyncio.CancelledError:  # the submission continues: any response could be wrong
            counted.keep()
            message = "The server stopped during a submission. Whether it will be sent is unknown."
            raise UnansweredError(message) from None
        except OutcomeUnknownError:
            counted.keep()
            raise
        if not submission.was_scheduled:
            counted.keep()
        if submission.options.scheduled_us:
            usage.scheduled(draft_of(submission.submission_id), named)
        return submission


def named_in(properties: MessageProperties) -> set[str]:
    """Return the addresses of all recipients as in the envelope, without duplicates."""
    people = (*properties.to, *properties.cc, *properties.bcc)
    return {own_mailbox(person.address) for person in people}


def reserve(request: GraphRequest, recipients: Iterable[str], *, draft: str = "") -> Reservation:
    """Count a message of the caller. Raises ApiError 429 at a limit, 400 if it exceeds the limit
    alone.
    """
    usage = request.dependencies.usage
    counted = usage.reserve(request.caller.address, recipients, draft=draft)
    if isinstance(counted, Reservation):
        return counted
    if counted.is_for_good:
        raise errors.INVALID_RECIPIENTS(f"{counted.text}.")
    raise errors.throttled(f"{counted.text}.", counted.retry_after_s)


def accepted_response(
    request: GraphRequest, submission_id: str, *, internet_message_id: str
) -> Response:
    """Return the 202 for a submission that is durable."""

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


async def _send_options(request: GraphRequest, sent: SendRequest) -> SendOptions:
    """Return the options of a submission.

    The Prefer header overrides saveToSentItems and the extended properties of the message
    (MS-OXOMSG 2.2.3: PidTagDeleteAfterSubmit, PidTagSentMailEntryId). Raises ApiError 400.
    """
    preferences, extended, save = request.preferences, sent.properties.extended, sent.save
    preferred = read_send_preferences(preferences) if preferences else SendPreferences()
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
        on_behalf_of=next(
            (author for author in sent.authors if not request.account.owns(author)), ""
        ),
        client=Client(request.http.client_address, account=request.caller.address),
        key=request.key,
    )


def read_send_preferences(preferences: Mapping[str, str]) -> SendPreferences:
    """Read the preferences that begin with "relay.". Raises ApiError 400 for an unknown one."""
    for name in preferences:
        if name.startswith("relay.") and name not in (_SAVE, _FOLDER, strict_profile.PREFERENCE):
            known = f"they are {_SAVE} and {_FOLDER}"
            raise _invalid(f"Prefer: {quoted(name)} is none of Relay's; {known}.")
    save_text, folder = preferences.get(_SAVE), preferences.get(_FOLDER)
    save = None if save_text is None else _BOOLEANS.get(save_text.lower())
    if save_text is not None and save is None:
        detail = f"found {quoted(save_text)}, expected true or false"
        raise _invalid(f"Prefer: {_SAVE}: {detail}.")
    if folder == "":
        raise _invalid(f"Prefer: {_FOLDER}: expected a folder's id or well-known name.")
    if folder and save is False:
        raise _invalid(f"Prefer: {_FOLDER} contradicts {_SAVE}=false.")
    applied = [] if save is None else [f"{_SAVE}={str(save).lower()}"]
    if folder:
        applied.append(f'{_FOLDER}="{folder}"' if not folder.isalnum() else f"{_FOLDER}={folder}")
    return SendPreferences(save, folder or "", tuple(applied))


async def _sent_folder(request: GraphRequest, identifiers: Sequence[str], *, where: str) -> str:
    """Return the id of the first folder found, "" for Sent Items. Raises ApiError 400."""
    folder: Folder | None = None
    for identifier in identifiers:
        with suppress(NoSuchItemError):
            folder = await request.store.folders.get(request.mailbox, identifier)
            break
    if folder is None:
        missing = f"there is no folder {quoted(identifiers[0])} in this mailbox"
        raise _invalid(f"{where}: {missing}.")
    if not folder.may_keep_sent or folder.id == ROOT_ID:
        raise _invalid(f"{where}: {folder.display_name} cannot keep sent messages.")
    return "" if folder.well_known is WellKnown.SENT_ITEMS else folder.id
