"""The field that carries a delivered message's id, whatever its file is called later.

On the path: local delivery writes it (6); the index reads it where another program named the file.
Holds: it is line 1, or line 2 behind Return-Path; arriving mail loses all X-Relay-* fields, so what
    stands there is what delivery wrote.
Fails: never.
Standards: RFC 5321 4.4 (Return-Path is the first line).
"""

import re

ID_WITHIN_BYTES = 2048  # so much of a file has both lines; a reverse-path is far shorter
_RETURN_PATH = b"Return-Path:"
_marked = re.compile(rb"(?:Return-Path:[^\n]*\n)?X-Relay-Id: ([0-9a-z]{16})\r?\n").match


def with_id(content: bytes, message_id: str) -> bytes:
    """Return a content, or its header, with the id behind Return-Path, else in front."""
    position = content.find(b"\n") + 1 if content.startswith(_RETURN_PATH) else 0
    return b"%bX-Relay-Id: %b\r\n%b" % (content[:position], message_id.encode(), content[position:])


def id_in(beginning: bytes) -> str:
    """Return the id in a file's first ID_WITHIN_BYTES, "" if there is none."""
    marked = _marked(beginning)
    return marked[1].decode() if marked else ""
