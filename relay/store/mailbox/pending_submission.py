"""A submitted draft until step 4: when and for whom it is sent, and the client's key for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct

from relay.base.clock import rfc3339
from relay.base.message.envelope import Client
from relay.store.journeys.details import NotifiedDetail


class SubmissionKey(Struct, frozen=True):
    """A client's key for a submission. For a day, the same key makes no second submission.

    `slot` is the name of its record: a hash of the key, the mailbox and the account that used it.
    `fingerprint` returns a hash of the request after its body was read. `preference_applied`
    returns a part of the answer.
    """

    slot: str
    fingerprint: Callable[[], bytes]
    preference_applied: Callable[[], str]


@dataclass(frozen=True, slots=True)
class SendOptions:
    """When and for whom a draft is sent, and what step 4 does with the original.

    The original is filed in the folder `sent_folder`; "" is Sent Items. The draft is not sent
    before `scheduled_us`; 0 is at once. `on_behalf_of` is the From address of a message without a
    sender, if it differs from the account's. `client` is recorded in step 2 and not stored. With a
    `key`, the submission is recorded under it.
    """

    save_to_sent_items: bool = True
    sent_folder: str = ""
    scheduled_us: int = 0
    on_behalf_of: str = ""
    client: Client | None = field(default=None, compare=False)
    key: SubmissionKey | None = field(default=None, compare=False)

    def notified_detail(self) -> NotifiedDetail:
        """Return the detail of step 2: the time of a scheduled send, and the client."""
        until = rfc3339(self.scheduled_us) if self.scheduled_us else ""
        return NotifiedDetail(deferred_until=until, client=self.client)


@dataclass(frozen=True, slots=True)
class PendingSubmission:
    """A submitted draft as pickup sees it: the exact snapshot that is sent."""

    submission_id: str  # `<draft id>.<n>`: the submission key of the spool
    account: str  # the address of the mailbox
    base_name: str  # of the draft's file; "": the record with both is damaged
    path: Path  # the file of the submission
    # queue time of the submission, or the wall clock time until which a scheduled one waits
    ready_us: int
    is_released: bool = False  # by an operator: it is not held again
    options: SendOptions = field(default_factory=SendOptions)  # those of the request
    # the content of the file, of a small submission that was made just now; b"": read the file
    content: bytes = field(default=b"", compare=False, repr=False)
    internet_message_id: str = ""  # known when a submission with a key is submitted, else ""
    # a repeated /send has found it
    was_scheduled: bool = field(default=False, compare=False)

    @property
    def draft_id(self) -> str:
        """The Graph id of the draft."""
        return self.submission_id.partition(".")[0]
