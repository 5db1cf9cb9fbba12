"""Read the text of a message's body as a reader sees it, for the conditions on it.

The text has all parts that mail programs show as text, also both alternatives. Of HTML it has the
visible text. It is folded for comparison. Attachments and attached messages are left out.
relay.formats.charsets decodes the octets, for rules as for all other readers.

A large body is never in memory. Time is linear in the size of the message; most of it is spent on
the octets that are read as text.
RFC 2045 6 (encodings); RFC 2046 4.1.2 (charset), 5.1.4 (alternatives); RFC 2183 2 (disposition).
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

from relay.base.message.content import Octets, octets_of
from relay.base.message.header import Header, ParsedContent, cleaned
from relay.formats.charsets import decode_octets
from relay.formats.content_fields import charset_of
from relay.formats.flowed import unflowed
from relay.formats.html_text import visible_text
from relay.formats.read_header import content_type_of
from relay.formats.transfer_encoding import decoded_blocks
from relay.transport.policy.folding import folded, without_case
from relay.transport.policy.message_parts import MessagePart

# limit of rules: the text of a message, decoded; the rest is ignored
BODY_OCTETS_MAX = 1024 * 1024  # of all bodies together, in their charsets; and of the folded text
ENCODED_OCTETS_MAX = 4 * BODY_OCTETS_MAX  # quoted-printable takes three octets for one
_MARKS = "".join(
    chr(code) for code in range(0x300, 0x1B00) if unicodedata.category(chr(code))[0] == "M"
)
# Thai, Lao, Burmese, Khmer, Chinese and Japanese have no blanks: one in a folded text may be a line
# end inside a word.
_NO_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff"
_IN_WORD = re.compile(rf" (?<=[{_NO_BLANKS}] )(?=[{_NO_BLANKS}])")
_BETWEEN_WORDS = re.compile(rf"[^\w{_MARKS}]+")


class BodyText:
    """The folded text of a body, and what is found in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._small: str | None = None
        self._in_words = ""
        self._words: frozenset[str] | None = None

    @property
    def small(self) -> str:
        """The text without regard to case."""
        if self._small is None:
            self._small = without_case(self.text)
        return self._small

    @property
    def words(self) -> frozenset[str]:
        """All words."""
        if self._words is None:
            readings = dict.fromkeys((self.small, _IN_WORD.sub("", self.small)))
            self._in_words = "".join(map(in_words, readings))
            self._words = frozenset(self._in_words.split())
        return self._words

    def has_phrase(self, phrase: str) -> bool:
        """Return whether the words of in_words() follow each other in the text."""
        return self.words.issuperset(phrase.split()) and phrase in self._in_words


def in_words(small: str) -> str:
    """Return the words of a small text, with a blank before and after each of them.

    A word is a run of letters, digits and underscores; what is between words does not count.
    """
    return f" {_BETWEEN_WORDS.sub(' ', small).strip()} "


def body_text(
    content: ParsedContent,
    parts: Sequence[MessagePart],
    between_parts: Callable[[], None] = lambda: None,
) -> str:
    """Return the folded text of all bodies among the parts of a content, one after the other.

    A text with DelSp=yes (RFC 3676) follows a second time, as it is shown.

    Only the first BODY_OCTETS_MAX octets count, and the text has no more characters than that.
    Reading blocks; raises OSError for a large body that cannot be read.
    """
    octets = octets_of(content.joined())
    left, texts = BODY_OCTETS_MAX, list[str]()
    for part in parts:
        for encoding in part.encodings if part.is_body else ():
            between_parts()
            body = part.body(octets)
            read = _first_octets(body.part(0, ENCODED_OCTETS_MAX), encoding, left)
            left -= len(read)
            content_type = content_type_of(Header.parse(cleaned(part.header)))
            text, _ = decode_octets(
                read,
                charset_of(content_type),
                is_html=part.content_type == "text/html",
                is_cut=not left,
            )
            text = visible_text(text) if part.content_type == "text/html" else text
            # a rule matches in either reading
            texts += dict.fromkeys((text, unflowed(text, content_type)))
    return folded("\n".join(texts), BODY_OCTETS_MAX)


def _first_octets(source: Octets, encoding: str, limit: int) -> bytes:
    """Return the decoded octets up to a limit."""
    pieces, left = [], limit
    for block in decoded_blocks(source, encoding) if limit else ():
        pieces.append(block[:left])
        left -= len(pieces[-1])
        if not left:
            break
    return b"".join(pieces)
