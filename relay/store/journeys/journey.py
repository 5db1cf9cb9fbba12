"""Build the journey of a message: one JSON document from the submission log and the spool.

The document is the message of docs/names.md, the same for the API and the command line. An
account sees its own messages only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock, id_time_us, rfc3339, time_us_of, wall_offset_us
from relay.base.message.envelope import Client
from relay.base.message.lifecycle import BEFORE_QUEUE, SubmissionState
from relay.base.message.rest_id import read_rest_id
from relay.store.journeys.document import Journey, JourneyStep, Recipient
from relay.store.journeys.events import Step
from relay.store.journeys.list_places import ListPlaces, is_between
from relay.store.journeys.message_list import (
    SCAN_MAX,
    FoundMessage,
    ListCursor,
    ListPosition,
    MessageSearch,
    MessageSummary,
    OpenSubmission,
    cursor_at,
    cursor_before,
    position_of,
    row_of,
)
from relay.store.journeys.open_submissions import state_before_queue
from relay.store.journeys.sender_view import sender_journey
from relay.store.journeys.sentences import reasons_of, with_reports
from relay.store.journeys.spool_history import SpoolHistory
from relay.store.journeys.submission_log import SubmissionLog, SubmissionRecord

_SAME_TIME_MAX = 100  # messages of one millisecond, to find one
_LOG_S = 10.0  # a client waits for 30 s
_READ_MAX = 1000  # candidates, to find those that match
_WINDOW_US = 10_000_000  # a message is visible earlier than this after its time
PAGES_MAX = 20  # that one call reads, each of up to SCAN_MAX messages
_NEIGHBOURS_READ = 200  # names at a time
_NEIGHBOUR_LOOKS_MAX = 3
_ALL = MessageSearch()


class MessageList(Struct, frozen=True):
    """Journeys, newest first, and the cursors behind which later and older messages are."""

    messages: list[Journey]
    cursor: ListCursor
    older: ListPosition | None = None


class ListPage(Struct, frozen=True):
    """Rows of the message list, newest first. `older` is the place behind which older messages may
    be, None at the end of the list.
    """

    rows: tuple[MessageSummary, ...]
    older: ListPosition | None

    def as_json(self) -> dict[str, Any]:
        """Return the answer of GET /log: the rows, and a time before which older ones may be."""
        older = None if self.older is None else rfc3339(self.older.at_us + 1)
        return {"messages": [row.as_json() for row in self.rows], "older": older}


class Journeys:
    """Joins the steps of submission log and spool by submission id."""

    def __init__(self, spool: SpoolHistory, store: SubmissionLog, *, clock: Clock) -> None:
        self._spool = spool
        self._store = store
        self._clock = clock
        self.places = ListPlaces(spool, store)

    async def journey(
        self, key: str, *, account: str | None, added: bool = False
    ) -> Journey | None:
        """Return the newest message that `key` names, or None; only of `account` if it is given.
        Without an account, `added` has the copies that rules and milters added in it.

        `key` is a Graph id, submission id, queue id, Message-ID, an address, or "last".
        """
        added = added and account is None
        found = await self._recent(key, account=account, limit=1, added=added)
        return _seen_by(account, found)[0] if found else None

    async def mailbox_of(self, submission_id: str) -> str:
        """Return the account in whose mailbox the message was created, "" if that is unknown."""
        found = await self._store.submission(submission_id)
        return found.facts.account if found else ""

    async def search(
        self,
        wanted: MessageSearch,
        *,
        account: str | None,
        limit: int,
        before: ListPosition | None = None,
        lookup_s: float | None = None,
    ) -> MessageList:
        """Return the newest messages that match, or those older than `before`, and the cursor of
        this moment.

        With `after`, return the oldest behind it; the cursor is then before those that are left
        out. A message that becomes visible meanwhile is not in the list, but after the cursor.
        """
        if wanted.after is not None:
            return await self._behind(
                wanted, wanted.after, account=account, limit=limit, lookup_s=lookup_s
            )
        since_us = self._clock.time_us() - _WINDOW_US
        visible = await self._visible(since_us)
        page = await self.page(
            wanted, account=account, before=before, limit=limit, lookup_s=lookup_s
        )
        found: list[Journey] = []
        for row in page.rows:
            journey = await self._journey_of(row)
            if journey is None or not wanted.matches(journey):
                continue
            name = row.submission_id or row.id
            if _submitted_us(journey) <= since_us or name in visible:
                found.append(journey)
        found = _seen_by(account, found)
        return MessageList(found, cursor_at(since_us, visible), page.older)

    async def page(
        self,
        wanted: MessageSearch,
        *,
        account: str | None,
        limit: int,
        before: ListPosition | None = None,
        lookup_s: float | None = None,
    ) -> ListPage:
        """Return the newest messages that match, or those older than `before`, as rows.

        `after` is ignored. The cost does not grow with the number of messages, nor of steps. What
        the time for contents is not enough for is on the next page.
        """
        if wanted.key:
            return await self._page_of_key(wanted, account=account, limit=limit, before=before)
        shown, older = await self.places.find(
            wanted, account=account, limit=limit, before=before, lookup_s=lookup_s
        )
        return ListPage(await self._rows([one for _, one in shown], added=wanted.added), older)

    async def log(
        self, wanted: MessageSearch, *, account: str | None, limit: int, pages: int = PAGES_MAX
    ) -> ListPage:
        """Return the newest messages that match, as page() does, of as many pages as are needed for
        `limit`, at most `pages`, and no further one after _LOG_S.
        """
        began_s = self._clock.real_s()
        rows: tuple[MessageSummary, ...] = ()
        before: ListPosition | None = None
        for _ in range(pages):
            left = min(limit - len(rows), _READ_MAX)
            page = await self.page(wanted, account=account, limit=left, before=before)
            rows, before = (*rows, *page.rows), page.older
            is_enough = len(rows) >= limit or self._clock.real_s() - began_s > _LOG_S
            if before is None or is_enough:
                break
        return ListPage(rows, before)

    async def names(
        self, wanted: MessageSearch, *, account: str | None, limit: int
    ) -> tuple[list[str], bool]:
        """Return the names of the newest messages that match, at most `limit`, and whether there
        may be more.
        """
        if wanted.key:
            page = await self.page(wanted, account=account, limit=limit)
            return [row.name for row in page.rows], page.older is not None
        began_s, names = self._clock.real_s(), list[str]()
        before: ListPosition | None = None
        wanted = await self.places.with_index(wanted)
        history = replace(wanted.without_content(), reader="", indexed=None, added=False)
        indexed = wanted.indexed if account is None and history == _ALL else None
        wanted = replace(wanted, indexed={}) if indexed else wanted  # those that it does not have
        for _ in range(PAGES_MAX):
            found, before = await self.places.find(
                wanted, account=account, limit=limit - len(names), before=before
            )
            names += [_name_of(one) for _, one in found]
            is_enough = len(names) >= limit or self._clock.real_s() - began_s > _LOG_S
            if before is None or is_enough:
                break
        names = sorted([*indexed, *names], reverse=True) if indexed else names
        return names[:limit], before is not None or len(names) > limit

    async def neighbours(
        self,
        wanted: MessageSearch,
        place: ListPosition,
        *,
        account: str | None,
        begin: ListPosition | None,
    ) -> tuple[str, str]:
        """Return the names of the messages that match next to a place: of the newer and of the
        older one, "" if there is none.

        The newer one is looked for among some hundred messages from the place `begin` on.
        """
        if wanted.key:
            return "", ""
        older, _ = await self.places.find(wanted, account=account, limit=1, before=place)
        newer = ""
        for _ in range(_NEIGHBOUR_LOOKS_MAX):
            places, begin = await self.places.find(
                wanted, account=account, limit=_NEIGHBOURS_READ, before=begin
            )
            newer = next(
                (_name_of(one) for at, one in reversed(places) if at.order < place.order), newer
            )
            if begin is None or begin.order >= place.order:
                return newer, _name_of(older[0][1]) if older else ""
        return "", _name_of(older[0][1]) if older else ""

    async def rows(self, names: Sequence[str], *, account: str | None) -> Sequence[MessageSummary]:
        """Return the rows of the messages with these queue ids and submission ids; those that are
        gone are left out.
        """
        queue_ids = [name for name in names if not _is_submission(name)]
        found = list(await self._spool.summaries(queue_ids, account=account)) if queue_ids else []
        for name in names:
            if _is_submission(name):
                wanted = MessageSearch(key=name)
                page = await self._page_of_key(wanted, account=account, limit=1, before=None)
                found += page.rows
        return found

    async def counts(self, *, account: str | None, limit: int) -> tuple[int, Mapping[str, int]]:
        """Return the number of messages, at most `limit`, and how many of them, the newest, have a
        recipient in each state, or are in a state before step 4.
        """
        submissions = await self._store.open_submissions()
        total, counts = await self._spool.count_states(account=account, limit=limit)
        waiting = await self._before_queue(submissions, account=account, limit=limit)
        return min(limit, total + waiting.total()), {**counts, **waiting}

    async def count_before_queue(self) -> Mapping[str, int]:
        """Return how many messages are in each state before step 4, the newest of them."""
        submissions = await self._store.open_submissions()
        found = await self._before_queue(submissions, account=None, limit=SCAN_MAX)
        return {state: found[state] for state in SubmissionState}

    async def _before_queue(
        self, submissions: Sequence[OpenSubmission], *, account: str | None, limit: int
    ) -> Counter[str]:
        """Count the newest submissions in each state before step 4."""
        found = [
            one
            for one in submissions
            if one.state in BEFORE_QUEUE and account in (None, one.account)
        ][-limit:]
        # until its end the log has what the spool has accepted as being converted
        names = [one.submission_id for one in found if one.state == SubmissionState.CONVERTING]
        accepted = set(await self._spool.accepted_submissions(names)) if names else set()
        return Counter(one.state for one in found if one.submission_id not in accepted)

    async def addresses(self, *, account: str | None) -> Sequence[str]:
        """Return senders and recipients of the newest messages, see recent_addresses()."""
        return await self._spool.recent_addresses(account=account, limit=SCAN_MAX)

    async def _rows(
        self, found: Sequence[FoundMessage | OpenSubmission], *, added: bool
    ) -> tuple[MessageSummary, ...]:
        ids = [one.queue_id for one in found if isinstance(one, FoundMessage)]
        ahead_us = wall_offset_us(self._clock)
        summaries = await self._spool.summaries(ids, account=None, added=added) if ids else ()
        in_spool = {one.name: one for one in summaries}
        rows = []
        for one in found:
            if isinstance(one, OpenSubmission):
                rows.append(row_of(one))
            elif (row := in_spool.get(one.queue_id)) is not None:
                next_us = row.next_attempt_us
                rows.append(
                    row if next_us is None else replace(row, next_attempt_us=next_us + ahead_us)
                )
        return tuple(rows)

    async def _page_of_key(
        self, wanted: MessageSearch, *, account: str | None, limit: int, before: ListPosition | None
    ) -> ListPage:
        """Return the messages that a name names; an address is none."""
        key = wanted.key
        if "@" in key and not key.startswith("<"):
            key = f"<{key}>"
        rows: list[MessageSummary] = []
        for journey in await self._recent(key, account=account, limit=limit):
            place = position_of(journey.id or "", journey.submission_id or "")
            if wanted.matches(journey) and is_between(place, before, None):
                if not await self._matches_beyond(wanted, place, account=account):
                    continue
                if journey.id:
                    rows += await self._rows([FoundMessage(journey.id, "")], added=wanted.added)
                else:
                    rows.append(_row_of_journey(journey, place))
        return ListPage(tuple(rows), None)

    async def _matches_beyond(
        self, wanted: MessageSearch, place: ListPosition, *, account: str | None
    ) -> bool:
        """Whether the message at a place meets conditions that its journey does not decide."""
        if not wanted.needs_more_than_journey:
            return True
        if not wanted.is_in_time(place.at_us):
            return False
        found, _ = await self.places.find(
            replace(wanted, key="", from_us=place.at_us), account=account, limit=_SAME_TIME_MAX,
            before=ListPosition(place.at_us + 1, ""),
        )  # fmt: skip
        return any(one == place for one, _ in found)

    async def _visible(self, since_us: int) -> dict[str, int]:
        """Return the times, by name, of all messages since then."""
        submissions = await self._store.search(_ALL, account=None, since_us=since_us)
        messages = await self._spool.search(_ALL, account=None, since_us=since_us, limit=SCAN_MAX)
        accepted = {one.name: one.at_us for one in messages}
        return accepted | {one.name: one.at_us for one in submissions}

    async def _behind(
        self,
        wanted: MessageSearch,
        after: ListCursor,
        *,
        account: str | None,
        limit: int,
        lookup_s: float | None,
    ) -> MessageList:
        """Return the oldest messages after a cursor, and the cursor of this moment."""
        since_us = self._clock.time_us() - _WINDOW_US
        visible = await self._visible(since_us)
        found: list[Journey] = []
        if wanted.client:
            wanted, _ = await self.places.with_submissions(wanted)
        wanted = await self.places.with_index(wanted)
        candidates = await self._candidates(wanted, after, account=account)
        unread: Sequence[FoundMessage] = ()
        check = self.places.begin(wanted, lookup_s)
        for number, candidate in enumerate(candidates):
            if len(found) == limit or number == max(limit, _READ_MAX):
                unread = candidates[number:]
                break
            journey = await self._journey_of(candidate)
            if journey is None or not wanted.matches(journey):
                continue
            at_us = _submitted_us(journey)
            is_new = at_us > since_us and candidate.name not in visible
            if is_new or not after.is_after(candidate.name, at_us):
                continue
            if wanted.needs_content:
                asked = candidate if candidate.queue_id else _with_words(candidate, journey, wanted)
                answers = await check([asked])
                if not answers:
                    unread = candidates[number:]
                    break
                if not answers[0]:
                    continue
            found.append(journey)
        found = _seen_by(account, sorted(found, key=_known_at, reverse=True))
        if unread:
            names = visible | {one.name: one.at_us for one in candidates}
            for one in unread:
                names.pop(one.name, None)
            return MessageList(found, cursor_before(unread[0].at_us, since_us, names))
        return MessageList(found, cursor_at(since_us, visible))

    async def _candidates(
        self, wanted: MessageSearch, after: ListCursor, *, account: str | None
    ) -> list[FoundMessage]:
        """Return the messages after a cursor that may match, each once, oldest first.

        The log is read first: what it has as accepted is in the spool by then.
        """
        submissions = await self._store.search(wanted, account=account, since_us=after.since_us)
        messages = await self._spool.search(
            wanted, account=account, since_us=after.since_us, limit=SCAN_MAX
        )
        submissions = [one for one in submissions if after.is_after(one.name, one.at_us)]
        newer = {one.name: one.at_us for one in submissions}
        messages = [
            replace(one, at_us=newer.get(one.name, one.at_us))
            for one in messages
            if one.name in newer or not one.submission_id
        ]
        in_spool = {one.name for one in messages}
        waiting = [
            one
            for one in submissions
            if one.matches
            and one.name not in in_spool
            and wanted.is_in_time(one.at_us)
            and wanted.matches_origin(one.account, "", one.name)
            and not wanted.larger_than_bytes  # the size is not known yet
        ]
        return sorted([*messages, *waiting], key=lambda one: one.at_us)

    async def _journey_of(self, found: FoundMessage | MessageSummary) -> Journey | None:
        queue_id = found.queue_id if isinstance(found, FoundMessage) else found.id
        if queue_id:
            return await self._by_queue_id(queue_id)
        return await self._by_submission(found.name)

    async def _recent(
        self, key: str, *, account: str | None, limit: int, added: bool = False
    ) -> list[Journey]:
        key, _ = read_rest_id(key)
        queue_ids = await self._spool.find_queue_ids(key, account=account, limit=limit)
        if queue_ids and (key in queue_ids or _is_submission(key)):  # the name is unique
            journey = await self._by_queue_id(queue_ids[0], added=added)
            return [journey] if journey else []
        if queue_ids and key.startswith("<"):  # the others are accepted: the spool has found them
            submissions = [
                one.submission_id
                for one in await self._store.open_submissions()
                if one.message_id == key and account in (None, one.account)
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


def _seen_by(account: str | None, found: list[Journey]) -> list[Journey]:
    return found if account is None else [sender_journey(one) for one in found]


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
        client=_client_of(steps),
        checks=next((one.detail.pop("checks") for one in steps if "checks" in one.detail), None),
        steps=tuple(steps),
        recipients=with_reports(_with_reasons(transport.recipients, steps), steps),
    )


def _accepted_by_smtp(transport: Journey) -> Iterator[JourneyStep]:
    """Yield step 4 of mail by SMTP, whose client got the 250 when step 5 was committed; none of a
    report, which no client sent.
    """
    for step in () if transport.submission_id else transport.steps:
        if step.step == Step.POLICY_AND_ROUTING and "about" not in step.detail:
            node = {"node": step.detail["node"]} if "node" in step.detail else {}
            detail = {"queue_id": transport.id, **node}
            yield JourneyStep(int(Step.ACCEPTED), Step.ACCEPTED.title, step.at, detail)


def _before_transport(store: SubmissionRecord) -> Journey:
    """Return the transport's part of a submission that the spool does not know."""
    found, facts = state_before_queue({one.step: one.detail for one in store.steps}), store.facts
    return Journey(
        id=None, graph_id=None, submission_id=facts.submission_id, message_id=facts.message_id,
        sender=facts.sender, subject=facts.subject, state=str(found.state), client={}, steps=(),
        recipients=tuple(
            Recipient(
                address, str(found.of_recipients), reply=found.reply,
                next_attempt=found.send_at or None,
            )
            for address in facts.recipients
        ),
    )  # fmt: skip


def _with_reasons(
    recipients: Sequence[Recipient], steps: Sequence[JourneyStep]
) -> tuple[Recipient, ...]:
    reasons = zip(recipients, reasons_of(recipients, steps), strict=True)
    return tuple(
        one if one.reason == reason else replace(one, reason=reason) for one, reason in reasons
    )


def _client_of(steps: Sequence[JourneyStep]) -> dict[str, str]:
    """Remove the client from the details: step 2 has it for HTTP, step 5 for SMTP."""
    found = [step.detail.pop("client") for step in steps if "client" in step.detail]
    return found[0] if found else Client().as_json()


def _name_of(found: FoundMessage | OpenSubmission) -> str:
    return found.queue_id if isinstance(found, FoundMessage) else found.submission_id


def _is_submission(key: str) -> bool:
    """Whether a name known to the spool is a submission id; an address may contain dots as well."""
    return "." in key and "@" not in key


def _known_at(journey: Journey) -> tuple[str, str]:
    """Return when it was queued, or else submitted; a draft's id has its creation time only."""
    queue_id = journey.id or ""
    accepted_us = id_time_us(queue_id)
    if accepted_us is not None:
        return rfc3339(accepted_us), queue_id
    sent = [step.at for step in journey.steps if step.step <= Step.NOTIFIED]
    return max(sent, default=""), ""


def _submitted_us(journey: Journey) -> int:
    """Return when a message was submitted, or received by SMTP."""
    times = {step.step: step.at for step in reversed(journey.steps)}
    for step in (Step.NOTIFIED, Step.CREATED, Step.POLICY_AND_ROUTING):
        if step in times:
            return time_us_of(times[step])
    return id_time_us(journey.id or "") or 0


def _draft_of(submission_id: str | None) -> str | None:
    return submission_id.partition(".")[0] if submission_id else None


def _with_words(found: FoundMessage, journey: Journey, wanted: MessageSearch) -> FoundMessage:
    """Return a submission with the words that its content must have."""
    addresses = [one.address for one in journey.recipients]
    words = wanted.words_of_text(journey.sender, journey.subject, addresses)
    return replace(found, words_left=words)


def _row_of_journey(journey: Journey, place: ListPosition) -> MessageSummary:
    """Return the row of a submission that is not in the spool."""
    recipients = journey.recipients
    return row_of(
        OpenSubmission(
            place.name, "", journey.sender, journey.message_id, journey.subject,
            tuple(one.address for one in recipients), journey.state,
            reply=recipients[0].reply if recipients else "",
            send_at=(recipients[0].next_attempt or "") if recipients else "",
        )
    )  # fmt: skip
