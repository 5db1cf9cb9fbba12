"""Where the quoted message begins, as mail programs mark it."""

import pytest

from relay.base.message.properties import MessageProperties
from relay.formats.quoting import quoted_body, unique_body
from tests.support.tables import each_row
from tests.unit.formats.test_quoting import SENT_US, UTC


@each_row(
    "quote",
    [
        '<div class="gmail_quote gmail_quote_container"><div dir="ltr">On …',
        '<blockquote type="cite"><div>old',
        '<div class="moz-cite-prefix">Am 1.1.26 schrieb',
        '<div id="appendonsend"></div><hr>',
        '<DIV ID="x_divRplyFwdMsg" dir="ltr">',
        "<div style='border:none;border-top:solid #E1E1E1 1.0pt;padding:3.0pt 0cm'>",
    ],
)
def test_html(quote):
    assert unique_body(f"<body><p>new</p>\n{quote}", "html") == "<body><p>new</p></body></html>"


@each_row(
    "quote",
    [
        "On Fri, Nov 20, 2026 at 9:00 AM Bob <b@b.test> wrote:\r\n\r\n> old\r\n",
        "On Fri, Nov 20, 2026 at 9:00 AM Robert the Builder <builder@b.test>\nwrote:\n> old\n",
        "Am 20.11.26 um 9:00 schrieb Bob:\n> old",
        "-----Original Message-----\nFrom: Bob",
        "________________________________\r\nFrom: Bob\r\n",
    ],
)
def test_text(quote):
    assert unique_body(f"new\r\n\r\n{quote}", "text") == "new"


@each_row("text", ["On the list:\n- a", "____\nx", "a > b", "", "--\nBob"])
def test_a_text_without_a_quote_is_whole(text):
    assert unique_body(text, "text") == text


@pytest.mark.parametrize("body_type", ["html", "text"])
def test_what_relay_quotes(body_type):
    original = MessageProperties(subject="s", body="old", body_type=body_type)
    body = quoted_body(original, comment="new", sent_us=SENT_US, time_zone=UTC)
    unique = unique_body(body, body_type)
    assert "new" in unique
    assert "old" not in unique
