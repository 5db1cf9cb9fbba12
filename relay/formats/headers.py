"""Write the fields of a message in transit, and decode the values that the relay acts on.

Ingress adds trace fields, mail rules edit, delivery and DSNs read. No value can inject another
field: a name or value that is not allowed in a header raises ValueError. A damaged header never
raises. X-Relay-Id, Relay's id of a delivered message, and the priority of a message are read and
written here too.
RFC 5322 2.2, 3.6; RFC 5321 4.4 (Received, Return-Path); RFC 3848 and 6531 4.3 (protocols); RFC 2156
5.3.6 (Importance, Priority), RFC 2369 (List-Unsubscribe); X-Priority and Precedence as used.
"""

import re
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache

from relay.base.message.header import Header
from relay.formats.content_fields import content_field
from relay.formats.encoded_words import decode_words, encode_text
from relay.formats.read_header import MONTHS, body_charset

LINE_OCTETS_MAX = 998  # without its CRLF
LINE_OCTETS_WANTED = 78
_PLAIN_WORD_MAX = 60  # a longer word is encoded if any word needs encoding
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_field_name = re.compile(r"[!-9;-~]{1,126}").fullmatch  # RFC 5322 2.2
_pieces = re.compile(r"[ \t]*[^ \t]+(?:[ \t]+\Z)?|[ \t]+\Z").findall
_forbidden = re.compile(r"[\r\n\0]").search
_reply_prefixes = re.compile(r"(?:(?:re|fwd?|aw|wg|sv|vs|rv|tr)(?:\[\d+\])?:\s*)*", re.IGNORECASE)
_unsafe_in_trace = re.compile(r"[^A-Za-z0-9.:\[\]_-]")


def is_field_name(name: str) -> bool:
    """Return whether `name` is a valid field name."""
    return _field_name(name) is not None


def decoded(header: Header, name: str) -> str:
    """Return the RFC 2047 decoded text of the first field called `name`; "" if none."""
    return next(iter(decoded_values(header, name, limit=1)), "")


def decoded_values(header: Header, name: str, *, limit: int | None = None) -> tuple[str, ...]:
    """Return the decoded text of all fields called `name`, at most `limit`."""
    values = header.values(name)[:limit]
    raw = "" if all(map(bytes.isascii, values)) else body_charset(header)
    return tuple([decode_words(value, raw) for value in values])


def set_field(header: Header, name: str, value: str) -> Header:
    """Return a header with exactly one field `name`. Raises ValueError as field() does."""
    return header.set(name, field(name, value))


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
        lines = folded(name, value)
        if all(len(line) <= LINE_OCTETS_MAX for line in lines):
            return "\r\n".join((*lines, "")).encode("ascii")
    return "\r\n".join((*folded(name, _encoded(name, value)), "")).encode("ascii")


def fold(name: str, value: str) -> bytes:
    """Return a whole folded field with its CRLF in UTF-8, without encoded words.

    For trace fields and DSNs. The caller guarantees that `value` has no CR, LF or NUL.
    """
    return "\r\n".join((*folded(name, value), "")).encode("utf-8")


def folded(name: str, value: str) -> list[str]:
    """Return the lines of a field, broken before white space; unfolding them returns the value.

    A line has at most 78 characters, unless a word is longer. No line is only white space, because
    some programs end the header there.
    """
    first, *pieces = _pieces(f" {value}")
    lines, line = [], f"{name}:{first}"
    for piece in pieces:
        if len(line) + len(piece) > LINE_OCTETS_WANTED:
            lines.append(line)
            line = piece
        else:
            line += piece
    return [*lines, line]


def prefix_subject(header: Header, tag: str) -> Header:
    """Return a header with `tag` and a space before its Subject, unless the Subject has the tag.

    A tag after a prefix such as `Re:` counts as present. The octets of the old value do not change.
    Raises ValueError for CR, LF or NUL in the tag.
    """
    tag = tag.strip()
    if not tag:
        return header
    subject = header.first_octets("Subject")
    if subject is None:
        return header.append(field("Subject", tag))
    if _is_tagged(decoded(header, "Subject"), tag):
        return header
    old = subject.partition(b":")[2].lstrip(b" \t\r\n")
    # A space between two encoded words is not shown, so an encoded tag contains it.
    head = field("Subject", tag if tag.isascii() or not old.startswith(b"=?") else f"{tag} ")[:-2]
    last_line = head.rpartition(b"\n")[2]
    fits = len(last_line) + 1 + len(old.partition(b"\r\n")[0]) <= LINE_OCTETS_WANTED
    new = head + (b" " if fits else b"\r\n ") + old if old else head + b"\r\n"
    return header.replace_first("Subject", new)


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
    for_clause = f"\r\n\tfor <{recipient}>" if recipient else ""
    text = (
        f"Received: from {greeted}{literal}\r\n\tby {hostname} with {protocol} id {queue_id}"
        f"{for_clause};\r\n\t{date_field(time_us)}\r\n"
    )
    return text.encode()


def date_field(time_us: int) -> str:
    """Return the time as RFC 5322 3.3 writes it, in UTC: "Fri, 20 Nov 2026 10:04:00 +0000"."""
    return _date_of_second(time_us // 1_000_000)


@lru_cache(maxsize=64)
def _date_of_second(second: int) -> str:
    when = datetime.fromtimestamp(second, UTC)
    return (
        f"{_WEEKDAYS[when.weekday()]}, {when.day:02d} {MONTHS[when.month - 1]} {when.year}"
        f" {when:%H:%M:%S} +0000"
    )


def _is_tagged(subject: str, tag: str) -> bool:
    replies = _reply_prefixes.match(subject)
    for start in {0, replies.end() if replies else 0}:
        following = subject[start + len(tag) : start + len(tag) + 1]
        if subject.startswith(tag, start) and not (tag[-1].isalnum() and following.isalnum()):
            return True
    return False


def _encoded(name: str, value: str) -> str:
    """Return `value` with encoded words from the first word that is not ASCII on."""
    words = value.split(" ")
    plain = 0
    while words[plain].isascii() and 0 < len(words[plain]) <= _PLAIN_WORD_MAX:
        plain += 1  # the loop ends: a value of plain words is not encoded
    taken = len(name) + len(": ") + sum(len(word) + 1 for word in words[:plain])
    if taken > LINE_OCTETS_WANTED // 2:
        taken = len(" ")  # on a new line, so that the first encoded word is not very short
    return " ".join((*words[:plain], *encode_text(" ".join(words[plain:]), taken=taken)))


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
_HINTS = [name.lower().encode() for name in (*_BY_WORD, "Precedence", "List-Unsubscribe")]
_WORD_OCTETS_MAX = 64  # for example "1 (Highest)"
_VALUES_MAX, _VALUE_OCTETS_MAX = 100, 256  # of fields with one name


def priority_of(header: Header) -> Priority:
    """Return the priority that the header asks for. Bulk and list mail is always LOW."""
    if not header.has_any(_HINTS):  # almost all messages
        return Priority.NORMAL
    if "List-Unsubscribe" in header or _word(header, "Precedence") in _BULK:
        return Priority.LOW
    priorities = [words.get(_word(header, name)) for name, words in _BY_WORD.items()]
    return next((priority for priority in priorities if priority is not None), Priority.NORMAL)


def takes_no_answer(header: Header) -> bool:
    """Return whether a program or a list has sent the message, so that programs do not answer it
    (RFC 3834 2).
    """
    is_of_list = any(name.lower().startswith(b"list-") for name, _ in header.fields)
    return is_of_list or is_automatic(header) or "list" in _values(header, "Precedence")


def is_automatic(header: Header) -> bool:
    """Return whether a program has sent the message, as mail-flow rules ask."""
    precedences = _values(header, "Precedence")
    return is_auto_submitted(header) or "bulk" in precedences or "junk" in precedences


def is_auto_submitted(header: Header) -> bool:
    """Return whether any Auto-Submitted field has another value than "no" (RFC 3834 5)."""
    return any(value != "no" for value in _values(header, "Auto-Submitted"))


def _values(header: Header, name: str) -> list[str]:
    """Return the values of these fields without their comments. Strangers write them: a value that
    does not begin within the octets that are read is "".
    """
    values = header.values(name)[:_VALUES_MAX]
    return [content_field(value[:_VALUE_OCTETS_MAX].decode("latin-1")).value for value in values]


def _word(header: Header, name: str) -> bytes:
    """Return the first word of a field in lower case, b"" if none. The rest is a comment."""
    value = header.first(name) or b""
    words = value[:_WORD_OCTETS_MAX].lower().split(None, 1)
    return words[0] if words else b""


ID_WITHIN_BYTES = 1200  # the id is in line 1 or 2; a line has at most 998 octets
_RETURN_PATH = b"Return-Path:"
_FIELD = re.compile(rb"(?:\A|\n)X-Relay-Id:[ \t]*([0-9a-z]{16})[ \t]*\r?\n", re.IGNORECASE)


def with_relay_id(content: bytes, message_id: str) -> bytes:
    """Return a content, or only a header, with X-Relay-Id after Return-Path, else in line 1."""
    position = content.find(b"\n") + 1 if content.startswith(_RETURN_PATH) else 0
    return b"%bX-Relay-Id: %b\r\n%b" % (content[:position], message_id.encode(), content[position:])


def read_relay_id(beginning: bytes) -> str:
    """Return the id in line 1 or 2, "" if none. `beginning` has at least ID_WITHIN_BYTES.

    X-Relay-* fields of arriving mail are removed: only local delivery writes this id.
    """
    match = _FIELD.search(beginning, 0, ID_WITHIN_BYTES)
    if match is None or beginning.count(b"\n", 0, match.start(1)) > 1:
        return ""
    return match[1].decode("ascii").lower()


_DELIVERY_FIELDS = re.compile(
    rb"(?:(?:Return-Path|X-Relay-Id|Delivered-To):[^\r\n]*\r?\n){1,3}", re.IGNORECASE
)


def without_delivery_fields(content: bytes) -> bytes:
    """Return a delivered content, or only a header, without the lines that local delivery added."""
    if not content.startswith(_RETURN_PATH):
        return content
    match = _DELIVERY_FIELDS.match(content)
    return content[match.end() :] if match else content
