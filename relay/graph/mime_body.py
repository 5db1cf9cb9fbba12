"""A message given as MIME: base64 text in the body of sendMail or of a new draft.

On the path: the handlers hand the body in when its type is text/plain.
Holds: the bytes are not changed; Bcc counts as a recipient; nobody sends from another's address. A
header that may take long keeps no other request waiting.
Fails: ApiError 400 for what is no base64, no MIME or has no recipients; 403 ErrorSendAsDenied.
Standards: Graph's sendMail in MIME format; RFC 5322 3.6.2, 3.6.3.
"""

import asyncio
import binascii
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from relay.accounts import Account
from relay.graph.graph_request import Visit
from relay.graph.recipients import check_has_recipients, check_own, check_recipients_count
from relay.http.errors import ApiError, UnansweredError, shown
from relay.mailbox.api import Arrival
from relay.message.address import AddressError, parse_mailbox
from relay.message.content import LARGE_BYTES, Content, blocks
from relay.message.properties import MessageProperties
from relay.mime.headread import (
    check_mime,
    header_of,
    originators,
    read_people,
    unread_people,
)
from relay.mime.section import BLANK_LINE, HEADER_OCTETS_MAX, read_header

_WHITE_SPACE = b" \t\r\n"
_STRANGE = re.compile(rb"[^A-Za-z0-9+/=\s]|[\x0b\x0c]")


class Base64Error(ValueError):
    """What is no base64, and where: in bytes from the body's beginning."""


class Base64Decoder:
    """Takes the body in blocks."""

    def __init__(self) -> None:
        self._held = b""  # less than a group of four, without white space
        self._taken = 0  # bytes of the body before the block in hand
        self._padding_ends: int | None = None  # where the last group ended, if that had padding

    def feed(self, block: bytes) -> bytes:
        """Return what can be decoded with this block. Raises Base64Error."""
        plain = self._held + block.translate(None, _WHITE_SPACE)
        end = len(plain) // 4 * 4
        if plain and self._padding_ends is not None:
            raise Base64Error(f"Data behind the padding that ends at byte {self._padding_ends}")
        try:
            decoded = binascii.a2b_base64(plain[:end], strict_mode=True)
        except binascii.Error:
            raise self._error(block) from None
        if end and plain[end - 1] == ord("="):
            if end < len(plain):
                raise self._error(block)
            self._padding_ends = self._taken + block.rfind(b"=") + 1
        self._held = plain[end:]
        if self._held and _STRANGE.search(self._held):
            raise self._error(block)
        self._taken += len(block)
        return decoded

    def close(self) -> None:
        """Say that this was all. Raises Base64Error."""
        if self._held:
            found = self._held.decode("ascii", "replace")
            raise Base64Error(f"It ends at byte {self._taken} in the middle of a group: {found!r}")

    def _error(self, block: bytes) -> Base64Error:
        if strange := _STRANGE.search(block):
            at = self._taken + strange.start()
            return Base64Error(f"Found {strange[0]!r} at byte {at}, expected base64")
        at = self._taken + max(block.find(b"="), 0)
        return Base64Error(f"Padding in the wrong place, at byte {at}")


_QUICK_BYTES = 4 * 1024  # the worst that can be written in them takes some milliseconds
_MESSAGE_ID = re.compile(r"<[!-;=?-~]+>")


@dataclass(frozen=True, slots=True)
class MimeMessage:
    """MIME content, who gets it, and its Message-ID ("" where it has none that can be shown).

    `on_behalf_of` is an address in From that is not the account's, where no Sender tells whose.
    """

    content: bytes
    recipients: MessageProperties
    internet_message_id: str
    on_behalf_of: str = ""


def decoded_mime(body: bytes) -> bytes:
    """Return the MIME of a body in base64. Raises ApiError."""
    decoder = Base64Decoder()
    try:
        content = decoder.feed(body)
        decoder.close()
    except Base64Error as error:
        raise invalid_base64(error) from None
    return content


def invalid_base64(error: Base64Error) -> ApiError:
    """Return the refusal of what is no base64."""
    message = f"Invalid base64 string for MIME content. {error}."
    return ApiError(400, "ErrorMimeContentInvalidBase64String", message)


async def checked(content: bytes, account: Account) -> MimeMessage:
    """check_content(), in a thread where the header is long. Raises ApiError."""
    if len(content) <= _QUICK_BYTES or BLANK_LINE.search(content, 0, _QUICK_BYTES):
        return check_content(content, account)
    return await asyncio.to_thread(check_content, content, account)


def check_content(content: bytes, account: Account) -> MimeMessage:
    """Check MIME that the account wants to send, which may have no recipients yet.

    Raises ApiError.
    """
    if reason := check_mime(content):
        raise ApiError(400, "ErrorMimeContentInvalid", f"Invalid MIME content: {reason}.")
    header_octets = header_of(content)
    header = read_header(header_octets)
    others: list[str] = []
    for field in originators(header_octets):
        for person in field.people:
            check_own(person, account, path=field.name)
            if field.name == "From" and not account.owns(person.address):
                others.append(person.address)
        if field.unread or not field.people:
            found = f" that can be read: {shown(field.unread)}" if field.unread else ""
            message = f"Invalid MIME content: {field.name} has no address{found}."
            raise ApiError(400, "ErrorMimeContentInvalid", message)
    recipients = MessageProperties(
        to=read_people(header, "To"),
        cc=read_people(header, "Cc"),
        bcc=read_people(header, "Bcc"),
    )
    check_recipients_count(recipients)
    for name in ("To", "Cc", "Bcc"):
        if unread := unread_people(header, name):
            raise _invalid_recipient(name, unread, "expected addresses with commas between them")
    _check_addresses(recipients)
    message_id = str(header.get("Message-ID", "")).strip()
    return MimeMessage(
        content=content,
        recipients=recipients,
        internet_message_id=message_id if _MESSAGE_ID.fullmatch(message_id) else "",
        on_behalf_of=next(iter(others), "") if header.get("Sender") is None else "",
    )


def head_of(content: Content) -> bytes:
    """Return as much of MIME as checked() looks at. Reading blocks."""
    head = b""
    for block in blocks(content):
        head += block
        if len(head) > HEADER_OCTETS_MAX:
            break
    return head


def _check_addresses(recipients: MessageProperties) -> None:
    fields = (("To", recipients.to), ("Cc", recipients.cc), ("Bcc", recipients.bcc))
    for name, people in fields:
        for person in people:
            try:
                parse_mailbox(person.address, smtputf8=True)
            except AddressError as error:
                raise _invalid_recipient(name, person.address, str(error)) from None


def _invalid_recipient(field: str, found: str, reason: str) -> ApiError:
    return ApiError(
        400,
        "ErrorInvalidRecipients",
        f"At least one recipient is not valid., {field}: {shown(found)} is no mail address: "
        f"{reason}.",
    )


_Result = TypeVar("_Result")
_HELD_BODY_BYTES_MAX = LARGE_BYTES * 4 // 3
_BEGINNING_BYTES = HEADER_OCTETS_MAX + 4  # a header that may be sent, and the blank line
_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")


@dataclass(frozen=True, slots=True)
class Taken(Generic[_Result]):
    """What the header says, and what the store made of the content."""

    message: MimeMessage
    result: _Result


@dataclass(frozen=True, slots=True)
class Ways(Generic[_Result]):
    """What the store does with MIME: `held` in memory, or `arriving`, whose header is here and of
    which it is told how many bytes can be expected.
    """

    held: Callable[[MimeMessage], Awaitable[_Result]]
    arriving: Callable[[MimeMessage, int], Awaitable[Arrival[_Result]]]


async def take_mime(visit: Visit, ways: Ways[_Result], *, to_send: bool = False) -> Taken[_Result]:
    """Take a body of MIME in base64; what is sent must have recipients."""
    declared_bytes = visit.call.declared_bytes
    if declared_bytes is None or declared_bytes > _HELD_BODY_BYTES_MAX:
        return await take_in_blocks(visit, ways.arriving, is_coded=True, to_send=to_send)
    message = await checked(decoded_mime(await visit.call.body()), visit.account)
    if to_send:
        check_has_recipients(message.recipients)
    return Taken(message, await ways.held(message))


async def take_in_blocks(
    visit: Visit,
    begin: Callable[[MimeMessage, int], Awaitable[Arrival[_Result]]],
    *,
    is_coded: bool,
    to_send: bool = False,
) -> Taken[_Result]:
    """Take a body of MIME, in base64 or as it is, block by block."""
    limit_bytes = visit.door.max_upload
    declared_bytes = visit.call.declared_bytes or 0
    expected_bytes = declared_bytes * 2 // 3 if is_coded else declared_bytes
    if expected_bytes > limit_bytes:
        raise _too_large(limit_bytes)
    with visit.door.streams.one_of(visit.mailbox):
        content = _decoded(visit, limit_bytes) if is_coded else _counted(visit, limit_bytes)
        beginning = b""
        async for block in content:
            beginning += block
            if len(beginning) >= _BEGINNING_BYTES:
                if not any(blank in beginning for blank in _BLANK_LINES):
                    reason = f"no empty line within the first {len(beginning)} bytes"
                    message = f"Invalid MIME content: {reason}."
                    raise ApiError(400, "ErrorMimeContentInvalid", message)
                break
        message_told = await checked(beginning, visit.account)
        if to_send:
            check_has_recipients(message_told.recipients)
        arrival = await begin(message_told, expected_bytes)
        try:
            await arrival.write(beginning)
            async for block in content:
                await arrival.write(block)
            finished = arrival.finish()
            return Taken(message_told, await (submitted(finished) if to_send else finished))
        finally:
            arrival.discard()


async def submitted(submission: Awaitable[_Result]) -> _Result:
    """Await a submission, which goes on when this is cancelled: no answer would be right then.

    Raises UnansweredError.
    """
    try:
        return await submission
    except asyncio.CancelledError:
        message = "The server stopped while a message was submitted. It may be sent or not."
        raise UnansweredError(message) from None


async def _decoded(visit: Visit, limit_bytes: int) -> AsyncGenerator[bytes, None]:
    decoder = Base64Decoder()
    size_bytes = 0
    try:
        async for block in visit.call.blocks():
            octets = decoder.feed(block)
            size_bytes += len(octets)
            if size_bytes > limit_bytes:
                raise _too_large(limit_bytes)
            yield octets
        decoder.close()
    except Base64Error as error:
        raise invalid_base64(error) from None


async def _counted(visit: Visit, limit_bytes: int) -> AsyncGenerator[bytes, None]:
    size_bytes = 0
    async for block in visit.call.blocks():
        size_bytes += len(block)
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        yield block


def _too_large(limit_bytes: int) -> ApiError:
    message = f"The content is larger than the maximum of {limit_bytes} bytes (http.max_upload)."
    return ApiError(413, "RequestEntityTooLarge", message)
