"""The message list as values: search conditions, the place of a message, and its rows.

The spool and the submission log use the conditions to find candidates, Journeys to decide. The list
has the newest message first, by the time when it was submitted or received by SMTP. This time
follows from the names of a message: a row stays where it is when its submission is accepted. A
reader who continues after a place misses nothing and sees nothing twice.
"""

import fnmatch
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Literal, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import id_time_us, rfc3339, time_us_of
from relay.base.message.address import ascii_address, lower_case, pattern_forms, shown_address
from relay.base.message.lifecycle import AT_REST, BEFORE_QUEUE, FINAL
from relay.base.phrases import words_in
from relay.base.socket_address import network_of
from relay.store.journeys.document import Journey
from relay.store.journeys.events import EventCursor

MAIL, REPORT = "mail", "report"  # kinds of messages: Relay's own reports are not mail
FINAL_STATE = "final"  # all recipients are in final states
SCAN_MAX = 20_000  # messages that one search reads, newest first
LISTED_MAX = 20  # recipients in a row
SUBJECT_CHARACTERS_MAX = 200  # of a subject are kept in histories
# An event is visible at most this long after its time; a message, when its first event is.
CLOCK_MARGIN_US = 60_000_000
ALL_MAILBOXES, NO_MAILBOX = "*", ""  # in place of the address of a reader


class SearchedTag(Struct, frozen=True):
    """A tag that a message must have, or must not have, without regard to case; "" is any tag."""

    name: str = ""
    is_excluded: bool = False


class MessageSearch(Struct, frozen=True):
    """The conditions of a search; "" matches all.

    A pattern matches the whole value, without regard to case: `*` is any text, `?` one character.
    """

    to: str = ""  # a pattern; other conditions then apply only to the recipients that match
    sender: str = ""  # a pattern
    subject: str = ""  # a pattern
    kind: str = ""  # MAIL or REPORT
    state: str = ""  # of the message before step 4, then of a recipient; "final": all are final
    mailbox: str = ""  # a pattern: the sender, or one of the recipients
    words: tuple[str, ...] = ()  # each is in the subject, in one of these addresses, or in the text
    has_attachment: bool = False  # one that is not shown in the text
    has_complaint: bool = False  # a recipient has complained about it
    has_suppressed: bool = False  # a recipient was on the list of dead addresses
    is_unread: bool = False  # a copy that a recipient has not read
    tags: tuple[SearchedTag, ...] = ()  # only an index knows them
    larger_than_bytes: int = 0  # 0: any size
    from_us: int = 0  # submitted, or received by SMTP, then or later; 0: at any time
    until_us: int = 0  # and before then; 0: at any time
    # a network, or a pattern: the IP address of the client, or the name that it gave in EHLO
    client: str = ""
    submissions: frozenset[str] = frozenset()  # by HTTP from such a client
    login: str = ""  # a pattern: the account that logged in to send it
    # In whose mailbox words of the text and unread copies are looked up: an address,
    # ALL_MAILBOXES (the queue as well) or NO_MAILBOX. It must be the reader's mailbox: texts in
    # the mailboxes of others are not shown.
    reader: str = NO_MAILBOX
    # The messages in the spool whose content matches, newest first, if an index knows them.
    indexed: Mapping[str, None] | None = None
    key: str = ""  # one of the names of the message
    after_id: str = ""  # a queue id: only messages with a later one; not together with `key`
    after: EventCursor | None = None  # only messages that were submitted or accepted after it
    added: bool = False  # copies that rules and milters added count as well: for operators

    @property
    def is_before_queue(self) -> bool:
        """Whether only submissions that the spool does not know can match."""
        return self.state in BEFORE_QUEUE

    @property
    def needs_content(self) -> bool:
        """Whether the history of a message cannot decide alone."""
        return self.has_attachment or self.is_unread or self.searches_text or bool(self.tags)

    @property
    def searches_text(self) -> bool:
        """Whether words are looked up in texts."""
        return bool(self.words) and self.reader != NO_MAILBOX

    @property
    def needs_more_than_journey(self) -> bool:
        """Whether a journey cannot decide alone whether it matches."""
        of_row = self.larger_than_bytes or self.from_us or self.until_us or self.is_of_history
        return self.needs_content or bool(of_row or self.client or self.login)

    @property
    def is_of_history(self) -> bool:
        """Whether only what happened after acceptance can match."""
        return self.has_complaint or self.has_suppressed

    def without_content(self) -> "MessageSearch":
        """Return the conditions on the history of a message."""
        if not self.needs_content:
            return self
        words = () if self.searches_text else self.words
        return replace(self, words=words, has_attachment=False, is_unread=False, tags=())

    def words_left(self, sender: str, subject: str, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return the words that are neither in the subject nor in an address."""
        if not self.words:
            return ()
        named = (sender, *addresses, *map(ascii_address, addresses))
        text = "\n".join((subject, *named, *map(shown_address, named))).casefold()
        return tuple(word for word in self.words if word.casefold() not in text)

    def words_of_text(self, sender: str, subject: str, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return the words that are looked up in the text."""
        return self.words_left(sender, subject, addresses) if self.searches_text else ()

    @property
    def needs_recipients(self) -> bool:
        """Whether sender and subject cannot decide alone."""
        return bool(self.to or self.state or self.mailbox or self.words)

    def matches_facts(self, sender: str, subject: str) -> bool:
        """Whether sender and subject match."""
        pattern = self.subject
        if not set(pattern) & set("*?"):
            pattern = pattern[:SUBJECT_CHARACTERS_MAX]
        return matches_address_pattern(self.sender, sender or "<>") and matches_pattern(
            pattern, subject
        )

    def is_in_time(self, at_us: int) -> bool:
        """Whether a message of this time matches."""
        return self.from_us <= at_us and not 0 < self.until_us <= at_us

    def matches_origin(self, login: str, client: str, submission_id: str) -> bool:
        """Whether a message is from `login` and `client`; an SMTP client is "name [address]"."""
        if self.login and not matches_address_pattern(self.login, login):
            return False
        if not self.client or submission_id in self.submissions:
            return True
        return any(matches_client(self.client, name) for name in _names_of(client))

    def matches_address(self, address: str) -> bool:
        """Whether a recipient matches `to`."""
        return matches_address_pattern(self.to, address)

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
        if not any(matches_address_pattern(self.mailbox, named) for named in (sender, *addresses)):
            return False
        return not self.words_left(sender, subject, addresses)

    def matches(self, journey: Journey) -> bool:
        """Whether a journey matches, without the conditions that it cannot decide.

        These are `after`, `key`, `after_id`, size, time, client, login and content.
        """
        if self.kind and self.kind != (REPORT if journey.is_report else MAIL):
            return False
        pairs = [(recipient.address, recipient.state) for recipient in journey.shown_recipients]
        return self.without_content().matches_all(journey.sender, journey.subject, pairs)


def _names_of(client: str) -> tuple[str, str]:
    """Return address and name of "name [address]"."""
    name, _, address = client.partition(" [")
    return address.removesuffix("]"), name


class FoundMessage(Struct, frozen=True):
    """A message in the spool, or a submission in the log, which has no queue id.

    The other fields are set if the search has conditions on the content. The sender's copy may be
    in the mailbox of `account`. The text must have `words_left`. `recipients` have number, address
    and state.
    """

    queue_id: str
    submission_id: str
    account: str = ""
    words_left: tuple[str, ...] = ()
    recipients: tuple[tuple[int, str, str], ...] = ()

    @property
    def name(self) -> str:
        """The submission id, or the queue id of a message that was received by SMTP."""
        return self.submission_id or self.queue_id


def matches_pattern(pattern: str, value: str) -> bool:
    """Whether the whole value matches; "" matches all. `*` is any text, `?` one character."""
    return not pattern or _compiled(pattern).match(lower_case(value)) is not None


def matches_client(pattern: str, name: str) -> bool:
    """Whether an IP address is in a network with a "/", or matches a pattern, as a name may."""
    if "/" not in pattern:
        return matches_pattern(pattern, name)
    with suppress(ValueError):
        return ip_address(name) in network_of(pattern)
    return False


def matches_address_pattern(pattern: str, address: str) -> bool:
    """Whether an address matches, in any form that its domain and the pattern's have."""
    compared = ascii_address(address)
    return not pattern or any(matches_pattern(form, compared) for form in pattern_forms(pattern))


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(lower_case(pattern).replace("[", "[[]")))


_LETTERS = ".0123456789abcdefghijklmnopqrstuvwxyz"  # of ids, in their order
_FALLING = str.maketrans(_LETTERS, _LETTERS[::-1])


class ListPosition(Struct, frozen=True):
    """The place of a message in the list: its time and its name.

    The time is when it was submitted, or received by SMTP. The place does not change when a
    submission is accepted.
    """

    at_us: int
    name: str

    @property
    def order(self) -> tuple[int, str]:
        """The sort key: newest first, and within a millisecond the last name first.

        A place without a name is before all messages of its time.
        """
        return -self.at_us, self.name and self.name.translate(_FALLING) + "~"

    def __str__(self) -> str:
        """Return the text of the API."""
        return f"{self.at_us:x}-{self.name}"


_POSITION = re.compile(r"([0-9a-f]{1,15})-((?:[0-9a-z]{16}(?:\.[0-9]{1,20})?)?)", re.ASCII)
_DRAFT_OF_REQUEST = "1"  # ends the submission id of a draft that was made by sendMail


def position_of(queue_id: str, submission_id: str) -> ListPosition:
    """Return the place of a message.

    `queue_id` is "" before step 4; `submission_id` is "" for mail by SMTP.
    """
    accepted_us = id_time_us(queue_id) or 0
    if not submission_id:
        return ListPosition(accepted_us, queue_id)
    draft_id, _, number = submission_id.partition(".")
    at_us = id_time_us(draft_id) or 0
    if number != _DRAFT_OF_REQUEST and number.isdecimal():
        at_us = int(number) // 1000 * 1000  # when an existing draft was sent, in ms as in ids
    return ListPosition(min(at_us, accepted_us) if queue_id else at_us, submission_id)


def parse_position(text: str) -> ListPosition:
    """Return the place. Raises ValueError for a text that is not a place."""
    match = _POSITION.fullmatch(text)
    if match is None:
        raise ValueError("not a place in the list")
    return ListPosition(int(match[1], 16), match[2])


class ListedRecipient(Struct, frozen=True):
    """A recipient in a row of the list; `number` is its place in the envelope."""

    number: int
    address: str
    state: str
    added_by: str = ""  # the rule, or "milter NAME", that added it


class MessageSummary(Struct, frozen=True):
    """A row of the message list."""

    position: ListPosition  # lists are sorted and paged by it
    id: str | None  # the queue id; None before step 5
    submission_id: str | None  # None for mail by SMTP
    message_id: str  # of the header
    sender: str  # the reverse-path
    subject: str  # decoded
    state: str  # of the message, by those of its recipients
    recipients: tuple[ListedRecipient, ...]  # the first ones
    recipient_count: int  # of all recipients
    size_bytes: int = 0  # of the accepted message; 0 before step 5
    client: str = ""  # by SMTP: "name [address]"
    login: str = ""  # the account of AUTH or of the token; "" without a login
    status: str = ""  # of a recipient that decides the state
    reply: str = ""  # of that recipient
    next_attempt_us: int | None = None  # None if none is planned; in the spool it is queue time
    added: tuple[ListedRecipient, ...] = ()  # the first copies that rules and milters added

    @property
    def name(self) -> str:
        """The queue id, or before step 4 the submission id."""
        return self.id or self.submission_id or ""

    def as_json(self) -> dict[str, Any]:
        """Return the row of GET /log."""
        next_us = self.next_attempt_us
        added = [
            {"address": copy.address, "state": copy.state, "added_by": copy.added_by}
            for copy in self.added
        ]
        address, helo = _names_of(self.client)
        return {
            "at": rfc3339(self.position.at_us),
            "id": self.id,
            "submission_id": self.submission_id,
            "message_id": self.message_id,
            "sender": self.sender,
            "subject": self.subject,
            "state": self.state,
            "client": {"address": address, "helo": helo},
            "login": self.login,
            "size": self.size_bytes,
            "status": self.status,
            "reply": self.reply,
            "next_attempt": None if next_us is None else rfc3339(next_us),
            "recipients": [
                {"address": recipient.address, "state": recipient.state}
                for recipient in self.recipients
            ],
            "recipient_count": self.recipient_count,
            **({"added": added} if added else {}),
        }


class FoundPage(Struct, frozen=True):
    """Messages in the order of the list.

    `reached` is where a bounded scan ended. It is None at the end of the history, or if enough
    messages were found.
    """

    messages: tuple[FoundMessage, ...]
    reached: ListPosition | None


class MessagePreview(Struct, frozen=True):
    """The beginning of a content."""

    sender_name: str = ""  # in the From field
    to_name: str = ""  # of the first address in To, or else in Cc
    to_address: str = ""  # that address
    has_attachments: bool = False
    text: str = ""  # one line


class OpenSubmission(Struct, frozen=True):
    """A submission in the log that is not recorded as accepted.

    It waits, or ended before step 4. All of its recipients have the state of the message.
    """

    submission_id: str  # of the submission
    account: str  # the address of the mailbox
    sender: str  # the reverse-path
    message_id: str  # of the header
    subject: str  # decoded
    recipients: tuple[str, ...]  # their addresses
    state: str  # of all recipients
    reply: str  # why it failed; "" while it waits
    send_at: str = ""  # of a scheduled send, RFC 3339

    def matches(self, search: MessageSearch) -> bool:
        """Whether the submission matches, without `after`, `key`, time and content.

        Its size is unknown, and it has no queue id.
        """
        pairs = [(address, self.state) for address in self.recipients]
        strict = search.without_content()
        return (
            search.kind != REPORT
            and not (search.larger_than_bytes or search.is_of_history or search.after_id)
            and search.matches_origin(self.account, "", self.submission_id)
            and strict.matches_all(self.sender, self.subject, pairs)
        )

    def found(self, search: MessageSearch) -> FoundMessage:
        """Return the submission as a message whose content must be checked."""
        words = search.words_of_text(self.sender, self.subject, self.recipients)
        return FoundMessage("", self.submission_id, account=self.account, words_left=words)


def row_of(submission: OpenSubmission) -> MessageSummary:
    """Return the row of a submission that the spool does not have."""
    return MessageSummary(
        position=position_of("", submission.submission_id),
        id=None,
        submission_id=submission.submission_id,
        message_id=submission.message_id,
        sender=submission.sender,
        subject=submission.subject,
        state=submission.state,
        recipients=tuple(
            ListedRecipient(number, address, submission.state)
            for number, address in enumerate(submission.recipients[:LISTED_MAX], start=1)
        ),
        recipient_count=len(submission.recipients),
        login=submission.account,
        reply=submission.reply,
        next_attempt_us=time_us_of(submission.send_at) if submission.send_at else None,
    )


# -- the message that a failed wait nearly found

VALUE_CHARACTERS_MAX = 120  # of a value that is compared: the time is quadratic
Comparison = tuple[str, str, str, bool]  # a field, what was expected and found, whether it matches


_M = TypeVar("_M", Journey, MessageSummary)


def in_flight(messages: Iterable[_M]) -> list[_M]:
    """Return the messages with recipients that are neither final nor captured."""
    return [
        message
        for message in messages
        if any(recipient.state not in AT_REST for recipient in message.recipients)
    ]


def likeness(compared: Iterable[Comparison]) -> float:
    """Return how similar a message is to the search: at most 1 for each field."""
    return sum(
        1.0 if is_right else SequenceMatcher(None, expected, actual).ratio()
        for _, expected, actual, is_right in compared
    )


def nearest(
    search: MessageSearch, rows: Iterable[MessageSummary], new: Container[str]
) -> dict[str, Any] | None:
    """Return the first row that differs least, with its fields; None without rows.

    `new` are the names of messages after the cursor.
    """
    compared = [(row, list(_compare(search, row, new))) for row in rows]
    closest = max(compared, key=lambda pair: likeness(pair[1]), default=None)
    if closest is None:
        return None
    names = ("field", "expected", "found", "matches")
    fields = [dict(zip(names, comparison, strict=True)) for comparison in closest[1]]
    return {**closest[0].as_json(), "compared": fields}


def _compare(
    search: MessageSearch, row: MessageSummary, new: Container[str]
) -> Iterator[Comparison]:
    """Yield the conditions that a row can decide. The words are looked for in the row only."""
    addresses, sender = [recipient.address for recipient in row.recipients], row.sender or "<>"
    states = [(recipient.address, recipient.state) for recipient in row.recipients]
    here = (matches_address_pattern(search.mailbox, one) for one in (row.sender, *addresses))
    to = ", ".join(addresses)
    is_after = row.position.name in new
    after = "after the cursor" if search.after else ""
    for field, expected, actual, is_right in (
        ("to", search.to, to, any(map(search.matches_address, addresses))),
        ("sender", search.sender, sender, matches_address_pattern(search.sender, sender)),
        ("subject", search.subject, row.subject, matches_pattern(search.subject, row.subject)),
        ("mailbox", search.mailbox, f"{sender}, {to}", any(here)),
        (
            "state",
            search.state,
            row.state,
            MessageSearch(state=search.state).matches_recipients(states),
        ),
        (
            "words",
            " ".join(search.words),
            row.subject,
            not search.words_left(row.sender, row.subject, addresses),
        ),
        ("after", after, after if is_after else "before it", is_after),
    ):
        if expected:
            yield field, expected[:VALUE_CHARACTERS_MAX], actual[:VALUE_CHARACTERS_MAX], is_right


# -- a search in the text of all messages, which an index of `relay dev` answers

# Fields of addresses include their names. `bcc` has envelope recipients that are in no field.
TEXT_FIELDS = words_in("sender recipient cc bcc reply_to return_path subject attachment body")
FIELDS = ("message_id", *TEXT_FIELDS)


class SearchTerm(Struct, frozen=True):
    """A text that must be in one of these FIELDS, or in none of them.

    It matches any part of a field, without regard to case and accents. No character in it is
    special.
    """

    text: str
    fields: tuple[str, ...] = TEXT_FIELDS
    is_excluded: bool = False


class SearchedNumber(Struct, frozen=True):
    """A number that must be from `low` to `high`, or must not be.

    `attachments` does not count inline ones.
    """

    name: Literal["accepted_us", "size_bytes", "attachments", "inline"]
    low: int = 0
    high: int = 1 << 62
    is_excluded: bool = False


class TextSearch(Struct, frozen=True):
    """Conditions that must all hold. Without conditions, all messages match."""

    terms: tuple[SearchTerm, ...] = ()
    numbers: tuple[SearchedNumber, ...] = ()
    tags: tuple[SearchedTag, ...] = ()
    is_unread: bool = False  # a copy that a recipient has not read


class TextAnswer(Struct, frozen=True):
    """The queue ids that were found, newest first.

    Unless `is_complete`, some messages could not be read in time.
    """

    queue_ids: Sequence[str]
    is_complete: bool


class IndexFailedError(Exception):
    """The index cannot be used now, or the search takes too long."""


class TextIndex(Protocol):
    """Finds accepted messages by their text; no reports."""

    @property
    def count(self) -> int:
        """How many messages it has."""

    async def search(self, search: TextSearch) -> TextAnswer:
        """Return what matches. Messages accepted before are awaited for some seconds.

        Raises IndexFailedError and SpoolError.
        """

    async def tags_of(self, queue_ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Return the tags of messages that have any, sorted. Raises what search() raises."""

    async def tags(self) -> Mapping[str, int]:
        """Return the number of messages of each tag, sorted. Raises what search() raises."""

    async def set_tags(self, tags: Mapping[str, Sequence[str]]) -> None:
        """Replace the tags of messages, by queue id; they are the categories of all copies.

        Raises what search() raises, and StoreError.
        """

    async def previews(self, queue_ids: Sequence[str]) -> Mapping[str, MessagePreview]:
        """Return the previews of those messages that the index has. Raises IndexFailedError."""

    async def flags(self, ids_by_mailbox: Mapping[str, Collection[str]]) -> Mapping[str, bool]:
        """Return by id whether copies are read. `ids_by_mailbox` has their ids.

        Copies after which no file is named are left out: they were removed, or another program
        renamed them. Raises OSError, NoSuchItemError.
        """


TAGS_MAX, TAG_CHARACTERS_MAX = 50, 100  # of a message; those that Graph sets may be more
_TAG = re.compile(rf"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{{1,{TAG_CHARACTERS_MAX}}}")


def split_tags(text: str) -> tuple[str, ...]:
    """Return the tags in a text, which are separated by commas. Raises ValueError."""
    tags = {tag.casefold(): tag for part in text.split(",") if (tag := " ".join(part.split()))}
    wrong = next((tag for tag in tags.values() if not _TAG.fullmatch(tag)), "")
    if wrong or len(tags) > TAGS_MAX:
        problem = ascii(wrong[:TAG_CHARACTERS_MAX]) if wrong else f"{len(tags)} tags"
        most = f"at most {TAGS_MAX} tags of {TAG_CHARACTERS_MAX} characters"
        raise ValueError(f"found {problem}, expected {most}")
    return tuple(tags.values())
