"""Reports taken apart with the stdlib's parser and with flufl.bounce.

A message is a report by its structure only. Raises AssertionError for a report without its parts.
See RFC 3462, 3464.
"""

import email
import email.policy
from dataclasses import dataclass
from email.message import EmailMessage, Message

from flufl.bounce import scan_message

from tests.support.relay_process import RelayProcess, until


@dataclass(frozen=True)
class Report:
    """A delivery status notification: its fields per message and per recipient, and what came back."""

    message: EmailMessage
    about: dict[str, str]
    recipients: dict[str, dict[str, str]]
    returned: Message

    @property
    def failed_addresses(self) -> set[str]:
        """What flufl.bounce takes for failed."""
        found = scan_message(email.message_from_bytes(self.message.as_bytes()))
        return {one.decode() for one in found}


def parse_report(raw: bytes) -> Report | None:
    """Return the report; None if the message is none."""
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    if message.get_content_type() != "multipart/report":
        return None
    assert message.get_param("report-type") == "delivery-status"
    reported, status, returned = message.iter_parts()
    assert reported.get_content_type() == "multipart/alternative"
    assert [one.get_content_type() for one in reported.iter_parts()] == ["text/plain", "text/html"]
    about, *recipients = [_fields(block) for block in status.iter_parts()]
    by_address = {one["final-recipient"].partition(";")[2].strip(): one for one in recipients}
    inner = returned.get_payload()
    assert isinstance(inner, list) or returned.get_content_type() == "text/rfc822-headers"
    original = inner[0] if isinstance(inner, list) else email.message_from_string(str(inner))
    assert isinstance(original, Message)
    return Report(message, about, by_address, original)


def reports_of(relay: RelayProcess, person: str = "alice") -> list[Report]:
    """The reports in somebody's Inbox."""
    parsed = (parse_report(bytes(one)) for one in relay.maildir(person))
    return [report for report in parsed if report is not None]


def report_about(relay: RelayProcess, address: str, *, person: str = "alice") -> Report:
    """Wait for the report about `address`; there must be one only."""

    def found() -> list[Report]:
        return [report for report in reports_of(relay, person) if address in report.recipients]

    reports = until(f"{person} has a report about {address}", found)
    assert len(reports) == 1, f"{len(reports)} reports about {address}"
    return reports[0]


def _fields(block: Message) -> dict[str, str]:
    return {name.lower(): " ".join(str(value).split()) for name, value in block.items()}
