"""Status codes and the relay's replies."""

from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.status import basic_code, own_reply, reply_text, split_reply
from tests.support.tables import each_row


@each_row(
    "reply, parts",
    [
        ("550 5.1.1 no such user", (550, "5.1.1", "no such user")),
        ("550 no such user", (550, "", "no such user")),
        ("550", (550, "", "")),
        ("550 5.1.1", (550, "5.1.1", "")),
        ("5.7.1 Not accepted", (0, "5.7.1", "Not accepted")),
        ("550-5.1.1 first", (550, "5.1.1", "first")),
        ("no route to host", (0, "", "no route to host")),
        ("5500 x", (0, "", "5500 x")),
        ("550 5.1.1.1 x", (550, "", "5.1.1.1 x")),
        ("", (0, "", "")),
    ],
)
def test_split_reply(reply, parts):
    assert split_reply(reply) == parts


@each_row(
    "status, code",
    [
        ("5.1.1", 550),
        ("5.7.1", 550),
        ("5.2.2", 552),
        ("4.3.1", 452),
        ("4.3.0", 451),
        ("2.0.0", 250),
        ("5.4.6", 554),
        ("", 451),
        ("nonsense", 451),
    ],
)
def test_a_status_has_a_basic_code_of_its_class(status, code):
    assert basic_code(status) == code


@given(st.text(max_size=1000))
def test_own_replies_are_one_line_of_ascii(text):
    reply = own_reply("5.7.1", text)
    assert reply.startswith("550 5.7.1 ")
    assert reply.isascii()
    assert reply.isprintable()
    assert len(reply) <= 410


def test_reply_text_folds_accents_and_clips():
    assert reply_text("Größe: naïve\r\n 250 ok\0") == "Gro?e: naive 250 ok"
    # an address without its accents is another person's
    assert reply_text("no <\u017f@a.test>, <ä@a.test> or über") == (
        "no <?@a.test>, <?@a.test> or uber"
    )
    assert reply_text("x" * 500) == "x" * 397 + "..."
