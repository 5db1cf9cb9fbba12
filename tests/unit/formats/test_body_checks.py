"""Which mail programs support the HTML of a message, where it fails; what was cut."""

import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import relay.formats
from relay.formats.body_checks import (
    CHARACTERS_MAX,
    CSS_CHARACTERS_MAX,
    LINES_MAX,
    LINKS_MAX,
    FeatureReader,
    check_bodies,
)
from tests.support.tables import each_row, rows_of

DATA_FILE = Path(relay.formats.__file__).with_name("caniemail.json")
DATA = json.loads(DATA_FILE.read_text())
KNOWN = {name for row in DATA["features"].values() for name in row[1]}


def css(source: str) -> str:
    return f"<style>{source}</style>"


def names(html: str) -> set[str]:
    return set(FeatureReader(html, KNOWN).counts)


@each_row(
    "html, expected",
    [
        *rows_of(
            """
            <IMG SRC=x.PNG?a=.gif#.gif ALIGN=left width> | <img> align= width= |image png
            <img src='data:image/gif;base64,AA'> | <img> |image base64
            <input><input type=RADIO><button> | <input text> <input radio> <button submit>
            <meta name='color-scheme'> | <meta color-scheme>
            <a href=' #top'></a><area href=mailto:a@b.test> | <area> |link #|link mailto
            <a href=https://a.test/#x target=_top> | target=
            <td background=a.jpg valign=top> | background= valign= |image jpg
            <p style='display:none'> | <p> display |display: none
            <p style='font:&quot;a;&quot;;gap:1px'> | <p> font gap 1px
            <p style='Opacity:1;--x:var(--y)'> | <p> opacity --* var()
            <style>p{width:calc(1em + 2%)!important}</style> | width calc() 1em 1% !important |selector type
            <style>@media screen{.a{gap:1REM}}</style> | @media gap 1rem |selector class
            <style>@media(prefers-color-scheme:dark){}</style> | @media |@media prefers-color-scheme
            <style>@font-face{src:url(a.woff)}</style> | @font-face
            <style>@import 'a.css';<!-- @supports (x:y){i{top:0}} --></style> | @import @supports top |selector type
            <style>a:hover,b::before,c:after{}</style> | :hover ::before ::after |selector type|selector grouping
            <style>a > b + c ~ d{}</style> | |selector child|selector adjacent|selector sibling|selector type
            <style>.a .b.c #d{}</style> | |selector class|selector id|selector descendant|selector chaining
            <style>*,[x=y],p:not(.a):nth-child(2){}</style> | :not :nth-child |selector *|selector attribute|selector grouping|selector type
            <style>a{b &{left:0} @media print{top:0}}</style> | left top @media |selector type|selector descendant|selector nesting
            <style>p{background:url('a.webp')/**/;width:fit-content}</style> | background width |image webp|value fit-content|selector type
            <style>p{color:rgb(1 2 3);background:linear-gradient(red,1vw)}</style> | rgb() linear-gradient() background 1vw |selector type
            <style media=x>p{gap:1px | gap 1px |selector type
            """
        ),
        ("plain &lt;img&gt;", ""),
        ("<!--[if mso]><video><![endif]--><!-- <svg> -->", ""),
        ("</div></video>", ""),
        (css("/* p{gap:1px} */"), ""),
        (css("p{gap") + "<i>", "|selector type"),
    ],
)
def test_features(html: str, expected: str):
    words, *phrases = expected.split("|")
    wanted = set(re.findall(r"<[^>]+>|[^\s]+", words)) | set(phrases)
    ignored = {"<style>"} if css("")[:6] in html else set()
    assert names(html) - ignored == wanted


def test_each_name_can_be_found():
    forms = (
        r"<[a-z0-9]+( [a-z-]+)?>|[a-z-]+=|[a-z-]+: [a-z-]+|--\*|!important|1(%|[a-z]+)|[a-z-]+\(\)"
        r"|@[a-z-]+|@media -?[a-z-]+|::?[a-z-]+|[a-z-]+|link (#|mailto)"
        r"|(value|image|selector) ([a-z0-9-]+|[*])"
    )
    assert [name for name in KNOWN if not re.fullmatch(forms, name)] == []
    assert DATA_FILE.stat().st_size < 60_000
    assert {len(row[2]) for row in DATA["features"].values()} == {len(DATA["programs"])}
    assert "Permission is hereby granted" in DATA["licence"]


def test_a_problem_has_lines_programs_and_notes():
    html = "\n<p>\r\n<style>\n\n.a { display: flex }</style>\n<p style='x:y;\ndisplay:flex'>"
    [flex] = [one for one in check_bodies(html, None).problems if one.feature == "display:flex"]
    assert (flex.count, flex.lines) == (2, (5, 7))
    assert flex.url == "https://www.caniemail.com/features/css-display-flex/"
    assert "Outlook Windows" in flex.unsupported
    assert not set(flex.unsupported) & set(flex.partial)
    assert any("non Google accounts" in note for note in flex.notes)


def test_what_is_long_is_cut_and_said():
    used = "<p style='gap:1px'>"
    whole = check_bodies(used.rjust(CHARACTERS_MAX), "x" * CHARACTERS_MAX)
    assert any(one.feature.startswith("gap") for one in whole.problems)
    assert whole.notices == ()
    cut = check_bodies("x" * CHARACTERS_MAX + used, "x" * CHARACTERS_MAX + " https://a.test/")
    assert (cut.problems, cut.links) == ((), ())
    assert [notice.split()[1] for notice in cut.notices] == ["HTML", "text"]
    sheet = check_bodies(css(" " * CSS_CHARACTERS_MAX + "p{gap:1px}"), None)
    assert not any(one.feature.startswith("gap") for one in sheet.problems)
    assert [notice.split(" characters")[0] for notice in sheet.notices] == ["More than 262,144"]
    many = FeatureReader("<video>\n" * 50, KNOWN)
    assert (many.counts["<video>"], many.lines["<video>"]) == (50, [*range(1, LINES_MAX + 1)])


def test_five_thousand_links_are_counted():
    links = "".join(f"<a href='https://a.test/{number}'>x</a>" for number in range(5000))
    found = check_bodies(f"{links}<a href='/last'>y</a>", None)
    assert (found.link_count, len(found.links)) == (5001, LINKS_MAX)
    assert found.links[0].target == "/last"  # what has problems is first


PIECES = [
    *("<style>", "<p style='", "<a href=", "<img src='", "</style>", "'>", '"', "\\", "/*", "*/"),
    *("@media", "@", "a", ":", "::", ".", "#", "{", "}", "(", ")", "[", "]", ";", ",", "!", "&"),
    *(
        "url(",
        "u+",
        "1e9999",
        "1" * 5000,
        "1.5%",
        "\0",
        "\r",
        "\f",
        "mailto:",
        "http://",
        "[::1",
        "%7B",
    ),
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=60).map("".join))
def test_no_html_and_no_text_raises(source: str):
    found = check_bodies(source, source)
    assert 0 <= found.score <= 100
    check_bodies(f"<style>{source}", f"https://{source}")
    check_bodies(f'<a style="{source}" href="{source}">', "mailto:" + source)


@given(st.binary(max_size=300))
def test_no_octets_raise(octets: bytes):
    source = octets.decode("utf-8", "replace")
    check_bodies(source, octets.decode("latin-1"))
    check_bodies(f"<style>{source}</style><p style='{source}'><a href='{source}'>", source)
