"""The field that carries a delivered message's id, whatever its file is called later.

On the path: local delivery writes it (6); the index reads it where another program named the file.
Holds: it is line 1, or line 2 behind Return-Path; arriving mail loses all X-Relay-* fields, so what
    stands there is what delivery wrote.
Fails: never.
Standards: RFC 5321 4.4 (Return-Path is the first line).
"""

import re

ID_WITHIN_BYTES = 1200  # it is in line 1 or 2, and a line has 998 octets at most
_RETURN_PATH = b"Return-Path:"
_FIELD = re.compile(rb"(?:\A|\n)X-Relay-Id:[ \t]*([0-9a-z]{16})[ \t]*\r?\n", re.IGNORECASE)


def with_id(content: bytes, message_id: str) -> bytes:
    """Return a content, or its header, with the id behind Return-Path, else in front."""
    position = content.find(b"\n") + 1 if content.startswith(_RETURN_PATH) else 0
    return b"%bX-Relay-Id: %b\r\n%b" % (content[:position], message_id.encode(), content[position:])


def id_in(beginning: bytes) -> str:
    """Return the id in line 1 or 2, "" if there is none; ID_WITHIN_BYTES of a file have both."""
    found = _FIELD.search(beginning, 0, ID_WITHIN_BYTES)
    if found is None or beginning.count(b"\n", 0, found.start(1)) > 1:
        return ""
    return found[1].decode("ascii").lower()
