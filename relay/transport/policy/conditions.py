"""The conditions of mail-flow rules: each key of `when` and `unless` is a class in CONDITIONS.

To add a condition, write a frozen Struct with parse(), matches() and value_in(). `make docs` puts
its docstring, a text and an example for each kind of value, into docs/policy-conditions.md. Add the
class to CONDITIONS and MessageCondition, or to ContentCondition if it reads the content. Such a
condition is evaluated once per content. A condition that is evaluated per recipient has
matches_recipient() and value_for(), and is added to RecipientCondition. Conditions are pure.
parse() gets the address groups, and raises ValueError that says what was expected.

value_in() and value_for() return the value that a condition compares. If there are several, they
return the first that matches.

The vocabulary is that of Exchange's mail flow rules. RFC 5321 2.3.11 (addresses), RFC 5322 3.6.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from functools import reduce
from ipaddress import IPv4Network, IPv6Network
from math import isfinite
from operator import or_
from typing import Any, ClassVar, Self

from relay.base.message.address import ascii_address, with_a_labels
from relay.base.message.authentication_results import UNABLE, is_aligned, is_of_helo
from relay.base.message.envelope import Source, domain_of
from relay.base.phrases import shown
from relay.base.settings.values import parse_size
from relay.base.socket_address import network_of
from relay.formats import headers
from relay.transport.policy import content_conditions
from relay.transport.policy.globs import FieldGlobs, Globs, Groups, read_globs, some_texts
from relay.transport.policy.groups import OWN_GROUP
from relay.transport.policy.message_view import BaseCondition, MessageView, UndecidedError
from relay.transport.policy.patterns import Pattern
from relay.transport.policy.table_reader import check_parts, part, parts, words_of

_GROUP = "group:"
_NO_LOGIN = "<>"
AUTH_METHODS = ("spf", "dkim", "dmarc", "aligned")  # of the condition auth
_HEADER_EXPECTED = (
    "a table with a field's name and one of matches, pattern and over, "
    '{ name = "X-Spam", matches = "yes*" }'
)
_FOUND_CHARACTERS_MAX = 120


class GlobCondition(BaseCondition, frozen=True):
    """The base of all conditions on one text; `field` is the name of the text in FieldGlobs."""

    globs: Globs
    field: ClassVar[str]

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read globs. Raises ValueError."""
        return cls(read_globs(value))

    def terms(self) -> Sequence[FieldGlobs]:
        """See BaseCondition."""
        return ((self.field, self.globs),)


class AddressCondition(GlobCondition, frozen=True):
    """The base of all conditions on addresses; with `or_own`, those of own domains match too."""

    or_own: bool = False

    @classmethod
    def parse(cls, value: Any, groups: Groups) -> Self:
        """Read globs and group:NAME. Raises ValueError."""
        texts = some_texts(value)
        named = {text.removeprefix(_GROUP) for text in texts if text.startswith(_GROUP)}
        names = sorted(named - {OWN_GROUP})
        for name in names:
            if name not in groups:
                known = ", ".join(sorted({*groups, OWN_GROUP}))
                raise ValueError(f"groups that there are ({known}), not {shown(name)}")
        plain = [text for text in texts if not text.startswith(_GROUP)]
        globs = Globs.of(map(_address_glob, plain))
        return cls(reduce(or_, [groups[name] for name in names], globs), OWN_GROUP in named)

    def terms(self) -> Sequence[FieldGlobs]:
        """See BaseCondition."""
        return ((self.field, None if self.or_own else self.globs),)

    def takes(self, view: MessageView, addresses: Sequence[str]) -> bool:
        """Return whether one of these addresses matches."""
        if self.or_own and any(map(view.message.is_own, map(domain_of, addresses))):
            return True
        return self.globs.match_any(view.message.forms_of(addresses))


def _address_glob(text: str) -> str:
    """Return a glob for addresses with A-labels, as they are compared. Raises ValueError.

    Without an @, what follows the last wildcard ends a domain: "*.bücher.test".
    """
    if text.isascii():
        return text
    glob, start = with_a_labels(text), text.rfind("@") + 1
    if not start:
        start = max(text.rfind("*"), text.rfind("?")) + 1
        last = text[start:]
        if start:
            glob = text[:start] + (with_a_labels(f"@{last}")[1:] if last.startswith(".") else last)
    if not glob[start:].isascii():
        raise ValueError(
            'whole labels beyond ASCII, of IDNA 2008, as in "*@bücher.test" and "*.bücher.test"'
        )
    return glob


class SenderCondition(AddressCondition, frozen=True):
    """The reverse-path (MAIL FROM) matches or is in a [group](#groups); `"<>"` is the null
    reverse-path.

    `sender = ["*@example.org", "<>"]`
    """

    field = "sender"

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return self.takes(view, (view.sender,))

    def value_in(self, view: MessageView) -> str:
        """Return the reverse-path."""
        return view.sender


class HeaderAddressCondition(AddressCondition, frozen=True):
    """An address in the header matches a glob or is in a group."""

    is_deep = False

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return self.takes(view, view.values_of(self.field))

    def value_in(self, view: MessageView) -> str:
        """Return the first address that matches, else the first address, or ""."""
        addresses = view.values_of(self.field)
        matching = (address for address in addresses if self.takes(view, (address,)))
        return next(matching, next(iter(addresses), ""))


class HeaderFromCondition(HeaderAddressCondition, frozen=True):
    """An address in From matches or is in a group.

    `header_from = "group:own"`
    """

    field = "header_from"


class ToOrCcCondition(HeaderAddressCondition, frozen=True):
    """An address in To or Cc matches or is in a group.

    `to_or_cc = ["board@*", "group:staff"]`
    """

    field = "to_or_cc"


class RecipientAddressCondition(AddressCondition, frozen=True):
    """The address of this recipient, or the [alias](operation-users.md#aliases) that the client
    named, matches or is in a group.

    `recipient = ["sales@*", "group:staff"]`
    """

    field = "recipient"

    def matches_recipient(self, view: MessageView, recipient: str) -> bool:
        """Return whether the condition matches."""
        return self.takes(view, _names_of(view, recipient))

    def value_for(self, view: MessageView, recipient: str) -> str:
        """Return the first of these addresses that matches, else the recipient's address."""
        names = _names_of(view, recipient)
        return next((name for name in names if self.takes(view, (name,))), recipient)


def _names_of(view: MessageView, recipient: str) -> Sequence[str]:
    return tuple(map(ascii_address, view.message.names_of(recipient)))


class RecipientsOverCondition(BaseCondition, frozen=True):
    """The client named more recipients, also rejected recipients; an alias counts once.

    `recipients_over = 50`
    """

    count: int

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read a number of recipients. Raises ValueError."""
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError("a number of recipients such as 50")
        return cls(value)

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return view.message.recipient_count > self.count

    def value_in(self, view: MessageView) -> str:
        """Return how many the client named."""
        return str(view.message.recipient_count)


class ClientCondition(BaseCondition, frozen=True):
    """The client's address is in one of the networks; mail from Relay's own socket has no address.

    `client = ["192.0.2.0/24", "2001:db8::1"]`
    """

    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read networks and addresses. Raises ValueError."""
        return cls(tuple(parts(some_texts(value), network_of)))

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        client = view.client
        return client is not None and any(client in network for network in self.networks)

    def value_in(self, view: MessageView) -> str:
        """Return the client's address."""
        return view.message.client


class LoginCondition(GlobCondition, frozen=True):
    """The address of the account that sent the message matches; `"*"` is every login, `"<>"` no
    login.

    `login = "*@example.org"`
    """

    field = "login"

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read globs. Raises ValueError."""
        return cls(Globs.of(map(_address_glob, some_texts(value))))

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        login = view.message.login
        return self.globs.match(login) if login else _NO_LOGIN in self.globs.whole

    def value_in(self, view: MessageView) -> str:
        """Return the account, <> without one."""
        return view.message.login or _NO_LOGIN


class MailDirection(StrEnum):
    """The direction of a copy; each copy has exactly one."""

    INBOUND = "inbound"  # from elsewhere to a local mailbox
    OUTBOUND = "outbound"  # to a mailbox elsewhere
    INTERNAL = "internal"  # from a local sender to a local mailbox


def _direction(view: MessageView, recipient: str) -> MailDirection:
    if recipient not in view.message.local:
        return MailDirection.OUTBOUND
    return MailDirection.INTERNAL if view.message.sender_local else MailDirection.INBOUND


class DirectionCondition(BaseCondition, frozen=True):
    """The copy for this recipient goes in that [direction](#direction).

    `direction = ["inbound", "internal"]`
    """

    directions: frozenset[MailDirection]

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read one or more of inbound, outbound, internal. Raises ValueError."""
        return cls(frozenset(words_of(value, MailDirection)))

    def matches_recipient(self, view: MessageView, recipient: str) -> bool:
        """Return whether the condition matches."""
        return _direction(view, recipient) in self.directions

    def value_for(self, view: MessageView, recipient: str) -> str:
        """Return the direction."""
        return str(_direction(view, recipient))


class SourceCondition(BaseCondition, frozen=True):
    """The message came from the API (`graph`), by SMTP (`smtp`) or from [this
    machine](operation-run.md#mail-of-programs-on-this-machine) (`sendmail`).

    `source = "graph"`
    """

    sources: frozenset[Source]

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read one or more of graph, smtp, sendmail, report. Raises ValueError."""
        return cls(frozenset(words_of(value, Source)))

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return view.message.source in self.sources

    def value_in(self, view: MessageView) -> str:
        """Return how it arrived."""
        return str(view.message.source)


class SizeOverCondition(BaseCondition, frozen=True):
    """The whole message, header and encodings included, is larger.

    `size_over = "25 MiB"`
    """

    is_deep = False
    size_bytes: int

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read "25 MiB" or a number of bytes. Raises ValueError."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        return cls(parse_size(value if isinstance(value, str) else ""))

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return view.size > self.size_bytes

    def value_in(self, view: MessageView) -> str:
        """Return the size."""
        return str(view.size)


class SubjectCondition(GlobCondition, frozen=True):
    """The decoded Subject matches.

    `subject = "*invoice*"`
    """

    is_deep = False
    field = "subject"

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return self.globs.match(view.subject)

    def value_in(self, view: MessageView) -> str:
        """Return the Subject."""
        return view.subject


class AuthCondition(BaseCondition, frozen=True):
    """[`sender_checks`](strangers.md) or a [`[[milter]]`](filters.md) of this relay found these
    results of `spf`, `dkim` and `dmarc`; `aligned` passes if the domain of the author itself
    passed, also without a DMARC record; results that strangers wrote do not count; `unable`
    [defers](strangers.md#spf-dkim-and-dmarc).

    `auth = { dmarc = "fail" }`
    """

    # SPF of the name in EHLO does not count: the client chooses it.

    is_deep = False
    methods: tuple[tuple[str, Globs], ...]

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read { dmarc = "fail" }. Raises ValueError."""
        if not isinstance(value, dict) or not value:
            raise ValueError('a table with spf, dkim and dmarc, { dmarc = "fail" }')
        check_parts(value, AUTH_METHODS)
        return cls(tuple([(method, part(value, method, read_globs)) for method in value]))

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches. Raises UndecidedError."""
        results, unknown = list(_results(view)), list[str]()
        for method, globs in self.methods:
            words = [result for name, result in results if name == method]
            if not any(globs.match(word) for word in words if word != UNABLE):
                if UNABLE not in words:
                    return False
                unknown.append(method)
        if unknown:
            raise UndecidedError(f"{', '.join(unknown)} of the sender could not be checked")
        return True

    def value_in(self, view: MessageView) -> str:
        """Return the results by these methods."""
        methods = dict(self.methods)
        return " ".join([f"{name}={result}" for name, result in _results(view) if name in methods])


def _results(view: MessageView) -> Iterator[tuple[str, str]]:
    """Yield the methods and results of a message."""
    results = view.message.results
    yield from ((result.method, result.result) for result in results if not is_of_helo(result))
    if is_aligned(results):
        yield "aligned", "pass"
    else:
        words = {result.result for result in results if result.method == "dmarc"}
        yield from (("aligned", word) for word in ("temperror", UNABLE) if word in words)


# The test of a field: globs, a pattern, or a number that the number in the field must exceed.
HeaderTest = Globs | Pattern | float


class HeaderCondition(BaseCondition, frozen=True):
    """A decoded field matches; a missing field never does.

    `header = { name = "X-Spam", matches = "yes*" }`

    A [regular expression](#regular-expressions) is found in it.

    `header = { name = "X-Mailer", pattern = "^bulk ?mail" }`

    The first number in it is greater.

    `header = { name = "X-Spam-Score", over = 5 }`
    """

    fields: tuple[tuple[str, HeaderTest], ...]  # with the names in lower case

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read { name, matches }, { name, pattern } or { name, over }, or a list of such tables.

        Raises ValueError.
        """
        tables = value if isinstance(value, list) else [value]
        if not tables:
            raise ValueError(_HEADER_EXPECTED)
        return cls(tuple(parts(tables, _header_test)))

    @property
    def is_deep(self) -> bool:
        """See BaseCondition."""
        return any(isinstance(test, Pattern) for _, test in self.fields)

    def needs_thread(self, view: MessageView) -> bool:
        """Return whether the content has a field that a pattern has to search."""
        return any(isinstance(test, Pattern) and view.header(name) for name, test in self.fields)

    def patterns(self) -> Sequence[tuple[str, Pattern]]:
        """See BaseCondition."""
        return [(f"header {name}", test) for name, test in self.fields if isinstance(test, Pattern)]

    def terms(self) -> Sequence[FieldGlobs]:
        """See BaseCondition."""
        return [
            (f"header {name}", test if isinstance(test, Globs) else None)
            for name, test in self.fields
        ]

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches. Raises PatternError."""
        return any(_passing(view, name, test) is not None for name, test in self.fields)

    def value_in(self, view: MessageView) -> str:
        """Return the first field that matches, else the first field with such a name, or "".

        Raises PatternError.
        """
        for name, test in self.fields:
            if (value := _passing(view, name, test)) is not None:
                return f"{name}: {value}"
        return next(
            (f"{name}: {values[0]}" for name, _ in self.fields if (values := view.header(name))), ""
        )


def _header_test(table: Any) -> tuple[str, HeaderTest]:
    if isinstance(table, dict):
        check_parts(table, ("name", *_HEADER_TESTS))
    if not isinstance(table, dict) or len(table) != 2 or "name" not in table:
        raise ValueError(_HEADER_EXPECTED)
    name = part(table, "name", _field_name)
    [key] = table.keys() - {"name"}
    return name, part(table, key, _HEADER_TESTS[key])


def _field_name(value: Any) -> str:
    if not isinstance(value, str) or not headers.is_field_name(value):
        raise ValueError("a field's name: printable ASCII without ':'")
    return value.lower()


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
        raise ValueError("a number such as 5 or -2.5")
    return float(value)


_HEADER_TESTS: dict[str, Callable[[Any], HeaderTest]] = {
    "matches": lambda globs: Globs.of(_both_forms(some_texts(globs))),
    "pattern": Pattern.parse,
    "over": _number,
}


def _both_forms(globs: Sequence[str]) -> Iterable[str]:
    """Return globs for fields with and without A-labels, as MessageView.header() has values."""
    return dict.fromkeys((*globs, *map(with_a_labels, globs)))


def _passing(view: MessageView, name: str, test: HeaderTest) -> str | None:
    """Return the value of the first field that passes the test, None if none does."""
    match test:
        case Globs():
            return next(filter(test.match, view.header(name)), None)
        case Pattern():
            return view.header_found(name).get(test)
        case _:
            for value, number in view.header_numbers(name):
                if number > test:
                    return value
            return None


# These can only be evaluated with a message.
ContentCondition = (
    AuthCondition
    | SizeOverCondition
    | SubjectCondition
    | HeaderFromCondition
    | ToOrCcCondition
    | content_conditions.MessageTypeCondition
    | HeaderCondition
    | content_conditions.AttachmentNameCondition
    | content_conditions.AttachmentCondition
    | content_conditions.BodyCondition
)
MessageCondition = (
    SenderCondition
    | SourceCondition
    | RecipientsOverCondition
    | ClientCondition
    | LoginCondition
    | ContentCondition
)
RecipientCondition = RecipientAddressCondition | DirectionCondition
Condition = MessageCondition | RecipientCondition


# In the order of evaluation: the most expensive ones come last.
CONDITIONS: dict[str, type[Condition]] = {
    "source": SourceCondition,
    "direction": DirectionCondition,
    "size_over": SizeOverCondition,
    "recipients_over": RecipientsOverCondition,
    "client": ClientCondition,
    "login": LoginCondition,
    "sender": SenderCondition,
    "recipient": RecipientAddressCondition,
    "subject": SubjectCondition,
    "header_from": HeaderFromCondition,
    "to_or_cc": ToOrCcCondition,
    "message_type": content_conditions.MessageTypeCondition,
    "header": HeaderCondition,
    "auth": AuthCondition,  # late, since it may not be known
    "attachment_name": content_conditions.AttachmentNameCondition,
    "attachment": content_conditions.AttachmentCondition,
    "body": content_conditions.BodyCondition,
}
_KEYS = {kind: key for key, kind in CONDITIONS.items()}
for _kind in _KEYS:  # one of no union would match every message
    if not issubclass(_kind, Condition):
        raise TypeError(f"{_kind.__name__}: expected it in a union")
    if issubclass(_kind, ContentCondition) and _kind.is_deep is BaseCondition.is_deep:
        raise TypeError(f"{_kind.__name__}: expected is_deep, whether it may take long")


def key_of(condition: Condition) -> str:
    """Return the key of a condition in a rule file."""
    return _KEYS[type(condition)]


def cut_value(value: str) -> str:
    """Return a value as a journey or an explanation shows it."""
    cut = value[:_FOUND_CHARACTERS_MAX]
    return f"{cut}…" if len(cut) < len(value) else cut
