"""Counts in a sliding window: in no period of its length, whenever it begins, more than allowed.

The period has SLOTS slots, numbered from the zero of a clock; what is counted counts for one of
them longer at most. A bucket that fills again (GCRA) takes one float, but lets nearly twice as many
through in a period.
"""

from collections.abc import Callable, Sequence
from typing import Self

SLOTS = 60


class Reservation:
    """What one message counts: for good after keep(), otherwise only within the context."""

    def __init__(self) -> None:
        self.taken: list[tuple[dict[int, int], int, int]] = []  # slots, number, count
        self.on_given_back: Callable[[], object] = lambda: None

    @classmethod
    def of(cls, reservations: "Sequence[Reservation]") -> Self:
        """Return one that counts what all of these did. They count nothing afterwards."""
        whole = cls()
        for reservation in reservations:
            whole.taken += reservation.taken
            reservation.keep()
        return whole

    def add(self, slots: dict[int, int], number: int, count: int) -> None:
        """Count in a slot."""
        slots[number] = slots.get(number, 0) + count
        self.taken.append((slots, number, count))

    def keep(self) -> None:
        """Count the message: it is accepted."""
        self.taken.clear()

    def give_back(self) -> None:
        """Count nothing for the message."""
        if not self.taken:
            return
        for slots, number, count in self.taken:
            if number in slots:
                slots[number] -= count
        self.taken.clear()
        self.on_given_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()


NOTHING = Reservation()
