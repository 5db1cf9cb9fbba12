"""The checks of a message's HTML and links (relay.mime.body_checks) for GET /messages/{id}/checks.

They run in a thread of their own, one after the other: a hostile message takes seconds.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from relay.base.pressure import ConcurrencyCounter
from relay.http.errors import service_unavailable
from relay.message.content import Content, octets_of
from relay.mime.body_checks import Checks, check_bodies
from relay.mime.read_mime import read_parts

_WAITING_MAX = 50
_WAITING_OF_ONE_MAX = 25


class MessageChecks:
    """Checks contents; one for all requests, because it bounds the work in progress."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checks")
        self._waiting = ConcurrencyCounter()  # by the name of who asks

    async def of(self, content: Content, name: str) -> Checks:
        """Return the checks of a message for the principal `name`. Raises ApiError 503."""
        if not self._waiting.has_room(name, per_key=_WAITING_OF_ONE_MAX, in_all=_WAITING_MAX):
            raise service_unavailable("Too many checks are waiting already.", retry_after_s=2)
        with self._waiting.counted(name):
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._thread, _checks_of, content
                )
            except OSError as error:
                message = f"The content cannot be read: {error.strerror or error}."
                raise service_unavailable(message, retry_after_s=5) from error


def _checks_of(content: Content) -> Checks:
    bodies = read_parts(octets_of(content)).bodies
    return check_bodies(bodies.html, bodies.text)
