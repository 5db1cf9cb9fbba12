"""Find the messages of a page of the list: by their history, and by their contents.

The history is in spool and submission log, contents are checked by another room. Each call is
bounded; what it did not reach is on the next page.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import takewhile

from msgspec.structs import replace

from relay.base.turns import Turns
from relay.store.journeys.message_list import (
    ALL_MAILBOXES,
    CLOCK_MARGIN_US,
    REPORT,
    SCAN_MAX,
    FoundMessage,
    FoundPage,
    IndexFailedError,
    ListPosition,
    MessageSearch,
    OpenSubmission,
    SearchedNumber,
    SearchTerm,
    TextIndex,
    TextSearch,
    position_of,
)
from relay.store.journeys.spool_history import SpoolHistory
from relay.store.journeys.submission_log import SubmissionLog

_SEARCHES_MAX = 4  # in progress: some wait for mailboxes while another one reads the spool
_LOOKUP_S = 0.03
_CHUNK = 400  # messages whose contents are checked at once
_LOOKS_MAX = 3  # for a page, while submissions are accepted
Place = tuple[ListPosition, FoundMessage | OpenSubmission]


# Returns whether the content of each candidate matches. When the time is over, it returns fewer
# answers than candidates, or none.
ContentCheck = Callable[[Sequence[FoundMessage]], Awaitable[Sequence[bool]]]


async def _no_contents(candidates: Sequence[FoundMessage]) -> Sequence[bool]:
    """Return that no message meets a condition on contents."""
    return [False] * len(candidates)


class ListPlaces:
    """Finds the messages of a page of the list, and their places.

    `contents` begins the check of a request; the number is about how many seconds it may take. (It
    is ContentSearch of relay.front_door.api.) Without it, no message meets a condition on contents.
    `lookup_s` is this time for a page in the browser.
    """

    def __init__(self, spool: SpoolHistory, store: SubmissionLog) -> None:
        self._spool = spool
        self._store = store
        self._turns = Turns("searches", _SEARCHES_MAX)
        self.contents: Callable[[MessageSearch, float], ContentCheck] | None = None
        self.index: TextIndex | None = None
        self.lookup_s = _LOOKUP_S

    def turn(self, account: str | None) -> AbstractAsyncContextManager[None]:
        """Wait until a client of the account, or one who sees all messages, may search. Raises
        NoPlaceError.
        """
        return self._turns.turn(account or "")

    def begin(self, search: MessageSearch, lookup_s: float | None = None) -> ContentCheck:
        """Begin the check of contents of a request."""
        if self.contents is None:
            return _no_contents
        time_s = self.lookup_s if lookup_s is None else lookup_s
        return self.contents(search, time_s)

    async def find(
        self,
        search: MessageSearch,
        *,
        account: str | None,
        limit: int,
        before: ListPosition | None,
        lookup_s: float | None = None,
    ) -> tuple[list[Place], ListPosition | None]:
        """Return the places of messages that match, and the place after which older ones may be."""
        if search.until_us:
            end = ListPosition(search.until_us - 1, "")
            before = max(before or end, end, key=lambda place: place.order)
        search = await self.with_index(search)
        if not search.needs_content:
            return await self._find_by_history(search, account=account, limit=limit, before=before)
        matching: list[Place] = []
        check, read = self.begin(search, lookup_s), 0
        known = search.indexed or ()
        chunk = limit + 1 if known else _CHUNK
        while True:
            places, older = await self._find_by_history(
                search, account=account, limit=chunk, before=before
            )
            candidates = [
                message if isinstance(message, FoundMessage) else message.found(search)
                for _, message in places
            ]
            asked = [message for message in candidates if message.queue_id not in known]
            async with self.turn(account):
                checked = iter(await check(asked) if asked else ())
            are_known = (message.queue_id in known or next(checked, None) for message in candidates)
            answers = list(takewhile(lambda answer: answer is not None, are_known))
            for place, matches in zip(places, answers, strict=False):
                if matches and len(matching) == limit:
                    return matching, matching[-1][0]
                if matches:
                    matching.append(place)
            if len(answers) < len(places):
                return matching, places[len(answers) - 1][0] if answers else before
            read += len(places)
            if older is None or len(places) < chunk or read >= SCAN_MAX:
                return matching, older
            before = older

    async def with_index(self, search: MessageSearch) -> MessageSearch:
        """Return the search with the messages that the index finds, if the index has all texts."""
        words = search.words if search.searches_text else ()
        is_other = bool(words or search.is_unread) and search.reader != ALL_MAILBOXES
        is_known = search.indexed is not None or search.kind == REPORT or not search.needs_content
        if self.index is None or is_other or is_known:
            return search
        numbers = (SearchedNumber("attachments", 1),) if search.has_attachment else ()
        terms = tuple(map(SearchTerm, words))
        text_search = TextSearch(terms, numbers, search.tags, search.is_unread)
        try:
            answer = await self.index.search(text_search)
        except IndexFailedError:
            return search
        if not answer.is_complete:
            return search
        return replace(search, indexed=dict.fromkeys(answer.queue_ids))

    async def _find_by_history(
        self, search: MessageSearch, *, account: str | None, limit: int, before: ListPosition | None
    ) -> tuple[list[Place], ListPosition | None]:
        """Return what find() does, without the conditions on contents."""
        # The log is read first: the spool has all that the log records as accepted. What the spool
        # accepts after that is looked up in the spool again.
        read_to_us = 0
        if search.client:
            search, read_to_us = await self.with_submissions(search, before)
        submissions = await self._store.open_submissions()
        for _ in range(_LOOKS_MAX):
            spooled = FoundPage((), None)
            if not search.is_before_queue:
                async with self.turn(account):
                    spooled = await self._spool.find_page(
                        search, account=account, before=before, limit=limit + 1
                    )
            places: dict[ListPosition, FoundMessage | OpenSubmission] = {}
            for submission in submissions:
                if account not in (None, submission.account):
                    continue
                place = position_of("", submission.submission_id)
                is_on_page = is_between(place, before, spooled.reached)
                if is_on_page and search.is_in_time(place.at_us) and submission.matches(search):
                    places[place] = submission
            for message in spooled.messages:
                places[position_of(message.queue_id, message.submission_id)] = message
            newest = sorted(places, key=lambda place: place.order)
            read = newest[: 2 * limit + 1]
            current = await self._without_accepted([(place, places[place]) for place in read])
            if len(current) == len(read):
                break
            accepted = set(read) - {place for place, _ in current}
            submissions = [
                submission
                for submission in submissions
                if position_of("", submission.submission_id) not in accepted
            ]
        older = spooled.reached if len(newest) == len(read) else read[-1]
        if len(current) > limit:
            older = current[limit - 1][0]
        if older is None and read_to_us:
            older = ListPosition(read_to_us - 1, "")
        return current[:limit], older

    async def with_submissions(
        self, search: MessageSearch, before: ListPosition | None = None
    ) -> tuple[MessageSearch, int]:
        """Return the search with the submissions of its client, and the time from which on it has
        them.

        The time is 0 if it has all.
        """
        until_us = before.at_us + 1 if before else search.until_us
        of_log = replace(
            search,
            from_us=max(0, search.from_us - CLOCK_MARGIN_US),
            until_us=until_us and until_us + CLOCK_MARGIN_US,
        )
        names, read_to_us = await self._store.submitted_by(of_log)
        from_us = max(search.from_us, read_to_us)
        return replace(search, submissions=names, from_us=from_us), read_to_us

    async def _without_accepted(self, places: Sequence[Place]) -> list[Place]:
        """Leave out submissions that the spool has accepted: there they did not match."""
        names = [
            message.submission_id for _, message in places if isinstance(message, OpenSubmission)
        ]
        accepted = set(await self._spool.accepted_submissions(names)) if names else set()
        return [
            (place, message)
            for place, message in places
            if isinstance(message, FoundMessage) or message.submission_id not in accepted
        ]


def is_between(
    place: ListPosition, before: ListPosition | None, reached: ListPosition | None
) -> bool:
    """Whether a place is on a page: older than `before`, and reached by a scan that ended there."""
    return (before is None or place.order > before.order) and (
        reached is None or place.order < reached.order
    )
