"""Count attempts to deliver the mail of a time, by provider, domain, route or login: `relay stats`.

Messages are found by their ids, which sort by time. A step reads some attempts, so that other
queries come between.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any

import msgspec
from msgspec import Struct

from relay.base.clock import id_time_us
from relay.base.message.envelope import domain_of
from relay.base.message.nexthop import NextHop
from relay.base.observe.metric_samples import quantile
from relay.base.observe.metrics import BOUNDS_S
from relay.store.journeys.details import AttemptedRecipient
from relay.store.journeys.events import Step
from relay.store.spool.shared.columns import LOGIN
from relay.store.spool.shared.tables import Tables

GROUPINGS = ("provider", "domain", "route", "login")
OTHER = "other"  # the groups with the least mail together
COUNTS = ("accepted", "delivered", "deferred", "failed")  # of a group
_DELIVERED, _FAILED = ("delivered", "relayed", "captured"), ("failed", "expired")
_LOGIN = f"(SELECT {LOGIN.format('m.')} FROM message m WHERE m.id = event.message_id)"
_ATTEMPTS = (
    "SELECT message_id, sequence, at_us, detail, {login}"
    f" FROM event WHERE (message_id, sequence) > (?, ?) AND step = {Step.DELIVERY:d}"
    " ORDER BY message_id, sequence LIMIT ?"
)
_AT_ONCE = 2000
_GROUPS_MAX = 1000  # then the mail of further groups is in OTHER
_KINDS_MAX = 300  # in a group; then further replies are _OTHER_REPLIES
_OTHER_REPLIES = "other replies"
_REPLY_CHARACTERS, _REPLIES = 100, 3  # the most frequent ones
# a word of a reply that varies, as an id or an address, but no code or status
_VARIABLE = re.compile(r"(?<=\s)(?![245](?:\.\d|\d\d\s))[^\s\d]*+\d\S*+")


class _CountedAttempt(Struct, gc=False):
    """The part of AttemptDetail that is counted: read in half the time."""

    entry: int = 0
    attempt: int = 0
    next_hop: str = ""
    route: str = ""
    host: str = ""
    mx: list[str] = []
    recipients: list[AttemptedRecipient] = []


# The keys are ("accepted", 0), ("delivered", the place of a duration in BOUNDS_S), and "deferred"
# or "failed" with a reply.
_Group = Counter[tuple[str, int | str]]
_decode = msgspec.json.Decoder(_CountedAttempt).decode


class TrafficCounter:
    """A count in steps: call step() until it returns False."""

    def __init__(self, by: str, provider_of: Callable[[str], str], *, after: str) -> None:
        """`by` is one of GROUPINGS; messages with ids after `after` are counted."""
        self._by, self._reached = by, (after, 0)
        self._attempts = _ATTEMPTS.format(login=_LOGIN if by == "login" else "''")
        self._provider_of = lru_cache(_GROUPS_MAX)(provider_of)
        self._hosts: dict[int, str] = {}  # of the message that was reached, by entry
        self._groups: dict[str, _Group] = {}

    def step(self, tables: Tables) -> bool:
        """Count some attempts; return False when all are counted."""
        rows = tables.fetch(self._attempts, (*self._reached, _AT_ONCE))
        for queue_id, sequence, at_us, text, login in rows:
            if queue_id != self._reached[0]:
                self._hosts = {}
            self._reached, attempt = (queue_id, sequence), _decode(text)
            for tried in attempt.recipients:
                name = self._name(attempt, tried.address, login)
                if name not in self._groups and len(self._groups) >= _GROUPS_MAX:
                    name = OTHER
                group = self._groups.setdefault(name, Counter())
                group["accepted", 0] += attempt.attempt == 1
                if tried.outcome in _DELIVERED:
                    seconds = (at_us - (id_time_us(queue_id) or 0)) / 1e6
                    group["delivered", bisect_left(BOUNDS_S, seconds)] += 1
                    continue
                column = "failed" if tried.outcome in _FAILED else "deferred"
                reply = _VARIABLE.sub("…", tried.reply)[:_REPLY_CHARACTERS]
                is_recorded = len(group) < _KINDS_MAX or (column, reply) in group
                group[column, reply if is_recorded else _OTHER_REPLIES] += 1
        return len(rows) == _AT_ONCE

    def groups(self, most: int) -> list[dict[str, Any]]:
        """Return the figures of the groups with the most mail, then those of OTHER."""
        sizes = {name: group["accepted", 0] for name, group in self._groups.items()}
        merged: dict[str, _Group] = {}
        for place, name in enumerate(sorted(sizes, key=lambda name: (name == OTHER, -sizes[name]))):
            group = merged.setdefault(name if place < most else OTHER, Counter())
            group.update(self._groups[name])
        return [{"name": name, **_figures(group)} for name, group in merged.items()]

    def _name(self, attempt: _CountedAttempt, address: str, login: str) -> str:
        if self._by == "domain":
            return domain_of(address)
        if self._by == "login":
            return login
        if self._by == "route":
            return attempt.route or attempt.next_hop.partition(":")[0]
        # the host that was reached, the first MX, that of an earlier attempt, or the next hop
        host = attempt.host or "".join(attempt.mx[:1]).partition(" ")[2].partition(":")[0]
        if not host and not (host := self._hosts.get(attempt.entry, "")):
            hop = NextHop.parse(attempt.next_hop)
            host = hop.host or str(hop.kind)
        self._hosts[attempt.entry] = host
        return self._provider_of(host)


def _figures(group: _Group) -> dict[str, Any]:
    within = list(accumulate(group["delivered", place] for place in range(len(BOUNDS_S) + 1)))
    replies = [
        {"reply": reply, "times": number}
        for (_, reply), number in group.most_common()
        if isinstance(reply, str)
    ]
    counts = Counter[str]()
    for (column, _), number in group.items():
        counts[column] += number
    return {
        **{column: counts[column] for column in COUNTS},
        "median_s": quantile(0.5, within),
        "p95_s": quantile(0.95, within),
        "replies": replies[:_REPLIES],
    }
