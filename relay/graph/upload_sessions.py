"""Upload sessions: an attachment's file in ranges, to an URL that needs no token but its own.

On the path: beside step 1; the last range makes the file an attachment of its draft.
Holds: a range counts when all of it came and is on disk; the last one may be sent again, and is
answered in the same way.
Fails: ApiError: 404 for an unknown or expired session, 416 for a range in the wrong place.
Standards: Graph's uploadSession; RFC 9110 14.4 (Content-Range).
"""

import re
from dataclasses import dataclass
from urllib.parse import quote

from starlette.responses import Response

from relay.accounts import AccountDirectory
from relay.graph.graph_request import Door
from relay.graph.serializer import graph_date
from relay.http.errors import ApiError, shown
from relay.http.gateway import json_response
from relay.http.http_request import Call
from relay.mailbox.types import NoSuchItemError, Upload

_METHODS = ("GET", "PUT", "DELETE")
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.IGNORECASE)
_EXPECTED = "expected a range such as bytes 0-5242879/12582912"


@dataclass(frozen=True, slots=True)
class ContentRange:
    """What a Content-Range header says; `end` is the last byte's place."""

    start: int
    end: int
    total: int


async def serve_upload(
    door: Door, call: Call, token: str, *, accounts: AccountDirectory
) -> Response:
    """Answer a request to an upload URL, which goes with its account."""
    if call.method not in _METHODS:
        raise ApiError(
            405,
            "Request_BadRequest",
            "Specified HTTP method is not allowed for the request target.",
            headers={"allow": ", ".join(_METHODS)},
        )
    upload = await door.store.attachments.find_upload(token)
    owner = accounts.by_address(upload.account)
    if owner is None or owner.address != upload.account:
        raise NoSuchItemError("The upload session is unknown, or it has expired.")
    if call.method == "GET":
        return _status(upload)
    if call.method == "PUT":
        return await _put(door, call, token, upload=upload)
    await door.store.attachments.remove_upload(token)
    return Response(status_code=204)


def read_content_range(text: str, size: int) -> ContentRange:
    """Read a Content-Range of a file of `size` bytes. Raises ApiError."""
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        message = f"Content-Range: found {shown(text)}, {_EXPECTED}."
        raise ApiError(400, "invalidRange", message)
    told = ContentRange(*map(int, match.groups()))
    if told.total != size:
        message = f"Content-Range: found a total of {told.total}, expected {size}."
        raise ApiError(400, "invalidRange", message)
    if not told.start <= told.end < told.total:
        raise _not_satisfiable("invalidRange", f"found {shown(text)}, {_EXPECTED}")
    return told


async def _put(door: Door, call: Call, token: str, *, upload: Upload) -> Response:
    given = read_content_range(call.headers.get("content-range", ""), upload.size)
    if upload.received == upload.size and given.end == upload.size - 1:
        return await _attached(door, call, token)  # again: its answer was lost, or it failed
    if given.start != upload.received:
        is_overlap = given.start < upload.received
        code = "fragmentOverlap" if is_overlap else "fragmentOutOfOrder"
        message = f"found {given.start}-{given.end}, expected {_next_range(upload)}"
        raise _not_satisfiable(code, message)
    length = given.end - given.start + 1
    if call.declared_bytes not in (None, length):
        raise _wrong_length(call.declared_bytes or 0, length)
    with door.streams.one_of(upload.account):
        upload = await _take(door, call, token, start=given.start, length=length)
    if upload.received < upload.size:
        return _status(upload)
    return await _attached(door, call, token)


async def _take(door: Door, call: Call, token: str, *, start: int, length: int) -> Upload:
    taken = await door.store.attachments.upload_range(token, start)
    try:
        size_bytes = 0
        async for block in call.blocks():
            size_bytes += len(block)
            if size_bytes > length:
                raise _wrong_length(size_bytes, length)
            await taken.write(block)
        if size_bytes < length:
            raise _wrong_length(size_bytes, length)
        return await taken.finish()
    finally:
        taken.abort()


async def _attached(door: Door, call: Call, token: str) -> Response:
    upload = await door.store.attachments.attach_upload(token, limit_bytes=door.max_upload)
    base = call.base_url(door.public_url, door.hostname)
    location = (
        f"{base}/{call.segments[0].lower()}/users('{quote(upload.account)}')"
        f"/messages('{upload.message_id}')/attachments('{upload.attachment_id}')"
    )
    return Response(status_code=201, headers={"location": location})


def _status(upload: Upload) -> Response:
    ranges = [] if upload.received == upload.size else [_next_range(upload)]
    return json_response(
        {"expirationDateTime": graph_date(upload.expires_us), "nextExpectedRanges": ranges}
    )


def _next_range(upload: Upload) -> str:
    """Return what is still to come, always with its end: some clients need that."""
    return f"{upload.received}-{upload.size - 1}"


def _wrong_length(found: int, expected: int) -> ApiError:
    message = f"The body has {found} bytes, expected {expected}, as Content-Range says."
    return ApiError(400, "invalidRange", message)


def _not_satisfiable(code: str, message: str) -> ApiError:
    return ApiError(416, code, f"Content-Range: {message}.")
