"""Status codes: the relay's own SMTP replies, and sentences for the readers of DSNs.

A reply line is printable ASCII, one line, and fits into the 512 octets of RFC 5321. A status that
is not in the table is explained by its subject.
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
_controls = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]+")

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

_SENTENCES = {
    "1.0": "The address was refused by {domain}.",
    "1.1": "The address was not found at {domain}. Check the spelling.",
    "1.2": "The domain {domain} does not exist. Check the spelling after the @.",
    "1.3": "The address is not valid. Check the spelling.",
    "1.6": "The mailbox has moved and left no new address.",
    "1.7": "Your own address was refused by {domain}.",
    "1.8": "The domain of your own address was not found by {domain}.",
    "1.10": "The domain {domain} accepts no mail at all.",
    "2.0": "There is a problem with the recipient's mailbox.",
    "2.1": "The mailbox is disabled and accepts no messages.",
    "2.2": "The mailbox is full. Try again later, or reach the recipient in another way.",
    "2.3": "The message is larger than the recipient's mailbox allows.",
    "3.0": "The mail system of {domain} has a problem.",
    "3.2": "The mail system of {domain} accepts no messages at the moment.",
    "3.4": "The message is too large for {domain}. Send it in parts, or share the files by a link.",
    "4.0": "The mail system of {domain} could not be reached.",
    "4.1": "The mail system of {domain} did not answer.",
    "4.2": "The connection to {domain} broke off.",
    "4.3": "The name servers of {domain} gave no answer.",
    "4.4": "No mail system could be found for {domain}.",
    "4.6": "The message loops between mail systems. The recipient's administrator must"
    " correct this.",
    "4.7": "The message could not be delivered in the time allowed.",
    "5.0": "The mail system of {domain} did not understand this one.",
    "5.3": "The message has too many recipients.",
    "6.0": "The mail system of {domain} refused the content of the message.",
    "6.3": "The mail system of {domain} cannot accept the format of the message.",
    "6.7": "The mail system of {domain} accepts only ASCII addresses.",
    "7.0": "The message was refused for reasons of security.",
    "7.1": "The message was refused by a rule. See the reason below.",
    "7.4": "No secure connection to {domain} was possible.",
    "7.5": "No secure connection to {domain} was possible.",
    "7.8": "The next mail system refused this relay's credentials.",
}
_GENERAL = "The message could not be delivered."
_GAVE_UP = "Delivery was attempted several times and has now been given up."


class SplitReply(NamedTuple):
    """The parts of a reply; code 0 and status "" if the text has none."""

    code: int
    status: str
    text: str


def split_reply(reply: str) -> SplitReply:
    """Split "550 5.1.1 text", "5.1.1 text", "550 text" or plain text into its parts."""
    found = _reply.fullmatch(reply)
    if found:
        return SplitReply(int(found.group(1)), found.group(2) or "", found.group(3))
    found = _status_first.fullmatch(reply)
    if found:
        return SplitReply(0, found.group(1), found.group(2))
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
    if not text.isascii():
        text = ascii_folded(text)
    text = one_line(text)
    return text if len(text) <= REPLY_TEXT_MAX else text[: REPLY_TEXT_MAX - 3] + "..."


def ascii_folded(text: str) -> str:
    """Return `text` in ASCII: without accents, any other character as "?"."""
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return bare.encode("ascii", "replace").decode("ascii")


def one_line(text: str) -> str:
    """Return `text` with each run of white space and control characters as one space."""
    return _controls.sub(" ", text).strip()


def explain(status: str, domain: str, *, is_over: bool = True) -> str:
    """Return a sentence for the reader of a DSN about a failure.

    `is_over`: there are no further attempts, also after a temporary (class 4) failure.
    """
    kind, _, detail = status.partition(".")
    subject = detail.partition(".")[0]
    sentence = _SENTENCES.get(detail) or _SENTENCES.get(f"{subject}.0", _GENERAL)
    text = sentence.format(domain=domain or "the recipient's domain")
    return f"{text} {_GAVE_UP}" if kind == "4" and is_over else text
