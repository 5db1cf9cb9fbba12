"""The message list: the place of a message in it, and its rows.

The list has the newest message first, by the time when it was submitted or received by SMTP. This
time follows from the names of a message, so that a row stays where it is when its submission is
accepted, and a reader who goes on from a place misses nothing and sees nothing twice.
"""

import re

from msgspec import Struct

from relay.base.clock import id_time_us, time_us_of
from relay.journeys.message_search import FoundMessage, MessageSearch

LISTED_MAX = 20  # recipients in a row


_LETTERS = ".0123456789abcdefghijklmnopqrstuvwxyz"  # of ids, in their order
_FALLING = str.maketrans(_LETTERS, _LETTERS[::-1])


class ListPosition(Struct, frozen=True):
    """The place of a message in the list: when it was submitted, or received by SMTP, and its
    name. It does not change when a submission is accepted.
    """

    at_us: int
    name: str

    @property
    def order(self) -> tuple[int, str]:
        """Sorts the newest first, of one millisecond the last name. Without a name, it is before
        all of its time.
        """
        return -self.at_us, self.name and self.name.translate(_FALLING) + "~"

    def __str__(self) -> str:
        """Return the text of the API."""
        return f"{self.at_us:x}-{self.name}"


_POSITION = re.compile(r"([0-9a-f]{1,15})-((?:[0-9a-z]{16}(?:\.[0-9]{1,20})?)?)", re.ASCII)
_DRAFT_OF_REQUEST = "1"  # ends the submission id of a draft that was made by sendMail


def position_of(queue_id: str, submission_id: str) -> ListPosition:
    """Return the place of a message; `queue_id` is "" before step 4, `submission_id` for SMTP."""
    accepted_us = id_time_us(queue_id) or 0
    if not submission_id:
        return ListPosition(accepted_us, queue_id)
    draft_id, _, number = submission_id.partition(".")
    at_us = id_time_us(draft_id) or 0
    if number != _DRAFT_OF_REQUEST and number.isdecimal():
        at_us = int(number) // 1000 * 1000  # when a draft that existed was sent, as exact as ids
    return ListPosition(min(at_us, accepted_us) if queue_id else at_us, submission_id)


def parse_position(text: str) -> ListPosition:
    """Return the place. Raises ValueError for a text that is not one."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise ValueError("not a place in the list")
    return ListPosition(int(found[1], 16), found[2])


class ListedRecipient(Struct, frozen=True):
    """A recipient in a row of the list; `number` is its place in the envelope."""

    number: int
    address: str
    state: str


class MessageSummary(Struct, frozen=True):
    """A row of the message list."""

    position: ListPosition  # by which lists are sorted and paged
    id: str | None  # the queue id; None before step 5
    submission_id: str | None  # None for mail that came by SMTP
    message_id: str  # of the header
    sender: str  # the reverse-path
    subject: str  # decoded
    state: str  # of the message, by those of its recipients
    recipients: tuple[ListedRecipient, ...]  # the first ones
    recipient_count: int  # of all recipients
    size_bytes: int = 0  # of the accepted message; 0 before step 5
    status: str = ""  # of a recipient that decides the state
    reply: str = ""  # of the same recipient
    next_attempt_us: int | None = None  # None if none is planned; in the spool it is queue time

    @property
    def name(self) -> str:
        """The queue id, or before step 4 the submission id."""
        return self.id or self.submission_id or ""


class FoundPage(Struct, frozen=True):
    """Messages in the order of the list. `reached` is where a bounded scan ended, None at the end
    of what there is or if enough was found.
    """

    messages: tuple[FoundMessage, ...]
    reached: ListPosition | None


class OpenSubmission(Struct, frozen=True):
    """A submission in the log that is not recorded as accepted: it waits, or ended before step 4.

    All its recipients are in one state, that of the message.
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

    def matches(self, wanted: MessageSearch) -> bool:
        """Whether it matches, apart from `after`, `key`, time and content; its size is unknown."""
        pairs = [(address, self.state) for address in self.recipients]
        strict = wanted.without_content()
        return not wanted.larger_than_bytes and strict.matches_all(self.sender, self.subject, pairs)

    def found(self, wanted: MessageSearch) -> FoundMessage:
        """Return it as a message whose content is to be checked."""
        words = wanted.words_of_text(self.sender, self.subject, self.recipients)
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
        reply=submission.reply,
        next_attempt_us=time_us_of(submission.send_at) if submission.send_at else None,
    )
