"""Convert submissions to MIME in a pool of child processes; short plain text is converted here.

This process parses nothing and uses no threads. If a conversion exceeds its time limit, its process
is killed, and the conversion is repeated in a separate process with more time. Accounts take turns.

Raises ConversionError for a message that cannot be sent, and OSError if the file cannot be read or
no process can be started. Raises ConversionUnfinishedError if the repeated conversion also exceeds
its time or fails.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass

from relay.base.child_process import AnsweringProcess
from relay.base.clock import Clock, Timer
from relay.base.message.content import Octets
from relay.base.observe.logs import get_logger
from relay.base.turns import Turns
from relay.formats.convert import ConversionError, ConvertedMessage
from relay.formats.draft import FIRST_FIELD_BYTES, private_block_length
from relay.store.mailbox.pending_submission import PendingSubmission
from relay.submission.pickup.conversion_child import ConversionRequest, read_answer

PLAIN_BYTES_MAX = 64 * 1024
_SHARED_MAX = 2  # of which an account has one
_LIMIT_S = 2.0  # enough for almost all messages; plus the following for each MiB
_LIMIT_S_PER_MIB = 0.1
_ALONE_WAIT_S = 15.0  # a submission that waits delays others of its account, and a stop
_ALONE_LIMIT_S = 10.0  # of CPU: a busy machine leaves little to a process of low priority
_ALONE_LIMIT_S_PER_MIB = 1.0
_REAL_PER_CPU_S = 10
_START_LIMIT_S = 30.0  # not caused by the submission: the machine is busy
_IDLE_S = 600.0
_SUBMISSIONS_MAX = 1000  # per process, which bounds a memory leak
_NICE = 10
_REAPED_AFTER_S = 1.0
_CHILD = "relay.submission.pickup.conversion_child"
_log = get_logger("pickup")
_PLAIN = b'"body_type":"text"'  # in the private block, where quotes within strings are escaped


class ConversionUnfinishedError(Exception):
    """A conversion exceeded its time limit, or failed.

    `fault` is the internal error, for the log.
    """

    def __init__(self, text: str, fault: str = "") -> None:
        super().__init__(text)
        self.fault = fault


@dataclass(eq=False)
class ConversionPool:
    """Converts submissions in child processes, which a conversion may crash."""

    function: Callable[..., ConvertedMessage]  # relay.formats.convert.convert, there by its name
    _: KW_ONLY
    hostname: str
    clock: Clock
    in_threads: bool = False  # the first attempt has no limits: only for content that is trusted

    def __post_init__(self) -> None:
        self._shared = Turns("conversions at pickup", _SHARED_MAX)
        self._alone = Turns("long conversions at pickup", 1)
        self._idle: list[_ConversionProcess] = []
        self._killed: list[_ConversionProcess] = []
        self._is_closed = False

    async def convert(self, pending: PendingSubmission, content: Octets) -> ConvertedMessage:
        """Convert a submission within the usual time limit.

        If it does not finish, it is repeated in a separate process with more time. Raises
        ConversionError, ConversionUnfinishedError, OSError. OSError is also raised if the turn of
        the account in the separate process does not come in time.
        """
        if is_plain(content):
            return self.function(content, now_us=self.clock.time_us(), hostname=self.hostname)
        try:
            return await self._convert_usually(pending, content)
        except ConversionUnfinishedError as error:
            reason = error.fault or str(error)
            _log.warning(
                "conversion not finished", submission_id=pending.submission_id, reason=reason
            )
        if not await self._alone.take(pending.account, wait_s=_ALONE_WAIT_S):
            raise OSError("other long conversions are in progress")
        try:
            child = await self._start()
            child.lower_priority()
            try:
                limit_s = _ALONE_LIMIT_S + _ALONE_LIMIT_S_PER_MIB * content.size / (1 << 20)
                return await self._convert_in(
                    child, pending, limit_s, in_s=limit_s * _REAL_PER_CPU_S
                )
            finally:
                self._end(child)
        finally:
            self._alone.give_back(pending.account)

    async def _convert_usually(
        self, pending: PendingSubmission, content: Octets
    ) -> ConvertedMessage:
        if self.in_threads:
            return await asyncio.to_thread(self._convert_here, content)
        async with self._shared.turn(pending.account):
            child = self._take_idle() or await self._start()
            try:
                limit_s = _LIMIT_S + _LIMIT_S_PER_MIB * content.size / (1 << 20)
                return await self._convert_in(child, pending, limit_s, in_s=limit_s)
            finally:
                self._put_back(child)

    async def _convert_in(
        self, child: "_ConversionProcess", pending: PendingSubmission, cpu_s: float, *, in_s: float
    ) -> ConvertedMessage:
        now_us = self.clock.time_us()
        request = ConversionRequest(bytes(pending.path), now_us, cpu_s=int(cpu_s) + 1)
        return await child.convert(request, in_s)

    def _convert_here(self, content: Octets) -> ConvertedMessage:
        try:
            return self.function(content, now_us=self.clock.time_us(), hostname=self.hostname)
        except (ConversionError, OSError):
            raise
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
            raise ConversionUnfinishedError("it failed with an internal error", fault) from error

    def close(self) -> None:
        """End the idle processes. The others end after their current submission."""
        self._is_closed = True
        for child in self._idle:
            child.timer.cancel()
            self._end(child)
        self._idle.clear()
        self._reap(_REAPED_AFTER_S)

    def _take_idle(self) -> "_ConversionProcess | None":
        """Return an idle process, if there is one."""
        while self._idle:
            child = self._idle.pop()
            child.timer.cancel()
            if child.is_usable:
                return child
            self._end(child)
        return None

    def _put_back(self, child: "_ConversionProcess") -> None:
        if child.is_usable and not self._is_closed:
            self._idle.append(child)
            child.timer = asyncio.get_running_loop().call_later(  # real time: an idle child
                _IDLE_S, self._retire, child
            )
        else:
            self._end(child)

    def _retire(self, child: "_ConversionProcess") -> None:
        self._idle.remove(child)
        self._end(child)

    def _end(self, child: "_ConversionProcess") -> None:
        """Kill a process and reap it later."""
        child.kill()
        self._killed.append(child)
        if self._is_closed:
            self._reap(_REAPED_AFTER_S)
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(_REAPED_AFTER_S, self._reap)  # real time: a child ends

    def _reap(self, wait_s: float = 0) -> None:
        self._killed = [child for child in self._killed if not child.has_ended(wait_s)]

    async def _start(self) -> "_ConversionProcess":
        """Start a process and wait until it is ready. Raises OSError."""
        function = f"{self.function.__module__}:{self.function.__name__}"
        child = _ConversionProcess(_CHILD, function, self.hostname)
        try:
            async with asyncio.timeout(_START_LIMIT_S):  # real time: a child starts
                await child.started()
        except TimeoutError:
            reason = f"the conversion process was not ready within {_START_LIMIT_S:g} seconds"
            raise OSError(reason) from None
        finally:
            if not child.is_usable:
                self._end(child)
        return child


class _ConversionProcess(AnsweringProcess):
    """A process of `conversion_child`, which converts one submission at a time."""

    timer: Timer  # ends it after an idle time

    submissions = 0

    @property
    def is_usable(self) -> bool:
        """Whether it can convert another submission."""
        return self.is_idle and self.submissions < _SUBMISSIONS_MAX

    async def convert(self, request: ConversionRequest, limit_s: float) -> ConvertedMessage:
        """Return the converted message. After ConversionUnfinishedError the process is not usable,
        unless it had an internal error. Raises ConversionError, OSError.
        """
        self.submissions += 1
        try:
            async with asyncio.timeout(limit_s):  # real time: a child converts
                answer = read_answer(await self.ask(request))
        except TimeoutError:  # a subclass of OSError, as is the next one
            raise ConversionUnfinishedError(f"it did not end within {limit_s:g} seconds") from None
        except (EOFError, ConnectionError):
            raise ConversionUnfinishedError(self.how_it_ended()) from None
        if answer.made is not None:
            return answer.made
        if answer.refused:
            raise ConversionError(answer.refused)
        if answer.unread:
            raise OSError(answer.unread)
        raise ConversionUnfinishedError("it failed with an internal error", answer.fault)

    def lower_priority(self) -> None:
        """Lower its CPU priority."""
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, self.process.pid, _NICE)


def is_plain(content: Octets) -> bool:
    """Return whether a submission is short plain text from Graph, which needs no child process.

    Its text is copied and its fields are written; no MIME and no HTML is parsed.
    """
    if content.size > PLAIN_BYTES_MAX:
        return False
    length = private_block_length(content.read(0, FIRST_FIELD_BYTES))
    return _PLAIN in content.read(0, length)
