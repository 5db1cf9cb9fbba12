"""The journey of a message as a document: what GET /relay/v1/messages/{id} answers.

The fields are those of docs/names.md, in their order. A field that is UNSET is left out of the
JSON. Times are RFC 3339, as in the JSON.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType, convert
from msgspec.structs import replace

from relay.base.message.envelope import Client
from relay.base.message.lifecycle import AT_REST, BEFORE_QUEUE, FINAL, RecipientState, by_importance
from relay.base.message.tls_policy import USUAL_POLICY
from relay.store.journeys import details

D = TypeVar("D", bound=details.Detail)
# Of a message and its recipients in place of a final state: only steps 1 to 4 are still known.
HISTORY_REMOVED = "removed"
_FINAL, _AT_REST = FINAL | {HISTORY_REMOVED}, AT_REST | {HISTORY_REMOVED}


class JourneyStep(msgspec.Struct, frozen=True):
    """One event of a journey; `step` is the number of its step, `name` that step's name."""

    step: int
    name: str
    at: str
    detail: dict[str, Any]  # of the step

    def read(self) -> details.Detail:
        """Return what this Relay knows of the detail."""
        return details.read_detail(self.step, self.detail)


def details_in(steps: Iterable[JourneyStep], kind: type[D]) -> Iterator[D]:
    """Yield the details of one kind, in the order of the steps."""
    for step in steps:
        if step.step == kind.step and isinstance(detail := step.read(), kind):
            yield detail


class Durations(msgspec.Struct, frozen=True):
    """How long the parts of an attempt took, in milliseconds.

    `total` also includes the hosts tried before, EHLO, AUTH and the transaction. On a connection
    that was already open, the others are 0.
    """

    dns: float = 0.0  # the lookup of the next hop
    connect: float = 0.0  # until the host's greeting; with implicit TLS until TCP connects
    tls: float = 0.0  # STARTTLS and handshake
    total: float = 0.0


class MxRecord(msgspec.Struct, frozen=True):
    """A host of the MX answer. `skipped` is why it was not tried, "" if it could be tried."""

    preference: int
    host: str
    skipped: str = ""


class Attempt(msgspec.Struct, frozen=True):
    """An attempt to deliver to one recipient."""

    at: str
    host: str  # "" without a session; `tls` too
    outcome: str
    status: str
    reply: str
    tls: str
    verified: str = "none"  # by TLS: none, chain (a wrong name: nothing was sent), name or dane
    policy: str = ""  # who demanded which TLS level; "" without a host
    durations: Durations | None = None  # None: the outcome is that of another message's attempt
    mx: tuple[MxRecord, ...] = ()  # of a next hop with MX records, by preference
    mx_more: int = 0  # the number of further hosts
    # "8 bit" or "long lines": why the message was encoded again for the host, or into what
    encoded: str = ""
    node: str | UnsetType = UNSET  # the node that made it, if several share the spool
    provider: str = ""  # the [[reply]] entry that decided the outcome


def attempts_in(detail: details.AttemptDetail, at: str) -> Iterator[tuple[int, Attempt]]:
    """Yield the attempts of an event, each with the number of its recipient."""
    host, durations = detail.host or "", None
    if detail.durations:
        durations = convert(detail.durations, Durations)
    mx = tuple(map(_mx_record, detail.mx))
    for recipient in detail.recipients:
        yield (
            recipient.number,
            Attempt(
                at,
                host,
                recipient.outcome,
                recipient.status,
                recipient.reply,
                detail.tls or "",
                detail.verified or "none",
                detail.policy or (USUAL_POLICY if host and durations else ""),
                durations,
                mx,
                detail.mx_more,
                detail.encoded,
                detail.node or UNSET,
                recipient.provider,
            ),
        )


def _mx_record(text: str) -> MxRecord:
    """Parse "PREFERENCE HOST", or "PREFERENCE HOST: why it was skipped"."""
    preference, _, rest = text.partition(" ")
    host, _, skipped = rest.partition(": ")
    return MxRecord(int(preference) if preference.isdecimal() else 0, host, skipped)


class SenderReport(msgspec.Struct, frozen=True):
    """What the last report to the sender says of a recipient.

    `by` is "relay", or "remote" for the claim of a report from outside. `source` is the sender of
    that report.
    """

    kind: str  # from outside also read, notread
    status: str
    reply: str
    host: str
    at: str
    by: str = "relay"
    source: details.ReportSource | None = None


class Recipient(msgspec.Struct, frozen=True):
    """A recipient, with what became of it.

    `successors` are the addresses that replace a redirected or expanded recipient. `reason` is a
    clause: why it is in its state. `next_attempt` and `expires` are times, None where there is
    none; captured mail is removed at `expires`. `graph_id` is the Graph id of the copy in a mailbox
    of this relay.
    """

    address: str
    state: str
    reason: str | None = None
    next_attempt: str | None = None
    expires: str | None = None
    next_hop: str | None = None
    route: str | None = None  # the name of the route that chose the next hop
    status: str = ""
    reply: str = ""
    successors: tuple[str, ...] | UnsetType = UNSET
    attempts: tuple[Attempt, ...] = ()
    reported: SenderReport | None = None
    graph_id: str | None = None
    added_by: str | UnsetType = UNSET  # the rule, or "milter NAME", that added it


class Journey(msgspec.Struct, frozen=True):
    """A message and what happened to it.

    `id` is None before step 4; `graph_id` and `submission_id` are None for mail by SMTP. `reached`
    is only in the answer of a wait: whether the message is in the state. `added` are copies that
    rules and milters added, for who may see all mail. They count nowhere else, and no sender sees
    them.
    """

    id: str | None
    graph_id: str | None
    submission_id: str | None
    message_id: str
    sender: str
    subject: str
    state: str
    client: dict[str, Any]  # {address, helo, account, tls}
    steps: tuple[JourneyStep, ...]
    recipients: tuple[Recipient, ...]
    checks: dict[str, Any] | None = None  # of the sender, below
    reached: bool | UnsetType = UNSET
    added: tuple[Recipient, ...] | UnsetType = UNSET

    @property
    def key(self) -> str:
        """The queue id, or before step 4 the submission id."""
        return self.id or self.submission_id or ""

    @property
    def is_report(self) -> bool:
        """Whether Relay has written the message: a report on another message, or mail of a rule."""
        return any(routed.about for routed in details_in(self.steps, details.RoutedDetail))

    @property
    def known_client(self) -> Client:
        """The fields of the client that this Relay knows."""
        return details.read_known(Client, self.client)

    @property
    def reports(self) -> Sequence[str]:
        """The ids of the reports to the sender."""
        reports = details_in(self.steps, details.ReportDetail)
        return [report.report_id for report in reports if report.report_id]

    @property
    def shown_recipients(self) -> Sequence[Recipient]:
        """The recipients; before step 4 they are shown in the state of the message."""
        if self.state not in BEFORE_QUEUE:
            return self.recipients
        return [replace(recipient, state=self.state) for recipient in self.recipients]

    @property
    def is_final(self) -> bool:
        """Whether there are recipients and all of them are in final states."""
        return bool(self.recipients) and all(
            recipient.state in _FINAL for recipient in self.recipients
        )

    @property
    def is_there(self) -> bool:
        """Whether there are recipients and all of them are captured or in final states."""
        return bool(self.recipients) and all(
            recipient.state in _AT_REST for recipient in self.recipients
        )

    def may_become(self, state: str) -> bool:
        """Whether the message as a whole may still reach a state without a command.

        "final" and "there" are the states of waits.
        """
        if self.state in BEFORE_QUEUE or not self.recipients:
            return True
        at_rest = [recipient.state for recipient in self.recipients if recipient.state in _AT_REST]
        if state in BEFORE_QUEUE or len(at_rest) == len(self.recipients):
            return False
        if state == "final":
            return RecipientState.CAPTURED not in at_rest
        return all(by_importance(reached) >= by_importance(state) for reached in at_rest)
