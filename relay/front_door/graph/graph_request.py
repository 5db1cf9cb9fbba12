"""A request to one mailbox, what its handler needs, the limits of an account (429), and the errors
of the mail store.

Prefer: outlook.body-content-type converts the bodies that are shown; the stored body does not
change. Relay never removes anything from HTML, so that outlook.allow-unsafe-html always holds.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import tzinfo
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

from msgspec import Struct
from starlette.responses import Response

from relay.base.accounts.account import Account, AccountDirectory, Scope, UnknownUserError
from relay.base.accounts.usage import UsageCounter
from relay.base.clock import Clock, Ids
from relay.base.crashpoints import CrashPoints
from relay.base.message.content import LARGE_BYTES
from relay.base.message.rest_id import read_rest_id, rest_id
from relay.base.message.time_zones import time_zone
from relay.base.pressure import ConcurrencyCounter, Pressure, PressureReason
from relay.formats.html_text import html_to_text, text_to_html
from relay.front_door.graph import errors, strict_profile
from relay.front_door.graph.item_ids import folder_id_of, item_id_of
from relay.front_door.graph.json_values import read_json_object
from relay.front_door.graph.query_options import (
    QueryOptions,
    max_page_size,
    parse_options,
    preferences,
)
from relay.front_door.http.errors import (
    ApiError,
    bad_request,
    quoted,
    service_unavailable,
    unsupported_media_type,
)
from relay.front_door.http.gateway import json_response
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.notifications.subscriptions import Subscriptions
from relay.store.mailbox.errors import (
    AttachmentsTooLargeError,
    BeingSentError,
    FolderError,
    FolderExistsError,
    MailboxFullError,
    MessageChangedError,
    NoSuchItemError,
    NotADraftError,
    ProtectedFolderError,
    StateTooLargeError,
    StoreError,
    StoreUnavailableError,
    TooManyQueriesError,
    TooManyUploadsError,
    UploadBusyError,
)
from relay.store.mailbox.pending_submission import SubmissionKey
from relay.store.mailbox.query import PAGE_BYTES_MAX
from relay.store.mailbox.stored_message import Precondition, StoredMessage
from relay.submission.outbox.store import FileStore

IN_MEMORY_BODY_BYTES_MAX = LARGE_BYTES * 4 // 3  # larger MIME in base64 is written in blocks
STREAMED_BODIES_MAX = 32  # request bodies that are written to disk in blocks
STREAMED_BODIES_PER_ACCOUNT_MAX = 8
SHORT_PAGE_BYTES_MAX = 1024 * 1024  # of a page while memory is short
BODY_CONVERSIONS_MAX = 2  # threads that convert bodies to the preferred type
ANSWERS_MAX = 4  # replies and forwards that are composed at a time: each holds its original's body
_RETRY_S = 5
_ENTITY_TAG = re.compile(r'(?:W/)?"(?P<quoted>[!#-~]{1,512})"|(?P<bare>[!#-+.-~]{1,512})')
_KEY = r"\((?:userPrincipalName=)?'"
_WITH_KEY = re.compile(rf"(.(?:(?!{_KEY}).)*+){_KEY}(.*)'\)", re.IGNORECASE | re.DOTALL)
_Item = TypeVar("_Item")
_OF_MICROSOFT = re.compile(
    r"(?i)\.(?:microsoft|office|office365|chinacloudapi)\.\w+\.?(?::\d+)?$", re.ASCII
)
_TYPE = "outlook.body-content-type"
_UNSAFE = "outlook.allow-unsafe-html"
_CONVERT = {"text": html_to_text, "html": text_to_html}


class StreamedBodies:
    """Counts the request bodies that are being streamed to disk."""

    def __init__(self) -> None:
        self._running = ConcurrencyCounter()

    def acquire(self, account: str) -> AbstractContextManager[None]:
        """Count one body inside the with block. Raises ApiError 429 at the account's limit, 503 at
        that of all.
        """
        message = "Too many large bodies are being received; try again."
        if not self._running.has_room(account, per_key=STREAMED_BODIES_PER_ACCOUNT_MAX):
            raise throttled(message, _RETRY_S)
        if self._running.total >= STREAMED_BODIES_MAX:
            raise service_unavailable(message, retry_after_s=_RETRY_S)
        return self._running.counted(account)


@dataclass(frozen=True, slots=True)
class GraphDependencies:
    """What the handlers need."""

    store: FileStore  # the mailboxes
    accounts: AccountDirectory  # those in force
    clock: Clock  # for the times of messages
    ids: Ids  # for new messages and submissions
    hostname: str  # of Message-IDs that Relay makes
    public_url: str  # the beginning of links; "": as the client addressed the relay
    crash: CrashPoints  # for crash tests
    max_upload: int  # of a streamed body, in bytes
    profile: strict_profile.Profile  # of requests that prefer none
    pressure: Pressure  # whether new mail is taken now
    subscriptions: Subscriptions  # who is notified of changes
    usage: UsageCounter  # counts what accounts send to the outside
    has_pages: bool = False  # there is a page for each message
    # by mailbox, and mailbox/draft: its PATCHes run one at a time
    patch_locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    # limits the bodies that are written to files at once
    streamed_bodies: StreamedBodies = field(default_factory=StreamedBodies)
    # limits the bodies of messages that are converted at once
    conversions: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(BODY_CONVERSIONS_MAX)
    )
    # limits the replies and forwards that are composed at once
    answers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ANSWERS_MAX))

    def base_url(self, request: HttpRequest) -> str:
        """Return the URL of the API as the client sees it."""
        return request.base_url(self.public_url, self.hostname)

    def root_url(self, request: HttpRequest) -> str:
        """Return the URL of the version of the API that is requested."""
        return f"{self.base_url(request)}/{request.segments[0].lower()}"


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
    is_strict: bool = (
        False  # what Graph refuses is refused (relay/front_door/graph/strict_profile.py)
    )
    # a submission is recorded under it (relay/front_door/graph/admission.py)
    key: SubmissionKey | None = None
    # awaited before a streamed submission is complete (relay/front_door/graph/admission.py)
    before_submission: Callable[[], Awaitable[None]] | None = None

    def check_scopes(self, needed: Collection[Scope]) -> None:
        """Raise ApiError 403 unless the caller's tokens have one of the scopes."""
        if self.caller.scopes.isdisjoint(needed):
            found, expected = ", ".join(sorted(self.caller.scopes)), " or ".join(needed)
            detail = f"Found {found or 'no scopes'}, expected the permission {expected}."
            raise errors.ACCESS_DENIED(detail)

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
        """The folder where the message in the path must be, "" for any: by the path, or by its id.

        Raises NoSuchItemError for two folders.
        """
        named = read_rest_id(self.path_parameters.get("message", ""))[1]
        if named and self.folder_id.lower() not in ("", named):
            raise NoSuchItemError("The message of this id is not in this folder.")
        return named or self.folder_id

    @property
    def shows_immutable_ids(self) -> bool:
        """Whether the ids of messages are the store's: always, in the relaxed profile."""
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

    def options(
        self,
        allowed: Collection[str] = (),
        known: Collection[str] = (),
        kind: str = "",
        *,
        page_size: int | None = None,
    ) -> QueryOptions:
        """Read the query options as parse_options(). Raises ApiError 400 for one that is not
        `allowed`.
        """
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
        given = self.http.query if query is None else query
        options = parse_options(given, allowed=allowed, known=known, kind=kind, page_size=page_size)
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
        """The time zone in force: of `Prefer: outlook.timezone`, or the mailbox's (default UTC).

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

    def prefers_minimal(self) -> bool:
        """Return whether the client wants no body in the response to a change (RFC 7240 4.2)."""
        wanted = self.preferences.get("return", "").lower()
        if wanted in ("minimal", "representation"):
            self.applied.append(f"return={wanted}")
        return wanted == "minimal"

    def not_modified(self, change_key: str) -> Response | None:
        """Return the 304 if the client has this version, by If-None-Match.

        Raises ApiError 400 for a malformed one.
        """
        given = self.http.headers.getlist("if-none-match")
        if not given:
            return None
        keys = change_keys(",".join(given), field_name="If-None-Match")
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
        """The lock under which a draft changes or is sent, so that what is counted is sent."""
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

        A browser finds at Microsoft's names what Microsoft has there.
        """
        if not self.dependencies.has_pages:
            return ""
        base = self.dependencies.base_url(self.http)
        return self.http.server_url if _OF_MICROSOFT.search(base) else base

    def context(self, what: str) -> dict[str, Any]:
        """Return the JSON's @odata.context."""
        return {"@odata.context": f"{self.root_url()}/$metadata#{what}"}

    @property
    def owner(self) -> str:
        """The mailbox, with which the context of what it contains begins."""
        return f"users('{quote(self.mailbox)}')"

    def changed(
        self,
        path: str,
        context: str,
        shown: Mapping[str, Any],
        *,
        is_new: bool,
        change_key: str = "",
    ) -> Response:
        """Return the response to a change of what is at `path` in the mailbox: its JSON, or nothing
        with return=minimal. What is new has a Location.
        """
        location = f"{self.root_url()}/users/{quote(self.mailbox)}/{path}"
        headers = etag_field(change_key) if change_key else {}
        if self.prefers_minimal():
            return minimal_response(location, is_new=is_new, headers=headers)
        if is_new:
            headers["location"] = location
        status = HTTPStatus.CREATED if is_new else HTTPStatus.OK
        return json_response({**self.context(context), **shown}, status=status, headers=headers)

    def page(
        self,
        found: Sequence[_Item],
        options: QueryOptions,
        to_json: Callable[[_Item, Collection[str]], Mapping[str, Any]],
        *,
        context: str,
    ) -> Response:
        """Return the page of the whole list `found` that the query options select."""
        page = found[options.skip : options.skip + options.top]
        next_skip = options.skip + len(page)
        is_more = page and next_skip < len(found)
        return collection_response(
            self.context(context),
            [to_json(one, options.select) for one in page],
            total=len(found) if options.count else None,
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

        Raises ApiError 415 for another Content-Type than application/json, 400, 408, 413. MIME
        would be possible as well, if `or_mime`.
        """
        media_type = self.http.media_type
        if media_type not in ("", "application/json"):
            mime = ", or text/plain for MIME in base64" if or_mime else ""
            raise unsupported_media_type(media_type, f"application/json{mime}")
        body = await self.http.body()
        given = {} if may_be_empty and not body.strip() else read_json_object(body)
        del body
        if self.is_strict:
            strict_profile.check_body(given, kind)
        return given

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


def collection_response(
    context: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    *,
    total: int | None = None,
    next_link: str = "",
    delta_link: str = "",
) -> Response:
    """Return a page of a list; `total` is None unless $count asks for it."""
    body = dict(context)
    if total is not None:
        body["@odata.count"] = total
    body["value"] = items
    if next_link:
        body["@odata.nextLink"] = next_link
    if delta_link:
        body["@odata.deltaLink"] = delta_link
    return json_response(body)


def etag_field(change_key: str) -> dict[str, str]:
    """Return the ETag field of a version."""
    return {"etag": f'W/"{change_key}"'}


def minimal_response(
    location: str, *, is_new: bool = False, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response to a change without a body (OData 4.01 Protocol 8.2.8.7, 8.3.4)."""
    fields = {"odata-entityid": location, **(headers or {})}
    return Response(status_code=204, headers=fields | {"location": location} if is_new else fields)


def change_keys(given: str, *, field_name: str = "If-Match") -> frozenset[str]:
    """Return the change keys in If-Match or If-None-Match; `*` gives an empty set.

    A key is an @odata.etag, strong or weak, or a bare changeKey. Raises ApiError 400.
    """
    if given.strip() == "*":
        return frozenset()
    keys = set()
    for tag in given.split(","):
        match = _ENTITY_TAG.fullmatch(tag.strip())
        if match is None:
            expected = "an @odata.etag, a changeKey, or *"
            raise bad_request(f"{field_name}: found {quoted(given)}, expected {expected}.")
        keys.add(match["quoted"] or match["bare"])
    return frozenset(keys)


def throttled(message: str, retry_after_s: int) -> ApiError:
    """Return the 429 of an account that is over a limit of its own."""
    return errors.THROTTLED(message, headers={"retry-after": str(retry_after_s)})


# by kind, the special ones first; a mailbox that is full is a 507, not a 403: the request is valid
_OF_STORE: Mapping[type[StoreError], errors.GraphError] = {
    NoSuchItemError: errors.ITEM_NOT_FOUND,
    NotADraftError: errors.INVALID_REQUEST,
    BeingSentError: errors.CONFLICT,
    UploadBusyError: errors.CONFLICT,
    MessageChangedError: errors.CHANGED,
    MailboxFullError: errors.MAILBOX_FULL,
    AttachmentsTooLargeError: errors.TOO_LARGE,
    StateTooLargeError: errors.TOO_LARGE,
    FolderExistsError: errors.FOLDER_EXISTS,
    ProtectedFolderError: errors.ACCESS_DENIED,
    FolderError: errors.INVALID_REQUEST,
    StoreUnavailableError: errors.UNHEALTHY,
    TooManyQueriesError: errors.THROTTLED,
    TooManyUploadsError: errors.THROTTLED,
}
_RETRY_AFTER = {StoreUnavailableError: "10", TooManyQueriesError: "10", TooManyUploadsError: "60"}


def api_error(error: StoreError, request: HttpRequest) -> ApiError:
    """Return Graph's error for an error of the mail store, whose text is meant for users."""
    kind = next((one for one in _OF_STORE if isinstance(error, one)), None)
    if kind is None:
        return errors.INTERNAL("The store failed; see the log.")
    found, seconds = _OF_STORE[kind], _RETRY_AFTER.get(kind)
    if kind is NotADraftError and request.method == "PATCH":
        found = errors.NOT_A_DRAFT
    if kind is ProtectedFolderError and request.method != "PATCH":
        is_move = request.segments[-1].lower().endswith("move")
        found = errors.FOLDER_MOVED if is_move else errors.FOLDER_DELETED
    path = "/".join(request.segments).lower()
    is_read = request.method == "GET" and ("/messages/" in path or "/messages('" in path)
    if kind is NoSuchItemError and is_read:
        found = errors.MESSAGE_NOT_FOUND
    return found(str(error), headers={"retry-after": seconds} if seconds else None)


def not_implemented(what: str) -> ApiError:
    """Return the 501 for a part of Graph that is not implemented."""
    return errors.NOT_IMPLEMENTED(f"{what} is not implemented.")


def with_keys(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path with OData's parentheses as segments: messages('1') becomes messages/1."""
    if not any(segment.endswith("')") for segment in segments):
        return segments
    found: list[str] = []
    for segment in segments:
        if match := _WITH_KEY.fullmatch(segment):
            found += (match[1], match[2].replace("''", "'"))
        else:
            found.append(segment)
    return tuple(found)


def find_mailbox(
    segments: tuple[str, ...], caller: Account, accounts: AccountDirectory
) -> tuple[Account, tuple[str, ...]]:
    """Return the account of the mailbox in the path, and the rest after /me or /users/{address}.

    Raises ApiError: 400 for /me where no user has signed in, as Graph; 403 for a mailbox that the
    caller may not open and for one that does not exist, 404 for an UnknownUserError.
    """
    if segments[0].lower() == "me":
        if caller.is_application:
            raise errors.NO_USER("No user has signed in: the token is an application's.")
        return caller, segments[1:]
    try:
        owner = accounts.opened(segments[1], caller)
    except UnknownUserError:
        error = errors.USER_INVALID if len(segments) > 2 else errors.USER_NOT_FOUND
        raise error("No mail has come for this address.", quoted(segments[1])) from None
    if owner is None:  # the same answer for both reasons: it reveals no addresses
        raise errors.ACCESS_DENIED("This token opens no mailbox of this address.")
    return owner, segments[2:]


async def show_preferred_body(request: GraphRequest, shown: dict[str, Any]) -> None:
    """Convert the body in a message's JSON to the preferred type."""
    await show_body_as(request, shown, preferred_body_type(request))


async def show_body_as(request: GraphRequest, shown: dict[str, Any], wanted: str) -> None:
    """Convert the body in a message's JSON to a type; "" leaves it.

    A large page takes many seconds. Requests take turns with each message, so that none waits for
    the whole page of another one.
    """
    if _others(shown, wanted):
        async with request.dependencies.conversions:
            await asyncio.to_thread(convert_body, shown, wanted)


def preferred_body_type(request: GraphRequest) -> str:
    """Return the preferred type, or "". The preferences count as applied."""
    preferred = request.preferences
    wanted = preferred.get(_TYPE, "").lower()
    if wanted in _CONVERT:
        request.applied.append(f'{_TYPE}="{wanted}"')
    if _UNSAFE in preferred:
        request.applied.append(_UNSAFE)
    return wanted if wanted in _CONVERT else ""


def convert_body(shown: dict[str, Any], wanted: str) -> None:
    """Convert the body if it has another type. Takes long for a large one."""
    for name in _others(shown, wanted):
        content = _CONVERT[wanted](shown[name]["content"])
        shown[name] = {"contentType": wanted, "content": content}


def _others(shown: Mapping[str, Any], wanted: str) -> list[str]:
    """Return the bodies that have another type."""
    bodies = [name for name in ("body", "uniqueBody") if wanted and name in shown]
    return [name for name in bodies if shown[name]["contentType"] != wanted]
