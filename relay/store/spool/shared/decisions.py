"""Decide what a queue command does to entries: retry, hold, release, cancel and reroute.

The entries were read before (relay/store/spool/shared/entry_facts.py). A dry run gets the same
decisions as the change itself. An entry that is being delivered is left alone. Every change raises
the epoch, so that the result of an earlier claim is refused, and records an event that says who
changed the entry and why.

See docs/design.md 4, invariants 1, 3 and 9.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from relay.base.accounts.usage import CancelledMail
from relay.base.clock import offset_us, rfc3339
from relay.base.message.envelope import ForwardPath, Notify
from relay.base.message.lifecycle import RecipientState, check_transition
from relay.base.message.nexthop import Destination, HopKind, NextHop, without_mailbox
from relay.store.journeys.details import CommandDetail
from relay.store.spool.queue_commands import (
    NO_REPORTS,
    CommandResult,
    Operation,
    QueueCommand,
    RouteLookup,
    earliest_due_us,
    has_been_restored,
    state_after,
)
from relay.store.spool.shared.columns import recipient_row
from relay.store.spool.shared.entry_changes import EntryChanges
from relay.store.spool.shared.entry_facts import EntryFacts, LoadedEntries, load_entries
from relay.store.spool.shared.holds import RELEASED, changed_extra, held_extra
from relay.store.spool.shared.tables import Leftovers, Tables
from relay.store.spool.types import RESTORED_US, ContentKey, Key, NewMessage, NewRecipient, Selector

_OF_A_RULE = "a rule holds it"
_IN_FLIGHT = "it is being delivered"
_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
_HOPS_RECORDED_MAX = 20  # of one event
_LEFT_US_MIN = 3600_000_000  # of the time of restored mail: it is attempted once more
_NEVER = frozenset((Notify.NEVER,))
Pairs = Sequence[tuple[str, str]]


@dataclass(slots=True)
class ChangeResult:
    """What one transaction did."""

    # of each entry, with a note
    results: dict[Key, tuple[CommandResult, str]] = field(default_factory=dict)
    made: dict[Key, list[Key]] = field(default_factory=dict)  # of entries that were split
    next_hops: dict[NextHop, None] = field(default_factory=dict)  # with entries that are due now
    due_us: int | None = None  # the earliest due time of a changed entry
    ended: dict[Key, ContentKey] = field(default_factory=dict)  # entries, with their contents
    cancelled: int = 0  # recipients
    # of entries that leave Microsoft Graph unsent: next hop, drafts, and EntryExtra.lost_posts
    drafts: dict[Key, tuple[str, Pairs, Pairs]] = field(default_factory=dict)
    given_back: list[CancelledMail] = field(default_factory=list)  # to the counts of accounts
    reports: list[NewMessage] = field(default_factory=list)  # to senders
    left: Leftovers = None  # to be removed once it is durable


def in_flight_note(node: str = "") -> str:
    """Return the note for an entry that is being delivered, by another `node` if that is named."""
    return f"{_IN_FLIGHT} at {node}" if node else _IN_FLIGHT


def _withdrawn(facts: EntryFacts) -> str:
    return f"the order to {facts.ordered} is withdrawn" if facts.ordered else ""


def decide(
    loaded: LoadedEntries,
    command: QueueCommand,
    keys: Sequence[Key],
    *,
    taken: Collection[Key],
    now_us: int,
    at_us: int,
    planned: Mapping[Key, int | None],
) -> tuple[ChangeResult, EntryChanges]:
    """Return what `command` does to these entries. `taken` are entries whose claims were withdrawn.
    `planned` are entries for which reports are planned, with their epochs at that time; None for a
    damaged entry. `now_us` is queue time, `at_us` wall time.
    """
    changer = _EntryChanger(loaded, command, taken=taken, now_us=now_us, at_us=at_us)
    is_cancel = command.operation is Operation.CANCEL
    passed_over = changer.changed_since(planned, keys) if is_cancel else frozenset[Key]()
    return changer.run(keys, passed_over=passed_over), changer.changes


def _reroute_targets(
    loaded: LoadedEntries, key: Key, command: QueueCommand
) -> tuple[Mapping[Destination, list[int]], str]:
    """Return the numbers of the recipients that get another next hop, by destination. If there are
    none, also return why.
    """
    assert command.to is not None
    onward: dict[Destination, list[int]] = {}
    facts, has_rejected = loaded.facts[key], False
    for number, address in loaded.recipients.get(key, ()):
        destination = command.to(address, facts.reverse_path or "")
        if destination and destination.next_hop.mailbox and facts.extra and facts.extra.sender:
            # the sender of this copy logs in at the next hop
            destination = command.to(address, facts.extra.sender)
        if destination is None or destination.next_hop.kind is HopKind.CAPTURE:
            has_rejected = True
        elif destination.next_hop.key != facts.next_hop or facts.is_held_by(destination):
            onward.setdefault(destination, []).append(number)
    if onward:
        return onward, ""
    if not has_rejected:
        return onward, "it goes there already"
    if command.operation is Operation.RELEASE:
        return onward, (
            "it is captured, and no --release-allow matches its recipients: release a copy to "
            "addresses that you name"
        )
    if not facts.reverse_path and _is_by_graph(command.to, loaded.recipients[key]):
        return onward, NO_REPORTS
    return onward, "none of its recipients has a mailbox or a next hop there"


def _is_by_graph(to: RouteLookup, recipients: Iterable[tuple[int, str]]) -> bool:
    """Whether the route takes mail with a sender, and sends it by Microsoft Graph."""
    routes = (to(address, address) for _, address in recipients)
    return any(route is not None and route.next_hop.kind is HopKind.GRAPH for route in routes)


def _unchanged_reason(command: QueueCommand, facts: EntryFacts, *, now_us: int) -> str:
    """Return why a retry or a hold does not change the entry, "" where it does."""
    match command.operation:
        case Operation.HOLD if command.new and facts.rule:
            return _OF_A_RULE
        case Operation.RETRY if facts.retry_us is not None and facts.retry_us <= now_us:
            return "it is due already"
        case Operation.HOLD if (
            facts.state is RecipientState.HELD
            and not facts.ordered
            and facts.retry_us == command.until_us
            and (command.backed_up_us is None or has_been_restored(facts.due_us))
        ):
            return "it is held already"
        case _:
            return ""


def _held_before(loaded: LoadedEntries, command: QueueCommand, key: Key) -> str:
    """Return why a release leaves an entry held, "" where it does not."""
    if command.new and loaded.facts[key].rule:
        return _OF_A_RULE
    if command.operation is not Operation.RELEASE or not command.selector.restored:
        return ""
    holds = [detail for detail in loaded.operations_on(key) if detail.operation == Operation.HOLD]
    is_of_restore = bool(holds) and holds[0].restored
    return "" if is_of_restore else "it was held before the backup, and stays held"


def held_by_restore(tables: Tables, keys: Sequence[Key]) -> list[Key]:
    """Return which of these entries a release with --restored releases."""
    release = QueueCommand(Operation.RELEASE, Selector(restored=True), who="")
    loaded = load_entries(tables, release, keys)
    return [key for key in keys if key in loaded.facts and not _held_before(loaded, release, key)]


@dataclass(eq=False, repr=False)
class _EntryChanger:
    """Decides on the entries of one transaction, one after the other."""

    loaded: LoadedEntries
    command: QueueCommand
    taken: Collection[Key]
    now_us: int
    at_us: int

    def __post_init__(self) -> None:
        self.changes = EntryChanges()
        self._work = ChangeResult()
        self._last_numbers = dict(self.loaded.last_numbers)

    def changed_since(
        self, planned: Mapping[Key, int | None], keys: Sequence[Key]
    ) -> frozenset[Key]:
        """Return the entries that a cancel must not end now: those that need a plan and have none,
        and all entries of a message in which an entry has changed since it was planned.
        """
        changed = set()
        for key, epoch in planned.items():
            facts = self.loaded.facts.get(key)
            is_ours = facts is not None and (not facts.is_claimed or key in self.taken)
            if not is_ours or (facts is not None and epoch not in (None, facts.epoch)):
                changed.add(key[0])
        new = set(self.loaded.to_be_planned).difference(planned)
        return frozenset(key for key in keys if key in new or key[0] in changed)

    def run(self, keys: Sequence[Key], *, passed_over: Collection[Key]) -> ChangeResult:
        """Decide on each entry. Those in `passed_over` are reported as in flight."""
        for key in keys:
            facts = self._facts(key)
            if facts is None:  # it has ended meanwhile
                continue
            if facts.is_claimed and key not in self.taken:
                self._result(key, CommandResult.IN_FLIGHT)
            elif key in passed_over and not self._must_wait(facts):
                self._result(key, CommandResult.IN_FLIGHT)
                self._put_back(key, facts)
            elif facts.ordered and self._restarts and facts.state is not RecipientState.HELD:
                self._ask_now(key, facts, order=None)
                self._record(key, operation=f"{facts.ordered} withdrawn")
                self._result(key, CommandResult.DONE, _withdrawn(facts))
            elif note := self.command.inapplicable_reason(facts.state) or self._do(key, facts):
                self._result(key, CommandResult.UNCHANGED, note)
                self._put_back(key, facts)
            elif key not in self._work.results:
                self._result(key, CommandResult.DONE, _withdrawn(facts))
        return self._work

    @property
    def _restarts(self) -> bool:
        """Whether the command lets attempts go on."""
        return self.command.operation in (Operation.RETRY, Operation.RELEASE)

    def _must_wait(self, facts: EntryFacts) -> bool:
        """Whether Microsoft Graph may have sent the message, so that an attempt must ask first."""
        is_asked = not self._restarts and self.command.backed_up_us is None
        return is_asked and facts.is_awaited

    def _facts(self, key: Key) -> EntryFacts | None:
        """Return the facts, with the expiry that this command has given to the message so far."""
        facts = self.loaded.facts.get(key)
        expires_us = self.changes.expiries.get(key[0])
        if facts is None or expires_us is None or facts.ends_alone:
            return facts
        return replace(facts, expires_us=expires_us)

    def _do(self, key: Key, facts: EntryFacts) -> str:
        """Change the entry, or return why nothing is to be changed."""
        if self._must_wait(facts):
            return self._order(key, facts)
        match self.command.operation:
            case Operation.RETRY:
                return self._retry(key, facts)
            case Operation.HOLD:
                return self._hold(key, facts)
            case Operation.RELEASE if self.command.copy_to:
                return self._release_copy(key, facts)
            case Operation.RELEASE if not self.command.is_rerouting(facts.state):
                return self._release(key, facts)
            case Operation.CANCEL:
                return self._cancel(key, facts)
            case Operation.RELEASE | Operation.REROUTE:
                return self._reroute(key, facts)

    def _order(self, key: Key, facts: EntryFacts) -> str:
        """Note the command, and have the next attempt ask at once; or return why it would change
        nothing. It waits until the entry expires at the latest: a node that pauses ends it too.
        """
        command = self.command
        reason = _unchanged_reason(command, facts, now_us=self.now_us)
        if command.to is not None:
            _, reason = _reroute_targets(self.loaded, key, command)
        if reason:
            return reason
        end_us = self._ask_now(key, facts, order=command.as_order()).expires_us
        detail = self._record(key, operation=f"{command.operation} ordered")
        detail.to[:] = filter(None, [command.to_text])
        text = rfc3339(end_us + offset_us(wall_us=self.at_us, queue_us=self.now_us))[:19]
        self._result(key, CommandResult.ORDERED, f"when Graph answers, at the latest {text}Z")
        return ""

    def _ask_now(self, key: Key, facts: EntryFacts, **order: Any) -> EntryFacts:
        """Change the order of an entry, which is due at once. A hold goes on, but what a restore
        holds expires from now on.
        """
        retry_us: int | None = self.now_us
        if facts.state is RecipientState.HELD:
            retry_us = facts.retry_us
            if has_been_restored(facts.due_us):
                facts = self._with_end(key, facts)
        self._change_extra(key, facts, **order)
        self.changes.waiting[key] = (facts.state, retry_us, self.now_us)
        self._due_now(facts.next_hop)
        return facts

    def _leave_graph(self, key: Key, facts: EntryFacts, **fields: Any) -> None:
        """Forget drafts: nothing was sent, and no attempt sends them from now on."""
        extra = facts.extra
        if extra is None or not (extra.requests or extra.lost_posts or extra.order):
            return
        lost = extra.all_lost_posts if self.command.operation is not Operation.HOLD else ()
        self._work.drafts[key] = (facts.next_hop, extra.unsent, lost)
        self._change_extra(key, facts, requests=(), order=None, **fields)

    def _retry(self, key: Key, facts: EntryFacts) -> str:
        self._due_now(facts.next_hop)
        if note := _unchanged_reason(self.command, facts, now_us=self.now_us):
            return note
        self._wait(key, facts, retry_us=self.now_us)
        self._record(key)
        return ""

    def _hold(self, key: Key, facts: EntryFacts) -> str:
        until_us = self.command.until_us
        if note := _unchanged_reason(self.command, facts, now_us=self.now_us):
            return note
        was_held_for_good = facts.state is RecipientState.HELD and facts.retry_us is None
        if self.command.backed_up_us is not None:
            facts = self._without_end(key, facts, self.command.backed_up_us)
        elif facts.rule:  # the operator's hold replaces the hold of the rule
            facts = self._with_lifetime(key, facts)
        self._wait(key, facts, retry_us=until_us)
        if self.command.backed_up_us is None:
            self._leave_graph(key, facts)
        elif was_held_for_good:
            return "it was held before"
        detail = self._record(key)
        reason = ": ".join(filter(None, (self.command.who, self.command.why)))
        self._note_hold(key, facts, reason)
        self.changes.held_by_rules[facts.rule] -= 1
        before = facts.retry_us
        if facts.state is RecipientState.HELD:  # keep the time from before the first hold
            before = self._due_before(key) or None
        if before is not None:
            detail.due[str(key[1])] = rfc3339(before)
        return ""

    def _without_end(self, key: Key, facts: EntryFacts, backed_up_us: int) -> EntryFacts:
        """Let the message of a restored entry not expire; keep the time that was left."""
        expires_us = facts.expires_us
        if expires_us < RESTORED_US:  # otherwise another entry of it came first
            expires_us = RESTORED_US + max(_LEFT_US_MIN, expires_us - backed_up_us)
            self._expire_at(key, facts, expires_us)
        return replace(facts, expires_us=expires_us)

    def _with_end(self, key: Key, facts: EntryFacts) -> EntryFacts:
        """Let the message of a restored entry expire again, after the time that was left."""
        expires_us = self.now_us + facts.due_us - RESTORED_US
        if facts.expires_us < RESTORED_US:
            expires_us = max(expires_us, facts.expires_us)
        self._expire_at(key, facts, expires_us)
        return replace(facts, expires_us=expires_us, due_us=expires_us)

    def _with_lifetime(self, key: Key, facts: EntryFacts) -> EntryFacts:
        """Let an entry that a rule has held expire as late as new mail."""
        assert facts.extra is not None
        expires_us = self.now_us + facts.extra.lifetime_us
        self._change_extra(key, facts, expires_us=expires_us)
        return replace(facts, expires_us=expires_us, due_us=expires_us, ends_alone=True)

    def _expire_at(self, key: Key, facts: EntryFacts, expires_us: int) -> None:
        if facts.ends_alone:
            self._change_extra(key, facts, expires_us=expires_us)
        else:
            self.changes.expiries[key[0]] = expires_us

    def _release(self, key: Key, facts: EntryFacts) -> str:
        now_us = self.now_us
        if note := _held_before(self.loaded, self.command, key):
            self.changes.due.append((self._with_end(key, facts).due_us, *key))
            return note
        before_us = self._due_before(key) if self.command.as_before else now_us
        self._wait(key, facts, retry_us=max(before_us, now_us))
        self._due_now(facts.next_hop)
        detail = self._record(key)
        if self._is_deferred_again(facts):
            detail.deferred.append(key[1])
        return ""

    def _release_copy(self, key: Key, facts: EntryFacts) -> str:
        """Add an entry with the same content for each next hop of the addresses that were given.

        The message has further recipients then. Its sender does not know them and gets no reports.
        """
        assert self.command.to is not None
        onward: dict[Destination, list[str]] = {}
        for address in self.command.copy_to:
            to = self.command.to(address, "")
            assert to is not None
            onward.setdefault(to, []).append(address)
        made = []
        for to, addresses in onward.items():
            copy = self._copied_entry(key, facts, to, attempts=0)
            made.append(copy)
            for address in addresses:
                self._add_recipient(copy, NewRecipient(ForwardPath(address, _NEVER)))
            self._wait(copy, facts, retry_us=self.now_us)
            self._due_now(to.next_hop.key)
        self._work.made[key] = made
        detail = self._record(*made)
        self._record_next_hops(detail, made[0], before=facts.next_hop, onward=onward)
        detail.copies.extend(self.command.copy_to)
        self._put_back(key, facts)
        return ""

    def _cancel(self, key: Key, facts: EntryFacts) -> str:
        check_transition(facts.state, RecipientState.CANCELLED)
        self.changes.held_by_rules[facts.rule] -= 1
        self.changes.states.setdefault(RecipientState.CANCELLED, []).append(key)
        self._work.ended[key] = facts.content_id
        self._leave_graph(key, facts)
        self._record(key)
        return ""

    def _reroute(self, key: Key, facts: EntryFacts) -> str:
        targets, reason = _reroute_targets(self.loaded, key, self.command)
        if reason:
            return reason
        retry_us = facts.retry_us if facts.state is RecipientState.HELD else self.now_us
        self._leave_graph(key, facts, lost_posts=())
        apart = onward = list(targets)
        if sum(map(len, targets.values())) == len(self.loaded.recipients[key]):
            # no recipient stays: the entry gets the first next hop
            keeps = int(not self.command.forgets)
            self.changes.next_hops.append((onward[0].next_hop.key, keeps, keeps, *key))
            self._change_extra(key, facts, chosen=onward[0].chosen, fallback_us=0)
            self._arrive(key, facts, onward[0], retry_us=retry_us)
            apart = onward[1:]
        else:
            self._put_back(key, facts)
            if key in self._work.drafts:  # no claim with a draft goes on
                self.changes.due.append((facts.due_us, *key))
        made = [self._split(key, facts, to, numbers=targets[to]) for to in apart]
        self.changes.held_by_rules[facts.rule] += len(made)
        for new_key, to in zip(made, apart, strict=True):
            self._arrive(new_key, facts, to, retry_us=retry_us)
        self._work.made[key] = made
        self._record_next_hops(self._record(key, *made), key, before=facts.next_hop, onward=onward)
        for to in onward if self.command.forgets else ():
            self._due_now(to.next_hop.key)
        return ""

    def _arrive(
        self, key: Key, facts: EntryFacts, to: Destination, *, retry_us: int | None
    ) -> None:
        """Let an entry wait at its new next hop, or be held there."""
        is_held = facts.is_held_by(to)
        self._wait(key, facts, retry_us=None if is_held else retry_us, is_held=is_held)
        if is_held:
            self._note_hold(key, facts, to.held)
            self._detail_of(key).holds[str(key[1])] = to.held

    def _split(
        self, key: Key, facts: EntryFacts, to: Destination, *, numbers: Sequence[int]
    ) -> Key:
        """Move these recipients to a new entry."""
        made = self._copied_entry(key, facts, to, attempts=facts.attempts)
        self.changes.moved += [(made[1], *key, number) for number in numbers]
        return made

    def _copied_entry(self, key: Key, facts: EntryFacts, to: Destination, *, attempts: int) -> Key:
        """Make an entry with the content of another one, and no recipients yet."""
        message_id = key[0]
        entry, recipient = self._last_numbers[message_id]
        self._last_numbers[message_id] = (entry + 1, recipient)
        made = (message_id, entry + 1)
        self.changes.copies.append((made[1], to.next_hop.key, attempts, *key))
        left = {"requests": (), "lost_posts": (), "order": None}
        self._change_extra(made, facts, chosen=to.chosen, fallback_us=0, **left)
        return made

    def _add_recipient(self, key: Key, recipient: NewRecipient) -> None:
        message_id, entry = key
        number = self._last_numbers[message_id][1] + 1
        self._last_numbers[message_id] = (self._last_numbers[message_id][0], number)
        row = recipient_row(message_id, recipient, entry=entry, number=number)
        self.changes.added.append(row)

    def _change_extra(self, key: Key, facts: EntryFacts, **fields: Any) -> None:
        """Change the EntryExtra of an entry, or of one that is made of it."""
        extras = self.changes.extras
        extras[key] = changed_extra(extras.get(key, facts.extra_text), **fields)

    def _note_hold(self, key: Key, facts: EntryFacts, reason: str) -> None:
        """Record why an entry is held; no rule holds it now."""
        extras = self.changes.extras
        text = extras.get(key, facts.extra_text)
        extras[key] = held_extra(text, reason, since_us=self.at_us)

    def _wait(
        self, key: Key, facts: EntryFacts, *, retry_us: int | None, is_held: bool = False
    ) -> None:
        """Set the new state and times of the entry, and the state of its recipients."""
        operation, was_deferred = self.command.operation, self._is_deferred_again(facts)
        after = state_after(operation, facts.state, was_deferred=was_deferred)
        if is_held:
            after = RecipientState.HELD
        is_restored = has_been_restored(facts.due_us)
        if is_restored and (after is not RecipientState.HELD or retry_us is not None):
            facts, is_restored = self._with_end(key, facts), False
        if after is not facts.state:
            check_transition(facts.state, after)
            self.changes.states.setdefault(after, []).append(key)
            if facts.state is RecipientState.HELD:
                if facts.rule:
                    facts = self._with_lifetime(key, facts)
                    self.changes.held_by_rules[facts.rule] -= 1
                self._change_extra(key, facts, order=None, **RELEASED)
        # held mail gets no delay warning
        warn_us = None if after is RecipientState.HELD else facts.warn_us
        end_us = facts.due_us if is_restored else facts.expires_us
        look = earliest_due_us(retry_us, warn_us=warn_us, end_us=end_us)
        self.changes.extras.setdefault(key, facts.extra_text)
        self.changes.waiting[key] = (after, retry_us, look)
        self._work.due_us = min(look, look if self._work.due_us is None else self._work.due_us)

    def _put_back(self, key: Key, facts: EntryFacts) -> None:
        """Release the claim of an entry if it was withdrawn; the entry is due as before."""
        if facts.is_claimed:
            self.changes.put_back.append(key)
            self._due_now(facts.next_hop)

    def _is_deferred_again(self, facts: EntryFacts) -> bool:
        was_held = facts.state is RecipientState.HELD
        return self.command.as_before and was_held and facts.attempts > 0

    def _due_before(self, key: Key) -> int:
        """Return when an entry was due before its hold, 0 where that is not known."""
        for detail in self.loaded.operations_on(key):
            recorded = detail.due.get(str(key[1]))
            if detail.operation == Operation.HOLD and recorded:
                with suppress(ValueError):
                    return (datetime.fromisoformat(recorded) - _BEGIN) // timedelta(microseconds=1)
        return 0

    def _due_now(self, next_hop: str) -> None:
        with suppress(ValueError):  # of a damaged entry
            self._work.next_hops[NextHop.parse(next_hop)] = None

    def _detail_of(self, key: Key, operation: str = "") -> CommandDetail:
        """Return the detail of the event of the message, which says what was done: by default what
        the command says.
        """
        command, until = self.command, ""
        if command.until_us is not None:
            ahead_us = offset_us(wall_us=self.at_us, queue_us=self.now_us)
            until = rfc3339(command.until_us + ahead_us)
        detail = CommandDetail(
            operation=operation or str(command.operation),
            who=command.who,
            why=command.why,
            restored=command.backed_up_us is not None,
            until=until,
            bounce=command.bounce,
            text=command.text,
        )
        return self.changes.recorded.setdefault((key[0], detail.operation), detail)

    def _record(self, *keys: Key, operation: str = "") -> CommandDetail:
        """Add these entries to the event of the message; `operation` as in _detail_of()."""
        detail = self._detail_of(keys[0], operation)
        detail.entries.extend(number for _, number in keys)
        return detail

    def _record_next_hops(
        self, detail: CommandDetail, key: Key, *, before: str, onward: Iterable[Destination]
    ) -> None:
        detail.before[str(key[1])] = without_mailbox(before)
        hops = dict.fromkeys(without_mailbox(to.next_hop.key) for to in onward)
        left = _HOPS_RECORDED_MAX - len(detail.to)
        detail.to.extend([hop for hop in hops if hop not in detail.to][:left])

    def _result(self, key: Key, result: CommandResult, note: str = "") -> None:
        self._work.results[key] = (result, note)
