"""The DKIM-Signature field of one key (RFC 6376 3.5): what it covers, and how it is written.

The canonical forms (RFC 6376 3.4) need CRLF as line ends, which all content has that ingress
accepts.

In h=, a signature names each field of SIGNED once more often than the message has it. So a field
that is added later breaks the signature (RFC 6376 8.15). It has no l=, x= or z=.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import lru_cache

from msgspec import Struct

from relay.base.message.content import LARGE_BYTES, octets_in_blocks
from relay.base.message.header import Header, ParsedContent
from relay.base.phrases import words_in
from relay.transport.signing.keys import SigningKey

_CRLF = b"\r\n"
_EMPTY_LINES_AT_ONCE = 32 * 1024


class BodyForm(StrEnum):
    """The canonical form of a body, as the tag c= names it."""

    RELAXED = "relaxed"
    SIMPLE = "simple"


def relaxed_field(name: bytes, value: bytes) -> bytes:
    """Return a field in the relaxed form, without its line end (RFC 6376 3.4.2).

    `name` is in lower case; `value` is unfolded, without white space around it (Header.values()).
    """
    return name + b":" + _one_space(value)


def relaxed_body(body: bytes) -> bytes:
    """Return a body in the relaxed form (RFC 6376 3.4.4). The time is linear."""
    body = _one_space(body)
    if b" \r\n" in body:
        body = body.replace(b" \r\n", _CRLF)
    body = body.removesuffix(b" ").rstrip(_CRLF)
    return body + _CRLF if body else b""


def _one_space(octets: bytes) -> bytes:
    """Return the octets with one space for each run of spaces and tabs.

    Each turn of the loop halves the runs. A regular expression would hold the interpreter lock for
    170 ms with 1 MiB of tabs.
    """
    octets = octets.replace(b"\t", b" ")
    while b"  " in octets:
        octets = octets.replace(b"  ", b" ")
    return octets


class SimpleBodyHash:
    """The SHA-256 of a body in the simple form (RFC 6376 3.4.3); the body comes in blocks."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._empty_lines = 0  # they count only if something follows
        self._half = b""  # a CR at the end of a block

    def update(self, block: bytes) -> None:
        """Take the next block."""
        block, self._half = self._half + block, b""
        if block.endswith(b"\r"):
            block, self._half = block[:-1], b"\r"
        text = block.rstrip(_CRLF)
        ends = (len(block) - len(text)) // len(_CRLF)
        if not text:
            self._empty_lines += ends
            return
        while self._empty_lines:
            count = min(self._empty_lines, _EMPTY_LINES_AT_ONCE)
            self._hash.update(_CRLF * count)
            self._empty_lines -= count
        self._hash.update(text)
        self._empty_lines = ends

    def digest(self) -> bytes:
        """Return the hash; for an empty body, the hash of one CRLF."""
        whole = self._hash.copy()
        whole.update(_CRLF)
        return whole.digest()


def body_form(content: ParsedContent) -> BodyForm:
    """Return the form for a content: simple for a large body, which is hashed in blocks."""
    size = content.size - content.header.size - len(_CRLF)
    return BodyForm.SIMPLE if size > LARGE_BYTES else BodyForm.RELAXED


def body_hash(content: ParsedContent, form: BodyForm) -> bytes:
    """Return the SHA-256 of the body in a form: the value of bh=.

    Reading a large body blocks; raises UnreadableError.
    """
    if form is BodyForm.RELAXED:
        return hashlib.sha256(relaxed_body(b"".join(_body_blocks(content)))).digest()
    simple = SimpleBodyHash()
    for block in _body_blocks(content):
        simple.update(block)
    return simple.digest()


def _body_blocks(content: ParsedContent) -> Iterator[bytes]:
    """Yield the body, without the blank line before it."""
    skipped = len(_CRLF)
    rest = content.rest
    for block in (rest,) if isinstance(rest, bytes) else octets_in_blocks(rest.body):
        if block[skipped:]:
            yield block[skipped:]
        skipped -= min(skipped, len(block))


SIGNED = words_in(
    "From Reply-To Subject Date To Cc Message-ID In-Reply-To References MIME-Version Content-Type "
    "Content-Transfer-Encoding List-Unsubscribe List-Unsubscribe-Post"
)
NAME = "DKIM-Signature"
_LINE_MAX = 78  # RFC 5322 2.1.1
_TIME, _HASH = "%" * 10, "&" * 44  # placeholders, as long as the values


class CoveredFields(Struct, frozen=True):
    """The fields of a header that signatures cover."""

    counts: tuple[int, ...]  # how many fields there are of each name in SIGNED
    octets: bytes  # of the fields in the relaxed form


def covered_fields(header: Header, names: Sequence[str] = SIGNED) -> CoveredFields:
    """Return the fields with these names, in the order of the names.

    Several fields of one name are taken from the last to the first (RFC 6376 3.7, 5.4.2).
    """
    counts, octets = [], []
    for name in names:
        values = header.values(name)
        counts.append(len(values))
        octets += [relaxed_field(name.lower().encode(), value) for value in reversed(values)]
    return CoveredFields(tuple(counts), b"".join([field + _CRLF for field in octets]))


def unsigned_field(
    fields: CoveredFields, key: SigningKey, *, body_hash: bytes, form: BodyForm, time_s: int
) -> bytes:
    """Return the DKIM-Signature field, folded, with an empty b= at its end.

    `time_s` is in seconds since 1970.
    """
    algorithm = f"{key.private.algorithm}; c=relaxed/{form}"
    template = _template(fields.counts, (key.domain, key.selector), algorithm)
    return template % (time_s, base64.b64encode(body_hash))


def complete_field(field: bytes, signature: bytes) -> bytes:
    """Return an unsigned field with its signature, and its line end."""
    taken = len(field) - field.rindex(b"\n") - 1
    return field + _wrapped(base64.b64encode(signature), taken=taken) + _CRLF


def to_sign(fields: CoveredFields, signature: bytes) -> bytes:
    """Return what is signed: the fields, and the signature field, whose b= is empty."""
    own = signature.partition(b":")[2].replace(_CRLF, b"").strip()
    return fields.octets + relaxed_field(NAME.lower().encode(), own)


@lru_cache(maxsize=256)  # most messages have the same fields
def _template(counts: tuple[int, ...], key: tuple[str, str], algorithm: str) -> bytes:
    """Return the field without the value of b=, with placeholders for t= and bh=.

    `key` is domain and selector. h= names each field once more often than it is there.
    """
    domain, selector = key
    pairs = zip(SIGNED, counts, strict=True)
    names = [name for name, count in pairs for _ in range(count + 1)]
    folded = _folded(
        (
            f"{NAME}: v=1;",
            *f"a={algorithm};".split(),
            f"d={domain};",
            f"s={selector};",
            f"t={_TIME};",
            *_listed(names),
            f"bh={_HASH};",
            "b=",
        )
    )
    return folded.replace(_TIME, "%d").replace(_HASH, "%b").encode()


def _listed(names: Sequence[str]) -> list[str]:
    """Return the tag h= in pieces; a line may begin with each of them."""
    pieces = [f"{name}:" for name in names]
    return [f"h={pieces[0]}", *pieces[1:-1], f"{names[-1]};"]


def _folded(pieces: Sequence[str]) -> str:
    """Return the pieces on lines of at most 78 octets, unless a piece is longer.

    There is a space between tags, and none between the names in h=.
    """
    lines = [pieces[0]]
    for piece in pieces[1:]:
        space = "" if lines[-1].endswith(":") else " "
        if len(lines[-1]) + len(space) + len(piece) > _LINE_MAX:
            lines.append(f" {piece}")
        else:
            lines[-1] += space + piece
    return "\r\n".join(lines)


def _wrapped(octets: bytes, *, taken: int) -> bytes:
    """Return base64 on lines of at most 78 octets; the first line has `taken` octets already."""
    first = _LINE_MAX - taken
    rest = range(first, len(octets), _LINE_MAX - 1)
    return b"\r\n ".join([octets[:first], *[octets[at : at + _LINE_MAX - 1] for at in rest]])
