"""Read and edit the header of a message in transit, and leave every other octet as it is.

Ingress adds trace fields, policy edits, delivery and DSNs read. The content has CRLF line ends, as
every accepted message has; drafts and other files of mailboxes are read by relay.mime.read_header.
Order, folding and body stay. No value can inject another field: a name or value that is not allowed
in a header raises ValueError. A damaged header never raises.
This module also has the relay's id of delivered messages (X-Relay-Id) and the priority that a
header asks for.
RFC 5322 2.2, 3.6; RFC 5321 4.4 (Received, Return-Path); RFC 3848 and 6531 4.3 (protocols); RFC 2156
5.3.6 (Importance, Priority), RFC 2369 (List-Unsubscribe); X-Priority and Precedence as used.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache

from relay.mime.encoded_words import decode_words, encode_text

LINE_OCTETS_MAX = 998  # without its CRLF
_LINE_OCTETS_WANTED = 78
_PLAIN_WORD_MAX = 60  # a longer word is encoded if any word needs encoding
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_PRIVATE_PREFIX = b"x-relay-"

_field = re.compile(rb"([!-9;-~]+)[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*(?:\n|\Z)")
_field_name = re.compile(r"[!-9;-~]{1,126}").fullmatch  # RFC 5322 2.2
_forbidden = re.compile(r"[\r\n\0]").search
_reply_prefixes = re.compile(r"(?:(?:re|fwd?|aw|wg|sv|vs|rv|tr)(?:\[\d+\])?:\s*)*", re.IGNORECASE)
_unsafe_in_trace = re.compile(r"[^A-Za-z0-9.:\[\]_-]")


@dataclass(frozen=True, slots=True)
class HeaderField:
    """One field: its name in lower case, and the place of its octets with folding and CRLF."""

    name: bytes
    start: int
    value_start: int
    end: int


def is_field_name(name: str) -> bool:
    """Return whether `name` is a valid field name."""
    return _field_name(name) is not None


def header_size(content: bytes) -> int:
    """Return the size of the header section: the place of its blank line, or of the missing one.

    0 for content that begins with a blank line, white space, or no field at all.
    """
    if not _field.match(content):
        return 0
    blank = content.find(b"\r\n\r\n")
    return len(content) if blank < 0 else blank + 2


def fields(content: bytes) -> Iterator[HeaderField]:
    """Yield the fields in their order; lines that are not fields are skipped."""
    position, end = 0, header_size(content)
    while position < end:
        found = _field.match(content, position, end)
        if found:
            value_start = content.index(b":", found.end(1)) + 1
            yield HeaderField(found.group(1).lower(), position, value_start, found.end())
            position = found.end()
        else:
            position = content.find(b"\n", position, end) + 1 or end


def first(content: bytes, name: str) -> bytes | None:
    """Return the unfolded value of the first field called `name`, None if there is none."""
    field = next(_named(content, name), None)
    return None if field is None else _value(content, field)


def decoded(content: bytes, name: str) -> str:
    """Return the RFC 2047 decoded text of the first field called `name`; "" if none."""
    value = first(content, name)
    return "" if value is None else decode_words(value)


def count(content: bytes, name: str) -> int:
    """Return how many fields are called `name`."""
    return sum(1 for _ in _named(content, name))


def prepend(content: bytes, new_fields: bytes) -> bytes:
    """Return `content` with complete lines (each with its CRLF) before its header.

    Content without a header gets a blank line after them.
    """
    if header_size(content) or content.startswith(b"\r\n"):
        return new_fields + content
    return new_fields + b"\r\n" + content


def append(content: bytes, new_fields: bytes) -> bytes:
    """Return `content` with complete lines at the end of its header, after the trace fields."""
    end = header_size(content)
    if not end:
        return prepend(content, new_fields)
    line_end = b"" if content[:end].endswith(b"\n") else b"\r\n"
    return content[:end] + line_end + new_fields + content[end:]


def remove(content: bytes, names: Collection[str]) -> bytes:
    """Return `content` without the fields called one of `names`."""
    wanted = frozenset(name.lower().encode() for name in names)
    lowered = content[: header_size(content)].lower()
    if not any(name in lowered for name in wanted):
        return content
    return _without(content, (each for each in fields(content) if each.name in wanted))


def strip_private(content: bytes) -> bytes:
    """Return arriving `content` without `X-Relay-*` fields: a client could forge them."""
    if _PRIVATE_PREFIX not in content[: header_size(content)].lower():
        return content
    private = (each for each in fields(content) if each.name.startswith(_PRIVATE_PREFIX))
    return _without(content, private)


def set_field(content: bytes, name: str, value: str) -> bytes:
    """Return `content` with exactly one field `name`: the first is replaced, others are removed.

    If there was none, it is added at the end of the header. Raises ValueError as field() does.
    """
    new = field(name, value)
    existing = list(_named(content, name))
    if not existing:
        return append(content, new)
    where = existing[0]
    content = _without(content, existing[1:])
    return content[: where.start] + new + content[where.end :]


def field(name: str, value: str) -> bytes:
    """Return a whole folded field with its CRLF; text that is not ASCII becomes RFC 2047 words.

    Raises ValueError for an invalid name, and for CR, LF or NUL in the value.
    """
    if not is_field_name(name):
        raise ValueError(
            f"{name!r} is not a header field name: expected printable ASCII without ':'"
        )
    if _forbidden(value):
        raise ValueError(f"the value of {name} must not have CR, LF or NUL in it")
    if value.isascii():
        lines = _folded(name, value.split(" "))
        if all(len(line) <= LINE_OCTETS_MAX for line in lines):
            return "\r\n".join((*lines, "")).encode("ascii")
    return "\r\n".join((*_folded(name, _encoded(name, value)), "")).encode("ascii")


def fold(name: str, value: str) -> bytes:
    """Return a whole folded field with its CRLF in UTF-8, without encoded words.

    For trace fields and DSNs. The caller guarantees that `value` has no CR, LF or NUL.
    """
    return "\r\n".join((*_folded(name, value.split(" ")), "")).encode("utf-8")


def prefix_subject(content: bytes, tag: str) -> bytes:
    """Return `content` with `tag` and a space before its Subject, unless the tag is there already.

    A tag after a prefix such as `Re:` counts. The octets of the old value stay as they are.
    Raises ValueError for CR, LF or NUL in the tag.
    """
    tag = tag.strip()
    if not tag:
        return content
    subject = next(_named(content, "subject"), None)
    if subject is None:
        return append(content, field("Subject", tag))
    raw = content[subject.value_start : subject.end]
    if _is_tagged(decode_words(_value(content, subject)), tag):
        return content
    old = raw.lstrip(b" \t\r\n")
    # A space between two encoded words is not shown, so an encoded tag contains it.
    head = field("Subject", tag if tag.isascii() or not old.startswith(b"=?") else f"{tag} ")[:-2]
    last_line = head.rpartition(b"\n")[2]
    fits = len(last_line) + 1 + len(old.partition(b"\r\n")[0]) <= _LINE_OCTETS_WANTED
    new = head + (b" " if fits else b"\r\n ") + old if old else head + b"\r\n"
    return content[: subject.start] + new + content[subject.end :]


def protocol(*, extended: bool, tls: bool, authenticated: bool, smtputf8: bool = False) -> str:
    """Return the `with` word of a Received field: SMTP, ESMTPSA, UTF8SMTPS ... (RFC 3848, 6531)."""
    if not extended:
        return "SMTP"
    base = "UTF8SMTP" if smtputf8 else "ESMTP"
    return base + ("S" if tls else "") + ("A" if authenticated else "")


def received(
    *,
    helo: str,
    ip: str,
    hostname: str,
    protocol: str,
    queue_id: str,
    time_us: int,
    recipient: str = "",
) -> bytes:
    """Return the trace field of this hop (RFC 5321 4.4), folded, with its CRLF.

    `helo` is the argument of the client's EHLO, `ip` its address ("" for a Unix socket).
    `recipient` is given only if there is a single one: `for` must not show a Bcc.
    """
    greeted = _unsafe_in_trace.sub("?", helo[:255]) or "unknown"
    ip = ip.partition("%")[0]  # a link-local address without its interface
    literal = f" ([IPv6:{ip}])" if ":" in ip else f" ([{ip}])" if ip else ""
    wanted = f"\r\n\tfor <{recipient}>" if recipient else ""
    text = (
        f"Received: from {greeted}{literal}\r\n\tby {hostname} with {protocol} id {queue_id}"
        f"{wanted};\r\n\t{date_field(time_us)}\r\n"
    )
    return text.encode()


def date_field(time_us: int) -> str:
    """Return the time as RFC 5322 3.3 writes it, in UTC: "Fri, 20 Nov 2026 10:04:00 +0000"."""
    return _date_of_second(time_us // 1_000_000)


@lru_cache(maxsize=64)
def _date_of_second(second: int) -> str:
    when = datetime.fromtimestamp(second, UTC)
    return (
        f"{_WEEKDAYS[when.weekday()]}, {when.day:02d} {_MONTHS[when.month - 1]} {when.year}"
        f" {when:%H:%M:%S} +0000"
    )


def _named(content: bytes, name: str) -> Iterator[HeaderField]:
    """Yield the fields called `name`: one search for the name, not a loop over all fields."""
    lowered = content[: header_size(content)].lower()
    wanted = name.lower().encode()
    position = lowered.find(wanted)
    while position >= 0:
        if position == 0 or lowered[position - 1 : position] == b"\n":
            found = _field.match(content, position, len(lowered))
            if found and found.end(1) - position == len(wanted):
                value_start = content.index(b":", found.end(1)) + 1
                yield HeaderField(wanted, position, value_start, found.end())
        position = lowered.find(wanted, position + len(wanted))


def _value(content: bytes, field: HeaderField) -> bytes:
    """Return the unfolded value: line ends are removed, white space stays (RFC 5322 2.2.3)."""
    raw = content[field.value_start : field.end]
    return raw.replace(b"\r", b"").replace(b"\n", b"").strip(b" \t")


def _is_tagged(subject: str, tag: str) -> bool:
    replies = _reply_prefixes.match(subject)
    for start in {0, replies.end() if replies else 0}:
        following = subject[start + len(tag) : start + len(tag) + 1]
        if subject.startswith(tag, start) and not (tag[-1].isalnum() and following.isalnum()):
            return True
    return False


def _without(content: bytes, unwanted: Iterable[HeaderField]) -> bytes:
    """Remove the fields, which are sorted by position. The rest is joined once: linear time."""
    kept, position = [], 0
    for field in unwanted:
        kept.append(content[position : field.start])
        position = field.end
    return b"".join((*kept, content[position:])) if kept else content


def _encoded(name: str, value: str) -> list[str]:
    """Return the words of `value`; from the first that is not ASCII on they are encoded words."""
    words = value.split(" ")
    plain = 0
    while words[plain].isascii() and 0 < len(words[plain]) <= _PLAIN_WORD_MAX:
        plain += 1  # the loop ends: a value of plain words is not encoded
    taken = len(name) + len(": ") + sum(len(word) + 1 for word in words[:plain])
    if taken > _LINE_OCTETS_WANTED // 2:
        taken = len(" ")  # on a line of its own instead of a very short word
    return [*words[:plain], *encode_text(" ".join(words[plain:]), taken=taken)]


def _folded(name: str, words: list[str]) -> list[str]:
    """Join words by single spaces into lines; a word that does not fit starts a new line."""
    lines, line = [], f"{name}:"
    for index, word in enumerate(words):
        # Some readers end the header at a line of white space, so "" never starts a line.
        if index and word and line.strip() and len(line) + 1 + len(word) > _LINE_OCTETS_WANTED:
            lines.append(line)
            line = f" {word}"
        else:
            line += f" {word}"
    return [*lines, line]


class Priority(IntEnum):
    """The priority of a message in the queue; lower values first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


_BULK = frozenset((b"bulk", b"list", b"junk"))
_BY_WORD = {
    "Importance": {b"high": Priority.HIGH, b"low": Priority.LOW},
    "Priority": {b"urgent": Priority.HIGH, b"non-urgent": Priority.LOW},
    "X-Priority": {b"1": Priority.HIGH, b"2": Priority.HIGH},
}
_HINTS = (b"importance", b"priority", b"precedence", b"list-unsubscribe")
_WORD_OCTETS_MAX = 64  # for example "1 (Highest)"


def priority_of(content: bytes) -> Priority:
    """Return the priority that the header asks for. Bulk and list mail is always LOW."""
    lowered = content[: header_size(content)].lower()
    for hint in _HINTS:
        if hint in lowered:
            break
    else:  # almost all messages
        return Priority.NORMAL
    if b"list-unsubscribe" in lowered and count(content, "List-Unsubscribe"):
        return Priority.LOW
    if _word(content, "Precedence") in _BULK:
        return Priority.LOW
    found = [words.get(_word(content, name)) for name, words in _BY_WORD.items()]
    return next((priority for priority in found if priority is not None), Priority.NORMAL)


def _word(content: bytes, name: str) -> bytes:
    """Return the first word of a field in lower case, b"" if none. The rest is a comment."""
    value = first(content, name) or b""
    words = value[:_WORD_OCTETS_MAX].lower().split(None, 1)
    return words[0] if words else b""


ID_WITHIN_BYTES = 1200  # the id is in line 1 or 2; a line has at most 998 octets
_RETURN_PATH = b"Return-Path:"
_FIELD = re.compile(rb"(?:\A|\n)X-Relay-Id:[ \t]*([0-9a-z]{16})[ \t]*\r?\n", re.IGNORECASE)


def with_relay_id(content: bytes, message_id: str) -> bytes:
    """Return a content, or its header, with X-Relay-Id after Return-Path, or else as line 1."""
    position = content.find(b"\n") + 1 if content.startswith(_RETURN_PATH) else 0
    return b"%bX-Relay-Id: %b\r\n%b" % (content[:position], message_id.encode(), content[position:])


def read_relay_id(beginning: bytes) -> str:
    """Return the id in line 1 or 2, "" if none. `beginning` has at least ID_WITHIN_BYTES.

    Arriving mail loses its X-Relay-* fields, so that delivery wrote the id that is found.
    """
    found = _FIELD.search(beginning, 0, ID_WITHIN_BYTES)
    if found is None or beginning.count(b"\n", 0, found.start(1)) > 1:
        return ""
    return found[1].decode("ascii").lower()
