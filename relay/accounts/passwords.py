"""Check passwords: off the event loop, few at once, and ever slower for those who guess.

On the path: directory hands in a log-in; Argon2 runs in two threads.
Holds: at most 32 checks wait; a success is remembered for a minute, as a keyed digest only.
Fails: never; what cannot be checked now is refused like a wrong password.
Standards: RFC 9106.
"""

import asyncio
import functools
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from relay.accounts.secrets import Password
from relay.clock import Clock

_THREADS = 2  # each check takes 64 MiB and a tenth of a second by default
_WAITING_MAX = 32
_REMEMBERED_S = 60.0
_USERS_MAX = 10_000
_PASSWORD_BYTES_MAX = 1024
_FREE_FAILURES = 3
_BACK_OFF_FIRST_S = 1.0
_BACK_OFF_MAX_S = 60.0


@dataclass(slots=True)
class _Failures:
    """How often a user failed in a row, and until when no more guesses are looked at."""

    count: int = 0
    until_s: float = 0.0


class PasswordChecker:
    """Compares given passwords with stored ones."""

    def __init__(self, clock: Clock, *, chance: Callable[[int], bytes]) -> None:
        """`chance` makes the key of the remembered digests; it lives as long as this process."""
        self._clock = clock
        self._key = chance(32)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="argon2")
        self._running: dict[bytes, asyncio.Future[bool]] = {}
        self._successes: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    async def check(self, user: str, stored: Password, given: str) -> bool:
        """Whether `given` is the password of `user`, whose stored form is `stored`.

        After three failures in a row a user is refused unseen for a time that doubles each time,
        up to a minute.
        """
        if len(given.encode("utf-8", "surrogatepass")) > _PASSWORD_BYTES_MAX:
            return False
        now = self._clock.monotonic()
        digest = self._digest(user, stored, given)
        if self._is_remembered(user, digest, now):
            return True
        failures = self._failures.get(user)
        if failures is not None and now < failures.until_s:
            return False
        running = self._running.get(digest)  # sessions that open together share one check
        if running is None:
            if len(self._running) >= _WAITING_MAX:
                return False
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._threads, stored.matches, given)
            self._running[digest] = running
            running.add_done_callback(functools.partial(self._finished, user, digest))
        await asyncio.wait({running})  # which leaves it running if this client goes
        return not running.cancelled() and running.result()

    def close(self) -> None:
        """End the threads; what still waits is not checked."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _digest(self, user: str, stored: Password, given: str) -> bytes:
        parts = (user, stored.hashed, given)
        text = b"".join(
            len(part).to_bytes(4, "big") + part
            for part in (each.encode("utf-8", "surrogatepass") for each in parts)
        )
        return hashlib.blake2b(text, key=self._key, digest_size=32).digest()

    def _is_remembered(self, user: str, digest: bytes, now: float) -> bool:
        remembered, until_s = self._successes.get(user, (b"", 0.0))
        return now < until_s and hmac.compare_digest(remembered, digest)

    def _finished(self, user: str, digest: bytes, check: asyncio.Future[bool]) -> None:
        """Remember how a check ended, also when the client has not waited for it."""
        del self._running[digest]
        if check.cancelled() or check.exception():
            return
        now = self._clock.monotonic()
        if check.result():
            self._failures.pop(user, None)
            self._successes[user] = (digest, now + _REMEMBERED_S)
            _trim(self._successes)
            return
        failures = self._failures.setdefault(user, _Failures())
        self._failures.move_to_end(user)
        failures.count += 1
        if failures.count >= _FREE_FAILURES:
            doubled = _BACK_OFF_FIRST_S * 2.0 ** min(failures.count - _FREE_FAILURES, 10)
            failures.until_s = now + min(doubled, _BACK_OFF_MAX_S)
        _trim(self._failures)


def _trim(users: OrderedDict[str, Any]) -> None:
    while len(users) > _USERS_MAX:
        users.popitem(last=False)
