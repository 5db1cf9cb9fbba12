"""The message as conditions of mail-flow rules read it (MessageView), and their base class.

MessageView reads each fact of a message once, when a condition first needs it. Views of one content
for several sets of rules share what was read.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from typing import Any, Generic, TypeVar

from msgspec import Struct

from relay.base.message.address import ascii_address, with_a_labels, with_u_labels
from relay.base.message.envelope import Source
from relay.base.message.header import ParsedContent
from relay.base.message.verdict import ExaminedMessage
from relay.base.socket_address import plain_ip
from relay.formats import headers
from relay.formats.read_header import addressees, originators
from relay.transport.policy.archives import ArchiveContents, MessageArchives, archive_contents
from relay.transport.policy.body_text import BodyText, body_text
from relay.transport.policy.globs import VALUE_CHARACTERS_MAX, FieldGlobs
from relay.transport.policy.message_parts import (
    AttachedFile,
    MessagePart,
    attachments,
    may_have_attachments,
    message_parts,
    names_of,
    with_files_in_texts,
)
from relay.transport.policy.patterns import Pattern, PatternSet, PatternSets

T = TypeVar("T")
FIELDS_MAX = 100  # of one name; further ones are ignored
_first_number = re.compile(r"(?:(?<![\w.])[-+])?(?:\d+(?:\.\d+)?|\.\d+)", re.ASCII)


class _Fact(Generic[T]):
    """A property of MessageView that is read once, by once(), for all sets of rules.

    It replaces cached_property, which before Python 3.12 holds one lock for all messages.
    """

    def __init__(self, read: "Callable[[MessageView], T]") -> None:
        self._read = read

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, view: "MessageView", _: type) -> T:
        try:
            fact: T = view.shared.facts[self._name]
        except KeyError:
            fact = view.once(self._name, lambda: self._read(view))
            view.shared.facts[self._name] = fact
        view.__dict__[self._name] = fact
        return fact


class UndecidedError(Exception):
    """A condition cannot be evaluated: an archive exceeds a bound, or a sender was not checked."""

    rule = ""  # the rule with the condition


class OutOfTimeError(Exception):
    """The rules of a tenant take too long; the rules after them may still read the same fact."""


class _Shared:
    """What all views of one content share."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}  # by the name of the property
        self.values: dict[str, tuple[str, ...]] = {}  # by the name of the field
        self.numbers: dict[str, Sequence[tuple[str, float]]] = {}  # by the name of the field
        self.errors: dict[object, Exception] = {}  # by the fact that could not be read


class MessageView:
    """A message for conditions: `message` as received, `content` after earlier rules.

    A set of rules that sees other recipients has another view of the same content. It is made with
    `like`, and shares what was read.
    """

    def __init__(
        self,
        message: ExaminedMessage,
        content: ParsedContent,
        pattern_sets: PatternSets,
        *,
        between_parts: Callable[[], None] = lambda: None,
        archives: MessageArchives | None = None,
        like: "MessageView | None" = None,
    ) -> None:
        self.message = message
        self.content = content
        self.size: int = like.size if like else content.size
        self._pattern_sets = pattern_sets
        self._between_parts = between_parts  # raises when the evaluation was given up
        # one for all views of a message
        self._archives = archives or MessageArchives(between_parts)
        self._found: dict[str, Mapping[Pattern, str]] = {}
        self.known: dict[int, bool] = {}  # results, by the number of the condition
        self.shared: _Shared = like.shared if like else _Shared()

    @_Fact
    def client(self) -> IPv4Address | IPv6Address | None:
        """The address of the client, None for a client of Relay's own socket."""
        return _address_of(self.message.client)

    @_Fact
    def sender(self) -> str:
        """The reverse-path, <> for the null one."""
        return ascii_address(self.message.reverse_path) or "<>"

    @_Fact
    def subject(self) -> str:
        """The decoded Subject."""
        return headers.decoded(self.content.header, "Subject")

    @_Fact
    def authors(self) -> tuple[str, ...]:
        """The addresses in From."""
        fields = [field for field in originators(self.content.header) if field.name == "From"]
        return tuple(
            [ascii_address(author.address) for field in fields for author in field.addresses]
        )

    @_Fact
    def addressees(self) -> tuple[str, ...]:
        """The addresses in To and Cc."""
        return tuple(dict.fromkeys(map(ascii_address, addressees(self.content.header))))

    @_Fact
    def parts(self) -> tuple[MessagePart, ...]:
        """All parts. Like the properties below, raises TooManyPartsError, OSError."""
        by_graph = self.message.source is Source.GRAPH
        return message_parts(self.content, self._between_parts, by_graph=by_graph)

    @_Fact
    def files(self) -> tuple[MessagePart, ...]:
        """All parts, and files in a text; () if there can be no attachment."""
        if not may_have_attachments(self.content):
            return ()
        return with_files_in_texts(self.content, self.parts, self._between_parts)

    @_Fact
    def attachment_names(self) -> tuple[tuple[str, str], ...]:
        """The normalised names of all attachments, each with the name whose ending is compared."""
        return tuple(dict.fromkeys(chain.from_iterable(map(names_of, self.files))))

    @_Fact
    def attachments(self) -> tuple[AttachedFile, ...]:
        """All attachments, with the types of their contents."""
        return attachments(self.content, self.files, self._between_parts)

    @_Fact
    def archives(self) -> tuple[ArchiveContents, ...]:
        """What is in each of the attachments."""
        return archive_contents(self.content, self.files, self._archives)

    @_Fact
    def body(self) -> BodyText:
        """The text of the body."""
        return BodyText(body_text(self.content, self.parts, self._between_parts))

    def header(self, name: str) -> tuple[str, ...]:
        """Return the values of all fields called `name`, unfolded and decoded.

        A value with an internationalized domain is returned in both forms.
        """
        values = self.shared.values.get(name)
        if values is None:
            texts = headers.decoded_values(self.content.header, name, limit=FIELDS_MAX)
            forms = (*texts, *map(with_a_labels, texts), *map(with_u_labels, texts))
            values = tuple(dict.fromkeys(forms))
            self.shared.values[name] = values
        return values

    def header_found(self, name: str) -> Mapping[Pattern, str]:
        """Return found_in() for the fields called `name`."""
        field = f"header {name}"
        if (known := self._found.get(field)) is not None:
            return known
        values = [text[:VALUE_CHARACTERS_MAX] for text in self.header(name)]
        return self.found_in(field, values) if values else {}

    def header_numbers(self, name: str) -> Sequence[tuple[str, float]]:
        """Return the values of the fields called `name` that have a number, with that number."""
        known = self.shared.numbers.get(name)
        if known is None:
            matches = [
                (value, _first_number.search(value[:VALUE_CHARACTERS_MAX]))
                for value in self.header(name)
            ]
            known = [(value, float(number[0])) for value, number in matches if number]
            self.shared.numbers[name] = known
        return known

    def found_in(self, field: str, values: Sequence[str]) -> Mapping[Pattern, str]:
        """Return the patterns for `field` that match, each with the first of `values` it matches.

        All patterns for a field are matched at once. Raises PatternError.
        """
        if (known := self._found.get(field)) is not None:
            return known
        patterns = self._pattern_sets[field]
        first_values = self.once(patterns, lambda: _first_values(patterns, values))
        self._found[field] = first_values
        return first_values

    def once(self, fact: object, read: Callable[[], T]) -> T:
        """Return what `read` returns. An error is kept and raised again for the same `fact`.

        Otherwise each rule that is skipped because of the error would repeat the work.
        """
        if fact in self.shared.errors:
            raise self.shared.errors[fact].with_traceback(None)
        try:
            return read()
        except OutOfTimeError:
            raise
        except Exception as error:
            self.shared.errors[fact] = error
            raise

    def values_of(self, field: str) -> Sequence[str]:
        """Return the values of a field of FieldGlobs other than "header NAME"."""
        forms_of = self.message.forms_of
        match field:
            case "sender":
                return forms_of((self.sender,))
            case "login":
                return (self.message.login or "<>",)
            case "recipient":
                names = map(self.message.names_of, self.message.recipients)
                return forms_of(tuple(map(ascii_address, chain.from_iterable(names))))
            case "header_from":
                return forms_of(self.authors)
            case "to_or_cc":
                return forms_of(self.addressees)
            case "attachment":
                return ("",) if may_have_attachments(self.content) else ()
            case _:
                return (self.subject,)


def _first_values(patterns: PatternSet, values: Sequence[str]) -> Mapping[Pattern, str]:
    """Return the patterns that match, each with the first value. Raises PatternError."""
    first_values: dict[Pattern, str] = {}
    for value in values:
        for pattern in patterns.matching(value):
            first_values.setdefault(pattern, value)
    return first_values


def _address_of(text: str) -> IPv4Address | IPv6Address | None:
    """Return an IP address, or None; for IPv4 in IPv6 the IPv4 address (RFC 4291 2.5.5.2)."""
    try:
        return plain_ip(text.partition("%")[0])
    except ValueError:
        return None


class BaseCondition(Struct, frozen=True):
    """The base of all conditions."""

    @property
    def is_deep(self) -> bool:
        """Whether it may take long; such conditions are evaluated last, and in a thread."""
        return False

    def needs_thread(self, _: MessageView) -> bool:
        """Return whether it takes long for this content."""
        return self.is_deep

    def patterns(self) -> Sequence[tuple[str, Pattern]]:
        """Return the patterns of the condition, each with its field; () if there are none."""
        return ()

    def terms(self) -> Sequence[FieldGlobs]:
        """Return globs, at least one of which matches a message that the condition matches; ()
        if there are no such globs.
        """
        return ()
