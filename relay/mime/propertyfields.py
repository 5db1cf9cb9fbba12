"""The header of a message of properties: which field each of them becomes.

On the path: the draft form (step 1) and conversion (step 3) begin with it.
Holds: ASCII but for local parts of addresses; no Bcc; the same properties give the same fields.
Fails: never.
Standards: RFC 5322 3.6; RFC 4021 (Importance, Sensitivity); RFC 8098 2.1; MS-OXCMAIL 2.1.3.
"""

from collections.abc import Iterator

from relay.message.extended import header_fields_of
from relay.message.properties import MessageProperties, Person
from relay.mime.conversation import topic_of
from relay.mime.fields import CRLF, ids_field, people_field, phrases_field, raw_field, text_field
from relay.mime.headers import date_field

_PRIORITIES = {"low": "5 (Lowest)", "high": "1 (Highest)"}
_SENSITIVITIES = {
    "personal": "Personal",
    "private": "Private",
    "confidential": "Company-Confidential",
}


def header_fields(properties: MessageProperties, *, message_id: str, date_us: int) -> str:
    """Return all fields but Bcc and what tells of the body; "" and 0 leave theirs out."""
    people = (
        people_field("From", [properties.from_] if properties.from_ else []),
        people_field("Sender", list(filter(None, [sender_beside(properties)]))),
        people_field("Reply-To", properties.reply_to),
        people_field("To", properties.to),
        people_field("Cc", properties.cc),
    )
    return "".join(
        (
            *people,
            text_field("Subject", properties.subject) if properties.subject else "",
            raw_field("Date", date_field(date_us)) if date_us else "",
            raw_field("Message-ID", message_id) if message_id else "",
            *_conversation_fields(properties),
            *_wishes(properties),
            phrases_field("Keywords", properties.categories),
            *_other_fields(properties),
            f"MIME-Version: 1.0{CRLF}",
        )
    )


def sender_beside(properties: MessageProperties) -> Person | None:
    """Return who sends on behalf of From, None where that is the author."""
    sender, author = properties.sender, properties.from_
    is_author = sender and author and sender.address.lower() == author.address.lower()
    return None if is_author else sender


def _conversation_fields(properties: MessageProperties) -> tuple[str, ...]:
    index = properties.conversation_index
    topic = topic_of(properties.subject) if index else ""
    return (
        ids_field("In-Reply-To", (properties.in_reply_to,) if properties.in_reply_to else ()),
        ids_field("References", properties.references),
        text_field("Thread-Topic", topic) if topic else "",
        raw_field("Thread-Index", _folded_index(index)) if index else "",
    )


def _folded_index(index: str) -> str:
    """Readers of base64 pass white space over."""
    pieces = [index[start : start + 60] for start in range(0, len(index), 60)]
    return f"{CRLF} ".join(pieces)


def _wishes(properties: MessageProperties) -> tuple[str, ...]:
    priority = _PRIORITIES.get(properties.importance)
    sensitivity = _SENSITIVITIES.get(properties.sensitivity)
    asked_by = sender_beside(properties) or properties.from_
    return (
        f"Importance: {properties.importance}{CRLF}" if priority else "",
        f"X-Priority: {priority}{CRLF}" if priority else "",
        f"Sensitivity: {sensitivity}{CRLF}" if sensitivity else "",
        people_field(
            "Disposition-Notification-To",
            [asked_by] if asked_by and properties.read_receipt else [],
        ),
    )


def _other_fields(properties: MessageProperties) -> Iterator[str]:
    """Headers that were given, and fields that extended properties stand for; what the message has
    already is not written twice (MS-OXCMAIL 2.1.3.1, arbitrary headers).
    """
    had = {"x-priority"} if properties.importance in _PRIORITIES else set()
    for name, value in properties.internet_message_headers:
        if name.lower() not in had:
            yield text_field(name, value)
    had |= {name.lower() for name, _ in properties.internet_message_headers}
    for name, value in header_fields_of(properties.extended):
        if name.lower() not in had:
            yield text_field(name, value)
            had.add(name.lower())
