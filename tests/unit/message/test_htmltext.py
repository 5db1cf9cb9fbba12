"""The text alternative: what a reader without html needs, whatever the html is like."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.message.htmltext import text_of_html


@pytest.mark.parametrize(
    ("html", "text"),
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
        ("<head><title>no</title><style>p{}</style></head>yes<script>no</script><!-- no -->", "yes"),
        ('<div style="DISPLAY : none">no</div><p hidden>no</p>yes', "yes"),
        ("<p>unclosed <b>tags <i>all", "unclosed tags all"),
        ("\ud800<p>é✓", "?\n\né✓"),
        ("<p>a\0b", "ab"),
    ],
)  # fmt: skip
def test_text_of_html(html, text):
    assert text_of_html(html) == text


def test_a_long_document_is_read_in_pieces_without_loss():
    rows = [f"<tr><td>row</td><td>{number}</td></tr>" for number in range(30_000)]
    text = text_of_html(f"<table>{''.join(rows)}</table>")
    assert text.split() == [word for number in range(30_000) for word in ("row", str(number))]


@pytest.mark.parametrize(
    "tag", ["div", "b", "table><tr><td", "ul><li", "blockquote", "a><div", "pre", "x"]
)
def test_no_nesting_makes_it_slow(tag):
    began = time.process_time()
    text = text_of_html(f"<{tag}>x" * 40_000)
    assert time.process_time() - began < 8  # a minute if it were read in one piece
    assert text.count("x") >= 40_000 or "[The rest is in the HTML part" in text


def test_what_is_too_long_says_where_the_rest_is():
    text = text_of_html("word " * 2_000_000)
    assert text.endswith("\n\n[The rest is in the HTML part of this message.]")
    assert len(text) < 8_100_000


@given(st.text(st.sampled_from("<>/!-= \"'abp\n&;#") | st.characters(), max_size=300))
def test_nothing_makes_it_raise(html):
    text = text_of_html(html)
    assert "\r" not in text
    assert not text.startswith("\n")
