"""Who a file says it is: by its name, by a draft's private block, or by a field of local delivery.

On the path: catchup asks for files that appeared.
Holds: only the beginning of a file is read, and only where its name is not the store's own.
Fails: never; a file that cannot be read says nothing.
Standards: docs/design.md 3; Dovecot's MOVE and COPY give a file another name.
"""

import os
import re
from dataclasses import dataclass

from relay.mailbox.names import MessageName, is_delivered_id, is_our_name, parse_name
from relay.mime.delivered import id_in

_HEAD_BYTES = 2048
_BLOCK = b"X-Relay-Draft: 1 "  # also where a mail server has copied it with other line ends
_BASE_NAME = re.compile(rb'"base_name":"([^"\\]{1,255})"')


@dataclass(frozen=True, slots=True)
class Claim:
    """The id that a file says is its own; `named`: in a name that the store gave it."""

    message_id: str
    generation: int
    named: bool


def claim_of(path: str, name: MessageName) -> Claim | None:
    """Return what a file says of itself, None for one that another program made."""
    if is_our_name(name.file_name):
        return Claim(name.message_id, name.generation, named=True)
    head = _head(path)
    if head.startswith(_BLOCK):
        return _claim_of_block(head)
    message_id = id_in(head)
    return Claim(message_id, 1, named=False) if is_delivered_id(message_id) else None


def _claim_of_block(head: bytes) -> Claim | None:
    found = _BASE_NAME.search(head.replace(b"\r\n", b"\n").replace(b"\n ", b""))
    if found is None:
        return None
    base_name = found[1].decode("utf-8", "surrogateescape")
    name = parse_name(base_name) if is_our_name(base_name) else None
    return Claim(name.message_id, name.generation, named=False) if name else None


def _head(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, _HEAD_BYTES, 0)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
