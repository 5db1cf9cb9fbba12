"""What is known of hosts: who answered, who was not there, and what was said then.

On the path: sites look here before they ask a host, and tell what came of it.
Holds: bounded, the longest unused goes first; it outlives the sites that learnt it, and hosts
    that serve several of them are asked once.
Fails: never.
Standards: none.
"""

from collections import OrderedDict
from dataclasses import dataclass

from relay.message.outcome import Deferred, Failed

HOSTS_MAX = 20_000

# an address, a port, how TLS is used there, and as whom: who is not there for one login is for none
Place = tuple[str, int, str, str]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What came of the last try, and when (a clock that never goes back)."""

    outcome: Deferred | Failed
    at_s: float


class HostMemory:
    """Answers and refusals by place."""

    def __init__(self, *, hosts_max: int = HOSTS_MAX) -> None:
        self._hosts_max = hosts_max
        self._known: OrderedDict[Place, Refusal | float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def answered(self, place: Place, now_s: float) -> None:
        """A connection to it stands."""
        self._note(place, now_s)

    def refused(self, place: Place, refusal: Refusal) -> None:
        """It gave no connection."""
        self._note(place, refusal)

    def refusal(self, place: Place, *, since_s: float) -> Refusal | None:
        """What it refused with, if that was its last word and not before `since_s`."""
        known = self._known.get(place)
        if isinstance(known, Refusal) and known.at_s >= since_s:
            return known
        return None

    def has_answered(self, place: Place, *, since_s: float) -> bool:
        """Whether its last word was a connection, not before `since_s`."""
        known = self._known.get(place)
        return isinstance(known, float) and known >= since_s

    def forget_refusal(self, place: Place) -> None:
        """Somebody wants it to be asked again."""
        if isinstance(self._known.get(place), Refusal):
            del self._known[place]

    def _note(self, place: Place, known: Refusal | float) -> None:
        self._known[place] = known
        self._known.move_to_end(place)
        if len(self._known) > self._hosts_max:
            self._known.popitem(last=False)
