"""The conditions of mail-flow rules on the content: the text, the attachments, the kind of message.

relay/transport/policy/conditions.py says what a condition is, and has the keys of these. The parts
of a message, its text as a reader sees it and the types of its attachments are read once per
content. Raises what MessageView raises.

The number of a payment card has 13 to 19 digits, alone or in groups of at least three, with a blank
or hyphen between groups. It has the first digits and the length that an issuer of cards uses, and
the check digit of ISO/IEC 7812-1 (Luhn). Digits that are part of a longer number, of a word or of a
decimal fraction do not count. The search takes linear time: a group is combined with at most five
groups before it.

RFC 3834 5 (Auto-Submitted), RFC 2919 (List-Id), RFC 1847 (multipart/signed and encrypted), RFC 8551
3.2 (S/MIME), RFC 6522 (multipart/report), RFC 5545 8.1 (text/calendar).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import chain
from typing import Any, Self

from msgspec.structs import replace

from relay.base.message.header import Header
from relay.formats.content_fields import ContentField, content_field
from relay.formats.file_types import ARCHIVES, EXECUTABLES
from relay.formats.headers import is_automatic
from relay.transport.policy import message_view
from relay.transport.policy.archives import ArchiveContents
from relay.transport.policy.body_text import in_words
from relay.transport.policy.folding import folded, without_case
from relay.transport.policy.globs import GLOB_CHARACTERS_MAX, FieldGlobs, Globs, Groups, some_texts
from relay.transport.policy.message_parts import AttachedFile, may_have_attachments, names_of
from relay.transport.policy.patterns import PATTERN_STEPS_MAX, Pattern
from relay.transport.policy.table_reader import check_parts, part, parts, words_of

_READ_AT_ONCE_OCTETS = 65536  # for less, a thread costs more than reading
# What parts, parameters and encoded words begin with: each may take 0.3 ms.
_SLOW = (b"\n--", b"\r--", b";", b"=?")
_READ_AT_ONCE_SLOW = 100
_TEXT, _SMALL_TEXT = "body pattern", "body matches"  # the fields of patterns
_WILD = {"*": ".*", "?": "."}
_BODY_EXPECTED = 'a table with one of words, matches, pattern and cards, { words = ["invoice"] }'
_OF_ARCHIVES = ("inside", "encrypted", "unreadable")
_KINDS = {"executable": EXECUTABLES, "archive": ARCHIVES}


def _name_globs(value: Any) -> Globs:
    return Globs.of(map(folded, some_texts(value)))


class AttachedCondition(message_view.BaseCondition, frozen=True):
    """The base of all conditions on attachments."""

    @property
    def is_deep(self) -> bool:
        """See BaseCondition."""
        return True

    def needs_thread(self, view: message_view.MessageView) -> bool:
        """Return whether it takes long; the names in a small content are read at once."""
        return may_have_attachments(view.content) and is_slow(view)

    def terms(self) -> Sequence[FieldGlobs]:
        """See BaseCondition. The condition can match a message with any attachment."""
        return (("attachment", None),)


class AttachmentNameCondition(AttachedCondition, frozen=True):
    """An attachment's [name](#attachments) matches.

    `attachment_name = ["*.exe", "*.js"]`
    """

    globs: Globs

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read globs. Raises ValueError."""
        return cls(_name_globs(value))

    def matches(self, view: message_view.MessageView) -> bool:
        """Return whether the condition matches."""
        return any(_matching(self.globs, view.attachment_names))

    def value_in(self, view: message_view.MessageView) -> str:
        """Return the first name that matches, else all names."""
        names = view.attachment_names
        return next(_matching(self.globs, names), "") or ", ".join([name for name, _ in names])


class AttachmentCondition(AttachedCondition, frozen=True):
    """An attachment has a name and a [type](#types) that match.

    `attachment = { name = "*.pdf", type = "executable" }`

    A file in a [ZIP file](#archives) has both; an archive is encrypted, or cannot be read.

    `attachment = { inside = true, name = "*.exe" }`
    """

    # `encrypted` and `unreadable` are properties of the attachment. The type of an unreadable file
    # is only read from its content: a sender may declare any type.
    names: Globs | None  # None matches all
    types: Globs | None  # the same
    inside: bool
    encrypted: bool
    unreadable: bool

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read a table with some of the keys. Raises ValueError."""
        if isinstance(value, dict):
            check_parts(value, ("name", "type", *_OF_ARCHIVES))
        if not isinstance(value, dict) or value.keys() <= {"inside"}:
            raise ValueError(
                'a table with name, type or both, { name = "*.pdf", type = "executable" }, and for'
                " archives inside, encrypted, unreadable"
                + (": name or type is missing" if value else "")
            )
        return cls(
            part(value, "name", _name_globs) if "name" in value else None,
            part(value, "type", _type_globs) if "type" in value else None,
            *[key in value and part(value, key, _true) for key in _OF_ARCHIVES],
        )

    def needs_thread(self, view: message_view.MessageView) -> bool:
        """Return whether it takes long: names of a large content, and types if a name matches."""
        if super().needs_thread(view):
            return True
        return (self.types is not None or self._asks_archives) and self._may_match(view)

    def matches(self, view: message_view.MessageView) -> bool:
        """Return whether the condition matches.

        Raises UndecidedError if that is not known, because of a bound.
        """
        if not self._may_match(view):
            return False
        if not self._asks_archives:
            return any(map(self._fits, view.attachments))
        if not (self.inside or self.unreadable or any(map(self._fits, view.attachments))):
            return False
        if any(self._found(view)):
            return True
        for attachment, archive in zip(view.attachments, view.archives, strict=True):
            is_unknown = self.inside or (self.encrypted and not archive.is_encrypted)
            if archive.bound and is_unknown and (self.inside or self._fits(attachment)):
                raise message_view.UndecidedError(f"{_shown(attachment)} exceeds {archive.bound}")
        return False

    def value_in(self, view: message_view.MessageView) -> str:
        """Return the names and types of the first attachment that matches, else of all."""
        if self._asks_archives:
            matching = next(self._found(view), "")
            pairs = zip(view.attachments, view.archives, strict=True)
            return matching or ", ".join([_with_contents(*pair) for pair in pairs])
        attachments = view.attachments
        fitting = [attachment for attachment in attachments if self._fits(attachment)][:1]
        return ", ".join(map(_shown, fitting or attachments))

    @property
    def _asks_archives(self) -> bool:
        return self.inside or self.encrypted or self.unreadable

    def _found(self, view: message_view.MessageView) -> Iterator[str]:
        """Yield what matches, for a condition on the content of archives."""
        for attachment, archive in zip(view.attachments, view.archives, strict=True):
            if (self.encrypted and not archive.is_encrypted) or (
                self.unreadable and not archive.is_unreadable
            ):
                continue
            types = archive.types if self.unreadable else attachment.types
            if self._fits(replace(attachment, types=types)):
                yield _with_contents(attachment, archive)
            for entry in filter(self._fits, archive.entries if self.inside else ()):
                yield f"{_shown(attachment)}: {_shown(entry)}"

    def _may_match(self, view: message_view.MessageView) -> bool:
        if self.inside or self.names is None:
            return any(file.is_attachment for file in view.files)
        return any(_matching(self.names, view.attachment_names))

    def _fits(self, attachment: AttachedFile) -> bool:
        return (self.names is None or any(_matching(self.names, names_of(attachment)))) and (
            self.types is None or self.types.match_any(attachment.types)
        )


def _matching(globs: Globs, names: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the names that match: a glob that is no whole name has to fit the ending, too."""
    for name, compared in names:
        if globs.match(name) and (name in globs.whole or name == compared or globs.match(compared)):
            yield name


def is_slow(view: message_view.MessageView) -> bool:
    """Return whether it takes long to find the names of the attachments."""
    rest = view.content.rest
    if view.size > _READ_AT_ONCE_OCTETS or not isinstance(rest, bytes):
        return True
    return sum(map(rest.count, _SLOW)) > _READ_AT_ONCE_SLOW


def _type_globs(value: Any) -> Globs:
    return Globs.of(chain.from_iterable(parts(some_texts(value), _types)))


def _types(text: str) -> Iterable[str]:
    if text in _KINDS:
        return _KINDS[text]
    if "/" in text or "*" in text:
        return (text,)
    raise ValueError('types such as "application/pdf" or "image/*", executable or archive')


def _shown(attachment: AttachedFile) -> str:
    types = [f"({', '.join(attachment.types)})"] if attachment.types else []
    return " ".join([*attachment.names[:1], *types])


def _with_contents(attachment: AttachedFile, archive: ArchiveContents) -> str:
    words = [_shown(attachment)]
    if archive.is_encrypted:
        words.append("encrypted")
    if archive.is_unreadable:
        words.append(f"unreadable ({archive.bound or 'damaged, or of a kind that is not read'})")
    if archive.entries:
        words.append(f"with {len(archive.entries)} entries")
    return " ".join(words)


class BodyCondition(message_view.BaseCondition, frozen=True):
    r"""The [text](#text) of the message has one of the words or phrases.

    `body = { words = ["invoice", "please pay"] }`

    The whole text matches.

    `body = { matches = "*gift card*" }`

    A regular expression is found in it.

    `body = { pattern = '\bIBAN\b.{0,40}\d{8}' }`

    The number of a payment card is found in it.

    `body = { cards = true }`
    """

    words: frozenset[str] = frozenset()
    phrases: tuple[str, ...] = ()  # in the form of in_words()
    expressions: tuple[tuple[str, Pattern], ...] = ()  # each with the text that it is for
    cards: bool = False

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read { words }, { matches }, { pattern } or { cards }. Raises ValueError."""
        if isinstance(value, dict):
            check_parts(value, ("words", "cards", *_EXPRESSIONS))
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError(_BODY_EXPECTED)
        [key] = value
        if key == "words":
            word_lists = part(value, key, lambda texts: parts(some_texts(texts), _words_of))
            return cls(
                words=frozenset([words[0] for words in word_lists if len(words) == 1]),
                phrases=tuple(
                    [in_words(" ".join(words)) for words in word_lists if len(words) > 1]
                ),
            )
        if key == "cards":
            return cls(cards=part(value, key, _true))
        field, parse = _EXPRESSIONS[key]
        read = part(value, key, lambda texts: parts(some_texts(texts), parse))
        return cls(expressions=tuple([(field, pattern) for pattern in read]))

    @property
    def is_deep(self) -> bool:
        """See BaseCondition."""
        return True

    def patterns(self) -> Sequence[tuple[str, Pattern]]:
        """See BaseCondition."""
        return self.expressions

    def matches(self, view: message_view.MessageView) -> bool:
        """Return whether the condition matches. Raises PatternError."""
        return any(True for _ in self._found(view))

    def value_in(self, view: message_view.MessageView) -> str:
        """Return the words that are found or the part that matches, else the whole text.

        Of the number of a card only the last four digits are returned. A text that may have numbers
        of cards is not returned. Raises PatternError.
        """
        return ", ".join(self._found(view)) or ("" if self.cards else view.body.text)

    def _found(self, view: message_view.MessageView) -> Iterator[str]:
        """Yield all words, phrases and cards that are found, and what the first pattern matches."""
        body = view.body
        if self.words:
            yield from sorted(self.words & body.words)
        for phrase in self.phrases:
            if body.has_phrase(phrase):
                yield phrase.strip()
        if self.cards:
            yield from map(masked, card_numbers(body.text))
        for field, pattern in self.expressions:
            text = body.text if field == _TEXT else body.small
            if pattern in view.found_in(field, [text]):
                yield pattern.excerpt(text)
                return


def _true(value: Any) -> bool:
    if value is not True:
        raise ValueError("true")
    return value


def _words_of(text: str) -> list[str]:
    small = without_case(folded(text))
    words = in_words(small).split()
    if not 0 < len(text) <= GLOB_CHARACTERS_MAX or not words:
        raise ValueError(f"words of 1 to {GLOB_CHARACTERS_MAX} characters")
    if not small.startswith(words[0]) or not small.endswith(words[-1]):
        raise ValueError("words that begin and end with a letter or a digit: for others, matches")
    return words


def _pattern_of(glob: str) -> Pattern:
    """Return a glob as a pattern for a text in lower case. Raises ValueError."""
    if not 0 < len(glob) <= GLOB_CHARACTERS_MAX:
        raise ValueError(f"globs of 1 to {GLOB_CHARACTERS_MAX} characters")
    small = without_case(folded(glob))
    inner = "".join(_WILD.get(character) or re.escape(character) for character in small.strip("*"))
    begin, end = "" if small.startswith("*") else r"\A", "" if small.endswith("*") else r"\z"
    try:
        return Pattern.parse(f"(?s){begin}{inner}{end}")
    except ValueError:
        raise ValueError(
            f"globs of at most {PATTERN_STEPS_MAX} steps: a ? has 7, a letter 1 to 3"
        ) from None


_EXPRESSIONS: dict[str, tuple[str, Callable[[Any], Pattern]]] = {
    "matches": (_SMALL_TEXT, _pattern_of),
    "pattern": (_TEXT, Pattern.parse),
}


# The lookarounds keep the search linear: no place of the text is read twice.
_GROUP = re.compile(r"(?<![^\W_])(?<!\+)(?<![0-9]\.)[0-9]{3,19}+(?![^\W_])(?!\.[0-9])")
_BETWEEN_GROUPS = " -\u2010\u2013"  # \u2010 is what NFKC makes of a hyphen that does not break
_GROUPS_MAX = 6  # of three digits
_DIGITS_MAX = 19
_ISSUED = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"  # MC
    r"|3[47][0-9]{13}"  # American Express
    r"|3(?:0[0-5]|[689][0-9])[0-9]{11}"  # Diners Club
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12}"  # JCB
    r"|(?:5[06-8]|6[0-9])[0-9]{11,17}"  # Maestro, Discover, UnionPay and others
)
_DOUBLED = bytes.maketrans(b"0123456789", bytes([0, 2, 4, 6, 8, 1, 3, 5, 7, 9]))
_ZERO = ord("0")


def card_numbers(text: str) -> Iterator[str]:
    """Yield the digits of each number, in the order of the text."""
    groups: list[str] = []
    end = -1
    for match in _GROUP.finditer(text):
        if match.start() != end + 1 or text[end] not in _BETWEEN_GROUPS:
            groups.clear()
        groups = [*groups[1 - _GROUPS_MAX :], match[0]]
        end = match.end()
        digits = ""
        for group in reversed(groups):
            digits = group + digits
            if len(digits) > _DIGITS_MAX:
                break
            if _ISSUED.fullmatch(digits) and _has_check_digit(digits):
                yield digits
                groups.clear()
                break


def masked(digits: str) -> str:
    """Return the last four digits of a card number, as it may be shown."""
    return f"•••• {digits[-4:]}"


def _has_check_digit(digits: str) -> bool:
    octets = digits.encode()
    single, doubled = octets[::-2], octets[-2::-2]
    return (sum(single) - _ZERO * len(single) + sum(doubled.translate(_DOUBLED))) % 10 == 0


_SMIME = ("application/pkcs7-mime", "application/x-pkcs7-mime")
_ENVELOPED = ("enveloped-data", "authenveloped-data")
_CALENDARS = ("text/calendar", "application/ics")


class MessageType(StrEnum):
    """`message_type`: what the message has, in its own header for all kinds but `calendar`. A
    message may be of several kinds.
    """

    # In the order in which they are asked.

    AUTOMATIC = "automatic"  # `Auto-Submitted` other than `no`, or `Precedence: bulk` or `junk`
    LIST = "list"  # `List-Id`
    REPORT = "report"  # the type multipart/report: bounces and read receipts
    SIGNED = "signed"  # the type multipart/signed, or S/MIME that is signed
    # the type multipart/encrypted, or S/MIME that is encrypted. PGP in the text does not count
    ENCRYPTED = "encrypted"
    CALENDAR = "calendar"  # a part text/calendar or application/ics


class MessageTypeCondition(message_view.BaseCondition, frozen=True):
    """The message is of that [kind](#kinds-of-messages).

    `message_type = ["automatic", "list"]`
    """

    kinds: tuple[MessageType, ...]  # in the order of MessageType

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read one or more kinds. Raises ValueError."""
        kinds = words_of(value, MessageType)
        return cls(tuple(kind for kind in MessageType if kind in kinds))

    @property
    def is_deep(self) -> bool:
        """See BaseCondition."""
        return MessageType.CALENDAR in self.kinds

    def needs_thread(self, view: message_view.MessageView) -> bool:
        """Return whether the types of the parts have to be read, and reading them takes long."""
        return self.is_deep and may_have_attachments(view.content) and is_slow(view)

    def terms(self) -> Sequence[FieldGlobs]:
        """See BaseCondition: the fields without which no message is of these kinds."""
        if self.is_deep:
            return ()
        names = dict.fromkeys(name for kind in self.kinds for name in _BY_HEADER[kind][0])
        return [(f"header {name}", None) for name in names]

    def matches(self, view: message_view.MessageView) -> bool:
        """Return whether the condition matches. Raises what MessageView raises."""
        return any(_is_of(view, kind) for kind in self.kinds)

    def value_in(self, view: message_view.MessageView) -> str:
        """Return the first kind that matches, else the kinds that the header shows.

        Raises what MessageView raises.
        """
        for kind in self.kinds:
            if _is_of(view, kind):
                return kind
        return ", ".join(kind for kind in _BY_HEADER if _is_of(view, kind))


def _is_of(view: message_view.MessageView, kind: MessageType) -> bool:
    """Return whether a message is of a kind."""
    header = view.content.header
    if kind is not MessageType.CALENDAR:
        _, is_of = _BY_HEADER[kind]
        return is_of(header)
    if any(field.value in _CALENDARS for field in _read(header, "Content-Type")):
        return True
    return may_have_attachments(view.content) and any(
        part.content_type in _CALENDARS and not part.is_forwarded for part in view.parts
    )


def _read(header: Header, name: str) -> list[ContentField]:
    values = header.values(name)[: message_view.FIELDS_MAX]
    return [content_field(octets.decode("latin-1")) for octets in values]


def _is_signed(header: Header) -> bool:
    return any(
        field.value == "multipart/signed" or _smime_type(field, header) == "signed-data"
        for field in _read(header, "Content-Type")
    )


def _is_encrypted(header: Header) -> bool:
    return any(
        field.value == "multipart/encrypted" or _smime_type(field, header) in _ENVELOPED
        for field in _read(header, "Content-Type")
    )


def _smime_type(field: ContentField, header: Header) -> str:
    """Return what an S/MIME message contains, "" for other messages.

    Without the parameter smime-type, the file name decides.
    """
    if field.value not in _SMIME:
        return ""
    if smime_type := field.raw("smime-type"):
        return smime_type.lower()
    names = [*field.all("name")]
    for disposition in _read(header, "Content-Disposition"):
        names += disposition.all("filename")
    is_signed = any(name.lower().endswith(".p7s") for name in names)
    return "signed-data" if is_signed else "enveloped-data"


def _is_report(header: Header) -> bool:
    return any(field.value == "multipart/report" for field in _read(header, "Content-Type"))


# The fields without which a message is not of the kind, and whether it is.
_BY_HEADER: dict[MessageType, tuple[Sequence[str], Callable[[Header], bool]]] = {
    MessageType.AUTOMATIC: (("auto-submitted", "precedence"), is_automatic),
    MessageType.LIST: (("list-id",), lambda header: "List-Id" in header),
    MessageType.REPORT: (("content-type",), _is_report),
    MessageType.SIGNED: (("content-type",), _is_signed),
    MessageType.ENCRYPTED: (("content-type",), _is_encrypted),
}
