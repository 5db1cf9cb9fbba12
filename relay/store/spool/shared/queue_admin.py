"""List the queue, and execute operator commands: in slices, around entries that are in flight.

What a command does to an entry is decided in `decisions`, which entries a selector matches in
`entry_selection`. An entry whose attempt runs is not changed: the command is noted, and carried out
when the attempt ends, or, if it never does, before another begins. A large command runs in slices
of one transaction each, and mail continues between them. When a slice fails with a SpoolError, the
slices before it remain done.

With `--bounce` the sender of cancelled mail gets a report of the failure. If a crash interrupted an
attempt, reports of its successes are still owed; a cancel writes them too, because no other attempt
follows. A report needs the content, and a transaction cannot wait for that. It is therefore planned
before the transaction, with the epochs of the entries. If an entry has changed since, nothing of
its message is cancelled, and the command plans again.

See docs/design.md 4; docs/names.md (Commands).
"""

import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from msgspec import Struct
from msgspec.structs import asdict
from msgspec.structs import replace as replace_fields

from relay.base.accounts.usage import CancelledMail
from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.message.address import lower_case, with_a_labels
from relay.base.message.envelope import Source
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import Evidence, Failed, Success
from relay.base.observe.logs import get_logger
from relay.base.observe.metrics import Metrics
from relay.base.task_set import TaskSet, shielded
from relay.formats.dsn import UNREADABLE, ReportedRecipient, ReportKind
from relay.store.journeys.message_list import matches_pattern
from relay.store.spool import types
from relay.store.spool.queue_commands import (
    DRAFT_STAYS,
    LISTED_MAX,
    RECIPIENTS_MAX,
    WHY_CHARACTERS_MAX,
    ActiveClaims,
    CommandReport,
    CommandResult,
    EntryList,
    Operation,
    QueueCommand,
    RouteLookup,
    ShownTimes,
)
from relay.store.spool.shared import entry_notes, hold_rules
from relay.store.spool.shared.columns import LOGIN, PAY_REPORTS
from relay.store.spool.shared.decisions import ChangeResult, decide, held_by_restore
from relay.store.spool.shared.entries import (
    EntryChanges,
    LoadedEntries,
    load_entries,
    store_changes,
    to_be_planned,
)
from relay.store.spool.shared.entry_list import EntryListBuilder
from relay.store.spool.shared.entry_selection import EntrySelection, like
from relay.store.spool.shared.tables import OpenTransaction, QueueEngine, StoredReports, Tables

KEYS_AT_ONCE = 20_000  # keys of one scan, in memory
_AT_ONCE = 200  # entries of one transaction, so that the writer is free soon
_REPORTED_AT_ONCE = 20  # entries, or those of one message: their reports are in memory
_ROUNDS = 3  # in which claims made meanwhile are withdrawn as well
_PAUSE_S_FIRST = 0.2
_PAUSE_S_MAX = 10.0
_STATUS = "5.0.0"  # RFC 3463 3.1: no other says that an operator ended it
_TEXT = "cancelled by an operator of this relay"
_CLAIMED = (
    "SELECT message_id, number, claimed FROM entry"
    " WHERE message_id = ? AND number = ? AND state <> 'final'"
)
_PUT_BACK = (
    "UPDATE entry SET claimed = 0, epoch = epoch + 1"
    " WHERE message_id = ? AND number = ? AND claimed = 1 AND state <> 'final'"
)
_NAMED = (  # recipients of a message
    f"SELECT {LOGIN.format('m.')}, m.received_us, m.id, r.number, r.entry, r.address, r.state,"
    " r.successors FROM message m JOIN recipient r ON r.message_id = m.id AND r.added_by = ''"
    " WHERE m.id = ?"
)
_DOUBTED = (  # attempts whose final dot had no answer
    "SELECT message_id, detail FROM event WHERE message_id = ? AND step = 6"
    " AND detail LIKE '%\"indeterminate\"%'"
)
_log = get_logger("spool")


# The reports about cancelled entries: the epoch of each entry that was planned for, None if it is
# damaged; and by message the plan, with the stored contents of its reports.
PlannedReports = tuple[Mapping[types.Key, int | None], Mapping[str, StoredReports]]
NOTHING_PLANNED: PlannedReports = ({}, {})


class CancelReports:
    """Plans the reports of a cancel. Without a writer there are none."""

    def __init__(self, engine: QueueEngine) -> None:
        self.writer: types.ReportWriter | None = None  # of the reports of a cancel
        self._engine = engine

    async def plan(
        self, keys: Sequence[types.Key], command: QueueCommand, *, taken: Collection[types.Key]
    ) -> PlannedReports:
        """Write the reports about the entries that need a plan. Entries that are being delivered
        are left out, unless they are in `taken`. Raises SpoolError.
        """
        claims, epochs = await self._engine.read(
            lambda tables: self._entries(tables, to_be_planned(tables, keys, command), taken)
        )
        by_message: dict[str, StoredReports] = {}
        for _, group in groupby(claims, lambda claim: claim.message.id):
            by_message |= await self.about(tuple(group), command)
        return epochs, by_message

    async def count(self, keys: Sequence[types.Key], *, taken: Collection[types.Key]) -> int:
        """Return how many reports there would be."""
        claims, _ = await self._engine.read(lambda tables: self._entries(tables, keys, taken))
        groups = (tuple(group) for _, group in groupby(claims, lambda claim: claim.message.id))
        return sum(bool(self._reported(group, "")) for group in groups)

    def _reported(self, claims: Sequence[types.Claim], text: str) -> tuple[ReportedRecipient, ...]:
        """Return the recipients that the report is about; none if there is no report. Captured mail
        was not to be sent, and no report is written about a report.
        """
        message = claims[0].message
        recipients = tuple(
            ReportedRecipient(
                to.path, Evidence(_STATUS, text or _TEXT), log_id=f"{message.id}-{claim.entry_id}"
            )
            for claim in claims
            if claim.state is not RecipientState.CAPTURED
            for to in claim.recipients
            if not to.added_by
        )
        if self.writer is None or message.source is Source.REPORT:
            return ()
        is_wanted = self.writer.wants(ReportKind.FAILED, message, recipients)
        return recipients if is_wanted else ()

    async def about(
        self, claims: Sequence[types.Claim], command: QueueCommand
    ) -> Mapping[str, StoredReports]:
        """Write the reports about entries of a message. Raises SpoolError."""
        failed = self._reported(claims, command.text) if command.bounce else ()
        owed = [recipient for claim in claims for recipient in claim.owed]
        if self.writer is None or not (failed or owed):
            return {}
        message = claims[0].message
        try:
            content = await self._engine.read_content(claims[0].content_id)
        except types.SpoolError as error:
            _log.error("content unreadable for a report", qid=message.id, error=str(error))
            content = UNREADABLE
        by_kind = {
            ReportKind.FAILED: failed,
            ReportKind.DELIVERED: [recipient for recipient in owed if recipient.is_delivered],
            ReportKind.RELAYED: [recipient for recipient in owed if not recipient.is_delivered],
        }
        plans = [
            self.writer.reports(kind, message, recipients, content=content)
            for kind, recipients in by_kind.items()
            if recipients
        ]
        plan = types.ReportPlan(
            tuple(report for plan in plans for report in plan.messages),
            tuple(event for plan in plans for event in plan.events),
        )
        stored = await self._engine.store_contents(plan.messages)
        return {message.id: StoredReports(message.id, plan, stored)}

    def _entries(
        self, tables: Tables, keys: Collection[types.Key], taken: Collection[types.Key]
    ) -> tuple[Sequence[types.Claim], Mapping[types.Key, int | None]]:
        """Return the entries that can be cancelled, in order, and their epochs."""
        rows = tables.fetch_each(_CLAIMED, keys) if keys else ()
        free = [
            (message_id, number)
            for message_id, number, is_claimed in rows
            if not is_claimed or (message_id, number) in taken
        ]
        read, damaged = self._engine.read_claims(tables, free)
        claims = [claim for claim in read if not claim.extra.in_doubt]  # these wait
        epochs: dict[types.Key, int | None] = {claim.key: claim.epoch for claim in claims}
        epochs |= dict.fromkeys(damaged)
        return sorted(claims, key=lambda claim: claim.key), epochs


@dataclass(eq=False, repr=False)
class QueueAdmin:
    """Lists and changes the queue, on what a QueueEngine supplies."""

    engine: QueueEngine
    follow: Callable[[QueueCommand], Awaitable[None]]  # called with each command that is done
    clock: Clock
    metrics: Metrics
    shown_times: Callable[[], ShownTimes]

    def __post_init__(self) -> None:
        self.reports = CancelReports(self.engine)
        self.delivery: ActiveClaims | None = None  # has claims in memory; None: none runs
        self._releasing = TaskSet()
        self._noted = BoundedDict[types.Key, None](
            LISTED_MAX
        )  # whose attempt ran when it was ordered
        self.give_back: Callable[[CancelledMail], None] = lambda _mail: None  # what was counted
        # parses QueueCommand.to_text, or raises ValueError
        self.way_to: Callable[[str], RouteLookup] = lambda _text: lambda *_: None

    async def hold_rules(self) -> Sequence[hold_rules.HoldRule]:
        """Return for which domains new mail is held. Raises SpoolError."""
        now_us = self.clock.queue_us()
        return await self.engine.read(lambda tables: hold_rules.hold_rules(tables, now_us=now_us))

    async def why_held(self, address: str) -> str:
        """Return why new mail for an address is held, "" if it is not. Raises SpoolError."""
        rule = hold_rules.rule_for(address, await self.hold_rules())
        return rule.reason if rule is not None else ""

    async def _ends_hold_rule(self, selector: types.Selector) -> bool:
        """Whether a release with this selector ends a hold rule."""
        if selector != types.Selector(domain=selector.domain):
            return False
        domain = lower_case(with_a_labels(f"@{selector.domain}")[1:])
        rules = await self.hold_rules()
        return any(matches_pattern(domain, rule.domain) for rule in rules)

    async def _change_hold_rules(self, command: QueueCommand) -> Sequence[str]:
        """Change the hold rules as the command says; return the domains."""
        selector, now_us = command.selector, self.clock.queue_us()
        domain = lower_case(with_a_labels(f"@{selector.domain}")[1:])
        change: Callable[[OpenTransaction], Sequence[str]]
        if command.operation is Operation.HOLD and command.new:
            reason = f"{command.who}: {command.why or f'all mail for {domain}'}"
            hold = hold_rules.HoldRule(domain, reason, self.clock.time_us(), command.until_us)
            change = partial(hold_rules.hold_new, hold=hold, now_us=now_us)
        elif command.new:
            change = partial(hold_rules.end_new, pattern=like(domain))
        else:
            return ()
        return await self.engine.change_hold_rules(change)

    async def list(
        self, selector: types.Selector, *, limit: int, after: types.Key = types.FIRST_KEY
    ) -> EntryList:
        """Return live entries, oldest first. Without ids, begin after the entry `after`."""
        selection = EntrySelection(
            selector, now_us=self.clock.queue_us(), keys_at_once=2 * limit, after=after
        )
        listing = EntryListBuilder(
            self.shown_times(), entries_max=limit, recipients_max=RECIPIENTS_MAX
        )

        def look(tables: Tables) -> None:
            keys = selection.step(tables)
            if selector.restored:  # without entries that were held before the backup
                keys = held_by_restore(tables, keys)
            with tables.snapshot():  # an attempt changes an entry and its recipients
                listing.add(tables, keys)
            # SQLite scans the whole queue for each batch of keys
            selection.keys_at_once = min(8 * selection.keys_at_once, KEYS_AT_ONCE)

        while not (selection.has_ended or listing.is_full):
            await self.engine.read(look)
        return EntryList(listing.entries, unknown=selection.unknown)

    async def execute(self, command: QueueCommand) -> CommandReport:
        """Execute a command in slices, each of which is durable. Raises SpoolError between them."""
        selection = EntrySelection(
            command.selector, now_us=self.clock.queue_us(), keys_at_once=KEYS_AT_ONCE
        )
        listing = partial(EntryListBuilder, self.shown_times())
        if command.operation is Operation.RELEASE:
            command = replace(command, new=await self._ends_hold_rule(command.selector))
        answer = _ReportBuilder(command, listing)
        if not command.dry_run:  # first the rules: mail that is accepted meanwhile is held too
            answer.report.new = await shielded(self._change_hold_rules(command))
        left: list[types.Key] = []
        while not selection.has_ended:
            keys = left + await self.engine.read(selection.step)
            left = []
            # the next step may have more entries of the last message
            if command.bounce and not selection.has_ended:
                left = [key for key in keys if key[0] == keys[-1][0]]
                keys = keys[: len(keys) - len(left)]
            for chunk in _slices(keys, whole_messages=command.bounce):
                if command.dry_run:
                    await self._dry_run(chunk, answer)
                else:
                    # a cancelled request must not lose withdrawn claims
                    await shielded(self._do(chunk, answer))
        await self.follow(command)
        answer.report.unknown = tuple(selection.unknown)
        return answer.report

    async def _dry_run(self, keys: Sequence[types.Key], answer: "_ReportBuilder") -> None:
        waiting = self._take(answer.command, keys)
        now_us, at_us = self.clock.queue_us(), self.clock.time_us()
        part = Slice(answer, keys, waiting, self.engine, now_us, at_us)
        results, listed = await self.engine.read(part.rehearse)
        reports = await self.reports.count(keys, taken=waiting) if answer.command.bounce else 0
        answer.add(results, listed, reports=reports)

    async def _do(self, keys: Sequence[types.Key], answer: "_ReportBuilder") -> None:
        """Change one slice. Entries that are claimed meanwhile are withdrawn in another round."""
        left, running = keys, dict[types.Key, tuple[CommandResult, str]]()
        for _ in range(_ROUNDS):
            taken = self._take(answer.command, left)
            if running:
                if not taken:
                    break
                left = [key for key in left if key in taken]
            planned = NOTHING_PLANNED
            try:
                if answer.command.operation is Operation.CANCEL:
                    planned = await self.reports.plan(left, answer.command, taken=taken)
                now_us, at_us = self.clock.queue_us(), self.clock.time_us()
                part = Slice(answer, left, taken, self.engine, now_us, at_us, planned)
                result, listed = await self.engine.change(part.write)
            except Exception:
                self._release_later(taken)
                await self._discard(planned, ())
                raise
            await self._discard(planned, result.reports)
            self._follow_up(result)
            await self._delete_drafts(result, listed, answer.silent)
            outcomes = (outcome for outcome, _ in result.results.values())
            answer.add(outcomes, listed, reports=len(result.reports))
            running = {key: running[key] for key in running if key not in left} | result.running
            left = [*running]
            if not left:
                return
        listed = answer.listing()
        show = partial(_show_running, results=running, listed=listed, engine=self.engine)
        await self.engine.read(show)
        answer.add((outcome for outcome, _ in running.values()), listed)

    async def _discard(self, planned: PlannedReports, made: Sequence[types.NewMessage]) -> None:
        """Keep the files of the reports that were committed, and remove the files of the others."""
        ids = {report.facts.id for report in made}
        for reports in planned[1].values():
            messages = reports.plan.messages
            if any(report.facts.id in ids for report in messages):
                self.engine.committed(reports.stored)
                self.metrics.accepted.labels(Source.REPORT).inc(len(messages))
            else:
                await self.engine.discard(reports.stored)

    def _take(self, command: QueueCommand, keys: Sequence[types.Key]) -> frozenset[types.Key]:
        """Withdraw the claims that wait for an attempt, and return them; with --dry-run only return
        them.
        """
        if self.delivery is None:
            return frozenset()
        take = self.delivery.waiting_among if command.dry_run else self.delivery.withdraw
        return take(keys)

    def _follow_up(self, result: ChangeResult) -> None:
        """Do what follows a durable change: counters, files, delivery."""
        if result.cancelled:
            self.metrics.recipients.labels(str(RecipientState.CANCELLED)).inc(result.cancelled)
        for mail in result.given_back:
            self.give_back(mail)
        if result.left:
            self.engine.remove(result.left)
        for key in result.running:
            self._noted[key] = None
        if self.delivery is None:
            return
        if result.next_hops:
            self.delivery.retry_now(result.next_hops)
        if result.due_us is not None:
            self.delivery.due_at(result.due_us)

    async def _delete_drafts(
        self, result: ChangeResult, listed: EntryListBuilder, silent: set[str]
    ) -> None:
        """Delete the drafts of changed entries, and note which are gone. This follows the commit:
        until then an attempt could send them. A next hop in `silent` has deleted none, and is not
        asked.
        """
        by_hop: dict[str, set[tuple[str, str]]] = {}
        for key, (hop, drafts, lost) in result.drafts.items():
            by_hop.setdefault(hop, set()).update(drafts)
            if lost and self.delivery is not None:
                self.delivery.drafts.look_for_lost(key, NextHop.parse(hop), lost)
        for hop, known in by_hop.items():
            if known and hop not in silent and self.delivery is not None:
                gone = await self.delivery.drafts.delete_drafts(NextHop.parse(hop), known)
                known.difference_update(gone)
                silent |= set() if gone else {hop}
        stay = set[types.Key]()
        for key, (hop, drafts, _) in result.drafts.items():
            if not by_hop[hop].isdisjoint(drafts):
                stay.add(key)
            await self.note_deleted(key, [draft for draft in drafts if draft not in by_hop[hop]])
        for row in listed.entries:
            if (row["id"], row["entry"]) in stay:
                row["note"] = DRAFT_STAYS

    async def note_deleted(self, key: types.Key, drafts: Collection[tuple[str, str]]) -> None:
        """Record in the journey which drafts of an entry have been deleted, if the spool can."""
        if not drafts:
            return
        names, at_us = [*map(" ".join, drafts)], self.clock.time_us()
        events = [entry_notes.command_event("delete drafts", key[1], drafts=names, at_us=at_us)]
        try:
            await self.engine.change(lambda transaction: transaction.append_events(key[0], events))
        except types.SpoolError as error:
            _log.warning("deleted drafts not recorded", qid=key[0], drafts=names, error=str(error))

    def may_be_ordered(self, claim: types.Claim) -> bool:
        """Whether there may be an order on the entry of this claim."""
        return claim.key in self._noted or claim.extra.order is not None

    async def order_of(self, claim_result: types.ClaimResult) -> "Slice | None":
        """Return the order on the entry of this result, to be carried out with it; None: there is
        none. Raises SpoolError.
        """
        claim, order = claim_result.claim, claim_result.claim.extra.order
        if order is None or claim_result.goes_on:  # nearly always
            return None
        outcomes = {**claim_result.outcomes, **claim_result.expired}
        done = {to for to, known in outcomes.items() if isinstance(known, Success | Failed)}
        left = tuple([to for to in claim.recipients if to.id not in done])
        if not left:
            return None
        command, reports = self._ordered(order, claim.key), dict[str, StoredReports]()
        if command.operation is Operation.CANCEL:
            rest = replace_fields(claim, recipients=left, owed=())  # the result pays
            reports |= await self.reports.about((rest,), command)
        answer = _ReportBuilder(command, partial(EntryListBuilder, self.shown_times()))
        now_us, at_us = self.clock.queue_us(), self.clock.time_us()
        planned = ({claim.key: None}, reports)
        return Slice(answer, (claim.key,), (), self.engine, now_us, at_us, planned, order)

    def _ordered(self, order: types.QueueOrder, key: types.Key) -> QueueCommand:
        """Return the command of an order, as it is now: a hold if its route is gone."""
        fields = asdict(order) | {"operation": Operation(order.operation)}
        try:
            to = self.way_to(order.to_text) if order.to_text else None
        except ValueError as error:
            fields |= {"operation": Operation.HOLD, "why": str(error)[:WHY_CHARACTERS_MAX]}
            fields["to_text"], to = "", None
        return QueueCommand(selector=types.Selector(ids=("{}-{}".format(*key),)), to=to, **fields)

    def wake_for_order(self, claim_result: types.ClaimResult) -> None:
        """Have the order that came during an attempt carried out: its entry is still due."""
        key = claim_result.claim.key
        if key in self._noted and not claim_result.goes_on:
            del self._noted[key]
            if self.delivery is not None:
                self.delivery.due_at(self.clock.queue_us())

    async def end_order(self, part: "Slice | None", done: ChangeResult | None) -> None:
        """Do what follows order_of() and the transaction; `done` is what the order has changed."""
        if part is None:
            return
        await self._discard(part.planned, done.reports if done is not None else ())
        if done is not None:
            self._follow_up(done)
            await self._delete_drafts(done, part.answer.listing(), set())
            await self.follow(part.answer.command)

    def _release_later(self, taken: Collection[types.Key]) -> None:
        """Release withdrawn claims in the background after an operation failed."""
        if taken:
            self._releasing.start(self._release_until_done(taken))

    async def _release_until_done(self, taken: Collection[types.Key]) -> None:
        pause_s = _PAUSE_S_FIRST
        while True:
            try:
                await self.engine.change(partial(_put_back, keys=taken, engine=self.engine))
            except Exception as error:  # noqa: BLE001 - any: nothing else gives them back
                # The next start releases them at the latest.
                _log.warning(
                    "withdrawn claims not released yet", claims=len(taken), error=str(error)
                )
                await self.clock.sleep(pause_s)  # sleeps: limits retries after a fault
                pause_s = min(pause_s * 2, _PAUSE_S_MAX)
            else:
                if self.delivery is not None:
                    self.delivery.retry_now(())
                return


class _ReportBuilder:
    """Collects the results of a command's slices in its report."""

    def __init__(self, command: QueueCommand, listing: Callable[..., EntryListBuilder]) -> None:
        self.command = command
        self.report = CommandReport(dry_run=command.dry_run, reports=0 if command.bounce else None)
        self._listing = listing
        self._recipients_left = RECIPIENTS_MAX
        self.silent = set[str]()  # next hops that have deleted no draft

    def listing(self) -> EntryListBuilder:
        """Return a list for what may still be listed; pass it to add()."""
        left = LISTED_MAX - len(self.report.entries)
        return self._listing(entries_max=left, recipients_max=self._recipients_left)

    def add(
        self, results: Iterable[CommandResult], listing: EntryListBuilder, *, reports: int = 0
    ) -> None:
        """Add certain results; `reports` is the number of reports to senders."""
        for result in results:
            self.report.counts[result] += 1
        self.report.entries += listing.entries
        self._recipients_left = listing.recipients_left
        if self.report.reports is not None:
            self.report.reports += reports


class Slice(Struct, frozen=True):
    """Some entries of a command, which one transaction changes."""

    answer: _ReportBuilder  # of the command
    keys: Sequence[types.Key]  # of the entries
    taken: Collection[types.Key]  # whose claims were withdrawn, or in a dry run could be
    engine: QueueEngine  # has the entries
    now_us: int  # queue time
    at_us: int  # wall time
    planned: PlannedReports = NOTHING_PLANNED  # of a cancel
    order: types.QueueOrder | None = None  # the command, if it was one

    def write(self, transaction: OpenTransaction) -> tuple[ChangeResult, EntryListBuilder]:
        """Change the entries, and list them as they are then.

        A withdrawn entry that is not changed is released; it is due as before. A cancel changes a
        message with reports only if its entries have the epochs in `planned`.
        """
        loaded, result, changes = self._decided(transaction)
        result.cancelled = store_changes(transaction, loaded.entries, changes, at_us=self.at_us)
        if result.ended:
            offset_us = self.at_us - self.now_us
            mail = _cancelled_mail(transaction, result.ended, offset_us=offset_us)
            result.given_back = list(mail)
        self._add_reports(transaction, result)
        listed = self.answer.listing()
        fields = {
            entry: _fields(outcome, note)
            for key, (outcome, note) in result.results.items()
            for entry in (key, *result.made.get(key, ()))
        }
        listed.add(transaction, list(fields), fields)
        if result.ended:
            result.left = self.engine.entries_ended(transaction, result.ended)
        return result, listed

    def carry_out(self, transaction: OpenTransaction) -> ChangeResult | None:
        """Carry out an order on one entry, after the result of an attempt; None: it has another
        order now or none, or Microsoft Graph may still have sent the message.
        """
        (key,) = self.keys
        extra = load_entries(transaction, self.answer.command, self.keys).entries[key].extra
        order = extra.order if extra is not None else None
        if extra is None or order is None or order != self.order:
            return None
        if extra.in_doubt and not order.restarts:
            return None
        entry_notes.note_extra(transaction, key, order=None)
        result, _ = self.write(transaction)
        result.due_us = self.now_us  # it may have changed nothing, and the entry is due
        return result

    def _add_reports(self, transaction: OpenTransaction, result: ChangeResult) -> None:
        """Add the planned reports on messages whose entries were cancelled."""
        epochs, plans = self.planned
        outcomes = result.results.items()
        done = [key[0] for key, (outcome, _) in outcomes if outcome is CommandResult.DONE]
        for message_id in dict.fromkeys(done):
            if (reports := plans.get(message_id)) is not None:
                self.engine.add_reports(transaction, reports)
                transaction.append_events(message_id, reports.plan.events)
                paid = [key for key in epochs if key[0] == message_id]
                transaction.execute_each(PAY_REPORTS, paid)
                result.reports += reports.plan.messages
                result.due_us = self.now_us

    def rehearse(self, tables: Tables) -> tuple[list[CommandResult], EntryListBuilder]:
        """Return the results of a dry run, and the entries."""
        _, result, _ = self._decided(tables)
        elsewhere = self.engine.elsewhere(tables, result.running) if result.running else {}
        results, listed = result.results | result.running, self.answer.listing()
        fields = {key: _fields(*told, elsewhere.get(key, "")) for key, told in results.items()}
        listed.add(tables, list(fields), fields)
        return [outcome for outcome, _ in results.values()], listed

    def _decided(self, tables: Tables) -> tuple[LoadedEntries, ChangeResult, EntryChanges]:
        command, (epochs, _) = self.answer.command, self.planned
        loaded = load_entries(tables, command, self.keys)
        # another node may have taken a withdrawn entry over since, and be delivering it
        elsewhere = self.engine.elsewhere(tables, self.taken) if self.taken else {}
        taken = [key for key in self.taken if key not in elsewhere]
        if command.dry_run:  # as if reports on all entries that no attempt has were planned
            claimed = {key for key, facts in loaded.entries.items() if facts.is_claimed}
            busy = claimed.difference(taken)
            epochs = dict.fromkeys(key for key in loaded.to_be_planned if key not in busy)
        result, changes = decide(
            loaded,
            command,
            self.keys,
            taken=taken,
            now_us=self.now_us,
            at_us=self.at_us,
            planned=epochs,
        )
        return loaded, result, changes


def _cancelled_mail(
    tables: Tables, ended: Collection[types.Key], *, offset_us: int
) -> Iterator[CancelledMail]:
    """Yield, by message, what is subtracted from the counts of accounts when these entries end."""
    ids = [(message_id,) for message_id in dict.fromkeys(message_id for message_id, _ in ended)]
    doubted = {
        (message_id, recipient["number"])
        for message_id, text in tables.fetch_each(_DOUBTED, ids)
        for recipient in json.loads(text)["recipients"]
        if recipient["outcome"] == "indeterminate"
    }
    named = tables.fetch_each(_NAMED, ids)
    for _, of_message in groupby(named, lambda row: row[2]):
        rows = list(of_message)
        # addresses that replaced those of the sender
        made = {address for row in rows for address in row[-1].split("\n")}
        never_sent, others = list[str](), list[str]()
        for message_id, number, entry, address, state, _ in (row[2:] for row in rows):
            if state != RecipientState.CANCELLED or (message_id, number) in doubted:
                others.append(address)
            elif (message_id, entry) in ended and address not in made:
                never_sent.append(address)
        account = rows[0][0]
        if account and never_sent:
            yield CancelledMail(account, rows[0][1] + offset_us, never_sent, others)


def _show_running(
    tables: Tables,
    *,
    results: Mapping[types.Key, tuple[CommandResult, str]],
    listed: EntryListBuilder,
    engine: QueueEngine,
) -> None:
    """List entries whose attempt runs, with the node that it runs at."""
    elsewhere = engine.elsewhere(tables, results)
    fields = {key: _fields(*told, elsewhere.get(key, "")) for key, told in results.items()}
    listed.add(tables, list(fields), fields)


def _fields(result: CommandResult, note: str, node: str = "") -> dict[str, str]:
    return {"result": str(result), "note": note} | ({"node": node} if node else {})


def _put_back(
    transaction: OpenTransaction, *, keys: Collection[types.Key], engine: QueueEngine
) -> None:
    """Release claims that were withdrawn for an operation that failed."""
    elsewhere = engine.elsewhere(transaction, keys)  # other nodes have taken these over
    transaction.execute_each(_PUT_BACK, [key for key in keys if key not in elsewhere])


def _slices(keys: Sequence[types.Key], *, whole_messages: bool) -> Iterator[Sequence[types.Key]]:
    """Yield the entries of each transaction; with `whole_messages` all of a message together."""
    if not whole_messages:
        yield from (keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE))
        return
    chunk: list[types.Key] = []
    for _, entries in groupby(keys, lambda key: key[0]):
        chunk += entries
        if len(chunk) >= _REPORTED_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
