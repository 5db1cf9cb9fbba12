"""The worker processes of sender checks: start them when they are needed, ask, replace those that
fail.
"""

import asyncio
from collections.abc import Awaitable, Callable

from relay.base.child_process import AnsweringProcess, ChildRequest
from relay.base.observe.logs import get_logger
from relay.base.task_set import TaskSet, shielded
from relay.base.turns import Turns

WORKERS_MAX = 2
WAITING_MAX = 500  # requests that wait for a worker
_TURN_S = 5.0  # a request waits for a worker
_REQUEST_S = 3.0
_FIRST_REQUEST_S = 20.0  # with the start, on a busy machine
_MODULE = "relay.transport.checks.check_child"
_log = get_logger("checks")


class CheckWorkers:
    """The processes of check_child. A request has one for itself, each client in its turn."""

    def __init__(self) -> None:
        self._turns = Turns("sender checks", WORKERS_MAX, waiting_max=WAITING_MAX)
        self._idle: list[AnsweringProcess] = []
        self._requests = TaskSet()

    async def ask(
        self, make_request: Callable[[], Awaitable[ChildRequest]], *, client: str
    ) -> bytes:
        """Return the reply to a request, which is made when a worker is free for it: few large ones
        are in memory. Raises OSError, with the reason, and what `make_request` raises.

        `client` is what client_of() returns.
        """
        if not await self._turns.take(client, wait_s=_TURN_S):
            raise OSError("too many messages are being checked")
        exchange = self._requests.start(self._reply(make_request))
        exchange.add_done_callback(lambda _: self._turns.give_back(client))
        # if the caller stops waiting, a worker that has just started stays for the next one
        reply = await shielded(exchange)
        if isinstance(reply, str):
            raise OSError(reply)
        return reply

    def close(self) -> None:
        """End the workers."""
        self._requests.cancel()
        while self._idle:
            self._idle.pop().end()

    async def _reply(self, make_request: Callable[[], Awaitable[ChildRequest]]) -> bytes | str:
        """Return the reply of a worker, or why there is none."""
        request = await make_request()
        limit_s = _REQUEST_S if self._idle else _FIRST_REQUEST_S
        try:
            worker = self._idle.pop() if self._idle else AnsweringProcess(_MODULE)
        except OSError as error:
            return f"no process can be started: {error.strerror}"
        try:
            async with asyncio.timeout(limit_s):  # real time: a child
                reply = await worker.ask(request)
            self._idle.append(worker)
        except TimeoutError:
            return _ended("it hangs")
        except (OSError, EOFError):
            return _ended(worker.how_it_ended())
        finally:
            if worker not in self._idle:
                worker.end()
        return reply


def _ended(reason: str) -> str:
    _log.repeated("warning", "a check of a sender was ended", reason=reason)
    return "the check took too much time or memory"
