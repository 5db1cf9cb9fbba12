"""Conversations: Graph's conversationId and Outlook's conversation index of a message.

All messages of a thread share the last 16 octets of the index header. The same message and time
give the same index. An invalid index starts a new conversation.
MS-OXOMSG 2.2.1.3 (PidTagConversationIndex), 2.2.1.5 (topic); RFC 5322 3.6.4.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import blake2b

from relay.message.properties import MessageProperties

HEADER_BYTES = 22
_THREAD_BYTES = 16
_CHILD_BYTES = 5
_INDEX_BYTES_MAX = HEADER_BYTES + 1000 * _CHILD_BYTES
_RESERVED = 1
# Microseconds from 1601 to 1970. An index holds the upper six octets of a 64-bit FILETIME.
_EPOCH_US = 11_644_473_600_000_000
_TIME_MAX = (1 << 64) - 1
_MESSAGE_ID = re.compile(r"<[!-;=?-~]+>")
_PREFIXES = re.compile(r"(?:[^\W\d_]{1,3}(?:\[\d{1,3}\])?:[ \t]*)*")


def thread_of(message_id: str, *, in_reply_to: str = "", references: Sequence[str] = ()) -> bytes:
    """Return the 16 octets that all messages of a thread share, a hash of its first Message-ID."""
    root = next(iter(references), "") or in_reply_to or message_id
    return blake2b(root.encode("utf-8", "replace"), digest_size=_THREAD_BYTES).digest()


def conversation_id(properties: MessageProperties, message_id: str) -> str:
    """Return Graph's conversationId of the message with this Message-ID: the thread in hex."""
    references, in_reply_to = properties.references, properties.in_reply_to
    if not references and not in_reply_to:
        fields = {name.lower(): value for name, value in properties.internet_message_headers}
        references = message_ids(fields.get("references") or fields.get("in-reply-to") or "")
    return thread_of(message_id, in_reply_to=in_reply_to, references=references).hex()


def new_index(thread: bytes, *, time_us: int) -> str:
    """Return the base64 of a thread's first index: a reserved octet, the time, the thread."""
    ticks = min(max(time_us + _EPOCH_US, 0) * 10, _TIME_MAX)
    time = (ticks >> 16).to_bytes(6, "big")[1:]
    return b64encode(bytes([_RESERVED]) + time + thread).decode("ascii")


def is_index(text: str) -> bool:
    """Return whether `text` is the base64 of an index: 22 octets, and five for each reply."""
    try:
        octets = b64decode(text, validate=True)
    except ValueError:
        return False
    rest = len(octets) - HEADER_BYTES
    return 0 <= rest <= _INDEX_BYTES_MAX and rest % _CHILD_BYTES == 0


def topic_of(subject: str) -> str:
    """Return a subject without the prefixes of replies and forwards (`RE: `, `AW: `)."""
    match = _PREFIXES.match(subject)
    return subject[match.end() :].strip() if match else subject.strip()


def message_ids(text: str) -> tuple[str, ...]:
    """Return the message ids in the value of a References or In-Reply-To field."""
    return tuple(_MESSAGE_ID.findall(text))
