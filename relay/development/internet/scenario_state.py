"""A scenario in force: what its hosts do, and how often each of its replies was used.

A domain of the scenario decides first, by its replies, then its limits; a test recipient
(`test_recipients`) only where the domain leaves it open. With the same seed and the same
sequence of events it does the same again. What is remembered is bounded.
"""

import dataclasses
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.message.address import own_mailbox
from relay.base.message.envelope import domain_of
from relay.development.internet.behaviour import Action, Moment
from relay.development.internet.scenario import (
    WITH_RECIPIENTS,
    GraphFault,
    RateLimit,
    RemoteDomain,
    Scenario,
    ScriptedReply,
    filled,
)
from relay.development.internet.test_recipients import (
    GREYLISTED_S,
    Manner,
    TestRecipient,
    find_test_recipient,
)

_REMEMBERED_MAX = 10_000  # senders and recipients that were refused once
_NO_TLS = "454 4.7.0 TLS not available"
_RECORD_KINDS = {True: ("A", "AAAA"), False: ("MX",)}  # of a host, of a domain
_RCODES = {"servfail": "SERVFAIL", "nxdomain": "NXDOMAIN", "stall": "TIMEOUT"}

# the domain, "" for the API; the entry; how many equal ones come before it
_Place = tuple[str, ScriptedReply | GraphFault, int]
_Pair = tuple[str, str]  # sender and recipient


@dataclass(frozen=True, slots=True)
class UsedReply:
    """How often an entry of the scenario was used; `left` is None without `times`."""

    entry: str
    used: int
    left: int | None


class ScenarioState:
    """Decides for one scenario. Belongs to the event loop."""

    def __init__(self, scenario: Scenario, clock: Clock) -> None:
        self.scenario = scenario
        self._clock = clock
        self._used: dict[_Place, int] = {}
        self._tried: dict[_Place, int] = {}  # how often it would have been used without `chance`
        self._passed: dict[tuple[int, int], deque[int]] = {}
        self._first_us = BoundedDict[_Pair, int](_REMEMBERED_MAX)
        self._refused = BoundedDict[_Pair, int](_REMEMBERED_MAX)

    def covers(self, address: str) -> bool:
        """Return whether mail for `address` goes to a simulated host."""
        is_scripted = self.scenario.domain_of(domain_of(address)) is not None
        return is_scripted or find_test_recipient(address) is not None

    def at(self, moment: Moment) -> Action:
        """Return what the host does at this moment, which counts it."""
        action = self._scripted(moment) or self._for_test_recipient(moment) or Action()
        latency = self.scenario.latency_of(moment.host)
        return dataclasses.replace(action, delay_s=action.delay_s + latency) if latency else action

    def dns(self, name: str, kind: str) -> str:
        """Return the fault of a query: "SERVFAIL", "NXDOMAIN", "TIMEOUT"; "" for none.

        A reply of the verb DNS concerns the domain, with `host` the addresses of those hosts. It
        counts the queries for MX, or for A.
        """
        for domain in self.scenario.domain:
            for index, rule in enumerate(domain.reply):
                if rule.verb != "DNS" or not _is_asked_for(rule, domain, name):
                    continue
                counted = kind == _RECORD_KINDS[bool(rule.host)][0]
                if self._use(_place_of(domain, index), counted=counted):
                    return _RCODES[rule.action]
        return ""

    def graph_fault(self, *, method: str, path: str, account: str) -> GraphFault | None:
        """Return the fault of a request, which counts it; None for none."""
        for index, fault in enumerate(self.scenario.graph):
            if fault.fits(method=method, path=path, account=account) and self._use(
                ("", fault, self.scenario.graph[:index].count(fault))
            ):
                return fault
        return None

    def used(self) -> Iterator[UsedReply]:
        """Yield the use of each entry, in the order of the file."""
        for domain in self.scenario.domain:
            for index, rule in enumerate(domain.reply):
                entry = f"{domain.name}: {rule.verb} {rule.name or rule.recipient}".rstrip()
                yield self._use_of(_place_of(domain, index), entry, rule.times)
        for index, fault in enumerate(self.scenario.graph):
            entry = f"graph: {fault.status} {fault.path}"
            place = "", fault, self.scenario.graph[:index].count(fault)
            yield self._use_of(place, entry, fault.times)

    def _use_of(self, place: _Place, entry: str, times: int | None) -> UsedReply:
        used = self._used.get(place, 0)
        return UsedReply(entry, used, None if times is None else times - used)

    def edit(self, scenario: Scenario) -> None:
        """Use a scenario with other replies; what those that stay have counted, stays."""
        self.scenario = scenario
        there = {
            _place_of(domain, index)
            for domain in scenario.domain
            for index in range(len(domain.reply))
        }
        for counted in (self._used, self._tried):
            for place in [key for key in counted if key[0] and key not in there]:
                del counted[place]

    # -- scenario

    def _scripted(self, moment: Moment) -> Action | None:
        for number, domain in enumerate(self.scenario.domain):
            if not _is_concerned(domain, moment):
                continue
            for index, rule in enumerate(domain.reply):
                recipient = _recipient_for(rule, domain, moment)
                if recipient is not None and self._use(_place_of(domain, index)):
                    return _action(rule, moment, recipient)
            if action := self._by_domain(number, domain, moment):
                return action
        return None

    def _by_domain(self, number: int, domain: RemoteDomain, moment: Moment) -> Action | None:
        """Return what the domain's TLS, limits and greylisting ask for."""
        if moment.stage == "STARTTLS" and domain.tls in ("none", "bad-certificate"):
            bad = domain.tls == "bad-certificate"
            return Action("" if bad else _NO_TLS, bad_certificate=bad)
        if moment.stage == "MAIL" and domain.tls == "required" and not moment.tls:
            return Action("530 5.7.0 Must issue a STARTTLS command first")
        for index, limit in enumerate(domain.limit):
            if limit.verb == moment.stage and self._is_exceeded((number, index), limit):
                return Action(_reply(limit.reply, moment, moment.recipient))
        if domain.greylist and moment.stage == "RCPT":
            pair = moment.sender, own_mailbox(moment.recipient)
            if not self._is_known(pair, domain.greylist):
                return Action("451 4.7.1 Greylisted, try again later")
        return None

    def _use(self, place: _Place, *, counted: bool = True) -> bool:
        """Return whether the entry is used this time, and count it."""
        used, rule = self._used.get(place, 0), place[1]
        if rule.times is not None and used >= rule.times:
            return False
        if isinstance(rule, ScriptedReply) and rule.chance < 100:
            tried = self._tried[place] = self._tried.get(place, 0) + 1
            draw = random.Random(f"{self.scenario.seed} {place} {tried}")  # noqa: S311 - no secret
            if draw.randrange(100) >= rule.chance:
                return False
        if counted:
            self._used[place] = used + 1
        return True

    def _is_exceeded(self, place: tuple[int, int], limit: RateLimit) -> bool:
        """Return whether one more would be too many; count it otherwise."""
        count, seconds = limit.rate
        now_us = self._clock.queue_us()
        passed = self._passed.setdefault(place, deque())
        while passed and passed[0] <= now_us - int(seconds * 1_000_000):
            passed.popleft()
        if len(passed) >= count:
            return True
        passed.append(now_us)
        return False

    def _is_known(self, pair: _Pair, seconds: float) -> bool:
        """Return whether the pair came first at least so many seconds ago."""
        now_us = self._clock.queue_us()
        first_us = self._first_us[pair] = self._first_us.get(pair, now_us)
        return now_us - first_us >= int(seconds * 1_000_000)

    # -- test recipients

    def _for_test_recipient(self, moment: Moment) -> Action | None:
        if moment.stage == "RCPT":
            test_recipient = find_test_recipient(moment.recipient)
            return self._action_of(test_recipient, moment) if test_recipient else None
        if moment.stage == "DOT":
            for recipient in moment.recipients:
                test_recipient = find_test_recipient(recipient)
                if test_recipient and (action := self._action_of(test_recipient, moment)):
                    return action
        return None

    def _action_of(self, recipient: TestRecipient, moment: Moment) -> Action | None:
        if recipient.stage != moment.stage:
            return None
        pair = moment.sender, own_mailbox(moment.recipient)
        match recipient.manner:
            case Manner.REPLY if not recipient.times or self._is_refused(pair, recipient.times):
                return Action(recipient.reply)
            case Manner.GREYLIST if not self._is_known(pair, GREYLISTED_S):
                return Action(recipient.reply)
            case Manner.GREYLIST:
                del self._first_us[pair]  # the next message is greylisted again
            case Manner.NEEDS_TLS if not moment.tls:
                return Action(recipient.reply)
            case Manner.DROP:
                return Action(drop=True)
            case Manner.STALL:
                return Action(stall=True)
            case Manner.DELAY:
                return Action(delay_s=recipient.delay_s)
        return None

    def _is_refused(self, pair: _Pair, times: int) -> bool:
        """Return whether this is one of the first `times` times; then it begins again."""
        so_far = self._refused.get(pair, 0)
        if so_far >= times:
            del self._refused[pair]
            return False
        self._refused[pair] = so_far + 1
        return True


def _place_of(domain: RemoteDomain, index: int) -> _Place:
    reply = domain.reply[index]
    return domain.name, reply, domain.reply[:index].count(reply)


def _is_concerned(domain: RemoteDomain, moment: Moment) -> bool:
    if moment.stage in WITH_RECIPIENTS:
        named = (moment.recipient,) if moment.stage == "RCPT" else moment.recipients
        return any(_is_in(domain, address) for address in named)
    return any(moment.host == host.host for host in domain.hosts)


def _is_in(domain: RemoteDomain, address: str) -> bool:
    return domain_of(address) in domain.names


def _is_asked_for(rule: ScriptedReply, domain: RemoteDomain, name: str) -> bool:
    if not rule.host:
        return name in domain.names
    return any(name == host.host for host in domain.hosts) and rule.fits(
        recipient="", sender="", host=name
    )


def _recipient_for(rule: ScriptedReply, domain: RemoteDomain, moment: Moment) -> str | None:
    """Return the recipient for which the rule is used now, "" for any; None if it is not."""
    if not _is_at(rule, moment.stage):
        return None
    addresses: Iterable[str] = ("",)
    if moment.stage in WITH_RECIPIENTS:
        named = (moment.recipient,) if moment.stage == "RCPT" else moment.recipients
        addresses = [address for address in named if _is_in(domain, address)]
    for address in addresses:
        if rule.fits(recipient=address, sender=moment.sender, host=moment.host):
            return address
    return None


def _is_at(rule: ScriptedReply, stage: str) -> bool:
    """Return whether the rule is one of this stage. A reply at CONNECT replaces the banner."""
    if rule.verb == "CONNECT" and rule.reply:
        return stage == "BANNER"
    return rule.verb == ("EHLO" if stage == "HELO" else stage)


def _action(rule: ScriptedReply, moment: Moment, recipient: str) -> Action:
    return Action(
        reply=_reply(rule.reply, moment, recipient),
        drop=rule.action == "drop",
        stall=rule.action == "stall",
        delay_s=rule.delay,
        bad_certificate=rule.action == "bad-certificate",
    )


def _reply(reply: str, moment: Moment, recipient: str) -> str:
    return filled(reply, recipient=recipient, sender=moment.sender, host=moment.host)
