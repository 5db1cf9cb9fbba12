"""Decide who hears of the recipients that failed.

On the path: reporter asks it for each message with failed recipients; it hands over three groups.
Holds: pure; no recipient is in two groups; a report never causes a report.
Fails: never.
Standards: RFC 5321 6.1 and 6.2 (no report about a report, no backscatter), RFC 3461 4.1 and 6.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from relay.message.envelope import wants_failure_report
from relay.message.reporting import ReportedRecipient
from relay.message.verdict import Source

POSTMASTER = "postmaster"


@dataclass(frozen=True, slots=True)
class Decision:
    """The failed recipients by what becomes of them.

    `reported` go into the report to the reverse-path; those in `dead` make a copy of the message
    for the postmaster; `dropped` are reports that failed at the postmaster: that is the end.
    Recipients in none of them fail in silence, as their envelope or their sender's standing says.
    """

    reported: tuple[ReportedRecipient, ...] = ()
    dead: tuple[ReportedRecipient, ...] = ()
    dropped: tuple[ReportedRecipient, ...] = ()


def decide(
    recipients: Sequence[ReportedRecipient], *, reverse_path: str, trusted: bool, source: Source
) -> Decision:
    """Sort the failed `recipients` of one message.

    `trusted` says that the sender was authenticated or in a listed network: to strangers
    nothing is sent, because a reverse-path is easily forged.
    """
    if source is Source.REPORT:
        return Decision(
            dead=tuple(one for one in recipients if one.address != POSTMASTER),
            dropped=tuple(one for one in recipients if one.address == POSTMASTER),
        )
    may_hear = trusted and bool(reverse_path)
    return Decision(
        reported=tuple(
            one
            for one in recipients
            if may_hear and not one.added_by and wants_failure_report(one.notify)
        ),
        # The sender does not know of recipients that a rule added; the postmaster may.
        dead=tuple(one for one in recipients if one.added_by),
    )
