"""How urgent a message is, by what its header says.

On the path: ingress asks for messages of trusted senders, before they are queued.
Holds: pure; what says that it goes to many never goes before others, whatever else it says.
Fails: never.
Standards: RFC 2156 5.3.6 (Importance, Priority), RFC 2369 (List-Unsubscribe); X-Priority and
    Precedence as they are in use.
"""

from enum import IntEnum

from relay.mime import headers


class Priority(IntEnum):
    """Whose turn comes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


_BULK = frozenset((b"bulk", b"list", b"junk"))
_BY_WORD = {
    "Importance": {b"high": Priority.HIGH, b"low": Priority.LOW},
    "Priority": {b"urgent": Priority.HIGH, b"non-urgent": Priority.LOW},
    "X-Priority": {b"1": Priority.HIGH, b"2": Priority.HIGH},
}
_HINTS = (b"importance", b"priority", b"precedence", b"list-unsubscribe")
_WORD_OCTETS_MAX = 64  # "1 (Highest)" and the like


def priority_of(content: bytes) -> Priority:
    """Return what the header section of `content` asks for."""
    lowered = content[: headers.split(content)].lower()
    for hint in _HINTS:
        if hint in lowered:
            break
    else:  # nearly always
        return Priority.NORMAL
    if b"list-unsubscribe" in lowered and headers.count(content, "List-Unsubscribe"):
        return Priority.LOW
    if _word(content, "Precedence") in _BULK:
        return Priority.LOW
    found = [words.get(_word(content, name)) for name, words in _BY_WORD.items()]
    return next((priority for priority in found if priority is not None), Priority.NORMAL)


def _word(content: bytes, name: str) -> bytes:
    """The first word of a field in lower case, b"" without one: what stands behind is a comment."""
    value = headers.first(content, name) or b""
    words = value[:_WORD_OCTETS_MAX].lower().split(None, 1)
    return words[0] if words else b""
