"""Check the bodies of a message: which mail programs support its HTML, and what is wrong in links.

check_bodies() says which features of HTML and CSS (relay.mime.html_features) some programs do not
support, by the tests of caniemail.json, and which links (relay.mime.link_faults) lead nowhere or
elsewhere. Nothing is fetched. It takes seconds for what is hostile: call it in a thread.
Long bodies are cut, and `notices` says so. Nothing raises.
"""

from functools import cache
from pathlib import Path
from statistics import fmean

import msgspec
from msgspec import Struct

from relay.mime.html_features import CSS_CHARACTERS_MAX, LINES_MAX, FeatureReader
from relay.mime.link_faults import CheckedLink, checked_links

CHARACTERS_MAX = 1024 * 1024  # of each body
LINKS_MAX = 1000
_FEATURE_URL = "https://www.caniemail.com/features/"
_SHARES = {"y": 1.0, "a": 0.5, "n": 0.0}  # of support


class HtmlProblem(Struct, frozen=True):
    """A feature that not all mail programs support."""

    feature: str  # its title, such as "display:flex"
    url: str  # of its tests
    support: float  # in percent of the programs whose support is known; partial support is half
    unsupported: tuple[str, ...]  # programs
    partial: tuple[str, ...]  # programs
    notes: tuple[str, ...]  # what is known about those programs
    count: int  # how often the message uses it
    lines: tuple[int, ...]  # the first lines of the HTML with it, from 1


class Checks(Struct, frozen=True):
    """What the checks of a message have found."""

    score: float  # in percent: the mean support of the features that it uses; 100 without HTML
    has_html: bool
    problems: tuple[HtmlProblem, ...]  # the least supported first
    links: tuple[CheckedLink, ...]  # different ones, those with problems first; at most 1,000
    link_count: int  # of all of them
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
    found = sorted((_problem(slug, used) for slug in slugs), key=lambda one: one.support)
    links = checked_links(html[:CHARACTERS_MAX], text[:CHARACTERS_MAX])
    return Checks(
        has_html=bool(html),
        score=round(fmean(one.support for one in found), 1) if found else 100.0,
        problems=tuple(one for one in found if one.unsupported or one.partial),
        links=tuple(links[:LINKS_MAX]),
        link_count=len(links),
        notices=tuple(notices),
        tested=data.date,
    )


def _problem(slug: str, used: FeatureReader) -> HtmlProblem:
    """Return a feature that is used, also one that all programs support."""
    data, _ = _data()
    title, names, support, notes = data.features[slug]
    lines = sorted({line for name in names for line in used.lines.get(name, ())})
    programs = {
        state: tuple(name for name, own in zip(data.programs, support, strict=True) if own == state)
        for state in _SHARES
    }
    shares = [share for state, share in _SHARES.items() for _ in programs[state]]
    return HtmlProblem(
        title or names[0], f"{_FEATURE_URL}{slug}/", round(100 * fmean(shares), 1), programs["n"],
        programs["a"], tuple(data.notes[number] for number in notes),
        sum(used.counts[name] for name in names), tuple(lines[:LINES_MAX]),
    )  # fmt: skip
