"""Count what the `rate_limit` actions of rules count, in memory: a restart forgets it.

A limit belongs to a rule, to whom it counts (a sender, login or client) and to its rate: it goes on
over a reload that changes none of them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Self

from relay.clock import Clock
from relay.message.verdict import RateCharge

KEYS_MAX = 10_000  # some 1 KiB each if all send all the time; the least recently used one goes
# A sliding window: in no period of that length, whenever it begins, more recipients than allowed. A
# bucket that fills again (GCRA) takes one float, but lets nearly twice as many through in a period.
_SLOTS = 60  # of a period; a recipient counts for one of them longer at most
_Key = tuple[str, str, str, int, float]  # rule, per, key, and the rate


class Reservation:
    """What one message counts: for good after keep(), otherwise only within the context."""

    def __init__(self) -> None:
        self._taken: list[tuple[dict[int, int], int, int]] = []  # slots, number, recipients

    def add(self, slots: dict[int, int], number: int, recipients: int) -> None:
        """Count recipients in a slot."""
        slots[number] = slots.get(number, 0) + recipients
        self._taken.append((slots, number, recipients))

    def keep(self) -> None:
        """Count the message: it is accepted."""
        self._taken.clear()

    def give_back(self) -> None:
        """Count nothing for the message."""
        for slots, number, recipients in self._taken:
            if number in slots:
                slots[number] -= recipients
        self._taken.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()


_NOTHING = Reservation()


class RateLimits:
    """The limits in use. Each method runs without await, so that messages cannot pass together."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slots: OrderedDict[_Key, dict[int, int]] = OrderedDict()  # recipients by slot

    def reserve(self, charges: Sequence[RateCharge]) -> Reservation | RateCharge:
        """Count all of these charges; or none, and return the first one beyond its limit."""
        if not charges:  # nearly always
            return _NOTHING
        reservation, now_s = Reservation(), self._clock.monotonic()
        for charge in charges:
            number = int(now_s * _SLOTS / charge.period_s)
            slots = self._slots_of(charge, since=number - _SLOTS)
            if sum(slots.values()) + charge.recipients > charge.allowed:
                reservation.give_back()
                return charge
            reservation.add(slots, number, charge.recipients)
        return reservation

    def _slots_of(self, charge: RateCharge, *, since: int) -> dict[int, int]:
        """Return the recipients that count, without the slots before `since`."""
        key = charge.rule, charge.per, charge.key, charge.allowed, charge.period_s
        slots = self._slots.get(key)
        if slots is None:
            if len(self._slots) >= KEYS_MAX:
                self._slots.popitem(last=False)
            slots = self._slots[key] = {}
        self._slots.move_to_end(key)
        for number in [each for each in slots if each < since]:
            del slots[number]
        return slots
