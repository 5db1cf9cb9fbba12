"""Mail that rules would hold beyond `[policy] held_max`: it is deferred, and the log says so.

The spool counts what rules hold. The log has one line in a minute at most, with the number of
messages deferred since the line before.
"""

from relay.clock import Clock
from relay.ingress.data import DataReply
from relay.observe.logs import get_logger

LINES_APART_S = 60.0
# RFC 3463 3.4
_REPLY = "452 4.3.1 Rules hold as many messages as they may, try again later"
_log = get_logger("ingress")


class HoldLimit:
    """Writes the replies to mail that is not held because so much is; a start forgets how many."""

    def __init__(self, clock: Clock, held_max: int) -> None:
        self._clock = clock
        self._held_max = held_max
        self._logged_s: float | None = None
        self._deferred = 0

    def rejection(self, rule: str) -> DataReply:
        """Return the reply to a message that `rule` would hold."""
        self._deferred += 1
        now_s = self._clock.monotonic()
        if self._logged_s is None or now_s - self._logged_s >= LINES_APART_S:
            _log.warning(
                "mail deferred: rules hold as much as they may",
                held_max=self._held_max, rule=rule, messages=self._deferred,
            )  # fmt: skip
            self._logged_s, self._deferred = now_s, 0
        return DataReply(_REPLY, rule=rule)
