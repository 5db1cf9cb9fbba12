"""The search of Mailpit's API: its terms as a search of the index. All must hold.

A term is a part of a text; `-` or `!` before it excludes what it finds. As in Mailpit, a term
without a value is ignored, and so is a date or size that cannot be read.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo

from msgspec import Struct
from msgspec.structs import replace

from relay.http.errors import bad_request
from relay.journeys.text_index import TEXT_FIELDS, SearchTerm, TextSearch
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
_FLAGS = {
    "has:attachment": "has_attachment", "has:attachments": "has_attachment",
    "has:inline": "has_inline", "has:inlines": "has_inline",
}  # fmt: skip
_LOWER, _UPPER = ("from_us", "larger_than_bytes"), ("to_us", "smaller_than_bytes")
_BOUNDS = {  # which bound a term sets, and which with how much more if it is excluded
    "after": (_LOWER[0], _UPPER[0], -1), "before": (_UPPER[0], _LOWER[0], 1),
    "larger": (_LOWER[1], _UPPER[1], 1), "smaller": (_UPPER[1], _LOWER[1], -1),
}  # fmt: skip


class MailpitSearch(Struct, frozen=True):
    """What the index is asked, and what all must be: read, or not."""

    index: TextSearch = TextSearch()
    marks: frozenset[bool] = frozenset()
    is_possible: bool = True  # no terms exclude each other, or ask for a tag


def parse_mailpit_search(text: str, zone: str) -> MailpitSearch:
    """Return the conditions; times are in the zone with this IANA name. Raises ApiError 400."""
    if not (terms := _TERM.findall(text[: CHARACTERS_MAX + 1])):
        raise bad_request("Error: no search query")
    if len(text) > CHARACTERS_MAX or len(terms) > TERMS_MAX:
        most = f"expected at most {CHARACTERS_MAX:,} characters and {TERMS_MAX} terms"
        raise bad_request(f"query: found a search of {len(text):,} characters, {most}.")
    try:
        place: tzinfo = time_zone(zone)
    except ValueError:
        place = UTC
    wanted = MailpitSearch()
    for term in terms:
        plain = term.replace('"', "").strip().lower()
        is_excluded = len(plain) > 1 and plain[0] in "-!"
        wanted = _with(wanted, plain[is_excluded:].strip(), place, is_excluded=is_excluded)
    return wanted


def _with(wanted: MailpitSearch, term: str, zone: tzinfo, *, is_excluded: bool) -> MailpitSearch:
    index, (name, colon, value) = wanted.index, term.partition(":")
    if term in ("is:read", "is:unread"):
        return replace(wanted, marks=wanted.marks | {(term == "is:read") != is_excluded})
    is_possible = wanted.is_possible
    if term == "is:tagged" or (colon and name == "tag"):
        is_possible &= is_excluded
    elif flag := _FLAGS.get(term):
        is_possible &= getattr(index, flag) in (None, not is_excluded)
        index = replace(index, **{flag: not is_excluded})
    elif colon and name in _BOUNDS:
        bound, other, more = _BOUNDS[name]
        number = _size(value) if "larger_than_bytes" in (bound, other) else _time_us(value, zone)
        if number:
            bound, number = (other, number + more) if is_excluded else (bound, number)
            before = getattr(index, bound)
            strictest = max if bound in _LOWER else min
            index = replace(index, **{bound: strictest(number, before or number)})
    elif text := (value.strip() if colon and name in _FIELDS else term):
        fields = _FIELDS.get(name, TEXT_FIELDS) if colon else TEXT_FIELDS
        index = replace(index, terms=(*index.terms, SearchTerm(text, fields, is_excluded)))
    return replace(wanted, index=index, is_possible=is_possible)


def _time_us(value: str, zone: tzinfo) -> int:
    """Return a time, 0 if it cannot be read."""
    try:
        at = datetime.fromisoformat(value.replace("/", "-"))
        return int((at if at.tzinfo else at.replace(tzinfo=zone)).timestamp() * 1_000_000)
    except (ValueError, OverflowError):
        return 0


def _size(value: str) -> int:
    """Return a number of bytes, 0 if it cannot be read."""
    found = _SIZE.fullmatch(value)
    return int(float(found[1]) * _BYTES[found[2]]) if found else 0
