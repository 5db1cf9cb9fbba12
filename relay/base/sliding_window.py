"""Counts in a sliding window: no period of its length, whenever it begins, has more than allowed.

The period has SLOTS slots, numbered from the zero of a clock; a count expires at most one slot
late. A token bucket (GCRA) needs only one float, but allows nearly twice as many in a period.
"""

from collections.abc import Callable, Sequence
from typing import Self

SLOTS = 60


class Reservation:
    """The counts of one message. They last after keep(); otherwise they end with the context."""

    def __init__(self) -> None:
        self.taken: list[tuple[dict[int, int], int, int]] = []  # slots, number, count
        self.on_given_back: Callable[[], object] = lambda: None

    @classmethod
    def of(cls, reservations: "Sequence[Reservation]") -> Self:
        """Return a reservation with the counts of all of these, which are empty afterwards."""
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
        """Undo the counts of the message."""
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
