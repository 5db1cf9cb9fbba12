"""Check the bodies of a message: which mail programs support its HTML, and faults of links.

check_bodies() reports which features of HTML and CSS some programs do not support, by the tests of
caniemail.json, and which links (relay.formats.links) have no valid target or name another host.
Nothing is fetched. A hostile body takes seconds: call it in a thread. Long bodies are cut, and
`notices` says so. Nothing raises.

The names of features are those of caniemail.json: `<img>`, `<input radio>` (by its type), `align=`,
`link mailto` and `image png` in HTML, and in CSS `gap`, `display: flex`, `value initial`, `1rem`,
`@media`, `@media hover`, `:hover`, `::before`, `selector child` and `!important`; others are not
looked for. The tags are those of split_html(), the CSS of <style> and of style attributes is what
tinycss2 parses; conditional comments are comments. Time and memory are linear in the size of the
source, and nothing recurses. CSS Syntax Level 3; Selectors Level 4.
"""

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import tinycss2
from msgspec import Struct
from tinycss2.ast import Node

from relay.formats.html_tokens import LineNumbers, attribute_value, split_html, tag_attributes
from relay.formats.links import CheckedLink, checked_links

CSS_CHARACTERS_MAX = 256 * 1024
LINES_MAX = 10
_LONG_NUMBER = re.compile(r"[0-9]{100,}+")  # Python reads no integers of 4300 digits
_DEFAULT_TYPES = {"input": "text", "button": "submit"}
_WITH_RULES = frozenset(("media", "supports", "layer", "container", "scope"))
_COMBINATORS = {">": "child", "+": "adjacent", "~": "sibling", ",": "grouping"}
_SIMPLE_SELECTORS = {"ident": "type", "hash": "id", "[] block": "attribute"}
_OLD_PSEUDO_ELEMENTS = frozenset(("after", "before", "first-letter", "first-line"))
_LINKS, _IMAGES = ("a", "area"), ("src", "background", "poster")
CHARACTERS_MAX = 1024 * 1024  # of each body
LINKS_MAX = 1000
_SHARES = {"y": 1.0, "a": 0.5, "n": 0.0}  # of support


class FeatureReader:
    """The features that a document uses: `counts`, and the first of their `lines`, by name."""

    def __init__(self, html: str, known: Container[str]) -> None:
        self.counts: Counter[str] = Counter()
        self.lines: dict[str, list[int]] = {}
        self.is_cut = False  # there is more CSS than is read
        self._known = known
        self._css_left = CSS_CHARACTERS_MAX
        numbers, in_style = LineNumbers(html), False
        for token in split_html(html, with_styles=True):
            if in_style and not token.name:
                rules = tinycss2.parse_stylesheet(self._css(token.text), skip_comments=True)
                self._rules(rules, numbers.at(token.at))
            elif token.name and not token.is_end:
                self._tag(token.name, tag_attributes(token.text), numbers.at(token.at))
            in_style = token.name == "style" and not token.is_end

    def _add(self, name: str, line: int) -> None:
        if name in self._known:
            self.counts[name] += 1
            lines = self.lines.setdefault(name, [])
            if len(lines) < LINES_MAX and line not in lines:
                lines.append(line)

    def _css(self, source: str) -> str:
        """Return the part of a style sheet or attribute that is read."""
        self.is_cut = self.is_cut or len(source) > self._css_left
        source = source[: self._css_left]
        self._css_left -= len(source)
        return _LONG_NUMBER.sub("0", source)

    def _tag(self, name: str, attributes: Mapping[str, str], line: int) -> None:
        kinds = (attributes.get("type") or _DEFAULT_TYPES.get(name, ""), attributes.get("name", ""))
        for feature in (f"<{name}>", *(f"<{name} {kind.lower()}>" for kind in kinds)):
            self._add(feature, line)
        for attribute in attributes:
            self._add(f"{attribute}=", line)
        for attribute in _IMAGES:
            if attribute in attributes:
                self._image(attribute_value(attributes[attribute]), line)
        if name in _LINKS and (target := attributes.get("href", "").strip()):
            is_mail = target[:7].lower() == "mailto:"
            self._add("link mailto" if is_mail else f"link {target[:1]}", line)
        if style := attributes.get("style"):
            css = self._css(attribute_value(style))
            self._rules(tinycss2.parse_blocks_contents(css, skip_comments=True), line)

    def _image(self, url: str, line: int) -> None:
        if url[:5].lower() == "data:":
            kind = "base64" if ";base64," in url[:100].lower() else ""
        else:
            kind = url.partition("#")[0].partition("?")[0][-5:].rpartition(".")[2].lower()
        self._add(f"image {kind}", line)

    def _rules(self, rules: Sequence[Node], line: int) -> None:
        """Add the features of rules and declarations; their source begins in `line`."""
        waiting = [(rule, False) for rule in reversed(rules)]
        while waiting:
            rule, is_nested = waiting.pop()
            at = line + rule.source_line - 1
            content: Any = None
            if rule.type == "declaration":
                self._declaration(rule, at)
            elif rule.type == "at-rule":
                self._add(f"@{rule.lower_at_keyword}", at)
                for token in _flat(rule.prelude) if rule.lower_at_keyword == "media" else ():
                    if token.type == "ident":
                        self._add(f"@media {token.lower_value}", at)
                content = rule.content if rule.lower_at_keyword in _WITH_RULES else None
            elif rule.type == "qualified-rule":
                if is_nested:
                    self._add("selector nesting", at)
                self._selectors(rule.prelude, at)
                content, is_nested = rule.content, True
            inner = tinycss2.parse_blocks_contents(content or ())
            waiting.extend((rule, is_nested) for rule in reversed(inner))

    def _declaration(self, declaration: Any, line: int) -> None:
        name = declaration.lower_name
        self._add("--*" if name.startswith("--") else name, line)
        if declaration.important:
            self._add("!important", line)
        for token in _flat(declaration.value):
            if token.type == "ident":
                self._add(f"{name}: {token.lower_value}", line)
                self._add(f"value {token.lower_value}", line)
            elif token.type == "dimension":
                self._add(f"1{token.lower_unit}", line)
            elif token.type == "percentage":
                self._add("1%", line)
            elif token.type == "function":
                self._add(f"{token.lower_name}()", line)
            elif token.type in ("url", "string"):
                self._image(token.value, line)

    def _selectors(self, prelude: Iterable[Any], line: int) -> None:
        chained, mark = 0, ""  # classes and ids of a compound selector; "." or ":" before a name
        is_begun = is_spaced = False  # the compound selector, and white space after it
        for token in prelude:
            literal = token.value if token.type == "literal" else ""
            if token.type in ("whitespace", "comment"):
                is_spaced = is_begun
            elif literal in _COMBINATORS:
                self._add(f"selector {_COMBINATORS[literal]}", line)
                chained, is_begun, is_spaced = 0, False, False
            else:
                if is_spaced:
                    self._add("selector descendant", line)
                    chained = 0
                is_begun, is_spaced = True, False
                if literal in (".", ":"):
                    mark += literal
                    continue
                for name in _names_of_simple(token, mark):
                    self._add(name, line)
                if mark == "." or token.type == "hash":
                    chained += 1
                    self._add("selector chaining" if chained == 2 else "", line)
                mark = ""


def _names_of_simple(token: Any, mark: str) -> Iterator[str]:
    """Yield the name of a simple selector, "." or ":" before it is the `mark`."""
    word = getattr(token, "lower_value", "") or getattr(token, "lower_name", "")
    if mark in ("", "."):
        kind = "class" if mark else _SIMPLE_SELECTORS.get(token.type)
        if kind or token.type == "literal":
            yield f"selector {kind or token.value}"
    else:
        yield f"{'::' if word in _OLD_PSEUDO_ELEMENTS else mark}{word}"


def _flat(tokens: Sequence[Any]) -> Iterator[Any]:
    """Yield tokens with those in brackets and functions."""
    waiting = list(reversed(tokens))
    while waiting:
        token = waiting.pop()
        yield token
        inner = getattr(token, "content", None) or getattr(token, "arguments", None) or ()
        waiting.extend(reversed(inner))


class HtmlProblem(Struct, frozen=True):
    """A feature that not all mail programs support."""

    feature: str  # its title, such as "display:flex"
    url: str  # of its tests
    support: float  # in percent of the programs whose support is known; partial support is half
    supported: tuple[str, ...]  # programs
    unsupported: tuple[str, ...]  # programs
    partial: tuple[str, ...]  # programs
    notes: tuple[str, ...]  # about the support by those programs
    count: int  # how often the message uses it
    lines: tuple[int, ...]  # the first lines of the HTML with it, from 1


class Checks(Struct, frozen=True):
    """What the checks of a message have found."""

    score: float  # in percent: the mean support of the features that it uses; 100 without HTML
    has_html: bool  # without it there are no features
    features: int  # different ones that it uses
    problems: tuple[HtmlProblem, ...]  # the least supported first
    links: tuple[CheckedLink, ...]  # different ones, those with problems first; at most 1,000
    link_count: int  # of all links
    notices: tuple[str, ...]  # what was cut
    tested: str  # the date of the data about mail programs


class _Data(Struct, frozen=True):
    """caniemail.json. A feature: its title ("": the first name), names, support, and notes."""

    date: str
    programs: list[str]
    notes: list[str]
    features: dict[str, tuple[str, list[str], str, list[int]]]


@cache
def _data() -> tuple[_Data, frozenset[str]]:
    """Return the data, and the names of all features."""
    data = msgspec.json.decode(Path(__file__).with_name("caniemail.json").read_bytes(), type=_Data)
    return data, frozenset(name for row in data.features.values() for name in row[1])


def check_bodies(html: str | None, text: str | None) -> Checks:
    """Check the HTML and the text of a message; None where it has none."""
    html, text = html or "", text or ""
    notices = [
        f"The {name} has {len(body):,} characters: the first {CHARACTERS_MAX:,} are checked."
        for name, body in (("HTML", html), ("text", text))
        if len(body) > CHARACTERS_MAX
    ]
    data, known = _data()
    used = FeatureReader(html[:CHARACTERS_MAX], known)
    if used.is_cut:
        notices.append(
            f"More than {CSS_CHARACTERS_MAX:,} characters of CSS: the first are checked."
        )
    names = {slug: row[1] for slug, row in data.features.items()}
    slugs = [slug for slug in names if not used.counts.keys().isdisjoint(names[slug])]
    problems = sorted((_problem(slug, used) for slug in slugs), key=lambda problem: problem.support)
    links = checked_links(html[:CHARACTERS_MAX], text[:CHARACTERS_MAX])
    return Checks(
        has_html=bool(html),
        features=len(problems),
        score=round(fmean(problem.support for problem in problems), 1) if problems else 100.0,
        problems=tuple(problem for problem in problems if problem.unsupported or problem.partial),
        links=tuple(links[:LINKS_MAX]),
        link_count=len(links),
        notices=tuple(notices),
        tested=data.date,
    )


def _problem(slug: str, used: FeatureReader) -> HtmlProblem:
    """Return how a feature that is used is supported, even if all programs support it."""
    data, _ = _data()
    title, names, support, notes = data.features[slug]
    lines = sorted({line for name in names for line in used.lines.get(name, ())})
    programs = {
        state: tuple(name for name, own in zip(data.programs, support, strict=True) if own == state)
        for state in _SHARES
    }
    shares = [share for state, share in _SHARES.items() for _ in programs[state]]
    return HtmlProblem(
        title or names[0],
        f"https://www.caniemail.com/features/{slug}/",
        round(100 * fmean(shares), 1),
        programs["y"],
        programs["n"],
        programs["a"],
        tuple(data.notes[number] for number in notes),
        sum(used.counts[name] for name in names),
        tuple(lines[:LINES_MAX]),
    )
