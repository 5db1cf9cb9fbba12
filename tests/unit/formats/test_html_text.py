"""The text alternative of HTML, whatever the HTML is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats import html_text
from relay.formats.html_text import html_to_text, preview, visible_text, without_tags
from tests.support.tables import each_row


@each_row(
    "html, text",
    [
        ("", ""),
        ("plain &lt;text&gt; &amp; more", "plain <text> & more"),
        ("<p>one\n two</p><p>three</p>", "one two\n\nthree"),
        ("<div>one</div><div>two</div>", "one\ntwo"),
        ("a<br>b<br><br>c", "a\nb\n\nc"),
        ("<b>a</b>b <i> c</i>&nbsp;d", "ab c d"),
        ("<h1>Title</h1>text", "Title\n\ntext"),
        ("<ul><li>one<li>two</ul>end", "* one\n* two\n\nend"),
        ("<ol><li>one<ul><li>in</ul><li>two</ol>", "1. one\n  * in\n2. two"),
        ('<a href="https://x.test/?a=1&amp;b=2">here</a>.', "here <https://x.test/?a=1&b=2>."),
        ('<a href="https://x.test/">x.test</a>', "x.test"),
        ('<a href="mailto:a@b.test">a@b.test</a>', "a@b.test"),
        ('<a href="javascript:x()">here</a> <a href="#top">up</a>', "here up"),
        ('<a href="https://x.test/a b">x</a>', "x <https://x.test/a%20b>"),
        ('<img src="cid:a" alt="Logo"> Ltd <img src="cid:b">', "Logo Ltd"),
        ("<blockquote>said<p>more</p></blockquote>I", "> said\n\n> more\n\nI"),
        ("<table><tr><th>A<th>B<tr><td>1<td><p>2</p></table>", "A\tB\n1\t2"),
        ("<pre>\ndef x():\n    pass</pre>", "def x():\n    pass"),
        ("<p>a</p><hr><p>b</p>", f"a\n\n{'-' * 40}\n\nb"),
        (
            "<head><title>no</title><style>p{}</style></head>yes<script>no</script><!-- no -->",
            "yes",
        ),
        ('<div style="DISPLAY : none">no</div><p hidden>no</p>yes', "yes"),
        ("<p>unclosed <b>tags <i>all", "unclosed tags all"),
        ("\ud800<p>é✓", "?\n\né✓"),
        ("<p>a\0b", "ab"),
        # where tags and elements end for a browser
        ('<p title=">" hidden>no</p>yes', "yes"),
        ('<p title=a"> hidden>yes</p>', "hidden>yes"),
        ('<p a="b"hidden>no</p>yes', "yes"),
        ("<p/a/hidden/>no</p>yes", "yes"),
        ("<p a = 'b' HIDDEN=x >no</p>yes", "yes"),
        ('<p style=a style="display:none">yes</p>', "yes"),
        ('<p style="display&#58;none">no</p>yes', "yes"),
        ('a<p title="unclosed>b</p>', "a"),
        ("a<!-- <p> --!>b<!--> c <!---> d <!-- -- > e --> f<!-- g", "ab c d f"),
        ("a<!doctype x>b<?xml y>c</ z>d</>e<3 f", "abcde<3 f"),
        ("<script>'</p>'</scripts><p>no</SCRIPT x=1>yes", "yes"),
        ("<textarea>a <b> &amp; c</textarea> d", "a <b> & c d"),
        ("<style><!-- </style>a", "a"),
        ("<head><meta a=b><div>a</div>", "a"),
        ("<head>a<p>b", "a\n\nb"),
        ("<svg><path d=x /><title>no</title><g>no</svg>a<svg/>b", "ab"),
        ("<div hidden>a<span>b</span>c<div>d</div>e</div>f", "f"),
        ("<p hidden>a<p>b", "b"),
        ("<li hidden>a<li>b", "* b"),
        ("<table><tr hidden><td>a<tr><td>b</table>c", "b\n\nc"),
        ("<table><tr><td hidden>a<td>b<table><tr><td>c</table>d</table>", "b\n\nc\n\nd"),
        ("<h1>a</h2>b", "a\n\nb"),
        ("a</p>b</br>c", "a\n\nb\nc"),
        ("a&#65b&#x43;&ampd&notit;&#0;&unknown;&", "aAbC&d¬it;\ufffd&unknown;&"),
        (f"&#{'9' * 5000};&#x{'9' * 5000};&#{'0' * 5000}65;&#x{'0' * 9};", "\ufffd\ufffdA\ufffd"),
        (
            "<a href='https://x.test/?a=1&copy=2&reg3&amp;lt=&lt;'>x</a>",
            "x <https://x.test/?a=1&copy=2&reg3&lt=<>",
        ),
        (
            "<a href=https://x.test/>one<a href=https://y.test/>two",
            "one <https://x.test/>two <https://y.test/>",
        ),
        ("<ul><li><a href=https://x.test/>one</ul>two", "* one <https://x.test/>\n\ntwo"),
        ("<pre>\n\na</pre>", "a"),
        ("a<plaintext><p>b", "a<p>b"),
    ],
)
def test_html_to_text(html, text):
    assert html_to_text(html) == text


def test_a_long_document_is_read_in_pieces_without_loss():
    rows = [f"<tr><td>row</td><td>{number}</td></tr>" for number in range(8_000)]
    text = html_to_text(f"<table>{''.join(rows)}</table>")
    assert text.split() == [word for number in range(8_000) for word in ("row", str(number))]


MANY_TAGS = "<i></i>" * 200  # after them, markup is left out without a look at elements


@pytest.fixture(autouse=True)
def _few_are_read(monkeypatch):
    monkeypatch.setattr(html_text, "_READ_TOKENS_MAX", 400)


@pytest.mark.parametrize("is_read", [True, False], ids=["first tags", "later tags"])
@each_row(
    "html, words",
    [
        ("in<b>voi</b>ce", "invoice"),
        ("in<!-- <p --x -> -->voi<!--->ce<!--> now<!-- x --!>!<!-- end <p>", "invoice now!"),
        ("in<SPAN title='a'>voice</span >d<x-y/>", "invoiced"),
        (
            "one<p>two</P>three<br>four<BR/>five<table><td>six</table><hr>seven<div\nid=a>eight",
            "one two three four five six seven eight",
        ),
        ("<ul><li>one<li>two</ul><blockquote>three</blockquote>", "one two three"),
        ("a &lt; b &amp;&nbsp;c&#65;", "a < b & cA"),
        ("<style>p{}</style>a<script>'<p>'</scripts></script>b<title>x</title>c<SCRIPT>d", "abc"),
        ("a<!doctype x>b<?xml y>c</ z>d<3 e < f", "abcd<3 e < f"),
        ("<p/><pre>a</pre><prex>b</prex>", "a b"),
        ("in\0voice", "invoice"),
    ],
)
def test_visible_text_is_what_a_reader_sees(html, words, is_read):
    html = html if is_read else MANY_TAGS + html
    assert " ".join(visible_text(html).split()) == words


@each_row(
    "html, words",
    [
        ("a<p hidden>no</p><i style='display:none'>no</i>b", "ab"),
        ("<a href='https://x.test/'>here</a> <img alt='Logo' src=x>", "here Logo"),
        ("<table><tr><td hidden>a<td>b</table>", "b"),
        ("<svg><text>no</text></svg>a<noscript>no</noscript>", "a"),
        ('a<p title="unclosed>b</p>', "a"),
        ("a" + MANY_TAGS + "<p hidden>no</p>", "a no"),
    ],
)
def test_visible_text_leaves_out_what_is_hidden(html, words):
    assert " ".join(visible_text(html).split()) == words


def test_a_number_of_any_length_can_be_previewed():
    assert preview(f"<p>a&#{'9' * 5000};b", "html") == "a\ufffdb"


def test_the_search_reads_20_000_tags_and_a_mebi_of_characters():
    words = [without_tags(text + "word").split() for text in ("<div>" * 20_000, "x" * (1 << 20))]
    assert [each[-1:] == ["word"] for each in words] == [True, False]
    assert without_tags("<div>" * 20_001 + "word").split() == []


def test_output_is_proportional_to_the_body():
    deep = "<blockquote>" * 1000 + "<ul><li>x" * 10_000
    assert len(html_to_text(deep)) < 10 * len(deep)


def test_a_text_that_is_too_long_says_where_the_rest_is(monkeypatch):
    monkeypatch.setattr(html_text, "_CHARACTERS_MAX", 800_000)
    text = html_to_text("word " * 200_000)
    assert text.endswith("\n\n[The rest is in the HTML part of this message.]")
    assert len(text) < 810_000


@given(st.text(st.sampled_from("<>/!-= \"'abp\n&;#") | st.characters(), max_size=300))
def test_no_html_raises(html):
    visible_text(html)
    text = html_to_text(html)
    assert "\r" not in text
    assert not text.startswith("\n")
