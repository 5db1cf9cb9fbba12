"""What everybody saw, kept outside of every process: answers, claims, results, copies.

Nothing in it is the relay's word alone where somebody else's is to be had. It tells the world of a
fault at once where no later look could find it. See docs/design.md 7.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from relay.base.clock import DOUBT_US
from relay.base.message.envelope import Notify
from relay.base.message.lifecycle import HELD_OR_CAPTURED, RecipientState
from relay.base.message.nexthop import HERE
from relay.base.message.outcome import DeferralClass, Deferred, Delivered, Failed, Relayed
from relay.base.message.tls_policy import OPTIONAL
from relay.delivery.site_limits import Rate
from relay.store.spool.queue_commands import CommandReport, CommandResult, Operation, QueueCommand
from relay.store.spool.types import Claim, ClaimResult
from tests.simulation.clock import BEGINNING_US
from tests.simulation.life import Life
from tests.simulation.policies import GivenPolicies, allows, demands_tls
from tests.simulation.progress import Progress
from tests.simulation.rows import Message
from tests.simulation.scenario import (
    BESIDE,
    GATE,
    GATED_HOP,
    HELD_S,
    MATCHING,
    ROUTED,
    SIGNED,
    STRICT,
    STRICT_MX,
    Letter,
    Scenario,
    submission_key,
)
from tests.simulation.sites import Session
from tests.simulation.waits import Waits
from tests.simulation.world import World

Key = tuple[str, int]
_ANY = ""  # in place of a message
_MOMENT_S = 0.001
_WAKE_S = 300.0  # no pause of the relay is as long
_BLOCKED_S = 60.0  # a lookup, or a failure of another host that counts, may take as long
_TWO_SITES = (GATE, BESIDE, STRICT, STRICT_MX)  # domains whose hosts are two sites
_JUMP_US_MIN = 80_000_000_000
_REFUSED_US = 300_000_000  # a failure to connect counts for as long
_TASKS_BESIDE = 60  # listeners, mailbox workers, maintenance and tasks about to end


@dataclass
class Try:
    """One attempt to submit a letter. `code` is 0 when no reply was read."""

    token: str
    letter: Letter
    recipients: list[str] = field(default_factory=list)  # those that the relay took
    code: int = 0
    queue_id: str = ""
    ended_s: float = 0.0


class Ledger:
    """The world's memory."""

    def __init__(self, world: World, plan: Scenario, *, claims_max: int) -> None:
        self.world = world
        captured_keep_s = plan.captured_keep_s
        self._tasks_max = (
            3 * claims_max + 4 * (plan.sessions_max + plan.connections_max) + _TASKS_BESIDE
        )
        self._plan = plan
        self._captured_keep_us = int(captured_keep_s * 1e6)
        self.tries: list[Try] = []
        self.epochs: dict[Key, int] = {}
        self.open: dict[Key, Claim] = {}
        self.ghosts: list[Claim] = []  # claims that a dead process never recorded
        # when an operator saw that an entry is in flight whose claim is not known here
        self._in_flight_since_s: dict[Key, float] = {}
        self._operated_at_s: dict[Key, float] = {}  # the last answer
        self.claim_results: Counter[tuple[str, str]] = Counter()
        # queue id, expires_us, when it was recorded, how much later that may be; in queue time
        self.expiries: list[tuple[str, int, float, float]] = []
        self.rerouted_s: dict[str, float] = {}  # by queue id: what is captured outlives its message
        self.outages: list[tuple[float, float]] = []  # when nothing could be done
        # when no sync succeeded until the power was lost: any of what was written may be there
        self.gaps: list[tuple[float, float]] = []  # of queue time, at starts of the machine
        self._tried: set[Key] = set()  # in this process
        self._delayed: set[str] = set()  # messages of which a delay was reported
        self._kept_in_doubt: set[Key] = set()  # held or captured, and put back
        self.doubtful: list[tuple[float, float]] = []
        self.inboxes: list[tuple[str, str, bytes]] = []  # mailbox, unique, content
        self.names: dict[str, str] = {}  # Message-ID: queue id
        self.archive: dict[str, Message] = {}  # what was pruned, as it was then
        self.calm_s = float("inf")  # from when on no trouble is made any more
        self._recording: defaultdict[Key, set[int]] = defaultdict(set)  # epochs
        self._dots: dict[str, tuple[str, Collection[str], int]] = {}
        self.rated: dict[str, Rate] = {}  # by domain, where a transaction begins once it may
        self.starts_s: list[float] = []  # of processes: a rate is kept by one
        self._late_s: defaultdict[str, list[float]] = defaultdict(list)
        self._begun_s: defaultdict[str, deque[float]] = defaultdict(deque)
        self._claims_max = claims_max
        self.waits = Waits(plan)
        self.operated: Counter[Key] = Counter()  # how often an operator changed an entry
        self.cancelled: set[Key] = set()  # as answered to an operator
        self.cancel_ordered: set[Key] = set()  # for the end of the attempt
        # commands for a message, or for any, that were not answered
        self.unanswered: Counter[str] = Counter()
        self._accepted_s: dict[str, float] = {}  # by queue id, before anybody was answered
        self._freed_s: dict[str, float] = {}  # by queue id: the last order that ends holds
        self._held_until_us: dict[Key, int] = {}  # as answered to an operator
        self._put_back_us: dict[Key, int] = {}  # in queue time, when its last result began
        self.progress = Progress(world, plan)
        # how long nothing was done before a claim came, and when it came, in queue time
        self._taken: dict[Key, tuple[Progress, float, float]] = {}
        self._blocked_s: dict[Key, float] = {}  # its site, before it came
        self._looked_up_us: dict[Key, int] = {}  # its hosts, at the earliest
        self.policies = GivenPolicies()
        self._in_flight: set[Key] = set()  # as answered to the operator, until they are recorded
        # taken out of memory for a command of which no success was answered: perhaps not given back
        self._withdrawn: set[Key] = set()

    # -- the spool's side

    def accepts(self, queue_id: str) -> None:
        """Ingress hands over a message."""
        self._accepted_s.setdefault(queue_id, self.world.time())

    def claimed(self, claims: Sequence[Claim], life: Life) -> None:
        if claims:
            self.waits.claims_from(self.world.clocks.steady_s())
        for claim in claims:
            key = (claim.message.id, claim.entry_id)
            self.world.note("claim", *key, "epoch", claim.epoch)
            if claim.message.message_id:
                self.names.setdefault(
                    claim.message.message_id, claim.message.id
                )  # not its dead letter
            self.world.reached[f"lane: {claim.level.name}"] += 1
            if claim.due_us > self.queue_us():
                self.world.fault(f"invariant 6: {key} is claimed before it is due")
            self._judge_claim(claim)
            self._judge_hold(claim)
            if claim.epoch <= self.epochs.get(key, 0):
                self.world.fault(f"invariant 3: epoch {claim.epoch} of {key} is not new")
            if key in self.open and self.open[key].epoch not in self._recording[key]:
                self.world.fault(f"invariant 3: {key} is claimed twice at once")
            if key in self.cancelled:
                self.world.fault(f"invariant 9: {key} is claimed, and was reported to be cancelled")
            # the spool may answer an operator before it hands over a claim of the same commit
            if self._in_flight_since_s.pop(key, self.world.time()) < self.world.time():
                self._told_in_flight(key)
            self.epochs[key] = claim.epoch
            self.open[key] = claim
            self._looked_up_us[key] = self.policies.look_up_us(now_us=self.queue_us())
            self._withdrawn.discard(key)
            now_s = self.world.clocks.steady_s()
            self._taken[key] = (self.progress, self.progress.idle_s, now_s)
            self._blocked_s[key] = self.progress.blocked_s(claim.next_hop.host)
        hosts = {claim.next_hop.host for claim in self.open.values()}
        self.world.reached["in memory: for two logins of a host"] += hosts >= {GATE, BESIDE}
        self.world.reached["in memory: for two TLS policies"] += hosts >= {STRICT, STRICT_MX}
        self.looks_idle()
        if len(self.open) > self._claims_max:
            self.world.fault(f"invariant 8: {len(self.open)} claims in memory")
        if life.tasks_open > self._tasks_max:
            self.world.fault(f"invariant 8: {life.tasks_open} tasks in {life.name}")

    def queue_us(self) -> int:
        """What the relay's clock says."""
        return self.world.clocks.queue_us()

    def _judge_claim(self, claim: Claim) -> None:
        """Invariant 6: it is claimed as soon as the process can, if it is to be tried."""
        if claim.retry_us is None or claim.retry_us > self.queue_us():
            return
        # both may be in the past where its mail has expired, one where it was held for long
        ready_us = max(claim.retry_us, claim.due_us, self._put_back_us.get(claim.key, 0))
        for words in self.waits.claimed(claim, ready_s=(ready_us - BEGINNING_US) / 1e6):
            self.world.fault(f"invariant 6: {words}")

    def _judge_hold(self, claim: Claim) -> None:
        """Invariant 6: a hold ends at its time."""
        until_us = self._held_until_us.pop(claim.key, None)
        if until_us is None or self.unanswered[claim.message.id] or self.unanswered[_ANY]:
            return
        for words in self.waits.claimed(claim, ready_s=(until_us - BEGINNING_US) / 1e6):
            self.world.fault(f"invariant 6: held too long: {words}")
        self.world.reached["released by its time: as answered"] += claim.due_us >= until_us

    def looks_idle(self, *, works: bool | None = None) -> None:
        """Note whether the process has no claim; `works`: it begins, or ceases, to claim."""
        self._works = self._works if works is None else works
        note = self.waits.idle_from if self._works and not self.open else self.waits.busy_from
        note(self.world.clocks.steady_s())

    _works = False

    def begins_anew(self) -> None:
        """Another process begins: what the one before did is nothing to it."""
        self.progress = Progress(self.world, self._plan)
        self._taken.clear()
        self._blocked_s.clear()

    def _judge_progress(self, claim: Claim) -> None:
        """Invariant 6: a claim in memory waits for something that goes on, or for a rate."""
        progress, idle_s, taken_s = self._taken.pop(claim.key, (self.progress, None, 0.0))
        if idle_s is None or self._is_rated(claim) or claim.next_hop.kind in HERE:
            return
        lost_s = progress.idle_s - idle_s - self.outage_s(taken_s, self.world.clocks.steady_s())
        if lost_s > _WAKE_S:
            words = f"{claim.key} was in memory, and nothing was done for {lost_s:.0f} s"
            self.world.fault(f"invariant 6: {words}")

    def _is_rated(self, claim: Claim) -> bool:
        return bool(self._plan.rate or (self._plan.route_rate and claim.next_hop.host == ROUTED))

    def attempted(self, claim: Claim) -> None:
        """Invariant 4: what is attempted now has not waited for slow transactions of its site."""
        before_s = self._blocked_s.pop(claim.key, None)
        domain = claim.next_hop.host
        if before_s is None or self._is_rated(claim) or domain in _TWO_SITES:
            return
        blocked_s = self.progress.blocked_s(domain) - before_s
        if blocked_s > _BLOCKED_S:
            words = f"{claim.key} has waited for slow transactions for {blocked_s:.0f} s"
            self.world.fault(f"invariant 4: {words}")

    def records(self, claim: Claim) -> bool:
        """Note that a result begins, which others may see before who waits for it; whether the
        claim is fenced already.
        """
        self._recording[claim.key].add(claim.epoch)
        self._put_back_us[claim.key] = self.queue_us()
        return claim.epoch < self.epochs.get(claim.key, 0)

    def recorded(self, claim_result: ClaimResult, *, held: bool, was_fenced: bool) -> None:
        claim = claim_result.claim
        key = (claim.message.id, claim.entry_id)
        self.world.note("record", *key, "epoch", claim.epoch, "held" if held else "fenced")
        self._recording[key].discard(claim.epoch)
        if not held:
            self.waits.lost(claim)
            self.world.fault(f"invariant 3: {key} was changed while a connection had it")
        if key in self._in_flight and not claim_result.goes_on:
            self._in_flight.remove(key)
            is_done = any(isinstance(one, Relayed) for one in claim_result.outcomes.values())
            self.world.reached[
                f"reported in flight: {'relayed' if is_done else 'not relayed'}"
            ] += 1
        if held and was_fenced:
            self.world.fault(f"invariant 3: a fenced claim of {key} was settled")
        reached = self.world.reached
        for outcome in claim_result.outcomes.values():
            kind = f": {outcome.kind}" if isinstance(outcome, Deferred) else ""
            name = type(outcome).__name__.lower()
            reached[f"deferred{kind}" if kind else f"outcome: {name}"] += 1
            if kind == f": {DeferralClass.TLS}":
                self._judge_refusal(claim)
        if not held:
            reached["settled: fenced"] += 1
        if claim_result.goes_on:
            reached["settled: some"] += 1
            self._recorded_people(claim, claim_result.outcomes)
            return
        self._closed(claim)
        self._recorded_people(claim, [one.id for one in claim.recipients])
        if claim_result.outcomes:
            self._tried.add(key)
        elif claim.state in HELD_OR_CAPTURED and not claim_result.expired:
            self._kept_in_doubt.add(key)  # past its end, perhaps, until somebody releases it
        self._judge_progress(claim)
        if held:
            self._judge_delay(claim_result)
            self._judge_wait(claim_result)
        if held and claim_result.expired:
            reached[f"expired: {claim.state}"] += 1
            expires_us = claim.expires_us
            if claim.is_held_by_rule:
                expires_us = claim.message.received_us + int(HELD_S[claim.extra.rule] * 1e6)
            if claim.state is RecipientState.CAPTURED:
                expires_us = claim.message.received_us + self._captured_keep_us
            self._judge_untried(claim, expires_us)
            was_held_for_good = claim.state in HELD_OR_CAPTURED or key in self._kept_in_doubt
            kept_s = DOUBT_US / 1e6 if was_held_for_good and self._plan.may_doubt else 0.0
            now_s = self.world.clocks.steady_s()
            self.expiries.append((claim.message.id, expires_us, now_s, kept_s))

    def _judge_refusal(self, claim: Claim) -> None:
        """Mail waits for TLS only under a policy that demands it."""
        since_us = self._looked_up_us[claim.key] - _REFUSED_US
        found = self.policies.in_force(since_us, self.queue_us())
        is_demanded = self._plan.tlsa in SIGNED and claim.next_hop.host in (STRICT, STRICT_MX)
        is_demanded |= claim.next_hop.host == STRICT and any(map(demands_tls, found))
        if claim.message.envelope.tls == OPTIONAL or not is_demanded:
            self.world.fault(f"{claim.key} waits for TLS, which no policy in force demands")

    def released(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self.world.note("release", claim.message.id, claim.entry_id)
            self._closed(claim)
            self._recorded_people(claim, [one.id for one in claim.recipients])

    def _closed(self, claim: Claim) -> None:
        key = (claim.message.id, claim.entry_id)
        current = self.open.get(key)
        if current is not None and current.epoch == claim.epoch:
            del self.open[key]
            self.looks_idle()

    def _recorded_people(self, claim: Claim, numbers: Collection[int]) -> None:
        for recipient in claim.recipients:
            if recipient.id in numbers:
                self.claim_results[claim.message.id, recipient.path.address] += 1

    def _judge_wait(self, claim_result: ClaimResult) -> None:
        """Invariant 6: the next attempt is due as the retry lists say."""
        now_us = self._concluded_us(claim_result)
        if abs(now_us - self.queue_us()) > _JUMP_US_MIN:  # the clock has jumped since
            self.waits.lost(claim_result.claim)
            return
        for words in self.waits.recorded(claim_result, now_us=now_us):
            self.world.fault(f"invariant 6: {words}")

    def _judge_delay(self, claim_result: ClaimResult) -> None:
        """Invariant 6: a message of which an entry waits after its warning time, and only it, is
        reported as delayed, once.
        """
        claim, waiting = claim_result.claim, claim_result.waiting
        reported = sum(getattr(one.detail, "kind", "") == "delayed" for one in claim_result.events)
        now_us = self._concluded_us(claim_result)
        was_reported = claim.message.id in self._delayed
        if reported:
            self._delayed.add(claim.message.id)
        if abs(now_us - self.queue_us()) > _JUMP_US_MIN:  # the clock has jumped since
            return
        is_late = claim.warn_us is not None and claim.warn_us <= now_us
        if reported > (is_late and not was_reported):
            self.world.fault(f"invariant 6: a delay of {claim.key} is reported that is none")
        people = claim_result.outcomes or {one.id for one in claim.recipients}
        done = {
            number
            for number, outcome in claim_result.outcomes.items()
            if isinstance(outcome, Delivered | Relayed | Failed)
        }
        late = [one for one in claim.recipients if one.id in people and one.id not in done]
        concerns = any(
            not one.added_by and (not one.path.notify or Notify.DELAY in one.path.notify)
            for one in late
        )
        is_due = is_late and waiting is not None and waiting.warn_us is None
        if is_due and concerns and not reported and not was_reported:
            self.world.fault(f"invariant 6: no delay is reported of {claim.key}")

    def _judge_untried(self, claim: Claim, expires_us: int) -> None:
        """Invariant 6: a wrong clock alone ends nothing that may still be tried."""
        expires_s = (expires_us - BEGINNING_US) / 1e6
        if claim.state in HELD_OR_CAPTURED or claim.key in self._tried:
            return
        if any(before_s < expires_s <= after_s for before_s, after_s in self.gaps):
            self.world.fault(f"invariant 6: {claim.key} expired by a clock, and was not tried")

    def resumed(self, before_s: float) -> None:
        """Record the start of a process; queue time was `before_s` before it."""
        after_s = self.world.clocks.steady_s()
        self.policies.resumed(now_us=self.queue_us())
        if after_s > before_s:
            self.gaps.append((before_s, after_s))
            self.outages.append((before_s, after_s))
            self._tried.clear()
            self.world.reached["clock: a doubtful gap"] += 1
        else:  # the process before may have read later times, and none of them was written down
            for spans in (self.gaps, self.outages):
                spans[:] = [(start_s, min(end_s, after_s)) for start_s, end_s in spans]

    def _concluded_us(self, claim_result: ClaimResult) -> int:
        """Return when the attempt ended, in queue time; the write may take longer."""
        clocks = self.world.clocks
        return claim_result.at_us - (clocks.jumped_us + clocks.wrong_us - clocks.offset_us)

    # -- the operators' side

    def is_in_flight(self, key: Key) -> bool:
        """Whether it is claimed, and its result is not being written."""
        return key in self.open and self.open[key].epoch not in self._recording[key]

    def asked(self, order: QueueCommand) -> None:
        """An operator gave a queue command."""
        if order.operation is Operation.RELEASE or order.until_us is not None:
            self._freed_s |= dict.fromkeys(order.selector.ids or (_ANY,), self.world.time())
        self.unanswered.update(order.selector.ids or (_ANY,))

    def answer_lost(self) -> None:
        """Nobody knows what became of the commands that were not answered: any entry may be changed."""
        if self.unanswered.pop(_ANY, 0):
            self._held_until_us.clear()

    def answered(
        self, order: QueueCommand, changed: CommandReport, *, unclaimed: Mapping[Key, int]
    ) -> None:
        """An operator received the result of a queue command; `unclaimed` has the epochs of the entries
        that nobody had when it was given.
        """
        self.unanswered.subtract(order.selector.ids or (_ANY,))
        for one in changed.entries:
            key = (one["id"], one["entry"])
            if one["result"] == CommandResult.DONE:
                self.operated[key] += 1
                self._withdrawn.discard(key)
                self._held_until_us.pop(key, None)
                # Of two answers in one instant nobody knows which command was executed last.
                is_last = self._operated_at_s.get(key) != self.world.time()
                self._operated_at_s[key] = self.world.time()
                if order.operation is Operation.HOLD and order.until_us is not None and is_last:
                    self._held_until_us[key] = order.until_us
                if order.operation is Operation.CANCEL:
                    self.cancelled.add(key)
                    if self.is_in_flight(key):
                        self.world.fault(
                            f"invariant 9: {key} is reported to be cancelled in flight"
                        )
            elif one["result"] == CommandResult.ORDERED:
                self.operated[key] += 2  # now, and when it is carried out
                self._held_until_us.pop(key, None)
                if order.operation is Operation.CANCEL:
                    self.cancel_ordered.add(key)
                is_unclaimed = unclaimed.get(key) == self.epochs.get(
                    key
                )  # nobody has claimed it since
                if is_unclaimed and key not in self._withdrawn:
                    self._in_flight_since_s[key] = self.world.time()
                if order.operation is Operation.CANCEL and key in self.open:
                    self._in_flight.add(key)

    def ended(self) -> None:
        """The world is over: what was in flight and never came has not been."""
        for key in self._in_flight_since_s:
            self._told_in_flight(key)

    def _told_in_flight(self, key: Key) -> None:
        self.world.fault(f"invariant 9: {key} is reported to be in flight, and is not")

    def withdrawn(self, key: Key) -> None:
        """An operator took it out of memory."""
        if self.open.pop(key, None) is not None:
            self._withdrawn.add(key)
        self.looks_idle()

    def died(self) -> None:
        self.policies.died(now_us=self.queue_us())
        self.answer_lost()
        self.ghosts += self.open.values()
        for claim in self.open.values():
            self.waits.lost(claim)
        self.looks_idle(works=False)
        self.waits.ended()
        # the result of an attempt may be durable although the process did not see it
        self._tried.update(key for key, epochs in self._recording.items() if epochs)
        self._recording.clear()
        self._in_flight.clear()
        self.open.clear()
        self._in_flight_since_s.clear()
        self._withdrawn.clear()
        self._dots.clear()

    def repeated(self, key: str) -> None:
        """A submission was repeated."""
        keep_s = self._plan.submission_keep_s
        for letter in self._plan.letters:
            if submission_key(letter) == key and self.world.time() > letter.at_s + keep_s / 2:
                self.world.reached["accepted: repeated, with an old key"] += 1

    # -- the sites' side

    def dot(self, connection: str, name: str, addresses: Collection[str], session: Session) -> None:
        """A final dot has come: what went before it on the connection must be recorded by now."""
        queue_id = self.names.get(name, name)
        for claim in self._claims_of(queue_id, addresses):
            if session.is_logged_in != (str(claim.next_hop) == GATED_HOP):
                self.world.fault(f"{claim.key} came on {connection}, which has another login")
            if claim.next_hop.host in (STRICT, STRICT_MX):
                self._judge_tls(claim, connection, session)
        self._judge_held(queue_id, addresses)
        before = self._dots.get(connection)
        if before is not None and (before[0], before[1]) != (queue_id, tuple(addresses)):
            earlier_id, earlier, count = before
            if self._claim_results(earlier_id, earlier) <= count:
                self.world.fault(
                    f"invariant 10: a dot on {connection} before {earlier_id} was settled"
                )
        count = self._claim_results(queue_id, addresses)
        self._dots[connection] = (queue_id, tuple(addresses), count)

    def _judge_held(self, queue_id: str, addresses: Collection[str]) -> None:
        """What a route holds leaves only after an operator's order that ends a hold."""
        if not any(one.partition("@")[2] in self._plan.holds for one in addresses):
            return
        freed_s = max(self._freed_s.get(one, -1.0) for one in (queue_id, _ANY))
        if freed_s < self._accepted_s.get(queue_id, 0.0):
            self.world.fault(f"{queue_id} to {sorted(addresses)} leaves without a release")

    def _claims_of(self, queue_id: str, addresses: Collection[str]) -> Iterator[Claim]:
        """The claims of a transaction, unless an operator gave them another next hop."""
        for claim in self.open.values():
            if claim.message.id != queue_id or self.waits.is_rerouted(queue_id):
                continue
            if any(one.path.address in addresses for one in claim.recipients):
                yield claim

    def _judge_tls(self, claim: Claim, connection: str, session: Session) -> None:
        """Mail comes only in a session that a policy allows which was in force for it."""
        if session.is_lax:
            self.world.reached["strict: as it says without TLS"] += session.tls is None
            return
        if self._plan.tlsa in SIGNED:
            self.world.reached["strict: by DANE"] += 1
            if self._plan.tlsa != MATCHING or session.tls is None or not session.tls.is_shown:
                self.world.fault(f"{claim.key} came on {connection}, below the policy of its host")
            return
        if claim.next_hop.host != STRICT:
            return
        host = connection.partition("/")[0]
        found = self.policies.in_force(self._looked_up_us[claim.key], self.queue_us())
        if not any(allows(one, host, session.tls) for one in found):
            self.world.fault(f"{claim.key} came on {connection}, below the policy of its domain")
        self.world.reached["strict: verified"] += all(map(demands_tls, found))
        self.world.reached["strict: its policy is over"] += found == {None} and bool(self.policies)

    def late(self, claim: Claim) -> None:
        """Its turn has come before, and it begins now: there was no room for its content."""
        self._late_s[claim.next_hop.host].append(self.world.time())

    def begun(self, host: str) -> None:
        """Invariant 4: in no span of a rate's time more transactions begin than it lets through."""
        domain, now_s = host.partition(".")[2], self.world.time()
        rate = self.rated.get(domain)
        if rate is None:
            return
        begun_s = self._begun_s[domain]
        begun_s.append(now_s)
        while begun_s[0] <= now_s - rate.per_s + _MOMENT_S:
            begun_s.popleft()
        processes = 1 + sum(start_s >= begun_s[0] for start_s in self.starts_s)
        late = sum(late_s >= begun_s[0] for late_s in self._late_s[domain])
        if len(begun_s) > processes * rate.count + late:
            self.world.fault(f"invariant 4: {len(begun_s)} to {domain} in {rate.per_s:g} s")

    def _claim_results(self, queue_id: str, addresses: Collection[str]) -> int:
        return min((self.claim_results[queue_id, one] for one in addresses), default=1 << 30)

    # -- the clients' side

    def was_in_doubt(self, attempt: Try) -> bool:
        """Whether it was refused while no disk could have kept what was written of it away."""
        return any(start <= attempt.ended_s <= end for start, end in self.doubtful)

    def outage_s(self, start_s: float, end_s: float) -> float:
        """How much of that time nothing could be done."""
        return sum(max(0.0, min(end_s, end) - max(start_s, start)) for start, end in self.outages)
