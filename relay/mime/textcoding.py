"""A text as a part of a message: in 7 bits, and in lines that are not too long.

On the path: conversion (step 3) and changes of MIME drafts write bodies with it.
Holds: what is decoded is what was given; a coded text has no "=_" in it, with which boundaries of
this relay begin.
Fails: never.
Standards: RFC 2045 6; RFC 2046 4.1.2 (charset).
"""

from base64 import b64encode
from binascii import b2a_qp
from dataclasses import dataclass

from relay.mime.draft import base64_lines, has_line_over
from relay.mime.section import with_crlf

_BODY_LINE_BYTES = 78
_ASCII = bytes(range(128))
_QUOTED_PRINTABLE_SHARE = 6  # base64 is shorter when more than one byte in six needs "=XX"


@dataclass(frozen=True, slots=True)
class CodedText:
    """A text as it is transferred, in 7 bits."""

    charset: str
    encoding: str
    content: bytes


def coded_text(text: bytes) -> CodedText:
    """Leave a text as it is, or code it: quoted-printable or base64, whichever is shorter.

    Neither coding can make a "=_", so only text as it is could hold a boundary: that is coded.
    """
    charset = "us-ascii" if text.isascii() else "utf-8"
    plain = text.isascii() and b"\0" not in text and b"=_" not in text
    if plain and not has_line_over(text, _BODY_LINE_BYTES + len("\r")):
        return CodedText(charset, "7bit", text)
    if len(text.translate(None, _ASCII)) * _QUOTED_PRINTABLE_SHARE > len(text):
        return CodedText(charset, "base64", base64_lines(b64encode(text)))
    return CodedText(charset, "quoted-printable", with_crlf(b2a_qp(text, istext=True)))
