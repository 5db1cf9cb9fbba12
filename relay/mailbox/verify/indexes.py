"""A mailbox's index against the mailbox: what does not agree is made anew.

On the path: mailboxes.py, behind everything that changes names.
Holds: the index is a cache: whatever is wrong with it, removing it loses nothing but what only it
knew: ids of messages that others moved under other names, and the change feed's past. An index is
caught up before it is judged, and judged again before that counts.
Fails: OSError when the mailbox cannot be read.
Standards: docs/design.md 3.
"""

from contextlib import suppress
from pathlib import Path

from relay.clock import Clock
from relay.mailbox.index.checking import (
    check_file,
    compare,
    compare_as_it_is,
    find_file,
    index_path,
    make_anew,
)
from relay.mailbox.index.comparing import Difference
from relay.mailbox.index.database import IndexDamagedError, IndexUnusableError
from relay.mailbox.types import StoreError
from relay.mailbox.verify.findings import Fault, Kind
from relay.mailbox.verify.flight import Flight
from relay.mailbox.verify.mending import Cure, Mender

_LOOKS = 3
_SHOWN = 3


class IndexCheck:
    """Checks indexes; `full` reads the header of every message, not of a sample."""

    def __init__(self, mender: Mender, flight: Flight, *, clock: Clock, full: bool) -> None:
        self._mender = mender
        self._flight = flight
        self._clock = clock
        self._full = full

    def check(self, mailbox: Path) -> bool:
        """Check a mailbox's index; return whether there is one."""
        path = index_path(mailbox)
        if not path.exists():
            return False
        try:
            check_file(mailbox, full=self._full)
            found = self._persistent(mailbox)
        except IndexDamagedError as error:
            fault = Fault(Kind.DAMAGED_INDEX, path, str(error), "an index that can be read")
            self._mender.settle(fault, self._made_anew(mailbox))
        except (IndexUnusableError, StoreError) as error:
            fault = Fault(Kind.UNREADABLE, path, str(error), "an index that can be used")
            self._mender.settle(fault)
        else:
            if found:
                fault = Fault(Kind.DEVIATING_INDEX, path, _told(found), "what the files say")
                self._mender.settle(fault, self._made_anew(mailbox))
        return True

    def _persistent(self, mailbox: Path) -> list[Difference]:
        """What differs every time: others may be at work in the mailbox meanwhile."""
        found = self._differences(mailbox)
        for _ in range(_LOOKS - 1):
            if not found:
                break
            self._flight.pass_by(self._clock.time_us() / 1_000_000)
            found &= self._differences(mailbox)
        return sorted(found)

    def _differences(self, mailbox: Path) -> set[Difference]:
        if self._mender.dry_run:
            return compare_as_it_is(mailbox, full=self._full)
        return compare(mailbox, self._clock, full=self._full)

    def _made_anew(self, mailbox: Path) -> Cure:
        def act() -> None:
            try:
                make_anew(mailbox, self._clock)
            except StoreError as error:
                raise OSError(str(error)) from error

        return Cure("made anew", act)


def keeper_of(mailbox: Path, message_id: str) -> Path | None:
    """The file that has an id by the mailbox's index; None where there is none that tells."""
    if index_path(mailbox).exists():
        with suppress(IndexDamagedError, IndexUnusableError):
            return find_file(mailbox, message_id)
    return None


def _told(found: list[Difference]) -> str:
    shown = "; ".join(f"{one.where}: {one.what}".removeprefix(": ") for one in found[:_SHOWN])
    return shown if len(found) <= _SHOWN else f"{shown}; and {len(found) - _SHOWN} more"
