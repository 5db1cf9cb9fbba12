"""Status codes: read a reply, and write the relay's own SMTP replies.

A reply line is printable ASCII, one line, and fits into the 512 octets of RFC 5321.
RFC 3463 and its registry (RFC 5248), RFC 2034, RFC 5321 4.2.
"""

import re
import unicodedata
from typing import NamedTuple

REPLY_TEXT_MAX = 400

_reply = re.compile(
    r"([2-5][0-9]{2})(?:[ -]+|$)(?:([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:\s+|$))?(.*)", re.DOTALL
)
_status_first = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:\s+|$)(.*)", re.DOTALL)
_status = re.compile(r"(?<![0-9.])[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9.])")
_between = re.compile(r"([\s<>]++)")  # words
_controls = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
# In a reply that refuses what looks like spam, or comes from where spam has come from.
SPAM_WORDS = re.compile(
    r"spam|junk|unsolicited|bulk mail|black ?-?list|block ?-?list|dnsbl|\brbl\b|reputation",
    re.IGNORECASE,
)

# How the reply begins for a recipient on the list of dead addresses; the date follows.
SUPPRESSED = "550 5.1.1 suppressed since "  # RFC 3463 3.2

# The basic code that the registry gives for a status; otherwise the class decides.
_BASIC_CODES = {
    "4.2.2": 452,
    "4.3.1": 452,
    "4.4.2": 421,
    "4.5.3": 452,
    "4.7.0": 421,
    "5.1.3": 553,
    "5.1.10": 556,
    "5.2.2": 552,
    "5.3.4": 552,
    "5.4.6": 554,
    "5.5.1": 503,
    "5.5.2": 500,
    "5.5.4": 501,
    "5.6.0": 554,
    "5.6.3": 554,
    "5.6.7": 553,
    "5.7.8": 535,
}
_BASIC_CODE_OF_CLASS = {"2": 250, "4": 451, "5": 550}


class SplitReply(NamedTuple):
    """The parts of a reply; code 0 and status "" if the text has none."""

    code: int
    status: str
    text: str


def split_reply(reply: str) -> SplitReply:
    """Split "550 5.1.1 text", "5.1.1 text", "550 text" or plain text into its parts."""
    match = _reply.fullmatch(reply)
    if match:
        return SplitReply(int(match.group(1)), match.group(2) or "", match.group(3))
    match = _status_first.fullmatch(reply)
    if match:
        return SplitReply(0, match.group(1), match.group(2))
    return SplitReply(0, "", reply)


def find_statuses(text: str) -> list[str]:
    """Return the enhanced statuses in a text, in their order."""
    return _status.findall(text)


def basic_code(status: str) -> int:
    """Return the reply code for an enhanced status: 550 for "5.1.1"."""
    return _BASIC_CODES.get(status) or _BASIC_CODE_OF_CLASS.get(status[:1], 451)


def own_reply(status: str, text: str) -> str:
    """Return a reply of this relay, "550 5.7.1 text", as one SMTP line."""
    return f"{basic_code(status)} {status} {reply_text(text)}"


def reply_text(text: str) -> str:
    """Return `text` as one line of printable ASCII of at most 400 characters."""
    text = one_line(ascii_folded(text))
    return text if len(text) <= REPLY_TEXT_MAX else text[: REPLY_TEXT_MAX - 3] + "..."


def ascii_folded(text: str) -> str:
    """Return `text` in ASCII: without accents, but in addresses; any other character as "?"."""
    if text.isascii():  # almost always
        return text
    # without its accents, an address is another person's
    words = _between.split(text)
    decomposed = "".join(
        unicodedata.normalize("NFC" if "@" in word else "NFKD", word) for word in words
    )
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return bare.encode("ascii", "replace").decode("ascii")


def one_line(text: str) -> str:
    """Return `text` with each run of white space and control characters as one space."""
    return _controls.sub(" ", text).strip()
