"""Answers to reports: mail for MAILER-DAEMON, and for a postmaster where nobody is set.

Nobody waits for it, and programs write most of it: it becomes a dead letter within limits, else it
is discarded. It never causes a report. See RFC 3834 4 (who must not be answered).
"""

from relay.clock import Clock
from relay.message.envelope import Envelope
from relay.observe.metrics import Metrics

ANSWER_BYTES_MAX = 1_000_000
ANSWERS_PER_HOUR = 100
_HOUR_S = 3600.0


class AnswerLimit:
    """Decides which answers are kept; a start forgets how many there were."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._began_s = clock.monotonic()
        self._taken = 0

    def why_discarded(self, envelope: Envelope, size_bytes: int) -> str:
        """Return why an answer is discarded, "" if it is kept, which counts it."""
        now_s = self._clock.monotonic()
        if now_s - self._began_s >= _HOUR_S:
            self._began_s, self._taken = now_s, 0
        if not envelope.reverse_path:
            reason, text = "null-sender", "nobody reads what the null sender answers"
        elif size_bytes > ANSWER_BYTES_MAX:
            reason, text = "size", f"an answer to a report has over {ANSWER_BYTES_MAX:,} octets"
        elif self._taken >= ANSWERS_PER_HOUR:
            reason, text = "rate", f"over {ANSWERS_PER_HOUR} answers to reports in an hour"
        else:
            self._taken += 1
            return ""
        self._metrics.answers_discarded.labels(reason=reason).inc()
        return text
