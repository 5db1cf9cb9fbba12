"""Count attempts to deliver the mail of a time, by provider, domain, route or login: `relay stats`.
By BOUNCES, count how recipients ended, and complaints, by domain and provider. A complaint is
counted once a message and group: in that of all who got the message, else in those of the
recipients that it names; in the group "" if it names none who got it.

Messages are found by their ids, which sort by time. A step reads some attempts, so that other
queries come between.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import msgspec
from msgspec import Struct

from relay.base.clock import id_time_us
from relay.base.message.envelope import domain_of
from relay.base.message.nexthop import NextHop
from relay.base.message.status import SPAM_WORDS
from relay.base.observe.metric_samples import quantile
from relay.base.observe.metrics import BOUNDS_S
from relay.store.journeys.details import AttemptedRecipient, ComplaintDetail
from relay.store.journeys.events import Step
from relay.store.spool.shared.columns import IS_COMPLAINT, LOGIN
from relay.store.spool.shared.tables import Tables

BOUNCES = "bounces"
GROUPINGS = ("provider", "domain", "route", "login", BOUNCES)
BOUNCE_COUNTS = ("delivered", "hard", "soft", "reputation", "policy", "complaints")
OTHER = "other"  # the groups with the least mail together
COUNTS = ("accepted", "delivered", "deferred", "failed")  # of a group
_DELIVERED, _FAILED = ("delivered", "relayed", "captured"), ("failed", "expired")
_LOGIN = f"(SELECT {LOGIN.format('m.')} FROM message m WHERE m.id = event.message_id)"
_ATTEMPTS = (
    "SELECT message_id, sequence, at_us, step, detail, {login}"
    f" FROM event WHERE (message_id, sequence) > (?, ?) AND (step = {Step.DELIVERY:d}{{more}})"
    " ORDER BY message_id, sequence LIMIT ?"
)
_HARD = frozenset(("5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"))
_RATE = re.compile(r"\brate\b|\btoo (?:fast|many|much|often|quickly)|limit|throttl", re.IGNORECASE)
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
_decode_complaint = msgspec.json.Decoder(ComplaintDetail).decode


class TrafficCounter:
    """A count in steps: call step() until it returns False."""

    def __init__(self, by: str, provider_of: Callable[[str], str], *, after: str) -> None:
        """`by` is one of GROUPINGS; messages with ids after `after` are counted."""
        self._by, self._reached = by, (after, 0)
        self._attempts = _ATTEMPTS.format(
            login=_LOGIN if by == "login" else "''",
            more=f" OR {IS_COMPLAINT}" if by == BOUNCES else "",
        )
        self._provider_of = lru_cache(_GROUPS_MAX)(provider_of)
        self._hosts: dict[int, str] = {}  # of the message that was reached, by entry
        self._delivered: dict[str, str] = {}  # the groups of its recipients that have it
        self._complained: set[str] = set()  # the groups that have a complaint about it
        self._groups: dict[str, _Group] = {}

    def step(self, tables: Tables) -> bool:
        """Count some attempts; return False when all are counted."""
        rows = tables.fetch(self._attempts, (*self._reached, _AT_ONCE))
        for queue_id, sequence, at_us, step, text, login in rows:
            if queue_id != self._reached[0]:
                self._hosts, self._delivered, self._complained = {}, {}, set()
            self._reached = (queue_id, sequence)
            if step == Step.REPORT:  # a complaint
                self._count_complaint(_decode_complaint(text).recipients)
                continue
            attempt = _decode(text)
            for tried in attempt.recipients:
                name = self._name(attempt, tried.address, login)
                group = self._group(name)
                if self._by == BOUNCES:
                    group[_end_of(tried), 0] += 1
                    if tried.outcome in _DELIVERED:
                        self._delivered[tried.address] = name
                    continue
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

    def _group(self, name: str) -> _Group:
        if name not in self._groups and len(self._groups) >= _GROUPS_MAX:
            name = OTHER
        return self._groups.setdefault(name, Counter())

    def _count_complaint(self, named: Sequence[str]) -> None:
        every = {*self._delivered.values()}
        names = every if len(every) == 1 else {self._delivered.get(to, "") for to in named} or {""}
        for name in names - self._complained:
            self._group(name)["complaints", 0] += 1
        self._complained |= names

    def bounces(self) -> list[dict[str, Any]]:
        """Return the figures by BOUNCES, the groups with the most complaints first. The percentage
        is None where the provider has sent no complaint.
        """
        groups = []
        complained = {
            name.partition(" ")[2] for name, group in self._groups.items() if group["complaints", 0]
        }
        for name, group in self._groups.items():
            domain, _, provider = name.partition(" ")
            counts = {word: group[word, 0] for word in BOUNCE_COUNTS}
            percent = None
            if provider in complained and counts["delivered"]:
                percent = round(100 * counts["complaints"] / counts["delivered"], 3)
            if any(counts.values()):  # else its recipients still wait
                named = {"domain": domain, "provider": provider, **counts}
                groups.append({**named, "complaints_percent": percent})
        return sorted(groups, key=lambda row: (-row["complaints"], -row["hard"], -row["delivered"]))

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
        provider = self._provider_of(host)
        return f"{domain_of(address)} {provider}" if self._by == BOUNCES else provider


def _end_of(tried: AttemptedRecipient) -> str:
    """Return the name of an outcome in BOUNCE_COUNTS, "" of a recipient that is still tried."""
    status, reply = tried.status, tried.reply
    if tried.outcome in _DELIVERED:
        return "delivered"
    if tried.outcome != "failed":
        return "soft" if tried.outcome == "expired" else ""
    if status.startswith("5.7."):
        return "reputation" if SPAM_WORDS.search(reply) else "policy"
    is_slowed = status == "5.2.1" and _RATE.search(reply)
    return "hard" if status in _HARD and not is_slowed else "soft"


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
