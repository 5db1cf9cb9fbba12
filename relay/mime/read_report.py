"""Read a delivery report: its fields, and one plain sentence for each recipient.

Any content is accepted: a message that is no report gives None, and damage leaves fields out. What
is read is bounded. Reading blocks; raises OSError where the octets cannot be read.
RFC 3464 (message/delivery-status), RFC 6533 (message/global-delivery-status), RFC 6522
(multipart/report).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from relay.message.content import Octets
from relay.message.header import Header, cleaned
from relay.mime.encoded_words import decode_words
from relay.mime.structure import read_structure

_STATUS = ("message/delivery-status", "message/global-delivery-status")
_STATUS_OCTETS_MAX = 64 * 1024
_GROUPS_MAX = 100
_FIELDS_MAX = 30
_VALUE_CHARACTERS_MAX = 500
_ACTIONS = {
    "failed": "was not delivered",
    "delayed": "is not delivered yet",
    "delivered": "was delivered",
    "relayed": "was passed on to a host that sends no reports",
    "expanded": "was delivered to a list, and sent to its members",
}
_RETURNED = ("message/rfc822", "message/global")
_RETURNED_OCTETS_MAX = 2 * 1024 * 1024
_PLAIN = frozenset(("", "7bit", "8bit", "binary"))
_blank_line = re.compile(rb"\r?\n\r?\n")
_white = re.compile(rb"\s+")

ReportFields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RecipientReport:
    """The part of a report that is about one recipient; `text` says it in a sentence."""

    address: str
    text: str
    fields: ReportFields


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """A report: the fields about the message as a whole, and its recipients.

    `envelope_id` is the Original-Envelope-Id: the submission id of a message that Relay sent.
    """

    fields: ReportFields
    recipients: tuple[RecipientReport, ...]
    envelope_id: str

    @property
    def tables(self) -> list[tuple[str, ReportFields]]:
        """The fields of each recipient, with its address."""
        return [(one.address, one.fields) for one in self.recipients]


def read_report(content: Octets) -> DeliveryReport | None:
    """Return what a delivery report says, None for another message."""
    structure = read_structure(content)
    if structure.message.content_type != "multipart/report":
        return None
    for entity in structure.entities:
        if entity.content_type in _STATUS:
            size = min(entity.end - entity.body_start, _STATUS_OCTETS_MAX)
            return _report_of(content.read(entity.body_start, size))
    return None


def returned_message(content: Octets) -> bytes | None:
    """Return the message that a report returns in whole, None if it has none or only its header.

    Reading blocks; raises OSError where the octets cannot be read.
    """
    structure = read_structure(content)
    if structure.message.content_type != "multipart/report":
        return None
    for entity in structure.entities:
        size = entity.end - entity.body_start
        is_whole = entity.content_type in _RETURNED and entity.encoding in _PLAIN
        if is_whole and entity.parent == 0 and 0 < size <= _RETURNED_OCTETS_MAX:
            return content.read(entity.body_start, size)
    return None


def _report_of(status: bytes) -> DeliveryReport | None:
    groups = [fields for group in _groups(status) if (fields := _fields(group))]
    if not groups:
        return None
    about, *recipients = groups
    return DeliveryReport(
        about,
        tuple(_recipient(fields) for fields in recipients),
        _value(about, "original-envelope-id"),
    )


def _groups(status: bytes) -> Iterator[bytes]:
    for group in _blank_line.split(status.strip(b"\r\n"), maxsplit=_GROUPS_MAX)[:_GROUPS_MAX]:
        yield group.strip(b"\r\n") + b"\r\n"


def _fields(group: bytes) -> ReportFields:
    """Return names and values, unfolded and decoded."""
    found = []
    for name, line in Header.parse(cleaned(group)).fields[:_FIELDS_MAX]:
        if name:
            written, _, value = line.partition(b":")
            text = decode_words(_white.sub(b" ", value).strip())[:_VALUE_CHARACTERS_MAX]
            found.append((written.decode("ascii", "replace").strip(), text))
    return tuple(found)


def _value(fields: ReportFields, name: str) -> str:
    return next((text for given, text in fields if given.lower() == name), "")


def _typed(fields: ReportFields, name: str) -> str:
    """Return the value of a field without its type, as in "rfc822; bob@example.org"."""
    text = _value(fields, name)
    return text.partition(";")[2].strip() if ";" in text else text


def _recipient(fields: ReportFields) -> RecipientReport:
    address = _typed(fields, "original-recipient") or _typed(fields, "final-recipient")
    action = _value(fields, "action").lower()
    status, reply = _value(fields, "status"), _typed(fields, "diagnostic-code")
    said = reply if status in reply else f"{status} {reply}".strip()
    by = _typed(fields, "remote-mta")
    text = f"{address or 'A recipient'} {_ACTIONS.get(action, f'has the action {action!r}')}"
    if said:
        text += f": {f'{by} said ' if by else ''}{said}"
    return RecipientReport(address, f"{text}.", fields)
