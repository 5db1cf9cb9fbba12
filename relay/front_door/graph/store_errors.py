"""The errors of the mail store as Graph's errors."""

from collections.abc import Mapping

from relay.front_door.graph import errors
from relay.front_door.http.errors import ApiError
from relay.front_door.http.http_request import HttpRequest
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

# by class, subclasses first; a full mailbox is a 507, not a 403: the request is valid
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
_RETRY_AFTER = {StoreUnavailableError: 10, TooManyQueriesError: 10}


def api_error(error: StoreError, request: HttpRequest) -> ApiError:
    """Return Graph's error for an error of the mail store, whose text is meant for users."""
    kind = next((error_type for error_type in _OF_STORE if isinstance(error, error_type)), None)
    if kind is None:
        return errors.INTERNAL("The store failed; see the log.")
    graph_error, seconds = _OF_STORE[kind], _RETRY_AFTER.get(kind)
    if kind is NotADraftError and request.method == "PATCH":
        graph_error = errors.NOT_A_DRAFT
    if kind is ProtectedFolderError and request.method != "PATCH":
        is_move = request.segments[-1].lower().endswith("move")
        graph_error = errors.FOLDER_MOVED if is_move else errors.FOLDER_DELETED
    path = "/".join(request.segments).lower()
    is_read = request.method == "GET" and ("/messages/" in path or "/messages('" in path)
    if kind is NoSuchItemError and is_read:
        graph_error = errors.MESSAGE_NOT_FOUND
    if isinstance(error, TooManyUploadsError):
        seconds = error.retry_after_s
    return graph_error(str(error), headers={"retry-after": str(seconds)} if seconds else {})
