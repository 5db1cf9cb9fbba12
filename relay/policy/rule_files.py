"""Load rule files: the [[rule]] and [[test]] tables of a folder, as one rule set.

Loading is atomic: with one fault or one failing test there is no rule set. PolicyError has all
faults, each with file, line and what was expected. A rule with a fault is never used in a weaker
form. The format is in docs/policy.md. The message of a [[test]] is complete, with CRLF line ends,
as ingress passes it to the engine (RFC 5322, RFC 2046 5.1.3).
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from relay.message.address import AddressError, parse_mailbox
from relay.message.content import LARGE_BYTES, Content, LargeContent, MemoryOctets
from relay.message.envelope import Source
from relay.mime import headers
from relay.mime.write_header import parameter
from relay.phrases import shown
from relay.policy.actions import ACTIONS, FINAL, RuleAction
from relay.policy.conditions import CONDITIONS, Condition, SizeOverCondition
from relay.policy.engine import (
    ConditionSet,
    ExpectedResult,
    OverallVerdict,
    Rule,
    RuleMode,
    RuleSet,
    RuleTest,
)
from relay.policy.rule_tests import run_tests
from relay.settings.document import (
    Document,
    Fault,
    KeyPath,
    SettingsError,
    read_document,
    unknown_key,
)

T = TypeVar("T")
Word = TypeVar("Word", bound=StrEnum)
NAME_CHARACTERS_MAX = 100  # it is a metric's label
_RULE_KEYS = ("name", "mode", "when", "unless", "then", "stop")
SIZE_BYTES_MAX = 256 * 1024 * 1024
_TEST_KEYS = ("name", "from", "to", "subject", "headers", "body", "attachments", "size", "message",
         "source", "local", "expect")  # fmt: skip
_DESCRIBING = ("subject", "headers", "body", "attachments", "size")
_EXPECTED = ("verdict", "rules", "added", "redirected", "rejected", "subject")
_BOUNDARY = "test-message"
_line_end = re.compile(rb"\r\n|\r|\n")
FILES_MAX = 500


class TableReader:
    """Reads one [[rule]] or [[test]], or a table inside it."""

    def __init__(
        self,
        document: Document,
        path: KeyPath,
        raw: object,
        *,
        faults: list[Fault],
        title: str = "",
    ) -> None:
        """`path` is the position of `raw`; `title` names the enclosing [[rule]] or [[test]]."""
        self._document = document
        self._path = path
        self._faults = faults
        self.table: Mapping[str, Any] = raw if isinstance(raw, dict) else {}
        self._title = title or _title(path, self.table)
        if not isinstance(raw, dict):
            self.add_fault((), f"found {shown(raw)}, expected a table")

    @property
    def line(self) -> int:
        """The line where the table begins."""
        return self._document.line(self._path)

    def subtable(self, key: str) -> "TableReader":
        """Return a reader for the table at `key`, which is empty if the key is missing."""
        raw = self.table.get(key, {})
        path = (*self._path, key)
        return TableReader(self._document, path, raw, faults=self._faults, title=self._title)

    def add_fault(self, keys: KeyPath, message: str) -> None:
        """Record a fault at `keys` below this table."""
        path = (*self._path, *keys)
        named = ".".join(each for each in path[2:] if isinstance(each, str))
        key = f"{self._title}: {named}" if named else self._title
        self._faults.append(Fault(self._document.file, self._document.line(path), key, message))

    def check_keys(self, known: Collection[str]) -> None:
        """Record a fault for every key that is not in `known`."""
        for key in self.table:
            if key not in known:
                self.add_fault((key,), unknown_key(key, known))

    def value(self, raw: Any, keys: KeyPath, parse: Callable[[Any], T]) -> T | None:
        """Return the parsed `raw`, or record a fault and return None."""
        try:
            return parse(raw)
        except ValueError as error:
            self.add_fault(keys, f"found {shown(raw)}, expected {error}")
            return None

    def key(self, key: str, parse: Callable[[Any], T], default: T) -> T:
        """Return the parsed value of `key`, or `default`."""
        if key not in self.table:
            return default
        value = self.value(self.table[key], (key,), parse)
        return default if value is None else value

    def required(self, key: str, parse: Callable[[Any], T], default: T) -> T:
        """Like key(), but a missing key is a fault."""
        if key not in self.table:
            self.add_fault((key,), "found nothing, expected a value: this key is required")
        return self.key(key, parse, default)


def text(value: Any) -> str:
    """Read a text of one line. Raises ValueError."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("a text in quotes, on one line")
    return value


def some_text(value: Any) -> str:
    """Read a text that is not empty. Raises ValueError."""
    if not text(value).strip():
        raise ValueError("a text that is not empty")
    return text(value)


def texts(value: Any) -> list[str]:
    """Read a list of texts, or one. Raises ValueError."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise ValueError("a list of texts")
    return [text(each) for each in values]


def true_or_false(value: Any) -> bool:
    """Read a boolean. Raises ValueError."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def array(document: Document, key: str, faults: list[Fault]) -> list[tuple[KeyPath, object]]:
    """Return the elements of [[key]] with their positions."""
    raw = document.table.get(key, [])
    if not isinstance(raw, list):
        faults.append(document.fault((key,), f"found {shown(raw)}, expected [[{key}]]"))
        return []
    return [((key, index), item) for index, item in enumerate(raw)]


def _title(path: KeyPath, table: Mapping[str, Any]) -> str:
    """Return `rule "x"`, or `rule 3` for one without a name."""
    kind, index = path[0], path[1]
    name = table.get("name")
    number = index + 1 if isinstance(index, int) else index
    return f"{kind} {shown(name)}" if isinstance(name, str) and name else f"{kind} {number}"


def read_rule(
    document: Document, path: KeyPath, raw: object, *, faults: list[Fault]
) -> Rule | None:
    """Return the rule at `path`, or None after adding to `faults`."""
    before = len(faults)
    reader = TableReader(document, path, raw, faults=faults)
    if not isinstance(raw, dict):
        return None
    reader.check_keys(_RULE_KEYS)
    actions = _actions(reader)
    stop = reader.key("stop", true_or_false, default=False)
    if not actions and not stop and len(faults) == before:
        reader.add_fault(
            ("then",), "found nothing to do, expected at least one action or stop = true"
        )
    rule = Rule(
        name=reader.required("name", _name, default=""),
        mode=reader.key("mode", _one_of(RuleMode), default=RuleMode.ENFORCE),
        when=_conditions(reader, "when"),
        unless=_conditions(reader, "unless"),
        actions=tuple(actions.values()),
        outcome=",".join(dict.fromkeys(key for key, _ in actions)) or "stop",
        stop=stop,
        file=document.file,
        line=reader.line,
    )
    return rule if len(faults) == before else None


def _conditions(reader: TableReader, key: str) -> ConditionSet:
    inner = reader.subtable(key)
    if reader.table.get(key) == {}:
        inner.add_fault(
            (), "found no condition, expected at least one; leave the key out for all mail"
        )
    inner.check_keys(CONDITIONS)
    found: list[Condition] = []
    for name, kind in CONDITIONS.items():  # in this order, not that of the file
        if name in inner.table:
            parse: Callable[[Any], Condition] = kind.parse
            condition = inner.value(inner.table[name], (name,), parse)
            found += [condition] if condition else []
    return ConditionSet.of(found)


def _actions(reader: TableReader) -> dict[tuple[str, int], RuleAction]:
    """Return the actions in their order, by name and position."""
    raw = reader.table.get("then", [])
    if not isinstance(raw, list):
        reader.add_fault(("then",), f"found {shown(raw)}, expected a list of actions")
        return {}
    found: dict[tuple[str, int], RuleAction] = {}
    for index, item in enumerate(raw):
        name = _action_name(reader, index, item)
        if not name:
            continue
        parse: Callable[[Any], RuleAction] = ACTIONS[name].parse
        action = reader.value(item[name], ("then", index, name), parse)
        if action:
            found[name, index] = action
        if name in FINAL and index < len(raw) - 1:
            reader.add_fault(
                ("then", index, name), f"expected no action after {name}: it ends the rule"
            )
    return found


def _action_name(reader: TableReader, index: int, item: Any) -> str:
    if not isinstance(item, dict) or len(item) != 1:
        expected = 'expected a table with one action, { reject = "5.7.1 Not accepted" }'
        reader.add_fault(("then", index), f"found {shown(item)}, {expected}")
        return ""
    [name] = item
    if name not in ACTIONS:
        reader.add_fault(("then", index, name), unknown_key(name, ACTIONS))
        return ""
    return str(name)


def _name(value: Any) -> str:
    name = some_text(value)
    if len(name) > NAME_CHARACTERS_MAX:
        raise ValueError(f"a name of at most {NAME_CHARACTERS_MAX} characters")
    return name


def _one_of(words: type[Word]) -> Callable[[Any], Word]:
    """Return a reader of one of `words`."""

    def read(value: Any) -> Word:
        if value not in list(words):
            raise ValueError(f"one of {', '.join(words)}")
        return words(value)

    return read


def read_test(
    document: Document, path: KeyPath, raw: object, *, faults: list[Fault]
) -> RuleTest | None:
    """Return the test at `path`, or None after adding to `faults`."""
    before = len(faults)
    reader = TableReader(document, path, raw, faults=faults)
    if not isinstance(raw, dict):
        return None
    reader.check_keys(_TEST_KEYS)
    test = RuleTest(
        name=reader.required("name", some_text, default=""),
        sender=reader.required("from", _sender, default=""),
        recipients=tuple(reader.required("to", _recipients, default=[])),
        content=_content(reader, document.file.parent),
        source=reader.key("source", _one_of(Source), default=Source.SMTP),
        local=reader.key("local", _domains, default=None),
        expect=_expectation(reader),
        file=document.file,
        line=reader.line,
    )
    return test if len(faults) == before else None


def crlf(content: bytes) -> bytes:
    """Return `content` with every line end as CRLF."""
    return _line_end.sub(b"\r\n", content)


def _expectation(reader: TableReader) -> ExpectedResult:
    if "expect" not in reader.table:
        reader.add_fault(
            ("expect",), 'found nothing, expected a table such as { verdict = "accept" }'
        )
        return ExpectedResult(OverallVerdict.ACCEPT)
    inner = reader.subtable("expect")
    inner.check_keys(_EXPECTED)
    return ExpectedResult(
        verdict=inner.required("verdict", _one_of(OverallVerdict), default=OverallVerdict.ACCEPT),
        rules=inner.key("rules", _names, default=None),
        added=inner.key("added", _address_set, default=None),
        redirected=inner.key("redirected", _address_set, default=None),
        rejected=inner.key("rejected", _address_set, default=None),
        subject=inner.key("subject", text, default=None),
    )


def _content(reader: TableReader, directory: Path) -> Content:
    """Return the test's message: the file that it names, or one built from its keys."""
    if "message" not in reader.table:
        return _built_message(reader)
    for key in _DESCRIBING:
        if key in reader.table:
            reader.add_fault((key,), "found this key and message, expected only one of them")

    def read(value: Any) -> bytes:
        try:
            file = directory / some_text(value)
            if not file.is_file() or file.stat().st_size > SIZE_BYTES_MAX:
                raise ValueError(f"a file of at most {SIZE_BYTES_MAX} bytes")
            return crlf(file.read_bytes())
        except OSError as error:
            raise ValueError(f"a file that can be read: {error.strerror}") from None

    return reader.key("message", read, default=b"")


def _built_message(reader: TableReader) -> Content:
    head = headers.field("From", reader.key("from", _sender, default="") or "test@invalid")
    head += headers.field("To", ", ".join(reader.key("to", _recipients, default=[])))
    head += headers.field("Subject", reader.key("subject", text, default="test"))
    head += reader.key("headers", _fields, default=b"")
    body = crlf(reader.key("body", _body, default="test\n").encode())
    names: list[str] = reader.key("attachments", texts, default=[])
    size_bytes = reader.key("size", _size, default=0)
    if not names:
        return _padded(head, b"\r\n" + body, size_bytes=size_bytes)
    kind = f'multipart/mixed; boundary="{_BOUNDARY}"'
    head += b"MIME-Version: 1.0\r\n" + headers.field("Content-Type", kind)
    parts = [b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + body, *map(_attachment, names)]
    between = f"\r\n--{_BOUNDARY}\r\n".encode()
    end = f"\r\n--{_BOUNDARY}--\r\n".encode()
    return _padded(head, b"".join(between + part for part in parts), end, size_bytes=size_bytes)


def _padded(head: bytes, body: bytes, end: bytes = b"", *, size_bytes: int) -> Content:
    """Return a message of at least `size_bytes`; what fills a large one is not in memory."""
    filler = _Filler(max(0, size_bytes - len(head + body + end)))
    if size_bytes <= LARGE_BYTES:
        return head + body + filler.read(0, filler.size) + end
    pieces = (MemoryOctets(body), filler, MemoryOctets(end))
    return LargeContent(head, pieces, eight_bit=not (body + end).isascii())


class _Filler(Struct, frozen=True):
    """Octets that make a message of a test as large as it says."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """See Octets."""
        return b"." * self.part(start, length).size

    def part(self, start: int, length: int) -> "_Filler":
        """See Octets."""
        return _Filler(max(0, min(length, self.size - start)))


def _attachment(name: str) -> bytes:
    disposition = f"Content-Disposition: attachment{parameter('filename', name)}\r\n\r\n"
    return b"Content-Type: application/octet-stream\r\n" + disposition.encode()


def _sender(value: Any) -> str:
    if value in ("", "<>"):
        return ""
    return _address(value)


def _recipients(value: Any) -> list[str]:
    addresses = texts(value)
    if not addresses:
        raise ValueError("at least one address")
    return [_address(each) for each in addresses]


def _address(value: Any) -> str:
    try:
        return parse_mailbox(text(value), smtputf8=True)
    except AddressError as error:
        raise ValueError(f"an address: {error}") from None


def _fields(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise ValueError('a table of fields, { "X-Spam" = "yes" }')
    return b"".join(headers.field(name, text(each)) for name, each in value.items())


def _body(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text in quotes")
    return value


def _size(value: Any) -> int:
    size_bytes = SizeOverCondition.parse(value).size_bytes
    if size_bytes > SIZE_BYTES_MAX:
        raise ValueError(f"a size of at most {SIZE_BYTES_MAX} bytes")
    return size_bytes


def _domains(value: Any) -> frozenset[str]:
    return frozenset(each.lower() for each in texts(value))


def _names(value: Any) -> tuple[str, ...]:
    return tuple(texts(value))


def _address_set(value: Any) -> frozenset[str]:
    return frozenset(each.casefold() for each in texts(value))


class PolicyError(SettingsError):
    """The rule files have faults, or their tests fail."""


def load_rules(directory: Path, *, local_domains: Collection[str] = ()) -> RuleSet:
    """Return the rules of `directory` if all tests pass; an empty folder is a valid rule set.

    `local_domains` are the configured ones, for tests that name no others.
    Raises PolicyError.
    """
    rules = read_rules(directory)
    failed = [each for each in run_tests(rules, local_domains=local_domains) if each.failures]
    if failed:
        raise PolicyError(
            Fault(each.test.file, each.test.line, f'test "{each.test.name}"', failure)
            for each in failed
            for failure in each.failures
        )
    # A service has the rules for as long as it runs, and needs the messages of tests no more.
    tests = tuple(dataclasses.replace(each, content=b"") for each in rules.tests)
    return dataclasses.replace(rules, tests=tests)


def read_rules(directory: Path) -> RuleSet:
    """Return the rules of `directory` without running their tests. Raises PolicyError."""
    faults: list[Fault] = []
    rules: list[Rule] = []
    tests: list[RuleTest] = []
    files = _files(directory)
    for file in files:
        try:
            document = read_document(file)
        except SettingsError as error:
            faults += error.faults
            continue
        for key in document.table:
            if key not in ("rule", "test"):
                faults.append(document.fault((key,), unknown_key(key, ("rule", "test"))))
        for path, raw in array(document, "rule", faults):
            rule = read_rule(document, path, raw, faults=faults)
            rules += [rule] if rule else []
        for path, raw in array(document, "test", faults):
            test = read_test(document, path, raw, faults=faults)
            tests += [test] if test else []
    faults += _duplicate_names(rules)
    if faults:
        raise PolicyError(faults)
    return RuleSet(tuple(rules), tuple(tests), files)


def _files(directory: Path) -> tuple[Path, ...]:
    """Return the rule files in the order of their names, without hidden files and folders."""
    try:
        names = sorted(
            each
            for each in directory.iterdir()
            if each.suffix == ".toml" and not each.name.startswith(".")
        )
    except OSError as error:
        reason = error.strerror or type(error).__name__
        message = f"found no folder of rules ({reason}), expected one; it may be empty"
        raise PolicyError([Fault(directory, 0, "policy.directory", message)]) from None
    if len(names) > FILES_MAX:
        message = f"found {len(names)} files, expected at most {FILES_MAX}"
        raise PolicyError([Fault(directory, 0, "policy.directory", message)])
    return tuple(names)


def _duplicate_names(rules: Iterable[Rule]) -> list[Fault]:
    """Return a fault per duplicate name: traces and metrics identify a rule by its name."""
    first: dict[str, Rule] = {}
    faults = []
    for rule in rules:
        other = first.setdefault(rule.name, rule)
        if other is not rule:
            message = f"found the name of the rule at {other.file}:{other.line}, expected another"
            faults.append(Fault(rule.file, rule.line, f'rule "{rule.name}": name', message))
    return faults
