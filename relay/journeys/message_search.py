"""Search conditions of the message list, and its cursor.

Both are values: the spool and the submission log use them to find candidates, Journeys to decide.
"""

import base64
import fnmatch
import hashlib
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

from relay.journeys.document import Journey
from relay.message.lifecycle import BEFORE_QUEUE, FINAL

FINAL_STATE = "final"  # all recipients are in final states
SCAN_MAX = 20_000  # messages that one search reads, newest first
SUBJECT_CHARACTERS_MAX = 200  # of a subject are kept in histories
# An event is visible at most this long after its time; a message becomes visible with its first.
CLOCK_MARGIN_US = 60_000_000
ALL_MAILBOXES, NO_MAILBOX = "*", ""  # in place of the address of a reader


class ListCursor(Struct, frozen=True):
    """The moment of a message list: behind it are the messages that were first submitted or
    accepted later.

    Times alone cannot say this, because a message is visible a little later than its time. So the
    cursor has a time shortly before the moment, and digests of the messages that were visible at
    the moment and are newer than this time.
    """

    since_us: int
    seen: frozenset[bytes] = frozenset()

    def is_after(self, name: str, at_us: int) -> bool:
        """Whether a message is after the cursor; `name` is its submission id or queue id."""
        return at_us > self.since_us and _digest(name) not in self.seen

    def __str__(self) -> str:
        """Return the text of the API."""
        octets = struct.pack(">Q", self.since_us) + b"".join(sorted(self.seen))
        return base64.urlsafe_b64encode(octets).decode().rstrip("=")


_DIGEST_BYTES = 5
_TIME_BYTES = 8
SEEN_MAX = 200  # digests in a cursor: 1,350 characters


def cursor_at(since_us: int, visible: Mapping[str, int]) -> ListCursor:
    """Return the cursor for the moment at which these were the messages newer than `since_us`.

    `visible` has their times by name. If there are very many, the time of the cursor is later.
    """
    newest = sorted(visible.items(), key=lambda one: one[1], reverse=True)
    if len(newest) > SEEN_MAX:
        since_us = newest[SEEN_MAX][1]
    seen = [_digest(name) for name, at_us in newest if at_us > since_us]
    return ListCursor(since_us, frozenset(seen))


def cursor_before(first_us: int, since_us: int, seen: Mapping[str, int]) -> ListCursor:
    """Return the cursor behind which are messages from `first_us` on that are not in `seen`.

    As cursor_at(), `seen` has times by name, and what becomes visible late since `since_us` is
    after the cursor too, unless there are very many messages.
    """
    since_us = min(since_us, first_us - 1)
    if sum(at_us > since_us for at_us in seen.values()) > SEEN_MAX:
        since_us = first_us - 1
        seen = {name: at_us for name, at_us in seen.items() if at_us == first_us}
    return cursor_at(since_us, seen)


def parse_cursor(text: str, *, now_us: int) -> ListCursor:
    """Return the cursor. Raises ValueError for a text that is not one, or is from the future."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{11,2000}", text, re.ASCII) or len(text) % 4 == 1:
        raise ValueError("not a cursor")
    octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    seen = octets[_TIME_BYTES:]
    (since_us,) = struct.unpack_from(">Q", octets)
    if len(seen) % _DIGEST_BYTES or since_us > now_us + CLOCK_MARGIN_US:
        raise ValueError("not a cursor")
    starts = range(0, len(seen), _DIGEST_BYTES)
    return ListCursor(since_us, frozenset(seen[at : at + _DIGEST_BYTES] for at in starts))


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()


class MessageSearch(Struct, frozen=True):
    """What a message must match; "" matches all.

    A pattern matches the whole value, without regard to case: `*` is any text, `?` one character.
    """

    to: str = ""  # a pattern; then only the recipients that it matches count
    sender: str = ""  # a pattern
    subject: str = ""  # a pattern
    state: str = ""  # its own before step 4, then that of a recipient; "final" if all are final
    mailbox: str = ""  # an address: the sender, or one of the recipients
    words: tuple[str, ...] = ()  # each is in the subject, in one of these addresses, or in the text
    has_attachment: bool = False  # one that is not shown in the text
    is_unread: bool = False  # a copy that a recipient has not read
    larger_than_bytes: int = 0  # 0: any size
    from_us: int = 0  # submitted, or received by SMTP, then or later; 0: at any time
    # In whose mailbox words of the text and unread copies are looked up: an address,
    # ALL_MAILBOXES (the queue as well) or NO_MAILBOX. It must be that of who asks: texts in the
    # mailboxes of others are not shown.
    reader: str = NO_MAILBOX
    key: str = ""  # one of the names of the message
    after: ListCursor | None = None  # messages that were first submitted or accepted later

    @property
    def is_before_queue(self) -> bool:
        """Whether only submissions can match, which the spool does not know."""
        return self.state in BEFORE_QUEUE

    @property
    def needs_content(self) -> bool:
        """Whether the history of messages is not enough to decide."""
        return self.has_attachment or self.is_unread or self.searches_text

    @property
    def searches_text(self) -> bool:
        """Whether words are looked up in texts."""
        return bool(self.words) and self.reader != NO_MAILBOX

    @property
    def needs_more_than_journey(self) -> bool:
        """Whether a journey alone does not say whether it matches."""
        return self.needs_content or bool(self.larger_than_bytes or self.from_us)

    def without_content(self) -> "MessageSearch":
        """Return the conditions on the history of a message."""
        if not self.needs_content:
            return self
        words = () if self.searches_text else self.words
        return replace(self, words=words, has_attachment=False, is_unread=False)

    def words_left(self, sender: str, subject: str, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return the words that are neither in the subject nor in an address."""
        if not self.words:
            return ()
        text = "\n".join((subject, sender, *addresses)).casefold()
        return tuple(word for word in self.words if word.casefold() not in text)

    def words_of_text(self, sender: str, subject: str, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return the words that are looked up in the text."""
        return self.words_left(sender, subject, addresses) if self.searches_text else ()

    @property
    def needs_recipients(self) -> bool:
        """Whether sender and subject are not enough to decide."""
        return bool(self.to or self.state or self.mailbox or self.words)

    def matches_facts(self, sender: str, subject: str) -> bool:
        """Whether sender and subject match."""
        wanted = self.subject
        if not set(wanted) & set("*?"):
            wanted = wanted[:SUBJECT_CHARACTERS_MAX]
        return matches_pattern(self.sender, sender or "<>") and matches_pattern(wanted, subject)

    def matches_address(self, address: str) -> bool:
        """Whether a recipient matches `to`."""
        return matches_pattern(self.to, address)

    def matches_recipients(self, recipients: Iterable[tuple[str, str]]) -> bool:
        """Whether (address, state) pairs match `to` and `state`."""
        if not self.to and not self.state:
            return True
        states = [state for address, state in recipients if self.matches_address(address)]
        if self.state == FINAL_STATE:
            return bool(states) and FINAL.issuperset(states)
        return any(self.state in ("", state) for state in states)

    def matches_all(self, sender: str, subject: str, recipients: Sequence[tuple[str, str]]) -> bool:
        """Whether a message matches, apart from `after` and `key`."""
        if not self.matches_facts(sender, subject) or not self.matches_recipients(recipients):
            return False
        addresses = [address for address, _ in recipients]
        if self.mailbox and self.mailbox.casefold() not in map(str.casefold, (sender, *addresses)):
            return False
        return not self.words_left(sender, subject, addresses)

    def matches(self, journey: Journey) -> bool:
        """Whether a journey matches, apart from what it does not say: `after`, `key`, size, time
        and content.
        """
        pairs = [(one.address, one.state) for one in journey.shown_recipients]
        return self.without_content().matches_all(journey.sender, journey.subject, pairs)


class FoundMessage(Struct, frozen=True):
    """A message in the spool, accepted at `at_us`, or a submission in the log, which has no queue
    id, submitted then; 0 if that was not asked for. `matches`: it may match, and is not accepted
    yet if it is in the log.

    `account`, `words_left` and `recipients` are there if the search has conditions on the content:
    in whose mailbox the sender's copy may be, the words that it must have, and number, address and
    state of recipients.
    """

    queue_id: str
    submission_id: str
    at_us: int = 0
    account: str = ""
    words_left: tuple[str, ...] = ()
    recipients: tuple[tuple[int, str, str], ...] = ()
    matches: bool = True

    @property
    def name(self) -> str:
        """The submission id, or the queue id of a message that was received by SMTP."""
        return self.submission_id or self.queue_id


def matches_pattern(pattern: str, value: str) -> bool:
    """Whether the whole value matches; "" matches all. `*` is any text, `?` one character."""
    return not pattern or _compiled(pattern).match(value.casefold()) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern.casefold().replace("[", "[[]")))
