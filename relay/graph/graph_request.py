"""What a handler has in hand: the front door's means, the request, its account, the path's names.

On the path: app makes a Visit per request; every handler takes it.
Holds: the account is the token's own, and the mailbox in the path is that account's.
Fails: ApiError for a body of another type; the store's refusals become Graph's errors here.
Standards: RFC 9110 8.3.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from relay.accounts import Account
from relay.clock import Clock, Ids
from relay.crashpoints import CrashPoints
from relay.graph.query_options import Options, parse_options
from relay.http.errors import ApiError, shown, try_later
from relay.http.http_request import Call
from relay.mailbox.api import MailStore
from relay.mailbox.types import (
    AttachmentsTooLargeError,
    BeingSentError,
    FolderError,
    FolderExistsError,
    MailboxFullError,
    MessageChangedError,
    NoSuchItemError,
    NotADraftError,
    Precondition,
    ProtectedFolderError,
    StoreError,
    StoreUnavailableError,
    TooManyQueriesError,
    TooManyUploadsError,
    UploadBusyError,
)

STREAMS_MAX = 32  # each has a block or two in memory
STREAMS_OF_ONE_MAX = 8
_RETRY_S = 5


class Streams:
    """Counts those that are under way."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()

    @contextmanager
    def one_of(self, account: str) -> Iterator[None]:
        """Take a place for the time of the block. Raises ApiError 503 when there is none."""
        if self._of[account] >= STREAMS_OF_ONE_MAX or self._of.total() >= STREAMS_MAX:
            message = "Too many large bodies are being taken; try again."
            raise try_later("ResourceUnhealthy", message, after_s=_RETRY_S)
        self._of[account] += 1
        try:
            yield
        finally:
            self._of[account] -= 1
            if not self._of[account]:
                del self._of[account]


_ID = re.compile(r"[A-Za-z0-9._=+-]{1,512}")
_ENTITY_TAG = re.compile(r'(?:W/)?"(?P<quoted>[!#-~]{1,512})"|(?P<bare>[!#-+.-~]{1,512})')
_STORE_RETRY_S = 10
_UPLOAD_RETRY_S = 60


@dataclass(frozen=True, slots=True)
class Door:
    """The front door's means; `changing` has a lock for each mailbox where a PATCH is in work,
    `max_upload` limits what is taken in blocks, in bytes.
    """

    store: MailStore
    clock: Clock
    ids: Ids
    hostname: str
    public_url: str
    crash: CrashPoints
    max_upload: int
    changing: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    streams: Streams = field(default_factory=Streams)


@dataclass(frozen=True, slots=True)
class Visit:
    """One request to one mailbox; `names` are the parts of the path that the route left open."""

    door: Door
    call: Call
    account: Account
    names: Mapping[str, str]

    @property
    def mailbox(self) -> str:
        """The store's name for the mailbox."""
        return self.account.address

    @property
    def message_id(self) -> str:
        """The message that the path names. Raises ApiError 400 for what cannot be an id."""
        identifier = self.names["message"]
        if not _ID.fullmatch(identifier):
            message = f"Id is malformed: {shown(identifier)}."
            raise ApiError(400, "ErrorInvalidIdMalformed", message)
        return identifier

    @property
    def condition(self) -> Precondition:
        """What the path and If-Match say must be true of the message.

        Raises ApiError 400 for an If-Match that cannot be read.
        """
        if_match = self.call.headers.getlist("if-match")
        return Precondition(self.folder_id, change_keys(",".join(if_match) if if_match else "*"))

    @property
    def folder_id(self) -> str:
        """The folder that the path names, "" if it names none."""
        return self.names.get("folder", "")

    def options(self, allowed: Collection[str] = (), known: Collection[str] = ()) -> Options:
        """Read the query options; what is not allowed is refused."""
        return parse_options(self.call.query, allowed=allowed, known=known)

    def root_url(self) -> str:
        """Where the API of this version is, as the client sees it."""
        base = self.call.base_url(self.door.public_url, self.door.hostname)
        return f"{base}/{self.call.segments[0].lower()}"

    def context(self, what: str) -> dict[str, Any]:
        """Return the JSON's @odata.context."""
        return {"@odata.context": f"{self.root_url()}/$metadata#{what}"}

    def is_mime(self) -> bool:
        """Whether the body is MIME in base64, by its type; JSON when it says nothing.

        Raises ApiError 415 for another type.
        """
        kind = self._content_type()
        if kind in ("", "application/json"):
            return False
        if kind == "text/plain":
            return True
        raise _unsupported(kind, "application/json, or text/plain for MIME in base64")

    def is_mime_coded(self) -> bool:
        """Whether a body that must be MIME is in base64, by its type.

        Raises ApiError 415 for another type.
        """
        kind = self._content_type()
        if kind in ("", "text/plain"):
            return True
        if kind in ("message/rfc822", "application/octet-stream"):
            return False
        raise _unsupported(
            kind,
            "text/plain for MIME in base64, message/rfc822 or application/octet-stream for MIME as "
            "it is",
        )

    def _content_type(self) -> str:
        return self.call.headers.get("content-type", "").partition(";")[0].strip().lower()


def change_keys(if_match: str) -> frozenset[str]:
    """Return the change keys that an If-Match names, none for `*`.

    A tag is an @odata.etag, strong or weak, or a changeKey as it is.
    Raises ApiError 400.
    """
    if if_match.strip() == "*":
        return frozenset()
    keys = set()
    for tag in if_match.split(","):
        match = _ENTITY_TAG.fullmatch(tag.strip())
        if match is None:
            expected = "an @odata.etag, a changeKey, or *"
            message = f"If-Match: found {shown(if_match)}, expected {expected}."
            raise ApiError(400, "BadRequest", message)
        keys.add(match["quoted"] or match["bare"])
    return frozenset(keys)


def _unsupported(kind: str, expected: str) -> ApiError:
    message = f"Content-Type: found {shown(kind)}, expected {expected}."
    return ApiError(415, "UnsupportedMediaType", message)


def refusal(error: StoreError) -> ApiError:
    """Return what Graph would say for what the store refused; its text is fit for the user."""
    text = str(error)
    match error:
        case NoSuchItemError():
            message = text or "The specified object was not found in the store."
            return ApiError(404, "ErrorItemNotFound", message)
        case BeingSentError():
            message = text or "The draft is being sent and cannot be changed until that is done."
            return ApiError(409, "ErrorIrresolvableConflict", message)
        case MessageChangedError():
            return ApiError(412, "ErrorIrresolvableConflict", text)
        case NotADraftError():
            message = text or "The message is not a draft."
            return ApiError(400, "ErrorInvalidRequest", message)
        case AttachmentsTooLargeError():
            return ApiError(413, "ErrorMessageSizeExceeded", text)
        case TooManyQueriesError():
            return try_later("ResourceUnhealthy", text, after_s=_STORE_RETRY_S)
        case TooManyUploadsError():
            return try_later("ResourceUnhealthy", text, after_s=_UPLOAD_RETRY_S)
        case UploadBusyError():
            return ApiError(409, "ErrorIrresolvableConflict", text)
        case FolderExistsError():
            return ApiError(409, "ErrorFolderExists", text)
        case ProtectedFolderError():
            return ApiError(403, "ErrorAccessDenied", text)
        case FolderError():
            return ApiError(400, "ErrorInvalidRequest", text)
        case MailboxFullError():
            # 507, not 403: the request is in order and works again when there is room
            return ApiError(507, "ErrorQuotaExceeded", text or "The mailbox is full.")
        case StoreUnavailableError():
            message = text or "The store cannot be written now."
            return try_later("ResourceUnhealthy", message, after_s=_STORE_RETRY_S)
        case _:
            return ApiError(500, "InternalServerError", "The store refused; see the log.")
