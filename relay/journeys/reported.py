"""What reports say of a message's recipients: Relay's own, and what those from outside claim.

Pure functions. A report from outside proves nothing, so its words always have the name of the
host before them. The texts contain what hosts wrote, as those of wording.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import structs

from relay.journeys.document import JourneyStep, Recipient, ReportSource, SenderReport
from relay.journeys.events import Step
from relay.message.lifecycle import RecipientState

_FAILED = (RecipientState.FAILED, RecipientState.EXPIRED)
_CLAIMS = {
    "failure": "it was not delivered",
    "delayed": "it is not delivered yet",
    "held": "it is held",
    "delivered": "it was delivered",
    "relayed": "it was passed on to a host that sends no reports",
    "expanded": "it was delivered to a list, and sent to its members",
    "read": "it was displayed",
    "notread": "it was deleted unread",
}


def is_remote(detail: Mapping[str, Any]) -> bool:
    """Return whether an event of step 7 is what a report from outside claims."""
    return detail.get("by") == "remote"


def with_reports(
    recipients: Sequence[Recipient], steps: Sequence[JourneyStep]
) -> tuple[Recipient, ...]:
    """Return the recipients with what the last report to the sender says of each.

    A report from outside only claims: it is shown where Relay has sent none. The report on a failed
    conversion is about all recipients. An event names a limited number.
    """
    last: dict[str, JourneyStep] = {}
    claimed: dict[str, JourneyStep] = {}
    for step in steps:
        detail = step.detail
        if step.step != Step.REPORT:
            continue
        if is_remote(detail):
            claimed |= dict.fromkeys(detail["recipients"], step)
        elif "to" in detail and detail["kind"] not in ("dead-letter", "postmaster"):
            named = detail.get("recipients") or [one.address for one in recipients]
            last |= dict.fromkeys(named, step)
    shown = {one: remote_report(step.detail, step.at) for one, step in claimed.items()}
    shown |= {
        one.address: _report_on(one, last[one.address]) for one in recipients if one.address in last
    }
    return tuple(
        structs.replace(one, reported=shown[one.address]) if one.address in shown else one
        for one in recipients
    )


def _report_on(one: Recipient, step: JourneyStep) -> SenderReport:
    host = one.attempts[-1].host if one.attempts else ""
    return SenderReport(step.detail["kind"], one.status, one.reply, host, step.at)


def remote_report(detail: Mapping[str, Any], at: str = "") -> SenderReport:
    """Return what an event of which is_remote() is true says of its recipient."""
    return SenderReport(
        detail["kind"], detail["status"], detail["reply"], detail["host"], at, by="remote",
        source=ReportSource(**detail["source"]),
    )  # fmt: skip


def are_failures_reported(recipients: Sequence[Recipient]) -> bool:
    """Whether some have failed, the sender was told so of each of these, and all were attempted."""
    reported = {
        one.address
        for one in recipients
        if one.reported and one.reported.kind in ("failure", "unknown")
    }
    failed = {one.address for one in recipients if one.state in _FAILED}
    return bool(reported) and failed <= reported and not has_new(recipients)


def has_new(recipients: Sequence[Recipient]) -> bool:
    """Whether one waits for its first attempt, or for an attempt that is due."""
    return any(one.state == RecipientState.QUEUED for one in recipients)


def claim_words(report: SenderReport, address: str = "") -> str:
    """Return "HOST claims that it was not delivered: 550 5.1.1 no such user"; with the address of
    the recipient if it is given.
    """
    assert report.source is not None
    what = _CLAIMS.get(report.kind, f"its state is {report.kind}")
    said = report.reply if report.status in report.reply else f"{report.status} {report.reply}"
    text = f"{report.source.name} claims that {what}{f' (to {address})' if address else ''}"
    return f"{text}: {said.strip().removesuffix('.')}" if said.strip() else text
