"""Limits of one account (429): how many large request bodies are received at once."""

from contextlib import AbstractContextManager

from relay.base.pressure import ConcurrencyCounter
from relay.front_door.graph import errors
from relay.front_door.http.errors import ApiError, service_unavailable

STREAMED_BODIES_MAX = 32  # request bodies that are written to disk in blocks
STREAMED_BODIES_PER_ACCOUNT_MAX = 8
_RETRY_S = 5


class StreamedBodies:
    """Counts the request bodies that are being streamed to disk."""

    def __init__(self) -> None:
        self._running = ConcurrencyCounter()

    def acquire(self, account: str) -> AbstractContextManager[None]:
        """Count one body inside the with block. Raises ApiError 429 at the limit of the account,
        503 at the limit of all accounts together.
        """
        message = "Too many large bodies are being received; try again."
        if not self._running.has_room(account, per_key=STREAMED_BODIES_PER_ACCOUNT_MAX):
            raise throttled(message, _RETRY_S)
        if self._running.total >= STREAMED_BODIES_MAX:
            raise service_unavailable(message, retry_after_s=_RETRY_S)
        return self._running.counted(account)


def throttled(message: str, retry_after_s: int) -> ApiError:
    """Return the 429 for an account that has reached one of its limits."""
    return errors.THROTTLED(message, headers={"retry-after": str(retry_after_s)})
