"""Upload sessions: a client PUTs an attached file in ranges to a URL.

The URL has a token, the parameter `authtoken`, as in Graph's examples.

A range counts when all of it is on disk. The last range attaches the file to its draft. It may be
sent again and gets the same response. RFC 9110 14.4 (Content-Range).
"""

import re
from urllib.parse import quote

from msgspec import Struct
from starlette.responses import Response

from relay.base.accounts.account import AccountDirectory
from relay.front_door.graph import errors
from relay.front_door.graph.dependencies import GraphDependencies
from relay.front_door.graph.serializer import graph_date
from relay.front_door.http.errors import ApiError, method_not_allowed, quoted
from relay.front_door.http.http_request import ROOM_WAIT_S, HttpRequest
from relay.front_door.http.responses import json_response
from relay.store.mailbox.errors import NoSuchItemError
from relay.submission.outbox.upload_sessions import NewUpload, Upload

_TOKEN = "authtoken"  # noqa: S105 - the name of the option
_METHODS = ("GET", "PUT", "DELETE")
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.IGNORECASE)
_EXPECTED = "expected a range such as bytes 0-5242879/12582912"


class ContentRange(Struct, frozen=True):
    """A Content-Range; `end` is the offset of the last byte."""

    start: int
    end: int
    total: int


def upload_url(root: str, made: NewUpload) -> str:
    """Return the URL of an upload session."""
    return f"{root}/uploads/{made.upload.attachment_id}?{_TOKEN}={made.token}"


async def serve_upload(
    dependencies: GraphDependencies, request: HttpRequest, attachment_id: str
) -> Response:
    """Handle a request to an upload URL. The session ends with its account, and with the right of
    the caller to open its mailbox.

    Raises ApiError: 404 for an unknown or expired session, 416 for a range out of order.
    """
    if request.method not in _METHODS:
        raise method_not_allowed(_METHODS)
    token = dict(request.query).get(_TOKEN, "")
    upload = await dependencies.store.uploads.find(token)
    if upload.attachment_id != attachment_id or not _is_open(upload, dependencies.accounts):
        raise NoSuchItemError("The upload session is unknown, or it has expired.")
    request.account = upload.caller  # the URL is its login
    if request.method == "GET":
        return _status(upload)
    if request.method == "PUT":
        return await _put(dependencies, request, token, upload=upload)
    await dependencies.store.uploads.remove(token)
    return Response(status_code=204)


def _is_open(upload: Upload, accounts: AccountDirectory) -> bool:
    """Return whether the account exists and the creator of the session may still log in and open
    its mailbox.
    """
    owner = accounts.by_address(upload.account)
    if owner is None or owner.address != upload.account:
        return False
    client = accounts.by_client_id(upload.caller)  # in dev, it opens all mailboxes
    callers = (accounts.by_address(upload.caller), client.account if client else None)
    return accounts.is_in_use(upload.caller) and any(
        caller.address == upload.caller and accounts.opened(owner.address, caller)
        for caller in filter(None, callers)
    )


def read_content_range(text: str, size: int) -> ContentRange:
    """Read a Content-Range of a file of `size` bytes. Raises ApiError."""
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise errors.RANGE_INVALID(f"Content-Range: found {quoted(text)}, {_EXPECTED}.")
    content_range = ContentRange(*map(int, match.groups()))
    if content_range.total != size:
        actual = f"found a total of {content_range.total}"
        raise errors.RANGE_INVALID(f"Content-Range: {actual}, expected {size}.")
    if not content_range.start <= content_range.end < content_range.total:
        raise errors.RANGE_UNSATISFIABLE(f"Content-Range: found {quoted(text)}, {_EXPECTED}.")
    return content_range


async def _put(
    dependencies: GraphDependencies, request: HttpRequest, token: str, *, upload: Upload
) -> Response:
    content_range = read_content_range(request.headers.get("content-range", ""), upload.size)
    if upload.received == upload.size and content_range.end == upload.size - 1:
        # A repeat: the response was lost, or attaching failed.
        return await _attached(dependencies, request, token)
    if content_range.start != upload.received:
        is_overlap = content_range.start < upload.received
        error = errors.RANGE_OVERLAP if is_overlap else errors.RANGE_OUT_OF_ORDER
        actual = f"found {content_range.start}-{content_range.end}, expected {_next_range(upload)}"
        raise error(f"Content-Range: {actual}.")
    length = content_range.end - content_range.start + 1
    if request.declared_bytes not in (None, length):
        raise _wrong_length(request.declared_bytes or 0, length)
    async with dependencies.streamed_bodies.turn(upload.caller, wait_s=ROOM_WAIT_S):
        upload = await _take(dependencies, request, token, start=content_range.start, length=length)
    if upload.received < upload.size:
        return _status(upload)
    return await _attached(dependencies, request, token)


async def _take(
    dependencies: GraphDependencies, request: HttpRequest, token: str, *, start: int, length: int
) -> Upload:
    async with await dependencies.store.uploads.begin_range(token, start) as upload_range:
        size_bytes = 0
        async for block in request.blocks(dependencies.streamed_bodies):
            size_bytes += len(block)
            if size_bytes > length:
                raise _wrong_length(size_bytes, length)
            await upload_range.write(block)
        if size_bytes < length:
            raise _wrong_length(size_bytes, length)
        return await upload_range.finish()


async def _attached(dependencies: GraphDependencies, request: HttpRequest, token: str) -> Response:
    upload = await dependencies.store.uploads.attach(token, limit_bytes=dependencies.max_upload)
    location = (
        f"{dependencies.root_url(request)}/users('{quote(upload.account)}')"
        f"/messages('{upload.message_id}')/attachments('{upload.attachment_id}')"
    )
    return Response(status_code=201, headers={"location": location})


def _status(upload: Upload) -> Response:
    ranges = [] if upload.received == upload.size else [_next_range(upload)]
    return json_response(
        {"expirationDateTime": graph_date(upload.expires_us), "nextExpectedRanges": ranges}
    )


def _next_range(upload: Upload) -> str:
    """Return the missing range, always with its end, which some clients require."""
    return f"{upload.received}-{upload.size - 1}"


def _wrong_length(actual: int, expected: int) -> ApiError:
    message = f"The body has {actual} bytes, expected {expected}, as Content-Range says."
    return errors.RANGE_INVALID(message)
