"""How many bodies are taken in blocks at once.

On the path: whoever takes one asks first.
Holds: no account can take all places.
Fails: ApiError 503.
Standards: none; docs/design.md 6.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from relay.http.errors import try_later

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
