"""The errors of the mail store, and of bounds, as Graph's errors."""

from collections.abc import Mapping

from relay.base.shares import NoPlaceError
from relay.front_door.graph import errors
from relay.front_door.http.errors import ApiError, no_place
from relay.front_door.http.http_request import HttpRequest
from relay.store.mailbox import errors as mailbox_errors

# by class, subclasses first; a full mailbox is a 507, not a 403: the request is valid
_OF_STORE: Mapping[type[mailbox_errors.StoreError], errors.GraphError] = {
    mailbox_errors.NoSuchItemError: errors.ITEM_NOT_FOUND,
    mailbox_errors.NotADraftError: errors.INVALID_REQUEST,
    mailbox_errors.BeingSentError: errors.CONFLICT,
    mailbox_errors.UploadBusyError: errors.CONFLICT,
    mailbox_errors.MessageChangedError: errors.CHANGED,
    mailbox_errors.MailboxFullError: errors.MAILBOX_FULL,
    mailbox_errors.AttachmentsTooLargeError: errors.TOO_LARGE,
    mailbox_errors.StateTooLargeError: errors.TOO_LARGE,
    mailbox_errors.FolderExistsError: errors.FOLDER_EXISTS,
    mailbox_errors.ProtectedFolderError: errors.ACCESS_DENIED,
    mailbox_errors.FolderError: errors.INVALID_REQUEST,
    mailbox_errors.StoreUnavailableError: errors.UNHEALTHY,
    mailbox_errors.TooManyUploadsError: errors.THROTTLED,
}
_RETRY_S = 10  # while the store is unavailable


def api_error(error: NoPlaceError | mailbox_errors.StoreError, request: HttpRequest) -> ApiError:
    """Return Graph's error for an error of the mail store, whose text is meant for users."""
    if isinstance(error, NoPlaceError):
        return no_place(error)
    kind = next((error_type for error_type in _OF_STORE if isinstance(error, error_type)), None)
    if kind is None:
        return errors.INTERNAL("The store failed; see the log.")
    graph_error = _OF_STORE[kind]
    seconds = _RETRY_S if kind is mailbox_errors.StoreUnavailableError else 0
    if kind is mailbox_errors.NotADraftError and request.method == "PATCH":
        graph_error = errors.NOT_A_DRAFT
    if kind is mailbox_errors.ProtectedFolderError and request.method != "PATCH":
        is_move = request.segments[-1].lower().endswith("move")
        graph_error = errors.FOLDER_MOVED if is_move else errors.FOLDER_DELETED
    path = "/".join(request.segments).lower()
    is_read = request.method == "GET" and ("/messages/" in path or "/messages('" in path)
    if kind is mailbox_errors.NoSuchItemError and is_read:
        graph_error = errors.MESSAGE_NOT_FOUND
    if isinstance(error, mailbox_errors.TooManyUploadsError):
        seconds = error.retry_after_s
    return graph_error(str(error), headers={"retry-after": str(seconds)} if seconds else {})
