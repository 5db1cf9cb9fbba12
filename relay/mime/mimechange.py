"""Change a draft that is MIME: the fields and the body that a PATCH names, and nothing else.

On the path: the store composes the next generation of a MIME draft with it.
Holds: what is not named stays octet for octet, attachments and inline parts above all; they are
spliced, so that of a large draft only headers and the new text are in memory. A body that had a
text beside its html has one again.
Fails: SealedError where the body is signed or encrypted; OSError where the content cannot be read.
Standards: RFC 5322 3.6; RFC 2046 5.1.4 (alternative); RFC 2387 (related); RFC 1847.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from relay.message.content import Octets
from relay.message.extended import header_fields_of
from relay.message.properties import MessageProperties
from relay.mime.fields import people_field
from relay.mime.mimebody import change_body
from relay.mime.mimeedits import Edits
from relay.mime.mimeread import sorted_leaves
from relay.mime.propertyfields import header_fields
from relay.mime.section import split_fields
from relay.mime.structure import read_structure

_BODY = ("body", "body_type")
# Which fields tell a property; all of them go when it changes, and one may come anew.
_FIELDS_OF: Mapping[str, Sequence[str]] = {
    "subject": ("Subject", "Thread-Topic"),
    "from_": ("From", "Sender"),
    "sender": ("Sender",),
    "to": ("To",),
    "cc": ("Cc",),
    "bcc": ("Bcc",),
    "reply_to": ("Reply-To",),
    "internet_message_id": ("Message-ID",),
    "importance": ("Importance", "X-Priority", "X-MSMail-Priority", "Priority"),
    "sensitivity": ("Sensitivity",),
    "categories": ("Keywords",),
    "read_receipt": ("Disposition-Notification-To",),
    "in_reply_to": ("In-Reply-To",),
    "references": ("References",),
    "conversation_index": ("Thread-Index",),
}
_NOT_KEPT = frozenset(
    ("resent-bcc", *(name.lower() for names in _FIELDS_OF.values() for name in names))
)


def changed_mime(
    content: Octets, before: MessageProperties, after: MessageProperties
) -> tuple[Octets, ...]:
    """Return MIME content with the properties of `after` where they differ from `before`.

    `before` is what the content was read as. Reading blocks. Raises SealedError, OSError.
    """
    structure = read_structure(content)
    changed = [name for name in _FIELDS_OF if getattr(before, name) != getattr(after, name)]
    names = [name for one in changed for name in _FIELDS_OF[one]]
    if before.extended != after.extended:
        names += [name for name, _ in header_fields_of((*before.extended, *after.extended))]
    edits = Edits(structure)
    edits.replace_fields(names, _written(after))
    if any(getattr(before, name) != getattr(after, name) for name in _BODY):
        change_body(edits, sorted_leaves(structure), body_type=after.body_type, body=after.body)
    return edits.applied(content)


def told_once(properties: MessageProperties) -> MessageProperties:
    """Return what was read of MIME as a draft of properties says it: no header tells again what a
    property tells, and none who is hidden.
    """
    headers = properties.internet_message_headers
    kept = tuple(one for one in headers if one[0].lower() not in _NOT_KEPT)
    return replace(properties, internet_message_headers=kept)


def _written(properties: MessageProperties) -> list[tuple[bytes, bytes]]:
    """Return all fields of properties, with their names in lower case."""
    told = replace(properties, internet_message_headers=())  # they are all fields that there are
    fields = header_fields(told, message_id=properties.internet_message_id, date_us=0)
    header = people_field("Bcc", properties.bcc) + fields
    return list(split_fields(header.encode()))
