"""The canonical forms of RFC 6376 3.4: the octets of a field and of a body that a signature covers.

Line ends are CRLF, as in everything that ingress accepts.
"""

import hashlib
from collections.abc import Iterator
from enum import StrEnum

from relay.message.content import LARGE_BYTES, octets_in_blocks
from relay.message.header import ParsedContent

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

    A pattern would hold the interpreter lock for 170 ms in 1 MiB of tabs. Each turn halves runs.
    """
    octets = octets.replace(b"\t", b" ")
    while b"  " in octets:
        octets = octets.replace(b"  ", b" ")
    return octets


class SimpleBodyHash:
    """The SHA-256 of a body in the simple form (RFC 6376 3.4.3); the body comes in blocks."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._empty_lines = 0  # which count only if something follows
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
            some = min(self._empty_lines, _EMPTY_LINES_AT_ONCE)
            self._hash.update(_CRLF * some)
            self._empty_lines -= some
        self._hash.update(text)
        self._empty_lines = ends

    def digest(self) -> bytes:
        """Return the hash: of one CRLF for an empty body."""
        whole = self._hash.copy()
        whole.update(_CRLF)
        return whole.digest()


def body_form(content: ParsedContent) -> BodyForm:
    """Return the form for a content: simple for a large body, which is never whole in memory."""
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
