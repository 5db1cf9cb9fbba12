"""Text of others takes time in proportion to its size: each pattern, and each function that reads it.

A pattern holds the interpreter lock while it works, so one that takes quadratic time stops the whole
relay. The patterns are all that the modules of these rooms have. Each is used as its module uses it.
`make test` tries a part of the texts with each, `make test-long` all.
"""

import ast
import gc
import importlib
import inspect
import pkgutil
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import pytest

from relay.base.message.content import octets_of
from relay.base.message.header import Header, ParsedContent
from relay.formats.links import find_codes
from relay.formats.read_header import (
    parse_header,
    read_addresses,
    read_text,
    read_token,
    unreadable_addresses,
)
from relay.front_door.pages.sanitize import safe_document
from tests.support.long_tests import long

ROOMS = (
    "front_door.graph",
    "transport.ingress",
    "base.message",
    "formats",
    "front_door.pages",
    "transport.policy",
    "delivery.reports",
)
OCTETS = 2_500
NOISE_S = 0.004  # a time below it says nothing
RATIO_MAX = 3  # of the time for twice the size
HANGS_S = 2.0
USES = "match|fullmatch|search|sub|subn|split|findall|finditer"
PROBES = " \t\r\n\"'\\()<>@,;:.=?/*-#&[]{}_aA0é\0"
WORDS = {"CATEGORY_SPACE": " \n", "CATEGORY_DIGIT": "0", "CATEGORY_WORD": "a0_"}


def modules() -> Iterator[Any]:
    for room in ROOMS:
        package = importlib.import_module(f"relay.{room}")
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def patterns_in(value: object) -> Iterator[tuple[re.Pattern[Any], str]]:
    """Yield the patterns of a module's value, each with the method that is bound, or ""."""
    if isinstance(value, re.Pattern):
        yield value, ""
    elif isinstance(owner := getattr(value, "__self__", None), re.Pattern):
        yield owner, value.__name__  # type: ignore[attr-defined]
    elif isinstance(value, dict):
        yield from patterns_in(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from patterns_in(each)


def used_patterns() -> dict[str, tuple[re.Pattern[Any], set[str]]]:
    """Return all patterns, by module and name, with the methods by which they are used."""
    found = {}
    for module in modules():
        source = Path(module.__file__).read_text()
        for name, value in vars(module).items():
            for number, (pattern, bound) in enumerate(patterns_in(value)):
                uses = set(re.findall(rf"\b{name}\.({USES})\b", source))
                if bound or uses or rf"{name} = re.compile(" in source:
                    key = f"{module.__name__}.{name}.{number}"
                    found[key] = (pattern, {bound} if bound else uses or {"search", "fullmatch"})
    return found


def members(kind: object, value: Any) -> str:
    """Return some characters that one place of a pattern matches."""
    if kind is op.LITERAL:
        return chr(value)
    if kind is op.RANGE:
        return chr(value[0])
    if kind is op.CATEGORY:
        return WORDS.get(str(value), "") or " a0."
    if kind in (op.ANY, op.NOT_LITERAL):
        return "".join(one for one in PROBES if kind is op.ANY or one != chr(value))
    if value[0][0] is op.NEGATE:
        no = "".join(members(*one) for one in value[1:])
        ranges = [one[1] for one in value[1:] if one[0] is op.RANGE]
        return "".join(
            one
            for one in PROBES
            if one not in no and not any(low <= ord(one) <= high for low, high in ranges)
        )
    return "".join(members(*one) for one in value)


def runs(items: Any, before: str, depth: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Yield each repetition of a pattern: a text that leads to it, and texts that it repeats."""
    for kind, value in items:
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            least, _, body = value
            yield before, texts(body)
            yield from runs(body, before, depth + 1)
            before += texts(body)[0] * least
        elif kind is op.BRANCH:
            for each in value[1]:
                yield from runs(each, before, depth)
            before += texts([(kind, value)])[0]
        elif kind in (op.SUBPATTERN, op.ATOMIC_GROUP):
            body = value[-1] if kind is op.SUBPATTERN else value
            yield from runs(body, before, depth)
            before += texts(body)[0]
        else:
            before += texts([(kind, value)])[0]


def texts(items: Any) -> list[str]:
    """Return some texts that a part of a pattern matches."""
    found = [""]
    for kind, value in items:
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            ends = [one * max(value[0], 1) for one in texts(value[2])]
        elif kind is op.BRANCH:
            ends = [one for each in value[1] for one in texts(each)]
        elif kind in (op.SUBPATTERN, op.ATOMIC_GROUP):
            ends = texts(value[-1] if kind is op.SUBPATTERN else value)
        elif kind in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            ends = list(members(kind, value))
        else:  # an assertion
            ends = [""]
        found = [one + end for one in found for end in ends[: 8 if len(found) == 1 else 1]]
    return list(dict.fromkeys(found))


def pumps(pattern: re.Pattern[Any]) -> set[tuple[str, str, str]]:
    """Return texts that make a pattern work: what comes first, what is repeated, what ends it."""
    source = pattern.pattern
    items = _parser.parse(source, pattern.flags & ~(re.UNICODE if isinstance(source, bytes) else 0))
    found = list(runs(items, ""))
    first = {before for before, _ in found} | {""}
    again = (
        {one for _, each in found for one in each} | {one for one in first if one} | set('"\\( <,')
    )
    again |= set(texts(items))
    return {
        each
        for before in first
        for one in again
        if one
        for each in ((before, one, ""), (before, one, "\1\\\n"), ("", before + one, "\1\\\n"))
    }


class HungError(Exception):
    pass


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    started = time.process_time()
    try:
        work()
    except HungError:
        raise
    except Exception:  # noqa: BLE001 -- an error is an answer: its time counts
        pass
    return time.process_time() - started


def superlinear(work: Callable[[int], Callable[[], object]]) -> str:
    """Return the times for 2.5, 5 and 10 kB if each is over thrice that of half the size, else "".

    One step alone may pass a limit, or change what the text means.
    """
    before = signal.signal(signal.SIGPROF, _hung)
    signal.setitimer(signal.ITIMER_PROF, HANGS_S)
    gc.disable()
    times: list[float] = []
    try:
        largest = work(4 * OCTETS)
        if seconds(largest) < NOISE_S:
            return ""
        jobs = [work(OCTETS), work(2 * OCTETS), largest]
        for _ in range(5):
            new = [seconds(job) for job in jobs]
            times = list(map(min, times or new, new))
            if not all(two > RATIO_MAX * one for one, two in pairwise(times)):
                return ""
        larger = work(8 * OCTETS)  # what other processes disturb does not go on so
        if min(seconds(larger) for _ in range(3)) <= RATIO_MAX * times[-1]:
            return ""
    except HungError:
        times.append(HANGS_S)
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return " ".join(f"{one:.4f}" for one in times)


def _hung(*_: object) -> None:
    raise HungError


def used(pattern: re.Pattern[Any], method: str, text: str) -> Callable[[], object]:
    given = text.encode("utf-8") if isinstance(pattern.pattern, bytes) else text
    if method in ("sub", "subn"):
        return lambda: pattern.sub(given[:0], given)
    if method == "finditer":
        return lambda: deque(pattern.finditer(given), 0)
    return lambda: getattr(pattern, method)(given)


FIELDS = (
    *("From", "Sender", "Reply-To", "To", "Cc", "Bcc", "Subject", "Date", "Message-ID"),
    *("In-Reply-To", "References", "Keywords", "Importance", "X-Priority", "Priority"),
    *("Sensitivity", "Thread-Index", "Disposition-Notification-To", "Resent-From", "X-Other"),
    *("Authentication-Results", "Auto-Submitted", "List-Id", "Received", "Accept-Language"),
)
CONTENT_FIELDS = (
    *("Content-Type", "Content-Disposition", "Content-Transfer-Encoding", "Content-ID"),
    *("Content-Type", "Content-Location", "Content-Description", "Content-Transfer-Encoding"),
)
# What hostile texts repeat, some after a beginning.
PUMPS: tuple[tuple[str, str], ...] = (
    *(("", one) for one in "\"\\(),<>[]:;='.&#/*{}@%-_ \t\n\r\0a0é"),
    *(("", one) for one in ('\\"', "()", "(\\(", "'\"", "a ", "a.", "a@b,", "a:;", "; a", "a>")),
    *(("", one) for one in ("=?a?q?", "=?utf-8?q?a?=", "=?utf-8?q?a?= ", "=?utf-8?b?", "re:")),
    *(("", one) for one in ("re[1]:", "1234 ", "5.1.1 ", "code ", "\n \t", "\r\n ", "\r\n")),
    *(("", one) for one in ("--b\r\n", "<a", "</", "</p>", "<p>", "<!", "<!--", "&#", "&amp;")),
    *(("", one) for one in ("http://a", "mailto:", "<b>x", "<li>x", "</li>", "<table><tr><td>")),
    *(("<svg>", "<g>"), ("<x hidden>", "<div>"), ("<div>", "<font a=b>"), ("<b>", "<div>x</div>")),
    *(('"', '\\"'), ('(; b="', '\\"'), ('a/b; x="', '\\"'), ("a/b", "; x*0=y"), ("(", "\\(")),
    *(("<style>@import", " "), ("<style>", "@import url( "), ("<style>", "image-set( ")),
    *(("<style>", one) for one in ("/*", "{", "'\"", "a>")),
    *(("<style>@media ", "( "), ("<p style='@import", " "), ("<p style='", "url(")),
    *(("<p style='background:", "url( "), ("<p style='width:", "calc(1 "), ("<img srcset='", " ,")),
    *(("<p ", "a=b "), ("<a href='", "&#"), ("Status: ", "5.1.")),
    ("report: ", "Final-Recipient: rfc822; a@b\r\nAction: failed\r\n\r\n"),
    *(("Diagnostic-Code: smtp; ", "5.1.1 "), ("Final-Recipient: rfc822; ", "<")),
)


def message(value: str) -> bytes:
    """Return a message with the start of a text in its fields, in those of a part, and as bodies."""
    octets = value[: len(value) // 4].encode()
    line = " ".join(value.split("\r\n"))[: max(len(value) // 16, 1)].encode()
    head = b"".join(f"{name}: ".encode() + line + b"\r\n" for name in FIELDS)
    part = b"".join(f"{name}: ".encode() + line + b"\r\n" for name in CONTENT_FIELDS)
    return (
        head
        + b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\n"
        + b"Content-Type: text/html\r\n\r\n"
        + octets
        + b"\r\n--b\r\n"
        + b"Content-Type: message/delivery-status\r\n\r\n"
        + octets
        + b"\r\n--b\r\n"
        + part
        + b"\r\n"
        + octets
        + b"\r\n--b--\r\n"
    )


# How a text is given to a function, by the annotation of its only parameter.
GIVEN: dict[str, tuple[Callable[[str], object], ...]] = {
    "str": (str,),
    "bytes": (str.encode, message),
    "Octets": (lambda text: octets_of(text.encode()), lambda text: octets_of(message(text))),
    "Content": (message,),
    "Header": (lambda text: Header.of(message(text)),),
    "ParsedContent": (lambda text: ParsedContent.of(message(text)),),
    "Message[str, str]": (
        lambda text: parse_header(message(text)),
        lambda text: parse_header(message(text).partition(b"status")[2].partition(b"--b\r\n")[2]),
    ),
}
OTHER_NAMES = {
    "str | None": "str",
    "bytes | Octets": "Octets",
    "bytes | relay.base.message.content.Octets": "Octets",
    "bytes | relay.base.message.content.LargeContent": "Content",
    "str | int | bool": "str",
    "str | tuple[str | None, str | None, str]": "str",
}
NAMED = (read_addresses, unreadable_addresses, read_text, read_token)


def readers() -> dict[str, tuple[Callable[[Any], object], tuple[Callable[[str], object], ...]]]:
    """Return each public function that takes one text, and how it gets it."""
    found: dict[str, tuple[Callable[[Any], object], tuple[Callable[[str], object], ...]]] = {
        f"{function.__module__}.{function.__name__} {field}": (
            lambda fields, f=function, n=field: f(fields, n),
            GIVEN["Message[str, str]"],
        )
        for function in NAMED
        for field in ("To", "Subject")
    }
    found["relay.front_door.pages.sanitize.safe_document"] = (
        lambda text: safe_document(text, lambda _: None),
        GIVEN["str"],
    )
    found["relay.formats.links.find_codes"] = (lambda text: find_codes([text]), GIVEN["str"])
    for module in modules():
        for name, function in vars(module).items():
            is_own = getattr(function, "__module__", "") == module.__name__
            if name[0] == "_" or not is_own or not inspect.isfunction(function):
                continue
            if inspect.iscoroutinefunction(function):
                continue  # it calls a function that is here as well
            needed = [
                one
                for one in inspect.signature(function).parameters.values()
                if one.default is one.empty and one.kind is not one.VAR_POSITIONAL
            ]
            if len(needed) == 1:
                shown = inspect.formatannotation(needed[0].annotation).strip("'")
                ways = GIVEN.get(OTHER_NAMES.get(shown, shown.rpartition(".")[2]), ())
                if ways:
                    found[f"{module.__name__}.{name}"] = (function, ways)
    return found


# Modules that make patterns of a word, of a glob (fnmatch, atomic), or for an operator's text.
MADE_LATER = {"relay.front_door.graph.odata.resources", "relay.transport.policy.globs"}


def repeated(before: str, again: str, end: str, size: int) -> str:
    return before + again * (size // len(again)) + end


def reading(function: Callable[[Any], object], given: object) -> Callable[[], object]:
    def work() -> None:
        found = function(given)
        if isinstance(found, Iterator):
            deque(found, 0)

    return work


PATTERNS = used_patterns()
READERS = readers()


def by_module(names: Iterable[str], parts: int) -> dict[str, list[str]]:
    """Names of one module together, which end with so many parts of their own."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rsplit(".", parts)[0], []).append(name)
    return found


PATTERNS_OF, READERS_OF = by_module(PATTERNS, 2), by_module(READERS, 1)


@pytest.mark.parametrize("one_of", [3, pytest.param(1, marks=long)])
@pytest.mark.parametrize("module", PATTERNS_OF)
def test_each_pattern_takes_linear_time(module: str, one_of: int) -> None:
    found = []
    for name in PATTERNS_OF[module]:
        pattern, methods = PATTERNS[name]
        for method, pump in product(sorted(methods), sorted(pumps(pattern))[::one_of]):
            text = partial(repeated, *pump)
            slow = superlinear(lambda size, p=pattern, m=method, of=text: used(p, m, of(size)))
            found += [(name, method, *pump, slow)] if slow else []
    assert not found


@pytest.mark.parametrize("one_of", [4, pytest.param(1, marks=long)])
@pytest.mark.parametrize("module", READERS_OF)
def test_each_function_that_reads_text_takes_linear_time(module: str, one_of: int) -> None:
    found = []
    for name in READERS_OF[module]:
        function, ways = READERS[name]
        for give, (before, again) in product(ways, PUMPS[len(name) % one_of :: one_of]):
            text = partial(repeated, before, again, "")
            slow = superlinear(lambda size, f=function, to=give, of=text: reading(f, to(of(size))))
            found += [(name, before, again, slow)] if slow else []
    assert not found


def test_the_search_finds_the_patterns_and_the_functions() -> None:
    assert {
        "relay.transport.policy.attachment_names._COMMENT.0",
        "relay.front_door.pages.sanitize._IN_STYLE.0",
    } <= set(PATTERNS)
    assert {
        "relay.formats.read_mime.read_mime",
        "relay.transport.policy.message_parts.message_parts",
    } <= set(READERS)
    for module in modules():
        tree = ast.parse(Path(module.__file__).read_text())
        inside = [
            ast.unparse(call.func)
            for body in ast.walk(tree)
            if isinstance(body, ast.FunctionDef | ast.AsyncFunctionDef)
            for call in ast.walk(body)
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("re.")
        ]
        is_seen = set(inside) <= {"re.escape"} or module.__name__ in MADE_LATER
        assert is_seen, f"{module.__name__}: a pattern that no test sees"


def test_quadratic_time_is_found() -> None:
    quadratic = re.compile(r'"(?:[^"\\]|\\.)*"')
    asked = (
        superlinear(lambda size: used(quadratic, "sub", '"\\' * (size // 2))) for _ in range(9)
    )
    assert any(asked)  # another process may disturb one measurement
