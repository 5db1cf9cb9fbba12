"""The quote of a reply: its block, its text, and HTML of which only safe parts remain."""

import time
from datetime import UTC, timedelta, timezone
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.properties import EmailAddress, MessageProperties
from relay.formats import quoting
from relay.formats.quoting import quoted_body
from relay.formats.safe_markup import ATTRIBUTES, ELEMENTS
from tests.support.long_tests import sampled
from tests.support.tables import each_row

SENT_US = 1_795_252_882_000_000  # 2026-11-21T09:21:22Z
BEFORE = '<div id="divRplyFwdMsg" dir="ltr">'


def quoted(body, body_type="html", comment="", zone=UTC, sent_us=SENT_US, **properties):
    original = MessageProperties(body=body, body_type=body_type, **properties)
    return quoted_body(original, comment=comment, sent_us=sent_us, time_zone=zone)


def fragment(html):
    """Return what is quoted of the HTML, without the block before it."""
    _, _, rest = quoted(html).partition("<div>&nbsp;</div></div>\r\n")
    return rest.removesuffix("</body></html>")


@each_row(
    "html, expected",
    [
        ("<p>a &amp; b</p>", "<p>a &amp; b</p>"),
        ('<p Class=x ID=y onclick="z()" STYLE="Color: red">a', '<p class="x" style="color:red">a'),
        (
            "<!doctype html><html><head><title>t</title></head><body dir=rtl>a</body></html>",
            '<div dir="rtl">a</div>',
        ),
        ("<style>p{}</style><script>x</script><iframe>y</iframe>a<!-- b -->c", "ac"),
        (
            "<object>a<embed src=x></object><svg><script>x</script><a href=x>b</a></svg>",
            "a<a>b</a>",
        ),
        ("a<<!-- -->script>x</script>", "a&lt;script>x"),
        ("1 < 2 <3> </ 4", "1 &lt; 2 &lt;3> "),
        ("<textarea><script>x</script></textarea>", "&lt;script>x&lt;/script>"),
        ("<xmp><b>x</xmp>", "<pre>&lt;b>x</pre>"),
        (
            '<a href="https://x.test/?a=1&amp;b=2" target=_top>x</a>',
            '<a href="https://x.test/?a=1&amp;b=2">x</a>',
        ),
        ('<a href="java&#115;cript:x">x</a>', "<a>x</a>"),
        ('<a href="//x.test">x</a><a href="/x">y</a>', "<a>x</a><a>y</a>"),
        ('<a href="mailto:a@b.test">x</a>', '<a href="mailto:a@b.test">x</a>'),
        ('<img src="cid:a%40b" alt="\'&quot;">', '<img src="cid:a%40b" alt="&#x27;&quot;">'),
        ('<img src="data:image/png;base64,AA==">', '<img src="data:image/png;base64,AA==">'),
        ('<img src="data:image/svg+xml,x"><img src="javascript:x">', "<img><img>"),
        ('<p style="position:fixed; top:0; color:rgb(1, 2, 3)">', '<p style="color:rgb(1, 2, 3)">'),
        ('<p style="margin-top:-500px; margin: 0 -1px">', "<p>"),
        ('<p style="background:url(https://x.test)">', "<p>"),
        (
            '<p style="background: #fff; display:flex; width:calc(1px)">',
            '<p style="background:#fff">',
        ),
        (r'<p style="\70osition:fixed; pos/**/ition:fixed">', "<p>"),
        ("<p title='\"><script>'>x", '<p title="&quot;&gt;&lt;script&gt;">x'),
        ('<p title="unclosed <b>x', ""),
        ("a\0<scr\0ipt>b", "a"),
        ("\ud800é✓", "?é✓"),
    ],
)
def test_only_safe_html_remains(html, expected):
    assert fragment(html) == expected


class Reader(HTMLParser):
    """Collects the tags and attributes that another reader of HTML sees."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.seen += [(tag, name, value or "") for name, value in attrs or [("", "")]]

    def handle_comment(self, data):
        self.seen.append(("!", "", data))

    handle_decl = unknown_decl = handle_pi = handle_comment


PIECES = [
    *("<p>", "</p>", "<b", "<", "</", ">", "<!--", "-->", "--!>", "<![CDATA[", "]]>", "<?x"),
    *("<script>", "</script>", "<style>", "</style>", "<title>", "<textarea>", "</textarea>"),
    *("<svg>", "<math>", "<xmp>", "<plaintext>", "<table>", "<a href=", "javascript:", "&lt;"),
    *("'", '"', "=", "/", " ", "\n", "\0", "onload=x", " style=", "position:fixed", ";", "&#60;"),
    *("<body ", "<img src=", "`", "x", "&"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_no_reader_sees_anything_else_in_a_quote(html):
    shown = quoted(html, comment="<i>")
    before, _, rest = shown.partition(BEFORE)
    assert "<div>&lt;i&gt;</div>" in before
    reader = Reader()
    reader.feed(rest.partition("<div>&nbsp;</div></div>\r\n")[2])
    reader.close()
    for tag, name, value in reader.seen:
        assert tag in ELEMENTS
        assert name in (*ATTRIBUTES, "", "style", "href", "src")
        assert "position" not in value or name != "style"
        assert not value.strip().lower().startswith("javascript") or name not in ("href", "src")
    assert fragment(fragment(html)).count("<") == fragment(html).count("<")


WORK = (
    "<",
    "<p>",
    "<a b=c>",
    "<!--",
    "<p title='",
    '<p style="color:red;margin:-1">',
    "&amp;",
    "<body>",
    '<p title="&amp;&amp;">',
    "</p",
    "<p style='margin:",
    "rgb(1",
    "<img src=cid:a>",
)


@each_row("piece", sampled(WORK))
def test_hostile_html_is_quoted_in_linear_time(piece):
    def seconds(characters):
        html = piece * (characters // len(piece))
        started = time.process_time()
        quoted(html)
        return time.process_time() - started

    assert seconds(400_000) < 8 * max(seconds(100_000), 0.01)


@pytest.mark.parametrize("value", ["margin:" * 50_000, "a" * 250_000, "-" * 250_000])
def test_one_long_style_is_read_in_linear_time(value):
    started = time.process_time()
    assert fragment(f'<p style="{value}">x') == "<p>x"
    assert time.process_time() - started < 0.25


def test_too_much_markup_ends_the_quote(monkeypatch):
    monkeypatch.setattr(quoting, "MARKUP_MAX", 10)
    shown = fragment("<b>x" * 20)
    assert shown == "<b>x" * 10 + "<p>[The rest of the original message is not quoted.]</p>"


def test_a_long_original_is_quoted_up_to_the_limit(monkeypatch):
    monkeypatch.setattr(quoting, "QUOTE_CHARACTERS_MAX", 100)
    assert quoted("x" * 101, "text").endswith(
        "x\r\n[The rest of the original message is not quoted.]"
    )
    assert quoted("x" * 100, "text").endswith("x" * 100)
    assert (
        fragment("x" * 101)
        == "x" * 100 + "<p>[The rest of the original message is not quoted.]</p>"
    )
    assert fragment("&" * 30 + "<" * 60).endswith("is not quoted.]</p>")


def test_the_block_names_people_time_and_subject():
    shown = quoted(
        "Body",
        "text",
        "Comment\n",
        zone=timezone(timedelta(hours=5, minutes=30)),
        from_=EmailAddress("a@x.test", "An\r\nTo: n"),
        to=(EmailAddress("b@x.test"), EmailAddress("c@x.test", "c@x.test")),
        cc=(EmailAddress("d@x.test", "Dé"),),
        bcc=(EmailAddress("hidden@x.test"),),
        subject="a\nb \u2028c",
    )
    assert shown.split("\r\n") == [
        "Comment",
        "",
        "",
        "_" * 32,
        "From: An To: n <a@x.test>",
        "Sent: Saturday, November 21, 2026 2:51 PM (UTC+05:30)",
        "To: b@x.test; c@x.test",
        "Cc: Dé <d@x.test>",
        "Subject: a b c",
        "",
        "Body",
    ]


def test_a_time_in_the_distant_future_is_shown_as_the_latest():
    assert " 9999 " in quoted("", "text", zone=timezone(timedelta(hours=14)), sent_us=1 << 62)


def test_values_of_the_block_are_escaped():
    shown = quoted("", from_=EmailAddress("a@x.test", "<script>"), subject="</div><b>")
    assert "<b>From:</b> &lt;script&gt; &lt;a@x.test&gt;<br>" in shown
    assert "<b>Subject:</b> &lt;/div&gt;&lt;b&gt;<div>" in shown
