"""Count how much each account sends to other domains, and check the limits of accounts.

An account is that of a login or a token, or a user of this machine as USER@hostname. A message with
a recipient in another domain is counted, and each such recipient as the sender named it. reserve()
is called once for each message before it is accepted: at the final dot, or in step 1 of Graph.
There is a sliding window for each limit, and a count for each day (UTC). Both follow the wall clock
and last over a restart: relay/store/spool/usage.py stores them, and reads the counts of other
nodes. If an operator takes back mail that another node has counted, a count here is negative.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from heapq import nlargest
from typing import Any

import msgspec
from msgspec import Struct

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock, rfc3339
from relay.base.message.envelope import domain_of
from relay.base.settings.tree import Limits
from relay.base.sliding_window import NOTHING, SLOTS, Reservation

ACCOUNTS_MAX = 100_000  # counted in memory; the least recently used one is removed
DRAFTS_MAX = 10_000  # scheduled ones that are remembered
DAY_US = 86_400_000_000
NEVER_US = 1 << 62
NEAR = 0.8  # of a limit
LIMIT_OF_ACCOUNT = "The limit of this account is"  # the beginning of the reply beyond a limit
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
# Counts by the number of the slot, by kind and width of the slots: "recipients/60000000".
_Windows = Mapping[str, Mapping[int, int]]
_NO_SLOTS: Mapping[int, int] = {}
_OF_DAY = f"messages/{DAY_US}", f"recipients/{DAY_US}"
LimitsOf = Callable[[str], tuple[Limits, Limits]]  # the limits of an account, and those of all


class Limit(Struct, frozen=True):
    """A limit of an account."""

    what: str  # messages or recipients
    rate: str  # as it is written: "100/1h"
    allowed: int
    width_us: int  # of a slot


class UsedLimit(Struct, frozen=True):
    """A limit, and how much of it is used now."""

    account: str
    limit: Limit
    used: int
    # The wall time in µs from which another message or recipient is allowed; after a refusal, from
    # which the refused number is allowed. NEVER_US if that exceeds the limit. None: now
    until_us: int | None

    def as_json(self) -> dict[str, Any]:
        """Return one of the `limits` of GET /relay/v1/usage."""
        until = None if self.until_us is None else rfc3339(self.until_us)
        return {"what": self.limit.what, "rate": self.limit.rate, "used": self.used, "until": until}


class AccountUsage(Struct, frozen=True):
    """What an account has sent to the outside today (UTC), and its limits."""

    account: str
    messages: int
    recipients: int
    limits: Sequence[UsedLimit]

    def as_json(self) -> dict[str, Any]:
        """Return one of the `accounts` of GET /relay/v1/usage."""
        return {
            "account": self.account,
            "messages": self.messages,
            "recipients": self.recipients,
            "limits": [limit.as_json() for limit in self.limits],
        }


class BeyondLimit(Struct, frozen=True):
    """Why a message is not accepted: a limit of its sender."""

    over: UsedLimit
    recipients: int  # of the message, outside
    retry_after_s: int  # after which the message may be accepted
    is_for_good: bool  # never accepted: its recipients alone exceed the limit

    @property
    def text(self) -> str:
        """The text for the sender."""
        limit, end = self.over.limit, f", and this message has {self.recipients}"
        if not self.is_for_good:
            end = f"; try again after {rfc3339(self.over.until_us or 0)[:19]}Z"
        count, _, period = limit.rate.partition("/")
        return f"{LIMIT_OF_ACCOUNT} {count} {limit.what} to other domains in {period}{end}"


class CancelledMail(Struct, frozen=True):
    """A message whose recipients, all or some, an operator has cancelled."""

    account: str  # of the login
    accepted_us: int  # wall time
    never_sent: Sequence[str]  # recipients that are cancelled now, before any final dot
    others: Sequence[str]  # further recipients that were sent to, or still may be


class _Counts:
    """What one account has sent: counted here, and by other nodes."""

    __slots__ = ("account", "others", "own")

    def __init__(self, account: str) -> None:
        self.account = account
        self.own: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.others: dict[str, _Windows] = {}  # by node

    def on_day(self, name: str, day: int) -> int:
        """Return how much was sent on the day of this number; `name` is that of the windows."""
        total = self.own.get(name, _NO_SLOTS).get(day, 0)
        for windows in self.others.values():
            total += windows.get(name, _NO_SLOTS).get(day, 0)
        return max(total, 0)

    def used(self, limit: Limit, now_us: int, amount: int = 1) -> UsedLimit:
        """Return how much of a limit is used, and the time from which `amount` more is allowed."""
        name, number = f"{limit.what}/{limit.width_us}", now_us // limit.width_us
        slots = [
            slot
            for windows in (self.own, *self.others.values())
            for slot in windows.get(name, _NO_SLOTS).items()
            if -SLOTS <= number - slot[0] <= SLOTS  # a clock may have been wrong
        ]
        used = max(sum([count for _, count in slots]), 0)
        left = used + amount - limit.allowed
        until_us = NEVER_US if amount > limit.allowed else None
        for number, count in sorted(slots) if left > 0 and until_us is None else ():
            left -= count
            if left <= 0:
                ends_us = (number + SLOTS + 1) * limit.width_us
                until_us = -(-ends_us // 1_000_000) * 1_000_000  # a whole second
                break
        return UsedLimit(self.account, limit, used, until_us)

    def stored(self, now_us: int) -> str:
        """Return the JSON of the counts of this node; remove expired counts."""
        for name, slots in self.own.items():
            width_us = int(name.partition("/")[2])
            first = now_us // width_us - (1 if width_us == DAY_US else SLOTS)
            for number in [slot for slot in slots if slot < first]:
                del slots[number]
        return msgspec.json.encode(self.own).decode()


class UsageCounter:
    """Counts in memory. All methods belong to the event loop, and none awaits."""

    def __init__(self, clock: Clock, *, limits_of: LimitsOf, is_own: Callable[[str], bool]) -> None:
        """`is_own` returns whether a domain is an own one."""
        self._clock = clock
        self._limits_of = limits_of
        self._is_own = is_own
        self._counts = BoundedDict[str, _Counts](ACCOUNTS_MAX)
        self._changed: set[str] = set()
        self._scheduled = BoundedDict[str, int](DRAFTS_MAX)  # recipients outside, by draft
        # Called for each message that uses a limit to 80 % or more, or is refused (until_us).
        self.on_near: Callable[[UsedLimit], None] = lambda _used: None

    def reserve(
        self, account: str, addresses: Iterable[str], *, draft: str = ""
    ) -> Reservation | BeyondLimit:
        """Count a message to these recipients, or return the limit that it exceeds.

        The reservation can undo the count. If the draft was scheduled before, only recipients that
        are new are counted.
        """
        if not account:  # pickup: step 1 has counted it
            return NOTHING
        before = self._scheduled.get(draft, 0)
        recipients = self._outside(addresses) - before
        if recipients <= 0:
            return NOTHING
        now_us, limits = self._clock.time_us(), _limits(*self._limits_of(account))
        counts = self._of(account)
        amounts = {"messages": int(not before), "recipients": recipients}
        uses = [counts.used(limit, now_us, amounts[limit.what]) for limit in limits]
        if beyond := [use for use in uses if use.until_us is not None]:
            longest = max(beyond, key=lambda use: use.until_us or 0)
            left_s = ((longest.until_us or 0) - now_us) // 1_000_000 + 1
            if is_possible := longest.until_us != NEVER_US:
                self.on_near(longest)
            return BeyondLimit(longest, recipients, left_s, not is_possible)
        reservation = self._count(account, amounts, at_us=now_us)
        reservation.on_given_back = partial(self._changed.add, account)
        for use in uses:
            if use.used + amounts[use.limit.what] >= NEAR * use.limit.allowed:
                self.on_near(counts.used(use.limit, now_us))
        return reservation

    def scheduled(self, draft: str, addresses: Iterable[str]) -> None:
        """Remember that a draft is counted: it may be sent again, also after it is unscheduled."""
        self._scheduled[draft] = max(self._outside(addresses), self._scheduled.get(draft, 0))

    def give_back(self, mail: CancelledMail) -> None:
        """Subtract mail that an operator has cancelled from the slots of its acceptance."""
        recipients = self._outside(mail.never_sent)
        messages = int(recipients > 0 and not self._outside(mail.others))
        amounts = {"messages": -messages, "recipients": -recipients}
        self._count(mail.account, amounts, at_us=mail.accepted_us)

    def reset(self, account: str) -> None:
        """Set the counts of an account to zero, including the counts of other nodes."""
        counts = self._of(account)
        counts.own.clear()
        for windows in counts.others.values():
            for name, slots in windows.items():
                counts.own[name].subtract(slots)
        self._changed.add(account)

    def _count(self, account: str, amounts: Mapping[str, int], *, at_us: int) -> Reservation:
        """Count in the slots of this time."""
        counts, reservation = self._of(account), Reservation()
        limits = _limits(*self._limits_of(account))
        for what, amount in amounts.items():
            for width_us in {DAY_US} | {limit.width_us for limit in limits if limit.what == what}:
                reservation.add(counts.own[f"{what}/{width_us}"], at_us // width_us, amount)
        self._changed.add(account)
        return reservation

    def _outside(self, addresses: Iterable[str]) -> int:
        """Return how many addresses are in other domains.

        Different spellings of one address are different recipients, as in the envelope.
        """
        domains = map(domain_of, set(addresses))
        return sum(domain != "" and not self._is_own(domain) for domain in domains)

    def today(self, account: str) -> AccountUsage:
        """Return what an account has sent today, and how much of its limits is used."""
        counts, now_us = self._counts.get(account) or _Counts(account), self._clock.time_us()
        messages, recipients = (counts.on_day(what, now_us // DAY_US) for what in _OF_DAY)
        limits = [counts.used(limit, now_us) for limit in _limits(*self._limits_of(account))]
        return AccountUsage(account, messages, recipients, limits)

    def busiest(self, count: int = 10) -> Sequence[AccountUsage]:
        """Return the accounts with the most recipients outside today, the busiest first."""
        day = self._clock.time_us() // DAY_US
        sent = [(counts.on_day(_OF_DAY[1], day), name) for name, counts in self._counts.items()]
        return [self.today(name) for total, name in nlargest(count, sent) if total]

    def changed(self) -> Mapping[str, str]:
        """Return the JSON of each account whose counts have changed since the last call."""
        changed, now_us = self._changed & self._counts.keys(), self._clock.time_us()
        self._changed.clear()
        return {account: self._counts[account].stored(now_us) for account in changed}

    def not_stored(self, accounts: Iterable[str]) -> None:
        """Make changed() return these accounts again."""
        self._changed.update(accounts)

    def take(self, account: str, stored: str, *, node: str = "") -> None:
        """Read the counts that a node has stored as JSON; `node` is "" for this node."""
        windows = msgspec.json.decode(stored, type=dict[str, dict[int, int]])
        counts = self._of(account)
        if node:
            counts.others[node] = windows
            return
        for name, slots in windows.items():
            counts.own[name].update(slots)

    def _of(self, account: str) -> _Counts:
        counts = self._counts[account] = self._counts.get(account, _Counts(account))
        return counts


@lru_cache(maxsize=1000)  # called for each message
def _limits(own: Limits, of_all: Limits) -> Sequence[Limit]:
    limits = []
    for what in ("messages", "recipients"):
        own_rates = getattr(own, what)
        for rate in (getattr(of_all, what) if own_rates is None else own_rates) or ():
            count, _, seconds = rate.partition("/")
            period_s, width_us = float(seconds), max(1, int(float(seconds) * 1_000_000) // SLOTS)
            unit = next((letter for letter, size in _UNITS.items() if period_s % size == 0), "s")
            rate_text = f"{count}/{period_s / _UNITS[unit]:g}{unit}"
            limits.append(Limit(what, rate_text, int(count), width_us))
    return limits
