"""How many success and delay reports a sender may get in a time.

Senders are remembered by a number, at most SENDERS_MAX of them; those whose time began first are
forgotten first. Nothing is stored: a start forgets what senders had.
"""

from dataclasses import dataclass

from relay.clock import Clock
from relay.message.envelope import MessageFacts
from relay.spool.types import sender_key

SENDERS_MAX = 10_000


@dataclass(slots=True)
class _Span:
    began_s: float
    taken: int = 0


class SenderRate:
    """At most `count` reports for each sender in `per_s` seconds, from the first one on."""

    def __init__(self, count: int, per_s: float, clock: Clock) -> None:
        self.count = count
        self._per_s = per_s
        self._clock = clock
        self._spans: dict[int, _Span] = {}  # in the order of their beginning

    def take(self, message: MessageFacts) -> bool:
        """Count a report to the sender of `message`; False if there were too many already."""
        now_s = self._clock.monotonic()
        sender = sender_key(message.account or message.envelope.reverse_path)
        span = self._spans.get(sender)
        if span is None or now_s - span.began_s >= self._per_s:
            self._spans.pop(sender, None)
            if len(self._spans) >= SENDERS_MAX:
                del self._spans[next(iter(self._spans))]
            span = self._spans[sender] = _Span(now_s)
        if span.taken >= self.count:
            return False
        span.taken += 1
        return True
