"""Conditions of a search on the content of messages: words of the text, attachments, unread copies.

Mailboxes are searched with the index that `$search` uses, what waits in the queue by reading it.
Whose texts may be searched, the search says (MessageSearch.reader); whether there is an attachment
is no secret. One request looks up as many messages as its time allows, the newest first, and at
least one; those that an index has not read yet take time of their own, once.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile

from relay.base.clock import Clock
from relay.base.message.content import Content, octets_of
from relay.base.message.lifecycle import FINAL
from relay.front_door.api.message_source import MessageCopies
from relay.store.journeys.message_list import (
    ALL_MAILBOXES,
    FoundMessage,
    ListedRecipient,
    MessageSearch,
)
from relay.store.journeys.spool_history import CONTENTS_MAX, SpoolHistory
from relay.store.mailbox.errors import NoSuchItemError, StoreUnavailableError
from relay.store.mailbox.index.content_index import (
    CONTENT_BYTES_MAX,
    CopyFacts,
    CopyLookup,
    find_words,
    text_of,
)
from relay.store.mailbox.message_lists import MessageLists
from relay.store.mailbox.messages import Messages

READ_S = 1.0  # for contents that an index has not read yet
_AT_ONCE = 200
_REPEATED_MAX = 20
_COPIES_MAX = 5  # of a message that are looked for: a copy may have been deleted
_Place = tuple[str, str]  # mailbox and id


@dataclass(frozen=True, slots=True)
class ContentSearch:
    """Checks conditions on contents, for Journeys. Raises StoreError and SpoolError."""

    mailboxes: Messages
    spool: SpoolHistory
    copies: MessageCopies
    lists: MessageLists
    clock: Clock

    def begin(self, wanted: MessageSearch, *, lookup_s: float) -> "ContentCheck":
        """Return the check of one request, which takes about `lookup_s`."""
        return ContentCheck(self, wanted, lookup_s)


class ContentCheck:
    """The check of one request: of all its candidates, in parts."""

    def __init__(self, search: ContentSearch, wanted: MessageSearch, lookup_s: float) -> None:
        self._search = search
        self._wanted = wanted
        self._until_s = search.clock.real_s() + lookup_s
        self._read_left_s = READ_S
        self._has_answered = False

    async def matching(self, candidates: Sequence[FoundMessage]) -> Sequence[bool]:
        """Return whether each matches; fewer answers than candidates when the time is over, but
        always one. Raises StoreUnavailableError if not even that is possible now.
        """
        answers: list[bool] = []
        repeated = 0
        while len(answers) < len(candidates):
            if self._has_answered and self._is_over():
                break
            part = [_Candidate(one) for one in candidates[len(answers) :][:_AT_ONCE]]
            await self._check(part)
            known = [one.matches for one in takewhile(lambda one: one.matches is not None, part)]
            if not known and not self._has_answered:
                repeated += 1
                if repeated > _REPEATED_MAX:
                    raise StoreUnavailableError("The messages are being read for the first search.")
                continue
            answers += map(bool, known)
            self._has_answered = True
            if len(known) < len(part):
                break
        return answers

    async def _check(self, part: list["_Candidate"]) -> None:
        if self._wanted.is_unread:
            await self._check_flags(part)
        for one in part:
            is_indexed = self._wanted.indexed is not None and bool(one.found.queue_id)
            asks_content = one.found.words_left or self._wanted.has_attachment
            if self._wanted.tags and one.found.queue_id not in (self._wanted.indexed or ()):
                one.matches = False
            if one.matches is None and (is_indexed or not asks_content):
                one.matches = True
        await self._check_mailboxes(part)
        await self._check_contents([one for one in part if one.has_no_copy])

    def _is_over(self) -> bool:
        return self._search.clock.real_s() >= self._until_s

    @property
    def _reads_queue(self) -> bool:
        """Whether the queue may be looked into: for texts only where all of them may be."""
        return self._wanted.reader == ALL_MAILBOXES or not self._wanted.words

    def _places(self, one: FoundMessage, *, received: bool = False) -> list[_Place]:
        """Return the copies of a message that may be looked up. The sender's is among them unless
        only `received` ones are wanted.
        """
        found: list[_Place] = []
        if one.submission_id and one.account and not received:
            found.append((one.account, one.submission_id.partition(".")[0]))
        recipients = [ListedRecipient(*each) for each in one.recipients]
        found += self._search.copies.places(one.queue_id, recipients)
        reader = self._wanted.reader
        are_open = reader == ALL_MAILBOXES or not (self._wanted.words or received)
        return [place for place in found if are_open or place[0] == reader]

    async def _check_flags(self, part: list["_Candidate"]) -> None:
        """Exclude what is not unread, and cut off what was not looked up in time."""
        left = {one: self._places(one.found, received=True) for one in part}
        unread: set[_Candidate] = set()
        for mailbox, asked in _by_mailbox(left).items():
            if self._is_over() and not left[part[0]]:
                break
            flags: Mapping[str, bool] = {}
            with suppress(NoSuchItemError):
                flags = await self._search.mailboxes.read_flags(mailbox, list(asked))
            for copy_id, candidates in asked.items():
                for one in candidates:
                    left[one].remove((mailbox, copy_id))
                    if not flags.get(copy_id, True):
                        unread.add(one)
        part[:] = takewhile(lambda one: one in unread or not left[one], part)
        for one in part:
            if one not in unread:
                one.matches = False

    async def _check_contents(self, part: Sequence["_Candidate"]) -> None:
        """Decide by what the queue has, as far as the time allows."""
        for at in range(0, len(part), CONTENTS_MAX):
            some = part[at : at + CONTENTS_MAX]
            ids = [one.found.queue_id for one in some if one.waits and self._reads_queue]
            contents = await self._search.spool.read_contents(ids) if ids else {}
            asked = [(one, contents.get(one.found.queue_id)) for one in some]
            await asyncio.to_thread(self._decide, asked)

    def _decide(self, asked: Sequence[tuple["_Candidate", Content | None]]) -> None:
        for number, (one, content) in enumerate(asked):
            if number and self._is_over():
                return
            one.matches = False
            if content is not None:
                text = text_of(octets_of(content).read(0, CONTENT_BYTES_MAX))
                words = one.found.words_left
                has_words = find_words([text], words)[0].issuperset(words)
                one.matches = has_words and (
                    text.has_attachments or not self._wanted.has_attachment
                )

    async def _check_mailboxes(self, part: Sequence["_Candidate"]) -> None:
        """Decide by copies in mailboxes, as far as the time allows."""
        left = {one: self._places(one.found)[:_COPIES_MAX] for one in part if one.matches is None}
        first = next(iter(left), None)
        while first is not None and left:
            for one in [one for one, places in left.items() if not places]:
                one.has_no_copy = True
                del left[one]
            for mailbox, asked in _by_mailbox({one: [left[one][0]] for one in left}).items():
                if self._is_over() and (self._has_answered or first not in left):
                    return
                found = await self._look_up(mailbox, asked)
                for copy_id, candidates in asked.items():
                    for one in candidates:
                        if copy_id in found.unread:
                            del left[one]  # not known
                        elif copy_id in found.found:
                            one.matches = self._is_match(one, found.found[copy_id])
                            del left[one]
                        else:
                            left[one].pop(0)

    async def _look_up(
        self, mailbox: str, asked: Mapping[str, Sequence["_Candidate"]]
    ) -> CopyLookup:
        every = [one for some in asked.values() for one in some]
        words = dict.fromkeys(word for one in every for word in one.found.words_left)
        try:
            found = await self._search.lists.look_up(
                mailbox, list(asked), list(words), read_s=self._read_left_s
            )
        except NoSuchItemError:
            return CopyLookup({})
        self._read_left_s = max(0.0, self._read_left_s - found.read_s)
        self._until_s += found.read_s
        return found

    def _is_match(self, one: "_Candidate", copy: CopyFacts) -> bool:
        has_words = copy.words.issuperset(one.found.words_left)
        return has_words and (copy.has_attachments or not self._wanted.has_attachment)


@dataclass(eq=False, slots=True)
class _Candidate:
    """A message; `matches` is None until it is known."""

    found: FoundMessage
    matches: bool | None = None
    has_no_copy: bool = False  # in a mailbox

    @property
    def waits(self) -> bool:
        """Whether the queue may have its content."""
        states = (state for _, _, state in self.found.recipients)
        return bool(self.found.queue_id) and any(state not in FINAL for state in states)


def _by_mailbox(
    places: Mapping["_Candidate", Sequence[_Place]],
) -> dict[str, dict[str, list["_Candidate"]]]:
    """Return the candidates by id, by mailbox, in their order."""
    found: dict[str, dict[str, list[_Candidate]]] = {}
    for one, some in places.items():
        for mailbox, copy_id in some:
            found.setdefault(mailbox, {}).setdefault(copy_id, []).append(one)
    return found
