"""Limits of the messages that are accepted, in memory: a restart forgets what was counted.

RateLimits counts the recipients for the `rate_limit` actions of rules. A limit is identified by the
rule, by the sender, login or client, and by the rate. It survives a reload that changes none of
them. The number of limits is bounded for each tenant, so that no tenant displaces the limits of
another.

AnswerLimit is for answers to reports: mail for MAILER-DAEMON, and for a postmaster where none is
configured. Programs write most of this mail, and no user waits for it. Within limits it becomes a
dead letter, else it is discarded. It never causes a report. See RFC 3834 4 (who must not be
answered).

HoldLimit defers mail that rules would hold beyond `[policy] held_max`; the spool counts what is
held.

The limit of messages in a period is for an address, over all sessions of a listener. A message
counts from MAIL on, unless it is rejected or given up. smtp_commands has the limits of one session,
smtp_session the limits of sessions of an address.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.message.envelope import Envelope
from relay.base.message.verdict import RateCharge, tenant_of_rule
from relay.base.shares import REFUSALS
from relay.base.sliding_window import NOTHING, SLOTS, Reservation
from relay.transport.ingress.data import DataReply

if TYPE_CHECKING:  # a library that only the owner of the mail needs
    from relay.base.observe.metrics import Metrics

# Limits in use: about 1 KiB each under constant load; the least recently used one is forgotten.
KEYS_MAX = 10_000  # of the operator's rules
TENANT_KEYS_MAX = 1_000  # of the rules of one tenant
_Key = tuple[str, str, str, int, float]  # rule, per, key, and the rate
# limit: an answer to a report; a larger one is discarded
ANSWER_BYTES_MAX = 1_000_000
# limit: answers to reports in an hour; further ones are discarded
ANSWERS_PER_HOUR = 100
_LOOKS_APART_S = 60.0
HELD = "mail held by rules"
# RFC 3463 3.4
_HOLDS_FULL = "452 4.3.1 Rules hold as many messages as they may, try again later"


class RateLimits:
    """The limits in use. Each method runs without await, so that messages cannot pass together."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # recipients by slot, for each tenant, "" for the operator
        self._slots: dict[str, BoundedDict[_Key, dict[int, int]]] = {}

    def reserve(self, charges: Sequence[RateCharge]) -> Reservation | RateCharge:
        """Count all of these charges; or none, and return the first one beyond its limit."""
        if not charges:  # nearly always
            return NOTHING
        reservation, now_s = Reservation(), self._clock.monotonic()
        for charge in charges:
            number = int(now_s * SLOTS / charge.period_s)
            slots = self._slots_of(charge, since=number - SLOTS)
            if sum(slots.values()) + charge.recipients > charge.allowed:
                reservation.give_back()
                return charge
            reservation.add(slots, number, charge.recipients)
        return reservation

    def message_of(self, key: str, rate: str) -> Reservation | None:
        """Count a message of a client, or a report to a sender; None beyond COUNT/SECONDS."""
        allowed, _, period_s = rate.partition("/")
        reserved = self.reserve(
            [
                RateCharge(
                    rule="",
                    per="",
                    key=key,
                    recipients=1,
                    allowed=int(allowed),
                    period_s=float(period_s),
                    status="",
                    text="",
                )
            ]
        )
        return reserved if isinstance(reserved, Reservation) else None

    def _slots_of(self, charge: RateCharge, *, since: int) -> dict[int, int]:
        """Return the recipients that count, without the slots before `since`."""
        key = charge.rule, charge.per, charge.key, charge.allowed, charge.period_s
        tenant = tenant_of_rule(charge.rule)
        keys_max = TENANT_KEYS_MAX if tenant else KEYS_MAX
        of_tenant = self._slots.setdefault(tenant, BoundedDict(keys_max))
        slots = of_tenant[key] = of_tenant.get(key, {})
        for number in [slot for slot in slots if slot < since]:
            del slots[number]
        return slots


class AnswerLimit:
    """Decides which answers to reports are kept; a restart forgets how many there were."""

    def __init__(self, clock: Clock, metrics: "Metrics") -> None:
        self._rates = RateLimits(clock)
        self._metrics = metrics

    def why_discarded(self, envelope: Envelope, size_bytes: int) -> str:
        """Return why an answer is discarded, "" if it is kept, which counts it."""
        if not envelope.reverse_path:
            reason, text = "null-sender", "nobody reads what the null sender answers"
        elif size_bytes > ANSWER_BYTES_MAX:
            reason, text = "size", f"an answer to a report has over {ANSWER_BYTES_MAX:,} octets"
        elif self._rates.message_of("", f"{ANSWERS_PER_HOUR}/3600") is not None:
            return ""
        else:
            reason, text = "rate", f"over {ANSWERS_PER_HOUR} answers to reports in an hour"
        self._metrics.answers_discarded.labels(reason=reason).inc()
        return text


class HoldLimit:
    """Refuses what rules would hold beyond `held_max`. The log names the rule, and the account or
    address whose mail it holds most of.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[str, tuple[float, str]] = {}  # by rule, until when it is used
        REFUSALS.counts.setdefault(HELD, 0)

    async def refuse(self, rule: str, heaviest_of: Callable[[str], Awaitable[str]]) -> DataReply:
        """Note the refusal of a message that `rule` would hold, and return the reply.

        `heaviest_of` finds the account or address, and raises SpoolError.
        """
        until_s, name = self._found.get(rule, (0.0, ""))
        if (now_s := self._clock.real_s()) >= until_s:
            self._found[rule] = now_s + _LOOKS_APART_S, name  # one looks
            name = await heaviest_of(rule)
            self._found[rule] = now_s + _LOOKS_APART_S, name
        REFUSALS.add(HELD, f"{name} by the rule {rule}")
        return DataReply(_HOLDS_FULL, rule=rule)
