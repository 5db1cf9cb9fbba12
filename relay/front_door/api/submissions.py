"""The submissions in lists and commands of the queue: scheduled, held, and held by a restore.

A restore's are listed, released and cancelled with the condition `restored` alone, or with `all`.
The others are selected by id, or by conditions that each of them answers (is_selected()), and are
held, released and cancelled. A submission has no next hop yet.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from msgspec.structs import replace

from relay.base.clock import id_time_us, rfc3339
from relay.base.message.address import with_a_labels
from relay.base.message.lifecycle import RecipientState, SubmissionState
from relay.base.message.rest_id import read_rest_id
from relay.front_door.http.errors import bad_request
from relay.store.journeys.journey import Journeys
from relay.store.journeys.message_list import matches_address_pattern, matches_pattern
from relay.store.spool.queue_commands import (
    DRAFT_STAYS,
    LISTED_MAX,
    CommandResult,
    EntryList,
    EntryRecipient,
    ListedEntry,
    Operation,
    QueueCommand,
)
from relay.store.spool.shared.queue_admin import QueueAdmin
from relay.store.spool.types import FIRST_KEY, Key, PriorityLevel, Selector, SpoolUnavailableError
from relay.submission.outbox.on_disk import draft_of
from relay.submission.outbox.ready_submissions import ReadySubmissions
from relay.submission.outbox.restored import ListedSubmission, RestoredSubmissions

P = ParamSpec("P")
T = TypeVar("T")
_ALL_RESTORED = (Selector(restored=True), Selector(restored=True, all=True))
_REASON = "relay: it was restored, and waits for relay queue release --restored"
_AT_ONCE = 64  # submissions that are read, and then changed together


async def list_entries(
    queue_admin: QueueAdmin,
    submissions: RestoredSubmissions,
    selector: Selector,
    *,
    limit: int,
    after: Key = FIRST_KEY,
) -> EntryList:
    """Return entries of the queue, and after them the selected submissions. Raises SpoolError."""
    entries = await queue_admin.list(selector, limit=limit, after=after)
    if after == FIRST_KEY and len(entries) < limit:
        named = set[str]()
        async for batch in _selected(submissions, selector, named):
            entries += [row for row, _ in batch[: limit - len(entries)]]
        entries.unknown = tuple(name for name in entries.unknown if _id_in(name) not in named)
    return entries


async def execute(
    queue_admin: QueueAdmin,
    submissions: RestoredSubmissions,
    command: QueueCommand,
    *,
    ready: ReadySubmissions,
) -> dict[str, Any]:
    """Execute a queue command, first on submissions: one that becomes due meanwhile is an entry.
    A release begins with the entries: a submission that it makes due may be one at once.

    Return the JSON of POST /queue/{operation}; a release says how many submissions a restore still
    holds. Raises SpoolError; ApiError for a retry or reroute of a submission.
    """
    counts, listed, named = Counter[str](), list[dict[str, Any]](), set[str]()
    is_release = command.operation is Operation.RELEASE
    report = await queue_admin.execute(command) if is_release else None
    async for batch in _selected(submissions, command.selector, named):
        done = await _all_changed(ready, submissions, batch, command=command)
        counts.update(row["result"] for row in done)
        listed += done[: LISTED_MAX - len(listed)]
    answer = (report or await queue_admin.execute(command)).as_json()
    for result, number in counts.items():
        answer[result] += number
    answer["matched"] += counts.total()
    answer["entries"] += listed[: LISTED_MAX - len(answer["entries"])]
    answer["unknown"] = [name for name in answer["unknown"] if _id_in(name) not in named]
    if is_release and (left := await _count(submissions.count)):
        answer["still_held"] = left
    return answer


async def not_queued(journeys: Journeys, submissions: RestoredSubmissions) -> Mapping[str, int]:
    """Return the number of messages that are not in the queue yet, by state, and how many of them a
    restore holds.
    """
    counts = {"held": submissions.count_held, "restored": submissions.count}
    held = {name: number for name, count in counts.items() if (number := await _count(count))}
    return {**await journeys.count_before_queue(), **held}


async def _count(count: Callable[[], int]) -> int:
    try:
        return await asyncio.to_thread(count)
    except OSError:  # the count is only shown: the queue does not need the mail root
        return 0


def is_selected(selector: Selector, submission: ListedSubmission, *, now_us: int) -> bool:
    """Whether a selector that sees submissions matches a submission: all conditions do, and those
    on recipients match all recipients.

    Its login is the account of the mailbox; its age begins with its draft.
    """
    facts, sender = submission.facts, selector.sender.removeprefix("<").removesuffix(">")
    state = RecipientState.HELD if submission.reason else SubmissionState.SCHEDULED
    age_us = now_us - (id_time_us(facts.graph_id) or now_us)
    return (
        (not selector.ids or not _names_of(submission).isdisjoint(map(_id_in, selector.ids)))
        and selector.state in ("", state)
        and age_us >= int((selector.older_than_s or 0) * 1e6)
        and matches_pattern(selector.subject, facts.subject)
        and matches_pattern(with_a_labels(selector.login), facts.account)
        and matches_address_pattern(sender or selector.sender, facts.sender)  # <>: none has it
        and all(
            matches_address_pattern(pattern, address)
            for pattern in (selector.recipient, selector.domain and f"*@{selector.domain}")
            for address in facts.recipients
        )
    )


def _names_of(submission: ListedSubmission) -> set[str]:
    facts = submission.facts
    return {facts.submission_id, facts.graph_id, facts.message_id.strip("<>")}


def _id_in(name: str) -> str:
    """Return the id, or the Message-ID, in the name of an entry or a message."""
    return read_rest_id(name)[0].removesuffix("-0").strip("<>")


async def _selected(
    submissions: RestoredSubmissions, selector: Selector, named: set[str]
) -> AsyncIterator[list[tuple[dict[str, Any], Path]]]:
    """Yield the selected submissions as `queue list` shows entries, and their files, in batches.

    If the selector has ids, add the names of those that it may mean to `named`. Raises SpoolError.
    """
    is_restored = selector in _ALL_RESTORED
    if not (selector.sees_submissions or is_restored):
        return
    now_us, ids = submissions.clock.time_us(), [*map(_id_in, selector.ids)]
    drafts = [] if any("@" in name for name in ids) else [draft_of(name) for name in ids]
    waiting = submissions.listed() if is_restored else submissions.waiting(drafts)
    while batch := await _in_thread(lambda: [*islice(waiting, _AT_ONCE)]):
        named.update(*map(_names_of, batch if ids else ()))
        yield [
            (_entry(submission, is_restored=is_restored), submission.path)
            for submission in batch
            if is_selected(selector, submission, now_us=now_us)
        ]


async def _all_changed(
    ready: ReadySubmissions,
    submissions: RestoredSubmissions,
    batch: list[tuple[dict[str, Any], Path]],
    *,
    command: QueueCommand,
) -> list[dict[str, Any]]:
    """Change submissions; return their entries with result and note.

    If another change came first, its outcome is what is selected and changed.
    """
    done: list[dict[str, Any]] = []
    is_restored = command.selector.restored
    note = "it was released or cancelled" if is_restored else "it is being sent, or was cancelled"
    while batch:
        changes = (_changed(ready, row, path, command=command) for row, path in batch)
        outcomes = [*zip(batch, await asyncio.gather(*changes), strict=True)]
        done += [row | outcome for (row, _), outcome in outcomes if outcome]
        moved = {row["id"]: row for (row, _), outcome in outcomes if outcome is None}
        selector, waiting = replace(command.selector, ids=tuple(moved)), set[str]()
        again = _selected(submissions, selector, waiting)
        batch = [pair async for pairs in again for pair in pairs] if moved else []
        unchanged = {"result": str(CommandResult.UNCHANGED), "note": note}
        done += [row | unchanged for name, row in moved.items() if name not in waiting]
    return done


async def _changed(
    ready: ReadySubmissions, row: Mapping[str, Any], path: Path, *, command: QueueCommand
) -> dict[str, str] | None:
    """Change a submission; return its result and note, nothing if the command means entries.

    None if the submission has left `path`.
    """
    operation, selector = command.operation, command.selector
    match operation:
        case Operation.RETRY | Operation.REROUTE:
            if selector.ids or selector.state == SubmissionState.SCHEDULED:
                raise bad_request(f"{row['id']} is not in the queue yet: hold or cancel it.")
            return {}
        case Operation.HOLD if row["reason"] or command.until_us is not None:
            note = "it is held already" if row["reason"] else "a submission is held without --until"
        case Operation.RELEASE if not row["reason"]:
            note = command.inapplicable_reason(RecipientState.QUEUED)
        case _:
            why = ": ".join(filter(None, (command.who, command.why)))
            change = partial(ready.change_waiting, row["id"], operation, who=why, path=path)
            if command.dry_run or await change():
                note = DRAFT_STAYS if operation is Operation.CANCEL else ""
                return {"result": str(CommandResult.DONE), "note": note}
            return None
    return {"result": str(CommandResult.UNCHANGED), "note": note}


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except OSError as error:
        raise SpoolUnavailableError(f"the submissions cannot be used: {error}") from error


def _entry(submission: ListedSubmission, *, is_restored: bool) -> dict[str, Any]:
    """Return a submission as `queue list` shows an entry."""
    facts, reason = submission.facts, _REASON if is_restored else submission.reason
    of_recipients = RecipientState.HELD if reason else RecipientState.QUEUED
    entry = ListedEntry(
        id=facts.submission_id,
        entry=0,
        sender=facts.sender,
        subject=facts.subject,
        route="",
        next_hop="pickup",
        state=RecipientState.HELD if reason else SubmissionState.SCHEDULED,
        due=rfc3339(submission.due_us) if submission.due_us else None,
        attempts=0,
        size=submission.size_bytes,
        recipients=tuple(
            EntryRecipient(address, of_recipients, "", "") for address in facts.recipients
        ),
        claimed=False,
        priority=PriorityLevel.NORMAL.name.lower(),
        expires=None,
        held_until=None,
        reason=reason,
        rule="",
        since=rfc3339(submission.held_us) if submission.held_us else "",
        restored=is_restored,
    )
    return entry.as_json()
