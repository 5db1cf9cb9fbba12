"""Decide what a queue command does to entries: retry, hold, release, cancel and reroute.

The entries were read before (relay/store/spool/shared/entries.py). A dry run gets the same
decisions as the change itself. An entry that is being delivered is left alone. Every change raises
the epoch, so that the result of an earlier claim is refused, and records an event that says who
changed the entry and why.

See docs/design.md 4, invariants 1, 3 and 9.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from msgspec.structs import replace

from relay.base.accounts.usage import CancelledMail
from relay.base.clock import offset_us, rfc3339, time_us_of
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
from relay.store.spool.shared.entries import EntryChanges, EntryFacts, LoadedEntries, load_entries
from relay.store.spool.shared.entry_notes import RELEASED, held_extra
from relay.store.spool.shared.tables import Leftovers, Tables
from relay.store.spool.types import RESTORED_US, ContentKey, Key, NewMessage, NewRecipient, Selector

_OF_A_RULE = "a rule holds it"
_HOPS_RECORDED_MAX = 20  # of one event
_LEFT_US_MIN = 3600_000_000  # of the time of restored mail: it is attempted once more
_NEVER = frozenset((Notify.NEVER,))
Pairs = Sequence[tuple[str, str]]


@dataclass(slots=True)
class ChangeResult:
    """What one transaction did."""

    # of each entry, with a note
    results: dict[Key, tuple[CommandResult, str]] = field(default_factory=dict)
    # of those whose attempt runs, for the end of which the command was noted
    running: dict[Key, tuple[CommandResult, str]] = field(default_factory=dict)
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
    loaded: LoadedEntries, facts: EntryFacts, command: QueueCommand
) -> tuple[Mapping[Destination, list[int]], str]:
    """Return the numbers of the recipients that get another next hop, by destination. If there are
    none, also return why.
    """
    assert command.to is not None
    onward: dict[Destination, list[int]] = {}
    extra, has_rejected = facts.extra, False
    for number, address in loaded.recipients.get(facts.key, ()):
        destination = command.to(address, facts.routed_as)
        if destination and destination.next_hop.mailbox and extra and extra.sender:
            # the sender of this copy logs in at the next hop
            destination = command.to(address, extra.sender)
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
    if not facts.reverse_path and _is_by_graph(command.to, loaded.recipients[facts.key]):
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


def _held_before(loaded: LoadedEntries, command: QueueCommand, facts: EntryFacts) -> str:
    """Return why a release leaves an entry held, "" where it does not."""
    if command.new and facts.rule:
        return _OF_A_RULE
    if command.operation is not Operation.RELEASE or not command.selector.restored:
        return ""
    holds = [detail for detail in loaded.operations_on(facts) if detail.operation == Operation.HOLD]
    is_of_restore = bool(holds) and holds[0].restored
    return "" if is_of_restore else "it was held before the backup, and stays held"


def held_by_restore(tables: Tables, keys: Sequence[Key]) -> list[Key]:
    """Return which of these entries a release with --restored releases."""
    release = QueueCommand(Operation.RELEASE, Selector(restored=True), who="")
    loaded = load_entries(tables, release, keys)
    entries = loaded.entries.items()
    return [key for key, facts in entries if not _held_before(loaded, release, facts)]


@dataclass(eq=False, repr=False)
class _EntryChanger:
    """Decides on the entries of one transaction, one after the other. Each decision is an entry as
    it is from now on, in `changes.put`.
    """

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
            facts = self.loaded.entries.get(key)
            is_ours = facts is not None and (not facts.is_claimed or key in self.taken)
            if not is_ours or (facts is not None and epoch not in (None, facts.epoch)):
                changed.add(key[0])
        new = set(self.loaded.to_be_planned).difference(planned)
        return frozenset(key for key in keys if key in new or key[0] in changed)

    def run(self, keys: Sequence[Key], *, passed_over: Collection[Key]) -> ChangeResult:
        """Decide on each entry. For those in `passed_over` the command is noted."""
        for key in keys:
            if (facts := self.loaded.entries.get(key)) is None:  # it has ended meanwhile
                continue
            if (expires_us := self.changes.expiries.get(key[0])) is not None:
                facts = replace(facts, message_expires_us=expires_us)
            is_running = self._is_running(facts)
            is_order = not is_running and key in passed_over
            result, note = self._order(facts) if is_order else self._decide(facts)
            if not is_running and key not in self.changes.put:
                self._put_back(facts)
            is_left = is_running and result is CommandResult.ORDERED
            (self._work.running if is_left else self._work.results)[key] = (result, note)
        return self._work

    def _is_running(self, facts: EntryFacts) -> bool:
        """Whether an attempt may be running."""
        return facts.is_claimed and facts.key not in self.taken

    def _decide(self, facts: EntryFacts) -> tuple[CommandResult, str]:
        """Change the entry, or not; return the result, and a note."""
        if facts.ordered and self._restarts and facts.state is not RecipientState.HELD:
            return self._go_on(facts)
        reason = self.command.inapplicable_reason(facts.state)
        if not reason and (self._is_running(facts) or self._must_wait(facts)):
            return self._order(facts)
        if reason := reason or self._do(facts):
            return CommandResult.UNCHANGED, reason
        return CommandResult.DONE, _withdrawn(facts)

    def _go_on(self, facts: EntryFacts) -> tuple[CommandResult, str]:
        """Let the attempts at an entry with an order go on: a release withdraws the order."""
        is_running = self._is_running(facts)
        if self.command.operation is Operation.RETRY:
            if not is_running:
                self._ask_now(facts)
                self._record(facts)
            result = CommandResult.ORDERED if is_running else CommandResult.DONE
            return result, f"the order to {facts.ordered} stays"
        if is_running:
            self.changes.orders[facts.key] = None
        else:
            self._ask_now(facts.with_extra(order=None))
        self._record(facts, operation=f"{facts.ordered} withdrawn")
        return CommandResult.DONE, _withdrawn(facts)

    @property
    def _restarts(self) -> bool:
        """Whether the command lets attempts go on."""
        return self.command.operation in (Operation.RETRY, Operation.RELEASE)

    def _must_wait(self, facts: EntryFacts) -> bool:
        """Whether Microsoft Graph may have sent the message, so that an attempt must ask first."""
        is_asked = not self._restarts and self.command.backed_up_us is None
        return is_asked and facts.is_awaited

    def _do(self, facts: EntryFacts) -> str:
        """Change the entry, or return why nothing is to be changed."""
        match self.command.operation:
            case Operation.RETRY:
                return self._retry(facts)
            case Operation.HOLD:
                return self._hold(facts)
            case Operation.RELEASE if self.command.copy_to:
                return self._release_copy(facts)
            case Operation.RELEASE if not self.command.is_rerouting(facts.state):
                return self._release(facts)
            case Operation.CANCEL:
                return self._cancel(facts)
            case Operation.RELEASE | Operation.REROUTE:
                return self._reroute(facts)

    def _order(self, facts: EntryFacts) -> tuple[CommandResult, str]:
        """Note the command, and have the next attempt ask at once, if none runs; or return why it
        would change nothing. It waits until the entry expires at the latest: a node that pauses
        ends it too.
        """
        command, is_running, reason = self.command, self._is_running(facts), ""
        if is_running and not command.can_wait:
            return CommandResult.UNCHANGED, "it is being delivered: try again"
        if command.is_rerouting(facts.state):
            _, reason = _reroute_targets(self.loaded, facts, command)
        elif command.operation is not Operation.RETRY:  # it is due only because it was claimed
            reason = _unchanged_reason(command, facts, now_us=self.now_us)
        if reason:
            return CommandResult.UNCHANGED, reason
        if is_running:
            self.changes.orders[facts.key] = command.as_order()
            self._work.due_us = self.now_us  # it may have ended since
            end_us = facts.expires_us
        else:
            end_us = self._ask_now(facts.with_extra(order=command.as_order())).expires_us
        detail = self._record(facts, operation=f"{command.operation} ordered")
        detail.to[:] = filter(None, [command.to_text])
        text = rfc3339(end_us + offset_us(wall_us=self.at_us, queue_us=self.now_us))[:19]
        is_asked = facts.is_awaited and not self._restarts
        when = "Graph answers" if is_asked else "its attempt ends"
        return CommandResult.ORDERED, f"when {when}, at the latest {text}Z"

    def _ask_now(self, facts: EntryFacts) -> EntryFacts:
        """Have an attempt ask at once. A hold goes on, but what a restore holds expires from now
        on.
        """
        retry_us: int | None = self.now_us
        if facts.state is RecipientState.HELD:
            retry_us = facts.retry_us
            if has_been_restored(facts.due_us):
                facts = self._with_end(facts)
        self._due_now(facts.next_hop)
        return self._put(replace(facts, retry_us=retry_us, due_us=self.now_us))

    def _retry(self, facts: EntryFacts) -> str:
        self._due_now(facts.next_hop)
        if note := _unchanged_reason(self.command, facts, now_us=self.now_us):
            return note
        self._wait(facts, retry_us=self.now_us)
        self._record(facts)
        return ""

    def _hold(self, facts: EntryFacts) -> str:
        command, was_held = self.command, facts.state is RecipientState.HELD
        if note := _unchanged_reason(command, facts, now_us=self.now_us):
            return note
        held = facts
        if command.backed_up_us is not None:
            held = self._without_end(facts, command.backed_up_us)
        elif facts.rule:  # the operator's hold replaces the hold of the rule
            held = self._with_lifetime(facts)
        held = self._wait(held, retry_us=command.until_us)
        if command.backed_up_us is None:
            held = self._without_drafts(held)
        elif was_held and facts.retry_us is None:
            return "it was held before"
        self._put(self._held(held, ": ".join(filter(None, (command.who, command.why)))))
        detail, before_us = self._record(facts), facts.retry_us
        if was_held:  # keep the time from before the first hold
            before_us = self._due_before(facts) or None
        if before_us is not None:
            detail.due[str(facts.number)] = rfc3339(before_us)
        return ""

    def _release(self, facts: EntryFacts) -> str:
        if note := _held_before(self.loaded, self.command, facts):
            self._put(self._with_end(facts))
            return note
        before_us = self._due_before(facts) if self.command.as_before else 0
        self._wait(facts, retry_us=max(before_us, self.now_us))
        self._due_now(facts.next_hop)
        detail = self._record(facts)
        if self._is_deferred_again(facts):
            detail.deferred.append(facts.number)
        return ""

    def _release_copy(self, facts: EntryFacts) -> str:
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
            copy = self._routed(replace(self._copy(facts), attempts=0), to)
            made.append(self._wait(copy, retry_us=self.now_us))
            for address in addresses:
                self._add_recipient(copy, NewRecipient(ForwardPath(address, _NEVER)))
            self._due_now(to.next_hop.key)
        self._work.made[facts.key] = [copy.key for copy in made]
        detail = self._record(*made)
        self._record_next_hops(detail, made[0], before=facts.next_hop, onward=onward)
        detail.copies.extend(self.command.copy_to)
        return ""

    def _cancel(self, facts: EntryFacts) -> str:
        check_transition(facts.state, RecipientState.CANCELLED)
        ended = replace(self._without_drafts(facts), state=RecipientState.CANCELLED)
        self._put(replace(ended, retry_us=None, due_us=None, warn_us=None))
        self._work.ended[facts.key] = facts.content_id
        self._record(facts)
        return ""

    def _reroute(self, facts: EntryFacts) -> str:
        targets, reason = _reroute_targets(self.loaded, facts, self.command)
        if reason:
            return reason
        retry_us = facts.retry_us if facts.state is RecipientState.HELD else self.now_us
        left, onward, made = self._without_drafts(facts), list(targets), list[EntryFacts]()
        stays = sum(map(len, targets.values())) < len(self.loaded.recipients[facts.key])
        if stays:  # with its other recipients
            self._put_back(left)
            if left is not facts:  # no claim with a draft goes on
                self._put(left)
        for to, numbers in targets.items():
            moved = left
            if stays or to != onward[0]:  # otherwise the entry itself gets the first next hop
                moved = self._copy(left)
                made.append(moved)
                self.changes.moved += [(moved.number, *facts.key, number) for number in numbers]
            self._arrive(self._routed(moved, to), to, retry_us=retry_us)
            if self.command.forgets:
                self._due_now(to.next_hop.key)
        self._work.made[facts.key] = [copy.key for copy in made]
        detail = self._record(facts, *made)
        self._record_next_hops(detail, facts, before=facts.next_hop, onward=onward)
        return ""

    def _arrive(self, facts: EntryFacts, to: Destination, *, retry_us: int | None) -> None:
        """Let an entry wait at its new next hop, or be held there."""
        if not facts.is_held_by(to):
            self._wait(facts, retry_us=retry_us)
            return
        facts = self._wait(facts, retry_us=None, is_held=True)
        self._put(self._held(facts, to.held))
        self._detail_of(facts).holds[str(facts.number)] = to.held

    def _wait(
        self, facts: EntryFacts, *, retry_us: int | None, is_held: bool = False
    ) -> EntryFacts:
        """Put the entry with the state after the command, and its times."""
        operation, was_deferred = self.command.operation, self._is_deferred_again(facts)
        after = state_after(operation, facts.state, was_deferred=was_deferred)
        if is_held:
            after = RecipientState.HELD
        ends = after is not RecipientState.HELD or retry_us is not None
        if ends and has_been_restored(facts.due_us):
            facts = self._with_end(facts)
        if after is not facts.state:
            check_transition(facts.state, after)
            if facts.state is RecipientState.HELD:
                facts = self._with_lifetime(facts) if facts.rule else facts
                facts = facts.with_extra(order=None, **RELEASED)
        # held mail gets no delay warning
        warn_us = None if after is RecipientState.HELD else facts.warn_us
        end_us = replace(facts, state=after).end_us
        look = earliest_due_us(retry_us, warn_us=warn_us, end_us=end_us)
        self._work.due_us = min(look, look if self._work.due_us is None else self._work.due_us)
        return self._put(replace(facts, state=after, retry_us=retry_us, due_us=look))

    # The entry as it is after a part of the change

    def _held(self, facts: EntryFacts, reason: str) -> EntryFacts:
        """Say why an entry is held; no rule holds it now."""
        text = held_extra(facts.extra_text, reason, since_us=self.at_us)
        return replace(facts, extra_text=text)

    def _routed(self, facts: EntryFacts, to: Destination) -> EntryFacts:
        facts = facts.with_extra(chosen=to.chosen, fallback_us=0)
        facts = replace(facts, next_hop=to.next_hop.key, level=facts.priority)
        return replace(facts, cause="", cause_attempts=0) if self.command.forgets else facts

    def _without_drafts(self, facts: EntryFacts) -> EntryFacts:
        """Let no attempt send drafts from now on: nothing was sent. The journey names them before
        they are deleted; an entry that is held keeps them, and the next attempt deletes them.
        """
        extra = facts.extra
        if extra is None or not (
            extra.requests or extra.uploads or extra.lost_posts or extra.order
        ):
            return facts
        self._detail_of(facts).drafts.extend(extra.left_in_drafts())
        is_hold = self.command.operation is Operation.HOLD
        lost: Pairs = () if is_hold else extra.all_lost_posts
        self._work.drafts[facts.key] = (facts.next_hop, extra.unsent, lost)
        kept = extra.without_requests
        uploads, lost_posts = (kept.uploads, kept.lost_posts) if is_hold else ((), ())
        return facts.with_extra(requests=(), uploads=uploads, lost_posts=lost_posts, order=None)

    def _without_end(self, facts: EntryFacts, backed_up_us: int) -> EntryFacts:
        """Let the message of a restored entry not expire; keep the time that was left."""
        if facts.expires_us >= RESTORED_US:  # another entry of it came first
            return facts
        left_us = max(_LEFT_US_MIN, facts.expires_us - backed_up_us)
        return self._expiring_at(facts, RESTORED_US + left_us)

    def _with_end(self, facts: EntryFacts) -> EntryFacts:
        """Let the message of a restored entry expire again, after the time that was left."""
        expires_us = self.now_us + (facts.due_us or 0) - RESTORED_US
        if facts.expires_us < RESTORED_US:
            expires_us = max(expires_us, facts.expires_us)
        return replace(self._expiring_at(facts, expires_us), due_us=expires_us)

    def _with_lifetime(self, facts: EntryFacts) -> EntryFacts:
        """Let an entry that a rule has held expire as late as new mail."""
        extra = facts.extra
        assert extra is not None
        expires_us = self.now_us + extra.lifetime_us
        return replace(facts.with_extra(expires_us=expires_us), due_us=expires_us)

    def _expiring_at(self, facts: EntryFacts, expires_us: int) -> EntryFacts:
        if facts.ends_alone:
            return facts.with_extra(expires_us=expires_us)
        self.changes.expiries[facts.message_id] = expires_us
        return replace(facts, message_expires_us=expires_us)

    def _copy(self, facts: EntryFacts) -> EntryFacts:
        """Make an entry with the content of another one, and no recipients yet."""
        number, recipient = self._last_numbers[facts.message_id]
        self._last_numbers[facts.message_id] = (number + 1, recipient)
        copy = replace(facts, number=number + 1, cause="", cause_attempts=0)
        self.changes.made[copy.key] = facts.key
        return copy

    def _add_recipient(self, facts: EntryFacts, recipient: NewRecipient) -> None:
        last, number = self._last_numbers[facts.message_id]
        self._last_numbers[facts.message_id] = (last, number + 1)
        row = recipient_row(facts.message_id, recipient, entry=facts.number, number=number + 1)
        self.changes.added.append(row)

    def _put(self, facts: EntryFacts) -> EntryFacts:
        self.changes.put[facts.key] = facts
        return facts

    def _put_back(self, facts: EntryFacts) -> None:
        """Release the claim of an entry if it was withdrawn; the entry is due as before."""
        if facts.is_claimed:
            self._put(facts)
            self._due_now(facts.next_hop)

    def _is_deferred_again(self, facts: EntryFacts) -> bool:
        was_held = facts.state is RecipientState.HELD
        return self.command.as_before and was_held and facts.attempts > 0

    def _due_before(self, facts: EntryFacts) -> int:
        """Return when an entry was due before its hold, 0 where that is not known."""
        for detail in self.loaded.operations_on(facts):
            recorded = detail.due.get(str(facts.number))
            if detail.operation == Operation.HOLD and recorded:
                with suppress(ValueError):
                    return time_us_of(recorded)
        return 0

    def _due_now(self, next_hop: str) -> None:
        with suppress(ValueError):  # of a damaged entry
            self._work.next_hops[NextHop.parse(next_hop)] = None

    def _detail_of(self, facts: EntryFacts, operation: str = "") -> CommandDetail:
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
        return self.changes.recorded.setdefault((facts.message_id, detail.operation), detail)

    def _record(self, *entries: EntryFacts, operation: str = "") -> CommandDetail:
        """Add these entries to the event of the message; `operation` as in _detail_of()."""
        detail = self._detail_of(entries[0], operation)
        detail.entries.extend(facts.number for facts in entries)
        return detail

    def _record_next_hops(
        self,
        detail: CommandDetail,
        facts: EntryFacts,
        *,
        before: str,
        onward: Iterable[Destination],
    ) -> None:
        detail.before[str(facts.number)] = without_mailbox(before)
        hops = dict.fromkeys(without_mailbox(to.next_hop.key) for to in onward)
        left = _HOPS_RECORDED_MAX - len(detail.to)
        detail.to.extend([hop for hop in hops if hop not in detail.to][:left])
