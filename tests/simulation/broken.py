"""Relays that are broken in one way each: the simulation must find every one of them.

Each is a context in which the real code does one thing wrong. It raises AttributeError where the code
that it breaks no longer exists. See docs/design.md 4, 7.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import count, islice
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from relay.base.clock import QueueTime
from relay.base.message.envelope import ForwardPath
from relay.base.message.lifecycle import HELD_OR_CAPTURED
from relay.base.message.outcome import Deferred, Failed, Reply, SmtpStage
from relay.base.message.srs import Srs
from relay.delivery import (
    attempt_recorder,
    attempt_result,
    retry,
    scheduler,
)
from relay.delivery.attempt_recorder import AttemptRecorder
from relay.delivery.connection_slots import ConnectionSlots
from relay.delivery.outbound_session import OutboundSession
from relay.delivery.queue_scanner import PriorityScan, QueueScanner
from relay.delivery.reports import bounces
from relay.delivery.retry import RetrySchedule
from relay.delivery.scheduler import DeliveryScheduler
from relay.delivery.site_limits import ConcurrencyLimit, TokenBucket
from relay.delivery.sites import SiteKey, Sites
from relay.delivery.smtp import transaction
from relay.store.spool.shared import (
    accepted,
    claimed,
    decisions,
    entries,
    maintenance,
    results,
    suppression,
)
from relay.store.spool.shared.queue_admin import QueueAdmin
from relay.store.spool.sqlite import spool as spool_module
from relay.store.spool.sqlite import transactions, writer
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.sqlite.write_ahead_log import LastCommit, WriteAheadLog
from relay.store.spool.sqlite.writer import Batch, Writer
from relay.store.spool.types import EntryExtra
from relay.transport.ingress import acceptance, fanout
from relay.transport.ingress.acceptance import Acceptance
from relay.transport.ingress.data import DataReply
from relay.transport.ingress.forwarding import ExpandedRecipients, Forwarder
from relay.transport.routing.resolver import Resolver
from relay.transport.routing.sts_policies import KeptPolicy
from tests.simulation import conditions
from tests.simulation.clock import WorldClock
from tests.simulation.neighbours import Mailboxes
from tests.simulation.scenario import Scenario, make

Patches = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Broken:
    """`caught_by` is what at least one violation says; within the first `seeds` worlds of those
    where it can show at all.
    """

    name: str
    broken: Patches
    caught_by: str
    where: Callable[[Scenario], bool] = lambda _plan: True
    seeds: int = 60

    @property
    def worlds(self) -> Iterator[int]:
        """Their seeds."""
        return islice((seed for seed in count() if self.where(make(seed))), self.seeds)


def _instead(owner: Any, name: str, make: Callable[[Any], Any]) -> Patches:
    """Put what `make` makes of the original in its place."""

    @contextmanager
    def patched() -> Iterator[None]:
        with patch.object(owner, name, make(getattr(owner, name))):
            yield

    return patched


def _answer_at_once(original: Any) -> Any:
    async def commit(self: Acceptance, message: Any, *args: Any, **more: Any) -> DataReply:
        task = asyncio.get_running_loop().create_task(original(self, message, *args, **more))
        task.add_done_callback(lambda done: done.exception())
        queue_id = message.facts.id
        return DataReply(f"250 2.0.0 Ok: queued as {queue_id}", queue_id)

    return commit


def _any_epoch(original: Any) -> Any:
    def record(batch: Any, claim_result: Any, *args: Any, **more: Any) -> Any:
        claim = claim_result.claim
        row = batch.cursor.execute(
            "SELECT epoch FROM entry WHERE message_id = ? AND number = ?",
            (claim.message.id, claim.entry_id),
        ).fetchone()
        claim_result = replace(claim_result, claim=replace(claim, epoch=row[0]))
        return original(batch, claim_result, *args, **more)

    return record


def _always_in_time(_original: Any) -> Any:
    return lambda _cursor, _claim: True


def _reviving(original: Any) -> Any:
    def record(batch: Any, claim_result: Any, *args: Any, **more: Any) -> Any:
        recorded = original(batch, claim_result, *args, **more)
        if claim_result.waiting is not None and recorded is not None:
            batch.cursor.execute(
                "UPDATE recipient SET state = 'deferred'"
                " WHERE message_id = ? AND entry = ? AND state = 'delivered'",
                claim_result.claim.key,
            )
        return recorded

    return record


def _report_later(original: Any) -> Any:
    async def record(self: SqliteSpool, claim_result: Any, **more: Any) -> Any:
        held, claims = await original(self, replace(claim_result, reports=()), **more)
        for report in claim_result.reports if held else ():
            accepted = await self.accept(report, claim=more.get("claim_reports", True))
            claims = (*claims, *accepted.claims)
        return held, claims

    return record


def _no_waiting(_original: Any) -> Any:
    async def before_dot(self: OutboundSession, _claim: Any) -> None:
        self._in_doubt = True

    return before_dot


def _losing_claims(original: Any) -> Any:
    async def claim_due(self: SqliteSpool, *args: Any, **more: Any) -> Any:
        seen = await original(self, *args, **more)
        if isinstance(seen, tuple):
            return seen[1:]
        return replace(seen, claims=seen.claims[1:])

    return claim_due


def _without_key(original: Any) -> Any:
    async def accept(self: SqliteSpool, message: Any, **more: Any) -> Any:
        more["submission_key"] = ""
        return await original(self, message, **more)

    return accept


def _unsynced(original: Any) -> Any:
    def open_database(*args: Any, **more: Any) -> Any:
        connection = original(*args, **more)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    return open_database


def _not_written_over(_original: Any) -> Any:
    def confirm_writable(self: WriteAheadLog) -> None:
        self.is_failing = False

    return confirm_writable


def _noted_first(original: Any) -> Any:
    def commit(self: WriteAheadLog, cursor: Any) -> None:
        self._last_commit.committed()
        with patch.object(LastCommit, "committed", _nothing(None)):
            original(self, cursor)

    return commit


def _ten_times(original: Any) -> Any:
    def initialise(self: ConnectionSlots, limit: int, *args: Any, **more: Any) -> None:
        original(self, 10 * limit, *args, **more)

    return initialise


def _to_anybody(original: Any) -> Any:
    def decide_reports(kind: Any, message: Any, recipients: Any, **_: Any) -> Any:
        return original(kind, replace(message, trusted=True), recipients)

    return decide_reports


def _again(original: Any) -> Any:
    async def deliver(self: Mailboxes, *args: Any, **more: Any) -> Any:
        self.is_idempotent = False
        return await original(self, *args, **more)

    return deliver


def _same_epoch(original: Any) -> Any:
    return str(original).replace(", epoch = epoch + 1", "")


def _still_tried(_original: Any) -> Any:
    def withdraw(self: DeliveryScheduler, keys: Any) -> Any:
        return frozenset(key for key in keys if key in self.recorder.claims._queues)

    return withdraw


def _held_for_ever(original: Any) -> Any:
    def look_us(retry_us: Any, **more: Any) -> int:
        return original(retry_us, **more) if retry_us is not None else 1 << 62

    return look_us


def _nothing_owed(_original: Any) -> Any:
    return lambda *_args: ()


def _never_warned(original: Any) -> Any:
    return lambda *args, **more: (original(*args, **more)[0], None)


def _counted_later(_original: Any) -> Any:
    later: Counter[str] = Counter()

    def write_counts(self: Batch) -> None:
        counts, self_counts = later.copy(), self.counts.copy()
        later.clear()
        later.update(self_counts)
        counts[writer.COMMITS_COUNTER] += 1
        self.cursor.executemany(writer._COUNT, counts.items())

    return write_counts


def _not_indexed(_original: Any) -> Any:
    return lambda *_args: None


def _nothing(_original: Any) -> Any:
    return lambda *_args, **_more: 0


def _keys_with_history(_original: Any) -> Any:
    def prune_keys(transaction: Any, _now_us: int) -> int:
        return int(
            transaction.execute(
                "DELETE FROM submission WHERE NOT EXISTS"
                " (SELECT 1 FROM message WHERE message.id = submission.message_id)"
            )
        )

    return prune_keys


def _sites_shared_by(key_of: Callable[[SiteKey], object]) -> Callable[[Any], Any]:
    """Have next hops with the same `key_of` share a site."""

    class Shared(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            return super().get(key_of(key), default)

        def __setitem__(self, key: Any, site: Any) -> None:
            super().__setitem__(key_of(key), site)

    def make_it(original: Any) -> Any:
        def initialise(self: Sites, *args: Any, **more: Any) -> None:
            original(self, *args, **more)
            self._sites = Shared(self._sites)

        return initialise

    return make_it


def _whatever_the_login(key: SiteKey) -> object:
    return key[0]


def _whatever_the_tls(key: SiteKey) -> object:
    hosts, login = key
    return tuple((name, port) for name, port, *_ in hosts), login


def _trusting(original: Any) -> Any:
    async def tlsa(self: Resolver, *args: Any, **more: Any) -> Any:
        async def answers(*questions: Any) -> list[Any]:
            return [replace(one, secure=True) for one in await self._dns.answers(*questions)]

        trusting = copy(self)
        trusting._dns = SimpleNamespace(answers=answers)
        return await original(trusting, *args, **more)

    return tlsa


def _for_ever(_original: Any) -> Any:
    return property(lambda _kept: 1 << 62)


def _full_for_ever(original: Any) -> Any:
    def full_at(self: ConcurrencyLimit, connections: int, *, until_s: float) -> None:
        original(self, connections, until_s=until_s + 1e9)

    return full_at


def _whatever_rule_holds_it(original: Any) -> Any:
    return lambda entry, captured: original(
        replace(entry, extra=EntryExtra()) if entry.extra.rule else entry, captured
    )


def _without_its_end(original: Any) -> Any:
    return lambda *args: replace(original(*args), expires_us=0)


def _aloud(original: Any) -> Any:
    def expiry_result(claim: Any, **more: Any) -> Any:
        return original(replace(claim, extra=replace(claim.extra, silent=False)), **more)

    return expiry_result


def _only_more(original: Any) -> Any:
    return lambda batch, held: original(batch, {rule: max(by, 0) for rule, by in held.items()})


def _no_release_noted(original: Any) -> Any:
    return {**original, "released": False}


def _once_for_each_alias(original: Any) -> Any:
    def expand_recipients(*args: Any, **more: Any) -> ExpandedRecipients:
        found = original(*args, **more)
        again = [one for alias in found.aliases[1:] for one in alias.successors]
        return ExpandedRecipients(
            paths=[*found.paths, *map(ForwardPath, again)],
            positions=[*found.positions, *(0 for _ in again)],
            forwarded_by=[*found.forwarded_by, *("" for _ in again)],
            aliases=found.aliases,
        )

    return expand_recipients


def _for_the_victim(original: Any) -> Any:
    return lambda self, _sender, domain, *, now_us: original(
        self, "nobody@victim.test", domain, now_us=now_us
    )


def _like_outcomes(original: Any) -> Any:
    return lambda self, operation, **_more: original(self, operation)


def _wrong_for_one_life(plan: Scenario) -> bool:
    """Whether the clock was wrong while a process lived, on a machine that went on."""
    pairs = zip(plan.starts, plan.starts[1:], strict=False)
    powers = [life.power for life in plan.lives]
    return any(
        abs(one.wrong_s - two.wrong_s) > 1 and not two.boots and not power
        for (one, two), power in zip(pairs, powers, strict=True)
    )


def _leaps_ahead(plan: Scenario) -> bool:
    """Whether the machine is restarted with a clock that is further ahead than before."""
    pairs = zip(plan.starts, plan.starts[1:], strict=False)
    return any(two.boots and two.wrong_s > one.wrong_s for one, two in pairs)


def _started_long_ago(original: Any) -> Any:
    return lambda claim, **more: original(claim, **{**more, "started_us": 0})


def _wall_time(_original: Any) -> Any:
    return WorldClock.time_us


def _final_for_4yz(original: Any) -> Any:
    def classify(stage: SmtpStage, reply: Reply, peer: Any) -> Any:
        outcome = original(stage, reply, peer)
        if stage is SmtpStage.RCPT and isinstance(outcome, Deferred):
            return Failed(outcome.evidence)
        return outcome

    return classify


def _first_version(original: Any) -> Any:
    def insert(batch: Any, message: Any, *args: Any, **more: Any) -> Any:
        entries = tuple(replace(entry, content=0) for entry in message.entries)
        return original(batch, replace(message, entries=entries), *args, **more)

    return insert


def _retry_at_expiry(original: Any) -> Any:
    def retry(self: RetrySchedule, before: Any, name: str, *, now_us: int, expires_us: int) -> Any:
        _, cause = original(self, before, name, now_us=now_us, expires_us=expires_us)
        return expires_us, cause

    return retry


def _seen_at_expiry(original: Any) -> Any:
    def waiting(claim: Any, schedule: Any) -> Any:
        return replace(original(claim, schedule), due_us=claim.expires_us)

    return waiting


@contextmanager
def _expiring_untried() -> Iterator[None]:
    original = retry.end_us

    def end_us(claim: Any, *, started_us: int) -> Any:
        if claim.attempts == 0 and claim.state not in HELD_OR_CAPTURED:
            return claim.expires_us
        return original(claim, started_us=started_us)

    with patch.object(retry, "end_us", end_us), patch.object(scheduler, "end_us", end_us):
        yield


def _whoever_has_it(original: Any) -> Any:
    return lambda row: replace(original(row), is_claimed=False)


def _all_done(original: Any) -> Any:
    async def execute(self: QueueAdmin, order: Any, **more: Any) -> Any:
        changed = await original(self, order, **more)
        for one in changed.entries:
            one["result"] = "done"
        return changed

    return execute


BROKEN = (
    Broken("reply before commit", _instead(Acceptance, "_commit", _answer_at_once), "invariant 1"),
    Broken("settle without epoch", _instead(transactions, "record", _any_epoch), "invariant 3"),
    Broken(
        "a partial settlement without epoch",
        _instead(transactions, "_is_in_time", _always_in_time),
        "settled in part by the dead",
    ),
    Broken(
        "a recipient is retried after its settled 2xx",
        _instead(transactions, "record", _reviving),
        "invariant 2",
        where=conditions.boxed,
    ),
    Broken(
        "bounce and removal in two transactions",
        _instead(SqliteSpool, "record", _report_later),
        "invariant 1",
        where=conditions.slow_and_short,
    ),
    Broken(
        "next dot before settle",
        _instead(OutboundSession, "_before_dot", _no_waiting),
        "invariant 10",
        where=conditions.crowded,
    ),
    Broken("claims are lost", _instead(SqliteSpool, "claim_due", _losing_claims), "invariant 6"),
    Broken("no submission keys", _instead(SqliteSpool, "accept", _without_key), "invariant 7"),
    Broken(
        "keys end with history",
        _instead(maintenance, "prune_keys", _keys_with_history),
        "invariant 7",
    ),
    Broken("nothing synced", _instead(spool_module, "open_database", _unsynced), "invariant 1"),
    Broken(
        "a failed commit is not written over",
        _instead(WriteAheadLog, "confirm_writable", _not_written_over),
        "invariant 1",
        where=conditions.unsyncable,
    ),
    Broken(
        "a commit is noted before it",
        _instead(WriteAheadLog, "commit", _noted_first),
        "looks damaged",
        where=conditions.short,
    ),
    Broken(
        "ten times the connections",
        _instead(ConnectionSlots, "__init__", _ten_times),
        "invariant 4",
    ),
    Broken(
        "no rates",
        _instead(TokenBucket, "wait_s", _nothing),
        "invariant 4",
        where=conditions.slowed,
    ),
    Broken(
        "new mail has the reserve file",
        _instead(Writer, "submit", _like_outcomes),
        "invariant 10",
        where=conditions.filled,
    ),
    Broken("backscatter", _instead(bounces, "decide_reports", _to_anybody), "invariant 5"),
    Broken("delivered twice at home", _instead(Mailboxes, "deliver", _again), "invariant 2"),
    Broken(
        "a 4yz reply to RCPT is final",
        _instead(transaction, "classify", _final_for_4yz),
        "nobody refused it",
    ),
    Broken(
        "all get the first version",
        _instead(transactions, "add_message", _first_version),
        "another content",
        where=conditions.in_versions,
    ),
    Broken("doubts are not reported", _instead(claimed, "record_doubt", _nothing), "invariant 2"),
    Broken("wall time", _instead(WorldClock, "queue_us", _wall_time), "invariant 6"),
    Broken(
        "a start takes the wall clock as steady time",
        _instead(QueueTime, "resume", _nothing),
        "invariant 6",
        where=_wrong_for_one_life,
    ),
    Broken(
        "a wrong clock expires what was not tried",
        _instead(scheduler, "claim_action", _started_long_ago),
        "invariant 6",
        where=_leaps_ahead,
    ),
    Broken(
        "a hold keeps the epoch",
        _instead(entries, "_PUT", _same_epoch),
        "invariant 3",
        where=conditions.operated,
    ),
    Broken(
        "what is withdrawn is tried",
        _instead(DeliveryScheduler, "withdraw", _still_tried),
        "invariant 2",
        where=conditions.operated,
    ),
    Broken(
        "what is held never ends",
        _instead(decisions, "earliest_due_us", _held_for_ever),
        "invariant 6",
        where=conditions.operated,
    ),
    Broken(
        "retried at expiry only", _instead(RetrySchedule, "retry", _retry_at_expiry), "expected"
    ),
    Broken(
        "seen at expiry only",
        _instead(attempt_result, "_waiting", _seen_at_expiry),
        "looked at after",
    ),
    Broken(
        "no timer for what is due",
        _instead(QueueScanner, "due_at", _nothing),
        "was due",
        where=conditions.never_anew,
    ),
    Broken(
        "expired untried",
        _expiring_untried,
        "nobody has tried it",
        where=conditions.slower_than_expiry,
    ),
    Broken(
        "a cancel takes what is in flight",
        _instead(entries, "read_entry", _whoever_has_it),
        "invariant 9",
        where=conditions.cancelled_in_flight,
    ),
    Broken(
        "a cancel in flight is reported as done",
        _instead(QueueAdmin, "execute", _all_done),
        "invariant 9",
        where=conditions.cancelled_in_flight,
    ),
    Broken(
        "a release forgets the attempts",
        _instead(decisions._EntryChanger, "_is_deferred_again", _nothing),
        "before its hold",
        where=conditions.paused,
    ),
    Broken("each next hop is warned of", _instead(results, "record_owed", _nothing), "invariant 6"),
    Broken(
        "what is owed is not paid",
        _instead(AttemptRecorder, "_owed_by", _nothing_owed),
        "unreported",
        where=conditions.owing,
        seeds=120,
    ),
    Broken("never warned", _instead(attempt_result, "_warning", _never_warned), "invariant 6"),
    Broken("counted later", _instead(Batch, "write_counts", _counted_later), "unaccounted"),
    Broken(
        "what is left is forgotten",
        _instead(PriorityScan, "_leave_hop", _not_indexed),
        "invariant 6",
    ),
    Broken(
        "a copy that a rule holds leaves without a release",
        _instead(accepted, "_first_state", _whatever_rule_holds_it),
        "without a release",
        where=conditions.held_by_rules,
    ),
    Broken(
        "the hold of a rule ends with its message",
        _instead(fanout.HoldTimes, "held", _without_its_end),
        "invariant 6",
        where=conditions.held_by_rules,
    ),
    Broken(
        "a silent end is reported",
        _instead(attempt_recorder, "expiry_result", _aloud),
        "nobody was to hear",
        where=conditions.held_by_rules,
    ),
    Broken(
        "what rules hold is not counted when it ends",
        _instead(results, "count_holds", _only_more),
        "rules hold",
        where=conditions.held_by_rules,
    ),
    Broken(
        "what was released is held again",
        _instead(decisions, "RELEASED", _no_release_noted),
        "held again",
        where=conditions.released_between_lives,
    ),
    Broken(
        "connections are shared whatever the login",
        _instead(Sites, "__init__", _sites_shared_by(_whatever_the_login)),
        "has another login",
        where=conditions.guarded,
    ),
    Broken(
        "sites are shared across TLS policies",
        _instead(Sites, "__init__", _sites_shared_by(_whatever_the_tls)),
        "below the policy",
        where=conditions.in_clear,
    ),
    Broken(
        "TLSA records count without AD",
        _instead(Resolver, "tlsa", _trusting),
        "no policy in force",
        where=conditions.forged,
    ),
    Broken(
        "a policy is for ever",
        _instead(KeptPolicy, "ends_us", _for_ever),
        "no policy in force",
        where=conditions.published,
    ),
    Broken(
        "a hold's end wakes nobody",
        _instead(DeliveryScheduler, "due_at", _nothing),
        "held too long",
        where=conditions.held_and_never_anew,
    ),
    Broken(
        "a freed slot wakes nobody",
        _instead(ConnectionSlots, "_pass_on", _nothing),
        "nothing was done",
        where=conditions.without_rates,
    ),
    Broken(
        "a slow transaction keeps its place",
        _instead(ConcurrencyLimit, "_slow", _nothing),
        "slow transactions",
        where=conditions.crowds,
    ),
    Broken(
        "a refused connection is the last one",
        _instead(ConcurrencyLimit, "full_at", _full_for_ever),
        "slow transactions",
        where=conditions.crowds,
    ),
    Broken(
        "each alias sends a copy",
        _instead(acceptance, "expand_recipients", _once_for_each_alias),
        "has 2 recipients",
        where=conditions.aliased,
    ),
    Broken(
        "forwarded in the name of others",
        _instead(Forwarder, "sender_of", lambda _: lambda *_, **__: ""),
        "which is no SRS address",
        where=conditions.forwards_for_others,
    ),
    Broken(
        "senders lead to others",
        _instead(Srs, "rewritten", _for_the_victim),
        "left with the sender",
        where=conditions.forwards_for_others,
    ),
    Broken(
        "nobody is looked up",
        _instead(transactions, "suppressed_of", lambda _: lambda *_args: None),
        "which is dead",
        where=conditions.suppresses,
    ),
    Broken(
        "each failure is that of a dead address",
        _instead(suppression, "says_dead", lambda _: lambda outcome: isinstance(outcome, Failed)),
        "it is not dead",
        where=conditions.suppresses,
    ),
    Broken("events are lost", _instead(Batch, "append_events", _nothing), "invariant 9"),
)
