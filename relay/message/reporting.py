"""The values from which a delivery status notification is built.

On the path: delivery, ingress and pickup fill them in; reports decides who gets one; dsn writes it.
Holds: everything RFC 3464 asks for, nothing of Relay's own rooms.
Fails: never.
Standards: RFC 3464 2.2, 2.3.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from relay.message.content import Content
from relay.message.envelope import Notify
from relay.message.outcome import Evidence


class Action(StrEnum):
    """RFC 3464 2.3.3."""

    FAILED = "failed"
    DELAYED = "delayed"  # also: nobody can tell whether it was sent


@dataclass(frozen=True, slots=True)
class ReportedRecipient:
    """One per-recipient block. `log_id` is the Final-Log-ID; `last_attempt_us` is 0 when none was
    made.

    `added_by` names the policy rule that added the recipient: its sender hears nothing of it.
    """

    address: str
    orcpt: str
    evidence: Evidence
    notify: frozenset[Notify] = frozenset()
    added_by: str = ""
    action: Action = Action.FAILED
    last_attempt_us: int = 0
    log_id: str = ""


@dataclass(frozen=True, slots=True)
class ReportedMessage:
    """The message a report is about. `client` is "name [address]" for Received-From-MTA or "".

    `arrival_us` is steady time; the reporter writes it as the wall clock's. Of a large `content`
    only the header is read.
    """

    queue_id: str
    reverse_path: str
    envid: str
    ret: str
    arrival_us: int
    client: str
    content: Content = field(repr=False)
