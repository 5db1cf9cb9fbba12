"""Journeys and the queue for the command line: from the running daemon, or from the files
themselves.

On the path: beside it.
Holds: with a daemon its control socket answers; without one the lock is taken while the spool is
    open.
Fails: ControlUnavailableError, ControlError, AlreadyRunningError (starting up just now),
    SpoolError.
Standards: DESIGN 2 (the spool has one owner).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from relay.app.compose import spool_path
from relay.app.lock import OwnerLock
from relay.clock import Clock
from relay.http import ControlClient, ControlError, ControlUnavailableError
from relay.http.control import path_of
from relay.journal.crash import CrashPoints
from relay.journal.journey import Journeys
from relay.journal.metrics import Metrics
from relay.journal.storelog import StoreLog
from relay.settings import Settings
from relay.spool import SqliteSpool
from relay.spool.types import Selector

T = TypeVar("T")
LIST_MAX = 10_000
_NOT_FOUND = 404
WAIT_S_MAX = 300.0  # of one request
_WAIT_MARGIN_S = 10.0


@dataclass(frozen=True, slots=True)
class _Offline:
    spool: SqliteSpool
    journeys: Journeys


class Reading:
    """What the command line may ask; every method blocks."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._client = ControlClient(settings.control_socket)

    def journey(self, key: str) -> dict[str, Any] | None:
        """One message, None if there is none."""
        try:
            found: dict[str, Any] = self._client.get(path_of(key))
        except ControlError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        except ControlUnavailableError:
            return self._offline(lambda own: own.journeys.journey(key, account=None), nothing=None)
        return found

    def wait(self, key: str, *, state: str, timeout_s: float) -> dict[str, Any] | None:
        """One message once it is in `state` ("final": every recipient is), with `reached`.

        When time is up: as it is then, or None. Raises ControlUnavailableError: without a daemon
        nothing would ever change.
        """
        client = ControlClient(self._settings.control_socket, timeout_s=WAIT_S_MAX + _WAIT_MARGIN_S)
        deadline = self._clock.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - self._clock.monotonic())
            query = {"state": state, "timeout": f"{min(left_s, WAIT_S_MAX):.3f}"}
            try:
                found: dict[str, Any] | None = client.get(path_of(key) + "/wait", query)
            except ControlError as error:
                if error.status != _NOT_FOUND:
                    raise
                found = None
            if left_s <= WAIT_S_MAX or (found is not None and found["reached"]):
                return found

    def queue_list(self, selector: Selector) -> list[dict[str, Any]]:
        """Entries not yet final."""
        query = _query(selector) | {"limit": str(LIST_MAX)}
        try:
            listed: list[dict[str, Any]] = self._client.get("/queue", query)
        except ControlUnavailableError:
            return self._offline(
                lambda own: own.spool.queue_list(selector, limit=LIST_MAX), nothing=[]
            )
        return listed

    def retry(self, selector: Selector, *, who: str, dry_run: bool) -> list[dict[str, Any]]:
        """Make deferred entries due at once; returns them."""
        wanted = _conditions(selector) | {"dry_run": dry_run}
        try:
            done: list[dict[str, Any]] = self._client.post("/queue/retry", wanted)
        except ControlUnavailableError:
            now_us = self._clock.time_us()
            return self._offline(
                lambda own: own.spool.retry(selector, now_us=now_us, who=who, dry_run=dry_run),
                nothing=[],
            )
        return done

    def _offline(self, ask: Callable[[_Offline], Awaitable[T]], *, nothing: T) -> T:
        """Own the spool for one question; `nothing` where there was never a relay."""
        if not spool_path(self._settings).exists():
            return nothing

        async def answer() -> T:
            spool = SqliteSpool(
                spool_path(self._settings), clock=self._clock, crash=CrashPoints(),
                metrics=Metrics(), submission_keep_s=0,
            )  # fmt: skip
            log = StoreLog(
                self._settings.mailboxes.root / ".submissions" / "log",
                role="cli",
                clock=self._clock,
            )
            await spool.start()
            try:
                return await ask(_Offline(spool, Journeys(spool, log)))
            finally:
                await spool.stop()

        lock = OwnerLock(self._settings.run_dir)
        lock.take()
        try:
            return asyncio.run(answer())
        finally:
            lock.give_back()


def _conditions(selector: Selector) -> dict[str, Any]:
    """The conditions of a selector that are given, by their names in the body of a POST."""
    return {name: value for name, value in asdict(selector).items() if value not in ("", (), None)}


def _query(selector: Selector) -> dict[str, str]:
    """A selector as the query of a GET."""
    query = {
        "id": ",".join(selector.ids),
        "sender": selector.sender,
        "recipient": selector.recipient,
        "domain": selector.domain,
        "next_hop": selector.next_hop,
        "state": selector.state,
    }
    if selector.older_than_s is not None:
        query["older_than"] = f"{selector.older_than_s:g}"
    return {name: value for name, value in query.items() if value}
