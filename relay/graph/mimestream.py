"""MIME in a request's body, however large: checked when its header is here, handed on in blocks.

On the path: step 1 of sendMail and drafts in MIME; the store writes the blocks into a draft's file.
Holds: what is refused for its header, its size or the quota is refused before the rest is taken; of
a large body a block is in memory.
Fails: ApiError; ClientGoneError; the store's refusals. Nothing is left then.
Standards: Graph's sendMail in MIME format.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from relay.graph.base64body import Base64Decoder, Base64Error
from relay.graph.mime import MimeMessage, checked, decoded_mime, invalid_base64
from relay.graph.people import check_has_recipients
from relay.graph.visit import Visit
from relay.http.errors import ApiError, UnansweredError
from relay.mailbox.api import Arrival
from relay.message.content import LARGE_BYTES
from relay.mime.section import HEADER_OCTETS_MAX

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
