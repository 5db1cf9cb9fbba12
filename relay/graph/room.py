"""What is refused when the relay is short of room: messages to send, and what is to be kept.

On the path: app asks for each request before its body is read.
Holds: pure; reading, moving and deleting go on at every level.
Fails: ApiError 507 where the mailboxes' disk is full, else 503; both with Retry-After.
Standards: RFC 9110 15.6.4, RFC 4918 11.5 (507); docs/design.md 6.
"""

from enum import Enum, auto

from relay.http.errors import ApiError, try_later
from relay.pressure import OF_MAILBOXES, OF_QUEUE, Reason, State, words_of

_RETRY_S = 30


class Brings(Enum):
    """What a request brings: a message for the queue, content for a mailbox, or neither."""

    NOTHING = auto()
    CONTENT = auto()
    MESSAGE = auto()


_SHORT_OF = {
    Brings.NOTHING: frozenset[Reason](),
    Brings.CONTENT: OF_MAILBOXES | {Reason.MEMORY},
    Brings.MESSAGE: OF_MAILBOXES | OF_QUEUE,
}


def check_room(state: State, brings: Brings) -> None:
    """Raise ApiError for what the relay takes on no more now."""
    if (reason := state.refusing(_SHORT_OF[brings])) is None:
        return
    message = f"Nothing new is taken now: {words_of(reason)}. Try again later."
    if reason in OF_MAILBOXES:
        headers = {"retry-after": str(_RETRY_S)}
        raise ApiError(507, "ErrorInsufficientResources", message, headers=headers)
    raise try_later("ResourceUnhealthy", message, after_s=_RETRY_S)
