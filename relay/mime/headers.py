"""Read and edit the header section of a message as bytes, every other octet left as it is.

On the path: ingress adds trace fields, policy edits, delivery and dsn read; nobody parses the body.
Holds: content has CRLF line ends, as whatever was accepted (drafts and other files of mailboxes are
section's); order, folding and body stay; no field can inject another.
Fails: ValueError for a name or value that cannot stand in a header; damaged headers never raise.
Standards: RFC 5322 2.2, 3.6; RFC 5321 4.4 (Received); RFC 3848 and 6531 4.3 (protocols).
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from relay.mime.encodedwords import decode_words, encode_text

LINE_OCTETS_MAX = 998  # without its CRLF
_LINE_OCTETS_WANTED = 78
_PLAIN_WORD_MAX = 60  # a longer word is encoded where encoding is needed anyway
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_PRIVATE_PREFIX = b"x-relay-"

_field = re.compile(rb"([!-9;-~]+)[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*(?:\n|\Z)")
_field_name = re.compile(r"[!-9;-~]{1,126}").fullmatch  # RFC 5322 2.2
_forbidden = re.compile(r"[\r\n\0]").search
_reply_prefixes = re.compile(r"(?:(?:re|fwd?|aw|wg|sv|vs|rv|tr)(?:\[\d+\])?:\s*)*", re.IGNORECASE)
_unsafe_in_trace = re.compile(r"[^A-Za-z0-9.:\[\]_-]")


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name in lower case, and where its octets (folding and CRLF included) are."""

    name: bytes
    start: int
    value_start: int
    end: int


def is_field_name(name: str) -> bool:
    """Whether a field may be called so."""
    return _field_name(name) is not None


def split(content: bytes) -> int:
    """Return where the header section ends: where its blank line is, or would have to be.

    0 if there is none: content that begins with a blank line, white space, or no field at all.
    """
    if not _field.match(content):
        return 0
    blank = content.find(b"\r\n\r\n")
    return len(content) if blank < 0 else blank + 2


def fields(content: bytes) -> Iterator[Field]:
    """Yield the fields in their order; a line that is none is passed over."""
    position, end = 0, split(content)
    while position < end:
        found = _field.match(content, position, end)
        if found:
            value_start = content.index(b":", found.end(1)) + 1
            yield Field(found.group(1).lower(), position, value_start, found.end())
            position = found.end()
        else:
            position = content.find(b"\n", position, end) + 1 or end


def first(content: bytes, name: str) -> bytes | None:
    """Return the unfolded value of the first field called `name`, None if there is none."""
    field = next(_named(content, name), None)
    return None if field is None else _value(content, field)


def decoded(content: bytes, name: str) -> str:
    """Return the first field called `name` as text for people, RFC 2047 decoded; "" if none."""
    value = first(content, name)
    return "" if value is None else decode_words(value)


def count(content: bytes, name: str) -> int:
    """Return how many fields are called `name`."""
    return sum(1 for _ in _named(content, name))


def prepend(content: bytes, new_fields: bytes) -> bytes:
    """Return `content` with complete lines (each with its CRLF) in front of its header.

    Content that has no header gets the blank line that then must follow.
    """
    if split(content) or content.startswith(b"\r\n"):
        return new_fields + content
    return new_fields + b"\r\n" + content


def append(content: bytes, new_fields: bytes) -> bytes:
    """Return `content` with complete lines behind its header: trace fields stay in front."""
    end = split(content)
    if not end:
        return prepend(content, new_fields)
    line_end = b"" if content[:end].endswith(b"\n") else b"\r\n"
    return content[:end] + line_end + new_fields + content[end:]


def remove(content: bytes, names: Collection[str]) -> bytes:
    """Return `content` without the fields called one of `names`."""
    wanted = frozenset(name.lower().encode() for name in names)
    lowered = content[: split(content)].lower()
    if not any(name in lowered for name in wanted):
        return content
    return _without(content, (each for each in fields(content) if each.name in wanted))


def strip_private(content: bytes) -> bytes:
    """Return arriving `content` without any `X-Relay-*` field: nobody may forge one."""
    if _PRIVATE_PREFIX not in content[: split(content)].lower():
        return content
    private = (each for each in fields(content) if each.name.startswith(_PRIVATE_PREFIX))
    return _without(content, private)


def set_field(content: bytes, name: str, value: str) -> bytes:
    """Return `content` with exactly one field `name`: the first is replaced, further ones go.

    Where there was none it goes to the end of the header. Raises ValueError as field() does.
    """
    new = field(name, value)
    existing = list(_named(content, name))
    if not existing:
        return append(content, new)
    where = existing[0]
    content = _without(content, existing[1:])
    return content[: where.start] + new + content[where.end :]


def field(name: str, value: str) -> bytes:
    """Return a whole field, folded, what is not ASCII as RFC 2047 words, with its CRLF.

    Raises ValueError for a name that is no field name and for CR, LF or NUL in the value.
    """
    if not is_field_name(name):
        raise ValueError(f"{name!r} is no header field name: expected printable ASCII without ':'")
    if _forbidden(value):
        raise ValueError(f"the value of {name} must not have CR, LF or NUL in it")
    if value.isascii():
        lines = _folded(name, value.split(" "))
        if all(len(line) <= LINE_OCTETS_MAX for line in lines):
            return "\r\n".join((*lines, "")).encode("ascii")
    return "\r\n".join((*_folded(name, _encoded(name, value)), "")).encode("ascii")


def fold(name: str, value: str) -> bytes:
    """Return a whole field with its CRLF as it stands, in UTF-8; the caller vouches for `value`.

    For trace fields and reports, whose values are clean already and are no RFC 2047 text.
    """
    return "\r\n".join((*_folded(name, value.split(" ")), "")).encode("utf-8")


def prefix_subject(content: bytes, tag: str) -> bytes:
    """Return `content` with `tag` and a space in front of its Subject, unless it is there already.

    A tag behind `Re:` and the like counts as there. The old value's octets stay as they are.
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
    # A space between two encoded words is not shown, so an encoded tag brings its own.
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

    `helo` is what the client said, `ip` where it came from ("" for a Unix socket).
    `recipient` only where there is a single one: `for` must not show a Bcc.
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


def _named(content: bytes, name: str) -> Iterator[Field]:
    """Yield the fields called `name`: one search for the name, not a walk over all fields."""
    lowered = content[: split(content)].lower()
    wanted = name.lower().encode()
    position = lowered.find(wanted)
    while position >= 0:
        if position == 0 or lowered[position - 1 : position] == b"\n":
            found = _field.match(content, position, len(lowered))
            if found and found.end(1) - position == len(wanted):
                value_start = content.index(b":", found.end(1)) + 1
                yield Field(wanted, position, value_start, found.end())
        position = lowered.find(wanted, position + len(wanted))


def _value(content: bytes, field: Field) -> bytes:
    """Unfold: the line ends go, the white space behind them stays (RFC 5322 2.2.3)."""
    raw = content[field.value_start : field.end]
    return raw.replace(b"\r", b"").replace(b"\n", b"").strip(b" \t")


def _is_tagged(subject: str, tag: str) -> bool:
    replies = _reply_prefixes.match(subject)
    for start in {0, replies.end() if replies else 0}:
        behind = subject[start + len(tag) : start + len(tag) + 1]
        if subject.startswith(tag, start) and not (tag[-1].isalnum() and behind.isalnum()):
            return True
    return False


def _without(content: bytes, unwanted: Iterable[Field]) -> bytes:
    """Cut fields out, which come in their order; joined once, however many they are."""
    kept, position = [], 0
    for field in unwanted:
        kept.append(content[position : field.start])
        position = field.end
    return b"".join((*kept, content[position:])) if kept else content


def _encoded(name: str, value: str) -> list[str]:
    """Return the words of `value`, those from the first that is not ASCII on as RFC 2047 words."""
    words = value.split(" ")
    plain = 0
    while words[plain].isascii() and 0 < len(words[plain]) <= _PLAIN_WORD_MAX:
        plain += 1  # it ends: a value of plain words only needs no encoding
    taken = len(name) + len(": ") + sum(len(word) + 1 for word in words[:plain])
    if taken > _LINE_OCTETS_WANTED // 2:
        taken = len(" ")  # a line of its own rather than a very short word
    return [*words[:plain], *encode_text(" ".join(words[plain:]), taken=taken)]


def _folded(name: str, words: list[str]) -> list[str]:
    """Join words by single spaces into lines, a new one where a word would not fit."""
    lines, line = [], f"{name}:"
    for index, word in enumerate(words):
        # A line of white space only would end the header for some readers, so none is begun by "".
        if index and word and line.strip() and len(line) + 1 + len(word) > _LINE_OCTETS_WANTED:
            lines.append(line)
            line = f" {word}"
        else:
            line += f" {word}"
    return [*lines, line]
