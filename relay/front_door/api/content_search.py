"""Conditions of a search on the content of messages: words of the text, attachments, unread copies.

Mailboxes are searched with the index that `$search` uses; messages in the queue are read.
MessageSearch.reader says whose texts may be searched; whether there is an attachment is no secret.
One request looks up as many messages as its time allows, the newest first, and at least one.
Messages that an index has not read yet get additional time, once.
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
from relay.store.mailbox.index import content_index
from relay.store.mailbox.message_lists import MessageLists
from relay.store.mailbox.messages import Messages

READ_S = 1.0  # for contents that an index has not read yet
_AT_ONCE = 200
_REPEATED_MAX = 20
_COPIES_MAX = 5  # copies of a message that are looked for: some may be deleted
_Place = tuple[str, str]  # mailbox and id


@dataclass(frozen=True, slots=True)
class ContentSearch:
    """Checks conditions on contents, for Journeys. Raises StoreError and SpoolError."""

    mailboxes: Messages
    spool: SpoolHistory
    copies: MessageCopies
    lists: MessageLists
    clock: Clock

    def begin(self, conditions: MessageSearch, *, lookup_s: float) -> "ContentCheck":
        """Return the check of one request, which takes about `lookup_s`."""
        return ContentCheck(self, conditions, lookup_s)


class ContentCheck:
    """The check of the candidates of one request, in parts."""

    def __init__(self, search: ContentSearch, conditions: MessageSearch, lookup_s: float) -> None:
        self._search = search
        self._conditions = conditions
        self._until_s = search.clock.real_s() + lookup_s
        self._read_left_s = READ_S
        self._has_answered = False

    async def matching(self, candidates: Sequence[FoundMessage]) -> Sequence[bool]:
        """Return for each candidate whether it matches.

        When the time is over there are fewer answers than candidates, but at least one. Raises
        StoreUnavailableError if not even one is possible now.
        """
        answers: list[bool] = []
        repeated = 0
        while len(answers) < len(candidates):
            if self._has_answered and self._is_over():
                break
            part = [_Candidate(candidate) for candidate in candidates[len(answers) :][:_AT_ONCE]]
            await self._check(part)
            known = [
                candidate.matches
                for candidate in takewhile(lambda candidate: candidate.matches is not None, part)
            ]
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
        if self._conditions.is_unread:
            await self._check_flags(part)
        indexed = self._conditions.indexed
        for candidate in part:
            queue_id = candidate.message.queue_id
            is_indexed = indexed is not None and bool(queue_id)
            asks_content = candidate.message.words_left or self._conditions.has_attachment
            if self._conditions.tags and queue_id not in (indexed or ()):
                candidate.matches = False
            if candidate.matches is None and (is_indexed or not asks_content):
                candidate.matches = True
        await self._check_mailboxes(part)
        await self._check_contents([candidate for candidate in part if candidate.has_no_copy])

    def _is_over(self) -> bool:
        return self._search.clock.real_s() >= self._until_s

    @property
    def _reads_queue(self) -> bool:
        """Whether the queue may be read; for texts, only if the reader may read all texts."""
        return self._conditions.reader == ALL_MAILBOXES or not self._conditions.words

    def _places(self, message: FoundMessage, *, received: bool = False) -> list[_Place]:
        """Return the copies of a message that may be looked up. The sender's is among them unless
        only `received` copies are asked for.
        """
        places: list[_Place] = []
        if message.submission_id and message.account and not received:
            places.append((message.account, message.submission_id.partition(".")[0]))
        recipients = [ListedRecipient(*fields) for fields in message.recipients]
        places += self._search.copies.places(message.queue_id, recipients)
        reader = self._conditions.reader
        are_open = reader == ALL_MAILBOXES or not (self._conditions.words or received)
        return [place for place in places if are_open or place[0] == reader]

    async def _check_flags(self, part: list["_Candidate"]) -> None:
        """Exclude messages that are read, and cut off those that were not looked up in time."""
        left = {candidate: self._places(candidate.message, received=True) for candidate in part}
        unread: set[_Candidate] = set()
        for mailbox, asked in _by_mailbox(left).items():
            if self._is_over() and not left[part[0]]:
                break
            flags: Mapping[str, bool] = {}
            with suppress(NoSuchItemError):
                flags = await self._search.mailboxes.read_flags(mailbox, list(asked))
            for copy_id, candidates in asked.items():
                for candidate in candidates:
                    left[candidate].remove((mailbox, copy_id))
                    if not flags.get(copy_id, True):
                        unread.add(candidate)
        part[:] = takewhile(lambda candidate: candidate in unread or not left[candidate], part)
        for candidate in part:
            if candidate not in unread:
                candidate.matches = False

    async def _check_contents(self, part: Sequence["_Candidate"]) -> None:
        """Decide by the contents in the queue, as far as the time allows."""
        for at in range(0, len(part), CONTENTS_MAX):
            batch = part[at : at + CONTENTS_MAX]
            ids = [
                candidate.message.queue_id
                for candidate in batch
                if candidate.waits and self._reads_queue
            ]
            contents = await self._search.spool.read_contents(ids) if ids else {}
            asked = [(candidate, contents.get(candidate.message.queue_id)) for candidate in batch]
            await asyncio.to_thread(self._decide, asked)

    def _decide(self, asked: Sequence[tuple["_Candidate", Content | None]]) -> None:
        for number, (candidate, content) in enumerate(asked):
            if number and self._is_over():
                return
            candidate.matches = False
            if content is not None:
                text = content_index.text_of(
                    octets_of(content).read(0, content_index.CONTENT_BYTES_MAX)
                )
                words = candidate.message.words_left
                has_words = content_index.find_words([text], words)[0].issuperset(words)
                candidate.matches = has_words and (
                    text.has_attachments or not self._conditions.has_attachment
                )

    async def _check_mailboxes(self, part: Sequence["_Candidate"]) -> None:
        """Decide by copies in mailboxes, as far as the time allows."""
        left = {
            candidate: self._places(candidate.message)[:_COPIES_MAX]
            for candidate in part
            if candidate.matches is None
        }
        first = next(iter(left), None)
        while first is not None and left:
            for candidate in [candidate for candidate, places in left.items() if not places]:
                candidate.has_no_copy = True
                del left[candidate]
            firsts = {candidate: places[:1] for candidate, places in left.items()}
            for mailbox, asked in _by_mailbox(firsts).items():
                if self._is_over() and (self._has_answered or first not in left):
                    return
                copies = await self._look_up(mailbox, asked)
                for copy_id, candidates in asked.items():
                    for candidate in candidates:
                        if copy_id in copies.unread:
                            del left[candidate]  # not known
                        elif copy_id in copies.found:
                            candidate.matches = self._is_match(candidate, copies.found[copy_id])
                            del left[candidate]
                        else:
                            left[candidate].pop(0)

    async def _look_up(
        self, mailbox: str, asked: Mapping[str, Sequence["_Candidate"]]
    ) -> content_index.CopyLookup:
        every = [candidate for candidates in asked.values() for candidate in candidates]
        words = dict.fromkeys(word for candidate in every for word in candidate.message.words_left)
        try:
            copies = await self._search.lists.look_up(
                mailbox, list(asked), list(words), read_s=self._read_left_s
            )
        except NoSuchItemError:
            return content_index.CopyLookup({})
        self._read_left_s = max(0.0, self._read_left_s - copies.read_s)
        self._until_s += copies.read_s
        return copies

    def _is_match(self, candidate: "_Candidate", copy: content_index.CopyFacts) -> bool:
        has_words = copy.words.issuperset(candidate.message.words_left)
        return has_words and (copy.has_attachments or not self._conditions.has_attachment)


@dataclass(eq=False, slots=True)
class _Candidate:
    """A message; `matches` is None until it is known."""

    message: FoundMessage
    matches: bool | None = None
    has_no_copy: bool = False  # in a mailbox

    @property
    def waits(self) -> bool:
        """Whether the queue may have its content."""
        states = (state for _, _, state in self.message.recipients)
        return bool(self.message.queue_id) and any(state not in FINAL for state in states)


def _by_mailbox(
    places: Mapping["_Candidate", Sequence[_Place]],
) -> dict[str, dict[str, list["_Candidate"]]]:
    """Return the candidates by id, by mailbox, in their order."""
    by_mailbox: dict[str, dict[str, list[_Candidate]]] = {}
    for candidate, copies in places.items():
        for mailbox, copy_id in copies:
            by_mailbox.setdefault(mailbox, {}).setdefault(copy_id, []).append(candidate)
    return by_mailbox
