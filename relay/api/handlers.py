"""The queue: listed, counted, and changed by hand.

On the path: beside it; `relay queue` shows what these answer.
Holds: all of it is for roles above user; whoever hangs up stops an order between two slices, and
    what is done until then stays done.
Fails: ApiError 400 for a parameter or body, 403 for the role.
Standards: none; JSON from docs/names.md.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from relay.api.dependencies import OPERATOR, Means, Viewer
from relay.api.request_parameters import (
    Asking,
    limit_of,
    number_of,
    order_of_body,
    read_body,
    selector_of_query,
)
from relay.http.errors import ApiError, shown, try_later
from relay.http.gateway import json_response
from relay.http.http_request import Call
from relay.journeys.journey import is_final
from relay.message.lifecycle import State
from relay.spool.operating import UNKNOWN_HEADER, Operation


class Queue:
    """The handlers of /queue."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def list(self, query: Mapping[str, str], viewer: Viewer) -> Response:
        """GET /queue?CONDITION=&limit=; what is not known stands in a header."""
        viewer.check_may_read()
        listed = await self._means.desk.list(selector_of_query(query), limit=limit_of(query))
        unknown = ",".join(quote(name, safe="") for name in listed.unknown)
        return json_response(listed, headers={UNKNOWN_HEADER: unknown} if unknown else None)

    async def stats(self, viewer: Viewer) -> Mapping[str, Any]:
        """GET /queue/stats."""
        viewer.check_may_read()
        return await self._means.stats()

    async def change(self, operation: Operation, call: Call, viewer: Viewer) -> dict[str, Any]:
        """POST /queue/{operation}."""
        viewer.check_may_operate()
        call.may_be_repeated = True  # what is held is held, and what is cancelled is gone
        asking = Asking(
            name=viewer.name,
            may_say_who=viewer is OPERATOR,
            way_to=self._means.way_to,
            clock=self._means.clock,
        )
        order = order_of_body(operation, await call.body(), asking)
        try:
            changed = await call.unless_gone(self._means.desk.carry_out(order))
        finally:
            self._means.changes.announce()
        return changed.as_json()


_AGE_S_MAX = 1e9


class _Prune(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    older_than_s: float | None = None
    dry_run: bool = False


class Storage:
    """The handler of /storage."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def prune(self, call: Call, viewer: Viewer) -> Mapping[str, Any]:
        """POST /storage/prune; without `older_than_s` what spool.keep says."""
        viewer.check_may_operate()
        body = read_body(await call.body(), _Prune)
        if body.older_than_s is not None and not 0 <= body.older_than_s <= _AGE_S_MAX:
            text = f"expected a number of seconds up to {_AGE_S_MAX:.0f}"
            raise ApiError(400, "BadRequest", f"The field older_than_s: {text}.")
        return await self._means.prune(body.older_than_s, body.dry_run)


WAIT_S_MAX = 300.0
_WAIT_S = 30.0
_WAITING_MAX = 200
_KEY_CHARACTERS = 1000
# A net under the signal: another role's process writes the store's log without telling this one.
_LOOK_AGAIN_S = 1.0
_PAUSE_S = 0.05  # a relay that is busy changes all the time, and each look reads the spool


class Messages:
    """The handlers of /messages."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._waiting = 0

    async def recent(self, query: Mapping[str, str], viewer: Viewer) -> list[dict[str, Any]]:
        """GET /messages?limit=&state=."""
        state = query.get("state", "")
        if state and state not in tuple(State):
            raise _bad_state(state, tuple(State))
        return await self._means.journeys.recent(
            account=viewer.account, state=state, limit=limit_of(query)
        )

    async def one(self, key: str, viewer: Viewer) -> dict[str, Any]:
        """GET /messages/{id}."""
        found = await self._look(key, viewer)
        if found is None:
            raise _unknown(key)
        return found

    async def wait(self, key: str, query: Mapping[str, str], viewer: Viewer) -> dict[str, Any]:
        """GET /messages/{id}/wait?state=final&timeout=30: the journey, and whether it got there.

        A message that is not known yet is waited for as well; one that has ended in another state
        is not waited for any more.
        """
        state = query.get("state", "final")
        if state not in ("final", *State):
            raise _bad_state(state, ("final", *State))
        timeout_s = number_of(query, "timeout", default=_WAIT_S, limits=(0, WAIT_S_MAX))
        if self._waiting >= _WAITING_MAX:
            raise try_later("ResourceUnhealthy", "Too many requests wait already.", after_s=5)
        self._waiting += 1
        try:
            found = await self._wait(key, viewer, state=state, timeout_s=timeout_s)
        finally:
            self._waiting -= 1
        if found is None:
            raise _unknown(key)
        return {**found, "reached": has_reached(found, state)}

    async def _wait(
        self, key: str, viewer: Viewer, *, state: str, timeout_s: float
    ) -> dict[str, Any] | None:
        clock = self._means.clock
        deadline = clock.monotonic() + timeout_s
        while True:
            seen = self._means.changes.count
            found = await self._look(key, viewer)
            left_s = deadline - clock.monotonic()
            is_over = found is not None and (has_reached(found, state) or is_final(found))
            if is_over or left_s <= 0:
                return found
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _LOOK_AGAIN_S)):
                    await self._means.changes.beyond(seen)
                    await asyncio.sleep(_PAUSE_S)  # sleeps: reads a burst of events once

    async def _look(self, key: str, viewer: Viewer) -> dict[str, Any] | None:
        if not key or len(key) > _KEY_CHARACTERS:
            return None
        found = await self._means.journeys.journey(key, account=viewer.account)
        if found is None and "@" in key and not key.startswith("<"):
            # a Message-ID without its brackets looks like an address
            found = await self._means.journeys.journey(f"<{key}>", account=viewer.account)
        return found


def has_reached(journey: Mapping[str, Any], state: str) -> bool:
    """Whether a journey is in `state`, or, for "final", has only recipients in final states."""
    return is_final(journey) if state == "final" else bool(journey["state"] == state)


def _unknown(key: str) -> ApiError:
    return ApiError(404, "ErrorItemNotFound", f"No message is known as {shown(key)}.")


def _bad_state(state: str, choices: tuple[str, ...]) -> ApiError:
    message = f"state: found {shown(state)}, expected one of {', '.join(choices)}."
    return ApiError(400, "BadRequest", message)
