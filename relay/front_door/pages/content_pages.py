"""The content of a message over HTTP: /messages/{id}/html, text, headers, source, attachments/N.

The page of a message has the same values, by the template _content.html. Handlers of
relay/front_door/api decide who may see a content, and log access to contents of others. Contents
are read in two threads, so that a large or hostile message does not block the event loop, and
delays other pages only briefly.

Every response has a Content-Security-Policy that lets it run and load nothing, even if it is opened
outside of the sandboxed frame of the page. The HTML with remote images in a development relay is an
exception. A person requests it with a button of the page. Its URL contains a proof of that, so that
neither a link nor another site can make a browser load images. CSP Level 3 6.3.2 (sandbox); RFC
6266 (Content-Disposition).
"""

import asyncio
import contextlib
import hmac
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Literal, TypeVar, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from relay.base.message.address import own_mailbox
from relay.base.message.content import Content, blocks, octets_of, size_of
from relay.base.phrases import words_in
from relay.base.shares import NoPlaceError
from relay.base.turns import Turns
from relay.formats.body_checks import Checks, check_bodies
from relay.formats.read_mime import ReadParts, read_parts
from relay.formats.read_report import DeliveryReport, read_report
from relay.front_door.api.dependencies import ClientSettings, DevelopmentControls, Principal
from relay.front_door.api.handlers import Handlers
from relay.front_door.graph.serializer import MESSAGE_PROPERTIES
from relay.front_door.http.errors import ApiError, no_place, quoted, service_unavailable
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.responses import BLOCK_BYTES, StreamedResponse
from relay.front_door.pages import sanitize
from relay.front_door.pages.content import (
    ATTACHMENTS_MAX,
    HEADER_OCTETS_MAX,
    TEXT_CHARACTERS_MAX,
    MessageContent,
    content_disposition,
    decoded,
    download_type,
    file_name,
    html_document,
    image_type,
    previews,
    read_content,
    shown_text,
)
from relay.front_door.pages.logins import Visitor, is_csrf_token
from relay.store.journeys.document import Journey
from relay.store.mailbox.errors import StoreError
from relay.store.mailbox.stored_message import StoredMessage

View = Literal["html", "text", "headers", "source", "attachments", "links", "checks", "journey"]
VIEWS: tuple[View, ...] = get_args(View)
CONTENT_VIEWS = ("html", "text", "headers", "source", "properties")  # that have an address
SOURCE_OCTETS_MAX = 1024 * 1024
_SOURCE_IN_PAGE_OCTETS_MAX = 64 * 1024
_THREADS = 2
REMOTE_IMAGES_PARAMETER = "images"

CONTENT_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'; sandbox"
    ),
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-dns-prefetch-control": "off",
}
# A sandboxed document has an opaque origin: its images are data: URLs, never requests.
HTML_HEADERS = CONTENT_HEADERS | {
    "content-security-policy": (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; "
        "base-uri 'none'; frame-ancestors 'self'; sandbox"
    ),
    "content-type": "text/html; charset=utf-8",
}
# With remote images. A request for one has neither a Referer nor the cookies of the relay.
REMOTE_IMAGES_HEADERS = HTML_HEADERS | {
    "content-security-policy": HTML_HEADERS["content-security-policy"].replace(
        "img-src data:", "img-src data: http: https:"
    ),
}
TEXT_HEADERS = CONTENT_HEADERS | {"content-type": "text/plain; charset=utf-8"}

_Result = TypeVar("_Result")


class ContentPanel(Struct, frozen=True):
    """The content in the page of a message, for _content.html."""

    view: View  # the part of the content that is shown
    refusal: str = ""  # why the message is not shown
    message: MessageContent | None = None  # None: see `refusal`
    document: sanitize.SafeDocument | None = None  # in the view html
    images_proof: str = ""  # the query value that requests remote images; "": none
    has_images: bool = False  # whether the document loads remote images
    previews: frozenset[int] = frozenset()  # numbers of shown attachments, in the view attachments
    report: DeliveryReport | None = None  # if the message is a report, its contents
    source: str = ""  # in the view source: the beginning of it
    source_left: int = 0  # octets that are not shown
    checks: Checks | None = None  # in the view checks
    shows_codes: bool = True  # a service shows codes to the sender and the recipients only


# What a client may send; "id" and the rest are the store's.
_PROPERTIES_FOR_OTHERS = words_in(
    "subject importance body from sender toRecipients ccRecipients replyTo categories "
    "internetMessageHeaders isDeliveryReceiptRequested isReadReceiptRequested"
)
_PROPERTIES = (*_PROPERTIES_FOR_OTHERS, "bccRecipients")


class ContentPages:
    """Serves contents. One object for the whole application, because it limits the work in
    progress.
    """

    def __init__(
        self, handlers: Handlers, *, development: DevelopmentControls | None = None
    ) -> None:
        self._handlers = handlers
        self._development = development
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="content")
        self._turns = Turns("page contents", _THREADS)

    async def response(self, request: HttpRequest, visitor: Visitor, key: str) -> Response:
        """GET /messages/{key}/...: one view of a content, or a part of it."""
        view = request.segments[2]
        journey = await self._handlers.message(key, visitor.principal)
        if view == "properties":
            return await self._properties(journey, visitor.principal)
        content = await self._handlers.content(journey, visitor.principal, view=view)
        answer: Callable[[ReadParts], Response]
        match request.segments[2:]:
            case ("source",):
                return _source(request, journey, content)
            case ("text",):
                answer = _text
            case ("headers",):
                answer = _header
            case (_, number):
                answer = partial(_attachment, number, shows=("show", "1") in request.query)
            case _:
                remote_url = self._remote_url(request, visitor, journey)
                is_dark = ("scheme", "dark") in request.query
                answer = partial(html_response, remote_url=remote_url, is_dark=is_dark)
        return await self.in_thread(
            visitor.principal, lambda: answer(read_parts(octets_of(content)))
        )

    async def panel(
        self, request: HttpRequest, visitor: Visitor, journey: Journey, *, default: View = "html"
    ) -> ContentPanel:
        """Return the content for the page of a message, in the view that ?show= names, else in
        `default`. In place of the HTML it has the text of a message without HTML.
        """
        asked = dict(request.query).get("show", "")
        view: View = next((name for name in VIEWS if name == asked), default)
        remote_url = self._remote_url(request, visitor, journey)
        images_proof = self._images_proof(visitor, journey)
        people = (journey.sender, *(recipient.address for recipient in journey.recipients))
        is_own = own_mailbox(visitor.principal.name) in map(own_mailbox, people)
        codes = is_own or self._development is not None
        panel = ContentPanel(
            view, images_proof=images_proof, has_images=remote_url is not None, shows_codes=codes
        )
        try:
            content = await self._handlers.content(journey, visitor.principal, view=view)
            is_chosen = view == asked
            return await self.in_thread(
                visitor.principal,
                lambda: _filled(panel, content, is_chosen=is_chosen, remote_url=remote_url),
            )
        except (ApiError, StoreError) as error:
            return replace(panel, refusal=str(error))

    def _images_proof(self, visitor: Visitor, journey: Journey) -> str:
        """Return the value of `images` with which a page of this visitor requests remote images."""
        if self._development is None or not visitor.csrf:
            return ""
        asked = f"remote images of {journey.key}"
        return hmac.new(visitor.csrf.encode(), asked.encode(), "sha256").hexdigest()

    def _remote_url(
        self, request: HttpRequest, visitor: Visitor, journey: Journey
    ) -> sanitize.RemoteImageUrl | None:
        """Return the function that gives a remote image's URL; None unless a person has requested
        images.
        """
        token = dict(request.query).get(REMOTE_IMAGES_PARAMETER, "")
        is_asked = is_csrf_token(token, self._images_proof(visitor, journey))
        if self._development is None or not is_asked:
            return None
        return partial(
            sanitize.remote_image_url, own=_own_places(request, self._development.clients)
        )

    async def _properties(self, journey: Journey, principal: Principal) -> Response:
        """Return the draft's properties as Graph's JSON; only its owner sees Bcc."""
        mailbox, message = await self._handlers.sent_message(journey, principal, view="properties")
        select = _PROPERTIES if mailbox == principal.name else _PROPERTIES_FOR_OTHERS
        properties = await self.in_thread(principal, lambda: _properties_json(message, select))
        return Response(properties, headers=TEXT_HEADERS)

    async def in_thread(self, principal: Principal, work: Callable[[], _Result]) -> _Result:
        """Run blocking work in one of the threads, which visitors use in turn. Raises ApiError
        503.
        """
        try:
            async with self._turns.turn(principal.name):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except NoPlaceError as error:
            raise no_place(error) from None
        except OSError as error:
            message = f"The content cannot be read: {error.strerror or error}."
            raise service_unavailable(message, retry_after_s=5) from error


def _own_places(request: HttpRequest, clients: ClientSettings) -> sanitize.OwnPlaces:
    """Return where the relay listens, including the address that this browser used."""
    ports = {
        clients.http_port,
        clients.https_port,
        clients.smtp_port,
        clients.submission_port,
        clients.submissions_port,
    }
    names = {name.lower().rstrip(".") for name in clients.host_names}
    with contextlib.suppress(ValueError):  # it cannot be in a URL then
        asked = urlsplit(request.base_url("", "localhost").lower())
        names.add((asked.hostname or "").rstrip("."))
        ports.add(asked.port or sanitize.DEFAULT_PORTS[asked.scheme])
    return sanitize.OwnPlaces(frozenset(ports), frozenset(names))


def _filled(
    panel: ContentPanel,
    content: Content,
    *,
    is_chosen: bool,
    remote_url: sanitize.RemoteImageUrl | None,
) -> ContentPanel:
    message = read_content(octets_of(content))
    view = panel.view
    if view == "html" and not message.has_html and not is_chosen:
        view = "text"
    is_report = b"multipart/report" in message.parts.header.lower()
    report = read_report(octets_of(content)) if is_report else None
    panel = replace(panel, view=view, message=message, report=report)
    if view == "html" and message.has_html:
        document = html_document(message.parts, remote_url=remote_url)
        return replace(panel, document=document)
    if view == "checks":
        bodies = message.parts.bodies
        return replace(panel, checks=check_bodies(bodies.html, bodies.text))
    if view == "attachments":
        return replace(panel, previews=previews(message.parts))
    if view == "source":
        octets = b"".join(_first(blocks(content), _SOURCE_IN_PAGE_OCTETS_MAX))
        left = size_of(content) - len(octets)
        return replace(panel, source=octets.decode("utf-8", "replace"), source_left=left)
    return panel


def html_response(
    parts: ReadParts, *, remote_url: sanitize.RemoteImageUrl | None = None, is_dark: bool = False
) -> Response:
    """Return the HTML body as html_document() makes it. Blocks; raises ApiError 404, OSError."""
    document = html_document(parts, remote_url=remote_url, is_dark=is_dark).html
    if not document:
        raise ApiError(404, "ErrorItemNotFound", "This message has no HTML.")
    headers = HTML_HEADERS if remote_url is None else REMOTE_IMAGES_HEADERS
    return Response(document.encode(), headers=headers)


def _text(parts: ReadParts) -> Response:
    return Response(shown_text(parts).encode("utf-8", "replace"), headers=TEXT_HEADERS)


def _header(parts: ReadParts) -> Response:
    return Response(parts.header[:HEADER_OCTETS_MAX], headers=TEXT_HEADERS)


def _attachment(number: str, parts: ReadParts, *, shows: bool) -> Response:
    """Return an attachment as a download; with `shows`, an image as an image."""
    attachments = parts.attachments
    index = int(number) if number.isascii() and number.isdecimal() and len(number) < 6 else 0
    if not 1 <= index <= len(attachments):
        expected = f"the message has {len(attachments)}" if attachments else "the message has none"
        raise ApiError(404, "ErrorItemNotFound", f"Found attachment {quoted(number)}; {expected}.")
    attachment = attachments[index - 1]
    image = image_type(attachment) if shows else ""
    disposition = content_disposition(file_name(index, attachment), is_shown=bool(image))
    headers = CONTENT_HEADERS | {
        "content-type": image or download_type(attachment),
        "content-disposition": disposition,
    }
    return StreamedResponse(decoded(attachment), headers=headers)


def _properties_json(message: StoredMessage, select: Collection[str]) -> bytes:
    known = [name for name in select if name in MESSAGE_PROPERTIES]
    properties = {name: MESSAGE_PROPERTIES[name](message) for name in known}
    fields = properties["internetMessageHeaders"]  # for MIME, all header fields
    properties["internetMessageHeaders"] = [
        header for header in fields if header["name"][:2].lower() == "x-"
    ]
    body = properties["body"]["content"]
    if len(body) > TEXT_CHARACTERS_MAX:
        cut = f"{body[:TEXT_CHARACTERS_MAX]}… {len(body) - TEXT_CHARACTERS_MAX:,} characters more"
        properties["body"] = properties["body"] | {"content": cut}
    properties["attachments"] = [
        {
            "name": attachment.name,
            "contentType": attachment.content_type,
            "size": attachment.size,
            "isInline": attachment.inline,
        }
        for attachment in message.attachments[:ATTACHMENTS_MAX]
    ]
    non_empty = {name: value for name, value in properties.items() if value not in (None, "", [])}
    return msgspec.json.format(msgspec.json.encode(non_empty), indent=2)


def _source(request: HttpRequest, journey: Journey, content: Content) -> Response:
    """Return the beginning of the source as text, or all of it as a download."""
    size = size_of(content)
    if ("download", "1") in request.query:
        headers = CONTENT_HEADERS | {
            "content-type": "message/rfc822",
            "content-disposition": content_disposition(f"{journey.key}.eml"),
        }
        return StreamedResponse(blocks(content, BLOCK_BYTES), size_bytes=size, headers=headers)
    rest = size - SOURCE_OCTETS_MAX
    end = f"\r\n[{rest:,} octets more: download the source]\r\n".encode() if rest > 0 else b""
    octets = chain(_first(blocks(content, BLOCK_BYTES), SOURCE_OCTETS_MAX), [end] if end else [])
    return StreamedResponse(octets, headers=TEXT_HEADERS)


def _first(octets: Iterable[bytes], count: int) -> Iterator[bytes]:
    for block in octets:
        yield block[:count]
        count -= len(block)
        if count <= 0:
            break
