"""The search of Mailpit's API: its terms as a search of the index. All must hold.

A term is a part of a text; `-` or `!` before it excludes what it finds. As in Mailpit, a term
without a value is ignored, and so is a date or size that cannot be read.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, tzinfo

from msgspec.structs import replace

from relay.http.errors import bad_request
from relay.journeys.message_list import TEXT_FIELDS, SearchedNumber, SearchTerm, TextSearch
from relay.message.time_zones import time_zone

CHARACTERS_MAX = 2000
TERMS_MAX = 100
_TERM = re.compile(r'(?:"[^"]*+(?:"|\Z)|[^\s"])++')
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([km]?)b?", re.ASCII)
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20}
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "from": ("sender",), "to": ("recipient",), "cc": ("cc",), "bcc": ("bcc",),
    "reply-to": ("reply_to",), "subject": ("subject",), "message-id": ("message_id",),
    "addressed": ("sender", "recipient", "cc", "bcc", "reply_to"),
}  # fmt: skip
_MARKS = {"is:read": True, "is:unread": False}


def parse_mailpit_search(text: str, zone: str) -> tuple[TextSearch, set[bool]]:
    """Return what the index is asked, and what each message must be: read, or not. Times are in
    the zone with this IANA name. Raises ApiError 400.
    """
    if not (given := _TERM.findall(text[: CHARACTERS_MAX + 1])):
        raise bad_request("Error: no search query")
    if len(text) > CHARACTERS_MAX or len(given) > TERMS_MAX:
        most = f"expected at most {CHARACTERS_MAX:,} characters and {TERMS_MAX} terms"
        raise bad_request(f"query: found a search of {len(text):,} characters, {most}.")
    try:
        place: tzinfo = time_zone(zone)
    except ValueError:
        place = UTC
    terms: list[SearchTerm] = []
    numbers: list[SearchedNumber] = []
    marks: set[bool] = set()
    for one in given:
        plain = one.replace('"', "").strip().lower()
        is_excluded = len(plain) > 1 and plain[0] in "-!"
        term = plain[is_excluded:].strip()
        name, colon, value = term.partition(":")
        fields = _FIELDS.get(name) if colon else None
        if term in _MARKS:
            marks.add(_MARKS[term] != is_excluded)
            continue
        with suppress(ValueError, OverflowError):  # a date or size that cannot be read
            if number := _number(term, place):
                numbers.append(replace(number, is_excluded=is_excluded))
            elif wanted := (value.strip() if fields else term):
                terms.append(SearchTerm(wanted, fields or TEXT_FIELDS, is_excluded))
    return TextSearch(tuple(terms), tuple(numbers)), marks


def _number(term: str, zone: tzinfo) -> SearchedNumber | None:
    """Return the condition on a number, None for a text. Raises ValueError, OverflowError."""
    match term.split(":", 1):
        case ["after", value]:
            return SearchedNumber("accepted_us", _time_us(value, zone))
        case ["before", value]:
            return SearchedNumber("accepted_us", high=_time_us(value, zone))
        case ["larger", value]:
            return SearchedNumber("size_bytes", _size(value) + 1)
        case ["smaller", value]:
            return SearchedNumber("size_bytes", high=_size(value) - 1)
        case ["has", "attachment" | "attachments"]:
            return SearchedNumber("attachments", 1)
        case ["has", "inline" | "inlines"]:
            return SearchedNumber("inline", 1)
        case ["tag", _] | ["is", "tagged"]:
            return SearchedNumber("size_bytes", high=-1)  # nothing
    return None


def _time_us(value: str, zone: tzinfo) -> int:
    at = datetime.fromisoformat(value.replace("/", "-"))
    return int((at if at.tzinfo else at.replace(tzinfo=zone)).timestamp() * 1_000_000)


def _size(value: str) -> int:
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ValueError(value)
    return int(float(found[1]) * _BYTES[found[2]])
