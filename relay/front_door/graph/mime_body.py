"""Messages in MIME format in a request body, in base64 (RFC 4648 4) or plain.

The content is not changed. A body up to 1 MiB is held in memory; a larger one is checked when its
header has arrived and streamed to the draft's file. Bcc fields count as recipients. Addresses in
From and Sender of what is sent must be the account's (RFC 5322 3.6.2), also those of a resending
(3.6.6).
"""

import asyncio
import binascii
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from msgspec import Struct

from relay.base.accounts.account import Account
from relay.base.message.address import AddressError, parse_odd_mailbox
from relay.base.message.content import Content, blocks
from relay.base.message.conversation import message_ids
from relay.base.message.header import BLANK_LINE, Header, header_section
from relay.base.message.properties import MessageProperties
from relay.formats.read_header import (
    HEADER_OCTETS_MAX,
    check_mime,
    originators,
    parse_header,
    read_addresses,
    read_token,
    unreadable_addresses,
)
from relay.front_door.graph.graph_request import GraphRequest, await_submission
from relay.front_door.graph.recipients import (
    check_has_recipients,
    check_own,
    check_recipients_count,
)
from relay.front_door.http.errors import ApiError, quoted
from relay.submission.outbox.arrivals import Arrival

_WHITE_SPACE = b" \t\r\n"
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=\s]|[\x0b\x0c]")
_QUICK_BYTES = 4 * 1024  # a header of this size is parsed in a few milliseconds
_Result = TypeVar("_Result")
_HEAD_BYTES = HEADER_OCTETS_MAX + 4  # the longest header that can be sent, and the empty line
_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")


class MimeMessage(Struct, frozen=True):
    """MIME content, its recipients, and its Message-ID ("" if it has none, or an invalid one).

    `on_behalf_of` is an address in From that is not the account's, if there is no Sender.
    """

    content: bytes
    recipients: MessageProperties
    internet_message_id: str
    on_behalf_of: str = ""


async def check_mime_content(
    content: bytes, account: Account, *, to_send: bool = True
) -> MimeMessage:
    """Run check_content(), in a thread if the header is long. Raises ApiError."""
    if len(content) <= _QUICK_BYTES or BLANK_LINE.search(content, 0, _QUICK_BYTES):
        return check_content(content, account, to_send=to_send)
    return await asyncio.to_thread(check_content, content, account, to_send=to_send)


def check_content(content: bytes, account: Account, *, to_send: bool = True) -> MimeMessage:
    """Check the header of MIME that the account wants to send. Without `to_send` it becomes a
    draft, which may have any author, and no recipients yet.

    Raises ApiError 400; 403 ErrorSendAsDenied.
    """
    if reason := check_mime(content):
        raise ApiError(400, "ErrorMimeContentInvalid", f"Invalid MIME content: {reason}.")
    header_octets = header_section(content)
    header = parse_header(header_octets)
    others: list[str] = []
    for field in originators(Header.parse(header_octets)) if to_send else ():
        for originator in field.addresses:
            check_own(originator, account, path=field.name)
            if field.name == "From" and not account.owns(originator.address):
                others.append(originator.address)
        if field.unread or not field.addresses:
            found = f" that can be read: {quoted(field.unread)}" if field.unread else ""
            message = f"Invalid MIME content: {field.name} has no address{found}."
            raise ApiError(400, "ErrorMimeContentInvalid", message)
    recipients = MessageProperties(
        to=read_addresses(header, "To"),
        cc=read_addresses(header, "Cc"),
        bcc=read_addresses(header, "Bcc"),
    )
    check_recipients_count(recipients)
    for name in ("To", "Cc", "Bcc"):
        if unread := unreadable_addresses(header, name):
            raise _invalid_recipient(name, unread, "expected addresses with commas between them")
    _check_addresses(recipients)
    ids = message_ids(read_token(header, "Message-ID"))
    return MimeMessage(
        content=content,
        recipients=recipients,
        internet_message_id=next(iter(ids), ""),
        on_behalf_of=next(iter(others), "") if header.get("Sender") is None else "",
    )


def header_block(content: Content) -> bytes:
    """Read the beginning of MIME, as much as check_content() needs. Blocks."""
    head = b""
    for block in blocks(content):
        head += block
        if len(head) > HEADER_OCTETS_MAX:
            break
    return head


def _check_addresses(recipients: MessageProperties) -> None:
    fields = (("To", recipients.to), ("Cc", recipients.cc), ("Bcc", recipients.bcc))
    for name, mailboxes in fields:
        for recipient in mailboxes:
            try:
                parse_odd_mailbox(recipient.address, smtputf8=True)
            except AddressError as error:
                raise _invalid_recipient(name, recipient.address, str(error)) from None


def _invalid_recipient(field: str, found: str, reason: str) -> ApiError:
    return ApiError(
        400,
        "ErrorInvalidRecipients",
        f"At least one recipient is not valid., {field}: {quoted(found)} is no mail address: "
        f"{reason}.",
    )


@dataclass(frozen=True, slots=True)
class ReceivedMime(Generic[_Result]):
    """The checked header, and the result of the store."""

    message: MimeMessage
    result: _Result


@dataclass(frozen=True, slots=True)
class MimeConsumer(Generic[_Result]):
    """How the store takes MIME: `in_memory`, or `streamed` after its header, with the size in bytes
    that Content-Length announces.
    """

    in_memory: Callable[[MimeMessage], Awaitable[_Result]]
    streamed: Callable[[MimeMessage, int], Awaitable[Arrival[_Result]]]


async def receive_mime(
    request: GraphRequest,
    consumer: MimeConsumer[_Result],
    *,
    to_send: bool = False,
    amend: Callable[[MimeMessage], bytes] | None = None,
) -> ReceivedMime[_Result]:
    """Receive MIME in base64, in memory or streamed by its size.

    `amend` returns the given content with other header fields. With `to_send` the message must then
    have recipients. Raises ApiError.
    """
    if request.is_streamed():
        return await receive_in_blocks(
            request, consumer.streamed, is_base64=True, to_send=to_send, amend=amend
        )
    decoder = Base64Decoder()
    content = decoder.feed(await request.http.body())
    decoder.close()
    message = await _checked(content, request.account, to_send=to_send, amend=amend)
    return ReceivedMime(message, await consumer.in_memory(message))


async def _checked(
    content: bytes,
    account: Account,
    *,
    to_send: bool,
    amend: Callable[[MimeMessage], bytes] | None,
) -> MimeMessage:
    """Check MIME, and again after `amend`. `content` has at least the whole header."""
    message = await check_mime_content(content, account, to_send=to_send)
    if amend and (amended := amend(message)) is not content:
        message = await check_mime_content(amended, account, to_send=to_send)
    if to_send:
        check_has_recipients(message.recipients)
    return message


async def receive_in_blocks(
    request: GraphRequest,
    begin: Callable[[MimeMessage, int], Awaitable[Arrival[_Result]]],
    *,
    is_base64: bool,
    to_send: bool = False,
    amend: Callable[[MimeMessage], bytes] | None = None,
) -> ReceivedMime[_Result]:
    """Receive MIME block by block, in base64 or plain. Raises ApiError; nothing is left then."""
    limit_bytes = request.dependencies.max_upload
    declared_bytes = request.http.declared_bytes or 0
    expected_bytes = declared_bytes * 2 // 3 if is_base64 else declared_bytes
    if expected_bytes > limit_bytes:
        raise _too_large(limit_bytes)
    with request.dependencies.streamed_bodies.acquire(request.caller.address):
        content = _octets(request, limit_bytes, is_base64=is_base64)
        head = b""
        async for block in content:
            head += block
            if len(head) >= _HEAD_BYTES:
                if not any(blank in head for blank in _BLANK_LINES):
                    reason = f"no empty line within the first {len(head)} bytes"
                    message = f"Invalid MIME content: {reason}."
                    raise ApiError(400, "ErrorMimeContentInvalid", message)
                break
        mime = await _checked(head, request.account, to_send=to_send, amend=amend)
        arrival = await begin(mime, expected_bytes)
        try:
            await arrival.write(mime.content)
            async for block in content:
                await arrival.write(block)
            if to_send and request.before_submission is not None:
                await request.before_submission()
            finished = arrival.finish()
            return ReceivedMime(mime, await (await_submission(finished) if to_send else finished))
        finally:
            await arrival.discard()


async def _octets(
    request: GraphRequest, limit_bytes: int, *, is_base64: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the content of the body block by block. Raises ApiError."""
    decoder = Base64Decoder() if is_base64 else None
    size_bytes = 0
    async for block in request.http.blocks():
        octets = decoder.feed(block) if decoder else block
        size_bytes += len(octets)
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        yield octets
    if decoder:
        decoder.close()


def _too_large(limit_bytes: int) -> ApiError:
    message = f"The content is larger than the maximum of {limit_bytes} bytes (http.max_upload)."
    return ApiError(413, "RequestEntityTooLarge", message)


class Base64Decoder:
    """Decodes a body block by block; white space is allowed anywhere."""

    def __init__(self) -> None:
        self._incomplete_group = b""  # an incomplete group of four, without white space
        self._consumed_bytes = 0  # bytes of the body before the current block
        self._padding_ends: int | None = None  # the offset after the padding

    def feed(self, block: bytes) -> bytes:
        """Return the octets that this block completes. Raises ApiError 400."""
        plain = self._incomplete_group + block.translate(None, _WHITE_SPACE)
        end = len(plain) // 4 * 4
        if plain and self._padding_ends is not None:
            raise _invalid(f"Data after the padding that ends at byte {self._padding_ends}")
        try:
            decoded = binascii.a2b_base64(plain[:end], strict_mode=True)
        except binascii.Error:
            raise self._error(block) from None
        if end and plain[end - 1] == ord("="):
            if end < len(plain):
                raise self._error(block)
            self._padding_ends = self._consumed_bytes + block.rfind(b"=") + 1
        self._incomplete_group = plain[end:]
        if self._incomplete_group and _NOT_BASE64.search(self._incomplete_group):
            raise self._error(block)
        self._consumed_bytes += len(block)
        return decoded

    def close(self) -> None:
        """End the body. Raises ApiError 400 if it ends within a group."""
        if self._incomplete_group:
            found = self._incomplete_group.decode("ascii", "replace")
            raise _invalid(
                f"It ends at byte {self._consumed_bytes} in the middle of a group: {found!r}"
            )

    def _error(self, block: bytes) -> ApiError:
        if strange := _NOT_BASE64.search(block):
            at = self._consumed_bytes + strange.start()
            return _invalid(f"Found {strange[0]!r} at byte {at}, expected base64")
        at = self._consumed_bytes + max(block.find(b"="), 0)
        return _invalid(f"Padding in the wrong place, at byte {at}")


def _invalid(reason: str) -> ApiError:
    message = f"Invalid base64 string for MIME content. {reason}."
    return ApiError(400, "ErrorMimeContentInvalidBase64String", message)
