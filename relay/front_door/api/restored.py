"""The submissions that a restore holds, next to the restored entries of the queue.

They are listed, released and cancelled with the condition `restored` alone, or with `all`: a
submission is in no state of the queue, and has no next hop yet.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from msgspec.structs import replace

from relay.base.clock import rfc3339
from relay.base.message.lifecycle import RecipientState
from relay.store.journeys.journey import Journeys
from relay.store.spool.queue_commands import (
    LISTED_MAX,
    CommandResult,
    EntryList,
    Operation,
    QueueCommand,
)
from relay.store.spool.shared.queue_admin import QueueAdmin
from relay.store.spool.types import FIRST_KEY, Key, PriorityLevel, Selector, SpoolUnavailableError
from relay.submission.outbox.restored import HeldSubmission, RestoredSubmissions

P = ParamSpec("P")
T = TypeVar("T")
_ALL_RESTORED = Selector(restored=True)
_REASON = "relay: it was restored, and waits for relay queue release --restored"


async def list_entries(
    queue_admin: QueueAdmin,
    submissions: RestoredSubmissions,
    selector: Selector,
    *,
    limit: int,
    after: Key = FIRST_KEY,
) -> EntryList:
    """Return entries of the queue and, with `restored` alone, the held submissions after them.

    Raises SpoolError.
    """
    entries = await queue_admin.list(selector, limit=limit, after=after)
    is_first = after == FIRST_KEY and len(entries) < limit
    if _is_everything(selector) and is_first:
        entries += await _in_thread(_held, submissions, limit - len(entries))
    return entries


async def execute(
    queue_admin: QueueAdmin, submissions: RestoredSubmissions, command: QueueCommand
) -> dict[str, Any]:
    """Execute a queue command.

    To release or cancel everything restored includes the held submissions. Another release says how
    many remain held. Return the JSON of POST /queue/{operation}. Raises SpoolError.
    """
    answer = (await queue_admin.execute(command)).as_json()
    if not _is_everything(command.selector):
        left = command.operation is Operation.RELEASE and await _count(submissions)
        return answer | ({"still_held": left} if left else {})
    actions = {Operation.RELEASE: submissions.release, Operation.CANCEL: submissions.cancel}
    if command.operation not in actions:
        return answer
    listed = await _in_thread(_held, submissions, LISTED_MAX)
    count = submissions.count if command.dry_run else actions[command.operation]
    number = await _in_thread(count)
    done = {"result": str(CommandResult.DONE), "note": ""}
    answer["entries"] += [row | done for row in listed[: LISTED_MAX - len(answer["entries"])]]
    return answer | {"matched": answer["matched"] + number, "done": answer["done"] + number}


async def not_queued(journeys: Journeys, submissions: RestoredSubmissions) -> Mapping[str, int]:
    """Return the number of messages that are not in the queue yet, by state, and how many of them a
    restore holds.
    """
    held = await _count(submissions)
    return {**await journeys.count_before_queue(), **({"restored": held} if held else {})}


async def _count(submissions: RestoredSubmissions) -> int:
    try:
        return await asyncio.to_thread(submissions.count)
    except OSError:  # it is only shown: the queue does not need the mail root
        return 0


def _is_everything(selector: Selector) -> bool:
    return replace(selector, all=False) == _ALL_RESTORED


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except OSError as error:
        raise SpoolUnavailableError(f"the restored submissions cannot be used: {error}") from error


def _held(submissions: RestoredSubmissions, limit: int) -> list[dict[str, Any]]:
    return [_entry(submission) for submission in submissions.listed(limit)]


def _entry(held: HeldSubmission) -> dict[str, Any]:
    """Return a submission as `queue list` shows an entry."""
    state = str(RecipientState.HELD)
    return {
        "id": held.facts.submission_id,
        "entry": 0,
        "sender": held.facts.sender,
        "next_hop": "pickup",
        "state": state,
        "due": rfc3339(held.scheduled_us) if held.scheduled_us else None,
        "attempts": 0,
        "size": held.size_bytes,
        "recipients": [
            {"address": address, "state": state, "status": "", "reply": ""}
            for address in held.facts.recipients
        ],
        "claimed": False,
        "priority": PriorityLevel.NORMAL.name.lower(),
        "expires": None,
        "held_until": None,
        "reason": _REASON,
        "restored": True,
    }
