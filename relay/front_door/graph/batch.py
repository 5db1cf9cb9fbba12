"""$batch: up to 20 requests in one body, each handled as if it had come alone.

A batch that is malformed is rejected as a whole (400) before anything runs. Otherwise the answer is
200 with one response per request; up to 4 requests run at once, each after the requests that it
depends on. A body that is not JSON is base64 (RFC 4648), in both directions.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.responses import Response
from starlette.types import Receive, Scope

from relay.base.clock import Clock, rfc3339
from relay.base.phrases import words_in
from relay.base.pressure import Pressure, PressureReason, describe
from relay.base.shares import NoPlaceError, Shares
from relay.front_door.graph import errors, strict_profile
from relay.front_door.graph.admission import key_of_part, read_key
from relay.front_door.graph.json_values import check_number_of_values
from relay.front_door.http.errors import (
    ApiError,
    UnansweredError,
    bad_request,
    error_body,
    method_not_allowed,
    quoted,
    service_unavailable,
)
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.protocol import HEADER_BYTES_MAX
from relay.front_door.http.responses import StreamedResponse, json_response

REQUESTS_MAX = 20
CONCURRENT_MAX = 4
RESPONSES_BYTES_MAX = 16 * 1024 * 1024  # bodies of the responses of one batch
_HELD_BYTES_MAX = 8 * RESPONSES_BYTES_MAX  # of all batches, half of it for one account
_RETRY_S = 30  # while memory is short
_VERSION = re.compile(r"/(?:v1\.0|beta)(?=/|$)", re.IGNORECASE)
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))  # quote() leaves these as they are
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110 5.6.2
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_WHITE_SPACE = re.compile(r"\s+")
# Fields that a request of a batch must not set: the fields of the batch apply.
_NOT_OF_AN_ITEM = words_in("authorization host connection content-length transfer-encoding expect")
_INHERITED = words_in(
    "authorization host client-request-id retry-attempt accept-language user-agent"
)
_BASE64_TEXT = re.compile(rb"[A-Za-z0-9+/=\s]*")
_SPELLING = {
    name.lower(): name
    for name in words_in(
        "Allow Content-Type ETag Location Preference-Applied Retry-After WWW-Authenticate"
    )
}


class _Batch(msgspec.Struct):
    """The body of a batch."""

    requests: list[msgspec.Raw]


class _Item(msgspec.Struct):
    """One request as the client wrote it; Microsoft's SDK for Python writes depends_on.

    Some clients number their requests: a number is an id in decimal digits.
    """

    id: str | int
    method: str
    url: str
    headers: dict[str, str] | None = None
    body: msgspec.Raw = msgspec.Raw(b"")
    depends_on: list[str | int] | None = msgspec.field(default=None, name="dependsOn")
    depends_on_too: list[str | int] | None = msgspec.field(default=None, name="depends_on")


_batch_decoder = msgspec.json.Decoder(_Batch)
_item_decoder = msgspec.json.Decoder(_Item)


class BatchItem(Struct, frozen=True):
    """One request of a batch, checked. `target` is its path and query."""

    id: str
    method: str
    target: bytes
    headers: Mapping[str, str]
    body: bytes
    depends_on: tuple[str, ...]


@dataclass(slots=True)
class _Run:
    """The state of one batch."""

    request: HttpRequest  # the batch itself
    running: asyncio.Semaphore  # limits the requests that run at once
    left_bytes: int  # that responses may still take
    held_bytes: int = 0  # bytes of the responses that are kept
    status: dict[str, int] = field(default_factory=dict)  # by id of the requests that are done
    # by id; set when the request has its response
    done: dict[str, asyncio.Event] = field(default_factory=dict)
    # background tasks of the responses, run after the response to the batch
    background: list[BackgroundTask] = field(default_factory=list)
    # held by the request whose response is read into memory
    collecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def page_bytes(self) -> int:
        """The octets that a page may have now.

        Each unfinished request gets the same share, so that the last one still gets a page.
        """
        return self.left_bytes // sum(not event.is_set() for event in self.done.values())


@dataclass(eq=False, repr=False)
class BatchHandler:
    """Answers batches. `respond` handles one request; None means that its outcome is unknown."""

    respond: Callable[[Scope, Receive], Awaitable[Response | None]]
    clock: Clock
    base_url: Callable[[HttpRequest], str]  # with which an absolute URL must begin
    pressure: Pressure

    def __post_init__(self) -> None:
        self._held = Shares("batch responses", _HELD_BYTES_MAX)

    async def handle(self, request: HttpRequest, *, is_strict: bool) -> Response:
        """Answer a batch. Raises ApiError 400, 405, 503; UnansweredError."""
        if request.part_id is not None:
            raise bad_request("A batch cannot contain a batch.")
        if request.method != "POST":
            raise method_not_allowed(["POST"])
        if (reason := self.pressure.state.refusing({PressureReason.MEMORY})) is not None:
            message = f"Batches are not taken now: {describe(reason)}. Try again later."
            raise service_unavailable(message, retry_after_s=_RETRY_S)
        read_key(request)
        version = request.segments[0].lower()
        items = parse_batch(await request.body(), version=version, base_url=self.base_url(request))
        if is_strict:
            _check_strictly(items)
        run = _Run(request, asyncio.Semaphore(CONCURRENT_MAX), RESPONSES_BYTES_MAX)
        run.done = {item.id: asyncio.Event() for item in items}
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(self._run_in_turn(item, run)) for item in items]
            responses = [task.result() for task in running]
            if None in responses:
                raise UnansweredError("The outcome of a request of a batch is unknown.")
            answer = json_response({"responses": responses})
        except asyncio.CancelledError:
            message = "The server stopped during a batch. Some of its requests were carried out."
            raise UnansweredError(message) from None
        finally:
            self._held.give_back(request.account, run.held_bytes)
        answer.background = BackgroundTasks(run.background)
        return answer

    async def _run_in_turn(self, item: BatchItem, run: _Run) -> dict[str, Any] | None:
        """Wait for the requests that an item depends on, and return its response; None if it is
        unknown.
        """
        try:
            for request_id in item.depends_on:
                await run.done[request_id].wait()
            failed = [
                request_id
                for request_id in item.depends_on
                if run.status.get(request_id, 500) >= 400
            ]
            if failed:
                run.status[item.id] = 424
                message = f"The request {quoted(failed[0])}, on which this one depends, failed."
                return self._failed(item, errors.FAILED_DEPENDENCY(message), run)
            async with run.running:
                return await self._run(item, run)
        finally:
            run.done[item.id].set()

    async def _run(self, item: BatchItem, run: _Run) -> dict[str, Any] | None:
        scope = run.request.part_scope(
            item.method,
            item.target,
            headers=_fields(item, run.request),
            part_id=item.id,
            page_bytes=run.page_bytes,
        )
        body = [item.body]

        async def receive() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            await asyncio.Event().wait()  # the client of a batch stays until its end
            raise AssertionError

        response = await self.respond(scope, receive)
        if response is None:
            return None
        run.status[item.id] = response.status_code
        if response.background is not None:
            run.background.append(response.background)
        try:
            content = await self._kept_body(item, response, run)
        except ApiError as error:
            run.status[item.id] = error.status
            return self._failed(item, error, run)
        headers = {
            _SPELLING.get(name, name): value
            for name, value in response.headers.items()
            if name != "content-length"
        }
        response_json: dict[str, Any] = {
            "id": item.id,
            "status": response.status_code,
            "headers": headers,
        }
        if content:
            is_json = headers.get("Content-Type", "").startswith("application/json")
            response_json["body"] = (
                msgspec.Raw(content) if is_json else base64.b64encode(content).decode("ascii")
            )
        return response_json

    async def _kept_body(self, item: BatchItem, response: Response, run: _Run) -> bytes:
        """Return the body of a response. Its size counts until the batch is answered.

        If the body does not fit, the response to a change is sent without it. Raises ApiError 413,
        503 for a GET.
        """
        content = await _content(response, run)
        fits = content is not None and len(content) <= run.left_bytes
        if content is not None and fits and self._held.take(run.request.account, len(content)):
            run.left_bytes -= len(content)
            run.held_bytes += len(content)
            return content
        del content
        response.body = b""
        if item.method != "GET":
            return b""
        if fits:
            message = "Too many batches are running; try again."
            raise service_unavailable(message, retry_after_s=2)
        limit = f"The responses of a batch have at most {RESPONSES_BYTES_MAX} bytes together"
        raise errors.RESPONSE_TOO_LARGE(f"{limit}. Make this request alone.")

    def _failed(self, item: BatchItem, error: ApiError, run: _Run) -> dict[str, Any]:
        date = rfc3339(self.clock.time_us())[:19]
        headers = {"Content-Type": "application/json"} | {
            _SPELLING.get(name, name): value for name, value in error.headers.items()
        }
        body = error_body(error, ids=run.request.ids, date=date)
        return {"id": item.id, "status": error.status, "headers": headers, "body": body}


async def _content(response: Response, run: _Run) -> bytes | None:
    """Return the body of a response; None if it is longer than the space that is left. Raises
    ApiError 503.

    Only one body at a time is read from files, so that memory holds no more than the limit.
    """
    if not isinstance(response, StreamedResponse):
        return bytes(response.body)
    async with run.collecting:
        if int(response.headers.get("content-length", 0)) > run.left_bytes:
            return None
        try:
            return await response.collect(run.left_bytes)
        except (NoPlaceError, OSError):
            message = "The content cannot be read now; try again."
            raise service_unavailable(message, retry_after_s=2) from None


def parse_batch(body: bytes, *, version: str, base_url: str) -> Sequence[BatchItem]:
    """Read a batch. Raises ApiError 400 that names the request and the field."""
    check_number_of_values(body)
    try:
        written = _batch_decoder.decode(body).requests
    except (ValueError, RecursionError) as error:
        raise _bad("requests", str(error) if body.strip() else "the body is empty") from None
    if not written:
        raise _bad("requests", f"found none, expected 1 to {REQUESTS_MAX}")
    if len(written) > REQUESTS_MAX:
        raise errors.TOO_MANY_REQUESTS(f"requests: found {len(written)}.")
    items: dict[str, BatchItem] = {}
    for number, raw in enumerate(written):
        path = f"requests[{number}]"
        item = _read_item(raw, path, version=version, base_url=base_url)
        if not item.id:
            raise _bad(f"{path}.id", "found an empty string, expected an id")
        if item.id in items:
            raise errors.BATCH_ID_REPEATED(f"{path}.id: found it again.", quoted(item.id)[1:-1])
        items[item.id] = item
    _check_dependencies(items)
    return list(items.values())


def _read_item(raw: msgspec.Raw, path: str, *, version: str, base_url: str) -> BatchItem:
    try:
        item = _item_decoder.decode(raw)
    except (ValueError, RecursionError) as error:
        raise _bad(path, str(error)) from None
    headers, head_size = {}, len(item.url)
    for name, value in (item.headers or {}).items():
        head_size += len(name) + len(value)
        if not _FIELD_NAME.fullmatch(name):
            raise _bad(f"{path}.headers", f"{quoted(name)} is no name of a header field")
        if not _FIELD_VALUE.fullmatch(value):
            raise _bad(f"{path}.headers.{name}", f"found {quoted(value)}, expected one line")
        headers[name.lower()] = value.strip()
    if head_size > HEADER_BYTES_MAX:  # as for a request that comes alone: 431
        expected = f"expected at most {HEADER_BYTES_MAX} in the url and the headers"
        raise _bad(path, f"found {head_size} characters, {expected}")
    if not item.method.isascii() or not item.method.isalpha():
        raise _bad(f"{path}.method", f"found {quoted(item.method)}, expected a method")
    return BatchItem(
        id=str(item.id),
        method=item.method.upper(),
        target=_target(item.url, f"{path}.url", version=version, base_url=base_url),
        headers=headers,
        body=_body(bytes(item.body), headers.get("content-type", ""), f"{path}.body"),
        depends_on=tuple(
            dict.fromkeys(map(str, (*(item.depends_on or ()), *(item.depends_on_too or ()))))
        ),
    )


def _target(url: str, path: str, *, version: str, base_url: str) -> bytes:
    """Return path and query of a relative URL, of /v1.0/…, or of an absolute URL of this API."""
    if "://" in url.partition("?")[0]:
        if not url.lower().startswith(f"{base_url.lower()}/"):
            raise _bad(path, f"found {quoted(url)}, expected a relative URL or {base_url}/…")
        url = url[len(base_url) :]
    if not url.strip("/") or "#" in url:
        raise _bad(path, f"found {quoted(url)}, expected a relative URL such as /me/messages")
    url = "/" + url.lstrip("/")
    if not _VERSION.match(url):
        url = f"/{version}{url}"
    try:
        return quote(url, safe=_PRINTABLE).encode("ascii")
    except UnicodeEncodeError:  # a lone surrogate
        raise _bad(path, f"found {quoted(url)}, expected Unicode text") from None


def _body(written: bytes, content_type: str, path: str) -> bytes:
    """Return the octets of an item's body: JSON as it is, a string in base64 decoded.

    MIME (text/plain) is already base64. A client may send it as it is or encode it again.
    """
    if written in (b"", b"null"):
        return b""
    kind = content_type.partition(";")[0].strip().lower()
    is_json = kind in ("", "application/json")
    if written[:1] != b'"' or is_json:
        if not is_json or written[:1] != b"{":
            expected = "an object" if is_json else f"base64 in a string for {quoted(kind)}"
            raise _bad(path, f"expected {expected}")
        return written
    text = msgspec.json.decode(written, type=str)
    try:
        plain = _WHITE_SPACE.sub("", text).replace("-", "+").replace("_", "/")
        padding = "=" * (-len(plain) % 4)
        octets = base64.b64decode(plain + padding, validate=True)
    except (binascii.Error, ValueError):
        if kind == "text/plain":  # the error of MIME says where it is
            return text.encode(errors="replace")
        raise _bad(path, f"found {quoted(text)}, expected base64") from None
    if kind == "text/plain" and not _BASE64_TEXT.fullmatch(octets):
        return (plain + padding).encode()
    return octets


def _check_dependencies(items: Mapping[str, BatchItem]) -> None:
    """Raise ApiError 400 for an unknown dependency or a cycle."""
    for number, item in enumerate(items.values()):
        for request_id in item.depends_on:
            if request_id not in items:
                path = f"requests[{number}].dependsOn"
                raise _bad(path, f"found {quoted(request_id)}, expected the id of another request")
    try:
        TopologicalSorter(
            {request_id: item.depends_on for request_id, item in items.items()}
        ).prepare()
    except CycleError as error:
        names = ", ".join(map(quoted, dict.fromkeys(error.args[1])))
        raise _bad("requests", f"{names} depend on each other in a cycle") from None


def _check_strictly(items: Sequence[BatchItem]) -> None:
    """Raise ApiError 400 for a batch that Graph refuses: its ids, dependencies, Content-Types."""
    earlier: set[str] = set()
    for part in items:
        request_id = quoted(part.id)[1:-1]
        if part.id.lower() in earlier:
            raise errors.BATCH_ID_REPEATED("Found it in another case.", request_id)
        if later := [name for name in part.depends_on if name.lower() not in earlier]:
            raise errors.BATCH_DEPENDENCY(f"{quoted(later[0])} is not before it.", request_id)
        if part.body and "content-type" not in part.headers:
            raise errors.BATCH_WITHOUT_TYPE("", quoted(part.id))
        earlier.add(part.id.lower())


def _fields(item: BatchItem, request: HttpRequest) -> Sequence[tuple[bytes, bytes]]:
    """Return the header fields of an item: those of the item, and some of the batch."""
    fields = {name: value for name, value in item.headers.items() if name not in _NOT_OF_AN_ITEM}
    for name in _INHERITED:
        if (value := request.headers.get(name)) is not None:
            fields.setdefault(name, value)
    if strict_profile.is_preferred(request):
        fields["prefer"] = f"{strict_profile.PREFERENCE},{fields.get('prefer', '')}"
    if "idempotency-key" not in fields and (key := read_key(request)):
        fields["idempotency-key"] = key_of_part(key, item.id)
    fields["content-length"] = str(len(item.body))
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in fields.items()]


def _bad(path: str, reason: str) -> ApiError:
    return bad_request(f"Invalid batch payload format. {path}: {reason}.")
