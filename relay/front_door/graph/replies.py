"""reply, replyAll, forward, and the actions that create a draft of one.

The original is read, not changed. Its attachments are copied in blocks: all of them for a forward,
for a reply only the images that the quoted HTML shows. A body in the parameters replaces the quote.
MIME in the body is the whole message; only missing header fields are added. A 202 or 201 is sent
when the new message is on disk. RFC 5322 3.6.3 to 3.6.5.

Subject and References are decided in relay/base/message/conversation.py, the quote in
relay/formats/quoting.py.
"""

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, tzinfo
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from relay.base.accounts.account import Account
from relay.base.message import conversation
from relay.base.message.address import AddressError, own_mailbox, parse_odd_mailbox
from relay.base.message.content import Octets
from relay.base.message.header import Header, ParsedContent
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.formats.draft import AttachmentFacts, DraftAttachment, StoredPart
from relay.formats.edit_attachments import carried_attachments
from relay.formats.html_tokens import content_ids
from relay.formats.quoting import quoted_body
from relay.formats.write_header import header_fields
from relay.front_door.graph import errors
from relay.front_door.graph.action_parameters import AnswerParameters, parse_answer
from relay.front_door.graph.attachments import open_message
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.json_values import check_recipients_count
from relay.front_door.graph.messages import create_draft, create_from_mime
from relay.front_door.graph.mime_body import Amend, MimeMessage
from relay.front_door.graph.send_mail import new_message, send_mime, submit
from relay.store.mailbox.attachments import check_sizes
from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.stored_message import OpenedMessage, StoredMessage

_RECIPIENTS = ("to", "cc")
_THREAD = ("in-reply-to", "references")
_INDEX = ("thread-topic", "thread-index")


class AnswerKind(Struct, frozen=True):
    """The kind of an action: a reply, a reply to all, or a forward."""

    action: str
    prefix: str = "RE"
    to_all: bool = False

    @property
    def is_forward(self) -> bool:
        """Whether the action forwards: to new recipients, with all attachments."""
        return self.prefix == "FW"


class Answer(Struct, frozen=True):
    """A composed reply or forward; `kept` are the attachments of the original."""

    properties: MessageProperties
    kept: tuple[DraftAttachment, ...]


async def _send(request: GraphRequest, kind: AnswerKind) -> Response:
    if request.is_mime():
        return await send_mime(request, await _missing_fields(request, kind))
    parameters = await _parameters(request, kind)
    if kind.is_forward and not parameters.message.fields.get("to"):
        expected = "found neither, expected one of them."
        raise errors.NO_RECIPIENTS(f"toRecipients or message.toRecipients: {expected}")
    async with request.answer_turn():
        answer = await _composed(request, kind, parameters)
        return await submit(request, new_message(request, answer.properties, kept=answer.kept))


async def _create(request: GraphRequest, kind: AnswerKind) -> Response:
    if request.is_mime():
        return await create_from_mime(request, "drafts", await _missing_fields(request, kind))
    parameters = await _parameters(request, kind)
    async with request.answer_turn():
        answer = await _composed(request, kind, parameters)
        return await create_draft(request, answer.properties, parameters.message, kept=answer.kept)


# The handlers of POST reply, POST createReply and so on.
reply = partial(_send, kind=AnswerKind("reply"))
reply_all = partial(_send, kind=AnswerKind("replyAll", to_all=True))
forward = partial(_send, kind=AnswerKind("forward", prefix="FW"))
create_reply = partial(_create, kind=AnswerKind("createReply"))
create_reply_all = partial(_create, kind=AnswerKind("createReplyAll", to_all=True))
create_forward = partial(_create, kind=AnswerKind("createForward", prefix="FW"))


async def compose_answer(
    request: GraphRequest, kind: AnswerKind, body: Mapping[str, Any]
) -> Answer:
    """Compose the answer of an action without storing it. Raises StoreError."""
    async with request.answer_turn():
        return await _composed(request, kind, _read(request, kind, body))


async def _parameters(request: GraphRequest, kind: AnswerKind) -> AnswerParameters:
    """Read the body, which may be empty."""
    return _read(request, kind, await request.json_object(may_be_empty=True, or_mime=True))


def _read(request: GraphRequest, kind: AnswerKind, body: Mapping[str, Any]) -> AnswerParameters:
    answer = parse_answer(body, request.account, action=kind.action, is_forward=kind.is_forward)
    check_recipients_count(answer.message.properties)  # before the original is read
    return answer


async def _composed(
    request: GraphRequest, kind: AnswerKind, parameters: AnswerParameters
) -> Answer:
    opened = await open_message(request)
    time_zone = UTC if parameters.has_body else await request.time_zone()
    try:
        answer = await asyncio.to_thread(
            _compose, request, kind, parameters=parameters, opened=opened, time_zone=time_zone
        )
    except OSError as error:
        message = f"The original message cannot be read: {error.strerror or error}."
        raise StoreUnavailableError(message) from error
    sizes = [
        *(attachment.size for attachment in answer.properties.attachments),
        *(attachment.part.size for attachment in answer.kept),
    ]
    check_sizes(sizes, request.dependencies.max_upload)
    return answer


def _compose(
    request: GraphRequest,
    kind: AnswerKind,
    *,
    parameters: AnswerParameters,
    opened: OpenedMessage,
    time_zone: tzinfo,
) -> Answer:
    """Compose the message. Reading blocks; raises OSError."""
    fields = dict(parameters.message.fields)
    original = opened.message.properties
    if not parameters.has_body:
        fields["body_type"] = original.body_type
        fields["body"] = quoted_body(
            original,
            comment=parameters.comment,
            sent_us=opened.message.sent_us,
            time_zone=time_zone,
        )
    properties = replace(_beginning(request, kind, opened.message), **fields)
    return Answer(properties, _kept(request, kind, answer=properties, stored=opened.stored))


def _beginning(
    request: GraphRequest, kind: AnswerKind, original: StoredMessage
) -> MessageProperties:
    """Return the properties of a reply or forward before the client's are applied, without
    a body.
    """
    properties = original.properties
    message_id = properties.internet_message_id
    beginning = MessageProperties(
        subject=conversation.answer_subject(kind.prefix, properties.subject),
        in_reply_to=next(iter(conversation.message_ids(message_id)), ""),
        references=conversation.answer_references(properties),
        conversation_index=conversation.answer_index(
            properties, message_id or original.id, time_us=request.dependencies.clock.time_us()
        ),
    )
    if kind.is_forward:
        return beginning
    to, cc = _reply_recipients(properties, request.account, to_all=kind.to_all)
    return replace(beginning, to=to, cc=cc)


def _kept(
    request: GraphRequest, kind: AnswerKind, *, answer: MessageProperties, stored: Octets
) -> tuple[DraftAttachment, ...]:
    """Return the attachments of the original that the answer contains, each with a new id."""
    embedded_ids = content_ids(answer.body) if answer.body_type == "html" else frozenset()

    def is_shown(attachment: AttachmentFacts | StoredPart) -> bool:
        return not attachment.item and attachment.content_id.strip("<> ") in embedded_ids

    kept = carried_attachments(stored, lambda attachment: kind.is_forward or is_shown(attachment))
    new_id = request.dependencies.ids.new
    return tuple(
        replace(
            attachment,
            part=replace(
                attachment.part,
                id=new_id(),
                inline=attachment.part.inline or is_shown(attachment.part),
            ),
        )
        for attachment in kept
    )


def _reply_recipients(
    original: MessageProperties, account: Account, *, to_all: bool
) -> tuple[tuple[EmailAddress, ...], tuple[EmailAddress, ...]]:
    """Return To and Cc of a reply to a message in the account's mailbox.

    A reply goes to Reply-To, else to From. If the account itself sent the original, also on behalf
    of another, the reply goes to the original's recipients. A reply to all also goes to the other
    recipients, but not to the account's addresses. Each address occurs once; invalid addresses are
    left out. If only addresses of the account are left, the reply goes to them. RFC 5322 3.6.3.
    """
    authors = [author for author in (original.from_, original.sender) if author and author.address]
    is_own = any(account.owns(author.address) for author in authors)
    targets = original.to if is_own else _each_once(original.reply_to) or tuple(authors[:1])
    to = _each_once((*targets, *(() if is_own or not to_all else original.to)))
    known = {own_mailbox(recipient.address) for recipient in to}
    cc = _each_once(original.cc) if to_all else ()
    cc = tuple(recipient for recipient in cc if own_mailbox(recipient.address) not in known)
    if is_own or to_all:
        others_to, others_cc = (
            tuple(recipient for recipient in people if not account.owns(recipient.address))
            for people in (to, cc)
        )
        if others_to or others_cc:
            return others_to, others_cc
        return _each_once(targets), ()
    return to, cc


def _each_once(people: Iterable[EmailAddress]) -> tuple[EmailAddress, ...]:
    """Return the recipients with a valid address, in canonical form and without duplicates."""
    by_address: dict[str, EmailAddress] = {}
    for recipient in people:
        with suppress(AddressError):
            address = parse_odd_mailbox(recipient.address, smtputf8=True)
            by_address.setdefault(own_mailbox(address), EmailAddress(address, recipient.name))
    return tuple(by_address.values())


# -- MIME


async def _missing_fields(request: GraphRequest, kind: AnswerKind) -> Amend:
    """Return a function that adds to MIME those fields of the answer that the MIME lacks."""
    answer = _beginning(request, kind, await request.find_message())

    def amend(mime: MimeMessage) -> bytes:
        parsed, properties = ParsedContent.of(mime.content), mime.header.properties
        header, names = parsed.header, set[str]()
        if not any(name in header for name in _THREAD):
            names.update(_THREAD, _INDEX)
        if "subject" not in header:
            names.add("subject")
        if not any((properties.to, properties.cc, properties.bcc)):
            header = header.remove(_RECIPIENTS)
            names.update(_RECIPIENTS)
        written = Header.parse(header_fields(answer, message_id="").encode())
        added = b"".join(
            field
            for name, field in written.fields
            if name.decode() in names and name.decode() not in header
        )
        if not added:
            return mime.content
        if header.octets.endswith(b"\r"):  # lines end in CR, the empty line too
            added = added.replace(b"\r\n", b"\r")
        content = dataclasses.replace(parsed, header=header.append(added)).joined()
        assert isinstance(content, bytes)
        return content

    return amend
