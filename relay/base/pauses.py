"""Pauses: an operator stops this node from delivering or accepting mail.

A pause is stored in a file of state_dir: it lasts over restarts until an operator resumes or its
time ends. SMTP sessions and the Graph API check it (Pressure.paused), and delivery (on_change).
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from relay.base.clock import Clock, Timer, rfc3339, time_us_of
from relay.base.files import replace_file


class Paused(StrEnum):
    """What can be paused: the labels of relay_paused."""

    DELIVERY = "delivery"
    ACCEPT = "accept"


_TEXTS = {Paused.DELIVERY: "delivery is paused", Paused.ACCEPT: "accepting mail is paused"}


class Pause(msgspec.Struct, frozen=True):
    """One pause; times are those of the wall clock, in RFC 3339."""

    since: str
    until: str | None  # None: until an operator resumes
    who: str

    @property
    def until_us(self) -> float:
        """When it ends. Raises ValueError."""
        return inf if self.until is None else time_us_of(self.until)

    def text(self, what: Paused) -> str:
        """Return the pause as a sentence."""
        until = f" until {self.until[:19]}Z" if self.until else ""
        return f"{_TEXTS[what]} by {self.who} since {self.since[:19]}Z{until}"


_PAUSES = msgspec.json.Decoder(dict[Paused, Pause])


class Pauses:
    """The pauses of a node. Changes run one after the other; each is durable when it returns."""

    def __init__(self, file: Path, clock: Clock) -> None:
        """Read the file. Raises OSError, and ValueError if it is no file of pauses."""
        import asyncio  # noqa: PLC0415 - commands that print a pause start faster without it

        self._file = file
        self._clock = clock
        self._all = _PAUSES.decode(file.read_bytes()) if file.exists() else {}
        self.current()  # raises ValueError for an invalid time
        self._lock = asyncio.Lock()
        self._timer: Timer | None = None
        # called with the present pauses when they may have changed
        self.on_change: Callable[[Container[Paused]], None] = lambda _pauses: None

    def current(self) -> Mapping[Paused, Pause]:
        """Return the pauses that have not ended."""
        now_us = self._clock.time_us()
        return {what: pause for what, pause in self._all.items() if pause.until_us > now_us}

    def as_json(self) -> dict[str, Any]:
        """Return the answer of GET /relay/v1/pause: null for what is not paused."""
        pauses = self.current()
        return {str(what): msgspec.to_builtins(pauses.get(what)) for what in Paused}

    def why(self, what: Paused) -> str:
        """Return a sentence: who paused it, and until when; "" if it is not paused."""
        pause = self.current().get(what) if self._all else None
        return pause.text(what) if pause is not None else ""

    async def pause(self, what: Paused, *, for_s: float | None, who: str) -> None:
        """Pause for `for_s`, or without an end. If OSError is raised, nothing has changed."""
        now_us = self._clock.time_us()
        until = None if for_s is None else rfc3339(now_us + int(for_s * 1_000_000))
        async with self._lock:
            await self._use({**self.current(), what: Pause(rfc3339(now_us), until, who)})

    async def resume(self, what: Iterable[Paused]) -> Sequence[Paused]:
        """End pauses, and return those that existed. If OSError is raised, nothing has changed."""
        async with self._lock:
            pauses = self.current()
            ended = [name for name in dict.fromkeys(what) if name in pauses]
            await self._use({name: pauses[name] for name in pauses if name not in ended})
        return ended

    async def _use(self, pauses: dict[Paused, Pause]) -> None:
        import asyncio  # noqa: PLC0415

        octets = msgspec.json.encode(pauses)
        try:
            await asyncio.to_thread(replace_file, self._file, octets, mode=0o600)
        except OSError as error:  # of a write, it names no file
            text = f"{error.strerror}; nothing has changed, repeat it when this file can be written"
            raise OSError(error.errno, text, str(self._file)) from error
        self._all = pauses
        self.apply()

    def apply(self) -> None:
        """Call on_change now and when a pause ends. Needs the event loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pauses = self.current()
        self.on_change(pauses)
        end_us = min((pause.until_us for pause in pauses.values()), default=inf)
        if end_us < inf:
            # a timer of uvloop may be a fraction of a millisecond early, and counts in milliseconds
            left_s = max(0.001, (end_us - self._clock.time_us()) / 1_000_000)
            self._timer = self._clock.call_later(left_s, self.apply)
