"""The HTML of a message as a safe document: what remains, what is counted, and what it costs."""

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats.safe_markup import ELEMENTS, SVG_ATTRIBUTES, SVG_ELEMENTS
from relay.front_door.pages import sanitize
from relay.front_door.pages.sanitize import RemoteLoads, safe_document
from tests.support.hostile_html import HOSTILE
from tests.support.long_tests import sampled
from tests.support.tables import each_row

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
ATTRIBUTES = {
    *("src", "style", "id", "name", "datetime", "open", "type", "value", "charset", "hidden"),
    *("disabled", "checked", "placeholder"),
}
ATTRIBUTES |= {name.lower() for name in SVG_ATTRIBUTES}
SVG = {name.lower() for name in SVG_ELEMENTS}


def made(html, images=None):
    return safe_document(html, (images or {}).get)


def body(html, images=None):
    return re.search(r"<body.*</body>", made(html, images).html, re.DOTALL)[0]


class Reader(HTMLParser):
    """Collects what another reader of HTML sees."""

    def __init__(self, html):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_comment(self, data):
        raise AssertionError(data)


def assert_is_safe(document):
    reader = Reader(document.removeprefix("<!DOCTYPE html>"))
    assert set(reader.tags) <= ELEMENTS | SVG | {
        *("button", "input", "label", "html", "head", "meta", "title", "style", "body")
    }
    for tag, name, value in reader.attributes:
        assert name in sanitize.ATTRIBUTES | ATTRIBUTES, (tag, name)
        assert not name.startswith("on")
        if name == "src":
            assert value.startswith("data:image/")
        else:
            assert tag == "a" or not re.search(r"url\((?!#)|image-set\(|src\(", value)
    assert "url(" not in document.partition("</head>")[0]
    assert document.count("<style>") == document.count("</style>") == 1


@each_row(
    "html, expected",
    [
        ("<p class=a>x</p>", '<body><p class="a">x</p></body>'),
        (
            '<html><body bgcolor=red style="margin:0" onload=x><p>a</body></html>',
            '<body bgcolor="red" style="margin:0"><p>a</p></body>',
        ),
        (
            "<p>a<p>b<ul><li>c<li>d</ul>",
            "<body><p>a</p><p>b</p><ul><li>c</li><li>d</li></ul></body>",
        ),
        (
            "<table><tr><td>a</div><td>b<table><tr><td>c</table>d</table>e",
            (
                "<body><table><tbody><tr><td>a</td><td>b<table><tbody><tr><td>c</td></tr></tbody>"
                "</table>d</td></tr></tbody></table>e</body>"
            ),
        ),
        ("<b><i>a</b>b</i>", "<body><b><i>a</i></b>b</body>"),
        ("1 < 2 &amp;lt; &copy; <3", "<body>1 &lt; 2 &amp;lt; © &lt;3</body>"),
        (
            "<xmp><b></xmp><textarea><script></textarea>",
            "<body><pre>&lt;b&gt;</pre>&lt;script&gt;</body>",
        ),
        (
            "<a href='https://a.test/x/' target=_top rel=opener ping=//b.test>x</a>",
            '<body><a title="https://a.test/x/">x</a></body>',
        ),
        ("<a href=https://a.test/x/>x</a>", '<body><a title="https://a.test/x/">x</a></body>'),
        ("", "<body></body>"),
    ],
)
def test_mail_keeps_its_structure(html, expected):
    assert body(html) == expected


def test_direction_and_language_of_the_whole_are_kept():
    found = made("<html dir=rtl lang=ar onload=x><body bgcolor=red><p>a</html><html dir=ltr>").html
    assert '<html dir="rtl" lang="ar"><head>' in found


SHEET = "<style>@media (prefers-color-scheme: dark) { p { color:red } }</style>"


OFF, ON = "(max-width: 0)", "(min-width: 0)"
LIGHT, DARK = "color-scheme: light", "color-scheme: dark"


@each_row(
    "html, light, dark",
    [
        (SHEET, OFF, ON),
        (SHEET.replace("dark", "light"), ON, OFF),
        (SHEET.replace(": dark", ""), ON, ON),
        (SHEET.replace(":", "/**/ :"), OFF, ON),
        ("<style media='(PREFERS-color-scheme:dark)'>p { color:red }</style>", OFF, ON),
        ("<meta name=color-scheme content='light dark'>", LIGHT, DARK),
        ("<style>:root { color-scheme: light dark }</style>", LIGHT, DARK),
        (SHEET, LIGHT, LIGHT),
    ],
)
def test_the_preferred_colours_are_chosen_and_not_the_systems(html, light, dark):
    for is_dark, expected in ((False, light), (True, dark)):
        found = safe_document(html, {}.get, is_dark=is_dark).html
        assert expected in found
        assert "prefers-color-scheme" not in found


DRAWING = '<svg viewBox="0 0 9 9"><linearGradient id="g"><stop offset="1"></stop></linearGradient><path d="M0 0" fill="url(#g)"></path></svg>'


@each_row(
    "html, expected, elements",
    [
        (DRAWING, DRAWING, 0),
        (
            "<svg viewbox='0 0 9 9'><lineargradient id=g><stop offset=1 /></lineargradient><path d='M0 0' fill='url( #g )' onclick=x />",
            DRAWING,
            0,
        ),
        (
            "<svg><script>x</script><style>x{}</style><use href=#a /><image href=x /><set to=x /><title>t</title></svg>",
            "<svg></svg>",
            4,
        ),
        ("<a><svg><a href=x><g></a></g></svg>x</a>", "<a><svg><g></g></svg>x</a>", 1),
        ("<svg><mask><rect></mask></svg><path d=x>", "<svg><defs><rect></rect></defs></svg>", 1),
        ("<svg><g><p>x</svg>", "<svg><g></g></svg><p>x</p>", 0),
        ("<svg><foreignobject><b>x</b>", "<svg></svg><b>x</b>", 1),
        (
            "<svg><clipPath clip-path=url(#a)><rect clip-path=url(#a) /></clipPath><g clip-path=url(#a) fill=url(x) />",
            '<svg><clipPath><rect></rect></clipPath><g clip-path="url(#a)"></g></svg>',
            0,
        ),
        (
            "<button type=submit formaction=x name=a>a<button disabled=no>b",
            '<button type="submit" disabled="">a</button><button disabled="">b</button>',
            0,
        ),
        (
            "<form action=x><label for=a><input type=image src=x value=v form=a autofocus></label>",
            '<label><input type="image" value="v" disabled=""></label>',
            0,
        ),
        (
            "<iframe></iframe><video src=x></video><form><o:p>x</o:p><p hidden>y",
            'x<p hidden="">y</p>',
            2,
        ),
    ],
)
def test_drawings_and_fields_remain_without_what_runs_or_loads(html, expected, elements):
    assert body(html).removeprefix("<body>").removesuffix("</body>") == expected
    assert made(html).left_out_elements == elements


def test_what_is_left_out_is_counted():
    html = (
        "<style>p{color:red;animation:a 1s;mso-x:y}@font-face{src:url(x);font-family:y}</style>"
        "<p style='filter:url(x);color:red'><b style='animation:a'>"
    )
    assert made(html).left_out_declarations == 5
    assert not made(html).is_cut
    assert made(f"<style>{' ' * 500_001}</style>").is_cut


def test_a_link_keeps_its_target_as_a_title():
    html = "<style>a:link{color:red}</style><a title='https://bank.test' href=' javascript:x&quot;'>x</a>"
    found = made(html).html
    assert '<a title="javascript:x&quot;">x</a>' in found
    assert "a[title] { color:red }" in found


def test_images_of_the_message_are_written_into_the_document():
    found = made('<img src="cid:a%40b"><img src=CID:missing>', {"a@b": PIXEL})
    assert f'<img src="{PIXEL}"' in found.html
    assert (found.lost_images, found.blocked) == (1, RemoteLoads())


def test_data_images_are_raster_images_in_base64():
    assert f'src="{PIXEL}"' in body(f'<img src="{PIXEL}">')
    for url in ("data:image/svg+xml;base64,AA==", "data:text/html,x", "data:image/png,x", "data:,"):
        found = made(f'<img src="{url}">')
        assert ("data:" in found.html, found.lost_images) == (False, 1)


def test_images_are_written_up_to_a_limit_however_often_they_are_used(monkeypatch):
    monkeypatch.setattr(sanitize, "IMAGE_CHARACTERS_MAX", 3 * len(PIXEL))
    found = made("<img src=cid:a>" * 5, {"a": PIXEL})
    assert (found.html.count(PIXEL), found.lost_images) == (3, 2)


def test_a_failing_image_is_left_out():
    def fail(content_id):
        raise OSError(content_id)

    assert 'src="' not in safe_document("<img src=cid:a>", fail).html


def test_what_would_load_is_counted_by_url_and_host():
    html = (
        '<img src="http://A.test/1.png"><img src="http://a.test/1.png"><img src="//user@b.test:81/2.png">'
        "<p style=\"background:url('https://c.test/3.png')\"><table background=http://d.test/4>"
        "<img srcset='http://e.test/5 1x, http://e.test/6 2x'><video poster=http://f.test/7></video>"
        "<style>@import 'http://g.test/a.css'; @font-face{src:url(//h.test/f.woff)} p{background:url(http://i.test/8)}</style>"
        "<link rel=stylesheet href=http://j.test/b.css><iframe src=http://k.test></iframe><script src=//l.test></script>"
        "<img src=relative.png><a href=http://m.test>x</a>"
    )
    found = made(html).blocked
    assert (found.images, found.files) == (9, 5)
    hosts = {"a.test", "b.test:81", *(f"{one}.test" for one in "cdefghijkl")}
    assert set(found.hosts) == hosts


@each_row("name", HOSTILE)
def test_hostile_html_becomes_a_safe_document(name):
    found = made(HOSTILE[name])
    assert_is_safe(found.html)
    assert made(found.html).html.count("<") == found.html.count("<")


PIECES = [
    *("<p>", "</p>", "<b", "<", "</", ">", "<!--", "-->", "--!>", "<![CDATA[", "]]>", "<?x"),
    *("<br/>", "<script>", "</script>", "<style>", "</style>", "<title>", "<textarea>"),
    *("</textarea>", "<b>", "<svg>", "<math>", "<mtext>", "<xmp>", "<plaintext>", "<table>"),
    *("<td>", "</table>", "&lt;", "'", '"', "=", "/", " ", "\n", "\0", "onload=x", " style="),
    *("position:fixed", ";", "&#60;", "<body ", "<img src=", "`", "x", "&", "javascript:"),
    *("<a href=", "cid:a", "data:", "<noscript>", "<template>", "<select>", "<form>"),
    *("http://x.test", "url(", "<iframe srcdoc="),
]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_html_becomes_a_safe_document(html):
    assert_is_safe(made(html, {"a": PIXEL}).html)


@pytest.mark.parametrize(
    "html",
    sampled(
        [
            *(
                "<div>",
                "<b>",
                "<p><b>",
                "<a><div>",
                "<table>",
                "<table><td>",
                "<table>x<b>",
                "<ul><li>",
            ),
            *(
                "</table>",
                "<pre>",
                "&amp;",
                "<",
                "<!--",
                "<img src=//a.test>",
                "<style>a{b:c}</style>",
            ),
            *("<p style='color:red'>", "<table><tr><td>", "<body ", "'", "&nbsp;<i>"),
        ],
        one_of=5,
    ),
)
def test_no_html_takes_long_or_grows(html):
    source = html * (200_000 // len(html))
    started = time.process_time()
    found = made(source)
    assert time.process_time() - started < 1.5
    assert len(found.html) < 1_000_000


@pytest.mark.parametrize(
    "html",
    sampled(
        [
            "".join(f"<b id=x{i}>" for i in range(5_000)) + "<p>x" * 5_000,
            "".join(f"<p><b id=x{i}>" for i in range(5_000)),
            "<table>" + "".join(f"<b id=x{i}>" for i in range(200)) + "<tr><td>x" * 10_000,
            "".join(f"<b id=x{i}><table><td></b></table>" for i in range(5_000)) + "<p>x" * 5_000,
        ],
        one_of=2,
    ),
    ids=["before", "between", "in a table", "behind cells"],
)
def test_elements_that_are_not_closed_are_not_repeated(html):
    found = made(html)
    assert len(found.html) < 3 * len(html)


def test_too_much_html_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr(sanitize, "TAGS_MAX", 4)
    found = made("<p>a</p>" * 3)
    assert found.is_cut
    assert "<body><p>a</p><p>a</p></body>" in found.html
    assert not made("<p>a</p>").is_cut
