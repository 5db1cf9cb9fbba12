"""What was measured, each figure beside its bound.

A figure is a ratio, a growth or a number of things, so that machines can be compared.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`value` may be at most `most`, and at least `least`, where these are given."""

    name: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        return (self.most is None or self.value <= self.most) and (
            self.least is None or self.value >= self.least
        )

    def __str__(self) -> str:
        bound = "" if self.most is None else f"<= {self.most:g}"
        bound = bound if self.least is None else f">= {self.least:g}"
        verdict = "" if not bound else "holds" if self.holds else "MISSED"
        return (
            f"{self.name:<58} {self.value:>9.2f} {self.unit:<4} {bound:<8} {verdict:<7} {self.note}"
        )
