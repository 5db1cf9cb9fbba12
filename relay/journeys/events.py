"""The events of a message's journey: the seven steps and what happens in them.

On the path: every room makes them; the store's log keeps steps 1 to 4, the spool steps 5 to 7.
Holds: `at_us` is when the step ended, taken before the hand-over, not when it was written.
Fails: never.
Standards: the steps of Graph's send-mail process; names from docs/names.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from relay.clock import rfc3339


class Step(IntEnum):
    """One of the seven."""

    CREATED = 1
    NOTIFIED = 2
    CONVERTED = 3
    ACCEPTED = 4
    POLICY_AND_ROUTING = 5
    DELIVERY = 6
    REPORT = 7

    @property
    def title(self) -> str:
        """The step's name in the trace."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Event:
    """One step of one message; `detail` is JSON-ready and small."""

    step: Step
    at_us: int
    detail: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The event as the trace shows it."""
        return {
            "step": int(self.step),
            "name": self.step.title,
            "at": rfc3339(self.at_us),
            "detail": dict(self.detail),
        }
