"""The reports of a cancel: planned before its transaction, and committed in it.

With `--bounce` the sender gets a report of the failure. Any cancel pays the reports of successes
that are owed since an attempt that a crash interrupted, because no attempt follows that would.

A report takes a content and a writer, which a transaction cannot wait for. It is therefore written
for the entries as they are, by their epochs: where one of them has changed, nothing of its message
is cancelled, and the command looks again.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

from msgspec import Struct

from relay.message.envelope import Source
from relay.message.lifecycle import RecipientState
from relay.message.outcome import Evidence
from relay.mime.dsn import UNREADABLE, ReportedRecipient, ReportKind
from relay.observe.logs import get_logger
from relay.spool.common.queue_engine import QueueEngine, StoredContents
from relay.spool.common.queued_entries import to_be_planned
from relay.spool.queue_commands import QueueCommand
from relay.spool.tables import Tables
from relay.spool.types import Claim, Key, ReportPlan, ReportWriter, SpoolError

_STATUS = "5.0.0"  # RFC 3463 3.1: no other says that an operator ended it
_TEXT = "cancelled by an operator of this relay"
_CLAIMED = (
    "SELECT message_id, number, claimed FROM entry"
    " WHERE message_id = ? AND number = ? AND state <> 'final'"
)
_log = get_logger("spool")


class MessageReports(Struct, frozen=True):
    """The reports about the cancelled entries of one message, with what is stored of them."""

    plan: ReportPlan
    stored: StoredContents


class PlannedReports(Struct, frozen=True):
    """`epochs` are those of the entries that the plan is about, None of one that is damaged."""

    epochs: Mapping[Key, int | None] = {}
    by_message: Mapping[str, MessageReports] = {}


NOTHING_PLANNED = PlannedReports()


class CancelReports:
    """Plans reports. Without a writer there are none."""

    def __init__(self, engine: QueueEngine) -> None:
        self.writer: ReportWriter | None = None
        self._engine = engine

    async def plan(
        self, keys: Sequence[Key], command: QueueCommand, *, taken: Collection[Key]
    ) -> PlannedReports:
        """Write the reports about those of these entries that need a plan; those that delivery has,
        but for `taken`, are left out. Raises SpoolError.
        """
        claims, epochs = await self._engine.read(
            lambda tables: self._entries(tables, to_be_planned(tables, keys, command), taken)
        )
        by_message = {}
        for message_id, some in groupby(claims, lambda one: one.message.id):
            plan = await self._plan(tuple(some), command)
            if plan.messages or plan.events:
                stored = await self._engine.store_contents(plan.messages)
                by_message[message_id] = MessageReports(plan, stored)
        return PlannedReports(epochs, by_message)

    async def count(self, keys: Sequence[Key], *, taken: Collection[Key]) -> int:
        """How many reports there would be."""
        claims, _ = await self._engine.read(lambda tables: self._entries(tables, keys, taken))
        groups = (tuple(some) for _, some in groupby(claims, lambda one: one.message.id))
        return sum(bool(self._reported(some, "")) for some in groups)

    def _reported(self, claims: Sequence[Claim], text: str) -> tuple[ReportedRecipient, ...]:
        """Return the recipients for the report; none if there is none. Captured mail was not to be
        sent, and about a report there is no report.
        """
        message = claims[0].message
        people = tuple(
            ReportedRecipient(
                one.path, Evidence(_STATUS, text or _TEXT), log_id=f"{message.id}-{claim.entry_id}"
            )
            for claim in claims
            if claim.state is not RecipientState.CAPTURED
            for one in claim.recipients
            if not one.added_by
        )
        if self.writer is None or message.source is Source.REPORT:
            return ()
        return people if self.writer.wants(ReportKind.FAILED, message, people) else ()

    async def _plan(self, claims: Sequence[Claim], command: QueueCommand) -> ReportPlan:
        people = self._reported(claims, command.text) if command.bounce else ()
        owed = [one for claim in claims for one in claim.owed]
        if self.writer is None or not (people or owed):
            return ReportPlan()
        message = claims[0].message
        try:
            content = await self._engine.read_content(claims[0].content_id)
        except SpoolError as error:
            _log.error("content unreadable for a report", qid=message.id, error=str(error))
            content = UNREADABLE
        by_kind = {
            ReportKind.FAILED: people,
            ReportKind.DELIVERED: [one for one in owed if one.is_delivered],
            ReportKind.RELAYED: [one for one in owed if not one.is_delivered],
        }
        plans = [
            self.writer.reports(kind, message, some, content=content)
            for kind, some in by_kind.items()
            if some
        ]
        return ReportPlan(
            tuple(one for plan in plans for one in plan.messages),
            tuple(one for plan in plans for one in plan.events),
        )

    def _entries(
        self, tables: Tables, keys: Collection[Key], taken: Collection[Key]
    ) -> tuple[Sequence[Claim], Mapping[Key, int | None]]:
        """Return the entries that can be cancelled, in order, and their epochs."""
        rows = tables.fetch_each(_CLAIMED, keys) if keys else ()
        free = [
            (message_id, number)
            for message_id, number, is_claimed in rows
            if not is_claimed or (message_id, number) in taken
        ]
        claims, damaged = self._engine.read_claims(tables, free)
        epochs: dict[Key, int | None] = {claim.key: claim.epoch for claim in claims}
        epochs |= dict.fromkeys(damaged)
        return sorted(claims, key=lambda one: one.key), epochs
