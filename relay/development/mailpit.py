"""Mailpit's API, the part that test programs use: /api/v1/..., /view/..., /search, /livez.

Only a development relay has it, on the port of the pages. docs/coming-from.md says what differs.
Its messages are those that were accepted, each once, without reports. Read is the mark of the
copies in mailboxes, as on the pages. When it is set here, no receipt is sent. Success is exactly
200. An error is one line of text; `send` answers with JSON. Where requests need the token, it is
the password of HTTP Basic, with any user name. A browser gets what the pages show of a mail: the
document of the sanitiser, text and raster images, with their Content-Security-Policy. The policy
alone is not enough: it does not keep a frame or an XML document from opening connections.

The index answers searches. All terms of a search must match. A term is a part of a text; `-` or `!`
before it excludes what it finds. As in Mailpit, a text or tag without a value is ignored. Another
value that is empty or cannot be read is an error: a search that leaves it out finds more, and
DELETE removes that.
"""

import asyncio
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, tzinfo
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlencode

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response
from starlette.types import ASGIApp

from relay import __version__
from relay.base.bounded_dict import BoundedDict
from relay.base.clock import time_us_of
from relay.base.message.content import Octets, octets_in_blocks, octets_of
from relay.base.message.lifecycle import RecipientState
from relay.base.message.time_zones import time_zone
from relay.base.socket_address import Address
from relay.development import mailpit_message
from relay.development.mailpit_events import FAILURES, VERSION, Listing, MailpitEvents
from relay.development.mailpit_message import ListedMail, OutgoingMail, outgoing_mail, read_object
from relay.formats.read_mime import read_parts
from relay.front_door.api import release
from relay.front_door.api.dependencies import OPERATOR, ApiDependencies
from relay.front_door.api.explain import TURN_S
from relay.front_door.api.handlers import Handlers
from relay.front_door.api.tags import set_tags, tags_of
from relay.front_door.http.errors import ApiError, bad_request, quoted, service_unavailable
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import HttpRequest, RequestLimits
from relay.front_door.http.path_router import PathRouter
from relay.front_door.http.responses import BLOCK_BYTES, StreamedResponse, json_response
from relay.front_door.pages.content import content_disposition, decoded, file_name
from relay.front_door.pages.content_pages import CONTENT_HEADERS, TEXT_HEADERS, html_response
from relay.front_door.pages.sanitize import RASTER_TYPES
from relay.store.journeys.message_list import (
    TEXT_FIELDS,
    MessageSummary,
    SearchedNumber,
    SearchedTag,
    SearchTerm,
    TextSearch,
)
from relay.store.spool.engine import SpoolEngine

BODY_BYTES_MAX = 5_000_000  # of each request except `send`
_LIMIT, _LIMIT_MAX, _DIGITS_MAX = 50, 1000, 15
_LATEST = "latest"  # in place of an id
_KEPT_MAX, _KEPT_BYTES_MAX = 5000, 20_000  # rows of lists in memory, and the JSON of one
_AT_ONCE = 8  # removals at the same time, which share commits
_WAITED_MAX = 20  # messages still to be delivered that are awaited
_WAIT = {"timeout": "2"}  # seconds
_BEFORE_COPIES = (RecipientState.QUEUED, RecipientState.DEFERRED, RecipientState.HELD)
# What Relay has instead of a function of Mailpit, by a segment of the path.
_INSTEAD = {
    "link-check": "its checks at GET /relay/v1/messages/{id}/checks",
    "sa-check": "no spam score",
    "thumb": "no thumbnails; the part is at the path without /thumb",
    "chaos": "scenarios for what hosts reply; docs/internet.md says how",
}
T = TypeVar("T")


class _Body(Struct, frozen=True):
    ids: list[str] = []
    read: bool = False
    search: str = ""
    tags: list[str] = []
    to: list[str] = []
    name: str = ""


class MailpitApi:
    """The handler of all routes.

    `check_login` raises ApiError for a request without the token. It is None if no token is needed.
    `send` submits a message and returns its queue id; it blocks and raises ApiError.
    """

    def __init__(
        self,
        means: ApiDependencies,
        spool: SpoolEngine,
        *,
        check_login: Callable[[HttpRequest], None] | None,
        send: Callable[[OutgoingMail], str],
    ) -> None:
        assert spool.development is not None  # its engine has it
        self._means, self._handlers = means, Handlers(means)
        self._spool, self._ids = spool, spool.development
        self._check_login, self._send = check_login, send
        self._kept = BoundedDict[str, dict[str, Any]](_KEPT_MAX)  # rows of lists
        self._delivered = frozenset[str]()  # messages that have all their copies
        self.events = MailpitEvents(
            self._listing, self._listed, changes=means.changes, clock=means.clock
        )

    def application(self, *, message_bytes_max: int) -> ASGIApp:
        """Return the ASGI application. A message to send may have `message_bytes_max` octets."""
        small, large = (
            Gateway(self._handle, clock=self._means.clock, limits=RequestLimits(size, 2 * size))
            for size in (BODY_BYTES_MAX, message_bytes_max)
        )
        return PathRouter({}, by_rest={"v1/send": large}, otherwise=small)

    async def _handle(self, request: HttpRequest) -> Response:
        try:
            if request.segments == ("livez",):
                return Response("ok\n", media_type="text/plain")
            self._check(request)
            request.account = OPERATOR.name
            await self.events.look(at_once=True)
            return await self._respond(request, dict(request.query))
        except FAILURES as failure:
            error = service_unavailable(f"{failure}.", retry_after_s=5)
        except ApiError as answer:
            error = answer
        status, headers, text = error.status, error.headers, error.message
        if request.segments == ("api", "v1", "send"):
            return json_response({"Error": text}, status=status, headers=headers)
        return Response(text, status, headers, media_type="text/plain")

    def _check(self, request: HttpRequest) -> None:
        """Raise ApiError for a request without a necessary token, and for links of other sites."""
        if request.segments[0] == "api" and "site" in request.headers.get("sec-fetch-site", ""):
            raise ApiError(403, "", "Pages of other sites may not use this relay.")
        if self._check_login is not None:
            self._check_login(request)
            request.rights = self._check_login

    async def _respond(self, request: HttpRequest, query: Mapping[str, str]) -> Response:
        search, zone = query.get("query", ""), query.get("tz", "")
        match (request.method, *request.segments):
            case ("GET", "api", "v1", "messages"):
                return await self._list(await self._listing(), query)
            case ("PUT", "api", "v1", "messages"):
                return await self._mark(await request.body(), zone)
            case ("DELETE", "api", "v1", "messages"):
                return await self._delete(await request.body(), request.media_type)
            case ("GET", "api", "v1", "search"):
                return await self._list(await self._listing(search, zone), query)
            case ("DELETE", "api", "v1", "search"):
                return await self._remove((await self._listing(search, zone)).matching)
            case ("POST", "api", "v1", "send"):
                mail = await asyncio.to_thread(outgoing_mail, await request.body())
                return json_response({"ID": await asyncio.to_thread(self._send, mail)})
            case ("GET", "api", "v1", "info"):
                return await self._info()
            case ("GET", "api", "events"):
                await self.events.serve(request)
            case ("GET", "api", "v1", "tags"):
                return json_response(list(await self._tags()))
            case ("PUT", "api", "v1", "tags"):
                body = await asyncio.to_thread(read_object, await request.body(), _Body)
                return await self._set_tags(dict.fromkeys(body.ids, body.tags))
            case ("PUT", "api", "v1", "tags", tag):
                body = await asyncio.to_thread(read_object, await request.body(), _Body)
                if not body.name.strip():
                    raise bad_request("Name: found none, expected the new name of the tag.")
                return await self._rename(tag, [body.name])
            case ("DELETE", "api", "v1", "tags", tag):
                return await self._rename(tag, [])
            case ("GET", "api", "v1", "webui"):
                return self._webui()
            case ("POST", "api", "v1", "message", key, "release"):
                return await self._release(request, await self._find(key, search, zone))
            case ("GET", "api", "v1", "message", key, *rest):
                return await self._message(request, await self._find(key, search, zone), rest)
            case ("GET", "view", name) if name.endswith((".html", ".txt")):
                key, _, kind = name.rpartition(".")
                return await self._view(await self._find(key, search, zone), kind)
            case ("GET", "view", key):
                is_latest = key == _LATEST
                names = await self._latest(search, zone) if is_latest else ()
                rows = await self._rows(names) if is_latest else [await self._find(key, "", zone)]
                place = "".join(f"messages/{row.name}" for row in rows)
                return Response(status_code=302, headers={"location": f"../{place}"})
            case ("GET", "search"):
                words = urlencode({"q": query.get("q", "")})
                return Response(status_code=302, headers={"location": f"./?{words}"})
        raise _not_found(request.segments)

    # -- lists

    async def _listing(self, search: str | None = None, zone: str = "") -> Listing:
        """Return all messages, and those that match a search; None matches all.

        Raises ApiError 400, 503.
        """
        asked, marks = TextSearch(), set[bool]()
        if search is not None:
            asked, marks = parse_mailpit_search(search, zone)
        every = await self._ids.accepted_ids()
        is_all = asked == TextSearch()
        matching = sorted(every, reverse=True) if is_all else await self._search(asked)
        unread = await self._unread(every)
        if marks:
            matching = [name for name in matching if marks == {name not in unread}]
        return Listing(every, matching, unread)

    async def _unread(self, every: frozenset[str]) -> Collection[str]:
        """Return the messages of which a copy is unread, or no copy exists yet."""
        places = self._means.sources.copies.places
        rows = await self._rows(list(every - self._delivered))
        coming = [row for row in rows if row.state in _BEFORE_COPIES]
        self._delivered = every.difference(row.name for row in coming)
        unread = [row.name for row in coming if not places(row.name, row.recipients)]
        return every.intersection([*unread, *(await self._search(TextSearch(is_unread=True)))])

    async def _search(self, asked: TextSearch) -> Sequence[str]:
        """Return what the index finds, newest first. Raises ApiError 503."""
        index = self._means.journeys.places.index
        assert index is not None  # see the module
        answer = await index.search(asked)
        if not answer.is_complete:
            raise service_unavailable("Messages are being read; try again.", retry_after_s=1)
        return answer.queue_ids

    async def _rows(self, names: Sequence[str]) -> Sequence[MessageSummary]:
        names = list(dict.fromkeys(names))
        return await self._spool.summaries(names, account=None) if names else ()

    async def _list(self, listing: Listing, query: Mapping[str, str]) -> Response:
        start = _number(query.get("start", ""), 0)
        limit = min(_number(query.get("limit", ""), _LIMIT) or _LIMIT_MAX, _LIMIT_MAX)
        ids = listing.matching[start : start + limit]
        messages = await self._listed(ids, listing.unread)
        return json_response(
            {
                "total": len(listing.every),
                "unread": len(listing.unread),
                "count": len(messages),
                "messages_count": len(listing.matching),
                "start": start,
                "tags": list(await self._tags()),
                "messages_unread": sum(name in listing.unread for name in listing.matching),
                "messages": messages,
            }
        )

    async def _listed(self, ids: Sequence[str], unread: Collection[str]) -> list[dict[str, Any]]:
        summaries = {row.name: await self._summary(row) for row in await self._rows(ids)}
        tags = await tags_of(self._means, list(summaries))
        return [
            {**summaries[name], "Read": name not in unread, "Tags": tags.get(name, [])}
            for name in ids
            if name in summaries
        ]

    async def _summary(self, row: MessageSummary) -> Mapping[str, Any]:
        """Return a row of a list, without Read."""
        if row.name in self._kept:
            return self._kept[row.name]
        content = await self._means.sources.of_row(row)  # None: it does not exist any more
        reader = partial(mailpit_message.summary_of, await self._mail(row))
        summary = await asyncio.to_thread(reader, octets_of(content or b""))
        if len(msgspec.json.encode(summary)) <= _KEPT_BYTES_MAX:
            self._kept[row.name] = summary
        return summary

    # -- one message

    async def _find(self, key: str, search: str, zone: str) -> MessageSummary:
        """Return the message with a queue id, or the latest. Raises ApiError 404."""
        ids = await self._latest(search, zone) if key == _LATEST else [key]
        if not (rows := await self._rows(ids)):
            raise ApiError(404, "", f"There is no message {quoted(key)}.")
        return rows[0]

    async def _latest(self, search: str, zone: str) -> Sequence[str]:
        """Return the id of the newest message that matches; "" matches all. Raises ApiError 400."""
        if search:
            return (await self._listing(search, zone)).matching[:1]
        return sorted(await self._ids.accepted_ids())[-1:]

    async def _mail(self, row: MessageSummary) -> ListedMail:
        journey = await self._means.journeys.journey(row.name, account=None)
        recipients = (await self._ids.addresses([row.name])).get(row.name, ())
        return ListedMail(row, journey.known_client.account if journey else "", recipients)

    async def _octets(self, row: MessageSummary) -> Octets:
        content = await self._means.sources.of_row(row)
        if content is None:
            raise ApiError(404, "", f"The content of the message {row.name} is gone.")
        return octets_of(content)

    async def _read(self, row: MessageSummary, reader: Callable[[Octets], T]) -> T:
        return await asyncio.to_thread(reader, await self._octets(row))

    async def _message(
        self, request: HttpRequest, row: MessageSummary, rest: Sequence[str]
    ) -> Response:
        match rest:
            case []:
                reader = partial(mailpit_message.message_of, await self._mail(row))
                summary = await self._read(row, reader)
                summary["Tags"] = (await tags_of(self._means, [row.name])).get(row.name, [])
                await self._set_read([row.name], is_read=True)
                return json_response(summary)
            case ["headers"]:
                return json_response(await self._read(row, mailpit_message.header_fields))
            case ["html-check"]:
                async with self._handlers.checks.turn(OPERATOR.name, wait_s=TURN_S):
                    return json_response(await self._read(row, mailpit_message.html_check_of))
            case ["raw"]:
                octets, headers = await self._octets(row), TEXT_HEADERS
                if ("dl", "1") in request.query:
                    disposition = content_disposition(f"{row.name}.eml")
                    headers = headers | {"content-disposition": disposition}
                blocks = octets_in_blocks([octets], BLOCK_BYTES)
                return StreamedResponse(blocks, size_bytes=octets.size, headers=headers)
            case ["part", part_id]:
                part = await self._read(row, partial(mailpit_message.part_of, part_id))
                if part is None:
                    raise ApiError(404, "", f"The message has no part {quoted(part_id)}.")
                kind, name = part.facts.content_type, file_name(0, part)
                is_shown = kind in RASTER_TYPES
                return StreamedResponse(
                    decoded(part),
                    headers=CONTENT_HEADERS
                    | {
                        "content-type": kind,
                        "content-disposition": content_disposition(name, is_shown=is_shown),
                    },
                )
        raise _not_found(request.segments)

    async def _view(self, row: MessageSummary, kind: str) -> Response:
        parts = await self._read(row, read_parts)
        if kind == "html":
            return await asyncio.to_thread(html_response, parts)
        text = parts.bodies.text or ""
        return Response(text.encode("utf-8", "replace"), headers=TEXT_HEADERS)

    # -- changes

    async def _mark(self, octets: bytes, zone: str) -> Response:
        body = await asyncio.to_thread(read_object, octets, _Body)
        if body.ids and body.search:
            raise bad_request("IDs and Search: found both, expected one of them.")
        if not (ids := body.ids):
            listing = await self._listing(body.search or None, zone)
            ids = [name for name in listing.matching if not body.read or name in listing.unread]
        await self._set_read(ids, is_read=body.read)
        return _ok()

    async def _set_read(self, names: Sequence[str], *, is_read: bool) -> None:
        rows = await self._arrived(names)
        copies = self._means.sources.copies
        await copies.mark(rows, is_read=is_read, mailbox=None, sends_receipts=False)
        self._means.changes.notify()

    async def _tags(self) -> Mapping[str, int]:
        index = self._means.journeys.places.index
        return await index.tags() if index is not None else {}

    async def _set_tags(self, tags: Mapping[str, Sequence[str]]) -> Response:
        await self._arrived(list(tags))
        joined = {name: ",".join(values) for name, values in tags.items()}
        await set_tags(self._means, joined, OPERATOR)
        self.events.tell("update", [{"ID": name, "Tags": tags[name]} for name in tags])
        return _ok()

    async def _rename(self, tag: str, to: Sequence[str]) -> Response:
        """Replace a tag of all messages that have it. Raises ApiError 404, 400."""
        if not (names := await self._search(TextSearch(tags=(SearchedTag(tag),)))):
            raise ApiError(404, "", f"There is no tag {quoted(tag)}.")
        old = await tags_of(self._means, names)
        return await self._set_tags(
            {
                name: [*(label for label in labels if label.casefold() != tag.casefold()), *to]
                for name, labels in old.items()
            }
        )

    async def _arrived(self, names: Sequence[str]) -> Sequence[MessageSummary]:
        """Return the rows of messages; wait a moment for messages still to be delivered."""
        rows = await self._rows(names)
        coming = [row.name for row in rows if row.state == RecipientState.QUEUED][:_WAITED_MAX]
        waits = [self._handlers.wait_for_message(row, _WAIT, OPERATOR) for row in coming]
        await asyncio.gather(*waits, return_exceptions=True)
        return await self._rows(names) if coming else rows

    async def _delete(self, octets: bytes, media_type: str) -> Response:
        if ids := await asyncio.to_thread(_ids_of, octets, media_type):
            return await self._remove(ids)
        assert self._means.development is not None  # see the module
        await self._means.development.reset()
        return _ok()

    async def _remove(self, names: Sequence[str]) -> Response:
        """Remove messages that exist. Raises ApiError 409 for a message in delivery."""
        names = [row.name for row in await self._arrived(names)]
        for at in range(0, len(names), _AT_ONCE):
            await asyncio.gather(*map(self._remove_one, names[at : at + _AT_ONCE]))
        return _ok()

    async def _remove_one(self, name: str) -> None:
        try:
            await self._handlers.remove_message(name, OPERATOR)
        except ApiError as error:
            if error.status != 404:  # another request has removed it
                raise

    async def _release(self, request: HttpRequest, row: MessageSummary) -> Response:
        body = await asyncio.to_thread(read_object, await request.body(), _Body)
        [row] = await self._arrived([row.name])
        journey = await self._handlers.message(row.name, OPERATOR)
        to = release.parse_addresses(body.to)
        await self._handlers.release_copy(journey, to, OPERATOR, request=request)
        return _ok()

    def _webui(self) -> Response:
        assert self._means.development is not None  # see the module
        host = self._means.development.release_to
        at = Address(host.host, host.port) if host is not None else ""
        texts = ("ReturnPath", "AllowedRecipients", "BlockedRecipients", "RecipientAllowlist")
        relaying = {"Enabled": host is not None, "SMTPServer": str(at), "PreserveMessageIDs": True}
        flags = ("SpamAssassin", "ChaosEnabled", "DuplicatesIgnored", "HideDeleteAllButton")
        return json_response(
            {
                "Label": "",
                "MessageRelay": relaying | dict.fromkeys((*texts, "OverrideFrom"), ""),
                **dict.fromkeys(flags, False),
            }
        )

    async def _info(self) -> Response:
        listing, samples = await self._listing(), self._means.samples
        unknown = ("Memory", "MessagesDeleted", "SMTPAcceptedSize", "SMTPRejected", "SMTPIgnored")
        return json_response(
            {
                **dict.fromkeys(("Version", "LatestVersion"), VERSION),
                "RelayVersion": __version__,
                "Messages": len(listing.every),
                "Unread": len(listing.unread),
                "Tags": await self._tags(),
                "Database": "",
                "DatabaseSize": 0,
                "RuntimeStats": dict.fromkeys(unknown, 0)
                | {
                    "Uptime": int(samples.running_s),
                    "SMTPAccepted": int(samples.sample().counts["accepted"]),
                },
            }
        )


def _ids_of(octets: bytes, media_type: str) -> list[str]:
    """Return the ids that a body of DELETE names. Raises ApiError 400."""
    if media_type != "application/x-www-form-urlencoded" or octets.lstrip()[:1] == b"{":
        return read_object(octets, _Body).ids if octets.strip() else []
    ids = parse_qs(octets.decode("utf-8", "replace")).get("ids", [])
    if octets and not ids:
        raise bad_request("The body: found a form without ids; nothing is removed.")
    return ids


def _number(text: str, default: int) -> int:
    """Return a number, or the default for a text that is not a number."""
    return int(text) if text.isdecimal() and len(text) <= _DIGITS_MAX else default


def _not_found(segments: Sequence[str]) -> ApiError:
    known = [
        f"Relay has {_INSTEAD[segment]}." for segment in reversed(segments) if segment in _INSTEAD
    ]
    if segments[0] == "email" or (segments[0] == "api" and segments[1:2] != ("v1",)):  # of others
        known.append("Relay has Mailpit's API, such as GET /api/v1/messages: docs/coming-from.md.")
    return ApiError(404, "", *known[:1] or [f"There is no {quoted('/'.join(segments))} here."])


def _ok() -> Response:
    return Response("ok", media_type="text/plain")


CHARACTERS_MAX = 2000
TERMS_MAX = 100
_TERM = re.compile(r'(?>"[^"]*+(?:"|\Z)|[^\s"])++')
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([km]?)b?", re.ASCII)
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20}
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "from": ("sender",),
    "to": ("recipient",),
    "cc": ("cc",),
    "bcc": ("bcc",),
    "reply-to": ("reply_to",),
    "subject": ("subject",),
    "message-id": ("message_id",),
    "addressed": ("sender", "recipient", "cc", "bcc", "reply_to"),
}
_EXPECTED = {
    **dict.fromkeys(("after", "before"), "a day or a time of RFC 3339"),
    **dict.fromkeys(("larger", "smaller"), "a size such as 10k or 1.5M"),
    "is": "read, unread or tagged",
    "has": "attachment or inline",
}
_LEAP_SECOND = re.compile(r"(:[0-5][0-9]):60")  # RFC 3339 5.7; datetime has none
_MARKS = {"is:read": True, "is:unread": False}


def parse_mailpit_search(text: str, zone: str) -> tuple[TextSearch, set[bool]]:
    """Return the search for the index, and which marks messages must have: read (True) or unread.

    Times are in the zone with this IANA name. Raises ApiError 400.
    """
    if not (words := _TERM.findall(text[: CHARACTERS_MAX + 1])):
        raise bad_request("Error: no search query")
    if len(text) > CHARACTERS_MAX or len(words) > TERMS_MAX:
        most = f"expected at most {CHARACTERS_MAX:,} characters and {TERMS_MAX} terms"
        raise bad_request(f"query: found a search of {len(text):,} characters, {most}.")
    try:
        place: tzinfo = time_zone(zone)
    except ValueError:
        place = UTC
    terms: list[SearchTerm] = []
    numbers: list[SearchedNumber] = []
    tags: list[SearchedTag] = []
    marks: set[bool] = set()
    for word in words:
        plain = word.replace('"', "").strip().lower()
        is_excluded = len(plain) > 1 and plain[0] in "-!"
        term = plain[is_excluded:].strip()
        name, colon, value = term.partition(":")
        value = value.strip()
        fields = _FIELDS.get(name) if colon else None
        condition = name + colon + value
        if condition in _MARKS:
            marks.add(_MARKS[condition] != is_excluded)
        elif condition == "is:tagged" or name == "tag":
            if value:
                tags.append(SearchedTag(value if name == "tag" else "", is_excluded))
        elif number := _searched_number(name if colon else "", value, place):
            numbers.append(replace(number, is_excluded=is_excluded))
        elif content := (term if fields is None else value):
            terms.append(SearchTerm(content, fields or TEXT_FIELDS, is_excluded))
    return TextSearch(tuple(terms), tuple(numbers), tuple(tags)), marks


def _searched_number(name: str, value: str, zone: tzinfo) -> SearchedNumber | None:
    """Return the condition on a number, None for any other term.

    Raises ApiError 400 for a value that cannot be read.
    """
    with suppress(ValueError, OverflowError):
        match name, value:
            case "after", _:
                return SearchedNumber("accepted_us", _time_us(value, zone))
            case "before", _:
                return SearchedNumber("accepted_us", high=_time_us(value, zone))
            case "larger", _:
                return SearchedNumber("size_bytes", _size(value) + 1)
            case "smaller", _:
                return SearchedNumber("size_bytes", high=_size(value) - 1)
            case "has", "attachment" | "attachments":
                return SearchedNumber("attachments", 1)
            case "has", "inline" | "inlines":
                return SearchedNumber("inline", 1)
    if name in _EXPECTED:
        raise bad_request(f"query: {name}: found {quoted(value)}, expected {_EXPECTED[name]}.")
    return None


def _time_us(value: str, zone: tzinfo) -> int:
    text = _LEAP_SECOND.sub(r"\1:59", value.replace("/", "-"))
    return time_us_of(text.upper(), zone)


def _size(value: str) -> int:
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(value)
    return int(float(match[1]) * _BYTES[match[2]])
