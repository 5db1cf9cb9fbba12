"""Messages in MIME format in a request body, in base64 (RFC 4648 4) or plain.

The content is not changed. A body up to 1 MiB is held in memory. A larger body is checked when its
header has arrived; the rest is written to disk as it arrives. Bcc fields count as recipients.
"""

import asyncio
import binascii
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.content import Content, blocks
from relay.base.message.header import BLANK_LINE
from relay.formats.read_header import HEADER_OCTETS_MAX, SubmittedHeader, read_submitted
from relay.front_door.graph import errors
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.json_values import check_recipients_count
from relay.front_door.http.errors import ApiError, quoted
from relay.front_door.http.http_request import ROOM_WAIT_S
from relay.submission.outbox.arrivals import Arrival

_WHITE_SPACE = b" \t\r\n"
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=\s]|[\x0b\x0c]")
_QUICK_BYTES = 4 * 1024  # a header of this size is parsed in a few milliseconds
_HEAD_BYTES = HEADER_OCTETS_MAX + 4  # the longest header that can be sent, and the empty line


class MimeMessage(Struct, frozen=True):
    """MIME content and its checked header.

    For a large message, `content` is its beginning with the whole header, and `rest` is still to
    arrive. `expected_bytes` is about the size of the body, if known.
    """

    content: bytes
    header: SubmittedHeader
    rest: AsyncIterator[bytes] | None = None
    expected_bytes: int = 0

    async def write_to(self, arrival: Arrival[Any]) -> None:
        """Write all of it while it arrives. Raises ApiError, StoreUnavailableError."""
        await arrival.write(self.content)
        if self.rest is not None:
            async for block in self.rest:
                await arrival.write(block)


Amend = Callable[[MimeMessage], bytes]  # returns the content with other header fields


async def check_mime_content(content: bytes, *, to_send: bool = True) -> MimeMessage:
    """Run check_content(), in a thread if the header is long. Raises ApiError."""
    if len(content) <= _QUICK_BYTES or BLANK_LINE.search(content, 0, _QUICK_BYTES):
        return check_content(content, to_send=to_send)
    return await asyncio.to_thread(check_content, content, to_send=to_send)


def check_content(content: bytes, *, to_send: bool = True) -> MimeMessage:
    """Check the header of MIME. Without `to_send` it becomes a draft, which may have any author.

    Raises ApiError 400.
    """
    header = read_submitted(content, to_send=to_send)
    if header.fault:
        raise errors.MIME_INVALID(f"{header.fault}.")
    for field in header.originators:
        if field.unread or not field.addresses:
            unread = f" that can be read: {quoted(field.unread)}" if field.unread else ""
            raise errors.MIME_INVALID(f"{field.name} has no address{unread}.")
    if header.unreadable is not None:
        name, address, reason = header.unreadable
        detail = f"{name}: {quoted(address)} is no mail address: {reason}."
        raise errors.RECIPIENT_UNRESOLVED(detail, quoted(address))
    check_recipients_count(header.properties)
    return MimeMessage(content, header)


def header_block(content: Content) -> bytes:
    """Read the beginning of MIME, as much as check_content() needs. Blocks."""
    head = b""
    for block in blocks(content):
        head += block
        if len(head) > HEADER_OCTETS_MAX:
            break
    return head


@asynccontextmanager
async def receive_mime(
    request: GraphRequest, *, to_send: bool = False, amend: Amend | None = None
) -> AsyncIterator[MimeMessage]:
    """Receive MIME in base64, in memory or, by its size, in blocks. Raises ApiError."""
    if request.is_streamed():
        async with receive_in_blocks(request, to_send=to_send, amend=amend) as mime:
            yield mime
        return
    decoder = Base64Decoder()
    content = decoder.feed(await request.http.body())
    decoder.close()
    yield await _checked(content, to_send=to_send, amend=amend)


async def _checked(content: bytes, *, to_send: bool, amend: Amend | None) -> MimeMessage:
    """Check MIME, and again after `amend`. `content` has at least the whole header."""
    content = content.lstrip(b"\r\n")  # a template of JavaScript begins with an empty line
    message = await check_mime_content(content, to_send=to_send)
    if amend and (amended := amend(message)) is not content:
        message = await check_mime_content(amended, to_send=to_send)
    return message


@asynccontextmanager
async def receive_in_blocks(
    request: GraphRequest,
    *,
    is_base64: bool = True,
    to_send: bool = False,
    amend: Amend | None = None,
) -> AsyncIterator[MimeMessage]:
    """Receive the header of MIME, in base64 or plain; the rest can be received in the `async with`
    block. Raises ApiError.
    """
    limit_bytes = request.dependencies.max_upload
    declared_bytes = request.http.declared_bytes or 0
    expected_bytes = declared_bytes * 2 // 3 if is_base64 else declared_bytes
    if expected_bytes > limit_bytes:
        raise _too_large(limit_bytes)
    places = request.dependencies.streamed_bodies
    async with places.turn(request.caller.address, wait_s=ROOM_WAIT_S):
        content = _octets(request, limit_bytes, is_base64=is_base64)
        head = b""
        async for block in content:
            head += block
            if len(head) >= _HEAD_BYTES:
                if not any(blank in head for blank in (b"\n\n", b"\r\n\r\n", b"\r\r")):
                    detail = f"No empty line within the first {len(head)} bytes."
                    raise errors.MIME_INVALID(detail)
                break
        mime = await _checked(head, to_send=to_send, amend=amend)
        yield replace(mime, rest=content, expected_bytes=expected_bytes)


async def _octets(
    request: GraphRequest, limit_bytes: int, *, is_base64: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the content of the body block by block. Raises ApiError."""
    decoder = Base64Decoder() if is_base64 else None
    size_bytes = 0
    async for block in request.http.blocks(request.dependencies.streamed_bodies):
        octets = decoder.feed(block) if decoder else block
        size_bytes += len(octets)
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        yield octets
    if decoder:
        decoder.close()


def _too_large(limit_bytes: int) -> ApiError:
    message = f"The content is larger than the maximum of {limit_bytes} bytes (http.max_upload)."
    return errors.CONTENT_TOO_LARGE(message)


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
            detail = f"Data after the padding that ends at byte {self._padding_ends}."
            raise errors.BASE64_INVALID(detail)
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
            group = self._incomplete_group.decode("ascii", "replace")
            place = f"byte {self._consumed_bytes}, in the middle of a group"
            raise errors.BASE64_INVALID(f"It ends at {place}: {group!r}.")

    def _error(self, block: bytes) -> ApiError:
        if strange := _NOT_BASE64.search(block):
            at = self._consumed_bytes + strange.start()
            detail = f"Found {strange[0]!r} at byte {at}, expected base64."
            return errors.BASE64_INVALID(detail)
        at = self._consumed_bytes + max(block.find(b"="), 0)
        return errors.BASE64_INVALID(f"Padding in the wrong place, at byte {at}.")
