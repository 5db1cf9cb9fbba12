"""A request to one mailbox: what its handler reads of it, and the responses that name its URLs.

A handler gets the path's parameters, the query options, the preferences of the Prefer header, the
body as JSON, and the condition of If-Match.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import tzinfo
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from relay.base.accounts.account import Account, Scope
from relay.base.message.content import LARGE_BYTES
from relay.base.message.properties import MessageProperties
from relay.base.message.rest_id import read_rest_id, rest_id
from relay.base.message.time_zones import time_zone
from relay.base.pressure import PressureReason
from relay.front_door.graph import errors, strict_profile
from relay.front_door.graph.dependencies import GraphDependencies
from relay.front_door.graph.entity_tags import change_keys, etag_field
from relay.front_door.graph.item_ids import folder_id_of, item_id_of
from relay.front_door.graph.json_values import read_json_object
from relay.front_door.graph.query_options import (
    QueryOptions,
    max_page_size,
    parse_options,
    preferences,
)
from relay.front_door.graph.responses import collection_response, fitting, minimal_response
from relay.front_door.graph.serializer import OF_BETA, message_json
from relay.front_door.http.errors import quoted, unsupported_media_type
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.responses import json_response
from relay.store.mailbox.errors import NoSuchItemError
from relay.store.mailbox.pending_submission import SubmissionKey
from relay.store.mailbox.query import PAGE_BYTES_MAX
from relay.store.mailbox.stored_message import Precondition, StoredMessage
from relay.submission.outbox.store import FileStore

IN_MEMORY_BODY_BYTES_MAX = LARGE_BYTES * 4 // 3  # larger MIME in base64 is written in blocks
SHORT_PAGE_BYTES_MAX = 1024 * 1024  # of a page while memory is short
_AROUND_BYTES = 1024  # octets of a page without its items and its nextLink
_Item = TypeVar("_Item")
_OF_MICROSOFT = re.compile(
    r"(?i)\.(?:microsoft|office|office365|chinacloudapi)\.\w+\.?(?::\d+)?$", re.ASCII
)


class GraphRequest(Struct, frozen=True):
    """One request to one mailbox.

    A handler adds to `applied` each preference that it applies; add_applied() sends all of them.
    """

    dependencies: GraphDependencies  # shared by all requests
    http: HttpRequest  # the request itself
    account: Account  # of the mailbox: its addresses may be used in From
    path_parameters: Mapping[str, str]  # the values of the route's {parameters}
    # the token's account, usually the same; limits and records of clients are by caller
    caller: Account
    applied: list[str] = []  # for Preference-Applied
    is_strict: bool = False  # refuse what Graph refuses (relay/front_door/graph/strict_profile.py)
    # under which a submission is recorded (relay/front_door/graph/admission.py)
    key: SubmissionKey | None = None
    # awaited before a streamed submission is complete (relay/front_door/graph/admission.py)
    before_submission: Callable[[], Awaitable[None]] | None = None

    def check_scopes(self, needed: Collection[Scope]) -> None:
        """Raise ApiError 403 unless the caller's tokens have one of the scopes."""
        if self.caller.scopes.isdisjoint(needed):
            scopes, expected = ", ".join(sorted(self.caller.scopes)), " or ".join(needed)
            detail = f"Found {scopes or 'no scopes'}, expected the permission {expected}."
            raise errors.ACCESS_DENIED(detail)

    def conversion_turn(self) -> AbstractAsyncContextManager[None]:
        """Wait until the caller may convert a message body. Raises NoPlaceError."""
        return self.dependencies.conversions.turn(self.caller.address)

    def answer_turn(self) -> AbstractAsyncContextManager[None]:
        """Wait until the caller may compose a reply or forward. Raises NoPlaceError."""
        return self.dependencies.answers.turn(self.caller.address)

    @property
    def store(self) -> FileStore:
        """The mail store."""
        return self.dependencies.store

    @property
    def mailbox(self) -> str:
        """The address of the mailbox."""
        return self.account.address

    @property
    def message_id(self) -> str:
        """The store's id of the message in the path. Raises ApiError 400 if it is malformed."""
        return read_rest_id(item_id_of(self.path_parameters["message"]))[0]

    @property
    def message_folder_id(self) -> str:
        """The folder in which the message must be, from the path or from the message's id; "" for
        any.

        Raises NoSuchItemError if path and id name different folders.
        """
        named = read_rest_id(self.path_parameters.get("message", ""))[1]
        if named and self.folder_id.lower() not in ("", named):
            raise NoSuchItemError("The message of this id is not in this folder.")
        return named or self.folder_id

    @property
    def shows_immutable_ids(self) -> bool:
        """Whether clients see the store's ids of messages; in the relaxed profile they
        always do.
        """
        return not self.is_strict or self.preferences.get("idtype", "").lower() == "immutableid"

    def shown_id(self, message_id: str, folder_id: str) -> str:
        """Return the id with which a message in a folder is shown."""
        return message_id if self.shows_immutable_ids else rest_id(message_id, folder_id)

    @property
    def attachment_id(self) -> str:
        """The id of the attachment in the path. Raises ApiError 400 if it is malformed."""
        return item_id_of(self.path_parameters["attachment"])

    async def find_message(self) -> StoredMessage:
        """Return the message that the path names, in the folder that the path names."""
        return await self.store.messages.get(
            self.mailbox, self.message_id, folder_id=self.message_folder_id
        )

    @property
    def condition(self) -> Precondition:
        """The folder of the message and the change keys in If-Match that the message must have.

        Raises ApiError 400 for a malformed If-Match.
        """
        if_match = self.http.headers.getlist("if-match")
        keys = change_keys(",".join(if_match) if if_match else "*")
        return Precondition(self.message_folder_id, keys)

    @property
    def folder_id(self) -> str:
        """The folder id in the path, or "". Raises ApiError 400 if it is malformed."""
        folder = self.path_parameters.get("folder")
        return folder_id_of(folder) if folder is not None else ""

    @property
    def is_beta(self) -> bool:
        """Whether the path begins with /beta."""
        return self.http.segments[0].lower() == "beta"

    def selectable(self, known: Collection[str], kind: str) -> Collection[str]:
        """Return the properties of a type that $select may name, of those that Relay has."""
        if self.is_beta or not self.is_strict or kind not in OF_BETA:
            return known
        return [name for name in known if name not in OF_BETA[kind]]

    def options(
        self,
        allowed: Collection[str] = (),
        known: Collection[str] = (),
        kind: str = "",
        *,
        page_size: int | None = None,
    ) -> QueryOptions:
        """Read the query options by parse_options(). Raises ApiError 400 for an option not in
        `allowed`.
        """
        known = self.selectable(known, kind)
        return parse_options(self.http.query, allowed, known, kind=kind, page_size=page_size)

    def collection_options(
        self,
        allowed: Collection[str],
        known: Collection[str],
        kind: str,
        *,
        query: Collection[tuple[str, str]] | None = None,
    ) -> QueryOptions:
        """Read the query options and the preferred page size of a list. Raises ApiError 400.

        `query` replaces the request's own query.
        """
        page_size = max_page_size(self.preferences)
        pairs = self.http.query if query is None else query
        known = self.selectable(known, kind)
        options = parse_options(pairs, allowed=allowed, known=known, kind=kind, page_size=page_size)
        if page_size is not None:
            self.applied.append(f"odata.maxpagesize={page_size}")
        return options

    @property
    def preferences(self) -> Mapping[str, str]:
        """The preferences in the Prefer header, by lower-case name (RFC 7240)."""
        lines = self.http.headers.getlist("prefer")
        return preferences(lines) if lines else {}

    @property
    def page_bytes(self) -> int:
        """The octets that a page of messages may have now; a single message may be larger."""
        most = PAGE_BYTES_MAX if self.http.page_bytes is None else self.http.page_bytes
        is_short = self.dependencies.pressure.state.refusing({PressureReason.MEMORY}) is not None
        return min(most, SHORT_PAGE_BYTES_MAX) if is_short else most

    async def time_zone(self) -> tzinfo:
        """The time zone from `Prefer: outlook.timezone`, else the mailbox's, which is UTC by
        default.

        Raises ApiError 400 for an unknown zone in the preference.
        """
        preferred = self.preferences.get("outlook.timezone")
        if not preferred:
            settings = await self.store.settings.read(self.mailbox)
            return time_zone(settings.time_zone)
        try:
            zone = time_zone(preferred)
        except ValueError as error:
            detail = f"outlook.timezone: {error}."
            raise errors.TIME_ZONE_UNKNOWN(detail, quoted(preferred)) from None
        self.applied.append(f'outlook.timezone="{preferred}"')
        return zone

    def named(self, properties: MessageProperties) -> MessageProperties:
        """Return a message; in the strict profile From and Sender have their accounts' names."""
        people = {"from_": properties.from_, "sender": properties.sender} if self.is_strict else {}
        for field, person in people.items():
            if person is not None:
                account = self.dependencies.accounts.by_address(person.address)
                named = replace(person, name=account.display_name if account else "")
                properties = replace(properties, **{field: named})
        return properties

    def prefers_minimal(self) -> bool:
        """Return whether the client wants no body in the response to a change (RFC 7240 4.2)."""
        preference = self.preferences.get("return", "").lower()
        if preference in ("minimal", "representation"):
            self.applied.append(f"return={preference}")
        return preference == "minimal"

    def not_modified(self, change_key: str) -> Response | None:
        """Return a 304 if the client has this version (If-None-Match), else None.

        Raises ApiError 400 for a malformed field.
        """
        field_lines = self.http.headers.getlist("if-none-match")
        if not field_lines:
            return None
        keys = change_keys(",".join(field_lines), field_name="If-None-Match")
        if keys and change_key not in keys:
            return None
        return Response(status_code=304, headers=etag_field(change_key))

    def add_applied(self, response: Response) -> Response:
        """Name the preferences that were applied in the response, and return it."""
        preferred = self.preferences
        if strict_profile.PREFERENCE in preferred:
            self.applied.append(strict_profile.PREFERENCE)
        if preferred.get("idtype", "").lower() == "immutableid":
            self.applied.append('IdType="ImmutableId"')
        if self.applied:
            response.headers["preference-applied"] = ", ".join(dict.fromkeys(self.applied))
        return response

    @property
    def patch_lock(self) -> asyncio.Lock:
        """The lock under which the changes of one mailbox read and write."""
        return self.dependencies.patch_locks.setdefault(self.mailbox, asyncio.Lock())

    @property
    def draft_lock(self) -> asyncio.Lock:
        """The lock for changing or sending a draft: what is sent has the recipients that were
        counted.
        """
        key = f"{self.mailbox}/{self.message_id}"
        return self.dependencies.patch_locks.setdefault(key, asyncio.Lock())

    def url(self) -> str:
        """Return the request's absolute URL without its query."""
        path = "/".join(quote(segment, safe="@$") for segment in self.http.segments[1:])
        return f"{self.root_url()}/{path}"

    def root_url(self) -> str:
        """Return the base URL of this API version as the client sees it."""
        return self.dependencies.root_url(self.http)

    @property
    def pages_url(self) -> str:
        """The base URL of the pages as the client sees it, "" if there are none.

        If the client used a host name of Microsoft, a browser would reach Microsoft there; the URL
        of the server is used instead.
        """
        if not self.dependencies.has_pages:
            return ""
        base = self.dependencies.base_url(self.http)
        return self.http.server_url if _OF_MICROSOFT.search(base) else base

    def message_json(self, message: StoredMessage, select: Collection[str] = ()) -> dict[str, Any]:
        """Return a message's JSON with the id and the page that this client sees."""
        return message_json(message, select, pages_url=self.pages_url, shown_id=self.shown_id)

    def context(self, what: str) -> dict[str, Any]:
        """Return the JSON's @odata.context."""
        return {"@odata.context": f"{self.root_url()}/$metadata#{what}"}

    @property
    def owner(self) -> str:
        """The mailbox as it begins an @odata.context."""
        return f"users('{quote(self.mailbox)}')"

    def changed(
        self,
        path: str,
        context: str,
        resource: Mapping[str, Any],
        *,
        is_new: bool,
        change_key: str = "",
    ) -> Response:
        """Return the response to a change of the resource at `path` in the mailbox.

        It is the resource's JSON, or no body with return=minimal. A new resource has a Location.
        """
        location = f"{self.root_url()}/users/{quote(self.mailbox)}/{path}"
        headers = etag_field(change_key) if change_key else {}
        if self.prefers_minimal():
            return minimal_response(location, is_new=is_new, headers=headers)
        if is_new:
            headers["location"] = location
        status = HTTPStatus.CREATED if is_new else HTTPStatus.OK
        return json_response({**self.context(context), **resource}, status=status, headers=headers)

    def page(
        self,
        resources: Sequence[_Item],
        options: QueryOptions,
        to_json: Callable[[_Item, Collection[str]], Mapping[str, Any]],
        *,
        context: str,
    ) -> Response:
        """Return the page of the whole list `resources` that the query options select.

        It ends early before it would have more than `page_bytes`.
        """
        page = resources[options.skip : options.skip + options.top]
        bytes_max = self.page_bytes - len(options.next_link(self.url())) - _AROUND_BYTES
        selected = (to_json(resource, options.select) for resource in page)
        items = fitting(selected, bytes_max)
        next_skip = options.skip + len(items)
        is_more = items and next_skip < len(resources)
        return collection_response(
            self.context(context),
            items,
            total=len(resources) if options.count else None,
            next_link=options.next_link(self.url(), skip=next_skip) if is_more else "",
        )

    def is_streamed(self) -> bool:
        """Return whether the body is MIME that is too large for memory, or may be."""
        size_bytes = self.http.declared_bytes
        return self.is_mime() and (size_bytes is None or size_bytes > IN_MEMORY_BODY_BYTES_MAX)

    async def json_object(
        self, kind: str = "parameters", *, may_be_empty: bool = False, or_mime: bool = False
    ) -> dict[str, Any]:
        """Read the body, a JSON object: the resource of Graph's type `kind`, or parameters.

        Raises ApiError 415 for another Content-Type than application/json, 400, 408, 413. With
        `or_mime` the text of the 415 names MIME too.
        """
        media_type = self.http.media_type
        if media_type not in ("", "application/json"):
            mime = ", or text/plain for MIME in base64" if or_mime else ""
            raise unsupported_media_type(media_type, f"application/json{mime}")
        body = await self.http.body()
        parsed = {} if may_be_empty and not body.strip() else read_json_object(body)
        del body
        if self.is_strict:
            strict_profile.check_body(parsed, kind)
        return parsed

    def is_mime(self) -> bool:
        """Return whether the body is MIME in base64 (text/plain) and not JSON, the default."""
        return self.http.media_type == "text/plain"

    def is_base64_mime(self) -> bool:
        """Return whether a body that must be MIME is in base64 (text/plain, the default).

        Raises ApiError 415 for another Content-Type.
        """
        kind = self.http.media_type
        if kind in ("", "text/plain"):
            return True
        if kind in ("message/rfc822", "application/octet-stream"):
            return False
        raise unsupported_media_type(
            kind,
            "text/plain for MIME in base64, message/rfc822 or application/octet-stream for "
            "plain MIME",
        )
