"""Conversations: Graph's conversationId, Outlook's conversation index, and what a reply adds.

All messages of a thread share the last 16 octets of the index header. The same message and time
give the same index. An invalid index starts a new conversation. Graph uses it for replies, formats
for headers, and the mailbox room for its index and new drafts.
MS-OXOMSG 2.2.1.3 (PidTagConversationIndex), 2.2.1.5 (topic); RFC 5322 3.6.4, 3.6.5.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import blake2b

from relay.base.message.properties import MessageProperties

HEADER_BYTES = 22
_THREAD_BYTES = 16
_CHILD_BYTES = 5
_INDEX_BYTES_MAX = HEADER_BYTES + 1000 * _CHILD_BYTES
_RESERVED = 1
# Microseconds from 1601 to 1970. An index holds the upper six octets of a 64-bit FILETIME.
_EPOCH_US = 11_644_473_600_000_000
_TIME_MAX = (1 << 64) - 1
# A reply's index has the time since the first message, in 31 bits of its FILETIME.
_SHORT_DELTA_BITS, _SHORT_SHIFT, _LONG_SHIFT = 49, 18, 23
_DELTA_MASK = (1 << 31) - 1
_LONG_DELTA = 1 << 31
REFERENCES_MAX = 100
_REFERENCES_CHARACTERS_MAX = 16_000
_MESSAGE_ID = re.compile(r"<[!-;=?-~]+>")
_BARE_ID = re.compile(r"[!-;=?-~]+").fullmatch
# Prefixes of replies and forwards in the languages of common mail programs. Others, such as "FYI:",
# are part of the subject.
_ANSWERED = re.compile(
    r"(?>[ \t]*(?:re|fwd?|aw|wg|antw|sv|vs|vb|tr|rv|enc|res|odp|pd|ynt|答复|回复|转发)"
    r"[ \t]?(?:\[\d{1,3}\]|\(\d{1,3}\))?[ \t]*[:\uff1a])+",
    re.IGNORECASE,
)
_PREFIXES = re.compile(r"(?:[^\W\d_]{1,3}(?:\[\d{1,3}\])?:[ \t]*)*")


def thread_of(message_id: str, *, in_reply_to: str = "", references: Sequence[str] = ()) -> bytes:
    """Return the 16 octets that all messages of a thread share, a hash of its first Message-ID."""
    root = next(iter(references), "") or in_reply_to or message_id
    return blake2b(root.encode("utf-8", "replace"), digest_size=_THREAD_BYTES).digest()


def conversation_id(properties: MessageProperties, message_id: str) -> str:
    """Return Graph's conversationId of a message with this Message-ID: the thread in hex."""
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
    """Return the message ids in the value of a Message-ID, References or In-Reply-To field.

    A value without angle brackets is read if it is one word, or each word has an @.
    """
    if "<" in text:
        return tuple(_MESSAGE_ID.findall(text))
    words = text.split()
    are_ids = all(_BARE_ID(word) and (len(words) == 1 or "@" in word) for word in words)
    return tuple(f"<{word}>" for word in words) if are_ids else ()


def own_message_id(text: str) -> str:
    """Return the id in the value of a Message-ID field, or the value if it has none."""
    return next(iter(message_ids(text)), text)


def answer_subject(prefix: str, subject: str) -> str:
    """Return the subject of a reply or forward: `prefix` ("RE", "FW") once before the topic."""
    match = _ANSWERED.match(subject)
    return f"{prefix}: {(subject[match.end() :] if match else subject).strip()}".rstrip()


def answer_references(original: MessageProperties) -> tuple[str, ...]:
    """Return the References of a reply: those of the original, and its Message-ID if it has one.

    A long list keeps the first id, which identifies the thread, and the last ids.
    """
    own = message_ids(original.internet_message_id)[:1]
    before = original.references or message_ids(original.in_reply_to)
    chain = tuple(dict.fromkeys((*before, *own)))
    if not chain:
        return ()
    last: list[str] = []
    size = len(chain[0])
    for message_id in reversed(chain[1:]):
        size += len(message_id)
        if size > _REFERENCES_CHARACTERS_MAX or len(last) >= REFERENCES_MAX - 1:
            break
        last.insert(0, message_id)
    return (chain[0], *last)


def answer_index(original: MessageProperties, message_id: str, *, time_us: int) -> str:
    """Return the index of a reply: that of the original, and five octets for the time since.

    `message_id` is that of the original, or the id of the original if it has no Message-ID.
    """
    references, in_reply_to = original.references, original.in_reply_to
    thread = thread_of(message_id, in_reply_to=in_reply_to, references=references)
    parent = original.conversation_index
    if not is_index(parent):
        parent = new_index(thread, time_us=time_us)
    octets = b64decode(parent)
    if len(octets) - HEADER_BYTES + _CHILD_BYTES > _INDEX_BYTES_MAX:
        return parent
    ticks = min(max(time_us + _EPOCH_US, 0) * 10, _TIME_MAX)
    delta = max(ticks - (int.from_bytes(octets[:6], "big") << 16), 0)
    if delta >> _SHORT_DELTA_BITS:
        since = (delta >> _LONG_SHIFT) & _DELTA_MASK | _LONG_DELTA
    else:
        since = delta >> _SHORT_SHIFT
    chance = blake2b(octets + ticks.to_bytes(8, "big"), digest_size=1).digest()[0] & 0xF0
    return b64encode(octets + since.to_bytes(4, "big") + bytes([chance])).decode("ascii")
