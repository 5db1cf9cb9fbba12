"""Build the journey of a message: one JSON document from the submission log and the spool.

The document is the message of docs/names.md, the same for the API and the command line. An
account sees its own messages only.
"""

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from relay.base.clock import Clock, id_time_us, rfc3339, wall_offset_us
from relay.base.message.envelope import Client
from relay.base.message.lifecycle import BEFORE_QUEUE, RecipientState, SubmissionState
from relay.base.message.rest_id import read_rest_id
from relay.base.turns import Turns
from relay.store.journeys.document import HISTORY_REMOVED, Journey, JourneyStep, Recipient
from relay.store.journeys.event_feed import EventFeed
from relay.store.journeys.events import EventCursor, Step
from relay.store.journeys.list_places import ListPlaces, is_between
from relay.store.journeys.message_list import (
    SCAN_MAX,
    FoundMessage,
    ListPosition,
    MessageSearch,
    MessageSummary,
    OpenSubmission,
    position_of,
    row_of,
)
from relay.store.journeys.open_submissions import state_before_queue
from relay.store.journeys.sender_view import sender_journey
from relay.store.journeys.sentences import reasons_of, with_reports
from relay.store.journeys.spool_history import SpoolHistory
from relay.store.journeys.submission_log import SubmissionLog, SubmissionRecord

_SAME_TIME_MAX = 100  # messages of one millisecond, among which one is found
_LOG_S = 10.0  # a client waits for 30 s
_READ_MAX = 1000  # candidates, to find those that match
PAGES_MAX = 20  # that one call reads, each of up to SCAN_MAX messages
_NEIGHBOURS_READ = 200  # names at a time
_NEIGHBOUR_LOOKS_MAX = 3
_ALL = MessageSearch()


class _NewMessages(NamedTuple):
    """The messages of a page of the events after a cursor."""

    new: dict[str, tuple[int, EventCursor]]  # by name, each with its time and the cursor after it
    cursor: EventCursor  # after the page
    is_complete: bool  # there were no more events


class MessageList(Struct, frozen=True):
    """Journeys, newest first.

    Later messages are after `cursor`, older ones after the place `older`.
    """

    messages: list[Journey]
    cursor: EventCursor
    older: ListPosition | None = None


class ListPage(Struct, frozen=True):
    """Rows of the message list, newest first.

    Older messages may be after the place `older`; None is the end of the list.
    """

    rows: tuple[MessageSummary, ...]
    older: ListPosition | None

    def as_json(self) -> dict[str, Any]:
        """Return the answer of GET /log: the rows, and the time and the place before which there
        may be older ones.
        """
        older = self.older and rfc3339(self.older.at_us + 1)
        rows = [row.as_json() for row in self.rows]
        return {"messages": rows, "older": older, "before": self.older and str(self.older)}


class Journeys:
    """Joins the steps of the submission log and the spool by submission id."""

    def __init__(
        self, spool: SpoolHistory, store: SubmissionLog, feed: EventFeed, *, clock: Clock
    ) -> None:
        """`feed` reads this spool and the directory of this log."""
        self._feed = feed
        self._pages = Turns("new messages", 1)  # a page takes megabytes
        self._spool = spool
        self._store = store
        self.clock = clock
        self.places = ListPlaces(spool, store)

    async def journey(
        self, key: str, *, account: str | None, added: bool = False
    ) -> Journey | None:
        """Return the newest message that `key` names, or None.

        `key` is a Graph id, submission id, queue id, Message-ID, an address, or "last". With
        `account`, only its messages are found. Without it, `added` includes the copies that rules
        and milters added.
        """
        added = added and account is None
        journeys = await self._recent(key, account=account, limit=1, added=added)
        return _seen_by(account, journeys)[0] if journeys else None

    async def mailbox_of(self, submission_id: str) -> str:
        """Return the account in whose mailbox the message was created, "" if that is unknown."""
        submission = await self._store.submission(submission_id)
        return submission.facts.account if submission else ""

    async def place_of(self, cursor: EventCursor) -> EventCursor:
        """See EventFeed.place_of()."""
        return await self._feed.place_of(cursor)

    async def search(
        self,
        search: MessageSearch,
        *,
        account: str | None,
        limit: int,
        before: ListPosition | None = None,
        lookup_s: float | None = None,
    ) -> MessageList:
        """Return the newest messages that match, or those older than `before`, and the present
        cursor.

        With `after`, return the oldest messages after it, and the cursor before the first one that
        was left out. A message that becomes visible during the search is not in the list. It comes
        after the cursor.
        """
        if search.after is not None:
            return await self._behind(search, account=account, limit=limit, lookup_s=lookup_s)
        cursor = await self._feed.now()
        page = await self.page(
            search, account=account, before=before, limit=limit, lookup_s=lookup_s
        )
        later = await self._new_names(cursor, account, is_settled=False)
        journeys: list[Journey] = []
        for row in page.rows:
            journey = None if row.position.name in later else await self._journey_of(row)
            if journey is not None and search.matches(journey):
                journeys.append(journey)
        return MessageList(_seen_by(account, journeys), cursor, page.older)

    async def page(
        self,
        search: MessageSearch,
        *,
        account: str | None,
        limit: int,
        before: ListPosition | None = None,
        lookup_s: float | None = None,
    ) -> ListPage:
        """Return the newest messages that match, or those older than `before`, as rows.

        `after` is ignored. The cost does not grow with the number of messages or steps. Messages
        whose contents cannot be read in time are on the next page.
        """
        if search.key:
            return await self._page_of_key(search, account=account, limit=limit, before=before)
        places, older = await self.places.find(
            search, account=account, limit=limit, before=before, lookup_s=lookup_s
        )
        return ListPage(
            await self._rows([message for _, message in places], added=search.added), older
        )

    async def log(
        self,
        search: MessageSearch,
        *,
        account: str | None,
        limit: int,
        before: ListPosition | None = None,
        pages: int = PAGES_MAX,
    ) -> ListPage:
        """Return the newest messages that match, as page() does, up to `limit`.

        At most `pages` pages are read, and none is begun after _LOG_S.
        """
        began_s = self.clock.real_s()
        rows: tuple[MessageSummary, ...] = ()
        for _ in range(pages):
            left = min(limit - len(rows), _READ_MAX)
            page = await self.page(search, account=account, limit=left, before=before)
            rows, before = (*rows, *page.rows), page.older
            is_enough = len(rows) >= limit or self.clock.real_s() - began_s > _LOG_S
            if before is None or is_enough:
                break
        return ListPage(rows, before)

    async def names(
        self, search: MessageSearch, *, account: str | None, limit: int
    ) -> tuple[list[str], bool]:
        """Return the names of the newest messages that match, and whether there may be more than
        `limit`.
        """
        if search.key:
            page = await self.page(search, account=account, limit=limit)
            return [row.name for row in page.rows], page.older is not None
        began_s, names = self.clock.real_s(), list[str]()
        before: ListPosition | None = None
        search = await self.places.with_index(search)
        history = replace(search.without_content(), reader="", indexed=None, added=False)
        indexed = search.indexed if account is None and history == _ALL else None
        search = replace(search, indexed={}) if indexed else search  # finds the other messages
        for _ in range(PAGES_MAX):
            places, before = await self.places.find(
                search, account=account, limit=limit - len(names), before=before
            )
            names += [_name_of(message) for _, message in places]
            is_enough = len(names) >= limit or self.clock.real_s() - began_s > _LOG_S
            if before is None or is_enough:
                break
        names = sorted([*indexed, *names], reverse=True) if indexed else names
        return names[:limit], before is not None or len(names) > limit

    async def neighbours(
        self,
        search: MessageSearch,
        place: ListPosition,
        *,
        account: str | None,
        begin: ListPosition | None,
    ) -> tuple[str, str]:
        """Return the names of the next newer and the next older message that match; "" for none.

        The newer one is looked for among some hundred messages, beginning at the place `begin`.
        """
        if search.key:
            return "", ""
        older, _ = await self.places.find(search, account=account, limit=1, before=place)
        newer = ""
        for _ in range(_NEIGHBOUR_LOOKS_MAX):
            places, begin = await self.places.find(
                search, account=account, limit=_NEIGHBOURS_READ, before=begin
            )
            newer = next(
                (_name_of(message) for at, message in reversed(places) if at.order < place.order),
                newer,
            )
            if begin is None or begin.order >= place.order:
                return newer, _name_of(older[0][1]) if older else ""
        return "", _name_of(older[0][1]) if older else ""

    async def rows(self, names: Sequence[str], *, account: str | None) -> Sequence[MessageSummary]:
        """Return the rows of the messages with these queue ids and submission ids.

        Messages that no longer exist are left out.
        """
        queue_ids = [name for name in names if not _is_submission(name)]
        rows = list(await self._spool.summaries(queue_ids, account=account)) if queue_ids else []
        for name in names:
            if _is_submission(name):
                search = MessageSearch(key=name)
                page = await self._page_of_key(search, account=account, limit=1, before=None)
                rows += page.rows
        return rows

    async def counts(self, *, account: str | None, limit: int) -> tuple[int, Mapping[str, int]]:
        """Return the number of messages, at most `limit`, and how many are in each state.

        Of the newest messages, this counts those with a recipient in the state, or in a state
        before step 4.
        """
        submissions = await self._store.open_submissions()
        async with self.places.turn(account):
            total, counts = await self._spool.count_states(account=account, limit=limit)
        waiting = await self._before_queue(submissions, account=account, limit=limit)
        return min(limit, total + waiting.total()), {**counts, **waiting}

    async def count_before_queue(self) -> Mapping[str, int]:
        """Return how many of the newest messages are in each state before step 4."""
        submissions = await self._store.open_submissions()
        counts = await self._before_queue(submissions, account=None, limit=SCAN_MAX)
        return {state: counts[state] for state in SubmissionState}

    async def _before_queue(
        self, submissions: Sequence[OpenSubmission], *, account: str | None, limit: int
    ) -> Counter[str]:
        """Count the newest submissions in each state before step 4."""
        newest = [
            submission
            for submission in submissions
            if submission.state in BEFORE_QUEUE and account in (None, submission.account)
        ][-limit:]
        # for the log, a submission is being converted until step 4 is recorded
        names = [
            submission.submission_id
            for submission in newest
            if submission.state == SubmissionState.CONVERTING
        ]
        accepted = set(await self._spool.accepted_submissions(names)) if names else set()
        return Counter(
            submission.state for submission in newest if submission.submission_id not in accepted
        )

    async def addresses(self, *, account: str | None) -> Sequence[str]:
        """Return senders and recipients of the newest messages. See recent_addresses()."""
        async with self.places.turn(account):
            return await self._spool.recent_addresses(account=account, limit=SCAN_MAX)

    async def _rows(
        self, messages: Sequence[FoundMessage | OpenSubmission], *, added: bool
    ) -> tuple[MessageSummary, ...]:
        ids = [message.queue_id for message in messages if isinstance(message, FoundMessage)]
        ahead_us = wall_offset_us(self.clock)
        summaries = await self._spool.summaries(ids, account=None, added=added) if ids else ()
        in_spool = {row.name: row for row in summaries}
        rows = []
        for message in messages:
            if isinstance(message, OpenSubmission):
                rows.append(row_of(message))
            elif (row := in_spool.get(message.queue_id)) is not None:
                next_us = row.next_attempt_us
                rows.append(
                    row if next_us is None else replace(row, next_attempt_us=next_us + ahead_us)
                )
        return tuple(rows)

    async def _page_of_key(
        self, search: MessageSearch, *, account: str | None, limit: int, before: ListPosition | None
    ) -> ListPage:
        """Return the messages with this id or Message-ID. An address is not taken for either."""
        key = search.key
        if "@" in key and not key.startswith("<"):
            key = f"<{key}>"
        rows: list[MessageSummary] = []
        for journey in await self._recent(key, account=account, limit=limit):
            place = position_of(journey.id or "", journey.submission_id or "")
            if search.matches(journey) and is_between(place, before, None):
                if not await self._matches_beyond(search, place, account=account):
                    continue
                if journey.id:
                    rows += await self._rows([FoundMessage(journey.id, "")], added=search.added)
                else:
                    rows.append(_row_of_journey(journey, place))
        return ListPage(tuple(rows), None)

    async def _matches_beyond(
        self, search: MessageSearch, place: ListPosition, *, account: str | None
    ) -> bool:
        """Whether the message at a place meets the conditions that its journey cannot decide."""
        if not search.needs_more_than_journey:
            return True
        if not search.is_in_time(place.at_us):
            return False
        places, _ = await self.places.find(
            replace(search, key="", from_us=place.at_us),
            account=account,
            limit=_SAME_TIME_MAX,
            before=ListPosition(place.at_us + 1, ""),
        )
        return any(found_place == place for found_place, _ in places)

    async def near(
        self, search: MessageSearch, *, account: str | None, limit: int
    ) -> tuple[Sequence[MessageSummary], Container[str]]:
        """Return the newest messages, and the names of those after the cursor of a search."""
        new = await self._new_names(search.after, account) if search.after else ()
        page = await self.page(MessageSearch(kind=search.kind), account=account, limit=limit)
        return page.rows, new

    async def _new_names(
        self, after: EventCursor, account: str | None, *, is_settled: bool = True
    ) -> Container[str]:
        """Return the names of the messages after a cursor."""
        names = set[str]()
        for _ in range(PAGES_MAX):
            page = await self._new(after, account, is_settled=is_settled)
            names |= page.new.keys()
            after = page.cursor
            if page.is_complete:
                break
        return names

    async def _new(
        self, after: EventCursor, account: str | None, *, is_settled: bool = True
    ) -> _NewMessages:
        """Return the first messages that were submitted, or received by SMTP, after a cursor,
        oldest first, when it is the turn of the account. Raises NoPlaceError.
        """
        async with self._pages.turn(account or ""):
            batch = await self._feed.read_new(after, is_settled=is_settled)
        new: dict[str, tuple[int, EventCursor]] = {}
        for source, cursor, recorded in batch.events:
            if not source or recorded.step is Step.NOTIFIED:
                name = recorded.submission_id or recorded.queue_id or ""
                new.setdefault(name, (recorded.at_us, cursor))
        return _NewMessages(new, batch.cursor, batch.is_complete)

    async def _behind(
        self, search: MessageSearch, *, account: str | None, limit: int, lookup_s: float | None
    ) -> MessageList:
        """Return the oldest messages after the cursor that match, and the cursor after them.

        Messages whose contents cannot be read in time are after the cursor.
        """
        assert search.after is not None
        after, until_s = search.after, self.clock.real_s() + _LOG_S
        search = replace(search, after=None)
        journeys: list[Journey] = []
        for _ in range(PAGES_MAX):
            page = await self._new(after, account)
            matching = await self._matching(
                search, page.new, account=account, until_s=until_s, lookup_s=lookup_s
            )
            if matching is None:
                break
            for name, (at_us, behind) in page.new.items():
                if len(journeys) == limit:
                    return MessageList(_seen_by(account, journeys[::-1]), after)
                after = behind
                if name in matching:
                    journey = await self._journey_of(matching[name])
                    if journey and search.matches(journey) and _is_submitted_at(journey, at_us):
                        journeys.append(journey)
            after = page.cursor
            if page.is_complete:
                break
        return MessageList(_seen_by(account, journeys[::-1]), after)

    async def _matching(
        self,
        search: MessageSearch,
        names: Iterable[str],
        *,
        account: str | None,
        until_s: float,
        lookup_s: float | None,
    ) -> dict[str, FoundMessage | OpenSubmission] | None:
        """Return the messages that match, by name, between the first and the last of `names`; None
        if they cannot be read in time.
        """
        matching: dict[str, FoundMessage | OpenSubmission] = {}
        times = [*map(_place_us, names)]
        if not times:
            return matching
        search = replace(search, from_us=max(search.from_us, min(times)))
        before: ListPosition | None = ListPosition(max(times), "")
        while before is not None:
            places, before = await self.places.find(
                search, account=account, limit=_READ_MAX, before=before, lookup_s=lookup_s
            )
            matching |= {place.name: message for place, message in places}
            if before is not None and self.clock.real_s() > until_s:
                return None
        return matching

    async def _journey_of(
        self, message: FoundMessage | OpenSubmission | MessageSummary
    ) -> Journey | None:
        name = message.name if isinstance(message, MessageSummary) else _name_of(message)
        if _is_submission(name):
            return await self._by_submission(name)
        return await self._by_queue_id(name)

    async def _recent(
        self, key: str, *, account: str | None, limit: int, added: bool = False
    ) -> list[Journey]:
        key, _ = read_rest_id(key)
        queue_ids = await self._spool.find_queue_ids(key, account=account, limit=limit)
        if queue_ids and (key in queue_ids or _is_submission(key)):  # such a key is unique
            journey = await self._by_queue_id(queue_ids[0], added=added)
            return [journey] if journey else []
        if queue_ids and key.startswith("<"):  # the spool has found all accepted ones
            submissions = [
                submission.submission_id
                for submission in await self._store.open_submissions()
                if submission.message_id == key and account in (None, submission.account)
            ]
        else:
            submissions = [
                *await self._store.find_submission_ids(key, account=account, limit=limit)
            ]
        journeys: dict[str, Journey] = {}
        for queue_id in queue_ids:
            if journey := await self._by_queue_id(queue_id, added=added):
                journeys[journey.submission_id or queue_id] = journey
        for submission_id in submissions:
            if submission_id in journeys:
                continue
            if journey := await self._by_submission(submission_id, added=added):
                journeys[submission_id] = journey
        return sorted(journeys.values(), key=_known_at, reverse=True)[:limit]

    async def _by_queue_id(self, queue_id: str, *, added: bool = False) -> Journey | None:
        transport = await self._spool.journey(queue_id, added=added)
        if transport is None:
            return None
        submission_id = transport.submission_id
        store = await self._store.submission(submission_id) if submission_id else None
        return join(store, transport)

    async def _by_submission(self, submission_id: str, *, added: bool = False) -> Journey | None:
        store = await self._store.submission(submission_id)
        if store is None:
            return None
        queue_ids = await self._spool.find_queue_ids(submission_id, account=None, limit=1)
        transport = await self._spool.journey(queue_ids[0], added=added) if queue_ids else None
        return join(store, transport)


def _seen_by(account: str | None, journeys: list[Journey]) -> list[Journey]:
    return journeys if account is None else [sender_journey(journey) for journey in journeys]


def join(store: SubmissionRecord | None, transport: Journey | None) -> Journey | None:
    """Join the two parts of a journey; either may be missing."""
    if transport is None:
        if store is None:
            return None
        transport = _before_transport(store)
    steps = [*(store.steps if store else ()), *_accepted_by_smtp(transport), *transport.steps]
    # each part is sorted already; the clock may have gone back
    steps.sort(key=lambda step: step.step)
    return replace(
        transport,
        graph_id=(store.facts.graph_id if store else "") or _draft_of(transport.submission_id),
        # step 2 has the client for HTTP, step 5 for SMTP
        client=_moved(steps, "client") or to_builtins(Client()),
        checks=_moved(steps, "checks"),
        steps=tuple(steps),
        recipients=with_reports(_with_reasons(transport.recipients, steps), steps),
        added=transport.added and _with_reasons(transport.added, steps),
    )


def _accepted_by_smtp(transport: Journey) -> Iterator[JourneyStep]:
    """Yield step 4 of mail by SMTP: the client got the 250 when step 5 was committed.

    A report has none, because no client sent it.
    """
    for step in () if transport.submission_id else transport.steps:
        if step.step == Step.POLICY_AND_ROUTING and "about" not in step.detail:
            node = {"node": step.detail["node"]} if "node" in step.detail else {}
            detail = {"queue_id": transport.id, **node}
            yield JourneyStep(int(Step.ACCEPTED), Step.ACCEPTED.title, step.at, detail)


def _before_transport(store: SubmissionRecord) -> Journey:
    """Return the transport's part of the journey, for a submission that the spool does not know."""
    reached, facts = state_before_queue([step.read() for step in store.steps]), store.facts
    state, of_recipients = str(reached.state), str(reached.of_recipients)
    if any(step.step == Step.ACCEPTED for step in store.steps):  # the spool had it
        state = of_recipients = HISTORY_REMOVED
    return Journey(
        id=None,
        graph_id=None,
        submission_id=facts.submission_id,
        message_id=facts.message_id,
        sender=facts.sender,
        subject=facts.subject,
        state=state,
        client={},
        steps=(),
        recipients=tuple(
            Recipient(
                address,
                of_recipients,
                reached.reply if reached.state == RecipientState.HELD else None,
                reply=reached.reply,
                next_attempt=reached.send_at or None,
            )
            for address in facts.recipients
        ),
    )


def _with_reasons(
    recipients: Sequence[Recipient], steps: Sequence[JourneyStep]
) -> tuple[Recipient, ...]:
    reasons = zip(recipients, reasons_of(recipients, steps), strict=True)
    return tuple(
        recipient if recipient.reason == reason else replace(recipient, reason=reason)
        for recipient, reason in reasons
    )


def _moved(steps: Sequence[JourneyStep], name: str) -> dict[str, Any] | None:
    """Remove an object from the details of all steps; return the first one, or None."""
    objects = [step.detail.pop(name) for step in steps if isinstance(step.detail.get(name), dict)]
    return objects[0] if objects else None


def _name_of(message: FoundMessage | OpenSubmission) -> str:
    return message.queue_id if isinstance(message, FoundMessage) else message.submission_id


def _is_submission(key: str) -> bool:
    """Whether a key is a submission id. (An address may contain dots too.)"""
    return "." in key and "@" not in key


def _known_at(journey: Journey) -> tuple[str, str]:
    """Return when a message was queued, or else submitted.

    The id of a draft has only the time when the draft was created.
    """
    queue_id = journey.id or ""
    accepted_us = id_time_us(queue_id)
    if accepted_us is not None:
        return rfc3339(accepted_us), queue_id
    sent = [step.at for step in journey.steps if step.step <= Step.NOTIFIED]
    return max(sent, default=""), ""


def _place_us(name: str) -> int:
    """Return the time of a message in the list, by its name."""
    return (position_of("", name) if _is_submission(name) else position_of(name, "")).at_us


def _is_submitted_at(journey: Journey, at_us: int) -> bool:
    """Whether the submission itself was recorded at this time, and not a remark about it."""
    times = [step.at for step in journey.steps if step.step == Step.NOTIFIED]
    return not times or rfc3339(at_us) in times


def _draft_of(submission_id: str | None) -> str | None:
    return submission_id.partition(".")[0] if submission_id else None


def _row_of_journey(journey: Journey, place: ListPosition) -> MessageSummary:
    """Return the row of a submission that is not in the spool."""
    recipients = journey.recipients
    return row_of(
        OpenSubmission(
            place.name,
            "",
            journey.sender,
            journey.message_id,
            journey.subject,
            tuple(recipient.address for recipient in recipients),
            journey.state,
            reply=recipients[0].reply if recipients else "",
            send_at=(recipients[0].next_attempt or "") if recipients else "",
        )
    )
